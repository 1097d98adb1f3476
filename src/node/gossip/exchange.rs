//! One conversation between two nodes, from its first message to its end (see [`crate::protocol::gossip`]). Pure: it takes
//! messages and what the ledger says, and gives steps for its shell to take.
//!
//! The two take turns: nobody writes while the other does, so none waits for the other's buffers.

use std::sync::Arc;

use crate::model::{PublicKey, SigningKey};
use crate::protocol::gossip::{
    MAX_ASKED, MAX_RECORDS, MAX_SIGNERS, PROTOCOL, PeerMessage, messages, proof_message,
};
use crate::records::Envelope;
use crate::records::digest::Holdings;
use crate::records::envelope::{Purpose, Signature};
use crate::records::kinds::Record;

/// Records that one conversation brings at most; more come with the next.
const MOST_RECORDS: usize = 65_536;
/// Signers that one conversation compares at most.
const MOST_SIGNERS: usize = 65_536;

/// For the shell to do, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Send(PeerMessage),
    /// The other node has proved its identity.
    Proven,
    /// Give these to the ledger; a forged one ends the conversation.
    Apply(Vec<Envelope>),
    /// The other node vouches for these memberships, about which this node asked.
    Vouched(Vec<Envelope>),
    /// Ask the agent for the memberships of these nodes for which this node vouches, for [`Exchange::handle_memberships`].
    AskMemberships(Vec<PublicKey>),
    /// Wait a little until what was sent has arrived: what comes next ends the tunnel.
    Flush,
    /// Ask the ledger what it holds, for [`Exchange::handle_holdings`].
    AskHoldings,
    /// Ask the ledger for the records of these, for [`Exchange::handle_records`].
    AskRecords(Vec<PublicKey>),
    /// Both are up to date.
    End,
}

/// Why a conversation broke.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("the other node speaks protocol {0}")]
    Version(u32),
    #[error("the other node is not the one at this address")]
    WrongNode,
    #[error("the other node does not prove that it holds its identity key")]
    Proof,
    #[error("the other node sends more than is accepted")]
    TooMuch,
    #[error("the other node does not keep to the protocol")]
    OutOfTurn,
}

/// Who began.
#[derive(Debug)]
enum Side {
    /// This node, to say this first.
    Dials(Opening),
    IsDialled,
}

/// What the node that dials sends first.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// Records that the other node may not have yet.
    pub(super) news: Vec<Envelope>,
    /// Nodes whose memberships the dialling node holds back.
    pub(super) asks: Vec<PublicKey>,
}

/// What is awaited from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Hello,
    Proof,
    /// As who is dialled: news and a summary.
    Summary,
    /// As who dials: `same` or `signers`.
    Verdict,
    /// As who is dialled: records and `want`.
    Want,
    /// As who dials: records and `done`.
    Rest,
    Nothing,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Exchange {
    key: SigningKey,
    other: PublicKey,
    nonce: String,
    side: Side,
    turn: Turn,
    summary: Option<crate::records::digest::Digest>,
    theirs: Holdings,
    wanted: Vec<PublicKey>,
    records: usize,
    /// On the side that dials: the nodes about which this node asked and got no answer yet. On the other side: the nodes about
    /// which it was asked.
    asked: Vec<PublicKey>,
}

impl Exchange {
    /// The side that dials `other`. `nonce` is random.
    pub(super) fn dial(
        key: SigningKey,
        other: PublicKey,
        nonce: String,
        mut opening: Opening,
    ) -> Self {
        opening.asks.truncate(MAX_ASKED);
        Self::new(key, other, nonce, Side::Dials(opening))
    }

    /// Of who is dialled by `other`.
    pub(super) fn answer(key: SigningKey, other: PublicKey, nonce: String) -> Self {
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
            theirs: Holdings::default(),
            wanted: Vec::new(),
            records: 0,
            asked: Vec::new(),
        }
    }

    /// The first steps.
    pub(super) fn begin(&self) -> Vec<Step> {
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

    /// The other says something.
    pub(super) fn handle_message(&mut self, message: PeerMessage) -> Result<Vec<Step>, Broken> {
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
                self.records += records.len();
                if records.len() > MAX_RECORDS || self.records > MOST_RECORDS {
                    return Err(Broken::TooMuch);
                }
                if records.iter().any(|record| self.is_departure(record)) {
                    return Ok(vec![
                        Step::Send(PeerMessage::Received),
                        Step::Flush,
                        Step::Apply(records),
                    ]);
                }
                Ok(vec![Step::Apply(records)])
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
                let asked = (!asked.is_empty()).then_some(Step::AskMemberships(asked));
                Ok(asked.into_iter().chain([Step::AskHoldings]).collect())
            }
            (Turn::Verdict, PeerMessage::Vouch { memberships }) => {
                if memberships.len() > self.asked.len() {
                    return Err(Broken::TooMuch);
                }
                // A second answer is refused.
                self.asked.clear();
                Ok(vec![Step::Vouched(memberships)])
            }
            (Turn::Verdict, PeerMessage::Same) | (Turn::Rest, PeerMessage::Done) => {
                Ok(vec![Step::End])
            }
            (Turn::Verdict, PeerMessage::Signers { signers, last }) => {
                self.theirs.0.extend(signers);
                if self.theirs.0.len() > MOST_SIGNERS {
                    return Err(Broken::TooMuch);
                }
                Ok(self.once(last, Step::AskHoldings))
            }
            (Turn::Want, PeerMessage::Want { signers, last }) => {
                self.wanted.extend(signers);
                if self.wanted.len() > MOST_SIGNERS {
                    return Err(Broken::TooMuch);
                }
                let wanted = if last {
                    std::mem::take(&mut self.wanted)
                } else {
                    Vec::new()
                };
                Ok(self.once(last, Step::AskRecords(wanted)))
            }
            _ => Err(Broken::OutOfTurn),
        }
    }

    /// Whether the other node leaves by this record.
    fn is_departure(&self, record: &Envelope) -> bool {
        record.signer == self.other
            && matches!(
                Record::parse(&record.payload),
                Ok((_, Record::Departure(departure))) if departure.id == self.other
            )
    }

    /// The step, once the other's turn is over.
    fn once(&mut self, last: bool, step: Step) -> Vec<Step> {
        if last {
            self.turn = Turn::Nothing;
            vec![step]
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
                steps.push(Step::AskHoldings);
                Ok(steps)
            }
            Side::IsDialled => {
                self.turn = Turn::Summary;
                Ok(vec![Step::Proven])
            }
        }
    }

    /// This node vouches for `memberships`, which are some of those about which it was asked.
    pub(super) fn handle_memberships(&mut self, memberships: Vec<Envelope>) -> Vec<Step> {
        if memberships.is_empty() {
            return Vec::new();
        }
        vec![Step::Send(PeerMessage::Vouch { memberships })]
    }

    /// The ledger holds `ours`.
    pub(super) fn handle_holdings(&mut self, ours: &Arc<Holdings>) -> Vec<Step> {
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
                vec![Step::AskRecords(self.wanted.clone())]
            }
        }
    }

    /// The ledger has `records` of those asked for.
    pub(super) fn handle_records(&mut self, records: Vec<Envelope>) -> Vec<Step> {
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
