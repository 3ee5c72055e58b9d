//! Checks the structure of the code: a file imports only from its own layer or a lower one, and no two files import each other.

use std::collections::{BTreeMap, BTreeSet};
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

/// The lines of a file without its tests and comments.
fn code(source: &str) -> impl Iterator<Item = &str> {
    let code = source.split("#[cfg(test)]").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// The first segments after `crate::` of a file's imports and paths.
fn imports(source: &str) -> impl Iterator<Item = &str> {
    code(source)
        .flat_map(|line| line.split("crate::").skip(1))
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
        // The root re-exports from every layer, and the guides contain no code.
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
        let code: String = code(&source).collect();
        if name.starts_with("domain") {
            assert!(!code.contains("async ") && !code.contains("sqlx") && !code.contains("tokio"), "{name} does I/O");
        }
        if !name.starts_with("store") && !name.starts_with("dev") {
            assert!(!code.contains("sqlx::query"), "{name} holds SQL");
        }
    }
}

#[test]
fn every_file_is_a_module() {
    for (root, parents) in [("src", &["lib.rs", "main.rs"][..]), ("tests/promises", &["main.rs"])] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
        let mut files = Vec::new();
        sources(&root, &mut files);
        assert!(files.len() > 50);
        for file in files.iter().filter(|file| !parents.iter().any(|parent| root.join(parent) == **file)) {
            let folder = file.parent().unwrap();
            let declaring = if folder == root {
                parents.iter().map(|parent| root.join(parent)).collect()
            } else {
                vec![folder.with_extension("rs")]
            };
            let declaration = format!("mod {};", file.file_stem().unwrap().to_str().unwrap());
            let is_declared = declaring.iter().any(|parent| {
                std::fs::read_to_string(parent).unwrap().lines().any(|line| line.trim_end().ends_with(&declaration))
            });
            assert!(is_declared, "{} is not compiled: no `{declaration}` in {declaring:?}", file.display());
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

/// A module, as the names of its path without `crate`.
type Module = Vec<String>;

/// Splits `a::{b, c::{d, e}}` into `a::b`, `a::c::d` and `a::c::e`.
fn leaves(tree: &str) -> Vec<String> {
    let Some((prefix, rest)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let inner = rest.rsplit_once('}').unwrap().0;
    let mut depth = 0;
    let parts = inner.split(|char| {
        depth += i32::from(char == '{') - i32::from(char == '}');
        char == ',' && depth == 0
    });
    let parts = parts.filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| leaves(part).into_iter().map(|leaf| format!("{}{leaf}", prefix.trim()))).collect()
}

/// The items of this crate that a source names: absolute paths, each with its local name if it is imported.
fn names(module: &[String], source: &str, is_module: impl Fn(&[String]) -> bool) -> Vec<(Module, Option<String>)> {
    let code: String = code(source).flat_map(|line| [line, "\n"]).collect();
    let absolute = |path: &str| {
        let segments: Vec<&str> = path.split("::").filter(|segment| *segment != "self").collect();
        let supers = segments.iter().take_while(|segment| **segment == "super").count();
        let child = [module, &[segments[0].to_owned()]].concat();
        let base = match segments[0] {
            "crate" => &[],
            "super" => &module[..module.len() - supers],
            _ if is_module(&child) => module,
            _ => return None,
        };
        let rest = segments.into_iter().skip(supers.max(usize::from(path.starts_with("crate"))));
        Some(base.iter().cloned().chain(rest.map(str::to_owned)).collect::<Module>())
    };
    let mut found = Vec::new();
    for statement in code.split(';') {
        let is_use = |line: &&str| ["use ", "pub use ", "pub(crate) use "].iter().any(|start| line.starts_with(start));
        let Some(line) = statement.lines().map(str::trim_start).find(is_use) else { continue };
        let (_, tree) = statement.split_once(line).unwrap();
        let tree = [line, tree].concat();
        for leaf in leaves(tree.split_once("use ").unwrap().1) {
            let (path, alias) = leaf.split_once(" as ").unwrap_or((&leaf, ""));
            let Some(path) = absolute(path.trim()) else { continue };
            let name = if alias.is_empty() { path.last().cloned() } else { Some(alias.trim().to_owned()) };
            found.push((path, name));
        }
    }
    let is_path = |char: char| char.is_ascii_alphanumeric() || char == '_' || char == ':';
    let words = code.split(|char| !is_path(char)).map(|word| word.trim_end_matches(':'));
    let inline = words.filter(|word| word.starts_with("crate::") || word.starts_with("super::"));
    found.extend(inline.filter_map(absolute).map(|path| (path, None)));
    found
}

/// The file that defines what a path names, found through imports and re-exports.
fn definition(path: &[String], named: &BTreeMap<Module, Vec<(Module, Option<String>)>>) -> Module {
    let length = (0..=path.len()).rev().find(|length| named.contains_key(&path[..*length])).unwrap();
    let (module, rest) = path.split_at(length);
    let exported = rest.first().and_then(|name| {
        let mut imports = named[module].iter().filter(|(_, known)| known.as_ref() == Some(name));
        imports.find(|(target, _)| !target.starts_with(path))
    });
    exported.map_or_else(|| module.to_vec(), |(target, _)| definition(target, named))
}

/// The imports between the files of a source tree. Imports between a file and the folder of the same name do not count.
fn arrows(files: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let is_module = |path: &[String]| files.contains_key(path);
    let named = files.iter().map(|(module, source)| (module.clone(), names(module, source, is_module))).collect();
    let mut arrows = BTreeMap::new();
    for module in files.keys() {
        let targets = named_files(module, &named);
        arrows.insert(module.clone(), targets);
    }
    arrows
}

fn named_files(module: &Module, named: &BTreeMap<Module, Vec<(Module, Option<String>)>>) -> BTreeSet<Module> {
    let targets = named[module].iter().map(|(path, _)| definition(path, named));
    targets.filter(|target| !target.starts_with(module) && !module.starts_with(target)).collect()
}

/// The files that import each other, directly or through others, one set per circle.
fn circles(arrows: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeSet<BTreeSet<String>> {
    let reached = |from: &Module| {
        let (mut reached, mut left) = (BTreeSet::new(), vec![from]);
        while let Some(module) = left.pop() {
            left.extend(arrows[module].iter().filter(|target| reached.insert((*target).clone())));
        }
        reached
    };
    let reached: BTreeMap<&Module, _> = arrows.keys().map(|module| (module, reached(module))).collect();
    let circle = |module: &&Module| {
        let mutual = reached[module].iter().filter(|other| reached[other].contains(*module));
        mutual.map(|module| module.join("/")).collect::<BTreeSet<String>>()
    };
    arrows.keys().map(|module| circle(&module)).filter(|circle| !circle.is_empty()).collect()
}

#[test]
fn no_two_files_import_each_other() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    let file = |path: &PathBuf| {
        let name = path.strip_prefix(&src).unwrap().with_extension("");
        let module: Module = name.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        (if module == ["lib"] { Vec::new() } else { module }, std::fs::read_to_string(path).unwrap())
    };
    let arrows = arrows(&paths.iter().map(file).collect());
    let seen: usize = arrows.values().map(BTreeSet::len).sum();
    assert!(seen > 200, "only {seen} imports between files were found; this test no longer reads them");
    assert_eq!(circles(&arrows), BTreeSet::new());
}

#[test]
fn a_circle_is_noticed_also_through_a_re_export() {
    let files = [
        ("store", "mod a; mod b; mod c;\npub use a::{A, other};"),
        ("store/a", "use super::b::{self, Inner as B};\nuse std::fmt;"),
        ("store/b", "fn f() -> super::super::http::Reply {}"),
        ("http", "use crate::{sync, store::A};"),
        ("sync", "// use crate::http::Reply;\n#[cfg(test)]\nuse crate::http::Reply;"),
        ("store/c", "use super::Store;"),
    ];
    let module = |name: &str| name.split('/').map(str::to_owned).collect();
    let circle = |files: &[(&str, &str)]| {
        circles(&arrows(&files.iter().map(|(name, source)| (module(name), (*source).to_owned())).collect()))
    };
    let with_root = [&files[..], &[("", "")]].concat();
    let found = circle(&with_root);
    assert_eq!(found, [["http", "store/a", "store/b"].map(str::to_owned).into()].into());
    let without = with_root.iter().copied().filter(|(name, _)| *name != "http").chain([("http", "")]);
    assert!(circle(&without.collect::<Vec<_>>()).is_empty());
}
