-- Every write checks whose database this is: `rebind` may give it to another client ID while a process of the old one runs.
set local lock_timeout = '5s';

-- Raises AK001 (message: the recorded client ID, detail: the given one) when the database belongs to another client ID, and
-- AK002 when it belongs to none yet. The lock is shared by all writes; `rebind` takes it exclusively, so that no write of the
-- old client ID commits after it. A store of an operator's command gives no client ID.
create function workos.check_client(given text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    recorded text;
begin
    if given operator(pg_catalog.=) '' then
        return;
    end if;
    perform pg_catalog.pg_advisory_xact_lock_shared(1717921125, 0);
    select environment.client_id into recorded from workos.environment;
    if recorded is null then
        raise exception using errcode = 'AK002', message = 'the database is bound to no client ID yet';
    elsif recorded operator(pg_catalog.<>) given then
        raise exception using errcode = 'AK001', message = recorded, detail = given;
    end if;
end
$$;

revoke all on function workos.check_client(text) from public;
