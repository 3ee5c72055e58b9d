-- no-transaction
-- Retention and the lists of events go by the time of arrival.
create index concurrently if not exists events_received_at on workos.events (received_at)
