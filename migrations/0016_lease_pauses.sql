-- WorkOS asked a job for a pause (`Retry-After`): every replica keeps it, not only the one that was asked.
set local lock_timeout = '5s';

alter table workos.leases
    -- The job must not ask WorkOS before this instant, whoever holds the lease. Null when no pause was asked for.
    add column not_before timestamptz;
