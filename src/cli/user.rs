//! `user`: show the row of one user, its memberships, and every event about it.

use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};

use super::database::store_of_any_client;
use super::personal::{self, STDIN};
use super::{Exit, Failure, events as inbox, flag};
use crate::config::Source;
use crate::domain::decide::Stored;
use crate::domain::membership::{ListedMembership, STATUSES};
use crate::domain::user::User;
use crate::domain::version::Version;
use crate::store::events::{EventFilter, EventSummary};
use crate::store::memberships::{MembershipFilter, MembershipsOf};
use crate::store::pages::{Order, PageOf};
use crate::store::{Store, StoreError};
use crate::sync::erasure;
use crate::sync::health::count;

/// Memberships that one statement reads.
const PAGE: usize = 100;

pub(super) fn command() -> Command {
    Command::new("user")
        .about("Show one user: the current row, the memberships, and every event about it with its outcome")
        .arg(
            Arg::new("user")
                .value_name("USER")
                .required(true)
                .help(format!("User ID, email address or external ID. {STDIN}")),
        )
        .arg(flag(
            "erase",
            "Erase all remaining personal data of a deleted user, and print the number of payloads erased",
        ))
        .arg(flag("json", "Print the result as JSON"))
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let store = store_of_any_client(source)?;
    let json = matches.get_flag("json");
    let id = &id_of(&store, &personal::argument(matches, "user")?).await?;
    if matches.get_flag("erase") {
        let erased = erasure::erase_user(&store, id).await?;
        let erased = erased.ok_or_else(|| {
            let message = format!(
                "user {} is not deleted, so nothing was erased: delete the user at WorkOS first",
                id.escape_debug()
            );
            Failure::new(Exit::No, message)
        })?;
        if json {
            println!("{}", json!({ "payloads_erased": erased, "complete": true }));
        } else {
            println!("{} erased; the erasure is complete", count(erased, "payload"));
        }
        return Ok(Exit::Yes);
    }
    let stored = store.user(id).await?;
    let memberships = memberships(&store, id).await?;
    let mut events =
        store.event_summaries(&EventFilter { user: Some(id.to_owned()), ..EventFilter::default() }, i64::MAX).await?;
    events.reverse();
    if matches!(stored, Stored::Absent) && events.is_empty() {
        return Err(Failure::new(
            Exit::No,
            format!("user {} not found: no event and no row; check the ID, address or external ID", id.escape_debug()),
        ));
    }
    if json {
        let mut user = as_json(id, &stored, &events);
        user["memberships"] = memberships.iter().map(membership_as_json).collect();
        println!("{user}");
        return Ok(Exit::Yes);
    }
    match &stored {
        Stored::Live { object: user, version } => {
            println!(
                "live, from {} (updated {}, observed {})",
                version.id.escape_debug(),
                version.updated_at,
                version.observed_at
            );
            println!("{:#}", json!(user));
        }
        Stored::Tombstone { deleted_at, .. } => {
            let when = deleted_at.map_or_else(|| "at an unknown time".to_owned(), |at| format!("at {at}"));
            println!("deleted {when}");
        }
        Stored::Absent => println!("there is no row for the user, only these events"),
    }
    print_memberships(&memberships);
    println!();
    inbox::print(&events);
    Ok(Exit::Yes)
}

/// Returns the memberships of a user, in any status, that have not ended.
async fn memberships(store: &Store, user: &str) -> Result<Vec<ListedMembership>, StoreError> {
    let statuses = STATUSES.map(str::to_owned);
    let filter = MembershipFilter { of: MembershipsOf::User(user, None), statuses: &statuses };
    let (mut memberships, mut after) = (Vec::new(), None);
    loop {
        let of = PageOf { order: Order::Ascending, before: None, after: after.as_deref(), limit: PAGE };
        let page = store.memberships_page(&filter, &of).await?;
        memberships.extend(page.items);
        match page.after {
            Some(last) => after = Some(last),
            None => return Ok(memberships),
        }
    }
}

fn print_memberships(memberships: &[ListedMembership]) {
    println!();
    println!("{}", count(memberships.len(), "membership"));
    for ListedMembership { membership, organization_name, .. } in memberships {
        let organization = organization_name.as_deref().unwrap_or("unknown organization");
        println!(
            "{}  {}  {}  roles: {}  {}",
            membership.of.organization_id.escape_debug(),
            organization.escape_debug(),
            membership.status.escape_debug(),
            if membership.roles.is_empty() {
                "none".into()
            } else {
                membership.roles.join(", ").escape_debug().to_string()
            },
            membership.id.escape_debug(),
        );
    }
}

fn membership_as_json(ListedMembership { membership, organization_name, .. }: &ListedMembership) -> Value {
    json!({
        "id": membership.id,
        "organization_id": membership.of.organization_id,
        "organization_name": organization_name,
        "status": membership.status,
        "roles": membership.roles,
    })
}

/// Returns the ID of the user that an operator names by ID, email address or external ID. Returns any other text unchanged.
async fn id_of(store: &Store, named: &str) -> Result<String, Failure> {
    if named.contains('@') {
        let of = PageOf { order: Order::Ascending, before: None, after: None, limit: 10 };
        let users = store.users_page(Some(named), &of).await?.items;
        let ids: Vec<String> = users.into_iter().map(|user| user.id).collect();
        return match &ids[..] {
            [] => Ok(named.to_owned()),
            [id] => Ok(id.clone()),
            _ => Err(Failure::new(
                Exit::No,
                format!("several users have this email address; name one by its ID: {}", ids.join(", ")),
            )),
        };
    }
    if matches!(store.user(named).await?, Stored::Absent)
        && let Some(user) = store.user_by_external_id(named).await?
    {
        return Ok(user.id);
    }
    Ok(named.to_owned())
}

fn as_json(id: &str, stored: &Stored<User>, events: &[EventSummary]) -> Value {
    match stored {
        Stored::Live { object: user, version } => {
            let Version { id: version_id, updated_at, observed_at } = version;
            let version = json!({ "id": version_id, "updated_at": updated_at, "observed_at": observed_at });
            json!({ "id": id, "state": "live", "user": user, "version": version, "events": events })
        }
        Stored::Tombstone { deleted_at, .. } => {
            json!({ "id": id, "state": "deleted", "deleted_at": deleted_at, "events": events })
        }
        Stored::Absent => json!({ "id": id, "state": "absent", "events": events }),
    }
}
