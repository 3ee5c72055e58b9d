//! An application with the tables and policies of the guide `reading`, and requests as PostgREST runs them.

use authkit_sync::store::roles;
use serde_json::{Value, json};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Executor, Postgres, Row};

use super::database::TestDatabase;
use crate::guides::{blocks, file};

/// An application with the tables and policies of the guide, and the login of PostgREST, which has no direct privilege.
pub(crate) struct PolicyLab {
    pub(crate) database: TestDatabase,
    pub(crate) admin: PgPool,
    pub(crate) requests: PgPool,
    pub(crate) role: String,
}

/// What one request reads.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) organization: Option<String>,
    pub(crate) membership: Vec<String>,
    pub(crate) roles: Vec<String>,
    pub(crate) permissions: Vec<String>,
    pub(crate) organizations: Vec<String>,
    pub(crate) user: Vec<String>,
    /// The organizations of the visible rows.
    pub(crate) invoices: Vec<String>,
    pub(crate) announcements: Vec<String>,
}

pub(crate) const READ: &str = "select
    workos.current_organization_id() as organization,
    array(select id from workos.current_membership()) as membership,
    workos.current_roles() as roles,
    workos.current_permissions() as permissions,
    workos.current_organization_ids() as organizations,
    array(select id from workos.current_auth_user()) as caller,
    array(select organization_id from invoices order by 1) as invoices,
    array(select organization_id from announcements order by 1) as announcements";

impl PolicyLab {
    pub(crate) async fn new() -> Self {
        let database = TestDatabase::new().await;
        let admin = database.pool(2).await;
        assert!(roles::assert(&admin).await.unwrap().is_empty());
        let (role, login) = (format!("{}_authenticated", database.name()), format!("{}_login", database.name()));
        let prepare = format!(
            "create role {role}; grant workos_end_user to {role}; create role {login} login noinherit in role {role}"
        );
        admin.execute(AssertSqlSafe(prepare)).await.unwrap();
        let guide = file("src/docs/reading.md");
        let section = guide.split("\n## Row-level security with organizations and permissions\n").nth(1).unwrap();
        let examples: Vec<&str> = blocks(section.split("\n## ").next().unwrap(), "sql").collect();
        assert_eq!(examples.len(), 2);
        for example in examples {
            let example = example.replace("to authenticated", &format!("to {role}"));
            admin.execute(AssertSqlSafe(example)).await.unwrap();
        }
        let requests = database.pool_with(1, |options| options.username(&login)).await;
        Self { database, admin, requests, role }
    }

    /// Runs statements that WorkOS's events would cause, or that the application's owner would run.
    pub(crate) async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.admin).await.unwrap();
    }

    /// A live user.
    pub(crate) async fn user(&self, id: &str) {
        self.run(&format!(
            "insert into workos.user_records
                (id, email, email_verified, metadata, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at)
            values ('{id}', '{id}@example.test', true, '{{}}', now(), '{{}}', now(), 'event', now())"
        ))
        .await;
    }

    /// A live organization, with a row of each of the application's tables.
    pub(crate) async fn organization(&self, id: &str) {
        self.run(&format!(
            "insert into workos.organization_records
                (id, name, domains, metadata, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at)
            values ('{id}', 'Acme', '[]', '{{}}', now(), '{{}}', now(), 'event', now());
            insert into invoices (organization_id, total) values ('{id}', 1);
            insert into announcements values ('{id}', 'hello')"
        ))
        .await;
    }

    /// A membership. `roles` is an array of slugs as SQL writes it: `{admin,member}`.
    pub(crate) async fn membership(&self, id: &str, user: &str, organization: &str, status: &str, roles: &str) {
        self.run(&format!(
            "insert into workos.organization_membership_records
                (id, user_id, organization_id, status, role, roles, custom_attributes, directory_managed, created_at, updated_at,
                synced_extra, synced_observed_at, synced_observation_id, synced_at)
            values ('{id}', '{user}', '{organization}', '{status}', ('{roles}'::text[])[1], '{roles}', '{{}}', false,
                clock_timestamp(), now(), '{{}}', now(), 'event', now())"
        ))
        .await;
    }

    /// A role of the environment with the permissions of an accountant.
    pub(crate) async fn accountant(&self) {
        self.run("insert into workos.role_records (slug, permissions) values ('accountant', '{invoices:write,invoices:read}')")
            .await;
    }

    /// A request with these claims, in the transaction of PostgREST.
    pub(crate) async fn begin(&self, claims: &str) -> PoolConnection<Postgres> {
        let mut connection = self.requests.acquire().await.unwrap();
        connection.execute("begin isolation level read committed read write").await.unwrap();
        let settings = "select set_config('search_path', 'public', true), set_config('role', $1, true),
            set_config('request.jwt.claims', $2, true), set_config('request.method', 'GET', true)";
        sqlx::query(settings).bind(&self.role).bind(claims).execute(&mut *connection).await.unwrap();
        connection
    }

    pub(crate) async fn ask(&self, claims: &str) -> Answer {
        let mut connection = self.begin(claims).await;
        let row = connection.fetch_one(READ).await.unwrap();
        let answer = Answer {
            organization: row.get("organization"),
            membership: row.get("membership"),
            roles: row.get("roles"),
            permissions: row.get("permissions"),
            organizations: row.get("organizations"),
            user: row.get("caller"),
            invoices: row.get("invoices"),
            announcements: row.get("announcements"),
        };
        let derived = "select coalesce(workos.has_permission('invoices:read'), false),
            coalesce(workos.is_member_of(current_setting('request.jwt.claims')::json ->> 'org_id'), false)";
        if serde_json::from_str::<Value>(claims).is_ok() && !claims.contains("\\u0000") {
            let (reads, is_member): (bool, bool) = sqlx::query_as(derived).fetch_one(&mut *connection).await.unwrap();
            assert_eq!(reads, answer.permissions.iter().any(|permission| permission == "invoices:read"), "{claims}");
            assert_eq!(is_member, answer.organization.is_some(), "{claims}");
        }
        connection.execute("commit").await.unwrap();
        answer
    }

    /// Whether an insert of an invoice passes the policy.
    pub(crate) async fn may_insert(&self, claims: &str, organization: &str) -> bool {
        let mut connection = self.begin(claims).await;
        let insert = sqlx::query("insert into invoices (organization_id, total) values ($1, 2)").bind(organization);
        let outcome = insert.execute(&mut *connection).await;
        connection.execute("rollback").await.unwrap();
        let code = outcome.err().map(|error| error.as_database_error().unwrap().code().unwrap().into_owned());
        assert!(code.is_none() || code.as_deref() == Some("42501"), "{code:?}");
        code.is_none()
    }

    pub(crate) async fn end(self) {
        self.requests.close().await;
        let (role, login) = (&self.role, format!("{}_login", self.database.name()));
        let drop = format!("drop owned by {role}, {login}; drop role {login}; drop role {role}");
        self.run(&drop).await;
    }
}

/// Claims of a token. The functions never use what it says about roles and permissions.
pub(crate) fn claims(user: &str, organization: &str, session: &str) -> String {
    let claims = json!({"sub": user, "org_id": organization, "sid": session, "role": "admin", "roles": ["admin"],
        "permissions": ["invoices:read", "invoices:write", "everything"], "iss": "https://api.workos.com"});
    claims.to_string()
}
