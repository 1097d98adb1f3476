//! What the upstreams said, for as long as they said; and longer when none of them answers (RFC 8767). Pure: the caller
//! brings the time.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::message::{Asked, Forwarded, Source};
use super::received::MAX_TTL;

/// Answers kept at most.
const MOST: usize = 8192;
/// Records of an answer kept at most.
const MOST_RECORDS: usize = 128;
/// Seconds a negative answer is fresh at most (RFC 2308 section 5).
const MAX_NEGATIVE_TTL: u32 = 3_600;
/// How long an answer may stand in for a fresh one (RFC 8767 section 5: one to three days).
const STALE: Duration = Duration::from_secs(86_400);
/// How long a stale answer is given at once, after no upstream answered (RFC 8767 section 5).
const HOLD: Duration = Duration::from_secs(10);
/// Seconds that a stale answer may be kept by who gets it (RFC 8767 section 4).
const STALE_TTL: u32 = 30;

/// What an answer is an answer to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    name: Name,
    record_type: RecordType,
    dnssec_ok: bool,
    checking_disabled: bool,
}

impl Key {
    pub(super) fn new(asked: &Asked) -> Self {
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
    answer: Forwarded,
    from: SocketAddr,
    since: Instant,
    ttl: u32,
    /// Until when nobody is asked, since nobody answered.
    held: Option<Instant>,
}

/// The answers kept.
#[derive(Debug, Default)]
pub(super) struct Cache {
    answers: HashMap<Key, Kept>,
}

impl Cache {
    /// A fresh answer, or a stale one while there is no use in asking.
    pub(super) fn fresh(&self, key: &Key, now: Instant) -> Option<Forwarded> {
        let kept = self.answers.get(key)?;
        let age = now.saturating_duration_since(kept.since);
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let left = |ttl: u32| ttl.min(MAX_TTL).saturating_sub(seconds);
        let from = kept.from;
        if kept.held.is_some_and(|until| now < until) {
            return self.stale(key, now);
        }
        (seconds < kept.ttl).then(|| kept.answer.clone().aged(left, Source::Cache { from, age }))
    }

    /// An answer that was fresh a day ago at the longest, for want of a better one.
    pub(super) fn stale(&self, key: &Key, now: Instant) -> Option<Forwarded> {
        let kept = self.answers.get(key)?;
        let age = now.saturating_duration_since(kept.since);
        let from = kept.from;
        (age < STALE + Duration::from_secs(kept.ttl.into())).then(|| {
            let left = |ttl: u32| ttl.min(STALE_TTL);
            kept.answer.clone().aged(left, Source::Stale { from, age })
        })
    }

    /// Nobody answered. An answer that arrived meanwhile is not touched.
    pub(super) fn hold(&mut self, key: &Key, now: Instant) {
        let fresh = |kept: &Kept| now < kept.since + Duration::from_secs(kept.ttl.into());
        if let Some(kept) = self.answers.get_mut(key).filter(|kept| !fresh(kept)) {
            kept.held = Some(now + HOLD);
        }
    }

    /// Keeps an answer, if it may be kept.
    pub(super) fn keep(&mut self, key: Key, answer: &Forwarded, from: SocketAddr, now: Instant) {
        let records = answer.answers.len() + answer.authority.len();
        let Some(ttl) = ttl(answer).filter(|ttl| *ttl > 0 && records <= MOST_RECORDS) else {
            return;
        };
        if self.answers.len() >= MOST && !self.answers.contains_key(&key) {
            self.make_room(now);
        }
        let kept = Kept {
            answer: answer.clone(),
            from,
            since: now,
            ttl,
            held: None,
        };
        self.answers.insert(key, kept);
    }

    /// Lets an eighth go: those that have been of no use for longest, or will be first.
    fn make_room(&mut self, now: Instant) {
        let end = |kept: &Kept| kept.since + Duration::from_secs(kept.ttl.into());
        let mut ends: Vec<Instant> = self.answers.values().map(end).collect();
        let (_, limit, _) = ends.select_nth_unstable(MOST / 8);
        let limit = (*limit).max(now.checked_sub(STALE).unwrap_or(*limit));
        self.answers.retain(|_, kept| end(kept) > limit);
    }
}

/// How long an answer is fresh: the least of its records, or as RFC 2308 section 5 has it.
fn ttl(answer: &Forwarded) -> Option<u32> {
    let least = |records: &[Record]| records.iter().map(|r| r.ttl).min();
    let positive = || Some(least(&answer.answers)?.min(MAX_TTL));
    let negative = || {
        let of_soa = answer
            .authority
            .iter()
            .find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            })?;
        Some(of_soa.min(MAX_NEGATIVE_TTL))
    };
    match answer.code {
        ResponseCode::NoError if !answer.answers.is_empty() => positive(),
        ResponseCode::NoError => negative(),
        ResponseCode::NXDomain => {
            let negative = negative()?;
            Some(least(&answer.answers).map_or(negative, |chain| chain.min(negative)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, SOA};

    fn asked(name: &str) -> Asked {
        Asked {
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

    const FROM: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 53);

    fn ttls(found: Option<Forwarded>) -> Option<u32> {
        found.map(|f| f.answers[0].ttl)
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
    fn an_answer_that_arrives_while_the_client_gets_the_stale_one_is_not_held() {
        let (start, mut cache) = (Instant::now(), Cache::default());
        let key = || Key::new(&asked("example.org."));
        cache.keep(key(), &answer(60), FROM, start);
        let later = start + Duration::from_secs(90);
        cache.hold(&key(), later);
        let held = cache.fresh(&key(), later).map(|f| f.source);
        assert!(matches!(held, Some(Source::Stale { .. })));
        cache.keep(key(), &answer(60), FROM, later);
        cache.hold(&key(), later);
        let fresh = cache.fresh(&key(), later).map(|f| f.source);
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
    fn the_cache_is_bounded() {
        let (now, mut cache) = (Instant::now(), Cache::default());
        for n in 0..3 * MOST as u32 {
            let key = Key::new(&asked(&format!("n{n}.example.org.")));
            cache.keep(key, &answer(60 + n), FROM, now);
            assert!(cache.answers.len() <= MOST);
        }
        assert!(cache.answers.len() > MOST / 2);
    }
}
