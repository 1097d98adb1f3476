//! The state of the control stream to a coordinator.

use std::net::IpAddr;
use std::time::Instant;

use super::agreement::Summary;
use super::position::Position;
use crate::model::PublicKey;
use crate::node::transitions::coordinator::LinkChange;
use crate::protocol::call::Call;
use crate::protocol::control::{Refusal, RefusedRecord};
use crate::protocol::url::CoordinatorUrl;
use crate::records::Envelope;

/// An event of the control stream.
#[derive(Debug)]
pub enum StreamEvent {
    /// The stream is open.
    Opened {
        /// The coordinator.
        url: CoordinatorUrl,
        /// The name of its store.
        store: String,
        /// The current revision of the store. It is 0 if this node is not a member in that store yet.
        revision: u64,
    },
    /// This node became a member in the coordinator's store.
    Admitted {
        /// The current revision of the store.
        revision: u64,
    },
    /// Records were received.
    Changes {
        /// The records. They are not verified yet.
        records: Vec<Envelope>,
        /// The position of this node once it holds the records.
        position: Position,
    },
    /// The coordinator has stored or refused the records of one publication.
    Published {
        /// The number of the publication.
        sequence: u64,
        /// The reasons why records were refused.
        refused: Vec<String>,
        /// The refused records, if the coordinator names them.
        refused_records: Vec<RefusedRecord>,
        /// Whether the coordinator could not write its store. It has then decided nothing about the records.
        failed: bool,
    },
    /// The coordinator sent the fingerprint of all records that it holds.
    Summary(Summary),
    /// The coordinator sees this node at this address.
    Seen(IpAddr),
    /// Another member calls this node. Nothing is verified yet.
    Called { from: PublicKey, call: Call },
    /// The coordinator sent a sign of life.
    Alive,
    /// The stream is closed. Another attempt follows by itself.
    Closed {
        /// The coordinator.
        url: CoordinatorUrl,
        /// The reason, in one line.
        why: String,
        /// The kind of refusal, if the coordinator refused this node.
        refusal: Option<Refusal>,
        /// Whether another machine has signed, with this node's key, that it is connected.
        copied: bool,
    },
}

/// The state of the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// No attempt has ended since the start.
    Connecting,
    /// The stream is open.
    Connected {
        /// The time at which it opened.
        since: Instant,
    },
    /// The last stream or attempt ended.
    Away {
        /// The reason of the end.
        why: String,
    },
    /// A coordinator answered that this node was removed, and no stream has opened since.
    Revoked {
        /// The reason why the last stream or attempt ended.
        why: String,
    },
    /// Another machine with the keys of this node proved that it is connected, and no stream has opened since.
    Duplicate {
        /// The reason why the last stream or attempt ended.
        why: String,
    },
}

/// The answers of coordinators since the last stream opened. A coordinator that cannot be reached changes none of them.
#[derive(Debug, Default)]
struct Answers {
    revoked: bool,
    /// A coordinator claims that another machine has the keys of this node. It may have no proof.
    duplicate_claimed: bool,
    /// The other machine proved it.
    duplicate_proven: bool,
}

/// The control stream as this node sees it.
#[derive(Debug)]
pub struct LinkState {
    link: Link,
    url: String,
    last_received: Option<Instant>,
    answers: Answers,
    /// How often the open stream was lost.
    losses: u64,
    /// When it was lost, until it is open again.
    lost_at: Option<Instant>,
    /// How the last attempt was refused, if it was.
    refusal: Option<Refusal>,
    /// From where a coordinator last saw this node, and when.
    seen: Option<(IpAddr, Instant)>,
    /// The transitions since they were last taken.
    turns: Vec<LinkChange>,
}

impl LinkState {
    /// The state before the first attempt. `url` is the coordinator that is shown until one was tried.
    pub(super) fn new(url: String) -> Self {
        Self {
            link: Link::Connecting,
            url,
            last_received: None,
            answers: Answers::default(),
            losses: 0,
            lost_at: None,
            refusal: None,
            seen: None,
            turns: Vec::new(),
        }
    }

    /// The transitions since the last call.
    pub(super) fn take_turns(&mut self) -> Vec<LinkChange> {
        std::mem::take(&mut self.turns)
    }

    /// The stream to `url` opened. Returns whether this node was a duplicate until now.
    pub(super) fn handle_opened(&mut self, url: &CoordinatorUrl, now: Instant) -> bool {
        let answers = std::mem::take(&mut self.answers);
        self.url = url.to_string();
        let change = match self.lost_at.take() {
            Some(at) => LinkChange::Back {
                url: self.url.clone(),
                away: now.saturating_duration_since(at),
            },
            None => LinkChange::Connected {
                url: self.url.clone(),
            },
        };
        self.turns.push(change);
        self.last_received = Some(now);
        self.link = Link::Connected { since: now };
        answers.duplicate_proven
    }

    /// A message of the coordinator was received.
    pub(super) fn handle_received(&mut self, now: Instant) {
        self.last_received = Some(now);
    }

    /// The coordinator sees this node at `address`.
    pub(super) fn handle_seen(&mut self, address: IpAddr, now: Instant) {
        self.seen = Some((address, now));
    }

    /// From where a coordinator last saw this node, and when.
    #[must_use]
    pub fn seen(&self) -> Option<(IpAddr, Instant)> {
        self.seen
    }

    /// The stream to `url` closed, or could not be opened. Returns whether this node turned out to be a duplicate.
    pub(super) fn handle_closed(
        &mut self,
        url: &CoordinatorUrl,
        why: String,
        refusal: Option<Refusal>,
        copied: bool,
        now: Instant,
    ) -> bool {
        if self.is_connected() {
            self.losses += 1;
            self.lost_at = Some(now);
        }
        self.url = url.to_string();
        // The attempts that follow fail for other reasons, for each URL its own. Only a refusal, or its end, is news.
        let is_told = self.is_away() && refusal == self.refusal;
        self.refusal = refusal;
        if is_told {
            tracing::debug!(
                url = self.url,
                reason = why,
                "no connection to the coordinator"
            );
        } else {
            let (url, why) = (self.url.clone(), why.clone());
            self.turns.push(LinkChange::Away { url, why });
        }
        self.answers.revoked |= refusal == Some(Refusal::Revoked);
        self.answers.duplicate_claimed |= refusal == Some(Refusal::Clone);
        // A node that was connected since its start is the original, whatever a coordinator answers.
        let is_new = copied && self.last_received.is_none() && !self.answers.duplicate_proven;
        self.answers.duplicate_proven |= is_new;
        self.link = if self.answers.duplicate_proven {
            Link::Duplicate { why }
        } else if self.answers.revoked {
            Link::Revoked { why }
        } else {
            Link::Away { why }
        };
        is_new
    }

    #[must_use]
    pub fn state(&self) -> &Link {
        &self.link
    }

    /// The coordinator that was tried last.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// When the last message of a coordinator was received.
    #[must_use]
    pub fn last_received(&self) -> Option<Instant> {
        self.last_received
    }

    /// Whether the stream is open.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self.link, Link::Connected { .. })
    }

    /// How often the open stream was lost.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// Whether the stream is closed and an attempt to open it has failed, or it was open before.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.failure().is_some()
    }

    /// Why the last stream or attempt ended. None while the stream is open and before the first attempt ended.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        match &self.link {
            Link::Connecting | Link::Connected { .. } => None,
            Link::Away { why } | Link::Revoked { why } | Link::Duplicate { why } => Some(why),
        }
    }

    /// Whether a coordinator answered that this node was removed.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.answers.revoked
    }

    /// Whether another machine with the keys of this node proved that it is connected. This node then avoids its peers.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        self.answers.duplicate_proven
    }

    /// Whether a coordinator claims, with or without proof, that another machine with the keys of this node is connected.
    #[must_use]
    pub fn is_called_duplicate(&self) -> bool {
        self.answers.duplicate_claimed || self.answers.duplicate_proven
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::os::audit::Transition as _;
    use crate::os::log::captured;

    #[test]
    fn a_coordinator_is_away_once_and_back_once_however_often_it_is_dialled() {
        let url: CoordinatorUrl = "https://192.0.2.1:7443".parse().expect("a literal");
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut link = LinkState::new(url.to_string());
        assert_eq!(link.losses(), 0);
        let lines = captured::lines(|| {
            let close = |link: &mut LinkState, why: &str, second| {
                link.handle_closed(&url, why.to_owned(), None, false, at(second));
            };
            link.handle_received(at(1));
            link.handle_opened(&url, at(1));
            close(&mut link, "it closed the connection", 10);
            for second in 11..20 {
                let why = format!("attempt {second} failed");
                close(&mut link, &why, second);
            }
            link.handle_received(at(22));
            link.handle_opened(&url, at(22));
            link.take_turns().iter().for_each(LinkChange::log);
        });
        assert_eq!(
            lines,
            [
                "INFO coordinator connected url=https://192.0.2.1:7443",
                "WARN coordinator away; names and tunnels go on url=https://192.0.2.1:7443 reason=\"it closed the connection\"",
                "INFO coordinator back url=https://192.0.2.1:7443 away_seconds=12.0",
            ]
        );
        assert_eq!(link.losses(), 1);
    }
}
