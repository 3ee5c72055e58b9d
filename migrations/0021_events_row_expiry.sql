-- no-transaction
-- Retention: rows without a payload that may expire, oldest first. Rows with one are in events_payload_expiry.
create index concurrently if not exists events_row_expiry on workos.events (received_at)
where payload is null and (outcome <> 'quarantined' or type = 'snapshot')
