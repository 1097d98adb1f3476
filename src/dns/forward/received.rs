//! The records of an upstream's answer, in the form in which they are cached and passed on. Pure.
//!
//! This module corrects two things. The aliases of the name come first, each before the records of its target (RFC 1034 section
//! 4.3.2), because stub resolvers read an answer once from its beginning: glibc ignores an address that stands before its
//! CNAME. And a TTL is at most a day, and zero if RFC 2181 section 8 rules it out.

use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::answer::Forwarded;

/// The maximum TTL in seconds. RFC 8767 section 4 advises a bound of some days, but the addresses of a name change sooner than
/// its administrators lower its TTL.
pub(super) const MAX_TTL: u32 = 86_400;
/// The largest valid TTL. One with the most significant bit set counts as zero (RFC 2181 section 8).
const LARGEST_TTL: u32 = i32::MAX.unsigned_abs();
/// The maximum number of aliases that are followed. Resolvers give up after fewer.
const MAX_ALIASES: usize = 32;

/// Corrects the order and the TTLs of an answer to a question for `asked`.
pub(super) fn tidied(asked: &Name, mut answer: Forwarded) -> Forwarded {
    for record in answer.answers.iter_mut().chain(&mut answer.authority) {
        record.ttl = bounded(record.ttl);
    }
    answer.answers = in_order(asked, answer.answers);
    answer
}

fn bounded(ttl: u32) -> u32 {
    if ttl > LARGEST_TTL {
        0
    } else {
        ttl.min(MAX_TTL)
    }
}

/// Returns the records of `asked` first, then the records of the name that it is an alias of, and so on. The other records follow
/// in the order in which they came.
fn in_order(asked: &Name, mut records: Vec<Record>) -> Vec<Record> {
    if !records.iter().any(|r| matches!(r.data, RData::CNAME(_))) {
        return records;
    }
    let mut ordered = Vec::with_capacity(records.len());
    let mut name = asked.clone();
    for _ in 0..MAX_ALIASES {
        // The CNAME of a name may come from a DNAME above it (RFC 6672 section 3.1).
        let renames = |r: &Record| r.record_type() == RecordType::DNAME && r.name.zone_of(&name);
        let (mut here, rest): (Vec<Record>, Vec<Record>) = records
            .into_iter()
            .partition(|record| record.name == name || renames(record));
        records = rest;
        here.sort_by_key(|record| record.record_type() != RecordType::DNAME);
        let target = here.iter().find_map(|record| match &record.data {
            RData::CNAME(target) => Some(target.0.clone()),
            _ => None,
        });
        ordered.append(&mut here);
        match target {
            Some(target) => name = target,
            None => break,
        }
    }
    ordered.append(&mut records);
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::CNAME;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a literal")
    }

    fn alias(of: &str, to: &str) -> Record {
        Record::from_rdata(name(of), 60, RData::CNAME(CNAME(name(to))))
    }

    fn address(of: &str, last: u8) -> Record {
        let data = RData::A(std::net::Ipv4Addr::new(192, 0, 2, last).into());
        Record::from_rdata(name(of), 60, data)
    }

    /// A chain of three names with two addresses at its end, and a record of another name.
    fn chain() -> Vec<Record> {
        vec![
            alias("www.example.org.", "cdn.example.net."),
            alias("CDN.example.net.", "edge.example.com."),
            address("edge.example.com.", 1),
            address("edge.example.com.", 2),
            address("other.example.org.", 3),
        ]
    }

    fn ordered(records: Vec<Record>) -> Vec<Record> {
        let answers = records;
        let answer = Forwarded {
            answers,
            ..Forwarded::default()
        };
        tidied(&name("WWW.example.org."), answer).answers
    }

    proptest! {
        #[test]
        fn aliases_precede_their_targets_in_whatever_order_they_arrived(
            records in Just(chain()).prop_shuffle(),
        ) {
            let shown: Vec<String> = ordered(records)
                .iter()
                .map(|r| format!("{} {}", r.name.to_lowercase(), r.record_type()))
                .collect();
            prop_assert_eq!(shown, [
                "www.example.org. CNAME",
                "cdn.example.net. CNAME",
                "edge.example.com. A",
                "edge.example.com. A",
                "other.example.org. A",
            ]);
        }
    }

    #[test]
    fn aliases_in_a_circle_or_without_a_target_lose_no_records() {
        let round = vec![
            address("a.example.org.", 1),
            alias("b.example.org.", "www.example.org."),
            alias("www.example.org.", "b.example.org."),
        ];
        assert_eq!(ordered(round).len(), 3);
        let long: Vec<Record> = (0..2_000)
            .rev()
            .map(|n| alias(&format!("n{n}.org."), &format!("n{}.org.", n + 1)))
            .collect();
        assert_eq!(ordered(long).len(), 2_000);
    }

    #[test]
    fn a_ttl_past_its_bound_is_cut_and_an_impossible_one_is_zero() {
        for (ttl, kept) in [
            (0, 0),
            (60, 60),
            (MAX_TTL + 1, MAX_TTL),
            (0x7fff_ffff, MAX_TTL),
            (0x8000_0000, 0),
            (u32::MAX, 0),
        ] {
            let mut record = address("www.example.org.", 1);
            record.ttl = ttl;
            let authority = vec![record.clone()];
            let answers = vec![record];
            let answer = Forwarded {
                answers,
                authority,
                ..Forwarded::default()
            };
            let tidied = tidied(&name("www.example.org."), answer);
            let ttls = [&tidied.answers, &tidied.authority].map(|records| records[0].ttl);
            assert_eq!(ttls, [kept; 2], "{ttl}");
        }
    }
}
