-- Every statement of the service, by name. `$name` is a parameter; a write gives rows only by `returning`.
-- Writes share a transaction with other callers' writes, so none may rely on being first or alone in it.
-- One that is named for `each` takes lists, and does for many callers at once what would else be a statement a caller.

-- schema_version --
select max(version) as version from schema_version

-- add_schema_version --
insert into schema_version (version, name) values ($version, $name)

-- load_sessions --
select * from session order by created_at, id

-- add_session --
insert into session (
  id, email, name, provider, auth, imap_host, imap_port, imap_security, imap_username,
  smtp_host, smtp_port, smtp_security, smtp_username, state, sealed_credentials, created_at, last_used_at
) values (
  $id, $email, $name, $provider, $auth, $imap_host, $imap_port, $imap_security, $imap_username,
  $smtp_host, $smtp_port, $smtp_security, $smtp_username, $state, $sealed_credentials, $created_at, $last_used_at
)

-- replace_credentials --
update session
   set sealed_credentials = $sealed_credentials, auth = $auth, state = $state
 where id = $id
returning id

-- renew_credentials --
update session set sealed_credentials = $renewed
 where id = $id and sealed_credentials = $sealed_credentials
returning id

-- mark_stale --
update session set state = 'credentials_stale' where id = $id and sealed_credentials = $sealed_credentials

-- touch_sessions --
update session
   set last_used_at = touched.last_used_at
  from (select unnest($ids::varchar[]) as id, unnest($times::timestamp[]) as last_used_at) as touched
 where session.id = touched.id and session.last_used_at < touched.last_used_at

-- delete_session --
delete from session where id = $id

-- delete_refresh_tokens --
delete from refresh_token where session_id = $id

-- delete_idempotency_keys --
delete from idempotency_key where session_id = $id

-- delete_outbox_messages --
delete from outbox_message where session_id = $id

-- add_refresh_token --
insert into refresh_token (token_hash, session_id, expires_at, used_at)
select $token_hash, id, $expires_at, $used_at from session where id = $session_id
returning session_id

-- use_refresh_token --
update refresh_token
   set used_at = $now, replaced_by = $replacement
 where token_hash = $token_hash and session_id = $session_id and used_at is null and expires_at > $now

-- add_replacement_token --
insert into refresh_token (token_hash, session_id, expires_at)
select $replacement, session_id, $expires_at
  from refresh_token
 where token_hash = $token_hash and replaced_by = $replacement

-- rotation_outcome --
select replaced_by = $replacement as rotated
  from refresh_token
 where token_hash = $token_hash and session_id = $session_id and expires_at > $now

-- begin_idempotent --
insert into idempotency_key (session_id, operation, key, fingerprint, outbox_id, created_at)
select id, $operation, $key, $fingerprint, $outbox_id, $created_at from session where id = $session_id
on conflict do nothing
returning key

-- record_idempotent_send --
-- Only with the key: where `begin_idempotent` found another call's key, this finds no row to go with.
insert into outbox_message (id, session_id, state, message_id, created_at, recipients, finished_at, result)
select $id, session_id, $state, $message_id, $created_at, $recipients, $finished_at, $result
  from idempotency_key
 where session_id = $session_id and operation = $operation and key = $key and outbox_id = $id

-- find_idempotent --
select * from idempotency_key where session_id = $session_id and operation = $operation and key = $key

-- finish_idempotent --
update idempotency_key
   set status = $status, headers = $headers, body = $body
 where session_id = $session_id and operation = $operation and key = $key and status is null

-- forget_idempotent --
delete from idempotency_key
 where session_id = $session_id and operation = $operation and key = $key and status is null

-- purge_idempotency_keys --
delete from idempotency_key where created_at < $before

-- purge_outbox_messages --
delete from outbox_message where finished_at < $before

-- purge_refresh_tokens --
delete from refresh_token where expires_at <= $now

-- record_each_send --
insert into outbox_message (id, session_id, state, message_id, created_at, recipients, finished_at, result)
select send.id, session.id, send.state, message_id, send.created_at, recipients, finished_at, result
  from (select unnest($id::varchar[]) as id, unnest($session_id::varchar[]) as session_id,
               unnest($state::varchar[]) as state, unnest($message_id::varchar[]) as message_id,
               unnest($created_at::timestamp[]) as created_at, unnest($recipients::integer[]) as recipients,
               unnest($finished_at::timestamp[]) as finished_at, unnest($result::blob[]) as result) as send
  join session on session.id = send.session_id
returning id

-- settle_each_send --
update outbox_message
   set state = settled.state, result = settled.result, finished_at = settled.finished_at
  from (select unnest($id::varchar[]) as id, unnest($state::varchar[]) as state,
               unnest($result::blob[]) as result, unnest($finished_at::timestamp[]) as finished_at) as settled
 where outbox_message.id = settled.id and outbox_message.state in ('sending', 'uncertain')

-- amend_each_send --
update outbox_message
   set result = amended.result
  from (select unnest($id::varchar[]) as id, unnest($result::blob[]) as result) as amended
 where outbox_message.id = amended.id and outbox_message.state = 'sent'

-- find_send --
select * from outbox_message where id = $id and session_id = $session_id

-- settle_interrupted_sends --
update outbox_message set state = 'uncertain', finished_at = $now where state = 'sending' returning id

-- forget_interrupted_calls --
-- Without a row in the outbox nothing was sent: the same key may run anew.
delete from idempotency_key
 where status is null and (outbox_id is null or outbox_id not in (select id from outbox_message))

-- add_batch --
insert into batch (
  number, id, kind, session_id, name, state, options, token, sealed_key, created_at, send_at, started_at, finished_at,
  paused_reason, paused_until
)
select nextval('batch_number'), $id, $kind, id, $name, 'accepting', $options, $token, $sealed_key, $created_at,
       $send_at, $started_at, $finished_at, $paused_reason, $paused_until
  from session
 where id = $session_id
returning number

-- find_accepting_batch --
select number from batch where number = $batch and state = 'accepting'

-- measure_batch_content --
select coalesce(sum(octet_length(sealed)), 0)::bigint as octets
  from batch_content
 where batch = $batch and number = $number

-- load_batch_content --
select sealed
  from batch_content
 where batch = $batch and number = $number and piece >= $first and piece < $end
 order by piece

-- add_batch_contents --
insert into batch_content (batch, number, piece, sealed)
select batch.number, content.number, content.piece, content.sealed
  from (select unnest($numbers::integer[]) as number, unnest($pieces::integer[]) as piece,
               unnest($sealed::blob[]) as sealed) as content, batch
 where batch.number = $batch and batch.state = 'accepting'

-- add_batch_messages --
insert into batch_message (
  batch, row_number, position, content, state, attempts, claims, message_id, sealed, next_attempt_at, code, detail
)
select batch.number, message.row_number, position, content, message.state, 0, 0, message_id, sealed, next_attempt_at,
       code, detail
  from (select unnest($rows::integer[]) as row_number, unnest($positions::integer[]) as position,
               unnest($contents::integer[]) as content, unnest($states::varchar[]) as state,
               unnest($message_ids::varchar[]) as message_id, unnest($sealed::blob[]) as sealed,
               unnest($next_attempts::timestamp[]) as next_attempt_at, unnest($codes::varchar[]) as code,
               unnest($details::varchar[]) as detail) as message, batch
 where batch.number = $batch and batch.state = 'accepting'

-- record_batch_answer --
-- Complete from the first moment: there is never a key of a batch that waits for its answer.
insert into idempotency_key (
  session_id, operation, key, fingerprint, outbox_id, created_at, status, headers, body
)
select session.id, $operation, $key, $fingerprint, batch.id, $created_at, $status, $headers, $body
  from batch join session on session.id = batch.session_id
 where batch.number = $batch and batch.state = 'accepting' and session.id = $session_id
on conflict do nothing

-- publish_batch --
update batch
   set state = $state
 where number = $batch and state = 'accepting' and session_id in (select id from session)
returning number

-- publish_batch_with_key --
update batch
   set state = $state
 where number = $batch and state = 'accepting'
   and id in (select outbox_id from idempotency_key
               where session_id = $session_id and operation = $operation and key = $key)
returning number

-- discard_batch_content --
delete from batch_content where batch in (select number from batch where number = $batch and state = 'accepting')

-- discard_batch_messages --
delete from batch_message where batch in (select number from batch where number = $batch and state = 'accepting')

-- discard_batch --
delete from batch where number = $batch and state = 'accepting'

-- load_unfinished_batches --
select * from batch where state in ('queued', 'scheduled', 'running', 'paused') order by number

-- load_undecided_batches --
select * from batch
 where state <> 'accepting' and number in (select batch from batch_message where state = 'uncertain')
 order by number

-- find_batch --
select * from batch where session_id = $session_id and id = $id and state <> 'accepting'

-- page_batches --
select * from batch
 where session_id = $session_id and kind = 'batch' and state <> 'accepting'
   and ($before::integer is null or number < $before)
 order by number desc
 limit $limit

-- count_batch_messages --
select batch, state, count(*) as messages
  from batch_message
 where batch in (select unnest($batches::integer[]))
 group by batch, state

-- set_batch_state --
update batch
   set state = $state, started_at = coalesce(started_at, $started_at), finished_at = $finished_at,
       paused_reason = $paused_reason, paused_until = $paused_until
 where number = $batch and state <> 'accepting'

-- find_log --
select name, folded from event_log

-- name_log --
update event_log set name = $name

-- forget_log --
update event_log set name = null where name is not null

-- note_folded --
update event_log set folded = $sequence

-- load_earlier_events --
-- The journal of earlier versions.
select sequence, events from batch_event order by sequence

-- forget_earlier_events --
delete from batch_event

-- fold_batch_events --
update batch_message
   set state = event.state, attempts = event.attempts, status = event.status, enhanced = event.enhanced,
       detail = event.detail, next_attempt_at = event.next_attempt_at, finished_at = event.finished_at,
       claims = case when event.state = 'sending' then claims else 0 end
  from (select unnest($batches::integer[]) as batch, unnest($rows::integer[]) as row_number,
               unnest($states::varchar[]) as state, unnest($attempts::integer[]) as attempts,
               unnest($statuses::integer[]) as status, unnest($enhanced::varchar[]) as enhanced,
               unnest($details::varchar[]) as detail, unnest($next_attempts::timestamp[]) as next_attempt_at,
               unnest($finished::timestamp[]) as finished_at) as event
 where batch_message.batch = event.batch and batch_message.row_number = event.row_number

-- find_due_batch_messages --
select row_number
  from batch_message
 where batch = $batch and state in ('queued', 'deferred') and next_attempt_at <= $now and claims < $suspects
   and row_number not in (select unnest($held::integer[]))
 order by next_attempt_at, row_number
 limit $limit

-- find_suspect_batch_messages --
-- What was claimed often without an outcome may be what kills the workers: none while another such is held.
select row_number, claims
  from batch_message
 where batch = $batch and state in ('queued', 'deferred') and next_attempt_at <= $now and claims >= $suspects
   and not exists (select 1 from batch_message
                    where batch = $batch and claims >= $suspects
                      and row_number in (select unnest($held::integer[])))
 order by claims, next_attempt_at, row_number
 limit $limit

-- count_batch_claims --
update batch_message
   set claims = claims + 1
 where batch = $batch and row_number between $first and $last and row_number in (select unnest($rows::integer[]))
   and state in ('queued', 'deferred')

-- load_claimed_messages --
-- Of the rows that were found due, those that still are.
select row_number, position, content, state, attempts, claims, message_id, sealed, next_attempt_at, status, enhanced,
       detail
  from batch_message
 where batch = $batch and row_number between $first and $last and row_number in (select unnest($rows::integer[]))
   and state in ('queued', 'deferred')
 order by next_attempt_at, row_number

-- next_due_batch_message --
select min(next_attempt_at) as next_attempt_at
  from batch_message
 where batch = $batch and state in ('queued', 'deferred')
   and row_number not in (select unnest($held::integer[]))

-- count_batch_messages_to_move --
select state, count(*) as messages
  from batch_message
 where batch = $batch and state in (select unnest($states::varchar[]))
   and row_number not in (select unnest($held::integer[]))
 group by state

-- end_batch_messages --
update batch_message
   set state = $to, next_attempt_at = null, finished_at = $now
 where batch = $batch and state in (select unnest($states::varchar[]))
   and row_number not in (select unnest($held::integer[]))

-- requeue_batch_messages --
update batch_message
   set state = 'queued', attempts = 0, claims = 0, next_attempt_at = $now, status = null, enhanced = null,
       detail = case when state = 'uncertain' or starts_with(detail, $earlier_try) then $earlier_try end, finished_at = null
 where batch = $batch and state in (select unnest($states::varchar[]))
   and row_number not in (select unnest($held::integer[]))

-- page_batch_messages --
select * from batch_message
 where batch = $batch and row_number > $after and ($state::varchar is null or state = $state)
 order by row_number
 limit $limit

-- load_rejected_messages --
-- The first of each batch.
select *
  from (select *, row_number() over (partition by batch order by row_number) as rank
          from batch_message
         where batch in (select unnest($batches::integer[])) and state = 'rejected') as rejected
 where rank <= $limit
 order by batch, row_number

-- load_undecided_messages --
select * from batch_message where batch = $batch and state = 'uncertain' order by row_number

-- find_sent_message_ids --
select distinct message_id
  from batch_message
 where batch = $batch and state = 'sent' and message_id in (select unnest($message_ids::varchar[]))

-- decide_message --
-- To be sent again is nothing in a batch that is over.
update batch_message
   set state = $state, detail = $detail, next_attempt_at = $next_attempt_at, finished_at = $finished_at, claims = 0
 where batch = $batch and row_number = $row and state = 'uncertain'
   and ($state = 'sent' or batch in (select number from batch where state not in ('cancelled', 'completed')))
returning row_number

-- settle_interrupted_messages --
update batch_message
   set state = 'uncertain', next_attempt_at = null, finished_at = $now, detail = $detail
 where state = 'sending'
returning row_number

-- cancel_interrupted_messages --
-- The process died between the batch's end and that of its rows.
update batch_message
   set state = 'cancelled', next_attempt_at = null, finished_at = $now
 where state in ('queued', 'deferred') and batch in (select number from batch where state = 'cancelled')

-- forget_unfinished_content --
delete from batch_content where batch not in (select number from batch where state <> 'accepting')

-- forget_unfinished_messages --
delete from batch_message where batch not in (select number from batch where state <> 'accepting')

-- forget_unfinished_batches --
delete from batch where state = 'accepting'

-- list_ended_batches --
select number from batch where finished_at < $before order by number

-- purge_batch_content --
delete from batch_content where batch in (select number from batch where number = $batch and finished_at < $before)

-- purge_batch_messages --
delete from batch_message where batch in (select number from batch where number = $batch and finished_at < $before)

-- purge_batch --
delete from batch where number = $batch and finished_at < $before

-- delete_batch_content --
delete from batch_content where batch in (select number from batch where session_id = $id)

-- delete_batch_messages --
delete from batch_message where batch in (select number from batch where session_id = $id)

-- delete_batches --
delete from batch where session_id = $id

-- count_sent_by_hour --
-- An account may have several sessions. What is uncertain may have been delivered, so it counts.
with account as (
  select id from session where lower(smtp_host) = $host and lower(smtp_username) = $username
), gone as (
  select finished_at, 1 as recipients
    from batch_message
   where batch in (select number from batch where session_id in (select id from account))
     and state in ('sent', 'uncertain') and finished_at >= $since
  union all
  select finished_at, recipients
    from outbox_message
   where session_id in (select id from account) and state in ('sent', 'uncertain') and finished_at >= $since
)
select date_trunc('hour', finished_at) as began, sum(recipients)::bigint as recipients
  from gone
 group by began
 order by began

-- find_folder_state --
select * from folder_state where id = $id and session_id = $session_id

-- keep_folder_state --
insert into folder_state (id, session_id, folder, line, step, sealed, used_at)
select $id, id, $folder, $line, $step, $sealed, $used_at from session where id = $session_id
returning id

-- forget_earlier_folder_states --
delete from folder_state where session_id = $session_id and line = $line and step < $step

-- forget_surplus_folder_states --
delete from folder_state
 where session_id = $session_id and folder = $folder
   and id not in (select id
                    from folder_state
                   where session_id = $session_id and folder = $folder
                   order by used_at desc, step desc, id
                   limit $kept)

-- touch_folder_state --
update folder_state set used_at = $used_at where id = $id

-- purge_folder_states --
delete from folder_state where used_at < $before

-- delete_folder_states --
delete from folder_state where session_id = $id

-- page_sealed_folder_states --
select id as "row", sealed from folder_state where id > $after order by id limit $limit

-- replace_sealed_folder_states --
update folder_state
   set sealed = renewed.sealed
  from (select unnest($rows::varchar[]) as id, unnest($sealed::blob[]) as sealed) as renewed
 where folder_state.id = renewed.id

-- find_cache_key --
select sealed from cache_key where session_id = $session_id

-- find_sessions_with_cache_key --
select session_id from cache_key

-- keep_cache_key --
insert into cache_key (session_id, sealed)
select id, $sealed from session where id = $session_id
on conflict (session_id) do update set sealed = excluded.sealed
returning session_id

-- delete_cache_key --
delete from cache_key where session_id = $id

-- page_sealed_cache_keys --
select session_id as "row", sealed from cache_key where session_id > $after order by session_id limit $limit

-- replace_sealed_cache_keys --
update cache_key
   set sealed = renewed.sealed
  from (select unnest($rows::varchar[]) as id, unnest($sealed::blob[]) as sealed) as renewed
 where cache_key.session_id = renewed.id

-- page_sealed_credentials --
select id as "row", sealed_credentials as sealed from session where id > $after order by id limit $limit

-- replace_sealed_credentials --
update session
   set sealed_credentials = renewed.sealed
  from (select unnest($rows::varchar[]) as id, unnest($sealed::blob[]) as sealed) as renewed
 where session.id = renewed.id

-- page_sealed_batch_keys --
select number::varchar as "row", sealed_key as sealed from batch where "row" > $after order by "row" limit $limit

-- replace_sealed_batch_keys --
update batch
   set sealed_key = renewed.sealed
  from (select unnest($rows::varchar[])::integer as number, unnest($sealed::blob[]) as sealed) as renewed
 where batch.number = renewed.number

-- page_sealed_answers --
select session_id || ' ' || operation || ' ' || key as "row", body as sealed
  from idempotency_key
 where "row" > $after and body is not null
 order by "row"
 limit $limit

-- replace_sealed_answers --
update idempotency_key
   set body = renewed.sealed
  from (select unnest($rows::varchar[]) as "row", unnest($sealed::blob[]) as sealed) as renewed
 where session_id || ' ' || operation || ' ' || key = renewed."row"

-- page_sealed_results --
select id as "row", result as sealed
  from outbox_message
 where id > $after and result is not null
 order by id
 limit $limit

-- replace_sealed_results --
update outbox_message
   set result = renewed.sealed
  from (select unnest($rows::varchar[]) as id, unnest($sealed::blob[]) as sealed) as renewed
 where outbox_message.id = renewed.id
