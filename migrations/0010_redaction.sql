-- Earlier releases stored secrets that WorkOS puts into ordinary objects: verification tokens of domains, tokens and URLs of
-- invitations, IP addresses and user agents of sessions. This release sets them to null before it stores a payload. Housekeeping
-- does the same with the payloads that are already stored, in the order in which they were received.
set local lock_timeout = '2s';

-- At most one row: the progress. The row is deleted when all payloads are checked. This is a separate table, because adding a
-- column to workos.environment would wait for every write and block every write.
create table workos.redaction (
    singleton       boolean primary key default true,
    -- Payloads that were received before this instant can contain secrets. It is in the future at first, because processes of an
    -- earlier release still write while replicas are replaced.
    received_before timestamptz not null,
    -- The last event that was checked.
    received_at     timestamptz not null default 'epoch',
    id              text collate "C" not null default '',
    constraint redaction_singleton check (singleton)
);

-- A database that belongs to no environment has received nothing yet.
insert into workos.redaction (received_before)
select now() + interval '1 day'
from workos.environment;

comment on table workos.redaction is 'Progress of setting secrets to null in payloads that an earlier release stored';
