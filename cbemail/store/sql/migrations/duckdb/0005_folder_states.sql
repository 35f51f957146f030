-- What clients know of folders whose servers do not remember what they removed: what is there now is compared with it.

create table folder_state (
  id         varchar primary key,
  session_id varchar not null,
  folder     blob not null,     -- a digest: the names of folders are nobody's business
  line       varchar not null,  -- of the states that followed one from the other, numbered by `step`
  step       integer not null,
  sealed     blob not null,
  used_at    timestamp not null
);
