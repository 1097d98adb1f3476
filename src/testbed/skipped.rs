//! Lists tests that cannot run on this machine, so that they are not counted as passed.

use std::fs::OpenOptions;
use std::io::Write as _;

/// The environment variable with the path of the list. `tests/run` sets it and counts the lines.
const LIST: &str = "MESHD_SKIPPED_TESTS";

/// Lists the running test as skipped. The test returns after it.
///
/// # Panics
/// There is no list: `tests/run` provides one, a test runner alone does not.
pub fn skip_test(why: &str) {
    write("skipped", why);
}

/// Lists `part` of the running test as skipped. The test continues with its other parts and counts as passed.
///
/// # Panics
/// As [`skip_test`].
pub fn skip_part_of_test(part: &str) {
    write("partly", part);
}

fn write(how: &str, why: &str) {
    let Some(list) = std::env::var_os(LIST) else {
        panic!(
            "this test cannot run completely on this machine: {why}. `tests/run` counts it as skipped"
        );
    };
    let test = std::env::var("NEXTEST_TEST_NAME")
        .ok()
        .or_else(|| std::thread::current().name().map(str::to_owned))
        .unwrap_or_default();
    let binary = std::env::var("NEXTEST_BINARY_ID").unwrap_or_default();
    // One write with O_APPEND: tests of several processes add their lines at the same time.
    let line = format!("{how}\t{binary} {test}\t{why}\n");
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&list)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        panic!("cannot write {}: {error}", list.display());
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    #[ignore = "the next test runs it, in a process of its own"]
    fn one_that_cannot_run() {
        skip_part_of_test("a client");
        skip_test("there is no etcd");
    }

    #[test]
    fn a_test_that_cannot_run_is_listed_or_else_fails() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let list = directory.path().join("list");
        let name = "testbed::skipped::tests::one_that_cannot_run";
        let program = std::env::current_exe().expect("this test has one");
        let run = |listed: bool| {
            let mut command = Command::new(&program);
            command.args(["--exact", name, "--include-ignored"]);
            command.env_remove(LIST);
            command.env("NEXTEST_TEST_NAME", name);
            command.env("NEXTEST_BINARY_ID", "meshd");
            if listed {
                command.env(LIST, &list);
            }
            command.output().expect("it starts").status.success()
        };
        assert!(!run(false), "nobody would count it");
        assert!(run(true));
        let listed = std::fs::read_to_string(&list).expect("it is written");
        assert_eq!(
            listed,
            format!("partly\tmeshd {name}\ta client\nskipped\tmeshd {name}\tthere is no etcd\n")
        );
    }
}
