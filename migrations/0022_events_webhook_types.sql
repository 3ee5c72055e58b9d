-- no-transaction
-- The audit asks whether webhooks ever brought a type.
create index concurrently if not exists events_webhook_types on workos.events (type)
where webhook_at is not null
