//! Check of the standby that answers reads: whether it is a standby of this database, and how old its data is.

use super::hosts::describe_host;
use super::subject::Subject;
use crate::store::resolver::HostState;
use crate::store::{DatabaseFailure, Store, StoreError};
use crate::sync::health::Check;

const NAME: &str = "standby";

/// Returns the check. `None`: no standby is configured.
pub(super) async fn check(subject: &Subject<'_>) -> Option<Check> {
    let (standby, staleness) = subject.standby.as_ref()?;
    let (Some(primary), (hosts, _)) = (&subject.store, standby.host_facts().await) else { return None };
    let text = hosts.iter().map(describe_host).collect::<Vec<_>>().join("; ");
    let fix = "start or repair the standby; until then, the primary answers every read";
    if !hosts.iter().any(|host| host.state.is_ok()) {
        return Some(Check::warning(NAME, text, fix));
    }
    let age = match age(primary, standby).await {
        Ok(age) => age,
        Err(error) => {
            let why = error.failure().map_or_else(|| error.to_string(), DatabaseFailure::what);
            return Some(Check::warning(NAME, format!("{text}; the mark cannot be read there: {why}"), fix));
        }
    };
    let is_standby = hosts.iter().any(|host| matches!(host.state, Ok(HostState::Standby)));
    Some(match age {
        Age::Foreign if is_standby => {
            let text = format!("{text}; it has not replayed a mark of the current primary yet");
            Check::warning(NAME, text, "wait, and check that it replicates the server of DATABASE_URL")
        }
        Age::Foreign => {
            let fix = "set AUTHKIT_SYNC_READ_DATABASE_URL to a streaming standby of the server of DATABASE_URL";
            Check::failure(NAME, format!("{text}; it does not replicate the server of DATABASE_URL"), fix)
        }
        Age::Seconds(seconds) if seconds > staleness.as_secs_f64() => {
            let text = format!("{text}; its data is about {seconds:.1} s old, so the primary answers every read");
            let fix =
                "check pg_stat_replication on the primary, and find long queries in pg_stat_activity on the standby";
            Check::warning(NAME, text, fix)
        }
        Age::Seconds(_) if !is_standby => {
            let fix =
                "set AUTHKIT_SYNC_READ_DATABASE_URL to a standby, with ?target_session_attrs=standby for several hosts";
            Check::warning(NAME, format!("{text}, so the primary still answers every read"), fix)
        }
        Age::Seconds(seconds) => Check::ok(NAME, format!("{text}; its data is about {seconds:.1} s old")),
        Age::Unknown => Check::not_checked(NAME, "no process of `serve` has written a mark in the last minute"),
    })
}

/// How old the data of a server is.
enum Age {
    Seconds(f64),
    /// It has no mark of the primary's epoch.
    Foreign,
    /// No mark was written in the last minute.
    Unknown,
}

async fn age(primary: &Store, standby: &Store) -> Result<Age, StoreError> {
    // The standby first. Otherwise a mark that is written between the two reads could make it look current.
    let (replayed, written) = (standby.mark().await?.mark, primary.mark().await?);
    // Both times are of the primary's clock.
    let between = (written.mark.written_at.unix_micros() - replayed.written_at.unix_micros()) as f64 / 1e6;
    Ok(if written.age.as_secs() > 60 {
        Age::Unknown
    } else if replayed.position.epoch != written.mark.position.epoch {
        Age::Foreign
    } else {
        Age::Seconds(written.age.as_secs_f64() + between.max(0.0))
    })
}
