-- No foreign keys: DuckDB has no `on delete cascade`, and refuses to delete child and parent in one transaction.
-- The repository keeps rows of a session together instead. No secondary indexes: they cost more memory than the
-- scans they would save, and every lookup on a request's road goes by primary key.
-- Words are varchar without a check: a state added later must not need the table rewritten.

create table schema_version (
  version integer primary key,
  name    varchar not null
);

create table session (
  id                 varchar primary key,
  email              varchar not null,
  name               varchar,
  provider           varchar,
  auth               varchar not null,
  imap_host          varchar not null,
  imap_port          integer not null,
  imap_security      varchar not null,
  imap_username      varchar not null,
  smtp_host          varchar not null,
  smtp_port          integer not null,
  smtp_security      varchar not null,
  smtp_username      varchar not null,
  state              varchar not null,
  sealed_credentials blob not null,
  created_at         timestamp not null,
  last_used_at       timestamp not null
);

create table refresh_token (
  token_hash  blob primary key,
  session_id  varchar not null,
  expires_at  timestamp not null,
  used_at     timestamp,
  replaced_by blob  -- the token given out for this one: tells the caller that used it from one that came too late
);

create table idempotency_key (
  session_id  varchar not null,
  operation   varchar not null,
  key         varchar not null,
  fingerprint blob not null,
  outbox_id   varchar,
  created_at  timestamp not null,
  status      integer,  -- null while the call runs
  headers     varchar,
  body        blob,
  primary key (session_id, operation, key)
);

-- One row: one message handed over for one set of recipients. A batch will add its columns (batch, attempts, lease)
-- and its states to this table; what is here holds for both.
create table outbox_message (
  id          varchar primary key,
  session_id  varchar not null,
  state       varchar not null,
  message_id  varchar not null,
  created_at  timestamp not null,
  finished_at timestamp,
  result      blob
);
