//! The hosts of a database URL. As in a URL of libpq there can be several, and `target_session_attrs` says which one to use.
//!
//! The driver accepts one host per URL. So a URL with several hosts becomes several URLs with one host each, which the driver parses.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

use super::place::address;

/// Maximum number of hosts. All of them are tried within the timeout of one request.
const MAX_HOSTS: usize = 8;

/// What a URL must be.
const URL: &str =
    "a URL like postgres://user:password@host:5432/database (percent-encode special characters of the password)";

/// What a host must be before connections use it: `target_session_attrs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// `any`: it accepts connections.
    #[default]
    Any,
    /// `read-write`: it accepts writes.
    ReadWrite,
    /// `primary`: it is not a standby.
    Primary,
    /// `standby`: it is a standby.
    Standby,
}

/// The hosts of a database in the order in which they are tried, with the login of each. Parse it from a URL, or convert the options of
/// a single host.
#[derive(Clone)]
pub struct Hosts {
    options: Vec<PgConnectOptions>,
    wanted: Wanted,
}

impl From<PgConnectOptions> for Hosts {
    fn from(options: PgConnectOptions) -> Self {
        Self { options: vec![options], wanted: Wanted::Any }
    }
}

/// Shows no password.
impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hosts({self})")
    }
}

/// Shows hosts, ports, name of the database and what is wanted.
impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.options.iter().map(address).collect();
        f.write_str(&addresses.join(" or "))?;
        f.write_str(match self.wanted {
            Wanted::Any => "",
            Wanted::ReadWrite => " (read-write)",
            Wanted::Primary => " (primary)",
            Wanted::Standby => " (standby)",
        })
    }
}

/// What a URL must be: "it must be …". It never contains a part of the URL.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HostsError(pub Cow<'static, str>);

impl HostsError {
    fn new(wanted: impl Into<Cow<'static, str>>) -> Self {
        Self(wanted.into())
    }
}

impl Hosts {
    pub(super) fn new(options: Vec<PgConnectOptions>, wanted: Wanted) -> Self {
        Self { options, wanted }
    }

    /// Returns the options of each host. There is at least one.
    #[must_use]
    pub fn options(&self) -> &[PgConnectOptions] {
        &self.options
    }

    /// Returns what a host must be.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Changes the options of each host.
    #[must_use]
    pub fn map(self, change: impl Fn(PgConnectOptions) -> PgConnectOptions) -> Self {
        Self { options: self.options.into_iter().map(change).collect(), ..self }
    }
}

impl FromStr for Hosts {
    type Err = HostsError;

    /// Parses `postgres://user:password@host1:5432,host2:5433/database?target_session_attrs=read-write`.
    ///
    /// A host is a name, an IPv4 address, an IPv6 address in brackets, or the percent-encoded directory of a Unix socket. `host`,
    /// `hostaddr` and `port` in the query are lists, too, and replace what is in front of the path. One port is that of every host.
    /// Everything else is common to all hosts.
    fn from_str(text: &str) -> Result<Self, HostsError> {
        let url = Url::split(text).ok_or(HostsError::new(URL))?;
        let wanted = url.wanted()?;
        let options = url.urls()?.into_iter().map(|url| PgConnectOptions::from_str(&url));
        let options = options.collect::<Result<_, _>>().map_err(|_| HostsError::new(URL))?;
        Ok(Self { options, wanted })
    }
}

/// The parts of a URL. All are percent-encoded.
struct Url<'a> {
    scheme: &'a str,
    /// User and password with the `@`. Can be empty.
    login: &'a str,
    hosts: &'a str,
    path: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

/// A host as the value of a parameter, and its port.
type HostAndPort<'a> = (Cow<'a, str>, Option<u16>);

impl<'a> Url<'a> {
    fn split(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        if scheme != "postgres" && scheme != "postgresql" {
            return None;
        }
        let rest = rest.split('#').next()?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (login, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let parameters = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
        Some(Self { scheme, login, hosts, path, parameters })
    }

    /// Returns the last value of one of these parameters.
    fn parameter(&self, names: &[&str]) -> Option<&'a str> {
        self.parameters.iter().rev().find(|(name, _)| names.contains(name)).map(|(_, value)| *value)
    }

    fn wanted(&self) -> Result<Wanted, HostsError> {
        match self.parameter(&["target_session_attrs"]) {
            None | Some("any") => Ok(Wanted::Any),
            Some("read-write") => Ok(Wanted::ReadWrite),
            Some("primary") => Ok(Wanted::Primary),
            Some("standby") => Ok(Wanted::Standby),
            Some(_) => Err(HostsError::new(
                "a URL whose target_session_attrs is read-write, primary or any, or standby for AUTHKIT_SYNC_READ_DATABASE_URL",
            )),
        }
    }

    /// Returns a URL for each host.
    fn urls(&self) -> Result<Vec<String>, HostsError> {
        let hosts = self.places()?;
        let common: String = self
            .parameters
            .iter()
            .filter(|(name, _)| !["host", "hostaddr", "port", "target_session_attrs"].contains(name))
            .map(|(name, value)| format!("{name}={value}&"))
            .collect();
        let (scheme, login, path) = (self.scheme, self.login, self.path);
        let url = |(host, port): &HostAndPort<'_>| {
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            if host.is_empty() {
                // The driver's own default: the host of the variable PGHOST, or the directory of the local server.
                return format!("{scheme}://{login}{port}{path}?{common}");
            }
            format!("{scheme}://{login}localhost{port}{path}?{common}host={host}")
        };
        Ok(hosts.iter().map(url).collect())
    }

    /// Returns host and port of each host.
    fn places(&self) -> Result<Vec<HostAndPort<'a>>, HostsError> {
        let specs: Vec<(&str, &str)> = items(self.hosts).into_iter().map(split_port).collect::<Result<_, _>>()?;
        let (mut hosts, mut ports): (Vec<_>, Vec<_>) = specs.into_iter().unzip();
        if let Some(list) = self.parameter(&["host", "hostaddr"]) {
            hosts = items(list);
        }
        if let Some(list) = self.parameter(&["port"]) {
            ports = items(list);
        }
        let count = hosts.len();
        if count > MAX_HOSTS {
            return Err(HostsError::new(format!("a URL with at most {MAX_HOSTS} hosts")));
        }
        if count > 1 && hosts.iter().any(|host| host.is_empty()) {
            return Err(HostsError::new("a URL without an empty host in its list; remove the extra comma"));
        }
        if ports.len() != 1 && ports.len() != count {
            return Err(HostsError::new("a URL with one port for all hosts, or one port for each host"));
        }
        let ports = ports.iter().map(|port| parse_port(port)).cycle();
        let places = hosts.into_iter().zip(ports);
        places.map(|(host, port)| Ok((in_query(host), port?))).collect()
    }
}

/// Returns the items of a list. Some clients encode its commas.
fn items(list: &str) -> Vec<&str> {
    list.split(',').flat_map(|part| part.split("%2C")).flat_map(|part| part.split("%2c")).collect()
}

/// Splits a host with an optional port.
fn split_port(spec: &str) -> Result<(&str, &str), HostsError> {
    let end = if spec.starts_with('[') {
        spec.find(']').map(|at| at + 1)
    } else {
        Some(spec.find(':').unwrap_or(spec.len()))
    };
    let (host, port) = spec.split_at(end.ok_or(HostsError::new("a URL with each IPv6 address in brackets"))?);
    match port.strip_prefix(':') {
        Some(port) if !port.contains(':') => Ok((host, port)),
        None if port.is_empty() => Ok((host, port)),
        _ => Err(HostsError::new("a URL with each IPv6 address in brackets, for example [::1]:5432")),
    }
}

fn parse_port(port: &str) -> Result<Option<u16>, HostsError> {
    if port.is_empty() {
        return Ok(None);
    }
    let parsed = port.parse().ok().filter(|port| *port > 0);
    parsed.map(Some).ok_or(HostsError::new("a URL whose ports are numbers from 1 to 65535"))
}

/// Returns a host as the value of a parameter. The driver takes an IPv6 address without its brackets.
fn in_query(host: &str) -> Cow<'_, str> {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.contains(['+', '&']) { host.replace('+', "%2B").replace('&', "%26").into() } else { host.into() }
}
