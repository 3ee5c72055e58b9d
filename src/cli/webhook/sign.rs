//! `webhook sign`: sign a body as WorkOS does, to test the webhook endpoint.

use std::io::{Read, Write};

use bytes::Bytes;
use clap::{Arg, ArgMatches, Command};

use crate::cli::{Exit, Failure};
use crate::config::{Source, WEBHOOK_SECRETS};
use crate::domain::clock::Clock;
use crate::workos::http::{http_client, why};
use crate::workos::signature;

pub(super) fn command() -> Command {
    let send =
        Arg::new("send").long("send").value_name("URL").help("Post the signed body to this URL and print the answer");
    Command::new("sign").about("Sign the body on stdin as WorkOS does, and print the header").arg(send)
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let secrets = source.get(&WEBHOOK_SECRETS)?;
    let secret = secrets.first().ok_or_else(|| Failure::defect("WORKOS_WEBHOOK_SECRET holds no secret"))?;
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body).map_err(Failure::unavailable)?;
    let header = secret.sign(Clock::system().now(), &body);
    let Some(url) = matches.get_one::<String>("send") else {
        println!("WorkOS-Signature: {header}");
        return Ok(Exit::Yes);
    };
    let client = http_client().map_err(Failure::defect)?;
    let request = client.post(url).header(signature::HEADER, header).header("content-type", "application/json");
    let answer = request.body(Bytes::from(body)).send().await;
    let answer = answer.map_err(|error| unreachable(&error, url))?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{}\n{text}", status.as_u16());
    Ok(if status.is_success() { Exit::Yes } else { Exit::No })
}

fn unreachable(error: &reqwest::Error, url: &str) -> Failure {
    if error.is_builder() {
        let message = "the URL of --send is malformed: it must be an absolute http:// or https:// URL";
        return Failure::new(Exit::Usage, message);
    }
    Failure::unavailable(format!("{url} does not answer: {}; check the URL and that the service runs", why(error)))
}
