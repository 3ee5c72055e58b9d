//! A database URL with one or several hosts, as libpq reads it.

use std::str::FromStr;

use authkit_sync::Hosts;
use proptest::prelude::*;
use sqlx::postgres::PgConnectOptions;

fn parsed(url: &str) -> Hosts {
    url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
}

fn refused(url: &str) -> String {
    url.parse::<Hosts>().err().unwrap_or_else(|| panic!("{url} was accepted")).to_string()
}

#[test]
fn every_host_has_its_port_and_everything_else_in_common() {
    let url = "postgres://app:p%40ss%2Cw@db-1,db-2:5433,[::1]:5434,10.0.0.4/crm?target_session_attrs=read-write&sslmode=disable";
    let hosts = parsed(url);
    assert_eq!(hosts.to_string(), "db-1:5432/crm or db-2:5433/crm or [::1]:5434/crm or 10.0.0.4:5432/crm (read-write)");
    for options in hosts.options() {
        assert_eq!(options.get_username(), "app");
        // `Debug` of the driver shows the password.
        assert!(format!("{options:?}").contains("p@ss,w"), "the password is decoded");
        assert!(matches!(options.get_ssl_mode(), sqlx::postgres::PgSslMode::Disable));
    }
    assert_eq!(hosts.options()[2].get_host(), "::1", "as the driver needs it");
    assert!(!format!("{hosts:?}").contains("p@ss"));
}

#[test]
fn hosts_and_ports_of_the_query_replace_those_in_front_of_the_path() {
    for (url, places) in [
        ("postgres://app@localhost:5433/crm?host=/run/a,/run/b", "/run/a:5433/crm or /run/b:5433/crm"),
        ("postgres://app@/crm?host=db-1,db-2&port=5433,5434", "db-1:5433/crm or db-2:5434/crm"),
        ("postgres:///crm?host=db-1%2Cdb-2&port=5433%2c5434", "db-1:5433/crm or db-2:5434/crm"),
        ("postgresql://%2Frun%2Fa,%2Frun%2Fb:5433/crm", "/run/a:5432/crm or /run/b:5433/crm"),
        ("postgres://db-1:5433,db-2/crm?port=6000", "db-1:6000/crm or db-2:6000/crm"),
        ("postgres://[::1]/crm", "[::1]:5432/crm"),
        ("postgres://app@h/crm?hostaddr=10.0.0.1,::1", "10.0.0.1:5432/crm or [::1]:5432/crm"),
        ("postgres://a@b@db-1,db-2/crm#part", "db-1:5432/crm or db-2:5432/crm"),
    ] {
        assert_eq!(parsed(url).to_string(), places, "{url}");
    }
}

#[test]
fn what_a_url_must_be_is_said_without_its_parts() {
    for (url, part) in [
        ("mysql://app:hunter2@secret-host/crm", "a URL like postgres://"),
        ("postgres://app:hunter2@secret-host:none/crm", "ports are numbers"),
        ("postgres://app:hunter2@secret-host:0/crm", "ports are numbers"),
        ("postgres://app:hunter2@secret-host,/crm", "without an empty host"),
        ("postgres://app:hunter2@secret-host,,b/crm", "without an empty host"),
        ("postgres://app:hunter2@::1:5432/crm", "in brackets"),
        ("postgres://app:hunter2@[::1/crm", "in brackets"),
        ("postgres://app:hunter2@a,b/crm?port=1,2,3", "one port for each host"),
        ("postgres://app:hunter2@a,b,c,d,e,f,g,h,i/crm", "at most 8 hosts"),
        (
            "postgres://app:hunter2@a,b/crm?target_session_attrs=prefer-standby",
            "standby for AUTHKIT_SYNC_READ_DATABASE_URL",
        ),
        ("postgres://app:hunter2@a,b/crm?target_session_attrs=", "standby for AUTHKIT_SYNC_READ_DATABASE_URL"),
        ("postgres://app:hunter2@a,b/crm?sslmode=secret-mode", "a URL like postgres://"),
    ] {
        let said = refused(url);
        assert!(said.contains(part) && !said.contains("hunter2") && !said.contains("secret-"), "{url}: {said}");
    }
}

/// The URL of each host alone, as the driver parses it.
fn alone(login: &str, host: &str, port: Option<u16>, path: &str) -> PgConnectOptions {
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    PgConnectOptions::from_str(&format!("postgres://{login}@{host}{port}{path}")).unwrap()
}

proptest! {
    #[test]
    fn a_list_of_hosts_is_what_the_driver_makes_of_each_host_alone(
        login in "[a-z]{1,8}(:([a-zA-Z0-9._~!,-]|%40|%2F|%2C){1,12})?",
        hosts in prop::collection::vec(("[a-z][a-z0-9-]{0,8}(\\.[a-z]{2,3})?", prop::option::of(1_u16..)), 1..=8),
        path in "(/[a-z]([a-z0-9_]|%20){0,8})?",
    ) {
        let list = |(host, port): &(String, Option<u16>)| match port {
            Some(port) => format!("{host}:{port}"),
            None => host.clone(),
        };
        let list: Vec<String> = hosts.iter().map(list).collect();
        let parsed = parsed(&format!("postgres://{login}@{}{path}", list.join(",")));
        let expected: Vec<String> =
            hosts.iter().map(|(host, port)| format!("{:?}", alone(&login, host, *port, &path))).collect();
        let found: Vec<String> = parsed.options().iter().map(|options| format!("{options:?}")).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn no_text_panics_or_is_repeated_in_an_error(tail in "\\PC{0,60}") {
        if let Err(error) = format!("postgres://hunter2{tail}").parse::<Hosts>() {
            prop_assert!(!error.to_string().contains("hunter2"));
        }
    }
}
