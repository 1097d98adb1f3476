//! The paths of other nodes, from their reports. This node asks for the reports only while a user looks at the paths between all nodes. The
//! reports that it sends to each member are limited. Pure.
//!
//! A row comes in parts. Each part is an answer to a request, and the next request follows it. A request or a part that is lost ends the
//! row, and it is asked for from the beginning.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::PublicKey;
use crate::model::rate::{Quota, Rate};
use crate::protocol::path_messages::{RowPart, RowPath};

/// The age at which a row is asked for again.
const FRESH: Duration = Duration::from_secs(10);
/// How long a node may take to send its whole row.
const PATIENCE: Duration = Duration::from_secs(3);
/// The age at which a row is no longer shown.
const MAX_AGE: Duration = Duration::from_secs(60);
/// The maximum number of nodes that are asked at once. The others are asked the next time.
const MAX_ASKED: usize = 64;
/// The maximum number of paths of one row. A longer row is dropped.
const MAX_PATHS: usize = 1024;
/// How many parts of its row this node sends to one member. A row of 200 paths has five.
const ANSWERS_TO_ONE: Rate = Rate {
    per_second: 4.0,
    burst: 32.0,
};
/// How many parts of its row this node sends to all members.
const ANSWERS: Rate = Rate {
    per_second: 50.0,
    burst: 200.0,
};
/// The maximum number of members whose answers are counted.
const MAX_ANSWERED: usize = 4096;

/// The rows of other nodes.
#[derive(Debug)]
pub(super) struct Rows {
    of: BTreeMap<PublicKey, Row>,
    answered: Quota<PublicKey>,
}

/// The row of a node.
#[derive(Debug, Default)]
struct Row {
    asked: Option<Instant>,
    /// The request that was sent last, until it is answered.
    waits_for: Option<u32>,
    /// The parts that have come of the row that was asked for.
    parts: Vec<RowPath>,
    /// The last whole row, and when it came.
    whole: Option<(Instant, Vec<RowPath>)>,
}

impl Rows {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            of: BTreeMap::new(),
            answered: Quota::new(ANSWERS_TO_ONE, MAX_ANSWERED, ANSWERS, now),
        }
    }

    /// Forgets the rows that nobody looks at any more.
    pub(super) fn forget_old(&mut self, now: Instant) {
        self.of.retain(|_, row| row.age(now) < MAX_AGE);
    }

    /// Returns those of `reached` that are asked for their rows now, from the beginning.
    pub(super) fn poll(
        &mut self,
        reached: impl IntoIterator<Item = PublicKey>,
        now: Instant,
    ) -> Vec<PublicKey> {
        let mut due: Vec<(Option<Instant>, PublicKey)> = Vec::new();
        for id in reached {
            let row = self.of.get(&id);
            if row.is_none_or(|row| row.is_due(now)) {
                due.push((row.and_then(|row| row.asked), id));
            }
        }
        due.sort_unstable();
        due.truncate(MAX_ASKED);
        for (_, id) in &due {
            let row = self.of.entry(*id).or_default();
            row.asked = Some(now);
            row.waits_for = Some(0);
            row.parts.clear();
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// A node told a part of its row. Returns the next request to it, if the row goes on. What nobody asked for is ignored.
    pub(super) fn handle_part(
        &mut self,
        of: &PublicKey,
        part: RowPart,
        now: Instant,
    ) -> Option<u32> {
        let row = self.of.get_mut(of)?;
        row.waits_for.take_if(|after| *after == part.after)?;
        let mut last = part.after;
        for path in &part.paths {
            let to = path.to.to_bits();
            if to <= last {
                return None;
            }
            last = to;
        }
        row.parts.extend(part.paths);
        if row.parts.len() > MAX_PATHS {
            row.parts = Vec::new();
            return None;
        }
        if part.has_more && last > part.after {
            row.waits_for = Some(last);
            return Some(last);
        }
        row.whole = Some((now, std::mem::take(&mut row.parts)));
        None
    }

    /// Whether a member that asks for a part of the row of this node is answered.
    pub(super) fn answers(&mut self, member: PublicKey, now: Instant) -> bool {
        self.answered.take(member, now)
    }

    /// The rows that came lately.
    pub(super) fn told(&self, now: Instant) -> impl Iterator<Item = (&PublicKey, &[RowPath])> {
        self.of.iter().filter_map(move |(id, row)| {
            let (at, paths) = row.whole.as_ref()?;
            let is_shown = now.saturating_duration_since(*at) < MAX_AGE;
            is_shown.then_some((id, paths.as_slice()))
        })
    }
}

impl Row {
    /// The time since the node was asked, or since it told its row if that was later.
    fn age(&self, now: Instant) -> Duration {
        let told = self.whole.as_ref().map(|(at, _)| *at);
        let last = self.asked.max(told);
        last.map_or(MAX_AGE, |at| now.saturating_duration_since(at))
    }

    fn is_due(&self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        let is_fresh = self
            .whole
            .as_ref()
            .is_some_and(|(at, _)| since(*at) < FRESH);
        let is_waited_for = self.asked.is_some_and(|at| since(at) < PATIENCE);
        !is_fresh && !is_waited_for
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::protocol::local::PeerState;

    const NODE: PublicKey = PublicKey([1; 32]);

    fn path(to: u32) -> RowPath {
        RowPath {
            to: Ipv4Addr::from_bits(to),
            state: Some(PeerState::Direct),
            rtt_us: Some(800),
        }
    }

    fn part(after: u32, to: &[u32], has_more: bool) -> RowPart {
        RowPart {
            after,
            has_more,
            paths: to.iter().copied().map(path).collect(),
        }
    }

    fn told(rows: &Rows, now: Instant) -> Vec<u32> {
        let rows = rows.told(now).flat_map(|(_, paths)| paths);
        rows.map(|path| path.to.to_bits()).collect()
    }

    #[test]
    fn a_row_comes_in_parts_each_of_which_is_asked_for() {
        let start = Instant::now();
        let mut rows = Rows::new(start);
        assert_eq!(rows.poll([NODE], start), [NODE]);
        let next = rows.handle_part(&NODE, part(0, &[5, 9], true), start);
        assert_eq!(next, Some(9));
        assert_eq!(told(&rows, start), [0_u32; 0]);
        let next = rows.handle_part(&NODE, part(9, &[12], false), start);
        assert_eq!(next, None);
        assert_eq!(told(&rows, start), [5, 9, 12]);
    }

    #[test]
    fn what_nobody_asked_for_and_what_is_out_of_order_is_ignored() {
        let start = Instant::now();
        let mut rows = Rows::new(start);
        assert_eq!(rows.handle_part(&NODE, part(0, &[5], false), start), None);
        rows.poll([NODE], start);
        for wrong in [
            part(7, &[9], false),
            part(0, &[5, 5], true),
            part(0, &[9, 5], true),
        ] {
            assert_eq!(rows.handle_part(&NODE, wrong, start), None);
        }
        // The request is answered, though wrongly.
        assert_eq!(rows.handle_part(&NODE, part(0, &[5], false), start), None);
        assert_eq!(told(&rows, start), [0_u32; 0]);
    }

    #[test]
    fn a_row_without_end_is_given_up() {
        let start = Instant::now();
        let mut rows = Rows::new(start);
        rows.poll([NODE], start);
        let (mut after, mut asked) = (0, 0);
        loop {
            let to: Vec<u32> = (after + 1..=after + 40).collect();
            let Some(next) = rows.handle_part(&NODE, part(after, &to, true), start) else {
                break;
            };
            (after, asked) = (next, asked + 1);
        }
        assert_eq!(asked, MAX_PATHS / 40);
        assert_eq!(told(&rows, start), [0_u32; 0]);
        // A part that says that there is more, and has nothing, is the last one.
        let later = start + PATIENCE;
        assert_eq!(rows.poll([NODE], later), [NODE]);
        assert_eq!(rows.handle_part(&NODE, part(0, &[], true), later), None);
    }

    #[test]
    fn nodes_are_asked_again_when_their_rows_are_old_and_only_some_of_them_at_once() {
        let start = Instant::now();
        let mut rows = Rows::new(start);
        let ids: Vec<PublicKey> = (0..100).map(|n| PublicKey([n; 32])).collect();
        let first = rows.poll(ids.clone(), start);
        let second = rows.poll(ids.clone(), start);
        assert_eq!((first.len(), second.len()), (MAX_ASKED, 100 - MAX_ASKED));
        for id in &ids {
            rows.handle_part(id, part(0, &[5], false), start);
        }
        assert_eq!(rows.poll(ids.clone(), start + FRESH / 2), []);
        assert_eq!(rows.poll(ids.clone(), start + FRESH).len(), MAX_ASKED);
        assert_eq!(told(&rows, start + FRESH).len(), 100);
    }

    #[test]
    fn rows_that_nobody_looks_at_are_forgotten() {
        let start = Instant::now();
        let mut rows = Rows::new(start);
        rows.poll([NODE], start);
        rows.handle_part(&NODE, part(0, &[5], false), start);
        rows.forget_old(start + MAX_AGE / 2);
        assert_eq!(told(&rows, start + MAX_AGE / 2), [5]);
        assert_eq!(told(&rows, start + MAX_AGE), [0_u32; 0]);
        rows.forget_old(start + MAX_AGE);
        assert!(rows.of.is_empty());
    }

    #[test]
    fn a_member_that_asks_without_end_is_answered_at_its_rate() {
        let start = Instant::now();
        let mut rows = Rows::new(start);
        let answers = (0..10_000u64).filter(|ms| {
            let now = start + Duration::from_millis(*ms);
            rows.answers(NODE, now)
        });
        assert!((68..=73).contains(&answers.count()));
        let other = PublicKey([2; 32]);
        assert!(rows.answers(other, start + Duration::from_secs(10)));
    }
}
