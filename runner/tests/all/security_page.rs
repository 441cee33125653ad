//! docs/SECURITY.md says what is tried, so what it names must exist, and what is tried must be named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Whatever the last column of a table has in backticks.
fn named() -> BTreeSet<String> {
    let page = std::fs::read_to_string(workspace().join("docs/SECURITY.md")).unwrap();
    let cells = page.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|')?.rsplit('|').next());
    let quoted = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    quoted.map(str::to_owned).collect()
}

fn sources(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !["target", "vendor", ".git", "node_modules"].contains(&&*name) {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The trials of the embedded runtime: the strings in its lists of rules.
fn trials_of(source: &str) -> BTreeSet<String> {
    let list = source.split_once("const RULES: &[Rule] = &[").and_then(|(_, rest)| rest.split_once("];"));
    list.map_or("", |(rules, _)| rules).split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Those, and `fn the_rule()` below a mark.
fn tests_of(source: &str) -> BTreeSet<String> {
    let mut tests = trials_of(source);
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if let Some((name, _)) = function.and_then(|rest| rest.split_once('('))
            && marked
        {
            tests.insert(name.to_owned());
        }
        marked = line.starts_with("#[test]")
            || line.starts_with("#[tokio::test")
            || marked && line.starts_with("#[");
    }
    tests
}

#[test]
fn every_test_that_the_security_page_names_exists() {
    let mut found = Vec::new();
    sources(&workspace(), &mut found);
    let tests: BTreeSet<String> = found.iter().flat_map(|source| tests_of(source)).collect();

    let named = named();
    assert!(named.len() > 50, "{named:?}");
    let missing: Vec<&String> = named.difference(&tests).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_trial_of_the_isolation_floor_is_on_the_security_page() {
    let named = named();
    for file in ["isolation", "refused", "images", "neighbours", "node", "bombs"] {
        let path = workspace().join(format!("runner/tests/embedded/{file}.rs"));
        let trials = trials_of(&std::fs::read_to_string(path).unwrap());

        let missing: Vec<&String> = trials.difference(&named).collect();
        assert!(!trials.is_empty() && missing.is_empty(), "{file}: {missing:?}");
    }
}
