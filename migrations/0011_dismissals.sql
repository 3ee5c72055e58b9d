-- Quarantined events that nobody will retry: an operator has dismissed them, with a reason.
set local lock_timeout = '2s';

create table workos.dismissals (
    -- The event. Its first outcome stays `quarantined`. It is no longer counted, and it expires like any other event from the
    -- dismissal on.
    event_id     text collate "C" primary key,
    -- The operator's words.
    reason       text not null,
    dismissed_at timestamptz not null default now()
);

create index dismissals_dismissed_at on workos.dismissals (dismissed_at);

comment on table workos.dismissals is 'Quarantined events that an operator has dismissed, with the reason';
