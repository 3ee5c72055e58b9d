//! A file that holds the value of a secret setting, as Kubernetes, Docker and systemd provide it.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Maximum size of the file, in bytes. A secret is much smaller, so a larger file is not a file of a secret.
const SIZE_LIMIT: u64 = 64 * 1024;

/// The permission of every user to read a file.
const READABLE_BY_ALL: u32 = 0o004;

/// A file with the value of a secret. It is read at the first use, so a command reads only the files that it uses.
#[derive(Debug)]
pub(super) struct SecretFile {
    path: PathBuf,
    value: OnceLock<Result<String, String>>,
}

impl SecretFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, value: OnceLock::new() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the value without the spaces and line breaks around it. The error says what is wrong with the file and what to do,
    /// and contains no part of the file.
    pub(super) fn value(&self) -> Result<&str, &str> {
        self.value.get_or_init(|| read(&self.path)).as_deref().map_err(String::as_str)
    }

    /// Returns whether every user of this machine may read the file.
    pub(super) fn is_readable_by_all(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|file| file.permissions().mode() & READABLE_BY_ALL != 0)
    }
}

fn read(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => format!("there is no file {shown}; create it, or correct the path"),
        ErrorKind::PermissionDenied => {
            format!("the permissions of {shown} do not let this process read it; let the user of this process read it")
        }
        kind => format!("{shown} cannot be read: {kind}; check the file"),
    };
    // Checked before the file is opened, because opening a pipe waits for its writer.
    check(&std::fs::metadata(path).map_err(unreadable)?)
        .map_err(|why| format!("{shown} {why}; name a file that contains only the secret"))?;
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(SIZE_LIMIT).read_to_end(&mut bytes)).map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{shown} is not UTF-8 text; write the secret as text"))?;
    // Some editors begin a file with a byte order mark.
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() {
        Err(format!("{shown} is empty; write the secret into it"))
    } else if text.contains(char::is_control) {
        Err(format!("{shown} has more than one line; write the value on one line"))
    } else {
        Ok(text.to_owned())
    }
}

fn check(file: &Metadata) -> Result<(), &'static str> {
    if file.is_dir() {
        Err("is a directory")
    } else if !file.is_file() {
        Err("is not a regular file")
    } else if file.len() > SIZE_LIMIT {
        Err("is larger than 64 KiB")
    } else {
        Ok(())
    }
}
