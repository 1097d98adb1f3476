//! Removes the records of a forwarded answer that point into the mesh. Pure.
//!
//! The owner of a public name decides what it points to. If it could point to a service of the mesh, a page of that name in a
//! browser on a node could read the service as its own origin (DNS rebinding), and every check of the origin would pass. So these
//! records are removed from a forwarded answer:
//!
//! - addresses of the mesh (A, AAAA), and HTTPS and SVCB records with such an address as a hint;
//! - aliases to names of the mesh (CNAME, and the DNAME it comes from; HTTPS and SVCB records with such a target), and all
//!   records of the names they lead to.
//!
//! For the same reason, the resolver does not follow an alias to a name of the mesh in the zone. It removes the alias, because
//! some clients (systemd-resolved, browsers) follow an alias by themselves. The answer that is left has the code NOERROR and no
//! addresses. Clients do not cache it, since it has no SOA (RFC 2308 section 5). The NXDOMAIN of an upstream is about the target
//! and would be wrong for the name that was asked for.
//!
//! SRV, MX, NS and PTR records stay, because no browser follows them.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::SVCB;
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::super::zone::Zone;
use super::answer::Forwarded;

/// The numbers of records that pointed into the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stripped {
    /// Records with addresses of the mesh.
    pub addresses: usize,
    /// Aliases to names of the mesh.
    pub aliases: usize,
}

impl Stripped {
    /// Returns whether there was such a record.
    #[must_use]
    pub fn is_any(self) -> bool {
        self != Self::default()
    }
}

impl Forwarded {
    /// Removes the records that point into the mesh of `zone`.
    pub fn strip(&mut self, zone: &Zone) -> Stripped {
        let mut stripped = Stripped::default();
        if zone.addresses.is_none() {
            return stripped;
        }
        self.answers.retain(|record| match pointer(zone, record) {
            None => true,
            Some(Pointer::Address) => {
                stripped.addresses += 1;
                false
            }
            Some(Pointer::Alias) => {
                stripped.aliases += 1;
                false
            }
        });
        if stripped.aliases > 0 {
            self.answers
                .retain(|r| r.record_type() != RecordType::DNAME && !is_of_mesh(zone, &r.name));
            // These are of the target.
            self.code = ResponseCode::NoError;
            self.authority.clear();
        }
        if stripped.is_any() {
            // Signatures are over all records of a name and type (RFC 4035 section 3.2.3).
            self.authentic = false;
        }
        stripped
    }
}

enum Pointer {
    Address,
    Alias,
}

/// How `record` points into the mesh, if it does.
fn pointer(zone: &Zone, record: &Record) -> Option<Pointer> {
    let has = |address: IpAddr| {
        let mesh = zone.addresses.as_ref();
        mesh.is_some_and(|mesh| mesh.contains(address.to_canonical()))
    };
    let address = |address: IpAddr| has(address).then_some(Pointer::Address);
    let alias = |target: &Name| is_of_mesh(zone, target).then_some(Pointer::Alias);
    let binding = |binding: &SVCB| {
        let hints = binding.svc_params.iter().any(|(_, value)| match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().any(|a| has(a.0.into())),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().any(|a| has(a.0.into())),
            _ => false,
        });
        alias(&binding.target_name).or(hints.then_some(Pointer::Address))
    };
    match &record.data {
        RData::A(a) => address(a.0.into()),
        RData::AAAA(aaaa) => address(aaaa.0.into()),
        RData::CNAME(target) => alias(&target.0),
        RData::HTTPS(https) => binding(https),
        RData::SVCB(svcb) => binding(svcb),
        _ => None,
    }
}

/// Whether `name` is the mesh's domain or below it.
fn is_of_mesh(zone: &Zone, name: &Name) -> bool {
    let top = name.iter().next_back();
    top.is_some_and(|label| label.eq_ignore_ascii_case(zone.domain.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::answer::tests::{HEALTHY, netmap, zone_of};
    use crate::dns::zone::WhenNoneUsable;
    use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey};
    use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, SOA, SRV};

    const PUBLIC: A = A(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OF_MESH: A = A(std::net::Ipv4Addr::new(10, 210, 2, 1));

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a literal")
    }

    fn record(owner: &str, data: RData) -> Record {
        Record::from_rdata(name(owner), 60, data)
    }

    fn strip(answer: &mut Forwarded) -> Stripped {
        answer.strip(&zone_of(&netmap(HEALTHY), &[], WhenNoneUsable::All))
    }

    /// What is left of an answer with these records, as text.
    fn left(data: Vec<RData>) -> (Stripped, Vec<String>) {
        let answers = data
            .into_iter()
            .map(|data| record("www.example.org.", data));
        let mut answer = Forwarded {
            answers: answers.collect(),
            ..Forwarded::default()
        };
        let stripped = strip(&mut answer);
        let left = answer.answers.iter().map(|r| r.data.to_string());
        (stripped, left.collect())
    }

    #[test]
    fn an_alias_to_a_name_of_the_mesh_leaves_an_empty_answer_that_is_not_cached() {
        let soa = RData::SOA(SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 1));
        let mut answer = Forwarded {
            code: ResponseCode::NXDomain,
            authentic: true,
            answers: vec![
                record(
                    "www.example.org.",
                    RData::CNAME(CNAME(name("cdn.example.net."))),
                ),
                record(
                    "cdn.example.net.",
                    RData::CNAME(CNAME(name("web.svc.MESH."))),
                ),
                record("web.svc.mesh.", RData::A(PUBLIC)),
            ],
            authority: vec![record(".", soa)],
            ..Forwarded::default()
        };
        assert_eq!(
            strip(&mut answer),
            Stripped {
                addresses: 0,
                aliases: 1
            }
        );
        assert_eq!(answer.code, ResponseCode::NoError);
        assert!(answer.authority.is_empty() && !answer.authentic);
        let left: Vec<String> = answer.answers.iter().map(|r| r.data.to_string()).collect();
        assert_eq!(left, ["cdn.example.net."]);
    }

    #[test]
    fn an_answer_from_which_addresses_are_removed_is_not_authentic() {
        for (address, authentic) in [(PUBLIC, true), (OF_MESH, false)] {
            let mut answer = Forwarded {
                authentic: true,
                answers: vec![record("www.example.org.", RData::A(address))],
                ..Forwarded::default()
            };
            strip(&mut answer);
            assert_eq!(answer.authentic, authentic);
        }
    }

    #[test]
    fn addresses_of_the_mesh_are_left_out_in_whatever_form() {
        let mapped = OF_MESH.0.to_ipv6_mapped();
        let own = "fd00:1:2:3::1".parse().expect("a literal");
        let data = vec![
            RData::A(PUBLIC),
            RData::A(OF_MESH),
            RData::AAAA(AAAA(mapped)),
            RData::AAAA(AAAA(own)),
        ];
        let (stripped, left) = left(data);
        assert_eq!(stripped.addresses, 3);
        assert_eq!(left, ["192.0.2.1"]);
    }

    #[test]
    fn service_bindings_that_browsers_follow_may_not_point_into_the_mesh_either() {
        let https = |target: &str, hint: A| {
            let hint = SvcParamValue::Ipv4Hint(IpHint(vec![PUBLIC, hint]));
            let params = vec![(SvcParamKey::Ipv4Hint, hint)];
            RData::HTTPS(HTTPS(SVCB::new(1, name(target), params)))
        };
        let (stripped, kept) = left(vec![https("www.example.org.", PUBLIC)]);
        assert_eq!((stripped.is_any(), kept.len()), (false, 1));
        let (stripped, kept) = left(vec![https("www.example.org.", OF_MESH)]);
        assert_eq!((stripped.addresses, kept.len()), (1, 0));
        let (stripped, kept) = left(vec![https("web.svc.mesh.", PUBLIC)]);
        assert_eq!((stripped.aliases, kept.len()), (1, 0));
    }

    #[test]
    fn records_that_no_browser_follows_are_kept() {
        let srv = RData::SRV(SRV::new(0, 0, 80, name("web.svc.mesh.")));
        let (stripped, left) = left(vec![srv, RData::CNAME(CNAME(name("mesh.example.org.")))]);
        assert_eq!((stripped.is_any(), left.len()), (false, 2));
    }
}
