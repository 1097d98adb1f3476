//! The check of a policy that is not in force: the document of `meshctl policy check --json`, and of the call of a coordinator that checks
//! one.

use serde::{Deserialize, Serialize};

use crate::model::Label;
use crate::policy::{Failure, PolicyError, Unmatched};

/// A request to check a policy. Nothing is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCheckRequest {
    /// The text of the policy.
    pub policy: String,
}

/// What a check of a policy found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    pub schema: u32,
    /// Whether there is no error, and no test fails.
    pub ok: bool,
    pub errors: Vec<Fault>,
    /// The tests that fail.
    pub failed: Vec<Fault>,
    /// The selectors that select nobody in the present mesh, which may be errors in writing.
    pub unmatched: Vec<UnmatchedSelector>,
    /// The nodes that would not keep to it, because their version of meshd knows no policies.
    pub without: Vec<Label>,
}

/// A selector that selects nobody in the present mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnmatchedSelector {
    pub line: usize,
    pub selector: String,
    /// The most similar name in the mesh. It is null if none is similar.
    pub nearest: Option<String>,
}

/// A place in the file, and what is wrong there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    pub line: usize,
    /// It is null for a test.
    pub column: Option<usize>,
    pub message: String,
}

impl Checked {
    /// The text is no policy.
    #[must_use]
    pub fn refused(errors: &[PolicyError]) -> Self {
        Self {
            schema: 1,
            ok: false,
            errors: errors.iter().map(Fault::from).collect(),
            failed: Vec::new(),
            unmatched: Vec::new(),
            without: Vec::new(),
        }
    }

    /// The text is a policy, whose tests were run.
    #[must_use]
    pub fn read(failures: &[Failure], unmatched: &[Unmatched], without: Vec<Label>) -> Self {
        Self {
            schema: 1,
            ok: failures.is_empty(),
            errors: Vec::new(),
            failed: failures.iter().map(Fault::from).collect(),
            unmatched: unmatched.iter().map(UnmatchedSelector::from).collect(),
            without,
        }
    }
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
