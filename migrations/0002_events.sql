-- Events: the inbox. It holds every verified event once, with its first outcome.
set local lock_timeout = '5s';

create table workos.events (
    -- WorkOS's event ID. It is the same in a webhook and in the Events API, so it identifies duplicates.
    id           text collate "C" primary key,
    type         text not null,
    -- The user of the event; null if it is about no user. The deletion of this user erases the payload.
    user_id      text collate "C",
    -- WorkOS's time of the event; null if WorkOS sent none.
    created_at   timestamptz,
    -- The bytes as received. The type is bytea, because jsonb refuses an escaped NUL and json refuses deep nesting. Null once
    -- erased or expired.
    payload      bytea,
    -- The first outcome. Only a successful retry of a quarantined event replaces it.
    outcome      text not null,
    -- Why the event is stale or quarantined. It contains nothing from the payload.
    reason       text,
    -- When each channel first brought the event. A duplicate changes nothing else.
    webhook_at   timestamptz,
    catch_up_at  timestamptz,
    received_at  timestamptz not null default now(),
    constraint events_outcome check (outcome in ('applied', 'stale', 'ignored', 'quarantined'))
);

-- Everything that was received about one user.
create index events_user_id on workos.events (user_id) where user_id is not null;

-- Erasure: payloads of a user that are still stored, without those that are already erased.
create index events_payloads_by_user on workos.events (user_id) where payload is not null and user_id is not null;

-- The quarantine. It is small and often read.
create index events_quarantined on workos.events (received_at) where outcome = 'quarantined';

-- The list of events, by time of arrival.
create index events_received_at on workos.events (received_at);

-- Events that only one channel has brought; the audit counts them. Small while both channels work.
create index events_one_channel on workos.events (received_at) where (webhook_at is null) <> (catch_up_at is null);

-- Types that webhooks have brought; the audit compares them with the types that catch-up brings.
create index events_webhook_types on workos.events (type) where webhook_at is not null;

-- Retention: payloads that may expire, oldest first. Quarantined events keep theirs, except for snapshots, which can be read from
-- WorkOS again.
create index events_payload_expiry on workos.events (received_at)
where payload is not null and (outcome <> 'quarantined' or type = 'snapshot');

-- Retention: rows without a payload that may expire, oldest first. Rows with a payload are in events_payload_expiry.
create index events_row_expiry on workos.events (received_at)
where payload is null and (outcome <> 'quarantined' or type = 'snapshot');

comment on table workos.events is 'Every verified WorkOS event once, with its first outcome; payloads of deleted users are erased';
