//! What the documents say about metrics, close reasons, commands, paths and files, held against the sources.
//!
//! Owns no text: a metric, a reason or a file that is renamed must be renamed in the documents, and this test says
//! where. The config's example is tested with the config. Next: `docs/operating.md`, `docs/ends.md`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

const DOCUMENTS: [&str; 10] = [
    "README.md",
    "CHANGELOG.md",
    "docs/operating.md",
    "docs/demand.md",
    "docs/failover.md",
    "docs/routing.md",
    "docs/security.md",
    "docs/upgrading.md",
    "docs/ends.md",
    "docs/performance.md",
];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every word of `text` that begins with `prefix`, as far as it is made of letters of a metric's name.
fn words<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(prefix)
        .filter(|(at, _)| !text[..*at].ends_with(inside))
        .map(|(at, _)| &text[at..at + text[at..].find(|c| !inside(c)).unwrap_or(text.len() - at)])
        .collect()
}

#[test]
fn every_metric_is_described_and_none_is_invented() {
    let names = read("src/metrics/names.rs");
    let families: BTreeSet<&str> = words(&names, "tidegate_").into_iter().filter(|name| *name != "tidegate_").collect();
    assert!(families.len() > 10, "no metric found in src/metrics/names.rs: {families:?}");
    let operating = read("docs/operating.md");
    let described = words(&operating, "tidegate_");
    let missing: Vec<_> = families.difference(&described).collect();
    assert!(missing.is_empty(), "docs/operating.md doesn't describe {missing:?}");
    for document in DOCUMENTS {
        let text = read(document);
        let known = |word: &str| families.contains(word.strip_suffix("_bucket").unwrap_or(word));
        let invented: Vec<_> = words(&text, "tidegate_").into_iter().filter(|word| !known(word)).collect();
        assert!(invented.is_empty(), "{document} speaks of {invented:?}, which src/metrics/names.rs doesn't have");
    }
}

#[test]
fn every_close_reason_is_described() {
    let ends = read("docs/ends.md");
    for reason in tidegate::session::close::CloseReason::ALL {
        let row = format!("| `{}` | {} |", reason.label(), reason.ended_by());
        assert!(ends.contains(&row), "docs/ends.md has no row that begins with `{row}`");
    }
}

#[test]
fn every_subcommand_and_every_path_of_the_admin_endpoint_is_described() {
    let operating = read("docs/operating.md");
    let help = Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("--help").output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).filter(|name| !name.is_empty());
    let names: Vec<&str> = names.filter(|name| *name != "help").collect();
    assert!(names.len() > 10 && names.contains(&"drain"), "{help}");
    for name in names {
        let ways = [format!("tidegate {name}"), format!("`{name}")];
        assert!(ways.iter().any(|way| operating.contains(way)), "docs/operating.md doesn't describe tidegate {name}");
    }
    let sources = read("src/admin/changes.rs") + &read("src/admin/shown.rs");
    let behind = |mark: &'static str| sources.split(mark).skip(1).filter_map(|rest| rest.split('"').next());
    let paths: BTreeSet<&str> =
        behind("path: \"").chain(behind("plain(\"")).filter(|path| *path != "/style.css").collect();
    assert!(paths.len() > 15 && paths.contains("/pools/{pool}/backends/{backend}/remove"), "{paths:?}");
    for path in paths {
        let ways = [format!("| `{path}` |"), format!("| `{path}?")];
        assert!(ways.iter().any(|way| operating.contains(way)), "docs/operating.md has no row for {path}");
    }
}

/// Links between our own files, with the heading that they name.
#[test]
fn links_lead_somewhere() {
    for document in DOCUMENTS {
        let text = read(document);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let folder = Path::new(document).parent().expect("a document is in a folder");
            let target = if file.is_empty() { document.to_owned() } else { folder.join(file).display().to_string() };
            let there = read(&target);
            let anchors: Vec<String> = there.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
            assert!(
                heading.is_empty() || anchors.iter().any(|anchor| anchor == heading),
                "{document}: the link to {link} names no heading of {target}: {anchors:?}"
            );
        }
    }
}

/// `## How it ends` is `how-it-ends`.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    words
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}
