//! `migrate`: update the database schema to this release.

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::{Exit, Failure, database, flag};
use crate::config::{self, Source};
use crate::store::migrations::script::script;
use crate::store::migrations::{self, MigrationStatus};
use crate::store::roles;

pub(super) fn command() -> Command {
    let action = Arg::new("action").value_parser(["run", "status"]).default_value("run").help(
        "run: apply pending migrations. status: list pending migrations and invalid indexes, and exit with 1 if there are any",
    );
    Command::new("migrate")
        .about("Update the database schema to this release. Several replicas may run it at the same time")
        .arg(action)
        .arg(flag("dry-run", "List the migrations that would be applied, but apply nothing"))
        .arg(
            flag("sql", "Print the pending migrations, roles and grants as an SQL script, but apply nothing")
                .conflicts_with_all(["dry-run", "json"]),
        )
        .arg(flag("json", "Print the result as JSON"))
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let pool = database::pool(&config::database(source)?).current_connections().await?;
    let json = matches.get_flag("json");
    let only_look = matches.get_one::<String>("action").is_some_and(|action| action == "status");
    if matches.get_flag("sql") {
        if only_look {
            return Err(Failure::new(
                Exit::Usage,
                "--sql cannot be used with `status`: run `authkit-sync migrate --sql`",
            ));
        }
        print!("{}", script(&pool, &migrations::migrator()).await?);
        return Ok(Exit::Yes);
    }
    if only_look || matches.get_flag("dry-run") {
        let (status, invalid) = migrations::status(&pool).await?;
        print(&status, &invalid, json);
        let is_current = status.pending.is_empty() && invalid.is_empty();
        return Ok(if only_look && !is_current { Exit::No } else { Exit::Yes });
    }
    let applied = migrations::run(&pool).await?;
    let not_allowed = roles::assert(&pool).await?;
    if json {
        println!("{}", json!({ "applied": applied, "not_allowed": not_allowed }));
    } else if applied.is_empty() {
        println!("no pending migrations: the schema is current");
    } else {
        for migration in applied {
            println!("applied {migration}");
        }
    }
    if !json && !not_allowed.is_empty() {
        println!("this role lacks the privilege for these statements; let a superuser run them:");
        for statement in not_allowed {
            println!("    {statement};");
        }
    }
    Ok(Exit::Yes)
}

fn print(status: &MigrationStatus, invalid: &[String], json: bool) {
    if json {
        let MigrationStatus { applied, pending, newer } = status;
        println!("{}", json!({ "applied": applied, "pending": pending, "newer": newer, "invalid_indexes": invalid }));
        return;
    }
    for migration in &status.applied {
        println!("applied {migration}");
    }
    for version in &status.newer {
        println!("applied {version:04} (by a newer release)");
    }
    for migration in &status.pending {
        println!("pending {migration}");
    }
    for index in invalid {
        println!("invalid index workos.{index}");
    }
    if !invalid.is_empty() {
        println!(
            "run `authkit-sync migrate` to rebuild the indexes of migrations; drop any other invalid index yourself"
        );
    }
}
