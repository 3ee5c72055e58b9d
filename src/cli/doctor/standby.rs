//! Check of the standby that answers reads: whether it is a standby of this database, and how old its data is.

use super::hosts::what_it_is;
use super::subject::Subject;
use crate::store::resolver::HostState;
use crate::store::{Store, StoreError};
use crate::sync::health::Check;

const NAME: &str = "standby";

/// Returns the check. `None`: no standby is configured.
pub(super) async fn check(subject: &Subject<'_>) -> Option<Check> {
    let (standby, staleness) = subject.standby.as_ref()?;
    let (Some(primary), (hosts, _)) = (&subject.store, standby.host_facts().await) else { return None };
    let text = hosts.iter().map(what_it_is).collect::<Vec<_>>().join("; ");
    let fix = "repair it; until then, the primary answers every read";
    if !hosts.iter().any(|host| host.state.is_ok()) {
        return Some(Check::warning(NAME, text, fix));
    }
    let behind = match behind(primary, standby).await {
        Ok(behind) => behind,
        Err(error) => return Some(Check::warning(NAME, format!("{text}; it cannot be read: {error}"), fix)),
    };
    let is_standby = hosts.iter().any(|host| matches!(host.state, Ok(HostState::Standby)));
    Some(match behind {
        Behind::OtherDatabase => {
            let fix = "set AUTHKIT_SYNC_READ_DATABASE_URL to a streaming standby of the server of DATABASE_URL";
            Check::failure(NAME, format!("{text}; it is not a standby of the database of DATABASE_URL"), fix)
        }
        Behind::Seconds(seconds) if seconds > staleness.as_secs_f64() => {
            let text = format!("{text}; it is {seconds:.0} s behind, so the primary answers every read");
            Check::warning(
                NAME,
                text,
                "look at pg_stat_replication on the primary, and for long queries on the standby",
            )
        }
        Behind::Seconds(_) if !is_standby => {
            let fix =
                "set AUTHKIT_SYNC_READ_DATABASE_URL to a standby, with ?target_session_attrs=standby for several hosts";
            Check::warning(NAME, format!("{text}, so it takes no load off the primary"), fix)
        }
        Behind::Seconds(seconds) => Check::ok(NAME, format!("{text}; it is at most {seconds:.0} s behind")),
        Behind::Unknown => Check::not_checked(NAME, "no process of `serve` has used it in the last minute"),
    })
}

/// How far a server is behind the primary.
enum Behind {
    Seconds(f64),
    OtherDatabase,
    /// No process writes marks.
    Unknown,
}

async fn behind(primary: &Store, standby: &Store) -> Result<Behind, StoreError> {
    // In this order, because the primary goes on.
    let (shown, shown_age) = standby.mark().await?;
    let (written, written_age) = primary.mark().await?;
    Ok(if shown.position.epoch != written.position.epoch {
        Behind::OtherDatabase
    } else if written_age.as_secs() > 60 {
        Behind::Unknown
    } else if shown.number >= written.number {
        Behind::Seconds(written_age.as_secs_f64())
    } else {
        Behind::Seconds(shown_age.as_secs_f64())
    })
}
