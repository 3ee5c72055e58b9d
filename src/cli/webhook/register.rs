//! `webhook register`: create or update the webhook endpoint through WorkOS's API.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use crate::cli::{Exit, Failure, flag};
use crate::config::{self, Source, WORKOS_API_KEY};
use crate::domain::clock::Clock;
use crate::sync::job::JobError;
use crate::workos::api::{Api, ApiError};
use crate::workos::webhook_endpoints::WebhookEndpoint;

const ABOUT: &str = "\
Create the webhook endpoint at WorkOS, or update it: enable it and add the event types that this service needs. The command prints the
difference before it changes anything, and changes nothing if there is none. It keeps other event types of the endpoint. WorkOS shows
the signing secret of a new endpoint once: the command prints it, or writes it to a new file that only its owner can read.

Exit codes: 0 the endpoint is registered; 1 with --dry-run: it differs; 69 WorkOS is unreachable; 78 WorkOS rejects the URL or the key.";

pub(super) fn command() -> Command {
    let url = Arg::new("url").long("url").value_name("URL").required(true).value_parser(checked_url);
    let file =
        Arg::new("secret-file").long("secret-file").value_name("PATH").value_parser(clap::value_parser!(PathBuf));
    Command::new("register")
        .about("Create or update the webhook endpoint at WorkOS")
        .long_about(ABOUT)
        .arg(url.help("Public URL of the endpoint, for example https://sync.example.com/workos/webhook"))
        .arg(file.help("New file for the signing secret, with mode 0600. Default: print the secret once"))
        .arg(flag("dry-run", "Print the difference, but change nothing"))
        .arg(flag("json", "Print the result as JSON"))
}

fn checked_url(text: &str) -> Result<String, String> {
    let url = reqwest::Url::parse(text).ok().filter(|url| url.has_host());
    let is_local = |url: &reqwest::Url| matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match url {
        // An emulator of WorkOS on this machine needs no TLS.
        Some(url) if url.scheme() == "https" || (url.scheme() == "http" && is_local(&url)) => Ok(text.to_owned()),
        _ => Err("expected an https:// URL, because WorkOS sends webhooks only with TLS".to_owned()),
    }
}

/// The difference between the endpoint and its required state.
enum Difference {
    Missing,
    Differs { endpoint: WebhookEndpoint, types: Vec<&'static str> },
    None(WebhookEndpoint),
}

impl Difference {
    fn of(url: &str, endpoints: Vec<WebhookEndpoint>, needed: &[&'static str]) -> Self {
        let Some(endpoint) = endpoints.into_iter().find(|endpoint| endpoint.endpoint_url == url) else {
            return Self::Missing;
        };
        let types = endpoint.missing(needed);
        if types.is_empty() && endpoint.is_enabled() { Self::None(endpoint) } else { Self::Differs { endpoint, types } }
    }

    /// Returns one line per difference: `+` for what is added, `~` for what changes.
    fn lines(&self, url: &str, needed: &[&str]) -> Vec<String> {
        let added = |types: &[&str]| types.iter().map(|name| format!("+ event {name}")).collect::<Vec<_>>();
        match self {
            Self::Missing => [vec![format!("+ endpoint {url}")], added(needed)].concat(),
            Self::Differs { endpoint, types } => {
                let status = (!endpoint.is_enabled()).then(|| "~ status disabled -> enabled".to_owned());
                [status.into_iter().collect(), added(types)].concat()
            }
            Self::None(_) => Vec::new(),
        }
    }
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let url = matches.get_one::<String>("url").map(String::as_str).unwrap_or_default();
    let (dry_run, is_json) = (matches.get_flag("dry-run"), matches.get_flag("json"));
    let api = Api::new(&config::api_base(source)?, source.get(&WORKOS_API_KEY)?, Clock::system());
    let api = api.map_err(|error| Failure::new(Exit::Config, error))?;
    let failed = |error| Failure::from(JobError::Api(error));
    let needed = config::kinds(source)?.event_types();
    let difference = Difference::of(url, api.webhook_endpoints().await.map_err(failed)?, &needed);
    let lines = difference.lines(url, &needed);
    if !is_json {
        lines.iter().for_each(|line| println!("{line}"));
    }
    if dry_run {
        report(is_json, "unchanged", &lines, None);
        return Ok(if lines.is_empty() { Exit::Yes } else { Exit::No });
    }
    // Created first, because a secret that cannot be stored is lost. The file of an earlier run already contains the secret.
    let is_missing = matches!(difference, Difference::Missing);
    let path = matches.get_one::<PathBuf>("secret-file").filter(|path| is_missing || !path.exists());
    let file = path.map(|path| SecretFile::create(path)).transpose()?;
    let (result, registered) = match difference {
        Difference::Missing => ("created", api.create_webhook_endpoint(url, &needed).await),
        Difference::Differs { endpoint, types } => {
            let events: Vec<&str> = endpoint.events.iter().map(String::as_str).chain(types).collect();
            ("updated", api.update_webhook_endpoint(&endpoint.id, &events).await)
        }
        Difference::None(endpoint) => ("unchanged", Ok(endpoint)),
    };
    let endpoint = registered.map_err(|error| {
        file.iter().for_each(SecretFile::discard);
        rejected(url, error)
    })?;
    let place = store_secret(is_missing, &endpoint, file)?;
    report(is_json, result, &lines, Some((&endpoint, &place)));
    Ok(Exit::Yes)
}

/// Returns the failure of a registration. If WorkOS rejects the URL or an event type, an operator must act.
fn rejected(url: &str, error: ApiError) -> Failure {
    let is_rejected = matches!(error, ApiError::Refused { .. });
    let failure = Failure::from(JobError::Api(error));
    let exit = if is_rejected { Exit::Config } else { failure.exit };
    Failure::new(exit, format!("the endpoint {url} was not registered: {}", failure.message))
}

/// Where the secret is.
enum SecretPlace {
    Printed(String),
    File(PathBuf),
    /// The endpoint existed, so its secret is known already.
    Unchanged,
    /// WorkOS did not show the secret.
    Hidden,
}

fn store_secret(is_new: bool, endpoint: &WebhookEndpoint, file: Option<SecretFile>) -> Result<SecretPlace, Failure> {
    match (file, endpoint.secret()) {
        (Some(file), Some(secret)) => file.write(secret).map(SecretPlace::File),
        (Some(file), None) => {
            file.discard();
            Ok(SecretPlace::Hidden)
        }
        (None, Some(secret)) if is_new => Ok(SecretPlace::Printed(secret.to_owned())),
        (None, None) if is_new => Ok(SecretPlace::Hidden),
        (None, _) => Ok(SecretPlace::Unchanged),
    }
}

/// A new file that only its owner can read.
struct SecretFile {
    path: PathBuf,
    file: File,
}

impl SecretFile {
    fn create(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| {
            let message = format!("cannot create the file {}: {error}; choose the path of a new file", path.display());
            Failure::new(Exit::Config, message)
        })?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes the secret. If that fails, the message contains it, because WorkOS shows it only once.
    fn write(mut self, secret: &str) -> Result<PathBuf, Failure> {
        match writeln!(self.file, "{secret}").and_then(|()| self.file.sync_all()) {
            Ok(()) => Ok(self.path),
            Err(error) => {
                println!("{secret}");
                let message = format!("cannot write {}: {error}; the secret was printed instead", self.path.display());
                Err(Failure::unavailable(message))
            }
        }
    }

    /// Removes the empty file.
    fn discard(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn report(is_json: bool, result: &str, lines: &[String], registered: Option<(&WebhookEndpoint, &SecretPlace)>) {
    let secret = registered.map(|(_, place)| place);
    if is_json {
        let printed =
            secret.and_then(|place| if let SecretPlace::Printed(secret) = place { Some(secret) } else { None });
        let path = secret.and_then(|place| if let SecretPlace::File(path) = place { Some(path) } else { None });
        let id = registered.map(|(endpoint, _)| &endpoint.id);
        println!(
            "{}",
            json!({"result": result, "difference": lines, "id": id, "secret": printed, "secret_file": path})
        );
        return;
    }
    let Some((endpoint, place)) = registered else {
        println!("{}", if lines.is_empty() { "the endpoint needs no change" } else { "dry run, nothing changed" });
        return;
    };
    println!("{result}: {} ({})", endpoint.endpoint_url, endpoint.id);
    match place {
        SecretPlace::Printed(secret) => println!(
            "signing secret, shown only this once: {secret}\nset WORKOS_WEBHOOK_SECRET to it and restart `authkit-sync serve`"
        ),
        SecretPlace::File(path) => println!(
            "the signing secret is in {}; set WORKOS_WEBHOOK_SECRET to it and restart `authkit-sync serve`",
            path.display()
        ),
        SecretPlace::Hidden => {
            println!("WorkOS does not show the signing secret; copy it from the dashboard, page Webhooks")
        }
        SecretPlace::Unchanged => {}
    }
}
