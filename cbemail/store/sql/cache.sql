-- The message cache, in SQLite (`store/cache_file`). Values are tuples: its driver names parameters by position.

-- schema --
-- Places are digests, so the index by place is small; that by use finds what has to go without reading what is sealed.
begin;
create table value (
  id         integer primary key,
  session_id text not null,
  place      blob not null,
  used_at    integer not null,  -- seconds since 1970
  sealed     blob not null
);
create unique index value_by_place on value (session_id, place);
create index value_by_use on value (used_at);
pragma user_version = 1;
commit;

-- find --
select sealed, used_at from value where session_id = ? and place = ?

-- keep --
insert into value (session_id, place, sealed, used_at) values (?, ?, ?, ?)
on conflict (session_id, place) do update set sealed = excluded.sealed, used_at = excluded.used_at

-- touch --
update value set used_at = ? where session_id = ? and place = ?

-- sessions --
select distinct session_id from value

-- forget --
delete from value where id in (select id from value where session_id = ? limit ?)

-- purge --
delete from value where id in (select id from value where used_at < ? limit ?)

-- oldest --
select id, length(sealed) from value order by used_at, id limit ?

-- delete --
delete from value where id = ?
