//! What has to hold in each world. See [`super`] for the list.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use meshd::model::Path;
use meshd::path::budget::{PROBES, PROBES_TO_ADDRESS};

use super::network::{Datagram, TTL, VICTIM};
use crate::network::At;

/// Two nodes between which there is a path receive each other's packets after this time.
pub(crate) const FOUND_WITHIN: Duration = Duration::from_secs(10);
/// The same if datagrams are lost at random: a lost handshake message is repeated after 5 s.
pub(crate) const FOUND_WITHIN_LOSS: Duration = Duration::from_secs(25);
/// While nothing goes wrong, no path is chosen more often than this.
const MAX_CHOICES: usize = 2;
/// While nothing goes wrong, the path to a peer changes no more often than this.
const MAX_CHANGES: usize = 8;
/// The largest number of datagrams in a second from one node to an address that a member claims falsely.
const MAX_TO_VICTIM: usize = 80;

/// The datagrams of the last second.
#[derive(Debug, Default)]
struct Window(VecDeque<At>);

impl Window {
    /// Adds one. Returns how many there are.
    fn add(&mut self, now: At) -> usize {
        let is_old = |at: &At| now - *at >= Duration::from_secs(1);
        while self.0.front().is_some_and(is_old) {
            self.0.pop_front();
        }
        self.0.push_back(now);
        self.0.len()
    }
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// The addresses to which one node may send datagrams for another one.
    allowed: BTreeMap<(usize, usize), BTreeSet<SocketAddr>>,
    probes: BTreeMap<usize, Window>,
    probes_to: BTreeMap<(usize, IpAddr, bool), Window>,
    to_victim: BTreeMap<usize, Window>,
    primary: BTreeMap<(usize, usize), Path>,
    /// The paths that were chosen since something last went wrong.
    choices: BTreeMap<(usize, usize), Vec<Path>>,
    /// When a packet last arrived.
    pub(crate) received: BTreeMap<(usize, usize), At>,
    /// The number of changes of paths, of probes, and of punches that were agreed on.
    pub(crate) changes: u64,
    pub(crate) total_probes: u64,
}

impl Watched {
    /// `node` may send datagrams for `peer` there.
    pub(crate) fn allow(&mut self, node: usize, peer: usize, addresses: &[SocketAddr]) {
        self.allowed
            .entry((node, peer))
            .or_default()
            .extend(addresses);
    }

    /// Something goes wrong, or ends: the choices begin anew.
    pub(crate) fn handle_fault(&mut self) {
        self.choices.clear();
    }

    /// A node sends a datagram for `peer`.
    pub(crate) fn handle_sent(
        &mut self,
        node: usize,
        peer: usize,
        datagram: &Datagram,
        is_probe: bool,
        now: At,
    ) -> Result<(), String> {
        let to = datagram.to;
        if datagram.ttl == TTL {
            let allowed = self.allowed.get(&(node, peer));
            if !allowed.is_some_and(|allowed| allowed.contains(&to)) {
                return Err(format!(
                    "node {node} sends to {to} for node {peer}, which did not consent"
                ));
            }
        }
        if to.ip() == IpAddr::V4(VICTIM) {
            let count = self.to_victim.entry(node).or_default().add(now);
            if count > MAX_TO_VICTIM {
                return Err(format!(
                    "node {node} sends {count} datagrams in a second to {to}"
                ));
            }
        }
        if is_probe {
            self.total_probes += 1;
            let count = self.probes.entry(node).or_default().add(now);
            if count > PROBES as usize {
                return Err(format!("node {node} sends {count} probes in a second"));
            }
            let key = (node, to.ip(), datagram.header.is_some());
            let count = self.probes_to.entry(key).or_default().add(now);
            if count > PROBES_TO_ADDRESS as usize {
                return Err(format!(
                    "node {node} sends {count} probes in a second to {to}"
                ));
            }
        }
        Ok(())
    }

    /// The path by which `node` sends to `peer`. Returns whether it is another one than before.
    pub(crate) fn handle_primary(
        &mut self,
        node: usize,
        peer: usize,
        path: Path,
    ) -> Result<bool, String> {
        if self.primary.insert((node, peer), path) == Some(path) {
            return Ok(false);
        }
        self.changes += 1;
        let choices = self.choices.entry((node, peer)).or_default();
        choices.push(path);
        let count = choices.iter().filter(|choice| **choice == path).count();
        if count > MAX_CHOICES || choices.len() > MAX_CHANGES {
            return Err(format!(
                "node {node} flaps: it chose {path} to node {peer} {count} times, of {} changes, while nothing went wrong",
                choices.len()
            ));
        }
        Ok(true)
    }

    pub(crate) fn primary(&self, node: usize, peer: usize) -> Option<Path> {
        self.primary.get(&(node, peer)).copied()
    }
}
