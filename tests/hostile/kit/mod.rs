//! Tools for tests that attack a mesh: a coordinator on loopback, identities, records with any fields, raw connections
//! and control streams, the link between nodes, and a server that has the stolen TLS key of a coordinator.
//!
//! ```ignore
//! let coordinator = Coordinator::start();
//! let thief = coordinator.join("thief").await;             // an ordinary member
//! let mut stream = thief.stream(&coordinator).await;       // its control stream
//! let record = record::unknown("weather", "here").signed_by(thief.key());
//! let answer = stream.publish(vec![record]).await;         // the coordinator's answer
//! ```
//!
//! The functions of [`record`] make records as JSON. Every field can be set to any value before the record is signed:
//!
//! ```ignore
//! record::membership(&token.key, &thief, "victim").with("issued_at", 0).with("tags", ["db"]).signed_by(&token.key);
//! ```
#![allow(
    dead_code,
    unused_imports,
    reason = "the hostile tests and the benchmark of the same name use different parts of the kit"
)]

pub(crate) mod coordinator;
mod identity;
mod ledger;
mod peer_link;
pub(crate) mod raw;
pub(crate) mod record;
mod stolen;
mod stream;

pub(crate) use coordinator::{At, Coordinator};
pub(crate) use identity::{Identity, Member};
pub(crate) use ledger::{apply_all, ledger_of, taken};
pub(crate) use peer_link::PeerLink;
pub(crate) use raw::{Raw, frame, frame_header};
pub(crate) use stolen::Stolen;
pub(crate) use stream::{Answer, End, Hello, Stream, proof};

/// How long a test waits for something that has to happen. Only a hang takes that long.
pub(crate) const WAIT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
