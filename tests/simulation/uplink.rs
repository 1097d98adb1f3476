//! A node's end of the control stream, as `node::control` has it, without its sockets and tasks.

use std::time::Duration;

use meshd::model::{PublicKey, SigningKey};
use meshd::node::replica::{Position, StreamEvent, Summary};
use meshd::protocol::control::{FromCoordinator, FromNode, MAX_MARK, OLDEST, PROTOCOL, Refusal};
use meshd::protocol::token::SpkiPin;
use meshd::protocol::url::CoordinatorUrl;

use super::coordinator::prove;
use super::network::{At, StreamId};
use super::random::Random;

/// The first wait after a failure is up to this long; it doubles with each further failure.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MOST: Duration = Duration::from_secs(15);
/// How long the opening may take.
const OPENING_LIMIT: Duration = Duration::from_secs(10);
/// A coordinator from which nothing was received for so long is gone.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
enum Stage {
    Closed,
    Opening(Attempt),
    /// The position after the records received on this stream.
    Open(Attempt, Position),
}

#[derive(Debug, Clone)]
struct Attempt {
    stream: StreamId,
    url: CoordinatorUrl,
    begun: At,
    heard: At,
}

#[derive(Debug)]
pub(crate) struct Uplink {
    urls: Vec<CoordinatorUrl>,
    position: Position,
    stage: Stage,
    failures: u32,
    failed: Option<CoordinatorUrl>,
    pinged: At,
}

/// The result of a message of a coordinator.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) send: Vec<FromNode>,
    pub(crate) event: Option<StreamEvent>,
    /// The stream is over; the node has to dial again after this wait.
    pub(crate) closed: Option<(StreamId, Duration)>,
}

impl Uplink {
    pub(crate) fn new(urls: Vec<CoordinatorUrl>, position: Position) -> Self {
        Self {
            urls,
            position,
            stage: Stage::Closed,
            failures: 0,
            failed: None,
            pinged: At::ZERO,
        }
    }

    pub(crate) fn set_urls(&mut self, urls: Vec<CoordinatorUrl>) {
        self.urls = urls;
    }

    pub(crate) fn set_position(&mut self, position: Position) {
        self.position = position;
    }

    /// The stream, if it is open or opening.
    pub(crate) fn stream(&self) -> Option<StreamId> {
        self.attempt().map(|attempt| attempt.stream)
    }

    fn attempt(&self) -> Option<&Attempt> {
        match &self.stage {
            Stage::Closed => None,
            Stage::Opening(attempt) | Stage::Open(attempt, _) => Some(attempt),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(..))
    }

    /// The coordinator to dial now: any, except for the one that failed last, if there are others.
    pub(crate) fn pick(&self, random: &mut Random) -> Option<CoordinatorUrl> {
        let failed = self.failed.as_ref();
        let others: Vec<_> = self.urls.iter().filter(|u| Some(*u) != failed).collect();
        let picked = random.pick(&others).copied();
        picked.or(self.urls.first()).cloned()
    }

    /// No coordinator answers at `url`. Returns the event, and the wait until the next attempt.
    pub(crate) fn handle_unreachable(
        &mut self,
        url: CoordinatorUrl,
        random: &mut Random,
    ) -> (StreamEvent, Duration) {
        self.failed = Some(url.clone());
        self.failures = self.failures.saturating_add(1);
        let closed = StreamEvent::Closed {
            url,
            why: "the coordinator does not answer".into(),
            refusal: None,
            copied: false,
        };
        (closed, self.wait(random))
    }

    /// A stream to `url` is open. Returns the first message.
    pub(crate) fn handle_dialled(
        &mut self,
        stream: StreamId,
        url: CoordinatorUrl,
        node: PublicKey,
        (at, instance): (At, &str),
    ) -> FromNode {
        self.stage = Stage::Opening(Attempt {
            stream,
            url,
            begun: at,
            heard: at,
        });
        FromNode::Hello {
            protocol: PROTOCOL,
            oldest: Some(OLDEST),
            version: "simulated".into(),
            node,
            store: self.position.store.clone(),
            revision: self.position.revision,
            instance: Some(instance.into()),
        }
    }

    /// Anything was received.
    pub(crate) fn handle_ping(&mut self, stream: StreamId, at: At) -> Option<StreamEvent> {
        match &mut self.stage {
            Stage::Opening(attempt) if attempt.stream == stream => {
                attempt.heard = at;
                None
            }
            Stage::Open(attempt, _) if attempt.stream == stream => {
                attempt.heard = at;
                Some(StreamEvent::Alive)
            }
            _ => None,
        }
    }

    pub(crate) fn handle_message(
        &mut self,
        stream: StreamId,
        message: FromCoordinator,
        key: &SigningKey,
        (at, random): (At, &mut Random),
    ) -> Received {
        let alive = self.handle_ping(stream, at);
        if self.stream() != Some(stream) {
            return Received::default();
        }
        if let FromCoordinator::Refuse {
            reason, message, ..
        } = message
        {
            // The simulation has no two machines with one key, so no signature proves that this one is a duplicate.
            return self.close(at, message, Some(reason), random);
        }
        match std::mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Opening(attempt) => self.handle_opening(attempt, message, key),
            Stage::Open(attempt, mut position) => {
                let event = match message {
                    FromCoordinator::Changes { revision, records } => {
                        position.revision = revision;
                        Some(StreamEvent::Changes {
                            records,
                            position: position.clone(),
                        })
                    }
                    FromCoordinator::Mark { mark } if mark.len() <= MAX_MARK => {
                        position.mark = Some(mark);
                        Some(StreamEvent::Changes {
                            records: Vec::new(),
                            position: position.clone(),
                        })
                    }
                    FromCoordinator::Welcome {
                        store, revision, ..
                    } => {
                        position.store = Some(store);
                        Some(StreamEvent::Admitted { revision })
                    }
                    FromCoordinator::Published {
                        sequence,
                        refused,
                        refused_records,
                        failed,
                        ..
                    } => Some(StreamEvent::Published {
                        sequence,
                        refused,
                        refused_records,
                        failed,
                    }),
                    FromCoordinator::Summary {
                        revision,
                        fingerprint,
                    } => Some(StreamEvent::Summary(Summary {
                        revision,
                        fingerprint,
                    })),
                    _ => alive,
                };
                self.stage = Stage::Open(attempt, position);
                Received {
                    event,
                    ..Received::default()
                }
            }
            Stage::Closed => Received::default(),
        }
    }

    fn handle_opening(
        &mut self,
        attempt: Attempt,
        message: FromCoordinator,
        key: &SigningKey,
    ) -> Received {
        let mut received = Received::default();
        self.stage = match message {
            FromCoordinator::Challenge { nonce } => {
                received.send.push(prove(&nonce, &PIN, key));
                Stage::Opening(attempt)
            }
            FromCoordinator::Welcome {
                store,
                revision,
                snapshot,
                ..
            } => {
                let mark = self.position.mark.clone();
                received
                    .send
                    .extend(mark.clone().map(|mark| FromNode::Mark { mark }));
                received.event = Some(StreamEvent::Opened {
                    url: attempt.url.clone(),
                    store: store.clone(),
                    revision,
                });
                let position = Position {
                    revision: if snapshot { 0 } else { self.position.revision },
                    store: Some(store),
                    mark,
                };
                Stage::Open(attempt, position)
            }
            _ => Stage::Opening(attempt),
        };
        received
    }

    /// Closes the stream, whatever its state is.
    pub(crate) fn close(
        &mut self,
        at: At,
        why: String,
        refusal: Option<Refusal>,
        random: &mut Random,
    ) -> Received {
        let Some(attempt) = self.attempt().cloned() else {
            return Received::default();
        };
        self.stage = Stage::Closed;
        self.failed = Some(attempt.url.clone());
        // A stream that held for a while was no failure.
        self.failures = if at.saturating_sub(attempt.begun) > Duration::from_secs(60) {
            0
        } else {
            self.failures.saturating_add(1)
        };
        Received {
            send: Vec::new(),
            event: Some(StreamEvent::Closed {
                url: attempt.url,
                why,
                refusal,
                copied: false,
            }),
            closed: Some((attempt.stream, self.wait(random))),
        }
    }

    /// Full jitter, as the product has it.
    fn wait(&self, random: &mut Random) -> Duration {
        let doubled = BACKOFF_FIRST.saturating_mul(1 << self.failures.saturating_sub(1).min(10));
        let bound = doubled.min(BACKOFF_MOST).as_millis();
        Duration::from_millis(random.below(bound as u64))
    }

    /// Why the stream is given up now, if it is.
    pub(crate) fn is_given_up(&self, at: At) -> Option<&'static str> {
        match &self.stage {
            Stage::Opening(attempt) if at.saturating_sub(attempt.begun) > OPENING_LIMIT => {
                Some("the coordinator did not answer in time")
            }
            Stage::Open(attempt, _) if at.saturating_sub(attempt.heard) > SILENCE => {
                Some("the coordinator fell silent")
            }
            _ => None,
        }
    }

    /// The stream on which a ping is to be sent now.
    pub(crate) fn poll_ping(&mut self, at: At) -> Option<StreamId> {
        let is_due = at.saturating_sub(self.pinged) >= Duration::from_secs(10);
        let stream = self.stream().filter(|_| is_due)?;
        self.pinged = at;
        Some(stream)
    }
}

/// The hash of the key that all coordinators of a simulation have.
pub(crate) const PIN: SpkiPin = SpkiPin([7; 32]);
