-- no-transaction
-- Events that only one feed has brought: what the completeness audit counts. Small while both feeds work.
create index concurrently if not exists events_one_feed on workos.events (received_at)
where (webhook_at is null) <> (catch_up_at is null)
