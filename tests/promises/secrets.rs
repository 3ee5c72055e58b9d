//! Secrets in files: an error describes the problem of a file without its content.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use authkit_sync::config::SETTINGS;

use crate::support::binary::{BINARY, binary, clean, run, said};

/// A value that no output may contain.
const HIDDEN: &str = "hunter2";

/// The output of `webhook sign`, which needs only the webhook secret, with the secret in a file.
fn sign_with(path: &Path, more: &[(&str, &str)]) -> (Option<i32>, String) {
    let environment = [&[("WORKOS_WEBHOOK_SECRET_FILE", path.to_str().unwrap())], more].concat();
    let output = run(&["webhook", "sign"], &environment);
    let text = said(&output);
    assert!(!text.contains(HIDDEN), "{text}");
    (output.status.code(), text)
}

fn write(path: &Path, content: impl AsRef<[u8]>) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn each_secret_and_no_other_setting_can_be_in_a_file() {
    for setting in SETTINGS.iter().map(|setting| setting.description()) {
        let Some(variable) = setting.file_variable() else {
            assert!(!setting.is_secret, "{}", setting.name);
            continue;
        };
        assert_eq!(variable, format!("{}_FILE", setting.name));
        let output = run(&["serve"], &[(&variable, "/no/such/file"), ("AUTHKIT_SYNC_ACTION_URL", "https://a.example")]);
        let says = format!("{variable} cannot be used: there is no file /no/such/file; create it, or correct the path");
        assert!(said(&output).contains(&says), "{}", said(&output));
        assert_eq!(output.status.code(), Some(78));
    }
}

#[test]
fn a_file_that_cannot_be_used_is_an_error_that_says_what_to_do_and_never_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let fails = |content: &[u8], says: &str| {
        write(&file, content);
        let (code, text) = sign_with(&file, &[]);
        assert_eq!(code, Some(78), "{text}");
        assert!(text.contains("WORKOS_WEBHOOK_SECRET") && text.contains(file.to_str().unwrap()), "{text}");
        assert!(text.contains(says), "{text} does not say {says}");
    };
    fails(b" \n", "is empty; write the secret into it");
    fails(b"\xff\xfehunter2", "is not UTF-8 text");
    fails(b"hunter2\nhunter2\n", "has more than one line");
    fails(b"sk_hunter2\n", "is malformed: it must be the signing secret of the endpoint");
    fails(&vec![b'x'; 70_000], "is larger than 64 KiB");
    let (code, text) = sign_with(folder.path(), &[]);
    assert!(code == Some(78) && text.contains("is a directory"), "{text}");
    let (code, text) = sign_with(Path::new("/dev/zero"), &[]);
    assert!(code == Some(78) && text.contains("is not a regular file"), "{text}");
    write(&file, HIDDEN);
    let (code, text) = sign_with(&file, &[("WORKOS_WEBHOOK_SECRET", HIDDEN)]);
    let says = "WORKOS_WEBHOOK_SECRET and WORKOS_WEBHOOK_SECRET_FILE are both set. Remove one of them";
    assert!(code == Some(78) && text.contains(says), "{text}");
}

#[test]
fn a_file_that_this_user_may_not_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (file, program) = (folder.path().join("secret"), folder.path().join("authkit-sync"));
    write(&file, HIDDEN);
    std::fs::set_permissions(&file, Permissions::from_mode(0o000)).unwrap();
    // Root may read every file, so it runs a copy of the binary as nobody, who can reach only this folder.
    let mut command = binary();
    if rustix::process::geteuid().is_root() {
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        std::fs::copy(BINARY, &program).unwrap();
        command = clean(Command::new(&program));
        command.uid(65_534).gid(65_534);
    }
    let output = command.args(["webhook", "sign"]).env("WORKOS_WEBHOOK_SECRET_FILE", &file).output().unwrap();
    let (code, text) = (output.status.code(), said(&output));
    assert!(code == Some(78) && text.contains("do not let this process read it"), "{text}");
}

#[test]
fn space_around_the_secret_is_ignored_and_a_file_that_everybody_can_read_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    for (content, mode, warns) in
        [("hunter2\n", 0o600, false), ("\u{feff} hunter2\r\n", 0o640, false), ("hunter2", 0o644, true)]
    {
        write(&file, content);
        std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        let (code, text) = sign_with(&file, &[]);
        assert_eq!(code, Some(0), "{text}");
        assert_eq!(text.contains("every user of this machine can read the file of a secret"), warns, "{text}");
    }
}
