-- The earliest place where catch-up began to read: older events belong to the time before anybody listened.
set local lock_timeout = '5s';

alter table workos.catch_up
    -- The earliest `range_start` that this row has had. Catch-up applies no event made before it: such an event could
    -- revive a user whose deletion nobody here heard of. Null in a row that an older release wrote; `range_start` counts
    -- then.
    add column first_range_start timestamptz;

update workos.catch_up
set first_range_start = range_start;
