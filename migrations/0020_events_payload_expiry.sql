-- no-transaction
-- Retention: payloads that may expire, oldest first. Quarantined events keep theirs; WorkOS can be asked for snapshots again.
create index concurrently if not exists events_payload_expiry on workos.events (received_at)
where payload is not null and (outcome <> 'quarantined' or type = 'snapshot')
