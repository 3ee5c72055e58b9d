//! `webhook sign`: what WorkOS would have sent, to try the receiver by hand.

use std::io::{Read, Write};

use bytes::Bytes;
use clap::{Arg, ArgMatches, Command};

use super::{Exit, Failure, with_settings};
use crate::config::{self, Source};
use crate::domain::clock::Clock;
use crate::workos::http::http_client;
use crate::workos::signature;

pub(super) fn command() -> Command {
    let send =
        Arg::new("send").long("send").value_name("URL").help("post the body there, signed, and print the answer");
    let sign =
        Command::new("sign").about("Print the WorkOS-Signature header for the body on stdin, byte for byte").arg(send);
    Command::new("webhook")
        .about("Webhooks by hand")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(with_settings(sign, &["WORKOS_WEBHOOK_SECRET"]))
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let Some(("sign", matches)) = matches.subcommand() else { return Ok(Exit::Usage) };
    let secret = config::signing_secret(source)?;
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
    let answer = answer.map_err(|error| Failure::unavailable(format!("{} cannot be reached", place(&error, url))))?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{}\n{text}", status.as_u16());
    Ok(if status.is_success() { Exit::Yes } else { Exit::No })
}

/// The URL for an error message, or what is wrong with it.
fn place<'a>(error: &reqwest::Error, url: &'a str) -> &'a str {
    if error.is_builder() { "that URL is malformed and" } else { url }
}
