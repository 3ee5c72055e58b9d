//! The private PostgreSQL, and its content before the first round.

use std::path::{Path, PathBuf};

use authkit_sync::dev::postgres::{Data, PrivatePostgres, Programs};
use authkit_sync::store::migrations;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor};
use tokio::runtime::Handle;

use super::cpu;
use super::options::Options;
use super::requests::FIRST;

/// Number of rows that one statement loads.
const LOAD: u64 = 500_000;

const USERS: &str = r#"
    insert into workos.user_records (
        id, email, email_verified, first_name, last_name, name, external_id, metadata, locale, created_at, updated_at,
        synced_extra, synced_observed_at, synced_observation_id, synced_at, synced_version_at
    )
    select
        'user_seed_' || n, 'user_seed_' || n || '@example.test', true, 'Ada', 'Quill', 'Ada Quill', 'crm-user_seed_' || n,
        '{"plan": "team"}', 'en-GB', '2026-08-01', '2026-08-01', '{}', '2026-08-01', 'event_seed_' || n, '2026-08-01',
        '2026-08-01'
    from generate_series($1, $2) as n"#;

/// Organizations that are loaded, each with its share of the users as members.
pub(crate) const ORGANIZATIONS: u64 = 1_000;

const ORGANIZATION_ROWS: &str = r#"
    insert into workos.organization_records (
        id, name, domains, metadata, created_at, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at
    )
    select 'org_seed_' || n, 'Quill', '[]', '{}', '2026-08-01', '2026-08-01', '{}', '2026-08-01', 'event_seed_' || n, '2026-08-01'
    from generate_series(0, $1 - 1) as n
    on conflict do nothing"#;

const ROLE: &str = "insert into workos.role_records (slug, permissions) values ('member', \
                    '{notes:read,notes:write}') on conflict do nothing";

const MEMBERSHIPS: &str = r#"
    insert into workos.organization_membership_records (
        id, user_id, organization_id, status, role, roles, custom_attributes, directory_managed, created_at, updated_at,
        synced_extra, synced_observed_at, synced_observation_id, synced_at
    )
    select
        'om_seed_' || n, 'user_seed_' || n, 'org_seed_' || n % $3, 'active', 'member', '{member}', '{}', false, '2026-08-01',
        '2026-08-01', '{}', '2026-08-01', 'event_seed_' || n, '2026-08-01'
    from generate_series($1, $2) as n"#;

/// Events that both channels delivered, as in an environment without failures. The payload has the size of a webhook's.
const INBOX: &str = "
    insert into workos.events (
        id, type, user_id, created_at, payload, outcome, webhook_at, catch_up_at, received_at
    )
    select
        'event_seed_' || n, 'user.updated', 'user_seed_' || ($3 + n % $4), at,
        convert_to(rpad(n::text || ' ', 640, md5(n::text)), 'UTF8'), 'applied', at, at, at
    from generate_series($1, $2) as n
    cross join lateral (select now() - interval '30 days' * (1 - (n - $3)::float8 / $5) as at) as times";

/// Every change of the workload has these tables; those of pgbench have primary keys only.
const COMPARISON: &str = "
    create schema if not exists bench;
    drop table if exists bench.events, bench.users;
    create table bench.events (
        id text collate \"C\" primary key, type text not null, user_id text collate \"C\" not null,
        created_at timestamptz not null, payload bytea not null, received_at timestamptz not null default now()
    );
    create table bench.users (
        id text collate \"C\" primary key, email text not null, email_verified boolean not null, first_name text,
        last_name text, name text, external_id text, metadata jsonb not null, locale text, created_at timestamptz not null,
        updated_at timestamptz not null, synced_at timestamptz not null default now()
    )";

/// A running server and the database of the service.
#[derive(Debug)]
pub(crate) struct Database {
    postgres: PrivatePostgres,
    pub(crate) pool: PgPool,
    runtime: Handle,
}

impl Database {
    /// Starts it and loads users and events.
    pub(crate) fn start(options: &Options, folder: &Path, runtime: &Handle) -> Self {
        let data = options.data.clone().unwrap_or_else(|| folder.join("postgres"));
        let mut settings = vec!["max_connections=1200"];
        settings.extend(options.postgres.iter().map(String::as_str));
        let postgres = PrivatePostgres::start(
            Programs::find_or_fetch(|step| eprintln!("{step}")).unwrap(),
            &Data::Persistent(data),
            &settings,
        )
        .unwrap();
        let pool = runtime.block_on(async {
            let pool = PgPoolOptions::new().max_connections(2).connect(&postgres.url("postgres")).await.unwrap();
            migrations::run(&pool).await.unwrap();
            pool.execute(COMPARISON).await.unwrap();
            load(&pool, options).await;
            pool
        });
        Self { postgres, pool, runtime: runtime.clone() }
    }

    pub(crate) fn url(&self, database: &str) -> String {
        self.postgres.url(database)
    }

    /// The directory of its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.postgres.scratch().to_owned()
    }

    /// CPU time of all its processes, microseconds.
    pub(crate) fn cpu(&self) -> f64 {
        cpu::of_postgres(self.postgres.pid().unwrap()).as_secs_f64() * 1e6
    }

    /// Bytes of WAL so far.
    pub(crate) fn wal(&self) -> f64 {
        self.number("select (pg_current_wal_insert_lsn() - '0/0')::float8")
    }

    pub(crate) fn number(&self, query: &'static str) -> f64 {
        self.runtime.block_on(sqlx::query_scalar(query).fetch_one(&self.pool)).unwrap()
    }

    pub(crate) fn count(&self, query: &'static str, arguments: &[&str]) -> i64 {
        let mut query = sqlx::query_scalar(query);
        for argument in arguments {
            query = query.bind((*argument).to_owned());
        }
        self.runtime.block_on(query.fetch_one(&self.pool)).unwrap()
    }

    /// Runs the migrations in another database.
    pub(crate) fn migrate(&self, database: &str) {
        let options = PgPoolOptions::new().max_connections(1);
        self.runtime.block_on(async {
            let pool = options.connect(&self.url(database)).await.unwrap();
            migrations::run(&pool).await.unwrap();
            pool.close().await;
        });
    }

    pub(crate) fn execute(&self, statement: &'static str) {
        self.runtime.block_on(self.pool.execute(statement)).unwrap();
    }

    /// Lets each measurement begin with the same distance to the next checkpoint.
    pub(crate) fn checkpoint(&self) {
        self.execute("checkpoint");
    }

    pub(crate) fn close(self) {
        self.runtime.block_on(self.pool.close());
    }
}

async fn load(pool: &PgPool, options: &Options) {
    let loaded = |like: &'static str| async move {
        let count: i64 = sqlx::query_scalar(like).fetch_one(pool).await.unwrap();
        u64::try_from(count).unwrap()
    };
    let users =
        loaded("select count(*) from workos.user_records where id >= 'user_seed_' and id < 'user_seed_~'").await;
    let events = loaded("select count(*) from workos.events where id >= 'event_seed_' and id < 'event_seed_~'").await;
    // An index that is built afterwards costs a fraction of one that grows row by row.
    let indexes = if options.inbox.saturating_sub(events) > LOAD { drop_indexes(pool).await } else { Vec::new() };
    for from in (users..options.users).step_by(LOAD as usize) {
        let through = options.users.min(from + LOAD) - 1;
        let query = sqlx::query(USERS).bind(bigint(FIRST + from)).bind(bigint(FIRST + through));
        query.execute(pool).await.unwrap();
        let (from, through) = (bigint(FIRST + from), bigint(FIRST + through));
        let query = sqlx::query(MEMBERSHIPS).bind(from).bind(through).bind(bigint(ORGANIZATIONS));
        query.execute(pool).await.unwrap();
    }
    let query = sqlx::query(ORGANIZATION_ROWS).bind(bigint(ORGANIZATIONS));
    query.execute(pool).await.unwrap();
    pool.execute(ROLE).await.unwrap();
    for from in (events..options.inbox).step_by(LOAD as usize) {
        let through = options.inbox.min(from + LOAD) - 1;
        let query = sqlx::query(INBOX).bind(bigint(FIRST + from)).bind(bigint(FIRST + through)).bind(bigint(FIRST));
        query.bind(bigint(options.users.max(1))).bind(options.inbox as f64).execute(pool).await.unwrap();
        eprintln!("loaded {} of {} events", through + 1, options.inbox);
    }
    for index in indexes {
        pool.execute(AssertSqlSafe(index)).await.unwrap();
    }
    pool.execute("vacuum analyze").await.unwrap();
}

fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap()
}

/// Drops the indexes of the inbox except for its primary key, and returns the statements that create them again.
async fn drop_indexes(pool: &PgPool) -> Vec<String> {
    let indexes: Vec<(String, String)> = sqlx::query_as(
        "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index
        where indrelid = 'workos.events'::regclass and not indisprimary",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    for (name, _) in &indexes {
        pool.execute(AssertSqlSafe(format!("drop index {name}"))).await.unwrap();
    }
    indexes.into_iter().map(|(_, definition)| definition).collect()
}
