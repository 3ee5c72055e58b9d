-- Functions that run no code but PostgreSQL's own and ours, no matter what a schema in the caller's search_path holds.
--
-- An unqualified name (a function, an operator, a type) is resolved by search_path. A stranger who may create objects in a
-- schema of that path can add a better match, and the stranger's code then runs as whoever calls our function. So every
-- function here sets its own search_path. It names pg_temp last: an empty path has the caller's temporary schema first for
-- types, where anybody may create a domain `jsonb` whose check runs the stranger's code.
set local lock_timeout = '5s';

alter function workos.current_subject() set search_path = pg_catalog, pg_temp;
alter function workos.current_auth_user() set search_path = pg_catalog, pg_temp;
alter function workos.feed_identity() set search_path = pg_catalog, pg_temp;
alter function workos.feed_head() set search_path = pg_catalog, pg_temp;

-- A function with a setting of its own is never inlined, and a query that joins this one needs the index behind the view.
-- So this one qualifies its only operator instead. The body remains text, so that columns appended to the view are returned.
create or replace function workos.get_auth_user(subject text) returns setof workos.users
    language sql stable parallel safe rows 1
as $$
    select * from workos.users where id operator(pg_catalog.=) subject
$$;

-- Calls a handler's function as its role, with the search_path that a new session of that role in this database starts with:
-- `alter role … in database`, `alter role`, `alter database`, else PostgreSQL's default. The service's own path never
-- applies there, and the function's path never applies to the service's statements. Deferred constraints are checked under
-- the role, so that their triggers run under it too.
--
-- A function may give the role back by itself: this prevents mistakes, it does not contain hostile code.
create or replace function workos.run_handler(function text, role text, change jsonb) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    own  constant text := current_setting('role');
    call text;
    path text;
begin
    select format('select %I.%I($1)', nspname, proname) into strict call
    from pg_proc
    join pg_namespace on pg_namespace.oid = pronamespace
    where pg_proc.oid = function::regprocedure;
    select substr(setting, length('search_path=') + 1) into path
    from pg_db_role_setting
    cross join unnest(setconfig) as setting
    where
        starts_with(lower(setting), 'search_path=')
        and setrole in (0, to_regrole(quote_ident(role)))
        and setdatabase in (0, (select oid from pg_database where datname = current_database()))
    order by setrole <> 0 desc, setdatabase <> 0 desc
    limit 1;
    perform set_config('role', role, true);
    perform set_config('search_path', coalesce(path, '"$user", public'), true);
    execute call using change;
    set constraints all immediate;
    -- The function's path is still set here.
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    perform set_config('role', own, true);
end
$$;
