-- The caller as the database knows it, for row-level security as PostgREST and Supabase set it up: the claims of a verified
-- access token in the setting `request.jwt.claims`.
set local lock_timeout = '5s';

-- The token's `sub`. It touches no table. A setting that is empty, malformed or without a text `sub` is no user. PostgreSQL
-- 15 cannot ask whether text is JSON without trying, and a try is a subtransaction, so this is not parallel safe: write
-- `(select workos.current_subject())` in a policy, which is evaluated once per statement.
create function workos.current_subject() returns text
    language plpgsql stable
    set search_path = ''
as $$
declare
    claims jsonb;
begin
    claims := nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb;
    if pg_catalog.jsonb_typeof(claims -> 'sub') = 'string' then
        return nullif(claims ->> 'sub', '');
    end if;
    return null;
exception
    -- Classes 22 and 54: not JSON, a character PostgreSQL does not hold, nested too deeply.
    when data_exception or program_limit_exceeded then
        return null;
end
$$;

-- The caller's own row, and nobody else's: it takes no argument. It reads as its owner, so that a caller needs no right on
-- any table.
create function workos.current_auth_user() returns setof workos.users
    language sql stable security definer rows 1
    set search_path = ''
as $$
    select * from workos.users where id = (select workos.current_subject())
$$;

revoke all on function workos.current_subject() from public;
revoke all on function workos.current_auth_user() from public;
