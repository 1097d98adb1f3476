//! What became of the calls of this node and of members, for the operator. Pure.

use std::collections::BTreeMap;
use std::time::Instant;

/// The node that passes a call on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallWay {
    /// A coordinator.
    Coordinator,
    /// A peer that both ends reach.
    Peer,
}

impl CallWay {
    const ALL: [Self; 2] = [Self::Coordinator, Self::Peer];

    /// The name in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Peer => "peer",
        }
    }
}

/// What happened to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallResult {
    /// This node sent it.
    Sent,
    /// It answers a call of this node.
    Answered,
    /// A member calls this node, which opens its router and answers.
    Followed,
    /// It had arrived already, most probably by another way.
    Repeated,
    /// This node does not follow it: it is forged, late, or one too many.
    Refused,
    /// This node passed it on to another member.
    PassedOn,
    /// This node was asked to pass it on, and did not.
    Dropped,
}

impl CallResult {
    const ALL: [Self; 7] = [
        Self::Sent,
        Self::Answered,
        Self::Followed,
        Self::Repeated,
        Self::Refused,
        Self::PassedOn,
        Self::Dropped,
    ];

    /// The name in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Answered => "answered",
            Self::Followed => "followed",
            Self::Repeated => "repeated",
            Self::Refused => "refused",
            Self::PassedOn => "passed_on",
            Self::Dropped => "dropped",
        }
    }
}

/// The last call of this node to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastCall {
    /// When it was sent.
    pub at: Instant,
    /// Whether it was sent to a coordinator.
    pub by_coordinator: bool,
    /// The number of peers to which it was sent.
    pub by_peers: u32,
    /// When the member answered, if it did.
    pub answered: Option<Instant>,
}

/// What became of calls. `K` names a member.
#[derive(Debug)]
pub struct CallLog<K> {
    of: BTreeMap<K, Entry>,
    counts: [[u64; CallResult::ALL.len()]; CallWay::ALL.len()],
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    calls: u32,
    last: LastCall,
}

impl<K> Default for CallLog<K> {
    fn default() -> Self {
        Self {
            of: BTreeMap::new(),
            counts: Default::default(),
        }
    }
}

impl<K: Copy + Ord> CallLog<K> {
    /// Forgets nodes that are not members any more.
    pub fn retain(&mut self, is_member: impl Fn(&K) -> bool) {
        self.of.retain(|member, _| is_member(member));
    }

    /// This node has called `member`, to ask for an answer.
    pub fn handle_asked(&mut self, member: K, by_coordinator: bool, by_peers: u32, now: Instant) {
        let calls = self.calls(&member).saturating_add(1);
        let last = LastCall {
            at: now,
            by_coordinator,
            by_peers,
            answered: None,
        };
        self.of.insert(member, Entry { calls, last });
    }

    /// `member` has answered a call.
    pub fn handle_answered(&mut self, member: &K, now: Instant) {
        if let Some(entry) = self.of.get_mut(member) {
            entry.last.answered.get_or_insert(now);
        }
    }

    /// How often this node has called a member.
    #[must_use]
    pub fn calls(&self, member: &K) -> u32 {
        self.of.get(member).map_or(0, |entry| entry.calls)
    }

    /// The last call to a member.
    #[must_use]
    pub fn last(&self, member: &K) -> Option<LastCall> {
        self.of.get(member).map(|entry| entry.last)
    }

    /// Counts a call.
    pub fn count(&mut self, way: CallWay, result: CallResult) {
        let of_way = self.counts.get_mut(way as usize);
        if let Some(count) = of_way.and_then(|of| of.get_mut(result as usize)) {
            *count += 1;
        }
    }

    /// How many calls there were of each kind.
    pub fn counts(&self) -> impl Iterator<Item = (CallWay, CallResult, u64)> {
        let ways = CallWay::ALL.into_iter().zip(&self.counts);
        ways.flat_map(|(way, counts)| {
            let results = CallResult::ALL.into_iter().zip(counts);
            results.map(move |(result, count)| (way, result, *count))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_last_call_to_a_member_has_its_ways_and_its_first_answer() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut log: CallLog<u8> = CallLog::default();
        log.handle_answered(&1, at(0));
        assert_eq!((log.last(&1), log.calls(&1)), (None, 0));
        log.handle_asked(1, true, 2, at(1));
        log.handle_answered(&1, at(2));
        log.handle_answered(&1, at(3));
        let mut expected = LastCall {
            at: at(1),
            by_coordinator: true,
            by_peers: 2,
            answered: Some(at(2)),
        };
        assert_eq!((log.last(&1), log.calls(&1)), (Some(expected), 1));
        log.handle_asked(1, false, 2, at(4));
        expected = LastCall {
            at: at(4),
            by_coordinator: false,
            answered: None,
            ..expected
        };
        assert_eq!((log.last(&1), log.calls(&1)), (Some(expected), 2));
        log.retain(|_| false);
        assert_eq!(log.last(&1), None);
    }

    #[test]
    fn calls_are_counted_by_way_and_result_and_there_are_fourteen_kinds() {
        let mut log: CallLog<u8> = CallLog::default();
        log.count(CallWay::Peer, CallResult::Dropped);
        log.count(CallWay::Peer, CallResult::Dropped);
        log.count(CallWay::Coordinator, CallResult::Sent);
        let counted = log.counts().filter(|(.., count)| *count > 0);
        let counted: Vec<(CallWay, CallResult, u64)> = counted.collect();
        let expected = [
            (CallWay::Coordinator, CallResult::Sent, 1),
            (CallWay::Peer, CallResult::Dropped, 2),
        ];
        assert_eq!(counted, expected);
        assert_eq!(log.counts().count(), 14);
    }
}
