//! The last packets that the policy denied. Pure.
//!
//! There is one entry for each source, destination and port. The packets that only the policy that is tried would deny have places of
//! their own, so that they do not hide what is really denied. In a full list the sender with the most entries loses its oldest
//! one, so that a member that tries everything does not hide what others were denied.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use crate::model::rate::{Bucket, Rate};
use crate::policy::Asked;

/// The maximum number of entries of packets that were denied, and of those that would be.
const MAX_DENIALS: usize = 64;
/// The maximum number of first denials that wait to be reported.
const MAX_FIRST: usize = 16;
/// The rate of first denials that are reported.
const FIRST: Rate = Rate {
    per_second: 1.0,
    burst: 20.0,
};

/// Which way a denied packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// A program or container of this node sent it.
    Outgoing,
    /// Another member sent it.
    Incoming,
}

/// A packet that was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// The source address.
    pub from: IpAddr,
    /// The destination address.
    pub to: IpAddr,
    /// What it asked of its destination.
    pub asked: Asked,
    /// Which way it went.
    pub direction: Direction,
    /// Whether it passed, and only the policy that is tried would deny it.
    pub is_tried: bool,
}

/// The sender of a denied packet: a member with any of its addresses, or an address of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tunnel) enum Sender {
    Member(u64),
    Own(IpAddr),
}

/// A denied packet, with the number of packets like it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tunnel) struct Entry {
    pub(in crate::tunnel) denial: Denial,
    sender: Sender,
    pub(in crate::tunnel) count: u64,
    pub(in crate::tunnel) first: Instant,
    pub(in crate::tunnel) last: Instant,
}

/// The list of denied packets, and the first denials of pairs of addresses that were not reported yet.
#[derive(Debug)]
pub(in crate::tunnel) struct Denials {
    entries: Vec<Entry>,
    first: VecDeque<Denial>,
    reports: Bucket,
}

impl Denials {
    pub(in crate::tunnel) fn new(now: Instant) -> Self {
        Self {
            entries: Vec::new(),
            first: VecDeque::new(),
            reports: Bucket::full(FIRST, now),
        }
    }

    /// Adds a denied packet. Returns whether it is the first one between its addresses, and is to be reported.
    pub(in crate::tunnel) fn note(&mut self, denial: Denial, sender: Sender, now: Instant) -> bool {
        self.note_many((denial, sender), (1, now), now)
    }

    /// Adds so many equal packets, of which the last one was denied at this time. Returns the same.
    pub(in crate::tunnel) fn note_many(
        &mut self,
        (denial, sender): (Denial, Sender),
        (count, last): (u64, Instant),
        now: Instant,
    ) -> bool {
        if let Some(entry) = self.entries.iter_mut().find(|e| e.denial == denial) {
            entry.count = entry.count.saturating_add(count);
            entry.last = entry.last.max(last);
            return false;
        }
        let pair = |of: &Denial| (of.from, of.to, of.is_tried);
        let is_first = !denial.is_tried
            && (self.entries.iter()).all(|entry| pair(&entry.denial) != pair(&denial));
        if self.alike(denial.is_tried).count() >= MAX_DENIALS {
            let replaced = self.replaced(denial.is_tried, sender, now);
            self.entries.swap_remove(replaced);
        }
        self.entries.push(Entry {
            denial,
            sender,
            count,
            first: last,
            last,
        });
        let is_reported = is_first && self.first.len() < MAX_FIRST && self.reports.take(now);
        if is_reported {
            self.first.push_back(denial);
        }
        is_reported
    }

    /// The entries of packets that only the policy that is tried would deny, or the others, each with its place.
    fn alike(&self, is_tried: bool) -> impl Iterator<Item = (usize, &Entry)> {
        let entries = self.entries.iter().enumerate();
        entries.filter(move |(_, entry)| entry.denial.is_tried == is_tried)
    }

    /// The place of the entry that another one of `sender` replaces: the oldest entry of the sender with the most entries. The new
    /// entry counts as one.
    fn replaced(&self, is_tried: bool, sender: Sender, now: Instant) -> usize {
        // There are usually few senders, and a short list is faster than a map.
        let mut counts = vec![(sender, 1_usize)];
        for (_, entry) in self.alike(is_tried) {
            match counts.iter_mut().find(|(of, _)| *of == entry.sender) {
                Some((_, count)) => *count += 1,
                None => counts.push((entry.sender, 1)),
            }
        }
        let most = counts.iter().max_by_key(|(_, count)| *count);
        let most = most.map_or(sender, |(of, _)| *of);
        self.alike(is_tried)
            .filter(|(_, entry)| entry.sender == most)
            .max_by_key(|(_, entry)| now.saturating_duration_since(entry.last))
            .map_or(0, |(at, _)| at)
    }

    /// The entries, the latest first.
    pub(in crate::tunnel) fn entries(&self) -> Vec<Entry> {
        let mut entries = self.entries.clone();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.last));
        entries
    }

    /// Takes the first denials that were not reported yet.
    pub(in crate::tunnel) fn take_first(&mut self) -> Vec<Denial> {
        self.first.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Protocol;

    const ONE: Sender = Sender::Member(1);
    const OTHER: Sender = Sender::Member(7);

    fn denial(from: u8, to: u8, port: u16) -> Denial {
        Denial {
            from: [10, 210, 1, from].into(),
            to: [10, 210, 2, to].into(),
            asked: Asked::Port(Protocol::Tcp, port),
            direction: Direction::Incoming,
            is_tried: false,
        }
    }

    #[test]
    fn equal_denials_are_counted_in_one_entry_and_the_first_of_a_pair_is_reported() {
        let start = Instant::now();
        let later = start + Duration::from_secs(5);
        let mut denials = Denials::new(start);
        assert!(denials.note(denial(1, 1, 5432), ONE, start));
        assert!(!denials.note(denial(1, 1, 5432), ONE, later));
        assert!(
            !denials.note(denial(1, 1, 22), ONE, later),
            "another port of the pair"
        );
        assert!(denials.note(denial(1, 2, 22), ONE, later));
        let entries = denials.entries();
        let found = entries.iter().find(|e| e.denial == denial(1, 1, 5432));
        let expected = Entry {
            denial: denial(1, 1, 5432),
            sender: ONE,
            count: 2,
            first: start,
            last: later,
        };
        assert_eq!((found, entries.len()), (Some(&expected), 3));
        let first = [denial(1, 1, 5432), denial(1, 2, 22)];
        assert_eq!(denials.take_first(), first);
        assert_eq!(denials.take_first(), []);
    }

    #[test]
    fn packets_that_were_counted_elsewhere_are_added_with_the_time_of_the_last_one() {
        let start = Instant::now();
        let now = start + Duration::from_secs(20);
        let (one, other) = (denial(1, 2, 22), denial(1, 3, 22));
        let mut denials = Denials::new(start);
        assert!(denials.note_many((one, ONE), (7, start), now));
        assert!(denials.note_many((other, ONE), (1, now), now));
        assert!(!denials.note_many((one, ONE), (3, now), now));
        assert!(!denials.note_many((one, ONE), (1, start), now));
        let entries = denials.entries();
        let found = entries.iter().find(|entry| entry.denial == one);
        let expected = Entry {
            denial: one,
            sender: ONE,
            count: 11,
            first: start,
            last: now,
        };
        assert_eq!(found, Some(&expected));
        assert_eq!(denials.take_first(), [one, other]);
    }

    #[test]
    fn a_sender_that_is_denied_everything_does_not_hide_the_denials_of_others() {
        let start = Instant::now();
        let mut denials = Denials::new(start);
        denials.note(denial(7, 1, 22), OTHER, start);
        for port in 0..1000 {
            let at = start + Duration::from_millis(1 + u64::from(port));
            denials.note(denial((port % 200) as u8, 1, port), ONE, at);
        }
        let entries = denials.entries();
        assert_eq!(entries.len(), MAX_DENIALS);
        assert!(entries.iter().any(|e| e.denial == denial(7, 1, 22)));
        assert!(entries.iter().any(|e| e.denial == denial(199, 1, 999)));
    }

    #[test]
    fn packets_that_a_tried_policy_would_deny_do_not_hide_those_that_are_denied() {
        let start = Instant::now();
        let mut denials = Denials::new(start);
        let tried = |port| Denial {
            is_tried: true,
            ..denial(1, 1, port)
        };
        denials.note(denial(1, 1, 22), ONE, start);
        for port in 0..1000 {
            let at = start + Duration::from_millis(1 + u64::from(port));
            denials.note(tried(port), ONE, at);
        }
        let entries = denials.entries();
        assert_eq!(entries.len(), MAX_DENIALS + 1);
        assert!(entries.iter().any(|e| e.denial == denial(1, 1, 22)));
        for port in 0..1000 {
            denials.note(denial(1, 1, port), ONE, start);
        }
        let entries = denials.entries();
        assert_eq!(entries.len(), 2 * MAX_DENIALS);
        assert!(entries.iter().any(|e| e.denial == tried(999)));
    }

    #[test]
    fn reports_of_first_denials_are_limited() {
        let start = Instant::now();
        let mut denials = Denials::new(start);
        let mut reported = 0;
        for n in 0..1000u64 {
            let at = start + Duration::from_millis(n);
            let (from, to) = ((n % 200) as u8, (n / 200) as u8);
            reported += usize::from(denials.note(denial(from, to, 1), ONE, at));
            denials.take_first();
        }
        assert_eq!(reported, 20);
        let later = start + Duration::from_secs(60);
        assert!(denials.note(denial(250, 250, 1), ONE, later));
        assert_eq!(denials.take_first().len(), 1);
    }
}
