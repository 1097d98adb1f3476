//! Why a container with labels for meshd is not exposed. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::labels::LabelError;
use super::leases::Full;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Label(#[from] LabelError),
    #[error("{0}")]
    Full(Full),
    #[error("it has no network (`network_mode: none`)")]
    Isolated,
    #[error("it is in the network of another container")]
    Shared,
    #[error("it is not on the network `{0}` of its label mesh.network")]
    NotAttached(String),
    #[error("it has no address on any network")]
    NoAddress,
    #[error("its network `{0}` is internal: the engine routes nothing into or out of it")]
    Internal(String),
    #[error(
        "its network `{0}` has the driver `{1}`, and the host cannot reach containers on such a network"
    )]
    Driver(String, String),
    #[error(
        "its address {0} on the network mesh is outside the range from which the engine assigns addresses on this node: {1}"
    )]
    UnleasedAddress(Ipv4Addr, Ipv4Net),
    #[error("the engine's description of it cannot be used: {0}")]
    Unreadable(String),
    #[error("its Compose name `{0}` gives the same DNS name as `{1}`")]
    AmbiguousName(String, String),
}

impl Refusal {
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Label(LabelError::ImageUnknown) => {
                "pull the image again; or set `trust_image_labels = true` in [docker] of meshd.toml"
            }
            Self::Label(_) => "correct the label and create the container again",
            Self::Full(_) => {
                "remove containers that are not needed, or spread them over more nodes"
            }
            Self::Unreadable(_) => "look at it with `docker inspect`",
            Self::Isolated => "give it a network",
            Self::Shared => {
                "put the labels on that other container, with mesh.port.NAME for each port"
            }
            Self::NotAttached(_) | Self::NoAddress => "attach it to a bridge network",
            Self::UnleasedAddress(..) => {
                "let the engine assign its address: remove `ipv4_address` (or `--ip`), and create it again"
            }
            Self::Internal(_) | Self::Driver(..) => {
                "attach it to an ordinary bridge network as well"
            }
            Self::AmbiguousName(..) => {
                "give one of the two Compose projects or services another name"
            }
        }
    }
}
