//! `meshctl policy check`, and the tests of a policy, which `apply` runs too.

use std::path::Path;

use super::{MAX_NAMED, file};
use crate::cli::exit::CliError;
use crate::cli::live::Live;
use crate::cli::{Globals, table};
use crate::model::Label;
use crate::model::text::listed;
use crate::policy::{Failure, Policy, PolicyError, Unmatched, run_tests, unmatched};
use crate::protocol::api::ErrorCode;
use crate::protocol::policy_check::Checked;

/// The maximum number of selectors of which `check` and `apply` warn.
const MAX_WARNED: usize = 16;

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
        table::json(&Checked::read(&failures, &unmatched, without))?;
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
        table::json(&Checked::refused(errors))?;
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
