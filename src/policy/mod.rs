//! The policy of a mesh: who may reach which port, who may serve which name, who may relay.
//!
//! A policy is a text that the administrator signs ([`Policy::parse`]). It only ever allows, so the order of its rules means nothing.
//! Its rules are about *subjects*: nodes and instances, with their names, tags and projects ([`Subject`]). There are two readings of a
//! policy, and a test checks that both have the same verdicts:
//!
//! - [`interpret`] reads the rules one after another, for one source, one destination and one port. It is the reference.
//! - [`Table`] is compiled from a policy and all subjects of a mesh. The data plane looks up each packet in it, and the firewall gets
//!   its rules from it.
//!
//! Traffic of the mesh itself is not subject to the policy. The code that enforces a table lets it pass: the ports of the nodes' own
//! protocols, probes of paths, and queries to the DNS address.

/// The text of a policy that allows everything, as if there were none.
pub const OPEN: &str = "language = 1\ndefault = \"allow\"\n";

mod compile;
mod diff;
mod error;
mod explain;
mod interpret;
mod parse;
mod ports;
mod rules;
mod selector;
mod subject;
mod table;
mod unmatched;
mod verify;

pub use self::compile::MAX_KINDS;
pub use self::diff::{Change, diff};
pub use self::error::PolicyError;
pub use self::explain::{Explanation, explain};
pub use self::interpret::{Verdict, interpret, selects};
pub use self::parse::{LANGUAGE, MAX_POLICY};
pub use self::ports::{Asked, PortSet};
pub use self::rules::Policy;
pub use self::selector::{Selector, SelectorError, Wild};
pub use self::subject::{MAX_NARROWED, Network, NodeFacts, Offered, OfferedPort, Subject};
pub use self::table::{Class, Table};
pub use self::unmatched::{Unmatched, unmatched};
pub use self::verify::{Failure, TestsTooLong, run_tests, run_tests_bounded};

#[cfg(test)]
pub(crate) mod tests;
