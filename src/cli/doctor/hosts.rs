//! Check of the hosts of `DATABASE_URL`: what each one is, and whether exactly one accepts writes.

use crate::store::Store;
use crate::store::hosts::Wanted;
use crate::store::resolver::{HostFacts, HostState};
use crate::sync::health::Check;

const NAME: &str = "database_hosts";

pub(super) async fn check(store: &Store) -> Check {
    let (hosts, wanted) = store.host_facts().await;
    let text = hosts.iter().map(describe_host).collect::<Vec<_>>().join("; ");
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
        Check::failure(
            NAME,
            format!("no host accepts writes: {text}"),
            "start the primary, promote a standby, or set default_transaction_read_only to off on the primary",
        )
    } else if wanted == Wanted::Any {
        let fix = "add target_session_attrs=read-write to DATABASE_URL";
        Check::warning(NAME, format!("connections can use a standby, which accepts no writes: {text}"), fix)
    } else if answering < hosts.len() {
        Check::warning(NAME, text, "repair the host that does not answer, because the next failover may need it")
    } else {
        Check::ok(NAME, text)
    }
}

/// Describes the state of a host.
pub(super) fn describe_host(host: &HostFacts) -> String {
    let address = &host.address;
    match &host.state {
        Ok(HostState::Primary) => format!("{address} is the primary"),
        Ok(HostState::Standby) => format!("{address} is a standby"),
        Ok(HostState::ReadOnly) => format!("{address} is read-only, because default_transaction_read_only is on"),
        Err(error) => match error.failure() {
            Some(failure) => format!("{address} cannot be used: {}", failure.what()),
            None => format!("{address} cannot be used: {error}"),
        },
    }
}
