//! `dev`: the service, a private PostgreSQL and a simulated WorkOS on one machine, without configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::termination::terminated;
use super::{Exit, Failure, flag};
use crate::authkit::{ACTION_PATH, AuthKit, WEBHOOK_PATH};
use crate::dev::postgres::{Data, PostgresError, PrivatePostgres, Programs, default_folder};
use crate::dev::tour;
use crate::dev::workos::{Options, SimulatedWorkos, SimulationError};
use crate::domain::clock::Clock;
use crate::store::{migrations, roles};
use crate::workos::api::ApiKey;
use crate::workos::signature::Secret;

/// Preferred ports. If one is in use, `dev` takes a free one.
const SERVICE_PORT: u16 = 8080;
const OPS_PORT: u16 = 9464;
const WORKOS_PORT: u16 = 4100;

/// The service key. It is public, because it only opens services on this machine.
const SERVICE_KEY: &str = "service-key-of-authkit-sync-dev-alone";

/// An example rule.
const ACTION_RULES: &str = "deny registration @gmail.com \"Please sign up with your work address.\"";

/// Short, so that a person sees lost webhooks recovered.
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
        .arg(path("seed", "File with a JSON array of users to create first"))
        .arg(path("data", "Folder that keeps the data between runs").conflicts_with_all(["ephemeral", "tour"]))
}

/// Everything that is running.
struct Machine {
    // Declared before the server: connections are closed before it stops.
    pool: PgPool,
    database_url: String,
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
    let home = if only_tour || ephemeral { None } else { Some(home(matches)?) };
    let machine = tokio::select! {
        machine = Machine::start(home.as_deref(), seed) => machine?,
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
    async fn start(home: Option<&Path>, seed: Vec<Value>) -> Result<Self, Failure> {
        let postgres = start_postgres(home).await?;
        if home.is_some() {
            eprintln!("keeping data in {}", home.unwrap_or(Path::new("")).display());
        }
        let admin = pool(&postgres.url("postgres"), 1)?;
        // It fails if the database exists from an earlier run, which is fine.
        let _ = sqlx::raw_sql("create database app").execute(&admin).await;
        admin.close().await;
        let database_url = postgres.url("app");
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
        let running = tokio::spawn(authkit.run(listener, Some(ops), shutdown));
        workos.add_endpoint(&format!("http://{service}{WEBHOOK_PATH}"));
        workos.set_action_endpoint(&format!("http://{service}{ACTION_PATH}"));
        for user in seed {
            let user = user.as_object().cloned().unwrap_or_default();
            workos.create_user(&user).map_err(|fault| Failure::new(Exit::Config, format!("--seed: {fault:?}")))?;
        }
        workos.wait_until_delivered().await;
        Ok(Self { pool, database_url, workos, service, ops: ops_address, stop, running, _postgres: postgres })
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
            self.print_urls(&url)?;
        }
        std::future::pending().await
    }

    fn as_json(&self) -> Value {
        json!({
            "url": format!("http://{}", self.service),
            "ops_url": format!("http://{}", self.ops),
            "workos_url": self.workos.base_url(),
            "database_url": self.database_url,
            "client_id": self.workos.client_id(),
            "api_key": self.workos.api_key(),
            "webhook_secret": self.workos.webhook_secret(),
            "service_key": SERVICE_KEY,
            "action_secret": self.workos.action_secret(),
        })
    }

    fn print_urls(&self, url: &str) -> Result<(), Failure> {
        let grace = json!({"email": "grace@example.test", "first_name": "Grace", "last_name": "Hopwood"});
        let grace = grace.as_object().cloned().unwrap_or_default();
        // It fails if an earlier run created her.
        let _ = self.workos.create_user(&grace);
        let users = self.workos.users();
        let id = users.last().and_then(|user| user.get("id")).and_then(Value::as_str).unwrap_or_default();
        let token = self.workos.sign_in(id).map_err(|fault| Failure::defect(format!("{fault:?}")))?;
        let (workos, key) = (self.workos.base_url(), self.workos.api_key());
        println!(
            "\nservice    {url}\nstatus     http://{ops}/\nWorkOS     {workos}   (simulated; API key {key})\nPostgreSQL {database}\n\n\
             # look up the user behind a token (valid for five minutes)\n\
             TOKEN={token}\n\
             curl -i -H \"Authorization: Bearer $TOKEN\" {url}/auth/user\n\n\
             # rename the user at WorkOS, then look it up again\n\
             curl -X PUT -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\\n     \
             -d '{{\"first_name\":\"Amazing Grace\"}}' {workos}/user_management/users/{id}\n\n\
             # read the change feed, and wait up to 20 seconds for the next change\n\
             curl -H 'Authorization: Bearer {SERVICE_KEY}' '{url}/changes'\n\
             curl -H 'Authorization: Bearer {SERVICE_KEY}' '{url}/changes?after=POSITION&wait=20'\n\n\
             # get a new token\n\
             curl -X POST {workos}/_simulate/users/{id}/token\n\n\
             # list every action of the simulated WorkOS: organizations, members, roles, sessions, faults\n\
             curl {workos}/\n\n\
             # ask whether a person may sign up (a rule denies gmail.com)\n\
             curl -X POST -H 'Content-Type: application/json' -d '{{\"email\":\"eve@gmail.com\"}}' {workos}/_simulate/actions\n\n\
             # deliver every webhook twice, half of them out of order, and lose some\n\
             curl -X POST -H 'Content-Type: application/json' -d '{{\"duplicate\":100,\"reorder\":50,\"drop\":10}}' {workos}/_simulate/deliveries\n\n\
             # make the API fail too: catch-up still recovers the lost webhooks\n\
             curl -X POST -H 'Content-Type: application/json' -d '{{\"error\":30,\"rate_limit\":30}}' {workos}/_simulate/api\n\n\
             # read the health and the metrics\n\
             curl http://{ops}/readyz; curl http://{ops}/metrics\n\n\
             Press Ctrl-C to stop. The data is kept for the next start.",
            database = self.database_url,
            ops = self.ops,
        );
        Ok(())
    }

    async fn stop(self) {
        self.workos.stop().await;
        let _ = self.stop.send(());
        let _ = self.running.await;
        self.pool.close().await;
    }
}

async fn start_postgres(home: Option<&Path>) -> Result<PrivatePostgres, Failure> {
    let data = home.map_or(Data::Temporary, |home| Data::Persistent(home.join("postgres")));
    let cache = home.map_or_else(default_home, |home| Ok(home.to_owned()))?;
    let started = tokio::task::spawn_blocking(move || {
        let programs = Programs::find_or_fetch_in(&cache, |step| eprintln!("{step}"))?;
        PrivatePostgres::start(programs, &data, &[])
    });
    Ok(started.await.map_err(Failure::defect)??)
}

fn pool(url: &str, connections: u32) -> Result<PgPool, Failure> {
    // PG* variables must not apply: this is a socket of our own.
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

fn read_seed(path: &Path) -> Result<Vec<Value>, Failure> {
    let wanted = |_| {
        Failure::new(
            Exit::Config,
            format!("cannot read --seed {}: it must be a file with a JSON array of users", path.display()),
        )
    };
    let bytes = std::fs::read(path).map_err(wanted)?;
    serde_json::from_slice(&bytes).map_err(std::io::Error::from).map_err(wanted)
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
