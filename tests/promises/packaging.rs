//! The parts of a release: the package of the crate, and the files of the folder `deploy`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use authkit_sync::config::SETTINGS;

use crate::guides::blocks;
use crate::image::included;
use crate::support::binary::said;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_package_contains_what_a_build_and_its_documentation_need_and_nothing_else() {
    if !root().join(".git").exists() {
        return;
    }
    let listed = Command::new(env!("CARGO"))
        .args(["package", "--list", "--offline", "--allow-dirty"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(listed.status.success(), "{}", said(&listed));
    let listed: BTreeSet<PathBuf> = String::from_utf8(listed.stdout).unwrap().lines().map(PathBuf::from).collect();
    let files = |folder: &str| std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    // The unit tests read the fixtures.
    let folders = [".sqlx", "migrations", "src/docs", "tests/fixtures"].into_iter().flat_map(files);
    let needed = folders.chain(included(&root().join("src")));
    let needed = needed.map(|file| file.strip_prefix(root()).unwrap().to_owned());
    for file in needed.chain(["README.md", "LICENSE", "CHANGELOG.md", "build.rs", "src/lib.rs"].map(PathBuf::from)) {
        assert!(listed.contains(&file), "the package lacks {}", file.display());
    }
    for file in listed {
        let foreign =
            [".ci", ".github", "benches", "deploy", "tests/promises"].iter().any(|folder| file.starts_with(folder));
        assert!(!foreign, "the package contains {}", file.display());
    }
}

/// The files below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { below(&path) } else { vec![path] }).collect()
}

#[test]
fn the_files_of_a_deployment_name_only_settings_that_exist() {
    let known: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.description().name).collect();
    let (mut named, secrets) = (0, root().join("deploy/secrets"));
    for file in below(&root().join("deploy")).into_iter().filter(|file| !file.starts_with(&secrets)) {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let words = text.split(|char: char| !char.is_ascii_uppercase() && !char.is_ascii_digit() && char != '_');
        let ours = words.filter(|word| {
            *word != "AUTHKIT_SYNC_"
                && ["AUTHKIT_SYNC_", "WORKOS_", "DATABASE_URL"].iter().any(|it| word.starts_with(it))
        });
        for word in ours {
            named += 1;
            let setting = word.strip_suffix("_FILE").unwrap_or(word);
            assert!(known.contains(setting), "{} names {word}, which is no setting", file.display());
        }
    }
    assert!(named > 50, "only {named}");
}

/// Runs `deploy/build-archive` with a small file as the binary, and returns the archive.
fn archive(out: &Path) -> Vec<u8> {
    let built = Command::new(root().join("deploy/build-archive"))
        .args(["--target", "any", "--binary", "LICENSE", "--out"])
        .arg(out)
        .env("SOURCE_DATE_EPOCH", "1790000000")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", said(&built));
    std::fs::read(root().join(String::from_utf8(built.stdout).unwrap().trim())).unwrap()
}

#[test]
fn the_archive_is_the_same_each_time_and_its_checksums_are_right() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert!(archive(first.path()) == archive(second.path()), "two archives of the same files differ");
    let name = format!("authkit-sync-{}-any", env!("CARGO_PKG_VERSION"));
    let listed = Command::new("tar")
        .args(["--utc", "--full-time", "-tvzf", &format!("{name}.tar.gz")])
        .current_dir(first.path())
        .output()
        .unwrap();
    for line in said(&listed).lines() {
        // The archive does not depend on the machine or the time: the owner is root, and the time is that of the source.
        assert!(line.contains(" 0/0 ") && line.contains(" 2026-09-21 14:13:20 "), "{line}");
    }
    let check = format!(
        "sha256sum --check {name}.tar.gz.sha256 && tar -xzf {name}.tar.gz && cd {name} && sha256sum --check SHA256SUMS && ls"
    );
    let checked = Command::new("sh").args(["-ec", &check]).current_dir(first.path()).output().unwrap();
    assert!(checked.status.success(), "{}", said(&checked));
    for file in ["authkit-sync", "authkit-sync.service", "env.example", "LICENSE", "README.md", "proxy", "SHA256SUMS"] {
        assert!(said(&checked).lines().any(|line| line == file), "no {file}: {}", said(&checked));
    }
    every_file_that_its_readme_names_is_in(&first.path().join(name));
}

/// The links of the README, and the paths in the steps for one machine.
fn every_file_that_its_readme_names_is_in(archive: &Path) {
    let readme = std::fs::read_to_string(archive.join("README.md")).unwrap();
    let links = readme.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    let links: Vec<&str> = links.filter(|link| !link.contains("://")).collect();
    let steps = readme.split("## One machine with systemd").nth(1).unwrap().split("\n## ").next().unwrap();
    let words = blocks(steps, "sh").flat_map(str::split_whitespace);
    let paths: Vec<&str> =
        words.filter(|word| ["proxy/", "prometheus/", "deploy/"].iter().any(|it| word.starts_with(it))).collect();
    assert!(!links.is_empty() && paths.len() >= 2, "{links:?} {paths:?}");
    for file in links.into_iter().chain(paths) {
        assert!(archive.join(file.split('#').next().unwrap()).exists(), "the archive lacks {file}");
    }
}
