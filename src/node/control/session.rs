//! The protocol of a control stream at the node's side, from the first message to the end (see
//! [`crate::protocol::control`]). Pure: it takes the messages of the coordinator, and returns messages to send and events.

use crate::model::{PublicKey, SigningKey, text};
use crate::node::replica::{Position, StreamEvent, Summary};
use crate::protocol::control::{
    FromCoordinator, FromNode, MAX_MARK, OLDEST, PROTOCOL, Refusal, copy_message, proof_message,
};
use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;
use crate::records::envelope::{Purpose, Signature};

/// The identity of a node towards a coordinator.
#[derive(Debug, Clone)]
pub struct SessionKeys {
    /// The node's identity key.
    pub identity: SigningKey,
    /// The key of the coordinators.
    pub pin: SpkiPin,
    /// The random name of this run of the program. Two names at once are two machines with the same keys.
    pub instance: String,
}

/// An output of a session.
#[derive(Debug)]
pub enum Output {
    /// Send this message.
    Send(FromNode),
    /// Give this event to the replica.
    Event(StreamEvent),
}

/// The end of a session.
#[derive(Debug)]
pub struct Ended {
    /// The reason, in one line.
    pub why: String,
    /// The kind of refusal, if the coordinator refused this node.
    pub refusal: Option<Refusal>,
    /// Whether another machine has signed, with this node's key, that it is connected.
    pub copied: bool,
}

impl<E: std::fmt::Display> From<E> for Ended {
    fn from(error: E) -> Self {
        Self {
            // Errors of the parser and of the handshake quote what the coordinator sent.
            why: text::message(&error.to_string()),
            refusal: None,
            copied: false,
        }
    }
}

/// One control stream.
#[derive(Debug)]
pub struct Session {
    keys: SessionKeys,
    url: CoordinatorUrl,
    position: Position,
    is_open: bool,
}

impl Session {
    /// A stream to the coordinator `url` that starts at `position`.
    #[must_use]
    pub fn new(keys: SessionKeys, url: CoordinatorUrl, position: Position) -> Self {
        Self {
            keys,
            url,
            position,
            is_open: false,
        }
    }

    /// The first message.
    #[must_use]
    pub fn hello(&self) -> FromNode {
        FromNode::Hello {
            protocol: PROTOCOL,
            oldest: Some(OLDEST),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.id(),
            store: self.position.store.clone(),
            revision: self.position.revision,
            instance: Some(self.keys.instance.clone()),
        }
    }

    /// Whether the coordinator has accepted this node, so that records can be published.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// A message of the coordinator was received.
    ///
    /// # Errors
    /// The session ends.
    pub fn handle_message(&mut self, message: FromCoordinator) -> Result<Vec<Output>, Ended> {
        if let FromCoordinator::Refuse {
            reason,
            message,
            proof,
        } = message
        {
            return Err(self.refused(reason, message, proof));
        }
        if self.is_open {
            return Ok(self.handle_open(message));
        }
        match message {
            FromCoordinator::Challenge { nonce } => {
                let message = proof_message(&nonce, &self.keys.pin);
                let signature = Signature::make(&self.keys.identity, Purpose::Control, &message);
                Ok(vec![Output::Send(FromNode::Proof { signature })])
            }
            FromCoordinator::Welcome { protocol, .. }
                if !(OLDEST..=PROTOCOL).contains(&protocol) =>
            {
                Err(format!("the coordinator wants to speak protocol {protocol}, which this node does not; upgrade the older of the two").into())
            }
            FromCoordinator::Welcome {
                store,
                revision,
                snapshot,
                ..
            } => Ok(self.handle_welcome(store, revision, snapshot)),
            _ => Ok(Vec::new()),
        }
    }

    /// The other side has sent something that is no message, for example a ping.
    #[must_use]
    pub fn handle_alive(&self) -> Vec<Output> {
        if self.is_open {
            vec![Output::Event(StreamEvent::Alive)]
        } else {
            Vec::new()
        }
    }

    fn id(&self) -> PublicKey {
        self.keys.identity.public()
    }

    fn handle_welcome(&mut self, store: String, revision: u64, snapshot: bool) -> Vec<Output> {
        self.is_open = true;
        if snapshot {
            self.position.revision = 0;
        }
        self.position.store = Some(store.clone());
        let opened = Output::Event(StreamEvent::Opened {
            url: self.url.clone(),
            store,
            revision,
        });
        // The mark is sent before all records, since the coordinator treats the records by it.
        let mark = self.position.mark.clone();
        let mark = mark.map(|mark| Output::Send(FromNode::Mark { mark }));
        mark.into_iter().chain([opened]).collect()
    }

    fn handle_open(&mut self, message: FromCoordinator) -> Vec<Output> {
        let event = match message {
            FromCoordinator::Changes { revision, records } => {
                self.position.revision = revision;
                StreamEvent::Changes {
                    records,
                    position: self.position.clone(),
                }
            }
            FromCoordinator::Mark { mark } if mark.len() <= MAX_MARK => {
                self.position.mark = Some(mark);
                StreamEvent::Changes {
                    records: Vec::new(),
                    position: self.position.clone(),
                }
            }
            // The first one did not name the store: this node was no member there yet.
            FromCoordinator::Welcome {
                store, revision, ..
            } => {
                self.position.store = Some(store);
                StreamEvent::Admitted { revision }
            }
            FromCoordinator::Published {
                sequence,
                refused,
                refused_records,
                failed,
                ..
            } => StreamEvent::Published {
                sequence,
                refused,
                refused_records,
                failed,
            },
            FromCoordinator::Summary {
                revision,
                fingerprint,
            } => StreamEvent::Summary(Summary {
                revision,
                fingerprint,
            }),
            FromCoordinator::Seen { address } => StreamEvent::Seen(address),
            FromCoordinator::Call { from, call } => StreamEvent::Called { from, call },
            FromCoordinator::Copy { instance } => {
                let proof = self.prove_copy(instance).map(Output::Send);
                let alive = Output::Event(StreamEvent::Alive);
                return proof.into_iter().chain([alive]).collect();
            }
            _ => StreamEvent::Alive,
        };
        vec![Output::Event(event)]
    }

    /// The end by a refusal. This node counts as a copy of another machine only if that machine has signed it.
    fn refused(&self, reason: Refusal, why: String, proof: Option<Signature>) -> Ended {
        let copied = reason == Refusal::Clone
            && proof.is_some_and(|proof| {
                let message = copy_message(&self.keys.instance);
                proof.holds(&self.id(), Purpose::DuplicateProof, &message)
            });
        Ended {
            why,
            refusal: Some(reason),
            copied,
        }
    }

    /// The proof that `other` is another machine, unless it is this very run.
    fn prove_copy(&self, other: String) -> Option<FromNode> {
        (other != self.keys.instance).then(|| FromNode::Vouch {
            signature: Signature::make(
                &self.keys.identity,
                Purpose::DuplicateProof,
                &copy_message(&other),
            ),
            instance: other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::fingerprint::Fingerprint;

    fn session(position: Position) -> Session {
        let keys = SessionKeys {
            identity: SigningKey::from_seed(&[1; 32]),
            pin: SpkiPin([0; 32]),
            instance: "a".into(),
        };
        let url = "https://192.0.2.1:7443".parse().expect("a literal");
        Session::new(keys, url, position)
    }

    fn opened(position: Position, snapshot: bool) -> Session {
        let mut session = session(position);
        session
            .handle_message(welcome("s", 9, snapshot))
            .expect("accepted");
        assert!(session.is_open());
        session
    }

    fn welcome(store: &str, revision: u64, snapshot: bool) -> FromCoordinator {
        FromCoordinator::Welcome {
            protocol: PROTOCOL,
            store: store.into(),
            revision,
            snapshot,
        }
    }

    fn position(revision: u64) -> Position {
        Position {
            store: Some("s".into()),
            revision,
            mark: None,
        }
    }

    /// The position of the only output.
    fn reached(outputs: Vec<Output>) -> Position {
        match outputs.into_iter().next() {
            Some(Output::Event(StreamEvent::Changes { position, .. })) => position,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_proves_its_identity_and_returns_its_mark_before_anything_else() {
        let mark = Some("m".to_owned());
        let mut session = session(Position {
            mark: mark.clone(),
            ..position(5)
        });
        assert!(matches!(
            session.hello(),
            FromNode::Hello { revision: 5, store: Some(store), .. } if store == "s"
        ));
        let challenge = FromCoordinator::Challenge { nonce: "n".into() };
        let proof = session.handle_message(challenge).expect("answered");
        let [Output::Send(FromNode::Proof { signature })] = &proof[..] else {
            panic!("{proof:?}")
        };
        let message = proof_message("n", &SpkiPin([0; 32]));
        assert!(signature.holds(&session.id(), Purpose::Control, &message));
        assert!(session.handle_alive().is_empty() && !session.is_open());
        let early = session.handle_message(FromCoordinator::Changes {
            revision: 7,
            records: vec![],
        });
        assert!(early.expect("ignored").is_empty());
        let outputs = session
            .handle_message(welcome("s", 9, false))
            .expect("accepted");
        let [
            Output::Send(FromNode::Mark { mark }),
            Output::Event(StreamEvent::Opened { revision: 9, .. }),
        ] = &outputs[..]
        else {
            panic!("{outputs:?}")
        };
        assert_eq!(mark, "m");
        assert_eq!(session.handle_alive().len(), 1);
    }

    #[test]
    fn a_coordinator_that_speaks_another_version_is_refused() {
        for protocol in [OLDEST - 1, PROTOCOL + 1] {
            let welcome = FromCoordinator::Welcome {
                protocol,
                store: "s".into(),
                revision: 1,
                snapshot: false,
            };
            let ended = session(position(5))
                .handle_message(welcome)
                .expect_err("refused");
            assert!(ended.why.contains("upgrade"), "{}", ended.why);
            assert_eq!(ended.refusal, None);
        }
    }

    #[test]
    fn the_position_follows_changes_and_marks_and_begins_anew_with_a_snapshot() {
        let mark = |mark: &str| FromCoordinator::Mark { mark: mark.into() };
        for (snapshot, start) in [(false, 5), (true, 0)] {
            let mut session = opened(position(5), snapshot);
            let marked = reached(session.handle_message(mark("m")).expect("open"));
            assert_eq!((marked.revision, marked.mark), (start, Some("m".into())));
        }
        let mut session = opened(position(5), false);
        let changes = FromCoordinator::Changes {
            revision: 6,
            records: vec![],
        };
        assert_eq!(
            reached(session.handle_message(changes).expect("open")),
            position(6)
        );
        let long = session.handle_message(mark(&"m".repeat(MAX_MARK + 1)));
        assert!(matches!(
            long.expect("open")[..],
            [Output::Event(StreamEvent::Alive)]
        ));
        let longest = reached(
            session
                .handle_message(mark(&"m".repeat(MAX_MARK)))
                .expect("open"),
        );
        assert_eq!(longest.mark.map(|mark| mark.len()), Some(MAX_MARK));
        // A node that was no member learns the name of the store when it is admitted.
        let admitted = session
            .handle_message(welcome("t", 12, false))
            .expect("open");
        assert!(matches!(
            admitted[..],
            [Output::Event(StreamEvent::Admitted { revision: 12 })]
        ));
        let next = reached(session.handle_message(mark("n")).expect("open"));
        assert_eq!(next.store.as_deref(), Some("t"));
        let published = FromCoordinator::Published {
            sequence: 3,
            accepted: 1,
            refused: vec!["no".into()],
            refused_records: vec![],
            failed: false,
        };
        let published = session.handle_message(published).expect("open");
        assert!(matches!(
            published[..],
            [Output::Event(StreamEvent::Published { sequence: 3, .. })]
        ));
    }

    #[test]
    fn a_summary_of_the_coordinator_is_an_event() {
        let mut session = opened(position(5), false);
        let fingerprint = Fingerprint::default();
        let summary = FromCoordinator::Summary {
            revision: 5,
            fingerprint,
        };
        let output = session.handle_message(summary).expect("open");
        let [Output::Event(StreamEvent::Summary(summary))] = output[..] else {
            panic!("another output")
        };
        assert_eq!((summary.revision, summary.fingerprint), (5, fingerprint));
    }

    #[test]
    fn a_node_believes_only_its_own_key_that_it_is_a_copy_and_never_signs_against_itself() {
        let mut session = opened(position(5), false);
        let own = session.keys.identity.clone();
        let proof = |key: &SigningKey, instance: &str| {
            Some(Signature::make(
                key,
                Purpose::DuplicateProof,
                &copy_message(instance),
            ))
        };
        let is_copied = |reason, proof| {
            let refuse = FromCoordinator::Refuse {
                reason,
                message: String::new(),
                proof,
            };
            let ended = opened(position(5), false)
                .handle_message(refuse)
                .expect_err("the end");
            assert_eq!(ended.refusal, Some(reason));
            ended.copied
        };
        let other_key = SigningKey::from_seed(&[2; 32]);
        assert!(is_copied(Refusal::Clone, proof(&own, "a")));
        assert!(!is_copied(Refusal::Clone, None));
        assert!(!is_copied(Refusal::Clone, proof(&own, "b")));
        assert!(!is_copied(Refusal::Clone, proof(&other_key, "a")));
        let control = Signature::make(&own, Purpose::Control, &copy_message("a"));
        assert!(!is_copied(Refusal::Clone, Some(control)));
        assert!(!is_copied(Refusal::Busy, proof(&own, "a")));

        let mut copy = |instance: &str| {
            let instance = instance.to_owned();
            let outputs = session.handle_message(FromCoordinator::Copy { instance });
            outputs.expect("open")
        };
        assert!(matches!(copy("a")[..], [Output::Event(StreamEvent::Alive)]));
        let outputs = copy("b");
        let [
            Output::Send(FromNode::Vouch {
                instance,
                signature,
            }),
            Output::Event(StreamEvent::Alive),
        ] = &outputs[..]
        else {
            panic!("{outputs:?}")
        };
        assert_eq!(
            (instance.as_str(), Some(*signature)),
            ("b", proof(&own, "b"))
        );
    }
}
