//! mdBook makes a book of the pages.

use std::process::Command;

use crate::repository;
use crate::tool::find_program;

#[test]
fn mdbook_builds_the_book() {
    let Some(program) = find_program("mdbook") else {
        return meshd::testbed::skip_test(
            "mdbook is not installed (it compiles for minutes: cargo install --locked --no-default-features mdbook)",
        );
    };
    let to = tempfile::tempdir().expect("a temporary directory");
    let output = Command::new(program)
        .args(["build", "--dest-dir"])
        .arg(to.path())
        .arg(repository("docs"))
        .output()
        .expect("it is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
    for page in [
        "index.html",
        "tutorial.html",
        "reference/configuration.html",
        "howto/backup.html",
    ] {
        assert!(to.path().join(page).is_file(), "{page}");
    }
}
