//! Explains whether this node reaches its peers, and the remedy if it does not. Pure: [`super::report`] collects the
//! facts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::paths::Paths;
use crate::model::text::listed;
use crate::path::watch::Reach;
use crate::protocol::local::{PeerState, Problem};
use crate::records::netmap::Member;
use crate::tunnel::PeerStatus;

/// The maximum number of peers that one message names. It gives the number of the others.
const MAX_NAMED: usize = 5;
/// The maximum number of endpoints of a peer that one message names.
const MAX_ENDPOINTS: usize = 3;

/// The facts about the path to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contact {
    pub(super) reach: Reach,
    /// How long ago its last authentic datagram was received, since the start of meshd.
    pub(super) heard: Option<Duration>,
    /// Whether probes are unanswered.
    pub(super) silent: bool,
    /// Whether there was a handshake.
    pub(super) handshake: bool,
    /// The bytes received that belong to the peer, including those of incomplete handshakes.
    pub(super) received: u64,
    /// The endpoints of the peer, best first.
    pub(super) endpoints: Vec<SocketAddr>,
    /// This node's own UDP port.
    pub(super) port: u16,
}

impl Contact {
    /// The facts about the path to `member`, which is `peer` in the tunnel. `port` is this node's own UDP port.
    pub(super) fn new(
        paths: &Paths,
        member: &Member,
        peer: Option<&PeerStatus>,
        port: u16,
        now: Instant,
    ) -> Self {
        let id = &member.id;
        let heard = paths.watch().heard(id);
        let mut endpoints = member.endpoints.clone();
        if endpoints.is_empty() {
            endpoints.extend(peer.and_then(|peer| peer.endpoint));
        }
        Self {
            reach: paths.watch().reach(id, now),
            heard: heard.map(|at| now.saturating_duration_since(at)),
            silent: paths.watch().is_silent(id, now),
            handshake: peer.is_some_and(|peer| peer.last_handshake.is_some()),
            received: peer.map_or(0, |peer| peer.rx_bytes),
            endpoints,
            port,
        }
    }

    /// The state of the peer, and the reason if it is not reached.
    pub(super) fn state(&self) -> (PeerState, Option<String>) {
        let state = match self.reach {
            Reach::Unreachable => PeerState::Unreachable,
            _ if self.heard.is_none() && !self.handshake => PeerState::Connecting,
            _ if self.silent => PeerState::Connecting,
            Reach::Reachable => PeerState::Direct,
            Reach::Unknown => PeerState::Idle,
        };
        let reason = match state {
            PeerState::Connecting | PeerState::Unreachable => Some(self.reason()),
            _ => None,
        };
        (state, reason)
    }

    /// Whether the peer had enough time to answer, and no packet from it was ever received.
    pub(super) fn is_never_heard(&self) -> bool {
        self.heard.is_none() && self.reach == Reach::Unreachable
    }

    /// The reason for a probe without an answer, and the remedy.
    pub(super) fn failure(&self, name: &str) -> (String, String) {
        let why = match self.heard {
            Some(ago) if self.reach != Reach::Unreachable && !self.silent => format!(
                "a probe got no answer within 2 s; its last packet was received {} s ago",
                ago.as_secs()
            ),
            _ => self.reason(),
        };
        let fix = format!(
            "check that meshd runs on {name}, and open UDP port {} of this host and {}; if the node will not come back, run `meshctl node remove {name}`",
            self.port,
            self.ports(name)
        );
        (why, fix)
    }

    /// Why the peer does not answer.
    pub(super) fn reason(&self) -> String {
        let port = self.port;
        match (self.heard, self.addresses()) {
            (Some(ago), _) => format!(
                "its last packet was received {} s ago, and it has not answered since: it is off, or the path to it is interrupted",
                ago.as_secs()
            ),
            (None, None) => {
                "no packet from it was received yet, and it has published no address".to_owned()
            }
            (None, Some(there)) if self.received > 0 => format!(
                "its handshakes arrive at UDP port {port} of this host, but the answers to UDP {there} are lost"
            ),
            (None, Some(there)) => format!(
                "no packet from it was received yet: UDP {there} or UDP port {port} of this host is blocked, or meshd does not run there"
            ),
        }
    }

    fn addresses(&self) -> Option<String> {
        let shown = self.endpoints.iter().take(MAX_ENDPOINTS);
        let shown: Vec<String> = shown.map(ToString::to_string).collect();
        (!shown.is_empty()).then(|| shown.join(" or "))
    }

    /// The ports of the peer that have to be open.
    fn ports(&self, name: &str) -> String {
        match (self.endpoints.first(), self.addresses()) {
            (Some(first), Some(all)) => format!("UDP port {} of {name} ({all})", first.port()),
            _ => format!("the UDP port of {name}"),
        }
    }
}

/// The problem of the peers from which no packet was ever received, with the ports to open.
pub(super) fn never_heard<'a>(peers: &'a [(&'a str, Contact)], port: u16) -> Option<Problem> {
    let silent = peers.iter().filter(|(_, c)| c.is_never_heard());
    let silent: Vec<&(&str, Contact)> = silent.collect();
    let (first, _) = silent.first()?;
    let names = listed(silent.iter().map(|(name, _)| name), MAX_NAMED);
    let reasons = silent
        .iter()
        .map(|(name, c)| format!("{name}: {}", c.reason()));
    let ports = listed(silent.iter().map(|(name, c)| c.ports(name)), MAX_NAMED);
    Some(Problem {
        what: format!("no packet was ever received from {names}"),
        why: listed(reasons, MAX_NAMED),
        fix: format!(
            "open UDP port {port} of this host and {ports}, in both directions, in every firewall between them; the problem disappears by itself then; `meshctl why {first}` shows what was tried, and what to forward if both are behind routers"
        ),
    })
}

/// The problem of a node that reached peers before and reaches none of them now.
pub(super) fn cut_off(peers: &[(&str, Contact)], port: u16) -> Option<Problem> {
    let lost = peers.iter().all(|(_, c)| c.reach == Reach::Unreachable);
    let last = peers.iter().filter_map(|(_, c)| c.heard).min()?;
    lost.then(|| Problem {
        what: "this node reaches no other node any more".into(),
        why: format!("the last packet of any of them was received {} s ago", last.as_secs()),
        fix: format!(
            "check this host's network, and that no firewall blocks UDP port {port} in either direction; the problem disappears by itself then"
        ),
    })
}

/// The facts from which readiness is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Readiness {
    pub(super) removed: bool,
    pub(super) copied: bool,
    /// Whether the device is there, up, and has this node's address.
    pub(super) tunnel: bool,
    /// Whether DNS works, or is switched off.
    pub(super) dns: bool,
    /// The number of other members of the mesh.
    pub(super) others: usize,
    /// Whether a packet of any of them was received since the start.
    pub(super) reached: bool,
    pub(super) port: u16,
}

impl Readiness {
    /// The reason why a joined node is not ready. None if it is ready.
    pub(super) fn not_ready(&self) -> Option<String> {
        let why = if self.removed {
            "this node was removed from the mesh; run `meshctl leave`, then `meshctl join` with a new token"
                .to_owned()
        } else if self.copied {
            "this machine is a copy of another node; run `meshctl leave`, then `meshctl join` with a new token"
                .to_owned()
        } else if !self.tunnel {
            "the tunnel device is not up with this node's address; `meshctl status` shows why, and a restart of meshd creates it again"
                .to_owned()
        } else if !self.dns {
            "DNS does not work yet; look at `meshctl status`".to_owned()
        } else if self.others > 0 && !self.reached {
            format!(
                "none of the {} other node(s) was reached since meshd started; open UDP port {} of this host and the ports of the others, which `meshctl status` shows",
                self.others, self.port
            )
        } else {
            return None;
        };
        Some(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contact() -> Contact {
        Contact {
            reach: Reach::Reachable,
            heard: Some(Duration::from_secs(1)),
            silent: false,
            handshake: true,
            received: 4096,
            endpoints: vec![SocketAddr::from(([192, 0, 2, 7], 51821))],
            port: 51820,
        }
    }

    fn blocked() -> Contact {
        Contact {
            reach: Reach::Unreachable,
            heard: None,
            silent: true,
            handshake: false,
            received: 0,
            ..contact()
        }
    }

    #[test]
    fn a_peer_that_does_not_answer_is_not_direct_and_its_last_packet_is_dated() {
        assert_eq!(contact().state(), (PeerState::Direct, None));
        let lost = Contact {
            silent: true,
            heard: Some(Duration::from_millis(4_900)),
            ..contact()
        };
        let (state, reason) = lost.state();
        assert_eq!(state, PeerState::Connecting);
        assert!(reason.is_some_and(|why| why.contains("received 4 s ago")));
        let (state, reason) = Contact {
            reach: Reach::Unreachable,
            ..lost.clone()
        }
        .state();
        assert_eq!(state, PeerState::Unreachable);
        assert!(reason.is_some());
        assert!(
            !Contact {
                reach: Reach::Unreachable,
                ..lost.clone()
            }
            .is_never_heard()
        );
    }

    #[test]
    fn a_peer_from_which_no_packet_came_names_both_ports() {
        let problem = never_heard(&[("n2", blocked()), ("n3", contact())], 51820);
        let problem = problem.expect("one is blocked");
        assert_eq!(problem.what, "no packet was ever received from n2");
        for part in ["192.0.2.7:51821", "51820"] {
            assert!(
                problem.why.contains(part) && problem.fix.contains(part),
                "{problem:?}"
            );
        }
        assert!(problem.fix.contains("`meshctl why n2`"), "{problem:?}");
        assert_eq!(never_heard(&[("n3", contact())], 51820), None);
        let new = Contact {
            reach: Reach::Unknown,
            ..blocked()
        };
        assert_eq!(
            never_heard(&[("n2", new.clone())], 51820),
            None,
            "it still has time to answer"
        );
        assert_eq!(new.state().0, PeerState::Connecting);
    }

    #[test]
    fn a_path_blocked_in_one_direction_is_distinguished_from_one_blocked_in_both() {
        let half = Contact {
            received: 148,
            ..blocked()
        };
        let (_, why) = half.state();
        assert!(why.is_some_and(|why| why.contains("answers to UDP 192.0.2.7:51821 are lost")));
        let nowhere = Contact {
            endpoints: vec![],
            ..blocked()
        };
        let problem = never_heard(&[("n2", nowhere)], 51820).expect("a problem");
        assert!(problem.why.contains("no address"), "{problem:?}");
    }

    #[test]
    fn a_node_that_lost_all_its_peers_is_cut_off_and_one_that_lost_some_is_not() {
        let lost = |seconds| Contact {
            reach: Reach::Unreachable,
            heard: Some(Duration::from_secs(seconds)),
            silent: true,
            ..contact()
        };
        let all = [("n2", lost(40)), ("n3", lost(36)), ("n4", blocked())];
        let problem = cut_off(&all, 51820).expect("a problem");
        assert!(problem.why.contains("36 s ago") && problem.fix.contains("51820"));
        assert_eq!(cut_off(&[("n2", lost(40)), ("n3", contact())], 51820), None);
        let never = cut_off(&[("n2", blocked())], 51820);
        assert_eq!(never, None, "that is another problem");
        assert_eq!(cut_off(&[], 51820), None);
    }

    #[test]
    fn a_hundred_silent_peers_are_one_problem_of_a_readable_length() {
        let names: Vec<String> = (0..100).map(|n| format!("node-{n}")).collect();
        let peers = names.iter().map(|name| (name.as_str(), blocked()));
        let peers: Vec<(&str, Contact)> = peers.collect();
        let problem = never_heard(&peers, 51820).expect("a problem");
        assert!(problem.what.ends_with("node-4, 95 more"), "{problem:?}");
        assert!(problem.why.len() + problem.fix.len() < 2000);
    }

    #[test]
    fn a_node_is_ready_if_it_is_a_member_its_tunnel_and_dns_work_and_it_reached_a_peer() {
        let ready = Readiness {
            removed: false,
            copied: false,
            tunnel: true,
            dns: true,
            others: 2,
            reached: true,
            port: 51820,
        };
        assert_eq!(ready.not_ready(), None);
        let alone = Readiness {
            others: 0,
            reached: false,
            ..ready
        };
        assert_eq!(alone.not_ready(), None, "the first node has no peers");
        let not = [
            (
                Readiness {
                    removed: true,
                    ..ready
                },
                "removed",
            ),
            (
                Readiness {
                    copied: true,
                    ..ready
                },
                "copy",
            ),
            (
                Readiness {
                    tunnel: false,
                    ..ready
                },
                "tunnel",
            ),
            (
                Readiness {
                    dns: false,
                    ..ready
                },
                "DNS",
            ),
            (
                Readiness {
                    reached: false,
                    ..ready
                },
                "UDP port 51820",
            ),
        ];
        for (readiness, part) in not {
            let why = readiness.not_ready();
            assert!(
                why.as_ref().is_some_and(|why| why.contains(part)),
                "{part}: {why:?}"
            );
        }
    }
}
