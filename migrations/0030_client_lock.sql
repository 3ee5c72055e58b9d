-- A write locks the table that records the client ID. Before, it took an advisory lock, and any login that may connect to this
-- database can hold an advisory lock for ever: then no write succeeded.
set local lock_timeout = '5s';

-- Raises 25006 on a server that cannot be written to (after a failover: the old primary), AK001 (message: the recorded client
-- ID, detail: the given one) when the database belongs to another client ID, and AK002 when it belongs to none yet. Every
-- write holds the lock until it ends; `rebind` takes one that conflicts with it, so that no write of the old client ID commits
-- after it. An operator's command that works for any client ID gives an empty text.
create or replace function workos.check_client(given text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    recorded text;
begin
    if pg_catalog.pg_is_in_recovery() or pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'on' then
        raise exception using errcode = '25006', message = 'the server is read-only';
    end if;
    if given operator(pg_catalog.=) '' then
        return;
    end if;
    lock table workos.environment in row share mode;
    select environment.client_id into recorded from workos.environment;
    if recorded is null then
        raise exception using errcode = 'AK002', message = 'the database is bound to no client ID yet';
    elsif recorded operator(pg_catalog.<>) given then
        raise exception using errcode = 'AK001', message = recorded, detail = given;
    end if;
end
$$;
