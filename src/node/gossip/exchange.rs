//! One conversation between two nodes, from its first message to its end (see [`crate::protocol::gossip`]). Pure: it takes
//! messages and the replies of the replica, and returns steps for its shell.
//!
//! The two nodes take turns. A node does not write while the other one does, so neither waits for the other's buffers.

use crate::model::{PublicKey, SigningKey};
use crate::node::replica::{LedgerReply, LedgerRequest, Opening};
use crate::protocol::gossip::{
    MAX_ASKED, MAX_RECORDS, MAX_SIGNERS, PROTOCOL, PeerMessage, messages, proof_message,
};
use crate::records::Envelope;
use crate::records::digest::Digests;
use crate::records::envelope::{Purpose, Signature};
use crate::records::kinds::Record;

/// The maximum number of records that one conversation brings. More come with the next.
const MAX_ALL_RECORDS: usize = 65_536;
/// The maximum number of signers that one conversation compares.
const MAX_ALL_SIGNERS: usize = 65_536;

/// An action for the shell. The shell takes the steps in their order.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this message.
    Send(PeerMessage),
    /// The other node has proved its identity.
    Proven,
    /// Give this request to the replica, and its reply to [`Exchange::handle_reply`]. A forged record ends the conversation.
    Ask(LedgerRequest),
    /// Wait a little until what was sent has arrived: what comes next ends the tunnel.
    Flush,
    /// Both are up to date.
    End,
}

/// Why a conversation broke.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The other node speaks another version of the protocol.
    #[error("the other node speaks protocol {0}")]
    Version(u32),
    /// The other node names another identity than the owner of its address.
    #[error("the other node is not the one at this address")]
    WrongNode,
    /// The signature of the other node does not hold.
    #[error("the other node does not prove that it holds its identity key")]
    Proof,
    /// A message is over a limit.
    #[error("the other node sends more than is accepted")]
    TooMuch,
    /// The message is not expected now.
    #[error("the other node does not keep to the protocol")]
    OutOfTurn,
}

/// The side of this node in the conversation.
#[derive(Debug)]
enum Side {
    /// This node dials, and sends these messages first.
    Dials(Opening),
    IsDialled,
}

/// The message that this node expects next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Hello,
    Proof,
    /// At the dialled node: news and a summary.
    Summary,
    /// At the dialling node: `same` or `signers`.
    Verdict,
    /// At the dialled node: records and `want`.
    Want,
    /// At the dialling node: records and `done`.
    Rest,
    Nothing,
}

/// One conversation with another node, at the side of this node.
#[derive(Debug)]
pub struct Exchange {
    key: SigningKey,
    other: PublicKey,
    nonce: String,
    side: Side,
    turn: Turn,
    summary: Option<crate::records::digest::Digest>,
    theirs: Digests,
    wanted: Vec<PublicKey>,
    records: usize,
    /// On the side that dials: the nodes about which this node asked and got no answer yet. On the other side: the nodes about
    /// which it was asked.
    asked: Vec<PublicKey>,
}

impl Exchange {
    /// The side that dials `other`. `nonce` is random.
    #[must_use]
    pub fn dial(key: SigningKey, other: PublicKey, nonce: String, mut opening: Opening) -> Self {
        opening.asks.truncate(MAX_ASKED);
        Self::new(key, other, nonce, Side::Dials(opening))
    }

    /// The side that `other` has dialled. `nonce` is random.
    #[must_use]
    pub fn answer(key: SigningKey, other: PublicKey, nonce: String) -> Self {
        Self::new(key, other, nonce, Side::IsDialled)
    }

    fn new(key: SigningKey, other: PublicKey, nonce: String, side: Side) -> Self {
        Self {
            key,
            other,
            nonce,
            side,
            turn: Turn::Hello,
            summary: None,
            theirs: Digests::default(),
            wanted: Vec::new(),
            records: 0,
            asked: Vec::new(),
        }
    }

    /// The first steps.
    #[must_use]
    pub fn begin(&self) -> Vec<Step> {
        match self.side {
            Side::Dials(_) => vec![self.hello()],
            Side::IsDialled => Vec::new(),
        }
    }

    fn hello(&self) -> Step {
        Step::Send(PeerMessage::Hello {
            protocol: PROTOCOL,
            node: self.key.public(),
            nonce: self.nonce.clone(),
        })
    }

    /// A message of the other node was received.
    ///
    /// # Errors
    /// The other node does not keep to the protocol. The conversation has to end.
    pub fn handle_message(&mut self, message: PeerMessage) -> Result<Vec<Step>, Broken> {
        match (self.turn, message) {
            (_, PeerMessage::Unknown) => Ok(Vec::new()),
            (
                Turn::Hello,
                PeerMessage::Hello {
                    protocol,
                    node,
                    nonce,
                },
            ) => self.handle_hello(protocol, node, &nonce),
            (Turn::Proof, PeerMessage::Proof { signature }) => self.handle_proof(signature),
            (Turn::Summary | Turn::Want | Turn::Rest, PeerMessage::Records { records }) => {
                self.handle_records(records)
            }
            (Turn::Summary, PeerMessage::Ask { nodes }) => {
                if nodes.len() > MAX_ASKED || !self.asked.is_empty() {
                    return Err(Broken::TooMuch);
                }
                self.asked = nodes;
                Ok(Vec::new())
            }
            (Turn::Summary, PeerMessage::Summary { digest }) => {
                self.summary = Some(digest);
                self.turn = Turn::Nothing;
                let asked = std::mem::take(&mut self.asked);
                let memberships = (!asked.is_empty()).then_some(LedgerRequest::Memberships(asked));
                let requests = memberships.into_iter().chain([LedgerRequest::Digests]);
                Ok(requests.map(Step::Ask).collect())
            }
            (Turn::Verdict, PeerMessage::Vouch { memberships }) => {
                if memberships.len() > self.asked.len() {
                    return Err(Broken::TooMuch);
                }
                // A second answer is refused.
                self.asked.clear();
                Ok(vec![Step::Ask(LedgerRequest::Vouched {
                    peer: self.other,
                    memberships,
                })])
            }
            (Turn::Verdict, PeerMessage::Same) | (Turn::Rest, PeerMessage::Done) => {
                Ok(vec![Step::End])
            }
            (Turn::Verdict, PeerMessage::Signers { signers, last }) => {
                self.theirs.0.extend(signers);
                if self.theirs.0.len() > MAX_ALL_SIGNERS {
                    return Err(Broken::TooMuch);
                }
                Ok(self.once(last, LedgerRequest::Digests))
            }
            (Turn::Want, PeerMessage::Want { signers, last }) => {
                self.wanted.extend(signers);
                if self.wanted.len() > MAX_ALL_SIGNERS {
                    return Err(Broken::TooMuch);
                }
                let wanted = if last {
                    std::mem::take(&mut self.wanted)
                } else {
                    Vec::new()
                };
                Ok(self.once(last, LedgerRequest::Records(wanted)))
            }
            _ => Err(Broken::OutOfTurn),
        }
    }

    fn handle_records(&mut self, records: Vec<Envelope>) -> Result<Vec<Step>, Broken> {
        self.records += records.len();
        if records.len() > MAX_RECORDS || self.records > MAX_ALL_RECORDS {
            return Err(Broken::TooMuch);
        }
        let is_leaving = records.iter().any(|record| self.is_departure(record));
        let apply = self.apply(records);
        Ok(if is_leaving {
            vec![Step::Send(PeerMessage::Received), Step::Flush, apply]
        } else {
            vec![apply]
        })
    }

    /// Whether the other node leaves by this record.
    fn is_departure(&self, record: &Envelope) -> bool {
        record.signer == self.other
            && matches!(
                Record::parse(&record.payload),
                Ok((_, Record::Departure(departure))) if departure.id == self.other
            )
    }

    fn apply(&self, records: Vec<Envelope>) -> Step {
        Step::Ask(LedgerRequest::Apply {
            peer: self.other,
            records,
        })
    }

    /// The request, once the turn of the other node is over.
    fn once(&mut self, last: bool, request: LedgerRequest) -> Vec<Step> {
        if last {
            self.turn = Turn::Nothing;
            vec![Step::Ask(request)]
        } else {
            Vec::new()
        }
    }

    fn handle_hello(
        &mut self,
        protocol: u32,
        node: PublicKey,
        nonce: &str,
    ) -> Result<Vec<Step>, Broken> {
        if protocol != PROTOCOL {
            return Err(Broken::Version(protocol));
        }
        if node != self.other {
            return Err(Broken::WrongNode);
        }
        self.turn = Turn::Proof;
        let message = proof_message(nonce, &self.key.public(), &self.other);
        let proof = Step::Send(PeerMessage::Proof {
            signature: Signature::make(&self.key, Purpose::Peer, &message),
        });
        Ok(match self.side {
            Side::Dials(_) => vec![proof],
            Side::IsDialled => vec![self.hello(), proof],
        })
    }

    fn handle_proof(&mut self, signature: Signature) -> Result<Vec<Step>, Broken> {
        let message = proof_message(&self.nonce, &self.other, &self.key.public());
        if !signature.holds(&self.other, Purpose::Peer, &message) {
            return Err(Broken::Proof);
        }
        match &mut self.side {
            Side::Dials(opening) => {
                self.turn = Turn::Nothing;
                let Opening { news, asks } = std::mem::take(opening);
                let mut steps = vec![Step::Proven];
                steps.extend(messages(news).into_iter().map(Step::Send));
                if !asks.is_empty() {
                    self.asked.clone_from(&asks);
                    steps.push(Step::Send(PeerMessage::Ask { nodes: asks }));
                }
                steps.push(Step::Ask(LedgerRequest::Digests));
                Ok(steps)
            }
            Side::IsDialled => {
                self.turn = Turn::Summary;
                Ok(vec![Step::Proven])
            }
        }
    }

    /// The replica answered a [`Step::Ask`].
    pub fn handle_reply(&mut self, reply: LedgerReply) -> Vec<Step> {
        match reply {
            LedgerReply::Applied(_) => Vec::new(),
            LedgerReply::Memberships(memberships) if memberships.is_empty() => Vec::new(),
            LedgerReply::Memberships(memberships) => {
                vec![Step::Send(PeerMessage::Vouch { memberships })]
            }
            LedgerReply::Digests(ours) => self.compare(&ours),
            LedgerReply::Records(records) => self.send_records(records),
        }
    }

    /// The ledger holds `ours`.
    fn compare(&mut self, ours: &Digests) -> Vec<Step> {
        match (&self.side, self.summary) {
            (Side::IsDialled, Some(theirs)) if theirs == ours.summary() => {
                vec![Step::Send(PeerMessage::Same), Step::End]
            }
            (Side::IsDialled, _) => {
                self.turn = Turn::Want;
                let signers: Vec<_> = ours.0.iter().map(|(s, d)| (*s, *d)).collect();
                cut(&signers, |part, last| PeerMessage::Signers {
                    signers: part.iter().copied().collect(),
                    last,
                })
            }
            (Side::Dials(_), None) => {
                let digest = ours.summary();
                self.summary = Some(digest);
                self.turn = Turn::Verdict;
                vec![Step::Send(PeerMessage::Summary { digest })]
            }
            (Side::Dials(_), Some(_)) => {
                self.wanted = ours.differing(&self.theirs);
                vec![Step::Ask(LedgerRequest::Records(self.wanted.clone()))]
            }
        }
    }

    /// The ledger holds these records of the signers that were asked for.
    fn send_records(&mut self, records: Vec<Envelope>) -> Vec<Step> {
        let mut steps: Vec<Step> = messages(records).into_iter().map(Step::Send).collect();
        match self.side {
            Side::Dials(_) => {
                self.turn = Turn::Rest;
                steps.extend(cut(&std::mem::take(&mut self.wanted), |part, last| {
                    PeerMessage::Want {
                        signers: part.to_vec(),
                        last,
                    }
                }));
            }
            Side::IsDialled => {
                self.turn = Turn::Nothing;
                steps.extend([Step::Send(PeerMessage::Done), Step::End]);
            }
        }
        steps
    }
}

/// A list in messages of bounded length; at least one.
fn cut<T>(list: &[T], message: impl Fn(&[T], bool) -> PeerMessage) -> Vec<Step> {
    let count = list.len().div_ceil(MAX_SIGNERS).max(1);
    let parts = (0..count).map(|at| {
        let part = list.chunks(MAX_SIGNERS).nth(at).unwrap_or_default();
        Step::Send(message(part, at + 1 == count))
    });
    parts.collect()
}

#[cfg(test)]
mod tests;
