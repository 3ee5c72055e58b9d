//! A primary and its streaming standby, and network paths to servers that can be cut.

use std::path::PathBuf;
use std::str::FromStr;

use authkit_sync::dev::postgres::{Data, PrivatePostgres};
use authkit_sync::store::migrations;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;
use tokio::task::block_in_place;

use super::database::programs;
use super::service::{CLIENT_ID, until};

/// Two servers with the schema and the environment of the fixtures. Tests need a runtime with several threads.
pub(crate) struct Cluster {
    pub(crate) primary: PrivatePostgres,
    pub(crate) standby: PrivatePostgres,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let mut primary = block_in_place(|| PrivatePostgres::start(programs(), &Data::Temporary, &[]).unwrap());
        let pool = pool(&primary).await;
        migrations::run(&pool).await.unwrap();
        // As after a first start that has reached WorkOS.
        sqlx::query("insert into workos.environment (client_id) values ($1)")
            .bind(CLIENT_ID)
            .execute(&pool)
            .await
            .unwrap();
        let standby = block_in_place(|| primary.start_standby().unwrap());
        let cluster = Self { primary, standby };
        until("the standby streams", async || replicas(&pool, "true").await == 1).await;
        cluster
    }

    /// Lets each commit wait until the standby has it.
    pub(crate) async fn replicate_synchronously(&self) {
        let pool = pool(&self.primary).await;
        for sql in ["alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"] {
            sqlx::raw_sql(sql).execute(&pool).await.unwrap();
        }
        until("the standby is synchronous", async || replicas(&pool, "sync_state = 'sync'").await == 1).await;
    }

    /// Lets the standby receive nothing more.
    pub(crate) async fn stop_replication(&self) {
        let (primary, standby) = (pool(&self.primary).await, pool(&self.standby).await);
        for sql in ["alter system set primary_conninfo = ''", "select pg_reload_conf()"] {
            sqlx::raw_sql(sql).execute(&standby).await.unwrap();
        }
        until("the standby has stopped streaming", async || replicas(&primary, "true").await == 0).await;
    }

    /// The crash of the primary: it ends at once, and writes nothing any more.
    pub(crate) fn crash_primary(&self) {
        let pid = Pid::from_raw(self.primary.pid().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::QUIT).unwrap();
    }

    /// What a failover manager does.
    pub(crate) async fn promote_standby(&self) {
        let promoted: bool =
            sqlx::query_scalar("select pg_promote()").fetch_one(&pool(&self.standby).await).await.unwrap();
        assert!(promoted);
    }

    /// The URL with both servers, through their sockets.
    pub(crate) fn url(&self) -> String {
        let folders = [&self.primary, &self.standby].map(|server| server.scratch().display().to_string());
        let hosts = folders.join(",");
        format!("postgres://postgres@localhost/postgres?host={hosts}&target_session_attrs=read-write")
    }
}

async fn replicas(primary: &PgPool, which: &str) -> i64 {
    let sql = format!("select count(*) from pg_stat_replication where state = 'streaming' and {which}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(primary).await.unwrap()
}

/// A pool of the test on one server.
pub(crate) async fn pool(server: &PrivatePostgres) -> PgPool {
    PgPoolOptions::new().max_connections(3).connect(&server.url("postgres")).await.unwrap()
}

/// A port that leads to a socket of PostgreSQL, and can be cut. While it is cut, nothing is answered and nothing is closed, as after the
/// failure of a network.
pub(crate) struct Path {
    port: u16,
    is_cut: watch::Sender<bool>,
}

impl Path {
    pub(crate) async fn to(server: &PgConnectOptions) -> Self {
        let folder = server.get_socket().expect("the server listens on a socket");
        let socket = folder.join(format!(".s.PGSQL.{}", server.get_port()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_cut = watch::Sender::new(false);
        let watched = is_cut.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, socket.clone(), watched.subscribe()));
            }
        });
        Self { port, is_cut }
    }

    pub(crate) async fn to_server(server: &PrivatePostgres) -> Self {
        Self::to(&PgConnectOptions::from_str(&server.url("postgres")).unwrap()).await
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    pub(crate) fn repair(&self) {
        self.is_cut.send_replace(false);
    }
}

async fn forward(mut client: tokio::net::TcpStream, socket: PathBuf, mut is_cut: watch::Receiver<bool>) {
    let is_open = async {
        let Ok(mut server) = UnixStream::connect(socket).await else { return };
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    };
    let cut = async { drop(is_cut.wait_for(|is_cut| *is_cut).await) };
    let is_cut = tokio::select! {
        biased;
        () = cut => true,
        () = is_open => false,
    };
    if is_cut {
        // Keeps the client's side open.
        std::future::pending::<()>().await;
        drop(client);
    }
}
