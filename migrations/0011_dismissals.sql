-- Quarantined events that an operator has dismissed, with a reason. They are not retried.
set local lock_timeout = '2s';

create table workos.dismissals (
    -- The event. Its first outcome stays `quarantined`. It is no longer counted as quarantined. Its retention period starts at the
    -- dismissal.
    event_id     text collate "C" primary key,
    -- The reason that the operator gave.
    reason       text not null,
    dismissed_at timestamptz not null default now()
);

create index dismissals_dismissed_at on workos.dismissals (dismissed_at);

comment on table workos.dismissals is 'Quarantined events that an operator has dismissed, with the reason';
