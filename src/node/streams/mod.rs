//! The streams of this node: to relays, if its network drops UDP, and of members for which this node relays.
//!
//! | file | what it is |
//! |---|---|
//! | [`dialer`] | opens a stream to a relay, and carries it |
//! | [`listener`] | takes streams of members |
//! | [`opening`] | the exchange by which a node proves who it is |
//! | [`openings`] | how often each member may open its stream |
//! | [`carrying`] | carries frames between a WebSocket and the tunnel |
//! | [`tls`] | the TLS of both ends |
//!
//! When a stream is opened, and to which relay, is decided in [`crate::path::streams`].

mod carrying;
mod dialer;
mod listener;
mod opening;
mod openings;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use self::dialer::Dialer;
use self::listener::Listener;
use self::opening::{Admission, Members};
use self::openings::Openings;
use super::config::RelaySettings;
use crate::model::{NodeAddress, PublicKey, SigningKey};
use crate::os::proxy;
use crate::os::tasks::AbortOnDrop;
use crate::path::streams::{KnownRelay, Step, Streams};
use crate::protocol::local::Problem;
use crate::protocol::stream::{StreamTarget, StreamUrl};
use crate::records::kinds::StreamOffer;
use crate::tunnel::StreamOpener;

/// The maximum number of events that wait for the agent.
const MAX_EVENTS: usize = 64;

/// An event of the stream to a relay.
#[derive(Debug)]
pub(super) struct RelayStreamEvent {
    relay: PublicKey,
    /// The number of the stream.
    number: u64,
    turn: Turn,
}

#[derive(Debug)]
enum Turn {
    /// The stream is open.
    Opened,
    /// The stream could not be opened or has ended, for this reason.
    Closed(String),
}

/// A relay that offers streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offered {
    pub address: NodeAddress,
    pub target: StreamTarget,
}

/// The streams of this node.
pub(super) struct RelayStreams {
    choice: Streams<PublicKey>,
    dialer: Dialer,
    /// The streams to relays that are open or being opened.
    dialled: Dialled<AbortOnDrop>,
    /// Why the last stream to a relay could not be opened, or has ended.
    failures: BTreeMap<PublicKey, String>,
    offered: BTreeMap<PublicKey, Offered>,
    listener: Option<Listener>,
    members: watch::Sender<Members>,
    openings: Arc<Openings>,
    public_url: Option<StreamUrl>,
    /// Whether it is not known how others reach the streams of this node.
    is_unnamed: bool,
}

impl RelayStreams {
    /// Takes streams if the settings say so. `state_dir` keeps the TLS key.
    pub(super) fn start(
        settings: &RelaySettings,
        key: &SigningKey,
        opener: &StreamOpener,
        state_dir: &Path,
    ) -> (Self, mpsc::Receiver<RelayStreamEvent>) {
        let (events, receiver) = mpsc::channel(MAX_EVENTS);
        let (members, known) = watch::channel(Members::default());
        let openings = Arc::new(Openings::new(Instant::now()));
        let listener = settings.listen.map(|listen| {
            let served = listener::Served {
                admission: Admission {
                    own: key.public(),
                    members: known,
                    openings: Arc::clone(&openings),
                },
                opener: opener.clone(),
            };
            Listener::start(listen, state_dir, served)
        });
        let streams = Self {
            choice: Streams::default(),
            dialer: Dialer {
                key: key.clone(),
                opener: opener.clone(),
                proxies: proxy::of_process(),
                events,
            },
            dialled: Dialled::default(),
            failures: BTreeMap::new(),
            offered: BTreeMap::new(),
            listener,
            members,
            openings,
            public_url: settings.public_url.clone(),
            is_unnamed: false,
        };
        (streams, receiver)
    }

    /// Sets the members whose streams this node takes, if it is to relay, and the relays that offer streams.
    pub(super) fn set_members(
        &mut self,
        members: BTreeMap<PublicKey, NodeAddress>,
        offered: BTreeMap<PublicKey, Offered>,
    ) {
        self.members.send_if_modified(|known| {
            let is_new = *known.addresses != members;
            if is_new {
                known.addresses = Arc::new(members);
            }
            is_new
        });
        // A relay that moved is dialled anew.
        let has_moved = |id: &PublicKey| self.offered.get(id) != offered.get(id);
        for id in self.dialled.relays().filter(has_moved).collect::<Vec<_>>() {
            self.dialled.end(&id);
            self.choice.handle_closed(&id, Instant::now());
        }
        self.failures.retain(|id, _| offered.contains_key(id));
        self.offered = offered;
    }

    /// Sets whether this node relays. While it does not, it takes no streams, and others need no address of it.
    pub(super) fn set_relaying(&mut self, is_relaying: bool) {
        self.is_unnamed &= is_relaying;
        self.members.send_if_modified(|known| {
            let is_new = known.is_relaying != is_relaying;
            known.is_relaying = is_relaying;
            is_new
        });
    }

    /// What the record of this node says about its streams. `public` is an address at which others reach this node.
    pub(super) fn offer(&mut self, public: Option<SocketAddr>) -> Option<StreamOffer> {
        let listener = self.listener.as_ref().filter(|l| l.is_usable())?;
        let port = listener.address().port();
        self.is_unnamed = self.public_url.is_none() && public.is_none();
        let url = self
            .public_url
            .clone()
            .or_else(|| Some(StreamUrl::at(SocketAddr::new(public?.ip(), port))));
        let target = StreamTarget {
            url: url?,
            pin: listener.pin(),
        };
        Some(StreamOffer {
            url: target.url.to_string(),
            pin: target.pin_text(),
        })
    }

    /// How many streams of members were refused because the members opened them too often.
    pub(super) fn refused(&self) -> u64 {
        self.openings.refused()
    }

    /// The relays that offer streams.
    pub(super) fn offered(&self) -> &BTreeMap<PublicKey, Offered> {
        &self.offered
    }

    /// Whether UDP reaches none of these relays.
    pub(super) fn is_blocked(&self, now: Instant) -> bool {
        self.choice.is_blocked(now)
    }

    /// Whether the stream to this relay is open.
    pub(super) fn is_open(&self, relay: &PublicKey) -> bool {
        self.choice.open().any(|open| open == *relay)
    }

    /// The relays to which streams are open.
    pub(super) fn open(&self) -> BTreeSet<NodeAddress> {
        let offered = self.choice.open().filter_map(|id| self.offered.get(&id));
        offered.map(|offered| offered.address).collect()
    }

    /// The addresses of this machine have changed.
    pub(super) fn handle_network_changed(&mut self, now: Instant) {
        self.choice.handle_network_changed(now);
    }

    /// A task has an event.
    pub(super) fn handle_event(&mut self, event: RelayStreamEvent, now: Instant) {
        let RelayStreamEvent {
            relay,
            number,
            turn,
        } = event;
        if !self.dialled.is_current(&relay, number) {
            return;
        }
        match turn {
            Turn::Opened => {
                self.failures.remove(&relay);
                self.choice.handle_opened(&relay, now);
            }
            Turn::Closed(why) => {
                self.dialled.end(&relay);
                self.choice.handle_closed(&relay, now);
                self.failures.insert(relay, why);
            }
        }
    }

    /// Opens and closes streams as it is due.
    pub(super) fn poll(&mut self, relays: &[KnownRelay<PublicKey>], now: Instant) {
        for step in self.choice.poll(relays, now) {
            match step {
                Step::Open(relay) => {
                    if let Some(offered) = self.offered.get(&relay) {
                        let (dialer, offered) = (&self.dialer, offered.clone());
                        let start = |number| dialer.start(relay, number, offered);
                        self.dialled.begin(relay, start);
                    }
                }
                Step::Close(relay) => {
                    self.dialled.end(&relay);
                }
            }
        }
    }

    /// When [`RelayStreams::poll`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.choice.poll_timeout()
    }

    /// What is wrong, with remedies. `name_of` returns the name of a relay.
    pub(super) fn problems(&self, name_of: impl Fn(&PublicKey) -> String) -> Vec<Problem> {
        let listening = self.listener.as_ref().and_then(Listener::problem);
        let is_cut_off = self.is_blocked(Instant::now()) && self.choice.open().next().is_none();
        let unreached = self.failures.iter().next().filter(|_| is_cut_off);
        let unreached = unreached.map(|(relay, why)| Problem {
            what: "no relay is reached, neither by UDP nor over TLS".into(),
            why: format!("UDP gets no answer, and the stream to {} fails: {why}", name_of(relay)),
            fix: "let this network pass UDP, or TCP to the relay's port; if it lets programs out through an HTTP proxy only, set `[relay] proxy` in meshd.toml"
                .into(),
        });
        let unnamed = self.is_unnamed.then(|| Problem {
            what: "no other node is told where this node relays over TLS".into(),
            why: "`[relay] listen` is set, and this node has no public address".into(),
            fix: "set `[relay] public_url` in meshd.toml to the URL at which others reach it, such as \"wss://web-1.example.com\""
                .into(),
        });
        let own = listening.into_iter().chain(unnamed);
        own.chain(unreached).collect()
    }
}

/// The streams that this node has dialled, at most one to each relay. Each has a number, because the task of a stream that was
/// replaced may have left an event behind.
struct Dialled<T> {
    last: u64,
    streams: BTreeMap<PublicKey, (u64, T)>,
}

impl<T> Default for Dialled<T> {
    fn default() -> Self {
        Self {
            last: 0,
            streams: BTreeMap::new(),
        }
    }
}

impl<T> Dialled<T> {
    /// Starts a stream with a number that no other one has. It takes the place of another one to the same relay.
    fn begin(&mut self, relay: PublicKey, start: impl FnOnce(u64) -> T) {
        self.last += 1;
        self.streams.insert(relay, (self.last, start(self.last)));
    }

    fn end(&mut self, relay: &PublicKey) {
        self.streams.remove(relay);
    }

    /// Whether the stream to this relay is the one with this number.
    fn is_current(&self, relay: &PublicKey, number: u64) -> bool {
        let stream = self.streams.get(relay);
        stream.is_some_and(|(current, _)| *current == number)
    }

    fn relays(&self) -> impl Iterator<Item = PublicKey> {
        self.streams.keys().copied()
    }
}
