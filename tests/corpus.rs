//! Replays the corpora of the fuzz targets, without a fuzzer: what was found once is never lost again.
//!
//! Owns no expectation: those are the checks of `fuzz/checks/`, which the targets of `fuzz/` have too. Next:
//! `fuzz/README.md`.

#[path = "../fuzz/checks/client_hello.rs"]
mod client_hello;
#[path = "../fuzz/checks/first_bytes.rs"]
mod first_bytes;
#[path = "../fuzz/checks/proxy_header.rs"]
mod proxy_header;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

type Check = fn(&[u8]);

/// Target, and what it checks.
const CHECKS: &[(&str, Check)] = &[
    ("client_hello", client_hello::check),
    ("first_bytes", first_bytes::check),
    ("proxy_header", proxy_header::check),
];

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The names in this folder of `fuzz/`, without `suffix`.
fn names(folder: &str, suffix: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(fuzz().join(folder)).expect("the folder is there");
    let names = entries.map(|entry| entry.expect("a readable folder").file_name().into_string().expect("UTF-8"));
    names.map(|name| name.strip_suffix(suffix).map(str::to_owned).unwrap_or(name)).collect()
}

#[test]
fn every_target_has_its_check_its_program_and_its_corpus() {
    let checks: BTreeSet<String> = CHECKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("checks", ".rs"), checks);
    assert_eq!(names("targets", ".rs"), checks);
    assert_eq!(names("corpus", ""), checks);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).expect("the manifest is there");
    for name in &checks {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name} is no target of the manifest");
        assert!(!names(&format!("corpus/{name}"), "").is_empty(), "{name} has an empty corpus");
    }
}

#[test]
fn every_input_of_every_corpus_keeps_its_targets_check() {
    for (name, check) in CHECKS {
        for input in names(&format!("corpus/{name}"), "") {
            let path = fuzz().join("corpus").join(name).join(&input);
            let bytes = fs::read(&path).expect("a readable file");
            let checked = std::panic::catch_unwind(|| check(&bytes));
            assert!(checked.is_ok(), "{} doesn't keep its check; its message is above", path.display());
        }
    }
}
