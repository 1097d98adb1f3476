//! Why a container that asks to be exposed is not. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::labels::LabelError;
use super::leases::Full;

/// Why a container that asks for it is not exposed.
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
    NotThere(String),
    #[error("it has no IPv4 address on any network")]
    NoAddress,
    #[error(
        "its network `{0}` is internal: nothing behind it is reached from elsewhere, nor reaches anything"
    )]
    Internal(String),
    #[error("its network `{0}` is of the driver `{1}`, which the host itself has no way into")]
    Driver(String, String),
    #[error(
        "its address {0} on the network mesh is not one that the engine gives out by itself on this node: {1}"
    )]
    Foreign(Ipv4Addr, Ipv4Net),
    #[error("the engine's description of it cannot be used: {0}")]
    Unreadable(String),
    #[error("Compose calls it `{0}`, which makes the same name as `{1}` does")]
    Confused(String, String),
}

impl Refusal {
    /// What to do about it.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Label(LabelError::ImageUnknown) => {
                "pull the image again; or set `trust_image_labels = true` in [docker] of meshd.toml"
            }
            Self::Label(_) => "put the label right and start the container anew",
            Self::Full(_) => {
                "remove containers that are not needed, or spread them over more nodes"
            }
            Self::Unreadable(_) => "look at it with `docker inspect`",
            Self::Isolated => "give it a network",
            Self::Shared => {
                "put the labels on that other container, with mesh.port.NAME for each port"
            }
            Self::NotThere(_) | Self::NoAddress => "attach it to a bridge network",
            Self::Foreign(..) => {
                "leave its address to the engine: take `ipv4_address` (or `--ip`) away, and start it anew"
            }
            Self::Internal(_) | Self::Driver(..) => {
                "attach it to an ordinary bridge network as well"
            }
            Self::Confused(..) => "give one of the two Compose projects or services another name",
        }
    }
}
