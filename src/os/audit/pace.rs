//! Bounds the number of lines of events that outside causes can repeat without end, such as refused joins. Pure.
//!
//! Each object of a class, such as the source of joins, may write some lines at once and then one in each interval; and so may
//! the class as a whole. An event above that limit is held, and the next event of the same object replaces it. So the last event of
//! an object is written in the end, with the number of those that were left out. The number of objects has a bound as well.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime};

use super::event::{Event, Noise, What, Who};
use crate::model::rate::{Bucket, Rate};

/// The lines of one object: 5 at once, and then one each minute.
const OBJECT_RATE: Rate = Rate {
    per_second: 1.0 / 60.0,
    burst: 5.0,
};
/// The lines of a class: 200 at once, and then one in 6 seconds. Such lines fill the files of the log in months, not in hours.
const CLASS_RATE: Rate = Rate {
    per_second: 1.0 / 6.0,
    burst: 200.0,
};
/// The maximum number of objects of a class that have limits of their own.
const MAX_OBJECTS: usize = 1024;
/// The time between two searches for objects whose limits are unused. A search looks at all objects.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// An event with its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub at: SystemTime,
    pub event: Event,
}

/// The events that the classes wrote lately, and those that are held.
#[derive(Debug, Default)]
pub struct Pace(BTreeMap<Noise, Class>);

#[derive(Debug)]
struct Class {
    bucket: Bucket,
    objects: HashMap<String, Object>,
    /// When objects whose limits are unused are looked for again.
    next_sweep: Instant,
    /// The number of events of objects without limits of their own, because there are too many objects.
    others: u64,
}

#[derive(Debug)]
struct Object {
    bucket: Bucket,
    /// The last event that was not written, and how many were left out before it.
    held: Option<(Entry, u64)>,
}

impl Class {
    fn new(now: Instant) -> Self {
        Self {
            bucket: Bucket::full(CLASS_RATE, now),
            objects: HashMap::new(),
            next_sweep: now,
            others: 0,
        }
    }

    /// Makes room for another object, by removing objects that may write all their lines.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.objects.len() >= MAX_OBJECTS && now >= self.next_sweep {
            self.next_sweep = now + SWEEP_INTERVAL;
            self.objects
                .retain(|_, object| object.held.is_some() || !object.bucket.is_full(now));
        }
        self.objects.len() < MAX_OBJECTS
    }

    fn handle(&mut self, key: String, entry: Entry, now: Instant) -> Option<Entry> {
        if !self.objects.contains_key(&key) && !self.make_room(now) {
            self.others = self.others.saturating_add(1);
            return None;
        }
        let object = self.objects.entry(key).or_insert_with(|| Object {
            bucket: Bucket::full(OBJECT_RATE, now),
            held: None,
        });
        let before = object.held.take();
        let left_out = before.map_or(0, |(_, left_out)| left_out.saturating_add(1));
        object.held = Some((entry, left_out));
        object.poll(&mut self.bucket, now)
    }

    fn poll(&mut self, noise: Noise, now: Instant, wall: SystemTime) -> Vec<Entry> {
        let mut due = Vec::new();
        if self.others > 0 && self.bucket.take(now) {
            due.extend(self.take_others(noise, wall));
        }
        for object in self.objects.values_mut() {
            due.extend(object.poll(&mut self.bucket, now));
        }
        due
    }

    /// Takes all events that are held, whatever the limits are.
    fn drain(&mut self, noise: Noise, wall: SystemTime) -> Vec<Entry> {
        let held = self.objects.values_mut().filter_map(Object::take);
        let mut rest: Vec<Entry> = held.collect();
        rest.extend(self.take_others(noise, wall));
        rest
    }

    /// The event that counts those of objects without limits of their own. None if there were no such events.
    fn take_others(&mut self, noise: Noise, wall: SystemTime) -> Option<Entry> {
        let count = std::mem::take(&mut self.others);
        let kind = noise.as_str();
        let event = Event::done(Who::Daemon, What::LeftOut { kind, count });
        (count > 0).then_some(Entry { at: wall, event })
    }
}

impl Object {
    /// The held event, if this object and its class may write a line.
    fn poll(&mut self, class: &mut Bucket, now: Instant) -> Option<Entry> {
        // An object without a line of its own takes none of the lines of its class.
        if self.held.is_none() || !self.bucket.holds(1.0, now) || !class.take(now) {
            return None;
        }
        self.bucket.take(now);
        self.take()
    }

    fn take(&mut self) -> Option<Entry> {
        let (mut entry, left_out) = self.held.take()?;
        entry.event.repeats = left_out;
        Some(entry)
    }
}

impl Pace {
    /// Returns the event if it is to be written now. Otherwise it is held.
    pub fn handle(&mut self, entry: Entry, now: Instant) -> Option<Entry> {
        let Some((noise, key)) = entry.event.noise() else {
            return Some(entry);
        };
        let class = self.0.entry(noise).or_insert_with(|| Class::new(now));
        class.handle(key, entry, now)
    }

    /// The held events that are to be written now.
    pub fn poll(&mut self, now: Instant, wall: SystemTime) -> Vec<Entry> {
        let classes = self.0.iter_mut();
        let due = classes.flat_map(|(noise, class)| class.poll(*noise, now, wall));
        in_order(due.collect())
    }

    /// All held events, for a daemon that stops.
    pub fn drain(&mut self, wall: SystemTime) -> Vec<Entry> {
        let classes = self.0.iter_mut();
        let rest = classes.flat_map(|(noise, class)| class.drain(*noise, wall));
        in_order(rest.collect())
    }

    /// Whether an event is held.
    #[must_use]
    pub fn holds_any(&self) -> bool {
        self.0.values().any(|class| {
            class.others > 0 || class.objects.values().any(|object| object.held.is_some())
        })
    }
}

fn in_order(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(|entry| entry.at);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::audit::event::{Outcome, Text};

    fn refused(source: u32, second: u64) -> Entry {
        let who = Who::Joiner {
            address: std::net::Ipv4Addr::from(source).into(),
            token: None,
        };
        let result = Outcome::Refused(Text::of(&second));
        Entry {
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(second),
            event: Event {
                result,
                ..Event::done(who, What::JoinRefused { node: None })
            },
        }
    }

    #[test]
    fn a_flood_from_one_source_is_a_few_lines_and_the_last_event_is_among_them_with_its_count() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut pace = Pace::default();
        let mut written = Vec::new();
        for n in 0..100_000 {
            written.extend(pace.handle(refused(1, n), at(n / 1000)));
        }
        // It lasted for 100 s.
        assert_eq!(written.len(), 5 + 1);
        assert!(pace.holds_any());
        let wall = SystemTime::UNIX_EPOCH;
        assert_eq!(pace.poll(at(100), wall), []);
        let last = pace.poll(at(120), wall);
        written.extend(last.clone());
        assert!(!pace.holds_any());
        let told: u64 = written.iter().map(|entry| entry.event.repeats + 1).sum();
        assert_eq!(told, 100_000);
        let last = &last.first().expect("the last one is due").event;
        assert_eq!(last.result, Outcome::Refused(Text::from("99999")));
    }

    #[test]
    fn a_flood_from_many_sources_is_bounded_by_its_class_and_nothing_is_left_uncounted() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut written = Vec::new();
        let mut sent = 0;
        for second in 0..120 {
            let now = start + Duration::from_secs(second);
            for source in 0..2000 {
                sent += 1;
                written.extend(pace.handle(refused(source, second), now));
            }
            written.extend(pace.poll(now, SystemTime::UNIX_EPOCH));
        }
        assert!(written.len() <= 200 + 20, "{}", written.len());
        written.extend(pace.drain(SystemTime::UNIX_EPOCH));
        let told: u64 = written
            .iter()
            .map(|entry| match entry.event.what {
                What::LeftOut { count, .. } => count,
                _ => entry.event.repeats + 1,
            })
            .sum();
        assert_eq!(told, sent);
    }

    #[test]
    fn what_only_people_of_the_mesh_can_cause_always_has_a_line() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let made = Entry {
            at: SystemTime::UNIX_EPOCH,
            event: Event::done(Who::Daemon, What::Stopped {}),
        };
        let written = (0..1000).filter_map(|_| pace.handle(made.clone(), start));
        assert_eq!(written.count(), 1000);
    }
}
