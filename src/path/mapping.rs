//! The port that the router of this network maps to this node on request, as a state machine. Pure. The same machine asks for a hole in
//! the router's firewall for IPv6, which is a mapping that translates nothing.
//!
//! ```text
//! Resting --there is a gateway--> Asking --the router maps a port--> Held --proofs, renewals at half the lifetime--> Held
//!    ^                              |                                 |
//!    +------ refused, silent -------+------- expired, or dead --------+
//! ```
//!
//! [`Action`]s are carried out by a task that speaks the protocols with the router, and by the tunnel, which asks peers to try the
//! mapping ([`proof`]). A mapping that peers tried in vain is deleted, and another one is asked for: by another protocol first,
//! since a router that lies by one may not lie by all.
//!
//! The outer port that is asked for is not the port of this node. Where both are the same, a peer to which this node sent gets in
//! by the translation of that flow, and shows nothing about the mapping. The hole for IPv6 has no other port, so only a peer to which this
//! node did not send can prove it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::model::MeshAddresses;
use crate::model::address::is_public;

pub mod pcp;
pub mod proof;
pub mod refusal;
#[cfg(test)]
mod tests;

use proof::Proof;
pub use proof::Prover;
pub use refusal::{Choice, Finding, Protocol, Refusal, Reserved, choose};

/// How long a mapping is asked for. It ends by itself if this node does not delete it.
pub const LIFETIME: Duration = Duration::from_secs(7200);
/// A shorter lifetime counts as this one, so that no router makes this node send without end.
const MIN_LIFETIME: Duration = Duration::from_secs(120);
/// A longer lifetime counts as this one: a router that was restarted has forgotten the mapping.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long an answer of the task is waited for. The task has limits of its own, which are shorter.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);
/// The first and the last pause after a failure. Each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// See [`FIRST_PAUSE`].
const LAST_PAUSE: Duration = Duration::from_secs(3600);
/// The pause before a mapping is renewed again, if the router did not answer.
const RENEW_PAUSE: Duration = Duration::from_secs(60);
/// The first of the ports that are asked for: the dynamic ports (RFC 6335 section 6).
const FIRST_PORT: u16 = 49152;
/// The number of these ports.
const PORTS: u16 = 16384;

/// Where this node asks for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// The default gateway.
    pub gateway: IpAddr,
    /// The number of the interface that leads to the gateway. An IPv6 gateway usually has a link-local address, which means
    /// nothing without this number.
    pub interface: u32,
    /// The address of this machine in the gateway's network, of the same family. With IPv6 it is the public one that others send to.
    pub own: IpAddr,
    /// The port of the tunnel.
    pub port: u16,
}

/// A mapping, as the router reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The protocol.
    pub protocol: Protocol,
    /// The outer address.
    pub external: SocketAddr,
    /// How long the mapping lasts.
    pub lifetime: Duration,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The number of the request.
    pub number: u64,
    /// The mapping, or why there is none.
    pub result: Result<Granted, Refusal>,
}

/// Something that the caller does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<K> {
    /// Delete the mapping that there is, and ask for one.
    Ask(Request),
    /// Ask for the same mapping again.
    Renew(u64),
    /// Delete the mapping.
    Delete,
    /// Ask this peer to send to the outer address first.
    Try(K),
}

/// A request for a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The number of the request, which its answer has.
    pub number: u64,
    /// Where to ask.
    pub site: Site,
    /// The outer port to ask for.
    pub port: u16,
    /// The protocols, the preferred one first.
    pub order: [Protocol; 3],
}

/// The mapping of this node. `K` names a peer.
#[derive(Debug)]
pub struct Mapping<K> {
    /// Whether a router is asked at all.
    is_on: bool,
    /// Chooses the port, so that a node asks for the same one after a restart.
    seed: u16,
    site: Result<Site, Refusal>,
    state: State<K>,
    /// Why there is no mapping, if the router was asked.
    why: Option<Refusal>,
    /// The number of the last request.
    number: u64,
    /// The number of failures in a row.
    failures: u32,
    /// The protocols in the order in which they are tried.
    order: [Protocol; 3],
    /// The number of dead mappings in a row.
    deaths: u32,
    /// How often each reason occurred, in the order of [`Refusal::NAMES`].
    refused: [u64; Refusal::NAMES.len()],
}

#[derive(Debug)]
enum State<K> {
    /// No mapping is asked for before this time.
    Resting(Instant),
    /// The router was asked.
    Asking(Instant),
    /// The router reports a mapping.
    Held(Box<Held<K>>),
}

#[derive(Debug)]
struct Held<K> {
    granted: Granted,
    proof: Proof<K>,
    expires: Instant,
    renew: Instant,
    /// The number of the renewal that was not answered yet, and when it was sent.
    renewing: Option<(u64, Instant)>,
}

/// The mapping that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// What the router says.
    pub granted: Granted,
    /// When a datagram last arrived through it.
    pub proven: Option<Instant>,
}

impl<K: Copy + Ord> Mapping<K> {
    /// No mapping yet. A router is asked only if the mapping `is_on`. The port that is asked for depends on `seed`.
    #[must_use]
    pub fn new(is_on: bool, seed: u16, now: Instant) -> Self {
        Self {
            is_on,
            seed,
            site: Err(Refusal::NoGateway),
            state: State::Resting(now),
            why: None,
            number: 0,
            failures: 0,
            order: Protocol::ALL,
            deaths: 0,
            refused: [0; Refusal::NAMES.len()],
        }
    }

    /// Whether a router is asked at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Where this node asks from now on, or why it does not ask. Another site needs another mapping; returns whether the one of
    /// before is to be deleted.
    #[must_use]
    pub fn set_site(&mut self, site: Option<Site>, now: Instant) -> bool {
        let site = match site {
            None => Err(Refusal::NoGateway),
            Some(site) if site.own.is_ipv4() && is_public(site.own) => {
                Err(Refusal::Public(site.own))
            }
            Some(site) => Ok(site),
        };
        if site == self.site {
            return false;
        }
        self.site = site;
        self.why = None;
        (self.failures, self.deaths, self.order) = (0, 0, Protocol::ALL);
        // An answer to the request of before has a smaller number.
        self.number += 1;
        let before = std::mem::replace(&mut self.state, State::Resting(now));
        matches!(before, State::Held(_))
    }

    /// The network of this machine has changed. The router may be another one with the same address.
    pub fn handle_network_changed(&mut self, now: Instant) {
        (self.failures, self.deaths) = (0, 0);
        match &mut self.state {
            State::Resting(until) => *until = now,
            State::Asking(_) => {}
            State::Held(held) => {
                held.renew = now;
                held.proof.handle_network_changed(now);
            }
        }
    }

    /// The task has asked the router. Returns whether the mapping that it reports is to be deleted. An answer to an earlier request
    /// is ignored: its mapping was deleted.
    #[must_use]
    pub fn handle_answer(&mut self, answer: Answer, mesh: &MeshAddresses, now: Instant) -> bool {
        let is_awaited = match &self.state {
            State::Resting(_) => false,
            State::Asking(_) => answer.number == self.number,
            State::Held(held) => held
                .renewing
                .is_some_and(|(number, _)| number == answer.number),
        };
        if !is_awaited {
            return false;
        }
        let Ok(site) = self.site else { return false };
        let is_granted = answer.result.is_ok();
        let result = answer
            .result
            .and_then(|granted| accepted(granted, &site, mesh).map(|()| granted));
        match result {
            Ok(granted) => {
                self.hold(granted, now);
                false
            }
            // The router has made a mapping, of which nobody here makes use. It would stay until its end.
            Err(refusal) => self.handle_refused(refusal, now) || is_granted,
        }
    }

    fn hold(&mut self, granted: Granted, now: Instant) {
        let Ok(site) = self.site else { return };
        self.failures = 0;
        // That the mapping of before was dead counts until this one is proven.
        if !matches!(self.why, Some(Refusal::Dead(..))) {
            self.why = None;
        }
        let lifetime = granted.lifetime.clamp(MIN_LIFETIME, MAX_LIFETIME);
        let before = std::mem::replace(&mut self.state, State::Resting(now));
        let proof = match before {
            // The same mapping is proven as before.
            State::Held(held) if held.granted.external == granted.external => held.proof,
            _ => Proof::new(granted.external, site.port, now),
        };
        self.state = State::Held(Box::new(Held {
            granted,
            proof,
            expires: now + lifetime,
            renew: now + lifetime / 2,
            renewing: None,
        }));
    }

    fn handle_refused(&mut self, refusal: Refusal, now: Instant) -> bool {
        if let (State::Held(held), Refusal::Silent(_)) = (&mut self.state, &refusal) {
            // The mapping may last, so it is renewed again until its end.
            held.renewing = None;
            held.renew = now + RENEW_PAUSE;
            self.count(&refusal);
            return false;
        }
        let deletes = matches!(self.state, State::Held(_)) || matches!(refusal, Refusal::Outer(..));
        self.rest(refusal, now);
        deletes
    }

    /// There is no mapping for a while.
    fn rest(&mut self, refusal: Refusal, now: Instant) {
        self.count(&refusal);
        self.why = Some(refusal);
        self.state = State::Resting(now + pause(self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    fn count(&mut self, refusal: &Refusal) {
        let index = refusal.index();
        if let Some(count) = index.and_then(|index| self.refused.get_mut(index)) {
            *count += 1;
        }
    }

    /// `peer` sees this node at `seen` on a path on which its last datagram arrived at `heard`.
    pub fn handle_seen(&mut self, peer: &K, seen: SocketAddr, heard: Instant) {
        if let State::Held(held) = &mut self.state {
            held.proof.handle_seen(peer, seen, heard);
            if held.proof.proven().is_some() {
                self.deaths = 0;
                self.why = None;
            }
        }
    }

    /// `peer` sends to the mapping, as it was asked.
    pub fn handle_tried(&mut self, peer: &K, now: Instant) {
        if let State::Held(held) = &mut self.state {
            held.proof.handle_tried(peer, now);
        }
    }

    /// The peers that were asked to send, and whose datagrams have not arrived yet.
    #[must_use]
    pub fn awaited(&self, now: Instant) -> Vec<K> {
        match &self.state {
            State::Held(held) => held.proof.awaited(now).collect(),
            State::Resting(_) | State::Asking(_) => Vec::new(),
        }
    }

    /// Returns what is to be done now. `provers` are the peers that may try the mapping.
    pub fn poll(&mut self, provers: &[Prover<K>], now: Instant) -> Vec<Action<K>> {
        let Ok(site) = self.site else {
            return Vec::new();
        };
        if !self.is_on {
            return Vec::new();
        }
        match &mut self.state {
            State::Resting(until) if *until <= now => {
                self.state = State::Asking(now);
                vec![Action::Ask(self.request(site))]
            }
            State::Resting(_) => Vec::new(),
            State::Asking(since) => {
                if now.saturating_duration_since(*since) >= ASK_TIMEOUT {
                    self.rest(Refusal::Silent(site.gateway), now);
                }
                Vec::new()
            }
            State::Held(_) => self.poll_held(provers, now),
        }
    }

    fn request(&mut self, site: Site) -> Request {
        self.number += 1;
        // After a dead mapping another port is asked for: it may be the port that the router cannot give.
        let offset = self.seed.wrapping_add(self.deaths as u16) % PORTS;
        let other = FIRST_PORT + offset;
        Request {
            number: self.number,
            site,
            port: match site.own {
                IpAddr::V6(_) => site.port,
                IpAddr::V4(_) if other == site.port => other ^ 1,
                IpAddr::V4(_) => other,
            },
            order: self.order,
        }
    }

    fn poll_held(&mut self, provers: &[Prover<K>], now: Instant) -> Vec<Action<K>> {
        let State::Held(held) = &mut self.state else {
            return Vec::new();
        };
        if held.expires <= now {
            self.state = State::Resting(now);
            return vec![Action::Delete];
        }
        let mut actions = Vec::new();
        if let Some(peer) = held.proof.poll(provers, now) {
            actions.push(Action::Try(peer));
        }
        if held.proof.is_dead(now) {
            let granted = held.granted;
            return self.handle_dead(granted, now);
        }
        let is_late = |(_, at): (u64, Instant)| now.saturating_duration_since(at) >= ASK_TIMEOUT;
        if held.renewing.is_some_and(is_late) {
            held.renewing = None;
            held.renew = now + RENEW_PAUSE;
        }
        if held.renew <= now && held.renewing.is_none() {
            self.number += 1;
            held.renewing = Some((self.number, now));
            actions.push(Action::Renew(self.number));
        }
        actions
    }

    /// The mapping does not work. It is made anew: at once the first time, and later after pauses.
    fn handle_dead(&mut self, granted: Granted, now: Instant) -> Vec<Action<K>> {
        let dead = Refusal::Dead(granted.protocol, granted.external);
        self.count(&dead);
        self.why = Some(dead);
        // Its protocol is tried last.
        self.order.sort_by_key(|of| *of == granted.protocol);
        self.state = State::Resting(match self.deaths {
            0 => now,
            deaths => now + pause(deaths - 1),
        });
        self.deaths = self.deaths.saturating_add(1);
        vec![Action::Delete]
    }

    /// When [`Mapping::poll`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.is_on || self.site.is_err() {
            return None;
        }
        Some(match &self.state {
            State::Resting(until) => *until,
            State::Asking(since) => *since + ASK_TIMEOUT,
            State::Held(held) => {
                let renew = match held.renewing {
                    None => held.renew,
                    Some((_, at)) => at + ASK_TIMEOUT,
                };
                renew.min(held.expires).min(held.proof.poll_timeout())
            }
        })
    }

    /// The outer address that peers are told, if it may work.
    #[must_use]
    pub fn offered(&self) -> Option<SocketAddr> {
        match &self.state {
            State::Held(held) if held.proof.is_offered() => Some(held.granted.external),
            _ => None,
        }
    }

    /// The mapping that the router reports.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        match &self.state {
            State::Held(held) => Some(Report {
                granted: held.granted,
                proven: held.proof.proven(),
            }),
            State::Resting(_) | State::Asking(_) => None,
        }
    }

    /// Why there is no mapping, as far as it is known.
    #[must_use]
    pub fn why(&self) -> Option<&Refusal> {
        self.site.as_ref().err().or(self.why.as_ref())
    }

    /// How often each reason occurred, in the order of [`Refusal::NAMES`].
    #[must_use]
    pub fn refused(&self) -> &[u64; Refusal::NAMES.len()] {
        &self.refused
    }
}

/// Whether a mapping is one through which strangers reach this node.
fn accepted(granted: Granted, site: &Site, mesh: &MeshAddresses) -> Result<(), Refusal> {
    let Granted {
        protocol, external, ..
    } = granted;
    let own = SocketAddr::new(site.own, site.port);
    if own.is_ipv6() && external != own {
        let why = format!("it opens {external} in place of {own}");
        return Err(Refusal::Denied(protocol, why));
    }
    let reserved = Reserved::of(external.ip(), mesh).filter(|_| own.is_ipv4());
    if let Some(reserved) = reserved {
        return Err(Refusal::Outer(protocol, external.ip(), reserved));
    }
    match external.port() {
        0 => Err(Refusal::Denied(protocol, "it names no port".into())),
        _ if granted.lifetime.is_zero() => {
            Err(Refusal::Denied(protocol, "the mapping ends at once".into()))
        }
        _ => Ok(()),
    }
}

/// The pause after this number of failures.
fn pause(failures: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(2u32.saturating_pow(failures))
        .min(LAST_PAUSE)
}
