-- no-transaction
-- Erasure reads the payloads that are still stored of a user, and none that are erased already.
create index concurrently if not exists events_kept_by_user on workos.events (user_id)
where payload is not null and user_id is not null
