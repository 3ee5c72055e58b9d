//! The systemd unit.

use std::path::Path;
use std::process::Command;

use crate::support::binary::{BINARY, said};
use crate::support::programs::required_program;

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
    // The threshold is ten times the exposure level.
    let judged = Command::new(&analyze).args(["security", "--offline=true", "--threshold=19", &file]).output().unwrap();
    assert!(judged.status.success(), "{}", said(&judged));
}
