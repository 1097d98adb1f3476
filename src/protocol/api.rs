//! Errors of the HTTP APIs (join, administration, local). They have one JSON shape, and one code for each reaction of a caller.

use serde::{Deserialize, Deserializer, Serialize};

use crate::model::text;

/// The maximum size of a request body on every API, in bytes.
pub const MAX_BODY: usize = 256 * 1024;

/// The kind of a failure. Each kind has one HTTP status and one exit code of `meshctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed.
    BadRequest,
    /// The caller showed no API token, or one that is not valid.
    Unauthorized,
    /// The caller may not do this.
    Forbidden,
    /// The named thing does not exist.
    NotFound,
    /// The request conflicts with the present state: the node has joined already, a name is taken, a token is spent.
    Conflict,
    /// Another program or machine cannot be reached.
    Unreachable,
    /// The machine or its configuration does not allow it.
    Configuration,
    /// The operating system refuses it for lack of permissions.
    Permission,
    /// This program does not support the protocol version.
    Version,
    /// There are too many requests.
    Busy,
    /// The program that answers has a fault.
    Internal,
    /// A code of a later version.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The HTTP status of an answer with this code (RFC 9110 section 15).
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden | Self::Permission => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Configuration => 422,
            Self::Version => 426,
            Self::Busy => 429,
            Self::Internal | Self::Unknown => 500,
            Self::Unreachable => 503,
        }
    }

    /// The exit code of a command that fails with this code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::NotFound => 2,
            Self::BadRequest => 64,
            Self::Unreachable => 69,
            Self::Permission | Self::Unauthorized => 77,
            Self::Configuration => 78,
            Self::Forbidden
            | Self::Conflict
            | Self::Version
            | Self::Busy
            | Self::Internal
            | Self::Unknown => 1,
        }
    }
}

/// The body of every answer that reports a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The kind of the failure.
    pub code: ErrorCode,
    /// One line: what happened, and what to do.
    #[serde(deserialize_with = "message")]
    pub message: String,
    /// A free name, if the failure is that a name is taken.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_message"
    )]
    pub suggestion: Option<String>,
}

impl ApiError {
    /// An error with this code and this message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            suggestion: None,
        }
    }

    /// The error of a request whose body is not the JSON document that the call needs.
    #[must_use]
    pub fn unreadable(error: &serde_json::Error) -> Self {
        let text = format!("the request cannot be read: {error}");
        Self::new(ErrorCode::BadRequest, text)
    }
}

/// Reads a message for people and replaces characters that cannot be printed.
///
/// # Errors
/// The value is not a text.
pub(super) fn message<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(|message| text::message(&message))
}

/// Does the same for an optional message.
///
/// # Errors
/// The value is not a text.
pub(super) fn optional_message<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<String>, D::Error> {
    Option::<String>::deserialize(from)
        .map(|message| message.map(|message| text::message(&message)))
}

/// Does the same for several messages.
///
/// # Errors
/// The value is not a list of texts.
pub(super) fn messages<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Vec::<String>::deserialize(from).map(|messages| {
        messages
            .iter()
            .map(|message| text::message(message))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_from_another_program_forges_no_line() {
        let body =
            r#"{"code":"conflict","message":"no\nWARN forged \u001b[2J","suggestion":"a\rb"}"#;
        let error: ApiError = serde_json::from_str(body).expect("an error");
        assert_eq!(error.message, "no?WARN forged ?[2J");
        assert_eq!(error.suggestion.as_deref(), Some("a?b"));
        let body = r#"{"code":"busy","message":"later"}"#;
        let error: ApiError = serde_json::from_str(body).expect("an error");
        assert_eq!(error, ApiError::new(ErrorCode::Busy, "later"));
    }
}
