-- Actions: the verdict on each attempt to sign in or sign up, so that a repeated request gets the same answer.
set local lock_timeout = '5s';

-- The key is the kind, the ID and the content of the action. The ID alone is not enough: a sign-in that carried the ID of a
-- registration would get the verdict of the registration.
create table workos.action_verdicts (
    -- WorkOS's ID of the action.
    id           text collate "C" not null,
    -- authentication or user_registration.
    kind         text collate "C" not null,
    -- SHA-256 of the body as received. WorkOS puts the time of sending into the signature header and not into the body, so a
    -- repeated request has the same body.
    payload_hash bytea not null,
    verdict      text not null,
    -- The message that the person sees, as a rule, a handler or the decision endpoint worded it.
    message      text,
    -- handler, endpoint, endpoint_failure, rule_<n> or default. For the log.
    decided_by   text not null,
    -- By the database's clock. Housekeeping deletes the row some minutes later.
    decided_at   timestamptz not null default now(),
    -- The first verdict that is stored for an action counts, even if another replica decides differently at the same time.
    constraint action_verdicts_pkey primary key (id, kind, payload_hash),
    constraint action_verdicts_kind check (kind in ('authentication', 'user_registration')),
    constraint action_verdicts_payload_hash check (octet_length(payload_hash) = 32),
    constraint action_verdicts_verdict check (verdict in ('allow', 'deny')),
    constraint action_verdicts_message check (verdict = 'deny' or message is null)
);

-- Housekeeping deletes old verdicts.
create index action_verdicts_decided_at on workos.action_verdicts (decided_at);

comment on table workos.action_verdicts is 'The verdict on each WorkOS action of the last minutes; the action itself is stored only as a hash';
