//! The answers to names for special use, which are never forwarded. Pure.
//!
//! | name | answer | why |
//! |---|---|---|
//! | `localhost` and below | 127.0.0.1, ::1 | RFC 6761 section 6.3 |
//! | `127.in-addr.arpa`, the reverse name of ::1 | PTR `localhost` for the two addresses, else none | RFC 6761 section 6.3, RFC 6303 |
//! | `invalid` and below | none | RFC 6761 section 6.4 |
//! | `onion` and below | none | RFC 7686 section 2: a lookup shows others who uses Tor |
//! | `resolver.arpa` and below | none | RFC 9462 section 8: the answer of an upstream would lead clients past this resolver, and past the names of the mesh |
//!
//! Other names for special use are forwarded, since the upstreams are the resolvers of this host's own network, which may have them:
//! `local` (RFC 6762 gives it to multicast DNS, and many companies have it as a domain), `test` (RFC 6761 section 6.2 leaves it
//! to the tester), `home.arpa` (RFC 8375 gives it to the router), `internal`, and the reverse names of private addresses (RFC
//! 6303). An upstream without such a name answers from its own empty zones (RFC 6303) and forwards nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, HINFO, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::Answer;

/// The top labels of the names that are answered.
const TOPS: [&str; 3] = ["localhost", "invalid", "onion"];
/// The TTL of an answer in seconds, also of a negative one (RFC 6303 section 3).
const TTL: u32 = 10_800;

/// Whether `name` is answered and is no reverse name. It is in lower case and has no dot at its end.
pub(in crate::dns) fn is_local(name: &str) -> bool {
    let top = name.rsplit('.').next().unwrap_or_default();
    TOPS.contains(&top)
}

/// Whether `name` is one that is answered.
#[must_use]
pub fn is_special(name: &Name) -> bool {
    look_up(name).is_some()
}

/// The records of a name for special use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Has {
    /// The loopback addresses.
    Addresses,
    /// A pointer to `localhost`.
    Pointer,
    /// Nothing, but there are names below it.
    Nothing,
    /// It does not exist.
    NoName,
}

/// Answers a question for a name for special use. Returns `None` for other names.
pub(super) fn answer(name: &Name, record_type: RecordType) -> Option<Answer> {
    let (has, apex) = look_up(name)?;
    let data = match (has, record_type) {
        (Has::NoName, _) => None,
        (_, RecordType::SOA) if *name == apex => Some(soa_data(&apex)),
        (Has::Nothing, _) => None,
        (Has::Addresses, RecordType::A) => Some(RData::A(A(Ipv4Addr::LOCALHOST))),
        (Has::Addresses, RecordType::AAAA) => Some(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
        (Has::Pointer, RecordType::PTR) => Some(RData::PTR(PTR(localhost()?))),
        // RFC 8482 section 4.2.
        (_, RecordType::ANY) => Some(RData::HINFO(HINFO::new("RFC8482".into(), String::new()))),
        _ => None,
    };
    let records = data.map(|data| Record::from_rdata(name.clone(), TTL, data));
    let code = match has {
        Has::NoName => ResponseCode::NXDomain,
        Has::Addresses | Has::Pointer | Has::Nothing => ResponseCode::NoError,
    };
    let authority = match &records {
        Some(_) => Vec::new(),
        None => vec![Record::from_rdata(apex.clone(), TTL, soa_data(&apex))],
    };
    Some(Answer {
        code,
        answers: records.into_iter().collect(),
        authority,
        additional: Vec::new(),
        flagged: false,
    })
}

/// Returns the records of `name`, and the name of its zone.
fn look_up(name: &Name) -> Option<(Has, Name)> {
    let lower = name.to_lowercase();
    let mut labels = lower.iter().rev();
    let apex = |labels: usize| name.trim_to(labels);
    let at_or_below = |labels: usize| {
        if usize::from(name.num_labels()) == labels {
            Has::Nothing
        } else {
            Has::NoName
        }
    };
    match labels.next()? {
        b"localhost" => Some((Has::Addresses, apex(1))),
        b"invalid" | b"onion" => Some((at_or_below(1), apex(1))),
        b"arpa" => match labels.next()? {
            b"resolver" => Some((at_or_below(2), apex(2))),
            b"in-addr" if labels.next()? == b"127" => {
                let rest: Vec<&[u8]> = labels.collect();
                let has = match rest.as_slice() {
                    [b"0", b"0", b"1"] => Has::Pointer,
                    [] | [b"0"] | [b"0", b"0"] => Has::Nothing,
                    _ => Has::NoName,
                };
                Some((has, apex(3)))
            }
            b"ip6" => {
                let loopback = Name::from(IpAddr::V6(Ipv6Addr::LOCALHOST));
                (lower == loopback).then(|| (Has::Pointer, name.clone()))
            }
            _ => None,
        },
        _ => None,
    }
}

fn localhost() -> Option<Name> {
    Name::from_ascii("localhost.").ok()
}

/// Returns the SOA of RFC 6303 section 3.
fn soa_data(apex: &Name) -> RData {
    let nobody = Name::from_ascii("nobody.invalid.").unwrap_or_else(|_| Name::root());
    RData::SOA(SOA::new(
        apex.clone(),
        nobody,
        1,
        3_600,
        1_200,
        604_800,
        TTL,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a literal")
    }

    /// Returns the data of the answer or its code, or `forwarded`.
    fn of(text: &str, record_type: RecordType) -> String {
        match answer(&name(text), record_type) {
            None => "forwarded".into(),
            Some(answer) => {
                let negative = answer.answers.is_empty();
                assert_eq!(answer.authority.len(), usize::from(negative), "{text}");
                match answer.answers.first() {
                    Some(record) => record.data.to_string(),
                    None => answer.code.to_string(),
                }
            }
        }
    }

    #[test]
    fn names_for_special_use_are_answered() {
        let none = ResponseCode::NoError.to_string();
        let no_name = ResponseCode::NXDomain.to_string();
        let loopback = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa.";
        for (text, record_type, wanted) in [
            ("localhost.", RecordType::A, "127.0.0.1"),
            ("LocalHost.", RecordType::AAAA, "::1"),
            ("db.localhost.", RecordType::A, "127.0.0.1"),
            ("localhost.", RecordType::MX, none.as_str()),
            ("1.0.0.127.in-addr.arpa.", RecordType::PTR, "localhost."),
            ("1.0.0.127.IN-ADDR.arpa.", RecordType::A, &none),
            ("127.in-addr.arpa.", RecordType::PTR, &none),
            ("2.0.0.127.in-addr.arpa.", RecordType::PTR, &no_name),
            (loopback, RecordType::PTR, "localhost."),
            ("invalid.", RecordType::A, &none),
            ("x.y.invalid.", RecordType::A, &no_name),
            ("example.onion.", RecordType::A, &no_name),
            ("_dns.resolver.arpa.", RecordType::SVCB, &no_name),
        ] {
            assert_eq!(of(text, record_type), wanted, "{text} {record_type}");
        }
        let soa = of("localhost.", RecordType::SOA);
        assert!(soa.contains("nobody.invalid."), "{soa}");
    }

    #[test]
    fn names_that_the_hosts_own_network_may_have_are_forwarded() {
        for text in [
            "localhost.example.org.",
            "notlocalhost.",
            "printer.local.",
            "shop.test.",
            "nas.home.arpa.",
            "db.internal.",
            "1.0.0.10.in-addr.arpa.",
            "1.0.168.192.in-addr.arpa.",
            "8.8.8.8.in-addr.arpa.",
            "ip6.arpa.",
            "arpa.",
            ".",
        ] {
            assert_eq!(of(text, RecordType::PTR), "forwarded", "{text}");
        }
    }

    #[test]
    fn the_fast_path_knows_the_same_names() {
        for text in ["localhost", "a.b.localhost", "invalid", "x.onion"] {
            assert!(is_local(text), "{text}");
            assert!(answer(&name(&format!("{text}.")), RecordType::A).is_some());
        }
        for text in ["", "localhost.example.org", "mylocalhost", "test"] {
            assert!(!is_local(text), "{text}");
        }
    }
}
