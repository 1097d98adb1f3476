//! The cache of the upstreams' answers. An answer is used as long as its TTL permits, and longer when no upstream answers
//! (RFC 8767). Pure: the caller passes the time.
//!
//! The cache is bounded in bytes. An answer is stored as an encoded message, so the size of an entry is known. The entry that
//! has not been used for the longest time is removed first. Large answers have a part of the cache of their own, so a flood
//! of large answers removes no small ones.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::super::query::Question;
use super::answer::{Forwarded, Source};
use super::received::MAX_TTL;

/// The most bytes that the small answers and the large answers hold, with their keys and their slots in the tables.
const SMALL: usize = 6 * 1024 * 1024;
const LARGE: usize = 2 * 1024 * 1024;
/// The most bytes that a small answer has.
const MAX_SMALL: usize = 4096;
/// The maximum number of records of an answer that is stored.
const MAX_RECORDS: usize = 128;
/// The maximum time in seconds for which a negative answer is fresh (RFC 2308 section 5).
const MAX_NEGATIVE_TTL: u32 = 3_600;
/// How long an expired answer may be used in place of a fresh one (RFC 8767 section 5 recommends one to three days).
const STALE: Duration = Duration::from_secs(86_400);
/// How long a stale answer is returned without asking, after no upstream answered (RFC 8767 section 5).
const HOLD: Duration = Duration::from_secs(10);
/// The TTL of a stale answer in seconds (RFC 8767 section 4).
const STALE_TTL: u32 = 30;

/// The question that an answer belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    name: Name,
    record_type: RecordType,
    dnssec_ok: bool,
    checking_disabled: bool,
}

impl Key {
    pub(super) fn new(asked: &Question) -> Self {
        Self {
            name: asked.name.to_lowercase(),
            record_type: asked.record_type,
            dnssec_ok: asked.dnssec_ok,
            checking_disabled: asked.checking_disabled,
        }
    }
}

#[derive(Debug)]
struct Kept {
    message: Arc<[u8]>,
    from: SocketAddr,
    since: Instant,
    ttl: u32,
    /// Until when no upstream is asked, because none answered.
    held: Option<Instant>,
    /// When the entry was used last, as a number that only grows.
    used: u64,
}

/// An answer that was found. It can be parsed after the lock of the cache is released.
#[derive(Debug)]
pub(super) struct Hit {
    message: Arc<[u8]>,
    left: Left,
    source: Source,
}

/// How the TTL of a cached record is answered.
#[derive(Debug)]
enum Left {
    /// As the TTL minus this number of seconds.
    After(u32),
    /// As the TTL, but at most [`STALE_TTL`].
    Stale,
}

/// An answer in the form in which it is stored. It is encoded before the lock of the cache is taken.
#[derive(Debug)]
pub(super) struct Storable {
    message: Arc<[u8]>,
    ttl: u32,
}

impl Storable {
    /// Encodes an answer. Returns `None` if it may not be stored.
    pub(super) fn of(answer: &Forwarded) -> Option<Self> {
        let records = answer.answers.len() + answer.authority.len();
        let ttl = ttl(answer).filter(|ttl| *ttl > 0 && records <= MAX_RECORDS)?;
        let message = packed(answer)?.into();
        Some(Self { message, ttl })
    }
}

/// The stored answers.
#[derive(Debug, Default)]
pub(super) struct Cache {
    answers: HashMap<Arc<Key>, Kept>,
    small: Part,
    large: Part,
    uses: u64,
}

/// One part of the cache: the keys of its entries in the order of their last use, and the bytes that the entries hold.
#[derive(Debug, Default)]
struct Part {
    order: BTreeMap<u64, Arc<Key>>,
    bytes: usize,
}

impl Hit {
    /// Parses the answer and adjusts the TTLs of its records.
    pub(super) fn answer(self) -> Option<Forwarded> {
        let left = |ttl: u32| match self.left {
            Left::After(seconds) => ttl.min(MAX_TTL).saturating_sub(seconds),
            Left::Stale => ttl.min(STALE_TTL),
        };
        Some(unpacked(&self.message)?.aged(left, self.source))
    }
}

impl Cache {
    /// Returns a fresh answer, or a stale one as long as [`Cache::hold`] is in effect.
    pub(super) fn fresh(&mut self, key: &Key, now: Instant) -> Option<Hit> {
        let kept = self.touch(key)?;
        if kept.held.is_some_and(|until| now < until) {
            return self.stale(key, now);
        }
        let (from, age) = (kept.from, now.saturating_duration_since(kept.since));
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        (seconds < kept.ttl).then(|| Hit {
            message: Arc::clone(&kept.message),
            left: Left::After(seconds),
            source: Source::Cache { from, age },
        })
    }

    /// Returns an answer that was fresh at most a day ago.
    pub(super) fn stale(&self, key: &Key, now: Instant) -> Option<Hit> {
        let kept = self.answers.get(key)?;
        let (from, age) = (kept.from, now.saturating_duration_since(kept.since));
        (age < STALE + Duration::from_secs(kept.ttl.into())).then(|| Hit {
            message: Arc::clone(&kept.message),
            left: Left::Stale,
            source: Source::Stale { from, age },
        })
    }

    /// Lets the stale answer be returned without asking for a while, because no upstream answered. An answer that arrived in the
    /// meantime is not changed.
    pub(super) fn hold(&mut self, key: &Key, now: Instant) {
        let fresh = |kept: &Kept| now < kept.since + Duration::from_secs(kept.ttl.into());
        if let Some(kept) = self.answers.get_mut(key).filter(|kept| !fresh(kept)) {
            kept.held = Some(now + HOLD);
        }
    }

    /// Stores an answer of the upstream `from`.
    pub(super) fn store(&mut self, key: Key, answer: Storable, from: SocketAddr, now: Instant) {
        let Storable { message, ttl } = answer;
        if let Some(before) = self.answers.remove(&key) {
            let part = self.part(is_large(&before.message));
            part.order.remove(&before.used);
            part.bytes -= bytes_of(&key, &before);
        }
        self.uses += 1;
        let kept = Kept {
            message,
            from,
            since: now,
            ttl,
            held: None,
            used: self.uses,
        };
        let (key, large) = (Arc::new(key), is_large(&kept.message));
        let part = self.part(large);
        part.bytes += bytes_of(&key, &kept);
        part.order.insert(kept.used, Arc::clone(&key));
        self.answers.insert(key, kept);
        self.make_room(large);
    }

    fn part(&mut self, large: bool) -> &mut Part {
        match large {
            true => &mut self.large,
            false => &mut self.small,
        }
    }

    /// Removes the entries that have not been used for the longest time, until the part is within its bound.
    fn make_room(&mut self, large: bool) {
        let (part, most) = match large {
            true => (&mut self.large, LARGE),
            false => (&mut self.small, SMALL),
        };
        while part.bytes > most
            && let Some((_, oldest)) = part.order.pop_first()
        {
            if let Some(gone) = self.answers.remove(&*oldest) {
                part.bytes -= bytes_of(&oldest, &gone);
            }
        }
    }

    /// Finds an entry and records that it is used now.
    fn touch(&mut self, key: &Key) -> Option<&Kept> {
        let kept = self.answers.get_mut(key)?;
        self.uses += 1;
        let before = std::mem::replace(&mut kept.used, self.uses);
        let part = match is_large(&kept.message) {
            true => &mut self.large,
            false => &mut self.small,
        };
        if let Some(key) = part.order.remove(&before) {
            part.order.insert(self.uses, key);
        }
        Some(kept)
    }
}

fn is_large(message: &[u8]) -> bool {
    message.len() > MAX_SMALL
}

/// The bytes of an entry: the message, the name, and its slots in the tables. Up to half of a hash table's slots are empty.
fn bytes_of(key: &Key, kept: &Kept) -> usize {
    const COUNTS: usize = 2 * size_of::<usize>();
    const ALLOCATOR: usize = 16;
    const PLACES: usize = 2 * size_of::<(Arc<Key>, Kept)>() + 2 * size_of::<(u64, Arc<Key>)>();
    const ENTRY: usize = PLACES + size_of::<Key>() + 2 * (COUNTS + ALLOCATOR);
    ENTRY + kept.message.len() + 2 * key.name.len()
}

/// Encodes an answer as a message without a question. Returns `None` if the answer does not fit into a message.
fn packed(answer: &Forwarded) -> Option<Vec<u8>> {
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.metadata.response_code = answer.code;
    message.metadata.authentic_data = answer.authentic;
    message.answers.clone_from(&answer.answers);
    message.authorities.clone_from(&answer.authority);
    let bytes = message.to_vec().ok()?;
    // The encoder leaves out records that do not fit, and sets the TC flag.
    bytes
        .get(2)
        .is_some_and(|flags| flags & 2 == 0)
        .then_some(bytes)
}

fn unpacked(bytes: &[u8]) -> Option<Forwarded> {
    let message = Message::from_vec(bytes).ok()?;
    Some(Forwarded {
        code: message.metadata.response_code,
        authentic: message.metadata.authentic_data,
        answers: message.answers,
        authority: message.authorities,
        ..Forwarded::default()
    })
}

/// Returns how long an answer is fresh: the smallest TTL of its records, and for a negative answer at most the time of RFC 2308
/// section 5. An answer with aliases is negative too, if the last name has no record of the type or does not exist.
fn ttl(answer: &Forwarded) -> Option<u32> {
    let of_records = answer.answers.iter().map(|record| record.ttl).min();
    let of_soa = answer
        .authority
        .iter()
        .find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum).min(MAX_NEGATIVE_TTL)),
            _ => None,
        });
    let least = [of_records, of_soa].into_iter().flatten().min();
    let least = least.map(|ttl| ttl.min(MAX_TTL));
    match answer.code {
        ResponseCode::NoError => least,
        ResponseCode::NXDomain => least.filter(|_| of_soa.is_some()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME, SOA, TXT};

    fn asked(name: &str) -> Question {
        Question {
            name: Name::from_ascii(name).expect("a literal"),
            record_type: RecordType::A,
            dnssec_ok: false,
            checking_disabled: false,
            authentic: false,
        }
    }

    fn answer(ttl: u32) -> Forwarded {
        let name = Name::from_ascii("example.org.").expect("a literal");
        let data = RData::A(A::new(192, 0, 2, 1));
        Forwarded {
            answers: vec![Record::from_rdata(name, ttl, data)],
            ..Forwarded::default()
        }
    }

    impl Cache {
        fn keep(&mut self, key: Key, answer: &Forwarded, from: SocketAddr, now: Instant) {
            if let Some(answer) = Storable::of(answer) {
                self.store(key, answer, from, now);
            }
        }
    }

    const FROM: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 53);

    fn ttls(found: Option<Hit>) -> Option<u32> {
        found.and_then(Hit::answer).map(|f| f.answers[0].ttl)
    }

    fn source(found: Option<Hit>) -> Option<Source> {
        found.and_then(Hit::answer).map(|f| f.source)
    }

    #[test]
    fn an_answer_ages_and_is_stale_for_a_day() {
        let (start, mut cache) = (Instant::now(), Cache::default());
        let key = || Key::new(&asked("Example.ORG."));
        cache.keep(Key::new(&asked("example.org.")), &answer(60), FROM, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(ttls(cache.fresh(&key(), at(20))), Some(40));
        assert_eq!(ttls(cache.fresh(&key(), at(60))), None);
        assert_eq!(ttls(cache.stale(&key(), at(3600))), Some(30));
        assert_eq!(ttls(cache.stale(&key(), at(86_400 + 61))), None);
    }

    #[test]
    fn an_answer_that_arrives_while_the_client_gets_the_stale_one_is_not_delayed() {
        let (start, mut cache) = (Instant::now(), Cache::default());
        let key = || Key::new(&asked("example.org."));
        cache.keep(key(), &answer(60), FROM, start);
        let later = start + Duration::from_secs(90);
        cache.hold(&key(), later);
        let held = source(cache.fresh(&key(), later));
        assert!(matches!(held, Some(Source::Stale { .. })));
        cache.keep(key(), &answer(60), FROM, later);
        cache.hold(&key(), later);
        let fresh = source(cache.fresh(&key(), later));
        assert!(matches!(fresh, Some(Source::Cache { .. })));
    }

    #[test]
    fn failures_and_negative_answers_without_an_soa_are_not_kept() {
        let (now, mut cache) = (Instant::now(), Cache::default());
        let key = || Key::new(&asked("example.org."));
        cache.keep(key(), &Forwarded::failure(), FROM, now);
        cache.keep(key(), &Forwarded::default(), FROM, now);
        assert!(cache.stale(&key(), now).is_none());
        let name = || Name::from_ascii("org.").expect("a literal");
        let soa = RData::SOA(SOA::new(name(), name(), 1, 1, 1, 1, 20));
        let none = Forwarded {
            code: ResponseCode::NXDomain,
            authority: vec![Record::from_rdata(name(), 900, soa)],
            ..Forwarded::default()
        };
        cache.keep(key(), &none, FROM, now);
        assert!(cache.fresh(&key(), now + Duration::from_secs(19)).is_some());
        assert!(cache.fresh(&key(), now + Duration::from_secs(20)).is_none());
    }

    #[test]
    fn an_alias_to_a_name_without_such_records_is_kept_no_longer_than_a_negative_answer() {
        let (now, mut cache) = (Instant::now(), Cache::default());
        let key = || Key::new(&asked("example.org."));
        let name = |text: &str| Name::from_ascii(text).expect("a literal");
        let alias = RData::CNAME(CNAME(name("cdn.example.net.")));
        let soa = RData::SOA(SOA::new(name("net."), name("net."), 1, 1, 1, 1, 20));
        let no_data = Forwarded {
            answers: vec![Record::from_rdata(name("example.org."), 3_600, alias)],
            authority: vec![Record::from_rdata(name("net."), 900, soa)],
            ..Forwarded::default()
        };
        cache.keep(key(), &no_data, FROM, now);
        assert!(cache.fresh(&key(), now + Duration::from_secs(19)).is_some());
        assert!(cache.fresh(&key(), now + Duration::from_secs(20)).is_none());
    }

    fn named(n: u32) -> Key {
        Key::new(&asked(&format!("n{n}.example.org.")))
    }

    /// The bytes that the cache holds, counted again from its entries.
    fn held(cache: &Cache) -> usize {
        let kept = cache.answers.iter();
        let all = kept.map(|(key, kept)| bytes_of(key, kept)).sum();
        assert_eq!(cache.small.bytes + cache.large.bytes, all);
        let places = cache.small.order.len() + cache.large.order.len();
        assert_eq!(places, cache.answers.len());
        all
    }

    /// An answer of about this size in bytes.
    fn text(bytes: usize) -> Forwarded {
        let name = Name::from_ascii("example.org.").expect("a literal");
        let records = bytes.div_ceil(1_000);
        let record = |n: usize| {
            let strings = (0..4).map(|_| format!("{n:0>245}")).collect();
            Record::from_rdata(name.clone(), 60, RData::TXT(TXT::new(strings)))
        };
        Forwarded {
            answers: (0..records).map(record).collect(),
            ..Forwarded::default()
        }
    }

    #[test]
    fn the_cache_is_bounded_in_bytes_and_recently_used_answers_stay() {
        let (now, mut cache) = (Instant::now(), Cache::default());
        for n in 0..40_000 {
            cache.keep(named(n), &answer(60), FROM, now);
            assert!(cache.fresh(&named(0), now).is_some(), "asked all the time");
            assert!(cache.small.bytes <= SMALL);
        }
        assert!(held(&cache) > SMALL / 2);
        assert!(cache.stale(&named(1), now).is_none(), "the oldest is gone");
        assert!(cache.stale(&named(39_999), now).is_some());
    }

    #[test]
    fn large_answers_are_bounded_and_push_out_no_small_ones() {
        let (now, mut cache) = (Instant::now(), Cache::default());
        for n in 0..1_000 {
            cache.keep(named(n), &answer(60), FROM, now);
        }
        let before = cache.small.bytes;
        for n in 1_000..2_500 {
            cache.keep(named(n), &text(58_000), FROM, now);
            assert!(cache.large.bytes <= LARGE);
        }
        assert!(held(&cache) <= SMALL + LARGE);
        assert_eq!(cache.small.bytes, before);
        assert!((0..1_000).all(|n| cache.fresh(&named(n), now).is_some()));
        assert!(cache.fresh(&named(2_499), now).is_some());
    }

    #[test]
    fn an_answer_that_replaces_another_leaves_nothing_of_it() {
        let (now, mut cache) = (Instant::now(), Cache::default());
        for bytes in [100, 30_000, 2_000, 60_000, 100] {
            cache.keep(named(1), &text(bytes), FROM, now);
            held(&cache);
            assert_eq!(cache.answers.len(), 1);
        }
        assert_eq!(cache.large.bytes, 0);
    }

    #[test]
    fn a_cached_answer_is_returned_unchanged() {
        let (now, mut cache) = (Instant::now(), Cache::default());
        let given = Forwarded {
            authentic: true,
            ..text(58_000)
        };
        cache.keep(named(1), &given, FROM, now);
        let found = cache.fresh(&named(1), now).and_then(Hit::answer);
        let found = found.expect("it was kept");
        assert_eq!((found.code, found.authentic), (given.code, true));
        assert_eq!(found.answers, given.answers);
    }
}
