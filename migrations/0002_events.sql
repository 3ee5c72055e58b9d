-- The inbox: every verified event once, with what became of it.
set local lock_timeout = '5s';

create table workos.events (
    -- WorkOS's id, the same in a webhook and in the Events API: what duplicates are known by.
    id           text collate "C" primary key,
    type         text not null,
    -- The user it is about, null where it is about none; the user's deletion erases the payload.
    user_id      text collate "C",
    -- WorkOS's own time; null where it sent none.
    created_at   timestamptz,
    -- The bytes as received. Not jsonb, which refuses an escaped NUL, nor json, which refuses deep nesting. Null once erased.
    payload      bytea,
    -- The first outcome; only a successful retry of a quarantined event replaces it.
    outcome      text not null,
    -- Why it is stale or quarantined, in words that hold nothing of the payload.
    reason       text,
    -- When each feed first brought it. A duplicate changes nothing else.
    webhook_at   timestamptz,
    catch_up_at  timestamptz,
    received_at  timestamptz not null default now(),
    constraint events_outcome check (outcome in ('applied', 'stale', 'ignored', 'quarantined'))
);

-- Erasure, and everything received about one user.
create index events_user_id on workos.events (user_id) where user_id is not null;

-- The quarantine, which is small and asked for often.
create index events_quarantined on workos.events (received_at) where outcome = 'quarantined';

comment on table workos.events is 'Every verified WorkOS event once, with its first outcome; payloads of deleted users are erased';
