//! Verifies the chain of a log, line by line, and names each line that was deleted, moved or changed. Pure.
//!
//! Links are compared by the numbers of the lines and not by their places: line `n` is confirmed if line `n + 1` has its digest.
//! So a line that stands in another place is named as moved, and its neighbours are not named. The file beside the log confirms
//! the last line. An attacker who changes a line, all lines after it and the file beside the log is not found: the chain proves that
//! the lines agree with each other, and not who wrote them.

use std::collections::BTreeMap;

use super::digest::LineDigest;
use super::line::{Chain, Line};

/// The maximum number of findings. A file with more of them is no log in which somebody changed single lines.
pub const MAX_FINDINGS: usize = 10_000;

/// Where a line stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    /// The number of the line in its file, from 1.
    pub line: u64,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The content of the line is not what was written.
    Edited { n: u64, place: Place },
    /// The line after it was changed too, so its own content is not confirmed by anything.
    Unconfirmed { n: u64, place: Place },
    /// It is not a line of a log. `n` is the number of the line that is missing there.
    Unreadable { n: Option<u64>, place: Place },
    /// The lines `first` to `last` are missing.
    Deleted {
        first: u64,
        last: u64,
        /// The place of the line before them.
        after: Option<Place>,
        /// The place of the line after them.
        before: Option<Place>,
    },
    /// The line stands in another place than its number says.
    Moved { n: u64, place: Place },
    /// There is another line with this number.
    Extra { n: u64, place: Place },
    /// The file beside the log, which shows whether lines at the end are missing, is missing or damaged.
    NoHead,
}

/// The result of the verification of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The number of lines.
    pub lines: u64,
    /// The lowest and the highest number.
    pub first: Option<u64>,
    pub last: Option<u64>,
    /// In the order of the numbers.
    pub findings: Vec<Finding>,
    /// Whether there are more findings than are listed.
    pub is_cut: bool,
}

/// A line, as far as the order of lines needs it.
#[derive(Debug, Clone)]
struct Seen {
    n: u64,
    place: Place,
    is_moved: bool,
}

/// A line whose successor has not been seen.
#[derive(Debug)]
struct Open {
    digest: LineDigest,
    place: Place,
}

/// Numbers that have not been seen, though higher ones have.
#[derive(Debug, Clone)]
struct Gap {
    last: u64,
    after: Option<Place>,
    before: Option<Place>,
}

/// Verifies a log. The lines are given in the order of the files.
#[derive(Debug)]
pub struct Verifier {
    head: Option<Chain>,
    file: String,
    line: u64,
    lines: u64,
    /// The last two lines that have a number of their own.
    window: [Option<Seen>; 2],
    /// Lines after the last one with a number that cannot be read.
    unreadable: Vec<Place>,
    numbers: Numbers,
    links: Links,
    findings: Vec<(u64, Finding)>,
}

/// Which numbers were seen.
#[derive(Debug, Default)]
struct Numbers {
    lowest: Option<u64>,
    highest: u64,
    /// By their first number.
    gaps: BTreeMap<u64, Gap>,
    /// The number of lines before the lowest one that cannot be read.
    unreadable_before: u64,
    /// The end of the files that the log says were removed.
    trimmed: Option<Chain>,
}

/// The links between the lines.
#[derive(Debug, Default)]
struct Links {
    open: BTreeMap<u64, Open>,
    /// The digest that a line names of the one before, which has not been seen, by the number of the latter.
    wanted: BTreeMap<u64, LineDigest>,
    /// Lines whose content differs from the digest that their successor names.
    altered: BTreeMap<u64, Place>,
    /// Lines that were changed for certain, whether or not their successor was changed as well.
    certain: BTreeMap<u64, Place>,
    /// The number of the lowest line, the digest that it names of the line before it, and its place.
    before_lowest: Option<(u64, LineDigest, Place)>,
}

impl Verifier {
    /// `head` is the end of the log according to the file beside it, as it was read before the lines.
    #[must_use]
    pub fn new(head: Option<Chain>) -> Self {
        Self {
            head,
            file: String::new(),
            line: 0,
            lines: 0,
            window: [None, None],
            unreadable: Vec::new(),
            numbers: Numbers::default(),
            links: Links::default(),
            findings: Vec::new(),
        }
    }

    /// The lines that follow are those of this file.
    pub fn begin_file(&mut self, name: String) {
        self.file = name;
        self.line = 0;
    }

    /// Whether there are so many findings that further lines make no difference.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let links = &self.links;
        let found = [
            self.findings.len(),
            self.unreadable.len(),
            self.numbers.gaps.len(),
            links.altered.len() + links.certain.len(),
        ];
        found.iter().any(|found| *found >= MAX_FINDINGS)
    }

    /// Handles the next line, without its line break.
    pub fn handle_line(&mut self, bytes: &[u8]) {
        self.line = self.line.saturating_add(1);
        self.lines = self.lines.saturating_add(1);
        let place = Place {
            file: self.file.clone(),
            line: self.line,
        };
        let Some(line) = Line::parse(bytes).filter(|line| (1..u64::MAX).contains(&line.n)) else {
            return self.unreadable.push(place);
        };
        if let Some(trimmed) = line.trimmed()
            && self.numbers.trimmed.is_none_or(|t| t.last < trimmed.last)
        {
            self.numbers.trimmed = Some(trimmed);
        }
        let digest = LineDigest::of(bytes);
        let n = self.number_of(&line, &place);
        let after = self.window[1].as_ref().map(|seen| seen.n);
        let found = self.settle_unreadable(after, n);
        if !self
            .numbers
            .handle(n, after, found, &self.window[1], &place)
        {
            let extra = Finding::Extra {
                n,
                place: place.clone(),
            };
            return self.findings.push((n, extra));
        }
        self.links
            .handle(n, digest, line.prev, place.clone(), self.head);
        self.push(Seen {
            n,
            place,
            is_moved: false,
        });
    }

    /// The number of a line. A line that continues the one before it, and has another number than the next one, has a wrong number.
    fn number_of(&mut self, line: &Line, place: &Place) -> u64 {
        let (expected, continues) = match &self.window[1] {
            // Only the first line of a log has no line before it.
            None => (1, line.prev == LineDigest::ZERO),
            Some(before) => {
                let open = self.links.open.get(&before.n);
                let continues = open.is_some_and(|open| open.digest == line.prev);
                (before.n.saturating_add(1), continues)
            }
        };
        if line.n == expected || !continues || !self.numbers.is_free(expected) {
            return line.n;
        }
        self.links.certain.insert(expected, place.clone());
        expected
    }

    /// Gives lines that cannot be read the numbers that are missing between two others. Returns how many of these numbers have such
    /// a line.
    fn settle_unreadable(&mut self, after: Option<u64>, n: u64) -> u64 {
        let count = self.unreadable.len() as u64;
        // Before the first line of the log, numbers are counted back from it.
        let first = after.map_or_else(
            || n.saturating_sub(count).max(1),
            |after| after.saturating_add(1),
        );
        let room = n.saturating_sub(first);
        let mut settled = 0;
        for place in std::mem::take(&mut self.unreadable) {
            let number = (settled < room).then(|| first.saturating_add(settled));
            settled = (settled + 1).min(room);
            let at = number.unwrap_or(first);
            self.findings
                .push((at, Finding::Unreadable { n: number, place }));
        }
        if after.is_none() {
            self.numbers.unreadable_before = settled;
        }
        settled
    }

    /// Adds a line to the window, and finds out whether the one before it was moved.
    fn push(&mut self, seen: Seen) {
        self.judge(Some(seen.n));
        self.window.rotate_left(1);
        self.window[1] = Some(seen);
    }

    /// A line was moved if neither the line before it nor the one after it is its neighbour, and its number is not between theirs.
    fn judge(&mut self, next: Option<u64>) {
        let [before, Some(seen)] = &mut self.window else {
            return;
        };
        let n = seen.n;
        let previous = before.as_ref().map_or(0, |before| before.n);
        let follows = n == previous.saturating_add(1);
        let is_followed = next == Some(n.saturating_add(1));
        let is_between = previous < n && next.is_none_or(|next| n < next);
        let after_moved = before.as_ref().is_some_and(|before| before.is_moved);
        // The first line of a block that was moved is followed by the rest of it.
        let begins_block = n < previous && !after_moved;
        seen.is_moved = !follows && !is_followed && !is_between;
        if seen.is_moved || begins_block {
            let place = seen.place.clone();
            self.findings.push((n, Finding::Moved { n, place }));
        }
    }

    /// The end of the log.
    #[must_use]
    pub fn finish(mut self) -> Verified {
        self.judge(None);
        let after = self.window[1].as_ref().map(|seen| seen.n);
        let end = self.head.map_or(0, |head| head.last).saturating_add(1);
        let highest = self.numbers.highest;
        let settled = self.settle_unreadable(after, end.max(highest.saturating_add(1)));
        if self.head.is_none() && self.lines > 0 {
            self.findings.push((u64::MAX, Finding::NoHead));
        }
        if let Some(head) = self.head {
            let first = highest.saturating_add(1).saturating_add(settled);
            if first <= head.last {
                let gap = Gap {
                    last: head.last,
                    after: self.window[1].as_ref().map(|seen| seen.place.clone()),
                    before: None,
                };
                self.numbers.gaps.insert(first, gap);
            }
        }
        self.check_lowest();
        for (first, gap) in &self.numbers.gaps {
            let deleted = Finding::Deleted {
                first: *first,
                last: gap.last,
                after: gap.after.clone(),
                before: gap.before.clone(),
            };
            self.findings.push((*first, deleted));
        }
        let mut findings = self.findings;
        findings.extend(self.links.findings());
        findings.sort_by_key(|(n, _)| *n);
        let is_cut = findings.len() > MAX_FINDINGS;
        let findings = findings.into_iter().take(MAX_FINDINGS);
        Verified {
            lines: self.lines,
            first: self.numbers.lowest,
            last: self.numbers.lowest.map(|_| highest),
            findings: findings.map(|(_, finding)| finding).collect(),
            is_cut,
        }
    }

    /// Finds out whether the log begins where it has to: with line 1, or after the last file that was removed.
    fn check_lowest(&mut self) {
        let Some((lowest, prev, place)) = self.links.before_lowest.take() else {
            return;
        };
        let start = match self.numbers.trimmed {
            Some(trimmed) if trimmed.last < lowest => trimmed,
            // The daemon was killed after it wrote that it removes lines, and before it removed them.
            Some(_) if lowest > 1 => return,
            Some(_) | None => Chain::EMPTY,
        };
        let first = start.last.saturating_add(1);
        let unreadable = self.numbers.unreadable_before;
        let end = lowest.saturating_sub(unreadable);
        if first < end {
            let gap = Gap {
                last: end - 1,
                after: None,
                before: Some(place),
            };
            self.numbers.gaps.insert(first, gap);
        } else if unreadable == 0 && prev != start.digest {
            self.links.certain.insert(lowest, place);
        }
    }
}

impl Numbers {
    /// Whether a line with this number has not been seen.
    fn is_free(&self, n: u64) -> bool {
        n > self.highest || self.gap_of(n).is_some() || self.lowest.is_some_and(|low| n < low)
    }

    fn gap_of(&self, n: u64) -> Option<(u64, &Gap)> {
        let (first, gap) = self.gaps.range(..=n).next_back()?;
        (n <= gap.last).then_some((*first, gap))
    }

    /// Handles a line with this number, which stands after the line `after`. Between them are `unreadable` lines, which have the
    /// numbers after `after`. Returns false if there was a line with this number before.
    fn handle(
        &mut self,
        n: u64,
        after: Option<u64>,
        unreadable: u64,
        before: &Option<Seen>,
        place: &Place,
    ) -> bool {
        if !self.is_free(n) {
            return false;
        }
        if let Some((first, gap)) = self.gap_of(n).map(|(first, gap)| (first, gap.clone())) {
            self.split(first, gap, n, n);
        } else if n > self.highest {
            let first = self.highest.saturating_add(1);
            if self.lowest.is_some() && first < n {
                let gap = Gap {
                    last: n - 1,
                    after: before.as_ref().map(|seen| seen.place.clone()),
                    before: Some(place.clone()),
                };
                self.gaps.insert(first, gap);
            }
            self.highest = n;
        } else if let Some(lowest) = self.lowest {
            // It stands after a line with a higher number, with which the log began.
            if n + 1 < lowest {
                let gap = Gap {
                    last: lowest - 1,
                    after: None,
                    before: None,
                };
                self.gaps.insert(n + 1, gap);
            }
        }
        self.lowest = Some(self.lowest.map_or(n, |lowest| lowest.min(n)));
        if let (Some(after), true) = (after, unreadable > 0) {
            let (low, high) = (after.saturating_add(1), after.saturating_add(unreadable));
            if let Some((first, gap)) = self.gap_of(low).map(|(first, gap)| (first, gap.clone())) {
                let high = high.min(gap.last);
                self.split(first, gap, low, high);
            }
        }
        true
    }

    /// Takes the numbers `low` to `high` out of a gap.
    fn split(&mut self, first: u64, gap: Gap, low: u64, high: u64) {
        self.gaps.remove(&first);
        if high < gap.last {
            self.gaps.insert(high + 1, gap.clone());
        }
        if first < low {
            let rest = Gap {
                last: low - 1,
                ..gap
            };
            self.gaps.insert(first, rest);
        }
    }
}

impl Links {
    fn handle(
        &mut self,
        n: u64,
        digest: LineDigest,
        prev: LineDigest,
        place: Place,
        head: Option<Chain>,
    ) {
        let before = n.saturating_sub(1);
        match self.open.remove(&before) {
            Some(open) if open.digest == prev => {}
            Some(open) => drop(self.altered.insert(before, open.place)),
            None => drop(self.wanted.insert(before, prev)),
        }
        if self
            .before_lowest
            .as_ref()
            .is_none_or(|(lowest, ..)| n < *lowest)
        {
            self.before_lowest = Some((n, prev, place.clone()));
        }
        if head.is_some_and(|head| head.last == n && head.digest != digest) {
            self.certain.insert(n, place.clone());
        }
        match self.wanted.remove(&n) {
            Some(wanted) if wanted == digest => {}
            Some(_) => drop(self.altered.insert(n, place)),
            None => drop(self.open.insert(n, Open { digest, place })),
        }
    }

    /// The lines that were changed. A line is certainly changed if its successor, which names another digest, was not changed
    /// itself.
    fn findings(self) -> Vec<(u64, Finding)> {
        let mut found = Vec::new();
        for (n, place) in &self.altered {
            let successor = n.saturating_add(1);
            let is_trusted =
                !self.altered.contains_key(&successor) && !self.certain.contains_key(&successor);
            if self.certain.contains_key(n) {
                continue;
            }
            let (n, place) = (*n, place.clone());
            let finding = if is_trusted {
                Finding::Edited { n, place }
            } else {
                Finding::Unconfirmed { n, place }
            };
            found.push((n, finding));
        }
        let certain = self.certain.into_iter();
        found.extend(certain.map(|(n, place)| (n, Finding::Edited { n, place })));
        found
    }
}

#[cfg(test)]
mod tests;
