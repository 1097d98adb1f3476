//! Counts what was sent by each path to a peer, and what came back by it, so that an operator can see what was tried.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::model::{Path, PublicKey};

/// The maximum number of paths that are remembered for one peer. It is twice the number of candidates that are accepted.
const MAX_REMEMBERED: usize = 32;

/// What happened on one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attempts {
    /// The number of probes and handshakes sent by it.
    pub probes: u64,
    /// The number of them that were answered.
    pub answers: u64,
    /// When the last one was sent.
    pub sent: Option<Instant>,
    /// When the last authentic datagram came by it.
    pub heard: Option<Instant>,
    /// The data plane's count of answers at its last report.
    reported: u32,
    is_answered: bool,
}

impl Attempts {
    /// When the path was last of use.
    fn last(&self) -> Option<Instant> {
        self.sent.max(self.heard)
    }

    fn handle_heard(&mut self, heard: Option<Instant>) {
        self.heard = self.heard.max(heard);
    }
}

/// The paths to all peers. It reads no clock: each call passes the time.
#[derive(Debug, Default)]
pub struct Tried {
    peers: BTreeMap<PublicKey, Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    paths: BTreeMap<Path, Attempts>,
    /// The path in use, and when it was chosen.
    current: Option<(Path, Instant)>,
    /// The paths by which a handshake is begun.
    opens: Vec<Path>,
}

impl Tried {
    /// Removes the peers that are not known any more.
    pub fn retain(&mut self, is_known: impl Fn(&PublicKey) -> bool) {
        self.peers.retain(|id, _| is_known(id));
    }

    /// Packets are sent by `path` now.
    pub fn handle_used(&mut self, id: PublicKey, path: Path, now: Instant) {
        let peer = self.peers.entry(id).or_default();
        if peer.current.is_none_or(|(current, _)| current != path) {
            peer.current = Some((path, now));
        }
    }

    /// Something of the peer was last received at `heard`, and the path follows its datagrams. So it came by the path in use.
    pub fn handle_followed(&mut self, id: PublicKey, heard: Instant) {
        let peer = self.peers.entry(id).or_default();
        let Some((path, _)) = peer.current else {
            return;
        };
        let attempts = peer.attempts(path);
        if attempts.heard.is_some_and(|before| before >= heard) {
            return;
        }
        // What came before this path was tried came by another one.
        if attempts.heard.is_none() && attempts.sent.is_some_and(|sent| sent > heard) {
            return;
        }
        attempts.handle_heard(Some(heard));
        let is_new_answer = attempts.sent.is_some() && !attempts.is_answered;
        attempts.answers += u64::from(is_new_answer);
        attempts.is_answered = true;
    }

    /// The data plane reports when something last came by `path`, and how many probes by it were answered so far.
    pub fn handle_report(
        &mut self,
        id: PublicKey,
        path: Path,
        heard: Option<Instant>,
        answers: u32,
    ) {
        let attempts = self.peers.entry(id).or_default().attempts(path);
        attempts.handle_heard(heard);
        // The count begins again if the path was unknown to the data plane for a while.
        let new = answers.checked_sub(attempts.reported).unwrap_or(answers);
        attempts.reported = answers;
        attempts.answers += u64::from(new);
    }

    /// A handshake is begun by these paths from now on.
    pub fn handle_offered(&mut self, id: PublicKey, opens: Vec<Path>) {
        self.peers.entry(id).or_default().opens = opens;
    }

    /// A handshake is begun by all paths for it.
    pub fn handle_opened(&mut self, id: PublicKey, now: Instant) {
        let opens = self.peers.get(&id).map(|peer| peer.opens.clone());
        for path in opens.unwrap_or_default() {
            self.handle_sent(id, Some(path), now);
        }
    }

    /// A probe or a handshake is sent by `path`, or by the path in use.
    pub fn handle_sent(&mut self, id: PublicKey, path: Option<Path>, now: Instant) {
        let peer = self.peers.entry(id).or_default();
        let current = peer.current.map(|(path, _)| path);
        let Some(path) = path.or(current) else {
            return;
        };
        let attempts = peer.attempts(path);
        attempts.probes += 1;
        attempts.sent = Some(now);
        attempts.is_answered = false;
    }

    /// What happened on the paths to a peer.
    pub fn of(&self, id: &PublicKey) -> impl Iterator<Item = (Path, Attempts)> {
        let paths = self.peers.get(id).map(|peer| peer.paths.iter());
        paths.into_iter().flatten().map(|(path, of)| (*path, *of))
    }

    /// When the path in use was chosen.
    #[must_use]
    pub fn since(&self, id: &PublicKey) -> Option<Instant> {
        self.peers.get(id)?.current.map(|(_, since)| since)
    }
}

impl Peer {
    /// The attempts by a path. A new one takes the place of the one that was not of use for the longest time.
    fn attempts(&mut self, path: Path) -> &mut Attempts {
        if self.paths.len() >= MAX_REMEMBERED && !self.paths.contains_key(&path) {
            let oldest = self.paths.iter().min_by_key(|(_, of)| of.last());
            if let Some(oldest) = oldest.map(|(path, _)| *path) {
                self.paths.remove(&oldest);
            }
        }
        self.paths.entry(path).or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;

    const ID: PublicKey = PublicKey([1; 32]);

    fn path(n: u16) -> Path {
        Path::Direct(SocketAddr::from(([192, 0, 2, 1], n)))
    }

    /// Probes and answers.
    fn counts(tried: &Tried, n: u16) -> (u64, u64) {
        let found = tried.of(&ID).find(|(of, _)| *of == path(n));
        found.map_or((0, 0), |(_, of)| (of.probes, of.answers))
    }

    #[test]
    fn probes_are_counted_where_they_were_sent_and_answered_at_most_once_each() {
        let (mut tried, start) = (Tried::default(), Instant::now());
        let second = |n| start + Duration::from_secs(n);
        tried.handle_used(ID, path(1), start);
        tried.handle_sent(ID, None, second(1));
        tried.handle_sent(ID, None, second(2));
        assert_eq!(counts(&tried, 1), (2, 0));
        tried.handle_used(ID, path(2), second(3));
        tried.handle_sent(ID, None, second(3));
        tried.handle_followed(ID, second(4));
        tried.handle_followed(ID, second(5));
        assert_eq!((counts(&tried, 1), counts(&tried, 2)), ((2, 0), (1, 1)));
        tried.handle_used(ID, path(2), second(6));
        assert_eq!(tried.since(&ID), Some(second(3)));
        tried.retain(|_| false);
        assert_eq!(tried.of(&ID).count(), 0);
    }

    #[test]
    fn an_earlier_datagram_from_elsewhere_is_no_answer() {
        let (mut tried, start) = (Tried::default(), Instant::now());
        let second = |n| start + Duration::from_secs(n);
        tried.handle_used(ID, path(1), second(5));
        tried.handle_sent(ID, None, second(5));
        tried.handle_followed(ID, second(1));
        assert_eq!(counts(&tried, 1), (1, 0));
    }

    #[test]
    fn handshakes_are_counted_on_each_path_and_answers_as_the_data_plane_counts_them() {
        let (mut tried, start) = (Tried::default(), Instant::now());
        tried.handle_offered(ID, vec![path(1), path(2)]);
        tried.handle_opened(ID, start);
        tried.handle_sent(ID, Some(path(2)), start);
        tried.handle_report(ID, path(2), Some(start), 1);
        tried.handle_report(ID, path(2), Some(start), 1);
        tried.handle_report(ID, path(2), Some(start), 3);
        assert_eq!((counts(&tried, 1), counts(&tried, 2)), ((1, 0), (2, 3)));
        tried.handle_report(ID, path(2), None, 1);
        assert_eq!(counts(&tried, 2), (2, 4), "the count began again");
    }

    #[test]
    fn a_peer_that_moves_for_ever_does_not_fill_the_memory() {
        let (mut tried, start) = (Tried::default(), Instant::now());
        for n in 1..1000 {
            let now = start + Duration::from_secs(u64::from(n));
            tried.handle_used(ID, path(n), now);
            tried.handle_followed(ID, now);
        }
        assert_eq!(tried.of(&ID).count(), MAX_REMEMBERED);
        assert!(tried.of(&ID).any(|(of, _)| of == path(999)));
    }
}
