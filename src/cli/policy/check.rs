//! `meshctl policy check`, and the tests of a policy, which `apply` runs too.

use std::path::Path;

use serde::Serialize;

use super::file;
use super::live::Live;
use crate::cli::exit::CliError;
use crate::cli::{Globals, table};
use crate::policy::{Failure, Policy, PolicyError, run_tests};
use crate::protocol::api::ErrorCode;

/// `meshctl policy check --json`.
#[derive(Debug, Serialize)]
struct Checked {
    schema: u32,
    /// Whether there is no error, and no test fails.
    ok: bool,
    errors: Vec<Fault>,
    /// The tests that fail.
    failed: Vec<Fault>,
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
    if json {
        table::json(&Checked {
            schema: 1,
            ok: failures.is_empty(),
            errors: Vec::new(),
            failed: failures.iter().map(Fault::from).collect(),
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
