//! The rules of the folder `migrations`, read from PostgreSQL's catalogs, locks and statistics while each file is applied to a
//! database with rows: an older release continues to work together with a newer one, and no statement waits for long.

use std::collections::{BTreeMap, BTreeSet};

use authkit_sync::store::migrations;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Row};

use crate::support::database::TestDatabase;
use crate::support::service::until;

/// Tables that have a few rows in an environment of any size. Reading one takes no time.
const SMALL: [&str; 8] = ["catch_up", "contract", "environment", "feed", "handlers", "leases", "redaction", "scans"];

/// Kind and name of an object of the schema, and what the rules compare.
type Catalog = BTreeMap<(String, String), String>;

const CATALOG: &str = "
    select 'table' as kind, relname::text as name, pg_relation_filenode(oid)::text as detail
    from pg_class where relnamespace = 'workos'::regnamespace and relkind = 'r'
    union all
    select 'column', concat(relname, '.', attname),
        concat(format_type(atttypid, atttypmod), case when attnotnull then ' not null' end, case when atthasdef then ' default' end)
    from pg_attribute join pg_class on pg_class.oid = attrelid
    where relnamespace = 'workos'::regnamespace and relkind in ('r', 'v') and attnum > 0 and not attisdropped
    union all
    select 'function', oid::regprocedure::text, pg_get_function_result(oid)
    from pg_proc where pronamespace = 'workos'::regnamespace
    union all
    select 'index', indexrelid::regclass::text, relname::text
    from pg_index join pg_class on pg_class.oid = indrelid where relnamespace = 'workos'::regnamespace
    union all
    select case when convalidated then 'constraint' else 'constraint that is not valid' end, concat(relname, '.', conname), relname::text
    from pg_constraint join pg_class on pg_class.oid = conrelid
    where relnamespace = 'workos'::regnamespace and contype in ('c', 'f')";

/// Inserts a row into each large table that has none. A table comes after those that it references.
const FILL: &str = "
    do $$
    declare
        statement text;
        is_empty  boolean;
        target    record;
    begin
        for target in
            select relname, pg_class.oid from pg_class
            where relnamespace = 'workos'::regnamespace and relkind = 'r'
                and relname not in ('catch_up', 'contract', 'environment', 'feed', 'leases', 'redaction', 'scans')
            order by relname desc
        loop
            execute format('select not exists (select from workos.%I)', target.relname) into is_empty;
            continue when not is_empty;
            select
                format(
                    'insert into workos.%I (%s) values (%s)', target.relname, string_agg(quote_ident(attname), ', '),
                    string_agg(
                        case
                            when target.relname = 'action_verdicts' and attname = 'kind' then '''authentication'''
                            when target.relname = 'refreshes' and attname = 'kind' then '''roles'''
                            when attname = 'outcome' then '''applied'''
                            when attname = 'verdict' then '''allow'''
                            else case format_type(atttypid, null)
                                when 'text' then '''x'''
                                when 'text[]' then '''{}'''
                                when 'timestamp with time zone' then 'now()'
                                when 'jsonb' then '''{}'''
                                when 'bytea' then 'decode(repeat(''00'', 32), ''hex'')'
                                when 'boolean' then 'true'
                                else '1'
                            end
                        end,
                        ', '
                    )
                )
            into statement
            from pg_attribute
            where attrelid = target.oid and attnum > 0 and attnotnull and not atthasdef and attidentity = '' and not attisdropped;
            execute statement;
        end loop;
    end $$";

async fn catalog(connection: &mut PgConnection) -> Catalog {
    let rows = sqlx::query(CATALOG).fetch_all(connection).await.unwrap();
    rows.iter().map(|row| ((row.get("kind"), row.get("name")), row.get("detail"))).collect()
}

/// Tables that this session locks so that others wait for it.
async fn exclusive_locks(pool: &PgPool, session: i32) -> BTreeSet<String> {
    let locked: Vec<String> = sqlx::query_scalar(
        "select distinct relname::text from pg_locks join pg_class on pg_class.oid = relation
        where pid = $1 and granted and relkind = 'r' and relnamespace = to_regnamespace('workos')
            and mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')",
    )
    .bind(session)
    .fetch_all(pool)
    .await
    .unwrap();
    locked.into_iter().collect()
}

async fn session(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.unwrap()
}

/// A database in which migrations are applied one by one.
struct Lab {
    pool: PgPool,
    connection: PgConnection,
    before: Catalog,
}

impl Lab {
    fn has(&self, table: &str) -> bool {
        self.before.contains_key(&("table".to_owned(), table.to_owned()))
    }

    fn has_rows(&self, table: &str) -> bool {
        self.has(table) && !SMALL.contains(&table)
    }

    /// Applies a migration in a transaction, which stays open. Returns which rules it breaks.
    async fn broken_rules(&mut self, version: i64, sql: &str) -> Vec<String> {
        self.before = catalog(&mut self.connection).await;
        // Otherwise the statistics of the transaction contain what this session did before.
        self.connection.execute("select pg_stat_force_next_flush()").await.unwrap();
        self.connection.execute("begin").await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.connection).await.unwrap();
        let mut broken = self.waits().await;
        let after = catalog(&mut self.connection).await;
        broken.extend(self.additions(&after));
        let contract = "select coalesce(max(version), 0) from workos.contract";
        let is_contract = after.contains_key(&("table".to_owned(), "contract".to_owned()))
            && sqlx::query_scalar::<_, i64>(contract).fetch_one(&mut self.connection).await.unwrap() == version;
        if !is_contract {
            broken.extend(self.removals(&after));
        }
        broken
    }

    /// Checks what others wait for.
    async fn waits(&mut self) -> Vec<String> {
        let session = session(&mut self.connection).await;
        let locked = exclusive_locks(&self.pool, session).await;
        let locked: Vec<&String> = locked.iter().filter(|table| self.has(table)).collect();
        let limit: i64 = sqlx::query_scalar("select setting::bigint from pg_settings where name = 'lock_timeout'")
            .fetch_one(&mut self.connection)
            .await
            .unwrap();
        let touched: Vec<(String, i64, i64)> = sqlx::query_as(
            "select relname::text, seq_tup_read, n_tup_ins + n_tup_upd + n_tup_del from pg_stat_xact_all_tables
            where schemaname = 'workos'",
        )
        .fetch_all(&mut self.connection)
        .await
        .unwrap();
        let mut broken = Vec::new();
        let longest = if locked.is_empty() { 5_000 } else { 2_000 };
        if limit == 0 || limit > longest {
            broken.push("waits for a lock longer than 2 seconds".to_owned());
        }
        if locked.len() > 1 && !locked.iter().any(|table| *table == "environment") {
            broken.push(format!("locks several tables, but not environment first: {locked:?}"));
        }
        for (table, read, changed) in touched.iter().filter(|(table, ..)| self.has_rows(table)) {
            if *read > 0 && locked.contains(&table) {
                broken.push(format!("reads every row of {table} while others wait for its lock"));
            }
            if *changed > 0 {
                broken.push(format!("changes rows of {table} without a limit"));
            }
        }
        broken
    }

    /// Checks what is new in tables that exist already.
    fn additions(&self, after: &Catalog) -> Vec<String> {
        let new = after.iter().filter(|(key, _)| !self.before.contains_key(key));
        let broken = new.filter_map(|((kind, name), detail)| match kind.as_str() {
            "index" if self.has(detail) => Some(format!("builds the index {name} of {detail} while writes wait")),
            "constraint" if self.has_rows(detail) => {
                let not_valid = ("constraint that is not valid".to_owned(), name.clone());
                (!self.before.contains_key(&not_valid)).then(|| format!("validates the constraint {name} at once"))
            }
            "column" => {
                let table = name.split('.').next().unwrap_or_default();
                let is_required = detail.ends_with(" not null");
                (self.has(table) && is_required)
                    .then(|| format!("requires the column {name}, which the previous release does not write"))
            }
            _ => None,
        });
        broken.collect()
    }

    /// Checks that everything that the previous release uses remains as it was.
    fn removals(&self, after: &Catalog) -> Vec<String> {
        let kept = |kind: &str| ["table", "column", "function"].contains(&kind);
        let old = self.before.iter().filter(|((kind, _), _)| kept(kind));
        let broken = old.filter_map(|(key, detail)| {
            let (kind, name) = key;
            match after.get(key) {
                None => Some(format!("removes the {kind} {name}")),
                Some(now) if now == detail || *now == format!("{detail} default") => None,
                Some(_) if kind == "table" => Some(format!("rewrites the table {name}")),
                Some(now) => Some(format!("changes the {kind} {name} from {detail} to {now}")),
            }
        });
        broken.collect()
    }

    /// Returns the tables that the migration locks while it waits for a writer, which has locked `environment`. The writer then
    /// waits for them: a deadlock.
    async fn locked_before_environment(&mut self, sql: &str) -> BTreeSet<String> {
        let Self { pool, connection, before } = self;
        let mut writer = pool.acquire().await.unwrap();
        writer.execute("begin").await.unwrap();
        writer.execute("lock table workos.environment in row share mode").await.unwrap();
        let session = session(connection).await;
        connection.execute("begin").await.unwrap();
        let patient = sql.replace("lock_timeout = '2s'", "lock_timeout = '170s'");
        let migrating = sqlx::raw_sql(AssertSqlSafe(patient)).execute(&mut *connection);
        let watching = async {
            until("the migration waits for the writer", async || {
                sqlx::query_scalar("select exists (select from pg_locks where pid = $1 and not granted)")
                    .bind(session)
                    .fetch_one(&*pool)
                    .await
                    .unwrap()
            })
            .await;
            let locked = exclusive_locks(&*pool, session).await;
            writer.execute("rollback").await.unwrap();
            locked
        };
        let (migrated, locked) = tokio::join!(migrating, watching);
        migrated.unwrap();
        connection.execute("rollback").await.unwrap();
        locked.into_iter().filter(|table| before.contains_key(&("table".to_owned(), table.clone()))).collect()
    }
}

/// Applies every migration of this release. Returns the rules that each one breaks.
async fn apply_all(database: &TestDatabase) -> (Lab, Vec<String>) {
    let mut connection = PgConnection::connect_with(&database.options()).await.unwrap();
    connection.execute("create schema workos").await.unwrap();
    connection.execute("set search_path = pg_catalog, pg_temp").await.unwrap();
    let mut lab = Lab { pool: database.pool(3).await, connection, before: Catalog::new() };
    let mut broken = Vec::new();
    for migration in migrations::migrator().iter() {
        let (version, sql) = (migration.version, migration.sql.as_str());
        if migration.no_tx {
            // Another test checks that such a file contains one concurrent build of an index.
            sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut lab.connection).await.unwrap();
        } else {
            let found = lab.broken_rules(version, sql).await;
            broken.extend(found.into_iter().map(|rule| format!("{version:04} {rule}")));
            let session = session(&mut lab.connection).await;
            let locked = exclusive_locks(&lab.pool, session).await;
            let locks_environment = lab.has("environment") && locked.contains("environment");
            lab.connection.execute("rollback").await.unwrap();
            if locks_environment {
                let earlier = lab.locked_before_environment(sql).await;
                broken.extend(earlier.iter().map(|table| format!("{version:04} locks {table} before environment")));
            }
            lab.connection.execute("begin").await.unwrap();
            sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut lab.connection).await.unwrap();
            lab.connection.execute("commit").await.unwrap();
        }
        lab.connection.execute(FILL).await.unwrap();
    }
    (lab, broken)
}

#[tokio::test]
async fn every_migration_only_adds_and_makes_nothing_wait() {
    let database = TestDatabase::empty().await;
    let (_, broken) = apply_all(&database).await;
    assert!(broken.is_empty(), "{broken:#?}");
}

#[tokio::test]
async fn a_migration_that_breaks_a_rule_is_found() {
    let database = TestDatabase::empty().await;
    let (mut lab, _) = apply_all(&database).await;
    lab.connection.execute("update workos.events set reason = 'x'").await.unwrap();
    for (sql, expected) in [
        ("alter table workos.events alter column reason type varchar(10)", "rewrites the table events"),
        ("alter table workos.events add column n float8 default random()", "rewrites the table events"),
        ("alter table workos.events alter column reason set not null", "reads every row of events"),
        ("alter table workos.events add constraint filled check (reason <> '')", "reads every row of events"),
        (
            "alter table workos.events add foreign key (user_id) references workos.user_records",
            "validates the constraint",
        ),
        ("create index by_reason on workos.events (reason)", "builds the index workos.by_reason of events"),
        ("alter table workos.events drop column reason", "removes the column events.reason"),
        ("alter table workos.events rename column reason to why", "removes the column events.reason"),
        ("alter table workos.dismissals rename to dismissed", "removes the table dismissals"),
        ("drop view workos.permissions", "removes the column permissions.slug"),
        ("drop function workos.current_permissions()", "removes the function workos.current_permissions()"),
        ("alter table workos.leases add column required text not null", "requires the column leases.required"),
        ("update workos.events set reason = null", "changes rows of events"),
        ("set local lock_timeout = 0; alter table workos.events add column more text", "waits for a lock longer"),
        (
            "alter table workos.events add column more text; alter table workos.changes add column more text",
            "locks several tables",
        ),
    ] {
        let broken = lab.broken_rules(9_000, &format!("set local lock_timeout = '2s'; {sql}")).await;
        lab.connection.execute("rollback").await.unwrap();
        assert!(broken.iter().any(|rule| rule.contains(expected)), "{sql}: {broken:?}");
    }
    let sql = "set local lock_timeout = '2s'; alter table workos.changes add column more text;
        alter table workos.environment add column more text";
    assert_eq!(lab.locked_before_environment(sql).await, BTreeSet::from(["changes".to_owned()]));

    for sql in [
        "alter table workos.events add column more text not null default ''",
        "alter table workos.events add constraint filled check (reason <> '') not valid",
        "create table workos.more (id text primary key); create index more_id on workos.more (id)",
        // A contract migration says that the previous release cannot use the schema any more.
        "update workos.contract set version = 9000; alter table workos.events drop column reason",
    ] {
        let broken = lab.broken_rules(9_000, &format!("set local lock_timeout = '2s'; {sql}")).await;
        lab.connection.execute("rollback").await.unwrap();
        assert!(broken.is_empty(), "{sql}: {broken:?}");
    }
}
