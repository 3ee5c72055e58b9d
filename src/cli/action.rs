//! `action try`: the verdict of the configured rules and the decision endpoint on a person.

use bytes::Bytes;
use clap::{Arg, ArgMatches, Command};
use serde_json::json;
use tokio::time::Instant;

use super::personal::{self, STDIN};
use super::{Exit, Failure, flag};
use crate::action_endpoint::Endpoint;
use crate::actions::{DEADLINE, by_endpoint_or_rules};
use crate::config::{ACTION_RULES, Source, checked_action_endpoint};
use crate::domain::action::{Action, ActionContext};
use crate::domain::action_rules::Rules;
use crate::domain::clock::Clock;

const ABOUT: &str = "\
Decide an action as `serve` does: request a verdict from the endpoint of AUTHKIT_SYNC_ACTION_URL, then apply
AUTHKIT_SYNC_ACTION_RULES. Nothing is stored. The endpoint gets a real signed request, whose action has an ID that begins with
`action_try_`. A handler in Rust runs only in its own process, so it does not decide here.

Exit codes: 0 allow; 1 deny; 78 the configuration is wrong.";

pub(super) fn command() -> Command {
    let email = Arg::new("email").value_name("EMAIL").required(true);
    let kind = Arg::new("kind").long("kind").value_name("KIND").default_value("authentication");
    let attempt = Command::new("try")
        .about("Show what the rules and the endpoint decide for an email address")
        .long_about(ABOUT)
        .arg(email.help(format!("The email address of the person. {STDIN}")))
        .arg(kind.value_parser(["registration", "authentication"]).help("Sign-up or sign-in"))
        .arg(flag("json", "Print the result as JSON"));
    Command::new("action")
        .about("Check who may sign in or sign up")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(attempt)
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let Some(("try", matches)) = matches.subcommand() else { return Ok(Exit::Usage) };
    let rules = if source.is_set(&ACTION_RULES) { source.get(&ACTION_RULES)? } else { Rules::default() };
    let endpoint = match checked_action_endpoint(source)? {
        Some(endpoint) => Some(Endpoint::new(endpoint).map_err(|error| Failure::new(Exit::Config, error.to_string()))?),
        None => None,
    };
    let is_registration = matches.get_one::<String>("kind").is_some_and(|kind| kind == "registration");
    let action = action(&personal::argument(matches, "email")?, is_registration);
    let deadline = Instant::now() + DEADLINE;
    let (decision, failure) =
        by_endpoint_or_rules(endpoint.as_ref(), &rules, &action, Clock::system().now(), deadline).await;
    let (verdict, message) = (decision.verdict.as_str(), decision.verdict.message());
    if matches.get_flag("json") {
        let failure = failure.map(|failure| failure.as_str());
        let result = json!({"verdict": verdict, "message": message, "decided_by": decision.decided_by, "endpoint_failure": failure});
        println!("{result}");
    } else {
        println!("{verdict}: {}", explain(&decision.decided_by));
        if let Some(message) = message {
            println!("message for the person: {message}");
        }
        if let Some(failure) = failure {
            println!("the endpoint failed ({}), so AUTHKIT_SYNC_ACTION_URL_FAILURE decided", failure.as_str());
        }
    }
    Ok(if verdict == "allow" { Exit::Yes } else { Exit::No })
}

/// Returns a sentence that names the decider.
fn explain(decided_by: &str) -> String {
    match decided_by.strip_prefix("rule_") {
        Some(number) => format!("rule {number} of AUTHKIT_SYNC_ACTION_RULES matches"),
        None => match decided_by {
            "endpoint" => "the endpoint of AUTHKIT_SYNC_ACTION_URL decided".to_owned(),
            "endpoint_failure" => "the endpoint of AUTHKIT_SYNC_ACTION_URL failed".to_owned(),
            _ => "no rule matches, and the default is to allow".to_owned(),
        },
    }
}

/// Returns the action that WorkOS would send for this person.
fn action(email: &str, is_registration: bool) -> Action {
    let id = format!("action_try_{:016x}", fastrand::u64(..));
    let user = json!({"object": "user", "id": "user_try", "email": email, "email_verified": true});
    let (payload, context) = if is_registration {
        let payload = json!({"object": "user_registration_action_context", "id": id, "user_data": {"email": email}});
        (payload, ActionContext::UserRegistration { invitation: None })
    } else {
        let context = ActionContext::Authentication {
            user_id: "user_try".to_owned(),
            email_verified: true,
            external_id: None,
            organization_id: None,
            organization_membership_id: None,
            issuer: None,
        };
        (json!({"object": "authentication_action_context", "id": id, "user": user}), context)
    };
    Action {
        id,
        context,
        email: email.to_owned(),
        first_name: None,
        last_name: None,
        name: None,
        ip_address: None,
        user_agent: None,
        device_fingerprint: None,
        authentication_method: None,
        payload: Bytes::from(payload.to_string()),
    }
}
