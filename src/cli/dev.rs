//! `dev`: the service, a private PostgreSQL and a simulated WorkOS on one machine, without configuration.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::termination::terminated;
use super::{Exit, Failure, flag};
use crate::authkit::{ACTION_PATH, AuthKit, WEBHOOK_PATH};
use crate::dev::postgres::{Data, PostgresError, PrivatePostgres, Programs, default_folder};
use crate::dev::screen::Screen;
use crate::dev::seed::Seed;
use crate::dev::tour;
use crate::dev::workos::{Options, SimulatedWorkos, SimulationError};
use crate::domain::change::Position;
use crate::domain::clock::Clock;
use crate::store::{StoreError, migrations, roles};
use crate::workos::api::ApiKey;
use crate::workos::signature::Secret;

/// Preferred ports. If one is in use, `dev` takes a free one.
const SERVICE_PORT: u16 = 8080;
const OPS_PORT: u16 = 9464;
const WORKOS_PORT: u16 = 4100;
const POSTGRES_PORT: u16 = 5433;

/// The service key. It is public, because it only opens services on this machine.
const SERVICE_KEY: &str = "service-key-of-authkit-sync-dev-alone";

/// An example rule.
const ACTION_RULES: &str = "deny registration @gmail.com \"Please sign up with your work address.\"";

/// Short, so that the tour shows quickly how catch-up recovers a lost webhook.
const CATCH_UP_INTERVAL: Duration = Duration::from_secs(1);

const ABOUT: &str = "\
Start a private PostgreSQL, a simulated WorkOS, and the service on this machine. Play a short tour, then keep running. The command
reads no .env file, no DATABASE_URL and no WORKOS_* variable, so it cannot touch a real database.";

pub(super) fn command() -> Command {
    let path = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("PATH").value_parser(clap::value_parser!(PathBuf)).help(help)
    };
    Command::new("dev")
        .about("Start a private PostgreSQL, a simulated WorkOS and the service, without configuration")
        .long_about(ABOUT)
        .arg(flag("tour", "Play the tour on temporary data, then exit: 0 if it succeeded, 1 if not"))
        .arg(flag("ephemeral", "Keep no data, use free ports, play no tour. For tests of other projects"))
        .arg(flag("json", "Print one line of JSON with all URLs and secrets when ready").requires("ephemeral"))
        .arg(path("seed", "JSON file with users, and with organizations, roles and memberships, to create first"))
        .arg(
            Arg::new("port").long("port").value_name("PORT").value_parser(clap::value_parser!(u16).range(1..)).help(
                "Port of PostgreSQL on 127.0.0.1. Default: 5433 if data is kept and it is free, else any free port",
            ),
        )
        .arg(path("data", "Folder that keeps the data between runs").conflicts_with_all(["ephemeral", "tour"]))
}

/// The running server, simulation and service.
struct Machine {
    // Declared before the server: connections are closed before it stops.
    pool: PgPool,
    database_url: String,
    database_tcp_url: String,
    /// The position of the change feed before this run.
    position: Position,
    is_kept: bool,
    workos: SimulatedWorkos,
    service: SocketAddr,
    ops: SocketAddr,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<Result<(), crate::authkit::RunError>>,
    _postgres: PrivatePostgres,
}

pub(super) async fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    let (only_tour, ephemeral) = (matches.get_flag("tour"), matches.get_flag("ephemeral"));
    let seed = matches.get_one::<PathBuf>("seed").map(|path| read_seed(path)).transpose()?.unwrap_or_default();
    let port = matches.get_one::<u16>("port").copied();
    let home = if only_tour || ephemeral { None } else { Some(home(matches)?) };
    let machine = tokio::select! {
        machine = Machine::start(home.as_deref(), port, seed) => machine?,
        () = terminated() => return Ok(Exit::Yes),
    };
    let outcome = tokio::select! {
        outcome = machine.show(only_tour, ephemeral, matches.get_flag("json")) => outcome,
        () = terminated() => Ok(Exit::Yes),
    };
    machine.stop().await;
    outcome
}

impl Machine {
    async fn start(home: Option<&Path>, port: Option<u16>, seed: Seed) -> Result<Self, Failure> {
        let port = match port {
            Some(port) => port,
            None => free_port(preferred(POSTGRES_PORT, home).await).await?,
        };
        let postgres = start_postgres(home, port).await?;
        if home.is_some() {
            eprintln!("keeping data in {}", home.unwrap_or(Path::new("")).display());
        }
        let admin = pool(&postgres.url("postgres"), 1)?;
        // This fails if an earlier run created the database, which is no problem.
        let _ = sqlx::raw_sql("create database app").execute(&admin).await;
        let database_url = postgres.url("app");
        let password = password(home)?;
        let set = format!("alter role postgres password '{password}'");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&admin).await.map_err(StoreError::from)?;
        let database_tcp_url = format!("postgres://postgres:{password}@127.0.0.1:{port}/app");
        admin.close().await;
        let pool = pool(&database_url, 20)?;
        migrations::run(&pool).await?;
        roles::assert(&pool).await?;
        let clock = Clock::system();
        let seed_number = clock.now().unix_micros().unsigned_abs() ^ u64::from(std::process::id());
        let workos = SimulatedWorkos::start(Options {
            listen: preferred(WORKOS_PORT, home).await,
            clock,
            seed: seed_number,
            state: home.map(|home| home.join("workos.json")),
        })
        .await?;
        let listener = bind(preferred(SERVICE_PORT, home).await).await?;
        let ops = bind(preferred(OPS_PORT, home).await).await?;
        let (service, ops_address) = (local(&listener)?, local(&ops)?);
        let authkit = AuthKit::builder(pool.clone(), workos.client_id())
            .api_base(workos.base_url())
            .webhook_secrets(vec![Secret::new(workos.webhook_secret())])
            .action_secrets(vec![Secret::new(workos.action_secret())])
            .action_rules(ACTION_RULES.parse().map_err(Failure::defect)?)
            .api_key(ApiKey::new(workos.api_key()))
            .drain_delay(Duration::ZERO)
            .catch_up_interval(CATCH_UP_INTERVAL)
            .service_key("dev", SERVICE_KEY)
            .build()
            .map_err(Failure::defect)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let position = authkit.position().await?;
        let running = tokio::spawn(authkit.run(listener, Some(ops), shutdown));
        workos.add_endpoint(&format!("http://{service}{WEBHOOK_PATH}"));
        workos.set_action_endpoint(&format!("http://{service}{ACTION_PATH}"));
        seed.create(&workos).map_err(|problem| Failure::new(Exit::Config, format!("--seed: {problem}")))?;
        workos.wait_until_delivered().await;
        let is_kept = home.is_some();
        Ok(Self {
            pool,
            database_url,
            database_tcp_url,
            position,
            is_kept,
            workos,
            service,
            ops: ops_address,
            stop,
            running,
            _postgres: postgres,
        })
    }

    /// Plays the tour, prints the URLs, and runs until Ctrl-C.
    async fn show(&self, only_tour: bool, ephemeral: bool, json: bool) -> Result<Exit, Failure> {
        let url = format!("http://{}", self.service);
        if !ephemeral {
            println!("A short tour: one user at WorkOS, and what your own database knows\n");
            tour::play(&self.workos, &url, |step| println!("   {step}"))
                .await
                .map_err(|error| Failure::new(Exit::No, error))?;
            println!("\nThe tour succeeded. Every step was a real webhook, a real commit and a real lookup.");
        }
        if only_tour {
            return Ok(Exit::Yes);
        }
        if json {
            println!("{}", self.as_json());
        } else {
            println!("\n{}", self.screen()?);
        }
        std::future::pending().await
    }

    fn as_json(&self) -> Value {
        json!({
            "url": format!("http://{}", self.service),
            "ops_url": format!("http://{}", self.ops),
            "workos_url": self.workos.base_url(),
            "database_url": self.database_url,
            "database_tcp_url": self.database_tcp_url,
            "client_id": self.workos.client_id(),
            "api_key": self.workos.api_key(),
            "webhook_secret": self.workos.webhook_secret(),
            "service_key": SERVICE_KEY,
            "action_secret": self.workos.action_secret(),
        })
    }

    /// Returns the screen with the lines to copy and the commands to try.
    fn screen(&self) -> Result<Screen, Failure> {
        let grace = json!({"email": "grace@example.test", "first_name": "Grace", "last_name": "Hopwood"});
        let grace = grace.as_object().cloned().unwrap_or_default();
        // This fails if an earlier run created the user.
        let _ = self.workos.create_user(&grace);
        let users = self.workos.users();
        let user = users.last().and_then(|user| user.get("id")).and_then(Value::as_str).unwrap_or_default();
        let token = self.workos.sign_in(user).map_err(|fault| Failure::defect(format!("{fault:?}")))?;
        Ok(Screen {
            service: format!("http://{}", self.service),
            ops: self.ops,
            workos: self.workos.base_url().to_owned(),
            database: self.database_tcp_url.clone(),
            client_id: self.workos.client_id(),
            api_key: self.workos.api_key(),
            webhook_secret: self.workos.webhook_secret(),
            service_key: SERVICE_KEY.to_owned(),
            user: user.to_owned(),
            token,
            position: self.position.to_string(),
            is_kept: self.is_kept,
        })
    }

    async fn stop(self) {
        self.workos.stop().await;
        let _ = self.stop.send(());
        let _ = self.running.await;
        self.pool.close().await;
    }
}

async fn start_postgres(home: Option<&Path>, port: u16) -> Result<PrivatePostgres, Failure> {
    let data = home.map_or(Data::Temporary, |home| Data::Persistent(home.join("postgres")));
    let cache = home.map_or_else(default_home, |home| Ok(home.to_owned()))?;
    let started = tokio::task::spawn_blocking(move || {
        let programs = Programs::find_or_fetch_in(&cache, |step| eprintln!("{step}"))?;
        PrivatePostgres::start_on(programs, &data, &[], Some(port))
    });
    Ok(started.await.map_err(Failure::defect)??)
}

fn pool(url: &str, connections: u32) -> Result<PgPool, Failure> {
    // PG* variables must not apply, because this is a private socket.
    let options =
        PgConnectOptions::from_str(url).map_err(|_| Failure::defect("the private PostgreSQL's URL is malformed"))?;
    Ok(PgPoolOptions::new().max_connections(connections).connect_lazy_with(options.ssl_mode(PgSslMode::Disable)))
}

/// Returns the preferred port if data is kept and the port is free, else any free port.
async fn preferred(port: u16, home: Option<&Path>) -> SocketAddr {
    let preferred = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let free = home.is_some() && TcpListener::bind(preferred).await.is_ok();
    if free { preferred } else { SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::unavailable(format!("cannot listen on {address}: {error}; free the port and start again"))
    })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, Failure> {
    listener.local_addr().map_err(Failure::defect)
}

fn read_seed(path: &Path) -> Result<Seed, Failure> {
    let read = std::fs::read(path).map_err(|error| error.to_string());
    read.and_then(|text| Seed::parse(&text)).map_err(|why| {
        let wanted = "it must be a JSON file with an array of users, or an object with users, organizations, roles and permissions";
        Failure::new(Exit::Config, format!("cannot use --seed {}: {why}; {wanted}", path.display()))
    })
}

/// Returns the port of an address, or a free port if it is 0.
async fn free_port(address: SocketAddr) -> Result<u16, Failure> {
    let listener = bind(address).await?;
    Ok(local(&listener)?.port())
}

/// Returns the password of the database. The folder keeps it, so that the URL stays the same.
fn password(home: Option<&Path>) -> Result<String, Failure> {
    let file = home.map(|home| home.join("postgres-password"));
    let kept = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    let is_usable = |text: &String| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(kept) = kept.filter(is_usable) {
        return Ok(kept);
    }
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Failure::defect("there is no randomness for a password"))?;
    let password = hex::encode(bytes);
    if let Some(file) = file {
        let mut options = std::fs::OpenOptions::new();
        let written = options.write(true).create(true).truncate(true).mode(0o600).open(&file);
        written.and_then(|mut file| file.write_all(password.as_bytes())).map_err(|error| {
            Failure::unavailable(format!("cannot write {}: {error}; choose another folder with --data", file.display()))
        })?;
    }
    Ok(password)
}

fn home(matches: &ArgMatches) -> Result<PathBuf, Failure> {
    let home = matches
        .get_one::<PathBuf>("data")
        .map_or_else(default_home, |data| std::path::absolute(data).map_err(Failure::unavailable))?;
    let created = std::fs::create_dir_all(&home);
    created.map_err(|error| {
        Failure::unavailable(format!(
            "cannot create the folder {}: {error}; choose another one with --data",
            home.display()
        ))
    })?;
    Ok(home)
}

fn default_home() -> Result<PathBuf, Failure> {
    default_folder().map_err(|error| Failure::new(Exit::Config, error))
}

impl From<PostgresError> for Failure {
    fn from(error: PostgresError) -> Self {
        Self::unavailable(error)
    }
}

impl From<SimulationError> for Failure {
    fn from(error: SimulationError) -> Self {
        Self::unavailable(error)
    }
}
