-- The journal of what becomes of messages is a file beside the store from here on (`store/log_file`): its name, by which
-- it is known to be this store's, while there is one; and how far it is folded into the rows. `batch_event` was the
-- journal before, and may hold what an earlier version has left.

create table event_log (
  name   varchar,
  folded bigint not null
);

insert into event_log values (null, 0);
