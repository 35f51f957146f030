-- What is cached of a session's mailbox is in a file of its own (`store/cache_file`), sealed with this key: that it goes
-- with its session makes all of it unreadable at once.

create table cache_key (
  session_id varchar primary key,
  sealed     blob not null
);
