//! The shape holds: a file imports only from its own layer or one below it.

use std::path::{Path, PathBuf};

/// Top to bottom; a name stands for `src/<name>.rs` and everything in `src/<name>/`.
const LAYERS: [&[&str]; 6] = [
    &["main", "cli", "config", "telemetry", "dev"],
    &["authkit", "supervise"],
    &["http"],
    &["sync", "lookup", "actions", "action_endpoint"],
    &["store", "workos", "tokens"],
    &["domain", "metrics"],
];

fn layer(module: &str) -> usize {
    LAYERS.iter().position(|layer| layer.contains(&module)).unwrap_or_else(|| {
        panic!("src/{module} belongs to no layer: add it to the table here and in src/docs/architecture.md")
    })
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The first segments after `crate::` of a file's imports and paths, tests left out.
fn imports(source: &str) -> impl Iterator<Item = &str> {
    let code = source.split("#[cfg(test)]").next().unwrap();
    let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| rest.split(|char: char| !char.is_ascii_alphanumeric() && char != '_').next().unwrap())
}

#[test]
fn imports_point_downward() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut seen = 0;
    for file in files {
        let module = file.strip_prefix(&src).unwrap().components().next().unwrap();
        let module = Path::new(module.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned();
        // The root re-exports from everywhere; the guides hold no code.
        if module == "lib" || module == "docs" {
            continue;
        }
        let own = layer(&module);
        for import in imports(&std::fs::read_to_string(&file).unwrap()) {
            // `AuthKit` is re-exported at the root.
            let import = if import == "AuthKit" { "authkit" } else { import };
            assert!(layer(import) >= own, "{} imports {import} from a layer above its own", file.display());
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} imports were found; this test no longer reads them");
}

#[test]
fn the_core_does_no_io_and_sql_is_in_the_store_alone() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for file in files {
        let name = file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        let source = std::fs::read_to_string(&file).unwrap();
        let code = source.split("#[cfg(test)]").next().unwrap();
        let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        if name.starts_with("domain") {
            assert!(!code.contains("async ") && !code.contains("sqlx") && !code.contains("tokio"), "{name} does I/O");
        }
        if !name.starts_with("store") && !name.starts_with("dev") {
            assert!(!code.contains("sqlx::query"), "{name} holds SQL");
        }
    }
}

/// The calls of a method in a source, from its opening to its closing bracket.
fn calls<'a>(source: &'a str, method: &str) -> Vec<&'a str> {
    let call = |rest: &'a str| {
        let mut depth = 1;
        let end = rest.find(|char| {
            depth += match char {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            depth == 0
        });
        rest.split_at(end.unwrap()).0
    };
    source.split(method).skip(1).map(call).collect()
}

#[test]
fn no_lookup_writes_so_that_every_write_goes_through_the_transaction_runner() {
    let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
    let mut files = Vec::new();
    sources(&store, &mut files);
    let mut seen = 0;
    for file in files {
        let source = std::fs::read_to_string(&file).unwrap();
        for method in [".lookup(", ".ask("] {
            for call in calls(&source, method) {
                let words: Vec<&str> = call.split_whitespace().collect();
                let writes = |word: &&str| matches!(*word, "insert" | "update" | "delete" | "truncate" | "merge");
                // `for no key update` and `skip locked` lock rows, which is a write to the server too.
                assert!(!words.iter().any(writes), "{} writes in a lookup: {call}", file.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "only {seen} lookups were found; this test no longer reads them");
}
