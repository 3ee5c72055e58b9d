//! Check of the hosts of `DATABASE_URL`: what each one is, and whether exactly one accepts writes.

use crate::store::Store;
use crate::store::hosts::Wanted;
use crate::store::resolver::{HostFacts, HostState};
use crate::sync::health::Check;

const NAME: &str = "database_hosts";

pub(super) async fn check(store: &Store) -> Check {
    let (hosts, wanted) = store.host_facts().await;
    let text = hosts.iter().map(what_it_is).collect::<Vec<_>>().join("; ");
    let count = |is: fn(&HostState) -> bool| hosts.iter().filter(|host| host.state.as_ref().is_ok_and(is)).count();
    let (answering, writable) = (count(|_| true), count(|state| *state == HostState::Primary));
    if hosts.len() == 1 {
        // The check of the database says what is wrong with it.
        return if answering == 1 {
            Check::ok(NAME, text)
        } else {
            Check::not_checked(NAME, "the database is unreachable")
        };
    }
    if writable > 1 {
        let fix = "stop the old primary at once, because it can accept writes that will be lost; then set it up as a standby again";
        Check::failure(NAME, format!("{writable} hosts accept writes: {text}"), fix)
    } else if writable == 0 {
        Check::failure(NAME, format!("no host accepts writes: {text}"), "start the primary, or promote a standby")
    } else if wanted == Wanted::Any {
        let fix = "add target_session_attrs=read-write to DATABASE_URL";
        Check::warning(NAME, format!("connections can lead to a standby, which accepts no writes: {text}"), fix)
    } else if answering < hosts.len() {
        Check::warning(NAME, text, "repair the host that does not answer, because the next failover may need it")
    } else {
        Check::ok(NAME, text)
    }
}

/// Returns what a host is, in words.
pub(super) fn what_it_is(host: &HostFacts) -> String {
    let address = &host.address;
    match &host.state {
        Ok(HostState::Primary) => format!("{address} is the primary"),
        Ok(HostState::Standby) => format!("{address} is a standby"),
        Ok(HostState::ReadOnly) => format!("{address} is read-only, because default_transaction_read_only is on"),
        Err(error) => match error.failure() {
            Some(failure) => format!("{address} is unreachable: {}", failure.what()),
            None => format!("{address} is unreachable: {error}"),
        },
    }
}
