//! `rebind`: give a copied database to another environment.

use clap::{ArgMatches, Command};
use serde_json::json;

use super::walk::flag;
use super::{Exit, Failure, serve, with_settings};
use crate::config::{self, Source};
use crate::store::Store;

const ABOUT: &str = "\
Gives this database to the environment of WORKOS_CLIENT_ID, for a dump restored into another environment: forgets how far
catch-up and backfill had come, and lets the first complete reconcile make tombstones of the old environment's users.
Services that run on this database have to be restarted.

Positions of the change feed become void, so that followers begin anew. To the client id it has already, that is all it does:
run it so after a snapshot of the disk was put back, which the database cannot notice by itself.";

pub(super) fn command() -> Command {
    let command = Command::new("rebind")
        .about("Give a copied database to another WorkOS environment")
        .long_about(ABOUT)
        .arg(flag("json", "print for machines"));
    let settings = [
        "DATABASE_URL",
        "WORKOS_CLIENT_ID",
        "AUTHKIT_SYNC_DB_POOL",
        "AUTHKIT_SYNC_DB_TIMEOUT",
        "AUTHKIT_SYNC_LOG_FORMAT",
        "RUST_LOG",
    ];
    with_settings(command, &settings)
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let (database, client_id) = config::rebind(source)?;
    let pool = serve::pool(&database);
    let old = Store::new(pool.clone(), pool, &client_id, database.timeout).rebind().await?;
    if matches.get_flag("json") {
        println!("{}", json!({ "from": old, "to": client_id }));
    } else if old.as_ref() == Some(&client_id) {
        println!("{client_id} already; only the positions of the change feed are void now, and followers begin anew");
    } else {
        println!("from {} to {client_id}; now restart the service", old.as_deref().unwrap_or("nobody"));
    }
    Ok(Exit::Yes)
}
