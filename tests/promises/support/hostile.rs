//! Hostile objects in `public`: a better match for every name in our migrations and statements.

use std::collections::BTreeSet;

use serde_json::Value;
use sqlx::{Executor, PgPool};

/// Fills `public`. The search_path of `admin` must not contain it.
pub(crate) async fn create_objects(admin: &PgPool) {
    admin.execute(RECORD_CALLS).await.unwrap();
    let words: Vec<String> = words().into_iter().collect();
    let insert = "insert into hostile.words select distinct unnest($1::text[])";
    sqlx::query(insert).bind(words).execute(admin).await.unwrap();
    admin.execute(CREATE_OBJECTS).await.unwrap();
}

/// Returns the hostile object that was called last, or an empty string.
pub(crate) async fn called(admin: &PgPool) -> String {
    let called = "select coalesce(max(name), '') from hostile.objects
        where id = (select last_value from public.hostile_call where is_called)";
    sqlx::query_scalar(called).fetch_one(admin).await.unwrap()
}

/// A function that records its call, which no rollback undoes, and fails.
const RECORD_CALLS: &str = "
    create sequence public.hostile_call minvalue 0 start 0;
    grant all on sequence public.hostile_call to public;
    create schema hostile;
    create table hostile.objects (id bigint generated always as identity, name text);
    create table hostile.words (word text);

    create function hostile.function(name text, arguments text, result text) returns text language plpgsql as $$
    declare
        called constant text := format('%s(%s)', name, arguments);
        number bigint;
    begin
        insert into hostile.objects (name) values (called) returning id into number;
        execute format(
            'create function public.%I(%s) returns %s language plpgsql as %L',
            name, arguments, result,
            format(
                'begin perform pg_catalog.setval(''public.hostile_call'', %s); raise exception ''hostile %%'', %L; end',
                number, called
            )
        );
        return called;
    exception
        -- There is one, or the language takes no such argument.
        when duplicate_function or invalid_function_definition or feature_not_supported then
            return null;
    end $$;

    create function hostile.operator(name text, l text, r text, result text) returns void language plpgsql as $$
    declare
        helper constant text := 'operator ' || name;
    begin
        if hostile.function(helper, concat_ws(', ', l, r), result) is null then
            return;
        end if;
        execute format(
            'create operator public.%s (%s)',
            name,
            concat_ws(', ', 'leftarg = ' || l, 'rightarg = ' || r, format('function = public.%I', helper))
        );
    exception
        when duplicate_function or invalid_function_definition then
            null;
    end $$;";

/// Creates objects with the names of PostgreSQL's functions, operators, types and relations: with the same arguments, and with
/// arguments that match our calls better.
const CREATE_OBJECTS: &str = "
    do $$
    declare
        types constant text[] := '{text, varchar, bigint, integer, double precision, boolean, timestamptz, interval, jsonb,
            bytea, oid, name, regproc, regprocedure, text[], bigint[]}';
        one record;
        l text;
        r text;
    begin
        for one in
            select
                proname, oidvectortypes(proargtypes) as arguments,
                case when proretset then 'setof ' else '' end || format_type(prorettype, null) as result
            from pg_proc join hostile.words on word = proname
            where pronamespace = 'pg_catalog'::regnamespace
        loop
            perform hostile.function(one.proname, one.arguments, one.result);
        end loop;
        for one in
            select distinct proname, bool_or(provariadic = '\"any\"'::regtype) as takes_any
            from pg_proc join hostile.words on word = proname
            where pronamespace = 'pg_catalog'::regnamespace
            group by proname
        loop
            foreach l in array types || array[
                'anyelement', 'anyelement, anyelement', 'variadic anyarray', 'text, variadic anyarray', 'text, name, name'
            ] loop
                perform hostile.function(one.proname, l, 'text');
                perform hostile.function(one.proname, format('%s, %s', l, l), 'text')
                where l = any(types);
                perform hostile.function(one.proname, format('text, %s', l), 'text')
                where l = any(types);
            end loop;
            if one.takes_any then
                perform hostile.function(one.proname, format('%s, %s, %s', a, b, c), 'text')
                from
                    unnest('{text, integer, bigint, boolean}'::text[]) as a,
                    unnest('{text, integer, bigint, boolean}'::text[]) as b,
                    unnest('{text, integer, bigint, boolean}'::text[]) as c;
            end if;
        end loop;
        for one in
            select
                oprname, nullif(oprleft, 0)::regtype::text as l, oprright::regtype::text as r, oprresult::regtype::text as result
            from pg_operator join hostile.words on word = oprname
        loop
            perform hostile.operator(one.oprname, one.l, one.r, one.result);
        end loop;
        for one in
            select distinct on (oprname) oprname, oprresult::regtype::text as result
            from pg_operator join hostile.words on word = oprname
            order by oprname, oprresult = 'boolean'::regtype desc
        loop
            foreach l in array types || '{anyelement}' loop
                foreach r in array types || '{anyelement}' loop
                    perform hostile.operator(one.oprname, l, r, case one.result when 'boolean' then 'boolean' else 'text' end);
                end loop;
            end loop;
        end loop;
        for one in
            select distinct typname as name from pg_type join hostile.words on word = typname
            where typnamespace = 'pg_catalog'::regnamespace
            union
            select relname from pg_class join hostile.words on word = relname
            where relnamespace = 'pg_catalog'::regnamespace and relkind in ('r', 'v')
        loop
            execute format('create table public.%I (hostile integer)', one.name);
        end loop;
    end $$";

/// Returns every word and every operator of our statements.
fn words() -> BTreeSet<String> {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(format!("{root}/migrations")).unwrap() {
        texts.push(std::fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    for entry in std::fs::read_dir(format!("{root}/.sqlx")).unwrap() {
        let query: Value = serde_json::from_slice(&std::fs::read(entry.unwrap().path()).unwrap()).unwrap();
        texts.push(query["query"].as_str().unwrap().to_owned());
    }
    // Operators and functions that the grammar inserts: for `in`, `nullif`, `is distinct from`, `between`, `like`, `::`.
    let mut words: BTreeSet<String> =
        ["=", "<>", "<", "<=", ">", ">=", "~~"].iter().map(|&operator| operator.to_owned()).collect();
    for text in texts {
        let is_word =
            |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_';
        words.extend(text.split(|character| !is_word(character)).map(str::to_owned));
        words.extend(text.split(|character| !"+-*/<>=~!@#%^&|`?".contains(character)).map(str::to_owned));
    }
    words
}
