//! Errors of the HTTP APIs (join, admin, local): one JSON shape, one code per thing a caller can do.

use serde::{Deserialize, Deserializer, Serialize};

use crate::model::text;

/// Octets of a request body at most, on every API.
pub const MAX_BODY: usize = 256 * 1024;

/// What kind of failure it is. Each has one HTTP status and one exit code of `meshctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request itself is wrong.
    BadRequest,
    /// The caller may not do this.
    Forbidden,
    /// What was named does not exist, or is not true.
    NotFound,
    /// It goes against what is there: joined already, name taken, token spent.
    Conflict,
    /// Another part cannot be reached.
    Unreachable,
    /// The machine or its configuration does not allow it.
    Configuration,
    /// The operating system refuses it for want of rights.
    Permission,
    /// A protocol version that is not spoken here.
    Version,
    /// Too many requests.
    Busy,
    /// A fault on the answering side.
    Internal,
    /// A code of a later version.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The HTTP status it travels with (RFC 9110 section 15).
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
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

    /// The exit code of a command that fails with it.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::NotFound => 2,
            Self::BadRequest => 64,
            Self::Unreachable => 69,
            Self::Permission => 77,
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

/// The body of every answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure it is.
    pub code: ErrorCode,
    /// One line: what happened and what to do.
    #[serde(deserialize_with = "message")]
    pub message: String,
    /// A name that is free, where the failure is a name that is taken.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_message"
    )]
    pub suggestion: Option<String>,
}

impl ApiError {
    /// An error of `code` that says `message`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            suggestion: None,
        }
    }
}

/// A message for people, made printable where it is received.
///
/// # Errors
/// It is no text.
pub(super) fn message<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(|message| text::message(&message))
}

/// The same for a message that may be absent.
///
/// # Errors
/// It is no text.
pub(super) fn optional_message<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<String>, D::Error> {
    Option::<String>::deserialize(from)
        .map(|message| message.map(|message| text::message(&message)))
}

/// The same for several messages.
///
/// # Errors
/// It is no list of texts.
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
