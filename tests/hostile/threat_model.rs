//! Every promise of `docs/threat-model.md` names at least one test, and every test that the document names exists.

use std::path::{Path, PathBuf};

const DOCUMENT: &str = "docs/threat-model.md";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The parts of a line that are between backticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The files in which a test of this module path may be: a file of a test binary, a file of tests beside the code, or the file
/// of the code.
fn files(modules: &[&str]) -> Vec<PathBuf> {
    let without_tests = match modules {
        [modules @ .., "tests"] => modules,
        modules => modules,
    };
    let mut files = Vec::new();
    for (folder, modules) in [("tests", modules), ("src", modules), ("src", without_tests)] {
        let path = root().join(folder).join(modules.join("/"));
        files.push(path.with_extension("rs"));
        files.push(path.join("mod.rs"));
    }
    files
}

/// Whether this source text has a test of this name. Tests inside `proptest!` have the attribute `#[test]` as well.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let heads = [format!("fn {name}("), format!("async fn {name}(")];
    let is_head = |line: &&&str| heads.iter().any(|head| line.starts_with(head));
    lines
        .iter()
        .position(|line| is_head(&line))
        .is_some_and(|at| {
            let above = lines.iter().take(at).rev();
            let mut above =
                above.take_while(|line| line.starts_with('#') || line.starts_with("//"));
            above.any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
        })
}

fn exists(test: &str) -> bool {
    let path: Vec<&str> = test.split("::").collect();
    let Some((name, modules)) = path.split_last() else {
        return false;
    };
    let texts = files(modules).into_iter().map(std::fs::read_to_string);
    texts.flatten().any(|text| has_test(&text, name))
}

#[test]
fn every_promise_names_tests_and_every_test_that_is_named_exists() {
    let text = std::fs::read_to_string(root().join(DOCUMENT)).expect("the document");
    let mut missing = Vec::new();
    let (mut promises, mut in_table) = (0, false);
    for line in text.lines() {
        in_table = line == "| promise | held by |" || in_table && line.starts_with('|');
        let tests: Vec<&str> = quoted(line).filter(|q| q.contains("::")).collect();
        if in_table && !line.starts_with("|---") && line != "| promise | held by |" {
            promises += 1;
            if tests.is_empty() {
                missing.push(format!("no test holds: {line}"));
            }
        }
        // The document names this module itself, which is not a test.
        let named = tests.into_iter().filter(|t| *t != "hostile::threat_model");
        missing.extend(
            named
                .filter(|t| !exists(t))
                .map(|t| format!("no such test: {t}")),
        );
    }
    assert!(promises > 30, "{promises}");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn a_name_of_nothing_is_found() {
    assert!(exists("hostile::threat_model::a_name_of_nothing_is_found"));
    assert!(!exists("hostile::threat_model::exists"));
    assert!(!exists("hostile::threat_model::a_name_of_nothing"));
    assert!(!exists("hostile::no_module::a_name_of_nothing_is_found"));
    assert!(exists(
        "records::envelope::tests::a_payload_over_the_bound_is_never_authentic_and_has_no_header"
    ));
}
