//! The systemd unit.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::support::binary::{BINARY, free_address, run, said};
use crate::support::programs::required_program;
use crate::support::service::{CLIENT_ID, SECRET};

fn unit() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/authkit-sync.service");
    std::fs::read_to_string(file).unwrap()
}

/// Writes a unit file for `systemd-analyze`, with the binary of the tests, because the command checks that the program exists.
fn written(unit: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("authkit-sync.service");
    std::fs::write(&file, unit.replace("/usr/local/bin/authkit-sync", BINARY)).unwrap();
    let file = file.display().to_string();
    (folder, file)
}

#[test]
fn the_unit_is_valid_and_its_exposure_is_below_2() {
    let Some(analyze) = required_program("systemd-analyze", "systemd") else { return };
    let (_folder, file) = written(&unit());
    let verified = Command::new(&analyze).args(["verify", "--man=no", &file]).output().unwrap();
    assert!(verified.status.success() && said(&verified).is_empty(), "{}", said(&verified));
    // The threshold is the exposure level multiplied by ten.
    let judged = Command::new(&analyze).args(["security", "--offline=true", "--threshold=19", &file]).output().unwrap();
    assert!(judged.status.success(), "{}", said(&judged));
}

/// Prints that the test is skipped. It needs no package, but privileges that not every machine has.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}, so the unit is not started");
}

/// The database is a port on which no process listens: the service then listens too, and answers 503.
#[test]
fn the_unit_starts_under_systemd_reads_its_secrets_from_files_and_stops() {
    if required_program("systemd-analyze", "systemd").is_none() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skip("this user may not boot systemd");
    }
    if !said(&run(&["serve", "--help"], &[])).contains("DATABASE_URL_FILE") {
        return skip("this release reads no secret from a file");
    }
    let configuration = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(configuration.path().join(name), text).unwrap();
    std::fs::create_dir(configuration.path().join("secrets")).unwrap();
    write("secrets/database-url", "postgres://nobody@127.0.0.1:9/none\n");
    write("secrets/workos-api-key", "sk_test_1\n");
    write("secrets/workos-webhook-secret", SECRET);
    let (public, ops) = (free_address(), free_address());
    write(
        "env",
        &format!(
            "WORKOS_CLIENT_ID={CLIENT_ID}\nAUTHKIT_SYNC_LISTEN={public}\nAUTHKIT_SYNC_OPS_LISTEN={ops}\n\
             WORKOS_API_HOSTNAME=127.0.0.1\nWORKOS_API_PORT=9\nWORKOS_API_HTTPS=false\n"
        ),
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/try-unit");
    let tried = Command::new(script).arg(BINARY).arg(configuration.path()).output().unwrap();
    if tried.status.code() == Some(77) {
        return skip("this machine does not permit the namespaces");
    }
    let text = said(&tried);
    assert_eq!(tried.status.code(), Some(0), "{text}");
    for expected in [
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "DATABASE_URL_FILE=/run/credentials/authkit-sync.service/database-url",
        "Result=success",
        "ExecMainStatus=0",
        "NRestarts=0",
    ] {
        assert!(text.contains(expected), "no {expected}: {text}");
    }
    assert!(!text.contains("Uid:\t0"), "{text}");
}
