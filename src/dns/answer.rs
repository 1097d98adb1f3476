//! Answers a question from the zone. Pure: the caller passes the random number.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::choice::{Allocation, Found, Weighted, divide_weights, element, find};
use super::zone::{MAX_RECORDS, NEGATIVE_TTL, Share, TTL, Zone, ZoneInstance};
use crate::model::MeshAddresses;
use crate::records::kinds::Port;

mod local_names;

pub(super) use local_names::is_local;
pub use local_names::is_special;

/// How a question is answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// With this answer.
    Answer(Answer),
    /// By the upstreams. The name is neither of the mesh nor one for special use.
    Forward,
}

/// An authoritative answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// NOERROR or NXDOMAIN.
    pub code: ResponseCode,
    /// Records of the name asked for.
    pub answers: Vec<Record>,
    /// The SOA of a negative answer.
    pub authority: Vec<Record>,
    /// Addresses of SRV targets.
    pub additional: Vec<Record>,
    /// Whether unusable instances are answered, because no instance is usable.
    pub flagged: bool,
}

/// The part of the namespace that a name is in.
enum Place {
    /// The domain of the mesh, with the labels in front of it in lower case.
    Mesh(String),
    /// A reverse zone of the mesh.
    Reverse(ReverseName),
    /// Outside the mesh.
    Other,
}

/// A name in a reverse zone of the mesh.
#[derive(Clone, Copy)]
enum ReverseName {
    /// The name of an address.
    Address(IpAddr),
    /// A shorter name than that of an address. It has addresses below it.
    Prefix,
    /// Another name, such as `_dns-sd._udp.2.210.10.in-addr.arpa`. The zone has none of these.
    Other,
}

/// Answers a question of class IN.
#[must_use]
pub fn answer(zone: &Zone, name: &Name, record_type: RecordType, entropy: u64) -> Verdict {
    match place(zone, name) {
        Place::Other => match local_names::answer(name, record_type) {
            Some(answer) => Verdict::Answer(answer),
            None => Verdict::Forward,
        },
        Place::Reverse(found) => Verdict::Answer(reverse(zone, name, record_type, found)),
        Place::Mesh(relative) => Verdict::Answer(match find(zone, &relative) {
            Some(found) => Responder {
                zone,
                name,
                found,
                entropy,
            }
            .existing(record_type, &relative),
            None => negative(ResponseCode::NXDomain, soa(zone, &relative)),
        }),
    }
}

/// Returns the part of `name` in front of the mesh's domain, in lower case, if the name is in the domain.
pub(super) fn mesh_name(zone: &Zone, name: &Name) -> Option<String> {
    match place(zone, name) {
        Place::Mesh(relative) => Some(relative),
        Place::Reverse(_) | Place::Other => None,
    }
}

struct Responder<'a> {
    zone: &'a Zone,
    name: &'a Name,
    found: Found<'a>,
    entropy: u64,
}

impl Responder<'_> {
    fn existing(&self, record_type: RecordType, relative: &str) -> Answer {
        let entry = self.found.entry;
        let mut additional = Vec::new();
        let answers: Vec<RData> = match record_type {
            RecordType::A => self.addresses(IpAddr::is_ipv4),
            RecordType::AAAA => self.addresses(IpAddr::is_ipv6),
            RecordType::SRV if entry.kind.has_srv => self.services(&mut additional),
            RecordType::TXT if entry.kind.has_addresses => self.texts(),
            RecordType::SOA if entry.apex => vec![soa_data(self.zone)],
            RecordType::NS if entry.apex => absolute(self.zone, "ns")
                .map(|n| RData::NS(NS(n)))
                .into_iter()
                .collect(),
            // RFC 8482 section 4.2: one small record instead of everything.
            RecordType::ANY => vec![RData::HINFO(HINFO::new("RFC8482".into(), String::new()))],
            _ => Vec::new(),
        };
        if answers.is_empty() {
            return negative(ResponseCode::NoError, soa(self.zone, relative));
        }
        Answer {
            code: ResponseCode::NoError,
            answers: answers
                .into_iter()
                .map(|data| Record::from_rdata(self.name.clone(), TTL, data))
                .collect(),
            authority: Vec::new(),
            additional,
            flagged: entry.flagged,
        }
    }

    fn addresses(&self, of_family: fn(&IpAddr) -> bool) -> Vec<RData> {
        let mut data = Vec::new();
        self.zone
            .each_address(self.found, self.entropy, of_family, |address| {
                data.push(address_data(address));
                true
            });
        data
    }

    fn services(&self, additional: &mut Vec<Record>) -> Vec<RData> {
        let filter = self.found.entry.port.as_ref();
        let is_meant = |port: &&Port| filter.is_none_or(|filter| filter.matches(port));
        let wants = |share: Share<'_>| {
            let ports = share.instances.iter().flat_map(|i| &i.ports);
            ports.filter(is_meant).take(MAX_RECORDS).count()
        };
        let mut weighted: Vec<Weighted> = Vec::new();
        let mut found: Vec<(u16, Name)> = Vec::new();
        let mut named: Vec<(&ZoneInstance, Name)> = Vec::new();
        let places = Allocation::allocate(self.found, self.entropy, MAX_RECORDS, wants);
        places.each(|share, place, random| {
            let instances = (0..share.instances.len())
                .filter_map(|at| element(share.instances, at, random).map(AsRef::as_ref));
            let mut ports = instances
                .flat_map(|i: &ZoneInstance| i.ports.iter().filter(is_meant).map(move |p| (i, p)));
            let Some((instance, port)) = ports.nth(place) else {
                return true;
            };
            let known = named.iter().find(|(i, _)| std::ptr::eq(*i, instance));
            let target = match known {
                Some((_, target)) => target.clone(),
                None => {
                    // A name that belongs to another instance or to a service would lead clients to that one.
                    let name = self.zone.own_name(instance);
                    let Some(target) = name.and_then(|name| absolute(self.zone, &name)) else {
                        return true;
                    };
                    named.push((instance, target.clone()));
                    target
                }
            };
            weighted.push(Weighted {
                node: instance.owner.id,
                priority: instance.priority,
                weight: instance.weight,
            });
            found.push((port.number.get(), target));
            true
        });
        divide_weights(&mut weighted);
        for (instance, target) in named {
            let v4 = instance.v4.iter().map(|a| address_data((*a).into()));
            let v6 = instance.v6.iter().map(|a| address_data((*a).into()));
            additional.extend(
                v4.chain(v6)
                    .map(|data| Record::from_rdata(target.clone(), TTL, data)),
            );
        }
        let records = weighted.into_iter().zip(found);
        records
            .map(|(record, (port, target))| {
                RData::SRV(SRV::new(record.priority, record.weight, port, target))
            })
            .collect()
    }

    fn texts(&self) -> Vec<RData> {
        let mut texts = Vec::new();
        let wants = |share: Share<'_>| share.instances.len();
        let places = Allocation::allocate(self.found, self.entropy, MAX_RECORDS, wants);
        places.each(|share, place, random| {
            if let Some(instance) = element(share.instances, place, random) {
                texts.push(self.text(instance));
            }
            true
        });
        texts
    }

    fn text(&self, instance: &ZoneInstance) -> RData {
        let ports = instance
            .ports
            .iter()
            .map(|p| format!("{}/{}", p.number, p.protocol.as_str()))
            .collect::<Vec<_>>()
            .join(",");
        let name = self.zone.own_name(instance);
        let name = name.as_deref().unwrap_or(&instance.name);
        let id = name.split('.').next().unwrap_or_default();
        RData::TXT(TXT::new(vec![
            format!("instance={id}"),
            format!("node={}", instance.node),
            format!("ports={ports}"),
            format!("health={}", instance.health.as_str()),
        ]))
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

fn place(zone: &Zone, name: &Name) -> Place {
    let Some(addresses) = &zone.addresses else {
        return Place::Other;
    };
    let Some(text) = plain(name) else {
        // No name of the mesh has such labels. If the last label is the domain, the name does not exist.
        let ours = name
            .iter()
            .next_back()
            .is_some_and(|label| label.eq_ignore_ascii_case(zone.domain.as_bytes()));
        return if ours {
            Place::Mesh("\u{0}".into())
        } else {
            Place::Other
        };
    };
    if text == zone.domain {
        return Place::Mesh(String::new());
    }
    if let Some(relative) = text
        .strip_suffix(zone.domain.as_str())
        .and_then(|t| t.strip_suffix('.'))
    {
        return Place::Mesh(relative.to_owned());
    }
    let reverse = match text.strip_suffix(".in-addr.arpa") {
        Some(labels) => reverse_v4(addresses, labels),
        None => text
            .strip_suffix(".ip6.arpa")
            .and_then(|labels| reverse_v6(addresses, labels)),
    };
    reverse.map_or(Place::Other, Place::Reverse)
}

/// Parses the labels of a reverse name below `in-addr.arpa`. Returns `None` if they are outside the prefix of the mesh.
fn reverse_v4(addresses: &MeshAddresses, labels: &str) -> Option<ReverseName> {
    let byte = |label: &str| match label.as_bytes() {
        [b'0', _, ..] => None,
        _ => label.parse::<u8>().ok(),
    };
    let bytes: Vec<u8> = labels.split('.').rev().map_while(byte).take(4).collect();
    let mut whole = [0u8; 4];
    for (place, byte) in whole.iter_mut().zip(&bytes) {
        *place = *byte;
    }
    let bits = bytes.len() as u32 * 8;
    let prefix = addresses.prefix_v4;
    let inside = bits >= u32::from(prefix.prefix_len()) && prefix.contains(&Ipv4Addr::from(whole));
    inside.then(|| match labels.split('.').count() {
        count if count > bytes.len() => ReverseName::Other,
        4 => ReverseName::Address(Ipv4Addr::from(whole).into()),
        _ => ReverseName::Prefix,
    })
}

/// Does the same for the labels below `ip6.arpa`.
fn reverse_v6(addresses: &MeshAddresses, labels: &str) -> Option<ReverseName> {
    let nibble = |label: &str| match label.len() {
        1 => u8::from_str_radix(label, 16).ok(),
        _ => None,
    };
    let reversed = labels.split('.').rev();
    let nibbles: Vec<u8> = reversed.map_while(nibble).take(32).collect();
    let bits = nibbles.len() as u32 * 4;
    let whole = nibbles
        .iter()
        .fold(0u128, |sum, n| sum << 4 | u128::from(*n))
        .checked_shl(128 - bits)
        .unwrap_or(0);
    let prefix = addresses.prefix_v6;
    let inside = bits >= u32::from(prefix.prefix_len()) && prefix.contains(&Ipv6Addr::from(whole));
    inside.then(|| match labels.split('.').count() {
        count if count > nibbles.len() => ReverseName::Other,
        32 => ReverseName::Address(Ipv6Addr::from(whole).into()),
        _ => ReverseName::Prefix,
    })
}

/// Returns the name as text in lower case and without the last dot, if its labels have letters, digits, hyphens and underscores
/// only.
fn plain(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(64);
    for label in name.iter() {
        if !label
            .iter()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
        {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|c| char::from(c.to_ascii_lowercase())));
    }
    Some(text)
}

fn reverse(zone: &Zone, name: &Name, record_type: RecordType, found: ReverseName) -> Answer {
    let target = match found {
        ReverseName::Address(address) => zone
            .find_address(&address)
            .and_then(|relative| absolute(zone, &relative)),
        ReverseName::Prefix | ReverseName::Other => None,
    };
    let apex = reverse_apex(zone, name);
    let is_apex = apex
        .as_ref()
        .is_some_and(|apex| apex.num_labels() == name.num_labels());
    let exists = target.is_some() || matches!(found, ReverseName::Prefix);
    let data = match record_type {
        RecordType::PTR => target.map(|target| RData::PTR(PTR(target))),
        RecordType::SOA if is_apex => Some(soa_data(zone)),
        RecordType::NS if is_apex => absolute(zone, "ns").map(|n| RData::NS(NS(n))),
        _ => None,
    };
    if let Some(data) = data {
        return Answer {
            code: ResponseCode::NoError,
            answers: vec![Record::from_rdata(name.clone(), TTL, data)],
            authority: Vec::new(),
            additional: Vec::new(),
            flagged: false,
        };
    }
    let code = if exists {
        ResponseCode::NoError
    } else {
        ResponseCode::NXDomain
    };
    let soa = apex.map(|apex| Record::from_rdata(apex, NEGATIVE_TTL, soa_data(zone)));
    negative(code, soa)
}

fn negative(code: ResponseCode, soa: Option<Record>) -> Answer {
    Answer {
        code,
        answers: Vec::new(),
        authority: soa.into_iter().collect(),
        additional: Vec::new(),
        flagged: false,
    }
}

/// The SOA of the zone that `relative` is in.
fn soa(zone: &Zone, relative: &str) -> Option<Record> {
    let apex = relative
        .rsplit('.')
        .next()
        .filter(|label| matches!(*label, "svc" | "node"))
        .unwrap_or_default();
    Some(Record::from_rdata(
        absolute(zone, apex)?,
        NEGATIVE_TTL,
        soa_data(zone),
    ))
}

/// Returns the apex of the reverse zone that `name` is in: the name of the prefix, or that of the next shorter prefix that ends
/// at a label.
fn reverse_apex(zone: &Zone, name: &Name) -> Option<Name> {
    let addresses = zone.addresses.as_ref()?;
    let v6 = name
        .iter()
        .rev()
        .nth(1)
        .is_some_and(|label| label.eq_ignore_ascii_case(b"ip6"));
    let labels = if v6 {
        addresses.prefix_v6.prefix_len() / 4
    } else {
        addresses.prefix_v4.prefix_len() / 8
    };
    Some(name.trim_to(usize::from(labels) + 2))
}

fn soa_data(zone: &Zone) -> RData {
    let name = |relative| absolute(zone, relative).unwrap_or_else(Name::root);
    RData::SOA(SOA::new(
        name("ns"),
        name("hostmaster"),
        zone.serial,
        5,
        5,
        86_400,
        NEGATIVE_TTL,
    ))
}

/// Returns the absolute name. The labels of a zone are valid, but many of them together may be too long for a name.
fn absolute(zone: &Zone, relative: &str) -> Option<Name> {
    let text = if relative.is_empty() {
        format!("{}.", zone.domain)
    } else {
        format!("{relative}.{}.", zone.domain)
    };
    Name::from_ascii(text).ok()
}

#[cfg(test)]
pub(super) mod tests;
