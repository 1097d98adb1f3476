//! What a call to a peer shows, by which two nodes behind routers meet that have no common relay.

/// What is known of the calls to a peer that is not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum Calls {
    /// None was sent, or its answer may still come.
    Pending,
    /// None can be sent: no coordinator is connected, and no peer is reached that passes calls on.
    NoWay,
    /// The peer's version follows no calls.
    Unsupported,
    /// The last one was sent over the coordinator, or to so many peers, and was not answered.
    Unanswered { by_coordinator: bool, by_peers: u32 },
    /// The last one was answered.
    Answered,
}

impl Calls {
    /// What to do so that a call connects this node with `peer`.
    pub(super) fn remedy(self, peer: &str) -> Option<String> {
        match self {
            Self::Pending => None,
            Self::NoWay => Some(format!(
                "connect this node to the coordinator, or to a member that {peer} reaches as well, because without one of them it cannot agree with {peer} to open both routers at the same moment"
            )),
            Self::Unsupported => Some(format!(
                "upgrade meshd on {peer}, because its version follows no calls, by which two nodes behind routers meet"
            )),
            Self::Unanswered {
                by_coordinator,
                by_peers,
            } => Some(format!(
                "connect {peer} to the coordinator, or to a member that this node reaches as well, because it did not answer the last call of this node ({})",
                sent_by(by_coordinator, by_peers)
            )),
            Self::Answered => Some(format!(
                "let a member with a public address relay, because {peer} answered a call and still nothing comes through, as between routers of which one gives each destination another port"
            )),
        }
    }
}

fn sent_by(by_coordinator: bool, by_peers: u32) -> String {
    let members = match by_peers {
        1 => "1 member".to_owned(),
        count => format!("{count} members"),
    };
    match (by_coordinator, by_peers) {
        (true, 0) => "sent over the coordinator".to_owned(),
        (true, _) => format!("sent over the coordinator and by {members}"),
        (false, _) => format!("sent by {members}"),
    }
}
