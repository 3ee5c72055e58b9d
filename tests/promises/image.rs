//! The image: what the Dockerfile copies is enough to build it.

use std::path::Path;
use std::process::Command;

/// The sources of every `COPY` from the build context, in the stage that builds.
fn copied(dockerfile: &str) -> Vec<&str> {
    let lines = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY "));
    let from_context = lines.filter(|line| !line.contains("--from="));
    from_context.flat_map(|line| line.split_whitespace().rev().skip(1)).collect()
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        std::fs::copy(from, to).unwrap();
    }
}

/// Cargo refuses a manifest that names a target whose file is missing, whatever is to be built, so the smallest dependency
/// is built: everything else would take minutes.
#[test]
fn the_dockerfile_copies_everything_that_the_manifest_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dockerfile = std::fs::read_to_string(root.join("deploy/Dockerfile")).unwrap();
    let ignored = std::fs::read_to_string(root.join(".dockerignore")).unwrap();
    let context = tempfile::tempdir().unwrap();
    let copied = copied(&dockerfile);
    assert!(copied.contains(&"Cargo.toml") && copied.contains(&"src"), "{copied:?}");
    for name in &copied {
        assert!(!ignored.lines().any(|line| line.trim_matches('/') == *name), "{name} is in .dockerignore");
        copy(&root.join(name), &context.path().join(name));
    }
    let build = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--locked", "--package", "hex"])
        .current_dir(context.path())
        .env("CARGO_TARGET_DIR", context.path().join("target"))
        .output()
        .unwrap();
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    for file in included(&root.join("src")) {
        let copied = copied.iter().any(|name| file.starts_with(root.join(name)));
        assert!(copied, "the sources include {}, which the Dockerfile does not copy", file.display());
    }
}

/// The files that sources include outside tests.
fn included(folder: &Path) -> Vec<std::path::PathBuf> {
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
