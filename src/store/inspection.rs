//! What `doctor` and the status page read from the database. Nothing here writes, and it reads databases that must not be served,
//! too.

use super::migrations::{self, MigrationStatus};
use super::pooler::Mode;
use super::scans::{ScanCounts, ScanState};
use super::{DbConnection, Store, StoreError};
use crate::domain::timestamp::Timestamp;

/// Maximum number of rows that one count reads.
const COUNT_LIMIT: i64 = 100_000;

/// Number of the latest events among which the last webhook is searched.
const LATEST: i64 = 10_000;

/// The server, and how many connections it has.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// For example `17.2 (Debian 17.2-1)`.
    pub version: String,
    /// For example 170002.
    pub version_number: i32,
    /// Whether it is a standby or read-only.
    pub is_read_only: bool,
    /// `max_connections` without the reserved ones, or the limit of the role or the database, if that is lower.
    pub usable_connections: i32,
    /// Connections of all clients.
    pub used_connections: i64,
    /// Connections of this service in this database.
    pub own_connections: i64,
    /// The current time of the server's clock.
    pub now: Timestamp,
}

/// The schema.
#[derive(Debug)]
pub struct SchemaFacts {
    /// The migrations.
    pub migrations: MigrationStatus,
    /// The schema version that the database requires, if a later release has set one.
    pub contract: Option<i64>,
    /// The latest schema version that this release knows.
    pub known: i64,
    /// Invalid indexes.
    pub invalid_indexes: Vec<String>,
    /// The client ID that the database is bound to.
    pub client_id: Option<String>,
}

/// A lease of a background job or a handler.
#[derive(Clone, Debug)]
pub struct LeaseFacts {
    /// The job, or `handler:` and the name of a handler.
    pub job: String,
    /// The process that holds it.
    pub holder: String,
    /// Whether the holder has renewed it in time.
    pub is_held: bool,
}

/// The inbox.
#[derive(Clone, Debug)]
pub struct InboxFacts {
    /// Size of the table with its indexes, in bytes.
    pub bytes: i64,
    /// Events of the last day. Counted up to 100,000.
    pub last_day: i64,
    /// When the oldest row that retention may delete was received.
    pub oldest_at: Option<Timestamp>,
    /// When the oldest payload that retention may delete was received.
    pub oldest_payload_at: Option<Timestamp>,
}

/// The events that webhooks have delivered.
#[derive(Clone, Debug)]
pub struct WebhookFacts {
    /// When a webhook last delivered a new event.
    pub last_at: Option<Timestamp>,
    /// Events of the last day that only polling delivered. Counted up to 100,000.
    pub missed: i64,
    /// When the first and the last of them were received.
    pub missed_between: Option<(Timestamp, Timestamp)>,
}

impl Store {
    /// Returns whether a connection pooler is between this process and PostgreSQL.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn is_behind_pooler(&self) -> Result<bool, StoreError> {
        let deadline = tokio::time::Instant::now() + self.timeout();
        Ok(self.lookups.mode(deadline).await? == Mode::Pooler)
    }

    /// Returns facts about the server.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn server_facts(&self) -> Result<ServerFacts, StoreError> {
        let row = self
            .ask(async |connection| {
                sqlx::query!(
                    r#"-- inspection.server
                    select
                        current_setting('server_version') as "version!",
                        current_setting('server_version_num')::int as "version_number!",
                        (
                            pg_is_in_recovery()
                            or current_setting('default_transaction_read_only') = 'on'
                        ) as "is_read_only!",
                        least(
                            current_setting('max_connections')::int
                                - current_setting('superuser_reserved_connections')::int
                                - coalesce(current_setting('reserved_connections', true)::int, 0),
                            (
                                select nullif(rolconnlimit, -1) from pg_roles
                                where rolname = current_user and not rolsuper
                            ),
                            (select nullif(datconnlimit, -1) from pg_database where datname = current_database())
                        ) as "usable_connections!",
                        (select count(*) from pg_stat_activity where backend_type = 'client backend') as "used!",
                        (
                            select count(*) from pg_stat_activity
                            where application_name = 'authkit-sync' and datname = current_database()
                        ) as "own!",
                        clock_timestamp() as "now!""#
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(ServerFacts {
            version: row.version,
            version_number: row.version_number,
            is_read_only: row.is_read_only,
            usable_connections: row.usable_connections,
            used_connections: row.used,
            own_connections: row.own,
            now: row.now.into(),
        })
    }

    /// Returns the statements that grant the role of this connection the privileges that the service needs and that it lacks.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn missing_grants(&self) -> Result<Vec<String>, StoreError> {
        self.ask(async |connection| {
            sqlx::query_scalar!(
                r#"-- inspection.missing_grants
                with relations as (
                    select
                        pg_class.oid,
                        case
                            when relkind = 'S' then 'usage, select'
                            when relkind = 'v' or relname in ('contract', 'migrations') then 'select'
                            else 'select, insert, update, delete'
                        end as privileges,
                        case when relkind = 'S' then 'sequence ' else '' end as kind,
                        relkind,
                        relname
                    from pg_class
                    where relnamespace = to_regnamespace('workos') and relkind in ('r', 'p', 'v', 'S')
                )
                select statement as "statement!"
                from (
                    select 1 as position, format('grant usage on schema workos to %I', current_user) as statement
                    where to_regnamespace('workos') is not null and not has_schema_privilege('workos', 'usage')
                    union all
                    select
                        2,
                        format('grant %s on %sworkos.%I to %I', privileges, kind, relname, current_user)
                    from relations
                    where
                        exists (
                            select from unnest(string_to_array(privileges, ', ')) as privilege
                            where
                                case
                                    when relkind = 'S' then not has_sequence_privilege(oid, privilege)
                                    else not has_table_privilege(oid, privilege)
                                end
                        )
                    union all
                    select 3, format('grant execute on all functions in schema workos to %I', current_user)
                    where
                        exists (
                            select from pg_proc
                            where pronamespace = to_regnamespace('workos') and not has_function_privilege(oid, 'execute')
                        )
                ) as missing
                order by position, statement"#
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    /// Returns facts about the schema.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn schema_facts(&self) -> Result<SchemaFacts, StoreError> {
        let migrations: MigrationStatus = self.ask(migrations::current_status).await?;
        let is_readable = migrations.pending.is_empty();
        let contract = async |connection: &mut DbConnection<'_>| {
            sqlx::query_scalar!("-- contract.version\nselect version from workos.contract").fetch_one(connection).await
        };
        Ok(SchemaFacts {
            contract: if is_readable { Some(self.ask(contract).await?) } else { None },
            client_id: if is_readable { self.ask(Self::recorded_client).await? } else { None },
            invalid_indexes: self.ask(migrations::invalid_indexes).await?,
            known: migrations::newest(),
            migrations,
        })
    }

    /// Returns the leases of background jobs and handlers.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn lease_facts(&self) -> Result<Vec<LeaseFacts>, StoreError> {
        self.ask(async |connection| {
            sqlx::query_as!(
                LeaseFacts,
                r#"-- inspection.leases
                select job, holder, expires_at > now() as "is_held!"
                from workos.leases
                order by job"#
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    /// Returns the progress of every kind of scan that has ever run, without its position.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn scans(&self) -> Result<Vec<(String, ScanState)>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    "-- inspection.scans
                    select kind, started_at, completed_at, created, updated, unchanged, deleted, quarantined
                    from workos.scans
                    order by kind"
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        let scan = rows.into_iter().map(|row| {
            let counts = ScanCounts {
                new: row.created,
                updated: row.updated,
                unchanged: row.unchanged,
                tombstoned: row.deleted,
                quarantined: row.quarantined,
            };
            let (started_at, completed_at) = (row.started_at.map(Into::into), row.completed_at.map(Into::into));
            (row.kind, ScanState { position: None, started_at, completed_at, counts })
        });
        Ok(scan.collect())
    }

    /// Returns facts about the inbox.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn inbox_facts(&self) -> Result<InboxFacts, StoreError> {
        let row = self
            .ask(async |connection| {
                sqlx::query!(
                    r#"-- inspection.inbox
                    select
                        pg_total_relation_size('workos.events') as "bytes!",
                        (
                            select count(*)
                            from (
                                select from workos.events
                                where received_at >= now() - interval '1 day'
                                limit $1
                            ) as counted
                        ) as "last_day!",
                        (
                            select received_at from workos.events
                            where payload is not null and (outcome <> 'quarantined' or type = 'snapshot')
                            order by received_at
                            limit 1
                        ) as "oldest_payload_at?",
                        (
                            select received_at from workos.events
                            where payload is null and (outcome <> 'quarantined' or type = 'snapshot')
                            order by received_at
                            limit 1
                        ) as "oldest_rest_at?""#,
                    COUNT_LIMIT
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        let oldest_payload_at = row.oldest_payload_at.map(Timestamp::from);
        let oldest_rest_at = row.oldest_rest_at.map(Timestamp::from);
        Ok(InboxFacts {
            bytes: row.bytes,
            last_day: row.last_day,
            oldest_at: oldest_payload_at.into_iter().chain(oldest_rest_at).min(),
            oldest_payload_at,
        })
    }

    /// Returns facts about the events that webhooks have delivered. An event of these types counts as missed by webhooks two
    /// minutes after polling delivered it, if WorkOS created it after `since`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn webhook_facts(&self, types: &[String], since: Timestamp) -> Result<WebhookFacts, StoreError> {
        let since = time::OffsetDateTime::from(since);
        let row = self
            .ask(async |connection| {
                sqlx::query!(
                    r#"-- inspection.webhooks
                    with one_feed as (
                        select type, created_at, received_at
                        from workos.events
                        where
                            -- The condition of the index, which PostgreSQL does not derive from the next one.
                            (webhook_at is null) <> (catch_up_at is null)
                            and webhook_at is null
                            and received_at >= now() - interval '1 day'
                            and received_at < now() - interval '2 minutes'
                        order by received_at desc
                        limit $3
                    ),
                    missed as (
                        select count(*) as events, min(received_at) as first_at, max(received_at) as last_at
                        from one_feed
                        where type = any($1) and created_at >= $2
                    )
                    select
                        (
                            select max(webhook_at)
                            from (select webhook_at from workos.events order by received_at desc limit $4) as latest
                        ) as "last_webhook_at?",
                        missed.events as "missed!",
                        missed.first_at as "first_at?",
                        missed.last_at as "last_at?"
                    from missed"#,
                    types,
                    since,
                    COUNT_LIMIT,
                    LATEST
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(WebhookFacts {
            last_at: row.last_webhook_at.map(Timestamp::from),
            missed: row.missed,
            missed_between: row.first_at.map(Timestamp::from).zip(row.last_at.map(Timestamp::from)),
        })
    }
}
