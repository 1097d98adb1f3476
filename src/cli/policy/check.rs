//! `meshctl policy check`, and the tests of a policy, which `apply` runs too.

use std::path::Path;

use serde::Serialize;

use super::{MAX_NAMED, file};
use crate::cli::exit::CliError;
use crate::cli::live::Live;
use crate::cli::{Globals, table};
use crate::model::Label;
use crate::model::text::listed;
use crate::policy::{Failure, Policy, PolicyError, Unmatched, run_tests, unmatched};
use crate::protocol::api::ErrorCode;

/// The maximum number of selectors of which `check` and `apply` warn.
const MAX_WARNED: usize = 16;

/// `meshctl policy check --json`.
#[derive(Debug, Serialize)]
struct Checked {
    schema: u32,
    /// Whether there is no error, and no test fails.
    ok: bool,
    errors: Vec<Fault>,
    /// The tests that fail.
    failed: Vec<Fault>,
    /// The selectors that select nobody in the present mesh, which may be errors in writing.
    unmatched: Vec<UnmatchedSelector>,
    /// The nodes that would not keep to it, because their version of meshd knows no policies.
    without: Vec<Label>,
}

/// A selector that selects nobody in the present mesh.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct UnmatchedSelector {
    line: usize,
    selector: String,
    /// The most similar name in the mesh. It is null if none is similar.
    nearest: Option<String>,
}

impl From<&Unmatched> for UnmatchedSelector {
    fn from(unmatched: &Unmatched) -> Self {
        Self {
            line: unmatched.line,
            selector: unmatched.selector.to_string(),
            nearest: unmatched.nearest.clone(),
        }
    }
}

/// A place in the file, and what is wrong there.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Fault {
    line: usize,
    /// It is null for a test.
    column: Option<usize>,
    message: String,
}

impl From<&PolicyError> for Fault {
    fn from(error: &PolicyError) -> Self {
        Self {
            line: error.line,
            column: Some(error.column),
            message: error.message.clone(),
        }
    }
}

impl From<&Failure> for Fault {
    fn from(failure: &Failure) -> Self {
        Self {
            line: failure.line,
            column: None,
            message: failure.message.clone(),
        }
    }
}

pub(super) async fn run(path: &Path, json: bool, globals: &Globals) -> Result<u8, CliError> {
    let text = file::text("check", path)?;
    let policy = match Policy::check(&text) {
        Ok(policy) => policy,
        Err(errors) => return report_errors(path, &errors, json),
    };
    let live = Live::read(globals).await?;
    let failures = failures(&policy, &live);
    let unmatched = unmatched(&policy, &live.subjects(Some(&policy)));
    let without = live.not_keeping_to(&policy);
    warn(path, &unmatched, &without);
    if json {
        table::json(&Checked {
            schema: 1,
            ok: failures.is_empty(),
            errors: Vec::new(),
            failed: failures.iter().map(Fault::from).collect(),
            unmatched: unmatched.iter().map(UnmatchedSelector::from).collect(),
            without,
        })?;
    } else {
        for failure in &failures {
            table::line(&line_of(path, failure));
        }
    }
    if failures.is_empty() {
        eprintln!("{} is right, and no test fails", path.display());
        return Ok(0);
    }
    Err(failed("check", path, &failures))
}

fn report_errors(path: &Path, errors: &[PolicyError], json: bool) -> Result<u8, CliError> {
    let Some(first) = errors.first() else {
        return Err(CliError::failed("the policy is wrong in an unknown place"));
    };
    if json {
        table::json(&Checked {
            schema: 1,
            ok: false,
            errors: errors.iter().map(Fault::from).collect(),
            failed: Vec::new(),
            unmatched: Vec::new(),
            without: Vec::new(),
        })?;
    } else if errors.len() > 1 {
        for error in errors {
            let (line, column) = (error.line, error.column);
            table::line(&format!(
                "{}:{line}:{column}: {}",
                path.display(),
                error.message
            ));
        }
    }
    Err(file::wrong("check", path, first))
}

/// Warns of selectors that select nobody, and of nodes that know no policies.
pub(super) fn warn(path: &Path, unmatched: &[Unmatched], without: &[Label]) {
    for warning in warnings(path, unmatched, without) {
        eprintln!("warning: {warning}");
    }
}

fn warnings(path: &Path, unmatched: &[Unmatched], without: &[Label]) -> Vec<String> {
    let mut warnings: Vec<String> = unmatched
        .iter()
        .take(MAX_WARNED)
        .map(|unmatched| unmatched_line(path, unmatched))
        .collect();
    let more = unmatched.len().saturating_sub(MAX_WARNED);
    if more > 0 {
        warnings.push(format!(
            "{}: {more} more selectors select nobody in the mesh; --json lists them",
            path.display()
        ));
    }
    if !without.is_empty() {
        warnings.push(format!(
            "these nodes keep to no policy, since their version of meshd knows none; upgrade them: {}",
            listed(without, MAX_NAMED)
        ));
    }
    warnings
}

/// A selector that selects nobody, with its place.
fn unmatched_line(path: &Path, unmatched: &Unmatched) -> String {
    let (path, line, selector) = (path.display(), unmatched.line, &unmatched.selector);
    let nearest = match &unmatched.nearest {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None => String::new(),
    };
    format!("{path}:{line}: `{selector}` selects nobody in the mesh{nearest}")
}

/// The tests in `policy` that fail in the present mesh.
pub(super) fn failures(policy: &Policy, live: &Live) -> Vec<Failure> {
    run_tests(policy, &live.subjects(Some(policy)))
}

/// A failed test with its place.
pub(super) fn line_of(path: &Path, failure: &Failure) -> String {
    format!("{}:{}: {}", path.display(), failure.line, failure.message)
}

/// The error for tests that fail, which are listed before it.
pub(super) fn failed(command: &str, path: &Path, failures: &[Failure]) -> CliError {
    let first = failures.first().map_or(0, |failure| failure.line);
    let many = match failures.len() {
        1 => "a test fails".to_owned(),
        many => format!("{many} tests fail"),
    };
    let text = format!(
        "policy {command}: {many}, the first one at {}:{first}; correct the rules or the tests; nothing was changed",
        path.display()
    );
    CliError::new(ErrorCode::NotFound, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Selector;
    use crate::testbed::records::label;

    #[test]
    fn selectors_that_select_nobody_and_nodes_without_policies_are_warnings() {
        let path = Path::new("shop.toml");
        let of = |line, selector: &str, nearest: Option<&str>| Unmatched {
            line,
            selector: Selector::parse(selector).expect("a literal"),
            nearest: nearest.map(str::to_owned),
        };
        assert_eq!(warnings(path, &[], &[]), Vec::<String>::new());
        let found = [of(3, "shop/apii", Some("shop/api")), of(4, "node:n9", None)];
        assert_eq!(
            warnings(path, &found, &[label("old-1")]),
            [
                "shop.toml:3: `shop/apii` selects nobody in the mesh; did you mean `shop/api`?",
                "shop.toml:4: `node:n9` selects nobody in the mesh",
                "these nodes keep to no policy, since their version of meshd knows none; upgrade them: old-1",
            ]
        );
        let many: Vec<Unmatched> = (1..=20).map(|n| of(n, &format!("s{n}"), None)).collect();
        let warnings = warnings(path, &many, &[]);
        assert_eq!(warnings.len(), MAX_WARNED + 1);
        assert_eq!(
            warnings.last().map(String::as_str),
            Some("shop.toml: 4 more selectors select nobody in the mesh; --json lists them")
        );
    }
}
