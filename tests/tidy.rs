//! The rules of the house, held by a test: who may use whom, and what no file may contain.
//!
//! Owns the list of layers and its few named exceptions. Reads the sources as text (`tidy/scan.rs`); each rule is
//! tried here on snippets too, so that it is seen to fail. Knows nothing of types: a rule that the compiler or
//! clippy can hold belongs there (`Cargo.toml`, `clippy.toml`). Next: `src/lib.rs`, the walk through the rooms.

#[path = "tidy/scan.rs"]
mod scan;

use scan::{Used, paths, tokens, without_tests};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Index = layer. A module uses only lower layers, and itself.
const LAYERS: &[&[&str]] = &[
    &["name", "backoff", "clock", "every", "rng", "drain", "sys"],
    &["config", "listing", "metrics", "log"],
    &["net"],
    &["admission", "pool"],
    &["table"],
    &["session", "health", "admin", "discovery", "gslb"],
    &["daemon", "cli", "demo", "main", "lib"],
];

/// The uses within one layer that are meant: user, used, why.
const NEIGHBOURS: &[(&str, &str, &str)] = &[
    ("backoff", "rng", "a delay is jittered, and the generator is its argument"),
    ("log", "config", "the subscriber is built from `[log]`"),
    ("log", "metrics", "a dropped line is counted"),
    ("cli", "daemon", "`run` starts it"),
    ("cli", "demo", "`demo` starts it"),
    ("demo", "daemon", "the demo is a daemon with a config of its own"),
    ("main", "cli", "the whole of main"),
];

/// Where tasks and threads may begin: path prefix, why. Everything else asks `drain`, so that a stop can wait for it.
const SPAWNERS: &[(&str, &str)] = &[
    ("src/drain.rs", "the one that others ask"),
    ("src/daemon/", "the worker threads"),
    ("src/demo.rs", "the demo backends are a program of their own, on a thread of their own"),
    ("src/log/", "the threads that write the logs"),
    ("src/net/resolve.rs", "the system's resolver blocks; a thread that it keeps too long is left behind"),
];

/// The calls that `SPAWNERS` is about: the last two segments of a path.
const SPAWN: &[(&str, &str)] = &[
    ("tokio", "spawn"),
    ("task", "spawn"),
    ("task", "spawn_local"),
    ("task", "spawn_blocking"),
    ("thread", "spawn"),
    ("thread", "scope"),
    ("thread", "Builder"),
];

const MAX_LINES: usize = 500;

/// Of a comment, in characters; rustfmt holds the code to the same, but leaves comments alone.
const MAX_COMMENT: usize = 120;

/// In two pieces, or this file would break its own rule.
const MARKS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME")];

#[test]
fn the_tree_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz"] {
        collect(root, &root.join(folder), &mut files);
    }
    assert!(files.iter().filter(|(path, _)| path.starts_with("src/")).count() > 5, "no sources found in {root:?}");
    for (prefix, why) in SPAWNERS {
        assert!(
            files.iter().any(|(path, _)| path.starts_with(prefix)),
            "SPAWNERS names {prefix} ({why}), which is gone"
        );
    }
    let tests_only: BTreeSet<String> = files.iter().flat_map(|(path, text)| test_files(path, text)).collect();
    // A test module that is a folder has all of its files for tests.
    let in_test_folder = |path: &str| {
        tests_only.iter().filter_map(|test| test.strip_suffix("mod.rs")).any(|folder| path.starts_with(folder))
    };
    let mut broken = Vec::new();
    for (path, text) in &files {
        broken.extend(look_at_text(path, text));
        if path.starts_with("src/") && !tests_only.contains(path) && !in_test_folder(path) {
            broken.extend(look_at_code(path, text));
        }
    }
    assert!(broken.is_empty(), "{} rule(s) broken:\n\n{}\n", broken.len(), broken.join("\n\n"));
}

#[test]
fn every_module_has_one_layer() {
    let mut seen = BTreeSet::new();
    assert!(LAYERS.iter().copied().flatten().all(|module| seen.insert(module)), "a module stands in two layers");
    for (user, used, why) in NEIGHBOURS {
        assert_eq!(layer(user), layer(used), "{user} and {used} are no neighbours: the exception is not needed");
        assert!(!why.is_empty());
    }
}

/// Every `.rs` file below `folder`, as (path from the root, text), but for what a build leaves behind.
fn collect(root: &Path, folder: &Path, files: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(root, &path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).ok().and_then(Path::to_str).expect("our paths are UTF-8").to_owned();
            files.push((name, fs::read_to_string(&path).expect("a readable file")));
        }
    }
}

/// The rules for every file, whatever it is for.
fn look_at_text(path: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if !text.starts_with("//!") {
        broken.push(format!(
            "{path}:1: the file does not open with `//!`.\n  \
             Say in one sentence what it owns and what it doesn't, its invariants, and what to read next."
        ));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        broken.push(format!(
            "{path}:{lines}: {lines} lines, where {MAX_LINES} is the most.\n  \
             A file of that size is two rooms in one: find the second concept and give it a file."
        ));
    }
    for (number, line) in text.lines().enumerate() {
        if let Some(mark) = MARKS.iter().find(|mark| line.contains(**mark)) {
            broken.push(format!(
                "{path}:{}: `{mark}`.\n  Do it now, or say in an issue what is missing and why it can wait.",
                number + 1
            ));
        }
        // The row of a table is one line by its nature.
        let is_prose = line.trim_start().strip_prefix("//").is_some_and(|rest| !rest.contains(" | "));
        if is_prose && line.chars().count() > MAX_COMMENT {
            broken.push(format!("{path}:{}: a comment wider than {MAX_COMMENT} characters.\n  Wrap it.", number + 1));
        }
    }
    broken
}

/// The rules for the code of the product, with its test modules left out (except for `unsafe`).
fn look_at_code(path: &str, text: &str) -> Vec<String> {
    let all = tokens(text);
    let mut broken = Vec::new();
    if !path.starts_with("src/sys/") && path != "src/sys.rs" {
        for token in all.iter().filter(|token| token.text == "unsafe") {
            broken.push(format!(
                "{path}:{}: `unsafe` outside src/sys.\n  \
                 Look in std, socket2 and rustix first; if none offers it safely, wrap it in src/sys.",
                token.line
            ));
        }
    }
    let (code, _) = without_tests(&all);
    for call in code.windows(4).filter(|call| call.iter().map(|t| t.text).eq([".", "unwrap", "(", ")"])) {
        broken.push(format!(
            "{path}:{}: `.unwrap()` outside a test.\n  \
             Return the error, or `expect` with the reason why it cannot happen.",
            call[1].line
        ));
    }
    for used in paths(&code, &module_path(path)) {
        broken.extend(look_at_path(path, &used));
    }
    broken
}

fn look_at_path(path: &str, used: &Used) -> Option<String> {
    let (line, segments) = (used.line, &used.segments);
    let spawns = segments.windows(2).any(|pair| SPAWN.contains(&(&*pair[0], &*pair[1])));
    if spawns && segments[0] != "crate" && !SPAWNERS.iter().any(|(prefix, _)| path.starts_with(prefix)) {
        return Some(format!(
            "{path}:{line}: `{}` outside drain.\n  \
             Spawn through `crate::drain`, so that a stop can wait for it; or, for a thread of the process, add \
             the file to SPAWNERS with the reason.",
            segments.join("::")
        ));
    }
    if segments[0] != "crate" {
        return None;
    }
    let own = room(path);
    let other = segments.get(1).map_or("*", String::as_str);
    let Some(from) = layer(own) else {
        return Some(format!("{path}:{line}: `{own}` has no layer.\n  Give it one in LAYERS, in tests/tidy.rs."));
    };
    let Some(to) = layer(other) else {
        return Some(format!(
            "{path}:{line}: `{own}` (layer {from}) uses `crate::{other}`, which is no module with a layer.\n  \
             Name the module it comes from; a new module gets its layer in LAYERS, in tests/tidy.rs."
        ));
    };
    let fine = own == other || to < from || NEIGHBOURS.iter().any(|(a, b, _)| (*a, *b) == (own, other));
    let way_out = if to > from {
        "The lower one must not know the upper: take what you need as an argument, or return a value on which the \
         upper one acts."
    } else {
        "Neighbours are strangers: what both need lives in a lower layer (for workers: `pool`, `table`); what one \
         asks of the process goes over a bounded channel whose message type it defines itself."
    };
    (!fine).then(|| {
        format!(
            "{path}:{line}: `{own}` (layer {from}) uses `crate::{other}` (layer {to}).\n  \
             A module uses only lower layers, and its own folder. {way_out}"
        )
    })
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// `src/pool/pick/random.rs` is in `pool`, `src/name.rs` in `name`.
fn room(path: &str) -> &str {
    let inside = path.trim_start_matches("src/");
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
}

/// `src/pool/pick/mod.rs` is the module `pool::pick`; `lib.rs` and `main.rs` are the root.
fn module_path(path: &str) -> Vec<String> {
    let inside = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    if matches!(inside, "lib" | "main") { Vec::new() } else { inside.split('/').map(str::to_owned).collect() }
}

/// The files that `path` declares as `#[cfg(test)] mod NAME;`.
fn test_files(path: &str, text: &str) -> Vec<String> {
    let folder = module_path(path).iter().fold("src".to_owned(), |folder, name| format!("{folder}/{name}"));
    let (_, modules) = without_tests(&tokens(text));
    modules.iter().flat_map(|m| [format!("{folder}/{m}.rs"), format!("{folder}/{m}/mod.rs")]).collect()
}

mod snippets {
    //! Each rule on a few lines that break it, and on the nearest lines that don't.

    use super::*;

    /// The lines on which the code of `path` breaks a rule.
    #[track_caller]
    fn lines(path: &str, text: &str) -> Vec<usize> {
        let line = |broken: &String| broken.strip_prefix(path)?.strip_prefix(':')?.split(':').next()?.parse().ok();
        look_at_code(path, text).iter().map(|broken| line(broken).expect("a message begins with file:line")).collect()
    }

    #[test]
    fn a_comment_is_as_wide_as_the_code() {
        let wide = "x".repeat(MAX_COMMENT - 4);
        assert_eq!(
            look_at_text("src/a.rs", &format!("//! {wide}\n    let x = \"{wide}\";\n//! | {wide} | x |")),
            [""; 0]
        );
        assert_eq!(look_at_text("src/a.rs", &format!("//! {wide}x")).len(), 1);
    }

    #[test]
    fn a_module_uses_only_lower_layers() {
        for (path, text) in [
            ("src/net/connect.rs", "use crate::pool::Slot;"),
            ("src/pool/pick/mod.rs", "use crate::{name::PoolName, table::Facts};"),
            ("src/pool/view.rs", "fn f() { crate::admin::serve() }"),
            ("src/session/mod.rs", "use crate::{health};"),
            ("src/admin/mod.rs", "use super::session::Session;"),
            ("src/pool/pick/random.rs", "use super::super::super::table::Facts;"),
            ("src/rng.rs", "mod inner { use super::super::name; }"),
            ("src/net/mod.rs", "use tidegate::table;"),
            ("src/net/mod.rs", "use crate::*;"),
            ("src/net/mod.rs", "use crate::Secret;"),
            ("src/log.rs", "pub(in crate::net) struct X;"),
            ("src/unheard_of.rs", "use crate::name::PoolName;"),
            ("src/config/mod.rs", "#[cfg(not(test))] mod a { use crate::net; }"),
        ] {
            assert_eq!(lines(path, text), [1], "{path}: {text}");
        }
        for (path, text) in [
            ("src/session/mod.rs", "use crate::{net::{connect, relay}, pool::Slot, table};"),
            ("src/pool/pick/mod.rs", "use crate::pool::view; use super::backend; mod x { use super::y; }"),
            ("src/config/mod.rs", "pub mod limits { use super::Runtime; }"),
            ("src/config/mod.rs", "#[cfg(test)] mod tests { use crate::daemon; }"),
            ("src/config/mod.rs", "#[cfg(test)]\n#[allow(dead_code)]\nuse crate::daemon::{self, X};"),
            ("src/net/mod.rs", "// crate::pool\n/* a /* crate::pool */ */ fn f() -> &'static str { \"crate::pool\" }"),
            ("src/net/mod.rs", "const X: &str = r#\"\" crate::pool \"#; const Y: char = '\"'; const Z: u8 = b'\\'';"),
            ("src/backoff.rs", "use crate::rng::Rng;"),
            ("src/main.rs", "fn main() { tidegate::cli::run() }"),
        ] {
            assert!(lines(path, text).is_empty(), "{path}: {text}: {:?}", look_at_code(path, text));
        }
    }

    #[test]
    fn a_message_names_place_layers_and_way_out() {
        let broken =
            look_at_code("src/pool/view.rs", "\n\nuse crate::{\n    name::PoolName,\n    session::Session,\n};");
        let [message] = broken.as_slice() else { panic!("{broken:?}") };
        assert!(
            message.starts_with("src/pool/view.rs:5: `pool` (layer 3) uses `crate::session` (layer 5)."),
            "{message}"
        );
        assert!(message.contains("take what you need as an argument"), "{message}");
        let broken = look_at_code("src/session/mod.rs", "use crate::admin::State;").concat();
        assert!(broken.contains("Neighbours are strangers"), "{broken}");
    }

    #[test]
    fn only_drain_spawns() {
        for text in [
            "fn f() { tokio::spawn(async {}); }",
            "use tokio::{net::TcpStream, task::spawn_local};",
            "use std::thread;\nfn f() { thread::spawn(|| {}); }",
            "fn f() { std::thread::Builder::new(); }",
        ] {
            assert_eq!(lines("src/net/mod.rs", text).len(), 1, "{text}");
            assert!(lines("src/drain.rs", text).is_empty(), "{text}");
        }
        assert!(
            lines("src/net/mod.rs", "use crate::drain; fn f(t: &Tasks) { drain::spawn_local(g()); t.spawn(h()) }")
                .is_empty()
        );
    }

    #[test]
    fn no_unsafe_outside_sys_and_no_unwrap_outside_tests() {
        assert_eq!(lines("src/net/mod.rs", "fn f() {\n unsafe { g() }\n}"), [2]);
        assert!(lines("src/sys/mod.rs", "fn f() { unsafe { g() } }").is_empty());
        assert!(lines("src/net/mod.rs", "#![deny(unsafe_code)] // unsafe").is_empty());
        assert_eq!(lines("src/net/mod.rs", "fn f() {\n g()\n  .unwrap()\n}"), [3]);
        assert!(
            lines("src/net/mod.rs", "fn f() { g().unwrap_or(1) } #[cfg(test)] mod t { fn f() { g().unwrap(); } }")
                .is_empty()
        );
        assert_eq!(lines("src/net/mod.rs", "#[cfg(test)] mod t { fn f() {} }\nfn f() { g().unwrap(); }"), [2]);
    }

    #[test]
    fn a_test_module_in_a_file_of_its_own_is_known() {
        assert_eq!(
            test_files("src/pool/pick/mod.rs", "mod random; #[cfg(test)] mod laws;"),
            ["src/pool/pick/laws.rs", "src/pool/pick/laws/mod.rs"]
        );
        assert_eq!(test_files("src/lib.rs", "pub mod net; #[cfg(test)] mod kit;"), ["src/kit.rs", "src/kit/mod.rs"]);
    }

    #[test]
    fn every_file_has_a_header_a_bound_and_no_marks() {
        let broken = |text: &str| look_at_text("src/x.rs", text).len();
        assert_eq!(broken("//! What it owns.\n"), 0);
        assert_eq!(broken("use std::fmt;\n"), 1);
        assert_eq!(broken(&"//! A line.\n".repeat(MAX_LINES)), 0);
        assert_eq!(broken(&"//! A line.\n".repeat(MAX_LINES + 1)), 1);
        assert_eq!(broken(&format!("//! {}: later\n", MARKS[0])), 1);
    }
}
