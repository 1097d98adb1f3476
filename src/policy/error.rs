//! Errors in the text of a policy.

use std::fmt;

use crate::model::text;

/// How many characters of a wrong text a message shows.
const MAX_SHOWN: usize = 64;

/// Why a text is not a policy that this version understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PolicyError {
    /// The line of the error, counted from 1.
    pub line: usize,
    /// The column of the error in characters, counted from 1.
    pub column: usize,
    /// The error and the remedy.
    pub message: String,
    pub(super) newer: bool,
}

/// The first characters of a wrong text, as a message shows them.
pub(super) fn printable(wrong: &str) -> String {
    text::printable(wrong, MAX_SHOWN)
}

impl PolicyError {
    /// Whether the policy is in a later version of the language, which this program does not speak.
    #[must_use]
    pub fn is_newer(&self) -> bool {
        self.newer
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            column,
            message,
            ..
        } = self;
        write!(f, "line {line}, column {column}: {message}")
    }
}
