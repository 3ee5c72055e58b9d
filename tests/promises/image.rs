//! The image: the files that the Dockerfile copies are enough to build it, and its content is enough to run.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::Secret;

use crate::support::binary::{BINARY, Served, clean, said};
use crate::support::database::TestDatabase;
use crate::support::events::{body, unique, user};
use crate::support::programs::required_program;
use crate::support::service::SECRET;

/// The command that the Dockerfile runs, and a command that reads the same manifest and builds only the smallest dependency:
/// everything else would take minutes. Cargo always refuses a manifest that names a target whose file is missing. The empty crate,
/// which is built before the sources are copied, must comply with the lint of the manifest that concerns it.
const BUILD: &str = "cargo build --release --locked --no-default-features --features cli";
const SMALL_BUILD: &str = "cargo build --offline --locked --package hex && \
    { [ -d migrations ] || rustc --deny missing_docs --emit metadata --out-dir target src/main.rs; }";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The instructions of the stage that builds, each on one line.
fn instructions() -> Vec<String> {
    let dockerfile = std::fs::read_to_string(root().join("deploy/Dockerfile")).unwrap().replace("\\\n", " ");
    let stage = dockerfile.split("\nFROM ").nth(1).unwrap();
    stage.lines().skip(1).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// The sources of a `COPY`.
fn sources(copy: &str) -> Vec<&str> {
    let words: Vec<&str> = copy.split_whitespace().collect();
    words[1..words.len() - 1].to_vec()
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    }
}

/// The directory after the instructions of the stage that builds.
struct Stage {
    folder: tempfile::TempDir,
    /// What was copied.
    copied: Vec<String>,
}

impl Stage {
    /// Copies what the Dockerfile copies, and runs its instructions, with another command instead of [`BUILD`].
    fn run(command: &str) -> Self {
        let ignored = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
        let stage = Self { folder: tempfile::tempdir().unwrap(), copied: Vec::new() };
        if let Some(cache) = std::env::var_os("IMAGE_CACHE").filter(|_| command == BUILD) {
            std::os::unix::fs::symlink(cache, stage.folder.path().join("target")).unwrap();
        }
        instructions().iter().fold(stage, |mut stage, instruction| {
            if instruction.starts_with("COPY ") {
                for name in sources(instruction) {
                    assert!(ignored.lines().any(|line| line == format!("!{name}")), ".dockerignore leaves {name} out");
                    copy(&root().join(name), &stage.folder.path().join(name));
                    stage.copied.push(name.to_owned());
                }
            } else if let Some(script) = instruction.strip_prefix("RUN ") {
                stage.run_script(script, command);
            }
            stage
        })
    }

    /// Runs a script. The last one of the Dockerfile needs the binary, which only the real command builds.
    fn run_script(&self, script: &str, command: &str) {
        if !script.contains(BUILD) && command != BUILD {
            return;
        }
        let image = self.image().display().to_string();
        let script = script.replace(BUILD, command).replace(" /image", &format!(" {image}"));
        let ran = Command::new("sh")
            .args(["-ec", &script])
            .current_dir(self.folder.path())
            .env_remove("CARGO_TARGET_DIR")
            .output()
            .unwrap();
        assert!(ran.status.success(), "{script}: {}: {}", ran.status, said(&ran));
    }

    /// The root directory of the image.
    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }
}

#[test]
fn the_dockerfile_copies_everything_that_the_manifest_names() {
    let builds = instructions().iter().filter(|instruction| instruction.contains(BUILD)).count();
    assert_eq!(builds, 2, "the dependencies, then the binary");
    let stage = Stage::run(SMALL_BUILD);
    for file in included(&root().join("src")) {
        let copied = stage.copied.iter().any(|name| file.starts_with(root().join(name)));
        assert!(copied, "the sources include {}, which the Dockerfile does not copy", file.display());
    }
}

/// The files that sources include outside tests.
pub(crate) fn included(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(included(&path));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let text =
            text.split("#[cfg(test)]").next().unwrap_or_default().replace("#[cfg(doctest)]\n#[doc = include_str!", "");
        for macro_name in ["include_str!(\"", "include_bytes!(\""] {
            for rest in text.split(macro_name).skip(1) {
                let name = rest.split('"').next().unwrap();
                found.push(folder.join(name).canonicalize().unwrap());
            }
        }
    }
    found
}

/// The root directory of the image, and how to run a program in it.
struct Image {
    root: PathBuf,
    bwrap: PathBuf,
    /// The directory with the socket of PostgreSQL.
    socket: Option<PathBuf>,
}

impl Image {
    fn new(root: PathBuf, database: &TestDatabase) -> Option<Self> {
        let bwrap = required_program("bwrap", "bubblewrap")?;
        let socket = database.options().get_socket().cloned();
        // Container engines mount file systems here. Then the file system is read-only.
        for folder in [Path::new("/proc"), Path::new("/dev")].into_iter().chain(socket.as_deref()) {
            std::fs::create_dir_all(root.join(folder.strip_prefix("/").unwrap())).unwrap();
        }
        // The user of the image must reach it: a temporary directory is open to its owner only.
        for folder in [&root, root.parent().unwrap()] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Some(Self { root, bwrap, socket })
    }

    /// A program as the user of the image, without any capability, in separate namespaces except for the network.
    fn command(&self, program: &[&str]) -> Command {
        let owner = self.socket.as_ref().map(|socket| std::fs::metadata(socket).unwrap().uid());
        let mut command = match owner {
            // Only the owner of PostgreSQL's socket may open it.
            Some(owner) if owner != 0 && rustix::process::geteuid().is_root() => {
                let mut command = Command::new("setpriv");
                let id = owner.to_string();
                command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(&self.bwrap);
                command
            }
            _ => Command::new(&self.bwrap),
        };
        command.args(["--unshare-user", "--uid", "65534", "--gid", "65534", "--unshare-pid", "--unshare-ipc"]);
        command.args(["--unshare-uts", "--cap-drop", "ALL", "--new-session", "--die-with-parent"]);
        command.arg("--ro-bind").arg(&self.root).args(["/", "--proc", "/proc", "--dev", "/dev"]);
        if let Some(socket) = &self.socket {
            command.arg("--bind").args([socket, socket]);
        }
        command.args(program);
        command
    }
}

const IN_IMAGE: &str = "/usr/local/bin/authkit-sync";

/// The binary of the tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_serves_without_privileges_and_without_a_shell_on_a_read_only_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let made = Command::new(root().join("deploy/image-root")).arg(BINARY).arg(&image).output().unwrap();
    assert!(made.status.success(), "{}", said(&made));
    serves_without_privileges(image).await;
}

/// The whole stage that builds, as a container engine runs it:
/// `cargo test --test promises the_image_that_the_dockerfile_builds -- --ignored --nocapture`. The directory in `IMAGE_CACHE`, if it is
/// set, keeps the dependencies between two runs, as the layers of an image do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "builds the release twice, which takes minutes"]
async fn the_image_that_the_dockerfile_builds_serves_without_privileges() {
    let began = std::time::Instant::now();
    let stage = Stage::run(BUILD);
    let size = std::fs::metadata(stage.image().join("usr/local/bin/authkit-sync")).unwrap().len();
    println!("built in {:?}; the binary has {size} bytes", began.elapsed());
    serves_without_privileges(stage.image()).await;
}

async fn serves_without_privileges(root: PathBuf) {
    let database = TestDatabase::new().await;
    let Some(image) = Image::new(root, &database) else { return };
    let shell = clean(image.command(&["/bin/sh", "-c", "exit 0"])).output().unwrap();
    assert_ne!(shell.status.code(), Some(0), "the image has a shell");
    let migrated = clean(image.command(&[IN_IMAGE, "migrate"])).env("DATABASE_URL", database.url()).output().unwrap();
    assert_eq!(migrated.status.code(), Some(0), "{}", said(&migrated));
    let served = Served::start_through(image.command(&[IN_IMAGE, "serve"]), &database.url(), &[]);
    let event = body(&unique("event"), "user.created", 0, &user(&unique("user"), "Ada", 0));
    let signature = Secret::new(SECRET).sign(Clock::system().now(), &event);
    let sent = http_client().unwrap().post(served.url("/workos/webhook")).header("workos-signature", signature);
    let answer = sent.body(event).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", served.log());
    // The command of HEALTHCHECK.
    let healthy = clean(image.command(&[IN_IMAGE, "healthcheck", "--ready"]))
        .env("AUTHKIT_SYNC_LISTEN", served.address.to_string())
        .output()
        .unwrap();
    assert_eq!(healthy.status.code(), Some(0), "{}", said(&healthy));
}
