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
insert into outbox_message (id, session_id, state, message_id, created_at, finished_at, result)
select $id, session_id, $state, $message_id, $created_at, $finished_at, $result
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
insert into outbox_message (id, session_id, state, message_id, created_at, finished_at, result)
select send.id, session.id, send.state, message_id, send.created_at, finished_at, result
  from (select unnest($id::varchar[]) as id, unnest($session_id::varchar[]) as session_id,
               unnest($state::varchar[]) as state, unnest($message_id::varchar[]) as message_id,
               unnest($created_at::timestamp[]) as created_at, unnest($finished_at::timestamp[]) as finished_at,
               unnest($result::blob[]) as result) as send
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
