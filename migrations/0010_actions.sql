-- Actions: what was decided about an attempt to sign in or up, so that whoever asks again is told the same.
set local lock_timeout = '5s';

create table workos.action_verdicts (
    -- WorkOS's id of the action. The first verdict stored for it counts, whichever replica decides another one meanwhile.
    id         text collate "C" primary key,
    verdict    text not null,
    -- What the person is told, as a rule, a handler or the decision endpoint worded it.
    message    text,
    -- handler, endpoint, endpoint_failure, rule_<n> or default: for the log.
    decided_by text not null,
    -- The database's clock. Rows live for minutes: housekeeping drops them.
    decided_at timestamptz not null default now(),
    constraint action_verdicts_verdict check (verdict in ('allow', 'deny')),
    constraint action_verdicts_message check (verdict = 'deny' or message is null)
);

-- Housekeeping.
create index action_verdicts_decided_at on workos.action_verdicts (decided_at);

comment on table workos.action_verdicts is 'The verdict on each WorkOS action of the last minutes; nothing of the action itself is kept';
