//! The body of an answer that reports a failure, in the form of RFC 9457.

use serde::{Deserialize, Serialize};

use crate::protocol::api::{ApiError, ErrorCode};

/// The content type of such an answer.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// A failure. The member `type` of RFC 9457 is absent, which means that `title` is that of the HTTP status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The HTTP status, in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// One line: what happened, and what to do.
    #[serde(deserialize_with = "super::super::api::message")]
    pub detail: String,
    /// The kind of the failure.
    pub code: ErrorCode,
    /// A free name, if the failure is that a name is taken.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::super::api::optional_message"
    )]
    pub suggestion: Option<String>,
}

impl Problem {
    /// The failure `error` in an answer with this status, whose name in words is `title`.
    #[must_use]
    pub fn new(status: u16, title: &str, error: ApiError) -> Self {
        Self {
            title: title.to_owned(),
            status,
            detail: error.message,
            code: error.code,
            suggestion: error.suggestion,
        }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self {
            code: problem.code,
            message: problem.detail,
            suggestion: problem.suggestion,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_carries_the_error_and_forges_no_line() {
        let error = ApiError::new(ErrorCode::Conflict, "the name is taken");
        let problem = Problem::new(409, "Conflict", error.clone());
        let text = serde_json::to_string(&problem).expect("plain data");
        assert_eq!(
            text,
            r#"{"title":"Conflict","status":409,"detail":"the name is taken","code":"conflict"}"#
        );
        let read: Problem = serde_json::from_str(&text).expect("just written");
        assert_eq!(ApiError::from(read), error);
        let forged = text.replace("the name", r"the\nname");
        let read: Problem = serde_json::from_str(&forged).expect("a problem");
        assert_eq!(read.detail, "the?name is taken");
    }
}
