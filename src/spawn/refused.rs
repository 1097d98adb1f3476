//! Why a call about spawned containers is refused. Each text says what to do.

use std::time::Duration;

use super::image::ImageError;
use crate::model::Label;
use crate::model::text;
use crate::protocol::api::ErrorCode;

/// The maximum number of images that a message names.
const MAX_LISTED: usize = 5;

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No template is for this caller.
    #[error(
        "no template of this node is for {}; its owner adds one with `from` in [[spawn]] of meshd.toml, or a token has its scope spawn:TEMPLATE",
        .0.as_deref().unwrap_or("this caller")
    )]
    NoTemplate(Option<String>),
    /// The caller named a template that does not exist or is not for it.
    #[error("there is no template {0} for this caller; there are {all}", all = text::listed(.1, MAX_LISTED))]
    OtherTemplate(Label, Vec<Label>),
    /// The body is not JSON, or not the JSON of this call.
    #[error("the body of the request cannot be read: {0}")]
    Body(String),
    /// A field of the body asks for more than the template permits. The fields are its path and what would be right.
    #[error("{0}: {1}")]
    Field(String, String),
    #[error("Image: {0}")]
    Image(#[from] ImageError),
    /// No template of the caller permits the image.
    #[error("Image: no template of this caller permits {0}; they permit {all}", all = text::listed(.1, MAX_LISTED))]
    OtherImage(String, Vec<String>),
    /// The name cannot be that of a container.
    #[error(
        "name: `{0}` cannot be the name of a container; write letters, digits, `.`, `_` and `-`, 1 to {MAX_NAME} of them, and begin with a letter or a digit"
    )]
    Name(String),
    /// The caller has a container with this name already.
    #[error("name: there is a container {0} already; remove it, or take another name")]
    NameTaken(String),
    /// There are as many containers as the template permits.
    #[error(
        "the template {0} permits {1} containers at once; remove one, or wait until one expires"
    )]
    Full(Label, u32),
    /// The memory of all containers together is used up.
    #[error("the containers of the template {0} together may have {mib} MiB of memory; remove one, or wait until one expires", mib = .1 >> 20)]
    Memory(Label, u64),
    /// Too many containers were created lately.
    #[error("the template {0} permits {1} new containers; try again in {wait} s", wait = .2.as_secs().max(1))]
    Rate(Label, String, Duration),
    /// There is no such container among those of the caller.
    #[error("there is no container {0} of this caller")]
    Unknown(String),
    /// Containers of several templates have this name.
    #[error("several containers of this caller are called {0}; name one of them by its id")]
    Ambiguous(String),
    /// There are as many containers as meshd keeps.
    #[error("this node has {0} spawned containers, which are the most; remove one")]
    Everywhere(usize),
}

/// The maximum length of the name that a caller gives to a container.
pub const MAX_NAME: usize = 64;

impl Refused {
    /// A field of the body is refused.
    pub(super) fn field(path: &str, right: impl Into<String>) -> Self {
        Self::Field(text::message(path), right.into())
    }

    /// The code of the answer.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoTemplate(_) | Self::Field(..) | Self::OtherImage(..) => ErrorCode::Forbidden,
            Self::Body(_) | Self::Image(_) | Self::Name(_) => ErrorCode::BadRequest,
            Self::OtherTemplate(..) | Self::Unknown(_) => ErrorCode::NotFound,
            Self::NameTaken(_) | Self::Ambiguous(_) => ErrorCode::Conflict,
            Self::Full(..) | Self::Memory(..) | Self::Rate(..) | Self::Everywhere(_) => {
                ErrorCode::Busy
            }
        }
    }
}
