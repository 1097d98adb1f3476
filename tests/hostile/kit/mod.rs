//! The attacker's kit: a coordinator on loopback, identities, hand-made records, raw connections and control streams, the link
//! between nodes, and a coordinator's place taken with its stolen TLS key.
//!
//! ```ignore
//! let coordinator = Coordinator::start();
//! let thief = coordinator.join("thief").await;             // an ordinary member
//! let mut stream = thief.stream(&coordinator).await;       // its control stream
//! let record = record::unknown("weather", "here").signed_by(thief.key());
//! let answer = stream.publish(vec![record]).await;         // what the coordinator says
//! ```
//!
//! Records are made as JSON by [`record`], one line each, and every field can be set to anything before they are signed:
//!
//! ```ignore
//! record::membership(&token.key, &thief, "victim").with("issued_at", 0).with("tags", ["db"]).signed_by(&token.key);
//! ```
#![allow(
    dead_code,
    unused_imports,
    reason = "a kit has tools for tests to come"
)]

pub(crate) mod coordinator;
mod identity;
mod ledger;
mod peer_link;
pub(crate) mod raw;
pub(crate) mod record;
mod stolen;
mod stream;

pub(crate) use coordinator::{At, Coordinator, Snapshot, copy};
pub(crate) use identity::{Identity, Member};
pub(crate) use ledger::{apply_all, ledger_of, taken};
pub(crate) use peer_link::PeerLink;
pub(crate) use raw::{Raw, frame, frame_header};
pub(crate) use stolen::Stolen;
pub(crate) use stream::{Answer, End, Hello, Stream};

/// Only a hang takes that long.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
