-- No foreign keys and no index over messages (see 0001): a key of 500,000 rows would fill the memory the store may
-- use. Rows of one batch lie together, so a search by batch and row reads the few segments that can hold it.

create sequence batch_number;  -- never given out twice, so nothing late can reach another batch's rows

create table batch (
  number        integer primary key,
  id            varchar not null,
  kind          varchar not null,
  session_id    varchar not null,
  name          varchar,
  state         varchar not null,  -- 'accepting' until all of it is on disk
  options       varchar not null,  -- JSON
  token         varchar not null,
  sealed_key    blob not null,
  created_at    timestamp not null,
  send_at       timestamp,
  started_at    timestamp,
  finished_at   timestamp,
  paused_reason varchar,
  paused_until  timestamp
);

create table batch_content (
  batch  integer not null,
  number integer not null,
  piece  integer not null,
  sealed blob not null
);

-- One row: one recipient, as it was when the journal was last folded in.
create table batch_message (
  batch           integer not null,
  row_number      integer not null,
  position        integer not null,
  content         integer not null,
  state           varchar not null,
  attempts        integer not null,
  claims          integer not null,
  message_id      varchar not null,
  sealed          blob not null,
  next_attempt_at timestamp,
  status          integer,
  enhanced        varchar,
  code            varchar,
  detail          varchar,
  finished_at     timestamp
);

-- The journal: what became of rows since. Each row a group of events, in MessagePack (`store/event_journal`).
create table batch_event (
  sequence bigint not null,
  events   blob not null
);
