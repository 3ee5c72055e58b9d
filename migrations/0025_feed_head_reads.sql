-- Reading how far the feed can be read writes nothing: lookups run in read-only transactions. Where the database is not the
-- one that handed the epoch out, the epoch is null, and the service writes another one.
set local lock_timeout = '5s';

create or replace function workos.feed_head(out epoch text, out horizon bigint, out issued bigint, out expired_through bigint)
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    own       constant text := workos.feed_identity();
    drawn     bigint;
    in_flight bigint[];
begin
    -- Each statement of a volatile function sees what was committed before it.
    select case when feed.identity operator(pg_catalog.=) own then feed.epoch end, feed.expired_through
    into epoch, expired_through
    from workos.feed;
    -- The order is what makes it right: first what was drawn, then who is at it, last what their numbers are relative to.
    select case when is_called then last_value else 0 end into drawn from workos.changes_position;
    select pg_catalog.array_agg(objid::pg_catalog.int8) into in_flight
    from pg_catalog.pg_locks
    where
        locktype operator(pg_catalog.=) 'advisory'
        and database operator(pg_catalog.=) (
            select oid from pg_catalog.pg_database
            where datname operator(pg_catalog.=) pg_catalog.current_database()
        )
        and classid::pg_catalog.int8 operator(pg_catalog.=) 1717921124::pg_catalog.int8
        and objsubid operator(pg_catalog.=) 2::pg_catalog.int2;
    select case when is_called then last_value else 0 end into issued from workos.changes_position;
    -- Numbers of locks are 31 bits of a position that lies a little below `issued`.
    select least(drawn, pg_catalog.min(issued - ((issued - number) & 2147483647::pg_catalog.int8))) into horizon
    from pg_catalog.unnest(in_flight) as number;
    -- A position whose writer rolled back may be drawn again after a crash. What a commit has made durable never is.
    select least(horizon, greatest(pg_catalog.max(position), expired_through)) into horizon from workos.changes;
end
$$;
