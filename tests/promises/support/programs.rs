//! Programs that some tests start and that are not part of this project.

use std::io::Write;
use std::path::PathBuf;

/// Returns the path of a program, or prints that the test is skipped. In CI a missing program is a failure, because `.ci/run`
/// installs all of them.
pub(crate) fn required_program(name: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|file| file.is_file());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{name} is missing, and .ci/run installs it");
        // Not println!, whose output the test runner hides when a test passes.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {name} is not installed (apt-get install {package})");
    }
    found
}
