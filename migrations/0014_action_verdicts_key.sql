-- The key of a verdict: kind, ID and content of the action.
--
-- With the ID alone, a sign-in that carried the ID of a registration got the registration's verdict, whoever signed in.
set local lock_timeout = '5s';

-- Verdicts live for minutes and can be decided again, so the table is made anew.
drop table workos.action_verdicts;

create table workos.action_verdicts (
    -- WorkOS's ID of the action.
    id           text collate "C" not null,
    -- authentication or user_registration.
    kind         text collate "C" not null,
    -- SHA-256 of the body as it was received. WorkOS puts the time of sending into the signature header, not into the body,
    -- so a repeated request has the same body.
    payload_hash bytea not null,
    verdict      text not null,
    -- What the person is told, as a rule, a handler or the decision endpoint worded it.
    message      text,
    -- handler, endpoint, endpoint_failure, rule_<n> or default: for the log.
    decided_by   text not null,
    -- The database's clock. Housekeeping deletes the row some minutes later.
    decided_at   timestamptz not null default now(),
    -- The first verdict stored for an action counts, whatever another replica decides meanwhile.
    constraint action_verdicts_pkey primary key (id, kind, payload_hash),
    constraint action_verdicts_kind check (kind in ('authentication', 'user_registration')),
    constraint action_verdicts_payload_hash check (octet_length(payload_hash) = 32),
    constraint action_verdicts_verdict check (verdict in ('allow', 'deny')),
    constraint action_verdicts_message check (verdict = 'deny' or message is null)
);

-- Housekeeping.
create index action_verdicts_decided_at on workos.action_verdicts (decided_at);

comment on table workos.action_verdicts is 'The verdict on each WorkOS action of the last minutes; of the action itself only a hash is kept';
