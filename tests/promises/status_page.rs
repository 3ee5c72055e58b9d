//! The status page of the operator's listener: it shows whether the table is in sync, and if not, why.

use std::collections::BTreeSet;
use std::pin::pin;

use authkit_sync::dev::workos::ApiFaults;
use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::Secret;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::binary::{Served, free_address};
use crate::support::database::TestDatabase;
use crate::support::lab::{Lab, another_workos};
use crate::support::service::{Answer, SECRET, until};

/// Text that would run if it were not escaped.
const HOSTILE: &str = "<img src=x onerror=alert(1)>\"'&";

/// The verdict of a healthy service.
const IN_SYNC: &str = "<h1 id=\"headline\">In sync</h1>";

/// A real service with a simulated WorkOS.
pub(crate) struct Site {
    pub(crate) lab: Lab,
    pub(crate) served: Served,
    /// One client for all requests, because creating a client is slow.
    client: reqwest::Client,
}

impl Site {
    async fn start(users: usize, faults: ApiFaults) -> Self {
        let database = TestDatabase::unbound().await;
        let (pool, clock) = (database.pool(4).await, Clock::system());
        let workos = another_workos(&clock, fastrand::u64(..), None).await;
        let lab = Lab { database, pool, workos, clock };
        lab.create_users(users);
        lab.workos.set_api_faults(faults);
        let address = free_address();
        lab.workos.add_endpoint_for(&format!("http://{address}/workos/webhook"), SECRET, &[]);
        let environment = lab.environment();
        let settings: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let more = [
            ("AUTHKIT_SYNC_CATCH_UP", "on"),
            ("AUTHKIT_SYNC_CATCH_UP_INTERVAL", "1s"),
            ("AUTHKIT_SYNC_BACKFILL", "auto"),
            ("AUTHKIT_SYNC_RECONCILE_INTERVAL", "1d"),
        ];
        let served = Served::start(&lab.database.url(), address, &[&settings[..], &more].concat());
        Self { lab, served, client: http_client().unwrap() }
    }

    pub(crate) async fn healthy() -> Self {
        let site = Self::start(3, ApiFaults::default()).await;
        until("the service is in sync, and its page shows it", async || {
            let page = site.page().await.text;
            page.contains(IN_SYNC)
                && page.contains("Complete until")
                && part(&page, "replicas").contains("this process")
        })
        .await;
        site
    }

    /// One user on each page of WorkOS's list, so that the backfill takes minutes.
    pub(crate) async fn backfilling() -> Self {
        let site = Self::start(900, ApiFaults { page_limit: Some(1), ..ApiFaults::default() }).await;
        site.says("Not yet in sync: the first backfill is running").await;
        site.says("objects so far").await;
        site
    }

    pub(crate) async fn workos_down() -> Self {
        let site = Self::healthy().await;
        site.lab.workos.set_api_faults(ApiFaults { error: 100, ..ApiFaults::default() });
        site.says("it answered 50").await;
        site
    }

    /// One handler violates a constraint with a hostile name, and its message has personal data. Another one is paused, and one event has
    /// no usable content.
    pub(crate) async fn handler_failing() -> Self {
        let site = Self::healthy().await;
        site.sql(&format!(
            "create function public.failing(change jsonb) returns void language plpgsql as $$
                begin
                    raise exception using
                        errcode = '23514', message = 'Ada Lovelace, ada@example.test', constraint = '{}';
                end $$;
            create function public.idle(change jsonb) returns void language sql as 'select'",
            HOSTILE.replace('\'', "''")
        ))
        .await;
        for name in ["failing", "idle"] {
            let (code, out, err) = site.lab.run(&["handlers", "add", &format!("public.{name}"), "--name", name]).await;
            assert_eq!(code, 0, "{out}{err}");
        }
        assert_eq!(site.lab.run(&["handlers", "pause", "idle"]).await.0, 0);
        site.lab.create_user("Ada");
        let event = json!({"object": "event", "id": format!("event_{HOSTILE}"), "event": "user.created",
            "created_at": Clock::system().now(), "data": "Ada Lovelace, ada@example.test"});
        site.deliver(event.to_string()).await;
        site.says("SQLSTATE").await;
        site.says("In sync, but action is needed").await;
        site
    }

    pub(crate) async fn database_down() -> Self {
        let site = Self::healthy().await;
        site.close_database().await;
        site.says("Unknown: the database does not answer").await;
        site
    }

    async fn close_database(&self) {
        let name = self.lab.database.name();
        let options = self.lab.database.options().database("postgres");
        let mut connection = PgConnection::connect_with(&options).await.unwrap();
        let sql = format!("alter database {name} with allow_connections false");
        connection.execute(AssertSqlSafe(sql)).await.unwrap();
        let sql = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
        connection.execute(AssertSqlSafe(sql)).await.unwrap();
    }

    async fn sql(&self, sql: &str) {
        self.lab.pool.execute(AssertSqlSafe(sql)).await.unwrap();
    }

    async fn deliver(&self, body: String) {
        let signature = Secret::new(SECRET).sign(Clock::system().now(), body.as_bytes());
        let request = self.client.post(self.served.url("/workos/webhook")).body(body);
        assert_eq!(request.header("WorkOS-Signature", signature).send().await.unwrap().status(), 200);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.served.ops)
    }

    async fn page(&self) -> Answer {
        Answer::of(self.client.get(self.url()).send().await.unwrap()).await
    }

    /// Waits until the page contains a text. Returns the page without its script, because the script contains texts, too.
    async fn says(&self, text: &str) -> String {
        let said = std::sync::Mutex::default();
        until(&format!("the page says {text}"), async || {
            let page = self.page().await.text;
            let page = page.split("<script>").next().unwrap();
            page.clone_into(&mut said.lock().unwrap());
            page.contains(text)
        })
        .await;
        said.into_inner().unwrap()
    }
}

/// Returns the part of a page with this ID.
fn part<'a>(page: &'a str, id: &str) -> &'a str {
    let part = page.split_once(&format!(" id=\"{id}\" data-part")).unwrap_or_else(|| panic!("no part {id}: {page}")).1;
    part.split("</section>").next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_service_is_in_sync_and_every_part_is_shown() {
    let site = Site::healthy().await;
    let jobs = ["backfill", "catch_up", "handlers", "housekeeping", "reconcile", "reconcile_organizations", "refresh"];
    until("every job has run", async || {
        let page = site.page().await.text;
        jobs.iter().all(|job| part(&page, "jobs").contains(&format!(">{job}<")))
    })
    .await;
    let page = site.page().await.text;
    assert!(page.contains("class=\"verdict ok\"") && page.contains("<title>In sync · authkit-sync</title>"), "{page}");
    assert!(page.contains("Complete until <time") && page.contains("Fed by webhooks and polling."), "{page}");
    assert!(part(&page, "sources").contains("Last verified"), "{page}");
    assert!(part(&page, "scans").contains("Backfill of users") && part(&page, "scans").contains("3 objects"), "{page}");
    assert!(part(&page, "replicas").contains(concat!("<div>", env!("CARGO_PKG_VERSION"), "</div>")), "{page}");
    for chart in ["Lag", "Events per minute", "Requests per minute"] {
        assert!(part(&page, "charts").contains(&format!("<title>{chart} of the last hour</title>")), "{page}");
    }
    let icon = site.client.get(format!("{}icon/ok.svg", site.url())).send().await.unwrap();
    assert_eq!((icon.status().as_u16(), &icon.headers()["content-type"]), (200, &"image/svg+xml".parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_is_named_with_its_reason_and_a_running_backfill_shows_its_progress() {
    let site = Site::backfilling().await;
    let page = site.says("objects so far").await;
    assert!(part(&page, "scans").contains("<progress aria-labelledby=\"backfill-label\">"), "{page}");
    assert!(page.contains("the first backfill runs and has read"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_workos_is_the_reason_and_its_end_is_noticed() {
    let site = Site::workos_down().await;
    let page = site.says("every request to WorkOS").await;
    assert!(page.contains("it answered 50"), "{page}");
    assert!(part(&page, "dependencies").contains("failing"), "{page}");
    assert!(!page.contains(IN_SYNC) && !page.contains("Falling behind"), "{page}");
    site.lab.workos.set_api_faults(ApiFaults::default());
    site.says(IN_SYNC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_handlers_and_quarantined_events_are_shown_escaped_and_without_personal_data() {
    let site = Site::handler_failing().await;
    let page = site.page().await.text;
    let escaped = "&lt;img src=x onerror=alert(1)&gt;&quot;'&amp;";
    assert!(part(&page, "handlers").contains(escaped), "the constraint is shown: {page}");
    assert!(part(&page, "quarantine").contains(&format!("event_{escaped}")), "the event is shown: {page}");
    assert!(!page.contains("<img"), "{page}");
    for personal in ["Ada", "@example.test", "Lovelace"] {
        assert!(!page.contains(personal), "{personal}: {page}");
    }
    assert!(part(&page, "handlers").contains("paused"), "{page}");
    // This does not change while the database is unreachable.
    site.close_database().await;
    let page = site.says("Unknown: the database does not answer").await;
    assert!(part(&page, "handlers").contains(escaped) && !page.contains("<img"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_database_the_page_shows_what_is_in_memory_and_what_was_read_last() {
    let site = Site::database_down().await;
    let answer = site.page().await;
    let page = answer.text;
    assert_eq!(answer.status, 200);
    assert!(page.contains("The database values below were read"), "{page}");
    assert!(part(&page, "dependencies").contains("unreachable"), "{page}");
    assert!(part(&page, "jobs").contains("catch_up") && part(&page, "replicas").contains("this process"), "{page}");
}

/// A lock blocks the reading of the first viewer, which closes the connection. Twenty more viewers request the page, and none of
/// them begins a second reading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_viewers_cost_one_reading_and_a_blocked_reading_fails_no_page() {
    let site = Site::healthy().await;
    let mut locking = PgConnection::connect_with(&site.lab.database.options()).await.unwrap();
    locking.execute("begin; lock table workos.replicas in access exclusive mode").await.unwrap();
    let begun = async || -> Vec<i64> {
        let sql = "select extract(epoch from query_start)::int8 from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock' and query like '%replicas.running%'";
        sqlx::query_scalar(sql).fetch_all(&site.lab.pool).await.unwrap()
    };
    until("a reading is blocked, and its viewer leaves", async || {
        tokio::select! {
            // The next reading is not due yet.
            _ = site.page() => false,
            () = until("the reading is blocked", async || !begun().await.is_empty()) => true,
        }
    })
    .await;
    let mut viewers = pin!(futures_util::future::join_all((0..20).map(|_| site.page())));
    let mut readings = BTreeSet::new();
    let pages = loop {
        tokio::select! {
            pages = &mut viewers => break pages,
            seconds = begun() => readings.extend(seconds),
        }
    };
    // A late reading is followed by a pause of ten times its duration, which is the longest one that a reading can have.
    let seconds: Vec<i64> = readings.into_iter().collect();
    assert!(seconds.windows(2).all(|pair| pair[1] - pair[0] >= 20), "readings began at {seconds:?}");
    for page in pages {
        assert_eq!(page.status, 200);
        assert!(page.text.contains("did not answer the status page within 3 seconds"), "{}", page.text);
    }
    locking.execute("rollback").await.unwrap();
    site.says(IN_SYNC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_allows_exactly_the_style_and_the_script_of_the_page() {
    let site = Site::healthy().await;
    let answer = site.page().await;
    let between = |open: &str, close: &str| {
        let (_, rest) = answer.text.split_once(open).unwrap();
        rest.split_once(close).unwrap().0.to_owned()
    };
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text.as_bytes()));
    let (style, script) = (between("<style>", "</style>"), between("<script>", "</script>"));
    assert_eq!(
        answer.header("content-security-policy"),
        format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; img-src 'self'; connect-src 'self'; \
             frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            hash(&style),
            hash(&script)
        )
    );
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    assert_eq!((answer.header("cache-control"), answer.header("x-content-type-options")), ("no-store", "nosniff"));
    let page = answer.text.replace(&style, "").replace(&script, "");
    assert_eq!((answer.text.matches("<script").count(), answer.text.matches("<style").count()), (1, 1));
    for forbidden in [" style=", " onclick=", " onload=", "http:", "https:", "url(", "<form", "<iframe"] {
        assert!(!page.contains(forbidden), "{forbidden}: {page}");
    }
    assert!(!style.contains("url(") && !style.contains("@import") && !script.contains("http"));
    // The public listener has no such page.
    assert_eq!(site.client.get(site.served.url("/")).send().await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_with_its_release_is_shown_until_it_stops() {
    let mut site = Site::healthy().await;
    let environment = site.lab.environment();
    let settings: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut second = Served::start(&site.lab.database.url(), free_address(), &settings);
    let count = |page: &str| {
        part(page, "replicas").matches(">Release<").count()
            + part(page, "replicas").matches(concat!("<div>", env!("CARGO_PKG_VERSION"), "</div>")).count()
    };
    until("both are shown", async || count(&site.page().await.text) == 3).await;
    site.sql("insert into workos.replicas (holder, version, started_at, seen_at) values ('old', '0.0.9', now(), now()), ('killed', '0.0.8', now(), now() - interval '1 hour')").await;
    let page = site.says("0.0.9").await;
    assert!(page.contains("run 2 releases") && !page.contains("0.0.8"), "{page}");
    until("the next heartbeat deletes the row of the killed process", async || {
        site.lab.count("select count(*) from workos.replicas where holder = 'killed'").await == 0
    })
    .await;
    assert!(second.terminate().success());
    until("the stopped process has left", async || count(&site.page().await.text) == 2).await;
    assert!(site.served.terminate().success());
    assert_eq!(site.lab.count("select count(*) from workos.replicas where holder not in ('old', 'killed')").await, 0);
}
