//! Bounds how often the table of the policy is compiled for changes of members. Pure.
//!
//! A member may change its records many times a second, and in a large mesh each compilation takes long. So a new table stays for a rest
//! of several times the duration of its compilation. Changes during the rest wait for its end. An address that comes to another owner
//! meanwhile is closed, so that nobody has the rights of the owner before. A change of the policy itself does not wait.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::policy::{Class, Table};
use crate::records::subjects::{Moved, Owner};

/// The rest after a compilation, as a multiple of its duration: compilations take at most a fifth of the time, unless
/// [`MAX_REST`] ends the rest.
const REST: u32 = 4;
/// The maximum rest. A new instance is not reached before its end, and a right that a member lost lasts until then.
const MAX_REST: Duration = Duration::from_millis(400);

/// When the table is compiled again, and the addresses that are closed until then.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    /// The end of the rest. None before the first compilation.
    rests_until: Option<Instant>,
    is_waiting: bool,
    /// The addresses that were lost since the last compilation, with their owners at that time.
    gone: BTreeMap<IpAddr, Owner>,
    /// The addresses that one more owner got since the last compilation, beside those that the table knows.
    shared: BTreeSet<IpAddr>,
    /// The addresses that are closed until the next compilation.
    closed: BTreeSet<IpAddr>,
}

impl Pace {
    /// The table was compiled.
    pub(super) fn handle_compiled(&mut self, began: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(began);
        let rests_until = ended + took.saturating_mul(REST).min(MAX_REST);
        *self = Self {
            // A table without rules takes no time. It does not end a longer rest, or a member that sets and clears `mesh.allow` again
            // and again could end each one.
            rests_until: self.rests_until.max(Some(rests_until)),
            ..Self::default()
        };
    }

    /// Whether the table was never compiled.
    pub(super) fn is_first(&self) -> bool {
        self.rests_until.is_none()
    }

    /// Whether changes of members wait.
    pub(super) fn is_resting(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    /// When the changes that wait are to be compiled.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.rests_until.filter(|_| self.is_waiting)
    }

    /// Lets a change wait. Returns the addresses that are closed in `table` until it is compiled again, if they are more than before.
    pub(super) fn defer(&mut self, moved: Moved, table: &Table) -> Option<&BTreeSet<IpAddr>> {
        self.is_waiting = true;
        let before = self.closed.len();
        for (address, owner) in moved.gone {
            if self.shared.contains(&address) {
                self.closed.insert(address);
            }
            self.gone.entry(address).or_insert(owner);
        }
        for (address, owner) in moved.added {
            let is_new = table.class(address) == Class::OUTSIDE;
            let lost_by = self.gone.get(&address);
            if lost_by.is_none() && !is_new {
                self.shared.insert(address);
            }
            let is_others = lost_by.is_some_and(|before| *before != owner);
            if is_others || (is_new && table.allows_unknown()) {
                self.closed.insert(address);
            }
        }
        (self.closed.len() > before).then_some(&self.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::netmap::Netmap;
    use crate::records::subjects::subjects;
    use crate::testbed::records as build;

    const MS: Duration = Duration::from_millis(1);

    /// A map in which node 1 has these instances, each at an address of its block.
    fn netmap(instances: &[(&str, usize)]) -> Netmap {
        let (id, block) = (build::id(1), build::block(1));
        let mut netmap = Netmap::default();
        netmap.members.insert(id, build::member(&id, "n1", block));
        let instances = instances.iter().map(|(instance, n)| {
            let address = block.v4.hosts().nth(*n).expect("a /24");
            build::instance(instance, vec![address.into()])
        });
        let service = build::service(&id, "db", instances.collect());
        netmap.replace(&service.id, Some(&service));
        netmap
    }

    /// The addresses of the instance with this number, of both families.
    fn addresses(n: usize) -> BTreeSet<IpAddr> {
        let block = build::block(1);
        let v4 = block.v4.hosts().nth(n).expect("a /24");
        let v6 = block.instance_v6(v4).expect("a /64");
        BTreeSet::from([v4.into(), v6.into()])
    }

    fn moved(before: Option<(&str, usize)>, now: Option<(&str, usize)>) -> Moved {
        Moved::between(&netmap(before.as_slice()), &netmap(now.as_slice()))
    }

    #[test]
    fn a_table_rests_for_four_times_its_compilation_and_never_for_long() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert!(pace.is_first() && !pace.is_resting(start));
        pace.handle_compiled(start, start + 50 * MS);
        assert!(!pace.is_first());
        assert!(pace.is_resting(start + 249 * MS) && !pace.is_resting(start + 250 * MS));
        pace.handle_compiled(start, start + 3_000 * MS);
        assert!(pace.is_resting(start + 3_399 * MS) && !pace.is_resting(start + 3_400 * MS));
    }

    #[test]
    fn a_compilation_that_takes_no_time_does_not_end_the_rest_of_the_one_before() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.handle_compiled(start, start + 50 * MS);
        pace.handle_compiled(start + 60 * MS, start + 60 * MS);
        assert!(pace.is_resting(start + 249 * MS) && !pace.is_resting(start + 250 * MS));
    }

    #[test]
    fn many_changes_are_compiled_together_at_the_end_of_the_rest() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let table = Table::closed();
        pace.handle_compiled(start, start + 50 * MS);
        assert_eq!(pace.poll_timeout(), None);
        let mut compiled = 0;
        for n in 0..1_000 {
            let now = start + (50 + n) * MS;
            if pace.is_resting(now) {
                pace.defer(Moved::default(), &table);
                assert_eq!(pace.poll_timeout().is_some(), pace.is_waiting);
            } else {
                compiled += 1;
                pace.handle_compiled(now, now + 50 * MS);
                assert_eq!(pace.poll_timeout(), None);
            }
        }
        // The rest ends 200 ms after a compilation, which takes 50 ms.
        assert_eq!(compiled, 4);
    }

    #[test]
    fn an_address_that_comes_to_another_owner_is_closed_until_the_next_compilation() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let table = Table::closed();
        let old = Some(("old-1", 70));
        assert!(pace.defer(moved(old, None), &table).is_none());
        assert!(pace.defer(moved(None, old), &table).is_none(), "it is back");
        let other = Some(("new-1", 70));
        let closed = pace.defer(moved(old, other), &table);
        assert_eq!(closed, Some(&addresses(70)));
        pace.handle_compiled(start, start);
        assert!(pace.defer(moved(None, other), &table).is_none());
    }

    #[test]
    fn an_address_is_closed_if_its_owner_leaves_it_to_one_that_came_before_that() {
        let (one, two) = (("one", 70), ("two", 70));
        let table = Table::compile(None, &subjects(&netmap(&[one])));
        let mut pace = Pace::default();
        let came = Moved::between(&netmap(&[one]), &netmap(&[one, two]));
        assert!(pace.defer(came, &table).is_none(), "the owner is there");
        let left = Moved::between(&netmap(&[one, two]), &netmap(&[two]));
        let closed = pace.defer(left, &table);
        assert_eq!(closed, Some(&addresses(70)));
    }

    #[test]
    fn where_unknown_addresses_pass_a_new_one_is_closed_until_its_owner_is_known() {
        let mut pace = Pace::default();
        let new = || moved(None, Some(("new-1", 70)));
        let open = Table::compile(None, &[]);
        let closed = pace.defer(new(), &open).map(BTreeSet::len);
        assert_eq!(closed, Some(2));
        assert!(pace.defer(new(), &open).is_none(), "it is closed already");
    }
}
