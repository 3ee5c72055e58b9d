//! Checks the documents against the program: header names, commands, and the tests of the promises. [`super::guides`] checks
//! settings, metrics, routes, codes, files and examples.

use std::path::{Path, PathBuf};

use authkit_sync::action_endpoint;
use authkit_sync::authkit::HEADERS;
use authkit_sync::workos::signature;

/// Every guide, and every source file: doc comments, help and error messages name commands and headers too.
pub(crate) fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![(root.to_owned(), false)];
    folders.extend(["deploy", "examples", "migrations", "src"].map(|name| (root.join(name), true)));
    while let Some((folder, deep)) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() && deep {
                folders.push((path, true));
            } else if path.extension().is_some_and(|it| it == "md" || it == "rs") {
                found.push((path.clone(), std::fs::read_to_string(path).unwrap()));
            }
        }
    }
    found
}

/// Names of headers that are ours or WorkOS's: `AuthKit-…`, `WorkOS-…`, `X-…`.
fn header_names(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '-');
    words.filter(|word| {
        let mut parts = word.split('-');
        let own = parts.next().is_some_and(|first| matches!(first, "AuthKit" | "Authkit" | "WorkOS" | "Workos" | "X"));
        let mut parts = parts.peekable();
        own && parts.peek().is_some() && parts.all(|part| part.starts_with(|first: char| first.is_ascii_uppercase()))
    })
}

#[test]
fn the_documents_name_only_headers_that_the_program_uses_and_name_all_of_them() {
    let own: Vec<String> =
        HEADERS.into_iter().map(|name| name.as_str().to_owned()).chain([action_endpoint::HEADER.to_owned()]).collect();
    let mut named = Vec::new();
    for (path, text) in documents() {
        for name in header_names(&text) {
            let lower = name.to_lowercase();
            assert!(own.contains(&lower) || lower == signature::HEADER, "{} names a header {name}", path.display());
            if path.extension().is_some_and(|it| it == "md") {
                named.push(lower);
            }
        }
    }
    for name in own {
        assert!(named.contains(&name), "no document names the header {name}");
    }
}

/// The texts between backticks, and the lines of blocks that are fenced.
pub(crate) fn code(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        let line = line.trim_start().trim_start_matches(['/', '!']).trim_start();
        if line.starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            found.push(line);
        } else {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    found
}

/// Returns the arguments after the program's name where a shell would run it: at the start, or after a pipe, `&&`, `;` or `(`.
fn called(code: &str) -> impl Iterator<Item = &str> {
    ["authkit-sync ", "cargo run -- "].into_iter().flat_map(move |program| {
        let places = code.match_indices(program);
        places.filter_map(move |(at, _)| {
            let before = code.get(..at)?.trim_end();
            let runs = before.is_empty() || before.ends_with(['|', '&', ';', '(', '/', '!']);
            let rest = code.get(at + program.len()..)?;
            (runs && rest.starts_with(|first: char| first.is_ascii_lowercase() || first == '-')).then_some(rest)
        })
    })
}

/// Returns the mistake in a command line, which is given without the program's name.
fn mistake(line: &str) -> Option<String> {
    let mut command = authkit_sync::cli::command();
    command.build();
    let mut command = &command;
    let mut arguments = false;
    for word in line.split_whitespace().take_while(|word| !word.starts_with(['|', '#', '<', '>', ';', '&', '\\'])) {
        let word = word.trim_end_matches([';', ',', '.', ')', '\'', '"']);
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split('=').next().unwrap_or_default();
            if !flag.is_empty() && !command.get_arguments().any(|it| it.get_long() == Some(flag)) {
                return Some(format!("`{}` has no flag --{flag}", command.get_name()));
            }
        } else if !arguments && command.has_subcommands() {
            // `events list|show` stands for both.
            let mut named = word.split('|').map(|word| (word, command.find_subcommand(word)));
            if let Some((word, _)) = named.clone().find(|(_, inner)| inner.is_none()) {
                return Some(format!("`{}` has no command {word}", command.get_name()));
            }
            command = named.next().and_then(|(_, inner)| inner).unwrap_or(command);
        } else {
            let choice = command.get_positionals().next().map(|it| it.get_possible_values()).unwrap_or_default();
            if !arguments && !choice.is_empty() && !choice.iter().any(|it| it.matches(word, false)) {
                return Some(format!("`{}` takes no {word}", command.get_name()));
            }
            arguments = true;
        }
    }
    None
}

/// The words that may follow a command: its subcommands, or the values of its first argument.
fn words(command: &clap::Command) -> Vec<String> {
    let inner = command.get_subcommands().map(|inner| inner.get_name().to_owned());
    let values = command.get_positionals().flat_map(|it| it.get_possible_values());
    inner.chain(values.map(|value| value.get_name().to_owned())).collect()
}

#[test]
fn the_documents_name_only_commands_and_flags_that_the_program_has() {
    let program = authkit_sync::cli::command();
    let is_command = |word: &str| program.find_subcommand(word).is_some();
    let mut checked = 0;
    for (path, text) in documents() {
        for code in code(&text) {
            for line in called(code) {
                let wrong = mistake(line);
                assert!(wrong.is_none(), "{}: {code}: {}", path.display(), wrong.unwrap_or_default());
                checked += 1;
            }
            // A guide omits the program's name: `events retry`.
            let mut words = code.split_whitespace();
            let first = words.next().filter(|first| is_command(first) && path.extension().is_some_and(|it| it == "md"));
            if first.is_some() && words.next().is_some() {
                let wrong = mistake(code);
                assert!(wrong.is_none(), "{}: {code}: {}", path.display(), wrong.unwrap_or_default());
                checked += 1;
            }
        }
        // In a text about exit codes, a word in code is a command.
        for part in text.split("\n\n").filter(|part| part.to_lowercase().contains("exit code")) {
            for word in code(part) {
                let plain =
                    !word.is_empty() && word.chars().all(|char| char.is_ascii_lowercase() || " -".contains(char));
                let inner = |word: &str| program.get_subcommands().any(|it| words(it).contains(&word.to_owned()));
                assert!(
                    !plain || is_command(word) || !inner(word),
                    "{}: there is no command {word}; name it whole",
                    path.display()
                );
            }
        }
    }
    assert!(checked > 30, "only {checked} commands were found");
}

#[test]
fn a_wrong_command_and_a_wrong_header_are_noticed() {
    for line in ["redrive", "events nonsense", "serve --nonsense", "migrate sideways", "migrate status --nonsense"] {
        assert!(mistake(line).is_some(), "{line}");
    }
    for line in
        ["serve --migrate", "events show event_1 --json", "migrate status", "webhook sign --send URL < event.json"]
    {
        assert_eq!(mistake(line), None, "{line}");
    }
    assert_eq!(
        header_names("`AuthKit-Synced-Through` of AuthKit-sync").collect::<Vec<_>>(),
        ["AuthKit-Synced-Through"]
    );
    assert_eq!(code("a `b c` d\n```sh\ne f\n```\n`g`"), ["b c", "e f", "g"]);
}

/// The titles of a numbered list whose items begin in bold: `1. **Title.** …`.
fn promises(text: &str) -> Vec<&str> {
    let items = text.lines().filter_map(|line| line.split_once(". **"));
    items.filter_map(|(_, rest)| rest.split("**").next()).map(|title| title.trim_end_matches('.')).collect()
}

#[test]
fn each_promise_names_the_tests_that_prove_it_and_they_exist() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises");
    let list = include_str!("main.rs").split("#![expect").next().unwrap();
    let readme = include_str!("../../README.md").split("\n## Promises\n").nth(1).unwrap();
    let readme = readme.split("\n## ").next().unwrap();
    assert_eq!(promises(list), promises(readme));
    assert_eq!(promises(list).len(), 10);
    for promise in list.split(".**").skip(1) {
        let tests: Vec<&str> = code(promise).into_iter().filter(|name| name.contains("::")).collect();
        assert!(!tests.is_empty(), "a promise names no test: {promise}");
        for test in tests {
            let (module, name) = test.split_once("::").unwrap();
            let source = std::fs::read_to_string(folder.join(module).with_extension("rs")).unwrap_or_default();
            let found = source.split_once(&format!("fn {name}("));
            let is_test = found.is_some_and(|(before, _)| before.rsplit("\n\n").next().unwrap().contains("test"));
            assert!(is_test, "there is no test {test}");
        }
    }
}
