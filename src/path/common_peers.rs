//! By way of which peers a node calls another one. Pure.
//!
//! A node does not know which of its peers reach the node that it calls. So a call goes to a few of them, first to those that most
//! probably do, and the next call to others.

/// The maximum number of peers to which one call is sent.
pub const MAX_WAYS: usize = 3;

/// How probable it is that a peer reaches the node that is called. The first is the most probable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chance {
    /// The node that is called names the peer as one of its relays.
    Named,
    /// The peer has a public address.
    Public,
    /// Nothing is known.
    Unknown,
}

impl Chance {
    const ALL: [Self; 3] = [Self::Named, Self::Public, Self::Unknown];
}

/// The peers to which the call is sent after `calls` others to the same node.
#[must_use]
pub fn choose<K: Copy + PartialEq>(peers: &[(Chance, K)], calls: u32) -> Vec<K> {
    let calls = calls as usize;
    let mut others = Vec::with_capacity(peers.len());
    let mut chosen = Vec::with_capacity(peers.len());
    for chance in Chance::ALL {
        let class = peers.iter().filter(|(of, _)| *of == chance);
        let class: Vec<K> = class.map(|(_, peer)| *peer).collect();
        let turn = calls % class.len().max(1);
        let turned = class.iter().cycle().skip(turn).take(class.len());
        chosen.extend(turned.copied());
        others.extend(class);
    }
    chosen.truncate(MAX_WAYS - 1);
    // The last one is one of the others, so that each of them gets its turn however many are more probable. The order of `others` does
    // not depend on `calls`. If it turned with each call as well, some of them would never be chosen.
    others.retain(|peer| !chosen.contains(peer));
    let last = others.get(calls % others.len().max(1));
    chosen.extend(last.copied());
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_call_goes_to_the_most_probable_peers_and_to_few() {
        let named = |n| (Chance::Named, n);
        let public = |n| (Chance::Public, n);
        let unknown = |n| (Chance::Unknown, n);
        let none: [(Chance, u8); 0] = [];
        assert!(choose(&none, 7).is_empty());
        assert_eq!(choose(&[unknown(1)], 7), [1]);
        let peers = [unknown(1), public(2), named(3), public(4)];
        assert_eq!(choose(&peers, 0), [3, 2, 4]);
        assert_eq!(choose(&peers, 1)[..2], [3, 4]);
        for calls in 0..20 {
            let chosen: BTreeSet<u8> = choose(&peers, calls).into_iter().collect();
            assert_eq!(chosen.len(), MAX_WAYS);
        }
    }

    #[test]
    fn each_peer_gets_its_turn() {
        let public = (0..20).map(|n| (Chance::Public, n));
        let peers: Vec<(Chance, u8)> = public.chain([(Chance::Unknown, 20)]).collect();
        let chosen: BTreeSet<u8> = (0..60).flat_map(|calls| choose(&peers, calls)).collect();
        assert_eq!(chosen.len(), 21);
    }

    #[test]
    fn each_peer_gets_its_turn_whatever_the_numbers_of_the_chances() {
        for number in 0..216u8 {
            let counts = [number / 36, number / 6 % 6, number % 6];
            let classes = Chance::ALL.into_iter().zip(counts);
            let peers = classes.flat_map(|(chance, count)| (0..count).map(move |n| (chance, n)));
            let peers: Vec<(Chance, (Chance, u8))> = peers.map(|peer| (peer.0, peer)).collect();
            let chosen = (0..60).flat_map(|calls| choose(&peers, calls));
            let chosen: BTreeSet<(Chance, u8)> = chosen.collect();
            assert_eq!(chosen.len(), peers.len(), "{counts:?}");
        }
    }
}
