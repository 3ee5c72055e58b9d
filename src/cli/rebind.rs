//! `rebind`: assign a copied database to another WorkOS environment.

use clap::{ArgMatches, Command};
use serde_json::json;

use super::database::store_of_known_client;
use super::{Exit, Failure, flag};
use crate::config::{self, Source};

const ABOUT: &str = "\
Assign this database to the environment of WORKOS_CLIENT_ID, for example after restoring a dump of another environment. This
resets the progress of catch-up and backfill. The first complete reconcile then deletes the users of the old environment.
Restart all services that use this database.

This also invalidates all positions of the change feed, so followers read all users again. If the database already belongs to
WORKOS_CLIENT_ID, this is the only effect. Run the command also after you restore a disk snapshot: the service cannot detect a
restored snapshot.";

pub(super) fn command() -> Command {
    Command::new("rebind")
        .about("Assign a copied database to another WorkOS environment")
        .long_about(ABOUT)
        .arg(flag("json", "Print the result as JSON"))
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let environment = config::environment(source)?;
    let old = store_of_known_client(source, &environment)?.rebind().await?;
    let client_id = environment.client_id;
    if matches.get_flag("json") {
        println!("{}", json!({ "from": old, "to": client_id }));
    } else if old.as_ref() == Some(&client_id) {
        println!(
            "the client ID is still {client_id}; all positions of the change feed are invalid now, and followers read all users again"
        );
    } else {
        println!(
            "changed the client ID from {} to {client_id}; restart the service now",
            old.as_deref().unwrap_or("none")
        );
    }
    Ok(Exit::Yes)
}
