//! The host names of services outside the mesh: when each one is looked up, and which of its addresses is used. Pure.
//!
//! A name is looked up again when the TTL of its answer has passed, within bounds. After a failure the last address stays in use, as a
//! resolver uses a stale answer (RFC 8767), and the name is looked up again at growing intervals. Of several addresses, the one in use
//! stays as long as it is among them: servers that are answered in changing order do not move connections. An address to which this node
//! cannot forward is not used. If there is no other one, the last address stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::outside::{Machine, Refusal};
use crate::model::HostName;

/// The maximum number of names that a node looks up.
pub const MAX_NAMES: usize = 64;
/// The bounds of the time between two lookups that succeed.
const MIN_INTERVAL: Duration = Duration::from_secs(5);
const MAX_INTERVAL: Duration = Duration::from_secs(300);
/// The time between a failure and the next lookup, which doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const MAX_RETRY: Duration = Duration::from_secs(60);
/// A lookup without an answer has failed after this time. The forwarder answers within a few seconds.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a name is not answered until that is a problem.
const PROBLEM_AFTER: Duration = Duration::from_secs(300);

/// What a name was answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The addresses of the name.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// How long the answer is valid.
    pub ttl: Duration,
}

/// A name has another address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// The address before, if there was one.
    pub from: Option<Ipv4Addr>,
    /// The address now.
    pub to: Ipv4Addr,
}

/// The names that this node looks up.
#[derive(Debug, Clone, Default)]
pub struct Named {
    lookups: BTreeMap<HostName, Lookup>,
    /// The addresses from before a restart, until it is known which names are looked up.
    stored: BTreeMap<HostName, Ipv4Addr>,
}

/// The state of a name.
#[derive(Debug, Clone)]
struct Lookup {
    /// The address in use.
    address: Option<Ipv4Addr>,
    /// The address that was in use before.
    before: Option<Ipv4Addr>,
    turn: Turn,
    /// The time until the next lookup after the next failure.
    retry: Duration,
    /// Present while lookups fail.
    failing: Option<Failing>,
    /// Why none of the addresses of the last answer can be used, if that is so.
    refused: Option<Refusal>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The name is to be looked up.
    Due,
    /// The name is being looked up. The lookup has failed at this time.
    Asked(Instant),
    /// The name is to be looked up at this time.
    Waits(Instant),
}

#[derive(Debug, Clone)]
struct Failing {
    since: Instant,
    /// Why the last lookup failed.
    why: String,
    /// Whether lookups have failed for so long that it is a problem.
    is_problem: bool,
}

impl Named {
    /// Starts with the addresses from before a restart.
    #[must_use]
    pub fn new(stored: BTreeMap<HostName, Ipv4Addr>) -> Self {
        Self {
            lookups: BTreeMap::new(),
            stored,
        }
    }

    /// Looks up the names `wanted` from now on, up to the maximum number, and no others.
    pub fn follow<'n>(&mut self, wanted: impl Iterator<Item = &'n HostName>) {
        let wanted: BTreeSet<&HostName> = wanted.collect();
        self.lookups.retain(|name, _| wanted.contains(name));
        let stored = std::mem::take(&mut self.stored);
        for name in wanted {
            if self.lookups.contains_key(name) || self.lookups.len() >= MAX_NAMES {
                continue;
            }
            let lookup = Lookup::new(stored.get(name).copied());
            self.lookups.insert(name.clone(), lookup);
        }
    }

    /// Whether `name` is looked up, or can be looked up besides the others.
    #[must_use]
    pub fn has_room_for(&self, name: &HostName) -> bool {
        self.lookups.contains_key(name) || self.lookups.len() < MAX_NAMES
    }

    /// Whether `name` is looked up, or can be looked up besides `others`, which are all other names from now on.
    pub fn has_room_beside<'n>(
        &self,
        name: &HostName,
        others: impl Iterator<Item = &'n HostName>,
    ) -> bool {
        self.has_room_for(name) || others.collect::<BTreeSet<_>>().len() < MAX_NAMES
    }

    /// The names to look up now. Each of them is returned once until it is answered, or the time for the answer has passed.
    pub fn poll(&mut self, now: Instant) -> Vec<HostName> {
        let mut due = Vec::new();
        for (name, lookup) in &mut self.lookups {
            let is_due = match lookup.turn {
                Turn::Due => true,
                Turn::Waits(until) => until <= now,
                Turn::Asked(until) => {
                    if until <= now {
                        lookup.handle_failure("no answer came".to_owned(), now);
                    }
                    false
                }
            };
            if is_due {
                lookup.turn = Turn::Asked(now + LOOKUP_TIMEOUT);
                due.push(name.clone());
            }
        }
        due
    }

    /// When [`Named::poll`] is to be called next.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let lookups = self.lookups.values();
        let deadlines = lookups.map(|lookup| match lookup.turn {
            Turn::Due => now,
            Turn::Asked(until) | Turn::Waits(until) => until,
        });
        deadlines.min()
    }

    /// A lookup was answered. `machine` decides which addresses can be used. Returns the change of the address in use, if it changed.
    pub fn handle_answer(
        &mut self,
        name: &HostName,
        answered: &Answered,
        machine: &Machine,
        now: Instant,
    ) -> Option<Moved> {
        let lookup = self.asked(name)?;
        let (mut usable, mut refused) = (BTreeSet::new(), None);
        for address in &answered.addresses {
            match machine.check_answer(*address) {
                Ok(address) => drop(usable.insert(address)),
                Err(refusal) => refused = Some(refusal),
            }
        }
        let pause = answered.ttl.clamp(MIN_INTERVAL, MAX_INTERVAL);
        lookup.turn = Turn::Waits(now + pause);
        lookup.retry = FIRST_RETRY;
        lookup.failing = None;
        lookup.refused = refused.filter(|_| usable.is_empty());
        let lowest = usable.first().copied()?;
        let kept = lookup.address.filter(|address| usable.contains(address));
        if kept.is_some() {
            return None;
        }
        let from = lookup.address.replace(lowest);
        lookup.before = from;
        Some(Moved { from, to: lowest })
    }

    /// A lookup failed.
    pub fn handle_failure(&mut self, name: &HostName, why: String, now: Instant) {
        if let Some(lookup) = self.asked(name) {
            lookup.handle_failure(why, now);
        }
    }

    /// The state of a name that is being looked up. An answer that comes too late counts for nothing.
    fn asked(&mut self, name: &HostName) -> Option<&mut Lookup> {
        let lookup = self.lookups.get_mut(name)?;
        matches!(lookup.turn, Turn::Asked(_)).then_some(lookup)
    }

    /// The names that are looked up, each with the address that is in use.
    pub fn iter(&self) -> impl Iterator<Item = (&HostName, Option<Ipv4Addr>)> {
        let lookups = self.lookups.iter();
        lookups.map(|(name, lookup)| (name, lookup.address))
    }

    /// The address of `name` that is in use.
    #[must_use]
    pub fn address(&self, name: &HostName) -> Option<Ipv4Addr> {
        self.lookups.get(name)?.address
    }

    /// The address of `name` that is in use, and the one before, to which the kernel may still forward.
    pub fn targets(&self, name: &HostName) -> impl Iterator<Item = Ipv4Addr> {
        let lookup = self.lookups.get(name);
        let targets = lookup.map_or([None; 2], |lookup| [lookup.address, lookup.before]);
        targets.into_iter().flatten()
    }

    /// The addresses that are in use, to be stored for the next start.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<HostName, Ipv4Addr> {
        let known = self.iter();
        let known = known.filter_map(|(name, address)| Some((name.clone(), address?)));
        let mut addresses = self.stored.clone();
        addresses.extend(known);
        addresses
    }

    /// Why the address in use may be wrong, or why there is none, if that is a problem.
    #[must_use]
    pub fn problem(&self, name: &HostName) -> Option<String> {
        let lookup = self.lookups.get(name)?;
        if let Some(refusal) = &lookup.refused {
            return Some(format!(
                "none of the addresses of {name} can be used: {refusal}"
            ));
        }
        let failing = lookup.failing.as_ref().filter(|it| it.is_problem)?;
        let minutes = PROBLEM_AFTER.as_secs() / 60;
        Some(format!(
            "{name} has had no answer for more than {minutes} minutes: {}",
            failing.why
        ))
    }
}

impl Lookup {
    fn new(address: Option<Ipv4Addr>) -> Self {
        Self {
            address,
            before: None,
            turn: Turn::Due,
            retry: FIRST_RETRY,
            failing: None,
            refused: None,
        }
    }

    fn handle_failure(&mut self, why: String, now: Instant) {
        let since = self.failing.as_ref().map_or(now, |failing| failing.since);
        self.failing = Some(Failing {
            since,
            why,
            is_problem: now.saturating_duration_since(since) >= PROBLEM_AFTER,
        });
        self.turn = Turn::Waits(now + self.retry);
        self.retry = (self.retry * 2).min(MAX_RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().expect("a literal")
    }

    fn db() -> HostName {
        name("db.example.net")
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().expect("a literal")
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn answered(addresses: &[&str], ttl: u64) -> Answered {
        Answered {
            addresses: addresses.iter().map(|text| ip(text)).collect(),
            ttl: seconds(ttl),
        }
    }

    /// A machine in the mesh 10.210.0.0/16 with the address 192.168.1.7, and containers in 172.17.0.0/16.
    fn machine() -> Machine {
        Machine {
            mesh: Some(crate::testbed::records::plan()),
            domain: None,
            own: BTreeSet::from([ip("192.168.1.7").into()]),
            containers: BTreeSet::from(["172.17.0.0/16".parse().expect("a literal")]),
        }
    }

    /// A node that looks up one name, and the time.
    struct World {
        named: Named,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let mut named = Named::default();
            named.follow([db()].iter());
            Self {
                named,
                now: Instant::now(),
            }
        }

        /// Lets time pass until the name is looked up. Returns how long that took.
        fn until_asked(&mut self) -> Duration {
            let from = self.now;
            loop {
                let deadline = self.named.poll_timeout(self.now).expect("there is a name");
                self.now = self.now.max(deadline);
                if !self.named.poll(self.now).is_empty() {
                    return self.now - from;
                }
            }
        }

        fn answer(&mut self, addresses: &[&str], ttl: u64) -> Option<Moved> {
            let answered = answered(addresses, ttl);
            self.named
                .handle_answer(&db(), &answered, &machine(), self.now)
        }

        fn fail(&mut self) {
            self.named
                .handle_failure(&db(), "SERVFAIL".to_owned(), self.now);
        }

        fn address(&self) -> Option<Ipv4Addr> {
            self.named.address(&db())
        }
    }

    #[test]
    fn a_name_is_looked_up_at_once_and_again_after_its_ttl_within_bounds() {
        let mut world = World::new();
        assert_eq!(world.until_asked(), Duration::ZERO);
        assert!(world.named.poll(world.now).is_empty(), "it is being asked");
        for (ttl, pause) in [(0, 5), (60, 60), (86_400, 300)] {
            world.answer(&["10.0.0.5"], ttl);
            assert_eq!(world.until_asked(), seconds(pause), "{ttl}");
        }
        assert_eq!(world.named.problem(&db()), None);
    }

    #[test]
    fn the_address_in_use_stays_while_it_is_answered_and_the_lowest_follows_it() {
        let mut world = World::new();
        let moved = |from: Option<&str>, to: &str| {
            Some(Moved {
                from: from.map(ip),
                to: ip(to),
            })
        };
        for (addresses, expected) in [
            (&["10.0.0.9", "10.0.0.5"][..], moved(None, "10.0.0.5")),
            (&["10.0.0.1", "10.0.0.5"][..], None),
            (
                &["10.0.0.9", "10.0.0.8"][..],
                moved(Some("10.0.0.5"), "10.0.0.8"),
            ),
            (&["10.0.0.8"][..], None),
        ] {
            world.until_asked();
            assert_eq!(world.answer(addresses, 5), expected, "{addresses:?}");
        }
        let targets: Vec<Ipv4Addr> = world.named.targets(&db()).collect();
        assert_eq!(targets, [ip("10.0.0.8"), ip("10.0.0.5")]);
    }

    #[test]
    fn failures_keep_the_address_and_are_retried_at_growing_intervals_and_are_a_problem_in_the_end()
    {
        let mut world = World::new();
        world.until_asked();
        world.answer(&["10.0.0.5"], 5);
        world.until_asked();
        let began = world.now;
        let mut pauses = Vec::new();
        while world.named.problem(&db()).is_none() {
            world.fail();
            pauses.push(world.until_asked().as_secs());
            assert!(world.now - began < seconds(600), "{pauses:?}");
        }
        assert_eq!(pauses[..6], [5, 10, 20, 40, 60, 60]);
        assert!(world.now - began >= PROBLEM_AFTER);
        assert_eq!(world.address(), Some(ip("10.0.0.5")));
        let problem = world.named.problem(&db()).expect("there is one");
        assert!(problem.contains("SERVFAIL"), "{problem}");
        // The first answer ends it.
        assert_eq!(world.answer(&["10.0.0.5"], 5), None);
        assert_eq!(world.named.problem(&db()), None);
        world.until_asked();
        world.fail();
        assert_eq!(world.until_asked(), FIRST_RETRY);
    }

    #[test]
    fn a_lookup_that_is_never_answered_fails_and_its_late_answer_counts_for_nothing() {
        let mut world = World::new();
        world.until_asked();
        world.now += LOOKUP_TIMEOUT;
        assert!(world.named.poll(world.now).is_empty());
        assert_eq!(world.answer(&["10.0.0.5"], 5), None);
        assert_eq!(world.until_asked(), FIRST_RETRY);
        assert!(world.answer(&["10.0.0.5"], 5).is_some());
    }

    #[test]
    fn an_address_to_which_this_node_cannot_forward_is_never_used_and_is_a_problem_if_it_is_the_only_one()
     {
        let mut world = World::new();
        world.until_asked();
        world.answer(&["10.0.0.5"], 5);
        for refused in [
            "169.254.169.254",
            "127.0.0.1",
            "10.210.0.53",
            "192.168.1.7",
            "172.17.0.2",
            "224.0.0.1",
            "0.0.0.0",
            "255.255.255.255",
        ] {
            world.until_asked();
            assert_eq!(world.answer(&[refused], 5), None, "{refused}");
            let problem = world.named.problem(&db()).expect(refused);
            assert!(problem.contains(refused), "{problem}");
            assert_eq!(world.address(), Some(ip("10.0.0.5")));
        }
        world.until_asked();
        let moved = world.answer(&["127.0.0.1", "203.0.113.9"], 5);
        assert_eq!(moved.map(|moved| moved.to), Some(ip("203.0.113.9")));
        assert_eq!(world.named.problem(&db()), None);
    }

    #[test]
    fn the_number_of_names_is_bounded_and_names_that_are_not_wanted_any_more_are_forgotten() {
        let names: Vec<HostName> = (0..100)
            .map(|n| name(&format!("db{n}.example.net")))
            .collect();
        let mut named = Named::default();
        named.follow(names.iter());
        assert_eq!(named.poll(Instant::now()).len(), MAX_NAMES);
        assert!(!named.has_room_for(&db()));
        named.follow(names.iter().take(1));
        assert!(named.has_room_for(&db()));
        named.follow(std::iter::empty());
        assert_eq!(named.poll_timeout(Instant::now()), None);
    }

    #[test]
    fn the_address_from_before_a_restart_is_used_until_the_name_is_answered() {
        let mut world = World::new();
        world.until_asked();
        world.answer(&["10.0.0.5"], 5);
        let mut named = Named::new(world.named.addresses());
        assert_eq!(named.addresses(), world.named.addresses());
        named.follow([db(), name("other.example.net")].iter());
        assert_eq!(named.address(&db()), Some(ip("10.0.0.5")));
        assert_eq!(named.address(&name("other.example.net")), None);
        assert_eq!(named.poll(Instant::now()).len(), 2);
    }
}
