//! Which connections the kernel must forget when a mapping changes, and the messages for it. Pure.
//!
//! A connection that was translated goes on to where it went, whatever the rules say by then. So when an instance
//! address moves to another container, or is taken away, its connections end; and a flow of UDP, which never ends by
//! itself, leaves an instance that its service address no longer leads to.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Wiring;
use super::netfilter::{FAMILY_HEADER, attribute, attributes, message, push_attribute};
use super::ruleset::Sound;

/// `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE` of the connection tracking subsystem.
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
/// `NLM_F_REQUEST | NLM_F_DUMP`, and `NLM_F_REQUEST | NLM_F_ACK`.
const DUMP: u16 = 0x301;
const ACKNOWLEDGED: u16 = 0x5;
/// Attributes: `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ID`, `CTA_ZONE`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`, and what is in them.
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;
const NUMBER: u16 = 1;
/// IP protocol number of UDP.
const UDP: u8 = 17;

/// Connections that must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gone {
    prefix: Ipv4Net,
    instances: BTreeSet<Ipv4Addr>,
    containers: BTreeSet<Ipv4Addr>,
    /// Service address and where it led.
    balanced: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
}

impl Gone {
    /// What the change from `old` to `new` ends, if anything.
    pub(super) fn between(old: (&Wiring, &Sound), new: (&Wiring, &Sound)) -> Option<Self> {
        let mut gone = Self {
            prefix: old.0.prefix,
            instances: BTreeSet::new(),
            containers: BTreeSet::new(),
            balanced: BTreeSet::new(),
        };
        for (instance, container) in old.1.containers() {
            let process = |wiring: &Wiring| wiring.mappings.get(instance).and_then(|m| m.pid);
            let stays = new.1.containers().get(instance) == Some(container)
                && match (process(old.0), process(new.0)) {
                    (Some(before), Some(after)) => before == after,
                    _ => true,
                };
            if !stays {
                gone.instances.insert(*instance);
                gone.containers.insert(*container);
            }
        }
        for (service, targets) in old.1.services() {
            let now = new.1.services().get(service);
            let left = |target: &&Ipv4Addr| now.is_none_or(|now| !now.contains(target));
            gone.balanced.extend(
                targets
                    .iter()
                    .filter(left)
                    .map(|target| (*service, *target)),
            );
        }
        (!gone.instances.is_empty() || !gone.balanced.is_empty()).then_some(gone)
    }

    /// The message that ends the connection that `body` (of a message of the dump) tells about, if it must end.
    pub(super) fn deletion(&self, body: &[u8], sequence: u32) -> Option<Vec<u8>> {
        let told = body.get(FAMILY_HEADER..)?;
        let original = attribute(told, ORIGINAL)?;
        let reply = attribute(told, REPLY)?;
        let (to, back_from, back_to) = (
            address(original, DESTINATION)?,
            address(reply, SOURCE)?,
            address(reply, DESTINATION)?,
        );
        let ends = self.instances.contains(&to)
            || self.instances.contains(&back_to)
            || (self.prefix.contains(&to) && self.containers.contains(&back_from))
            || (protocol(original) == Some(UDP) && self.balanced.contains(&(to, back_from)));
        ends.then(|| {
            let mut which = Vec::new();
            push_attribute(&mut which, ORIGINAL | NESTED, original);
            for (kind, value) in attributes(told) {
                if kind == ID || kind == ZONE {
                    push_attribute(&mut which, kind, value);
                }
            }
            message(DELETE, ACKNOWLEDGED, sequence, &which)
        })
    }
}

/// Asks for all connections over IPv4.
pub(super) fn dump() -> Vec<u8> {
    message(GET, DUMP, 1, &[])
}

fn address(tuple: &[u8], which: u16) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = attribute(attribute(tuple, ADDRESSES)?, which)?
        .try_into()
        .ok()?;
    Some(octets.into())
}

fn protocol(tuple: &[u8]) -> Option<u8> {
    attribute(attribute(tuple, PROTOCOL)?, NUMBER)?
        .first()
        .copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::firewall::Mapped;
    use crate::firewall::netfilter::messages;

    fn wiring(mappings: &[(&str, &str, u32)], services: &[(&str, &[&str])]) -> Wiring {
        let ip = |text: &str| text.parse::<Ipv4Addr>().expect("a literal");
        Wiring {
            interface: "mesh0".into(),
            prefix: "10.210.0.0/16".parse().expect("a literal"),
            block: "10.210.1.0/24".parse().expect("a literal"),
            node: ip("10.210.1.1"),
            bridges: BTreeMap::new(),
            mappings: mappings
                .iter()
                .map(|(instance, container, pid)| {
                    let mapped = Mapped {
                        container: ip(container),
                        pid: Some(*pid),
                        name: "db".into(),
                    };
                    (ip(instance), mapped)
                })
                .collect(),
            service_addresses: services
                .iter()
                .map(|(service, to)| (ip(service), to.iter().map(|t| ip(t)).collect()))
                .collect(),
            native: None,
        }
    }

    fn between(old: &Wiring, new: &Wiring) -> Option<Gone> {
        Gone::between((old, &Sound::of(old)), (new, &Sound::of(new)))
    }

    /// What the kernel tells about a connection: source and destination of both directions.
    fn told(protocol: u8, addresses: [&str; 4]) -> Vec<u8> {
        let tuple = |source: &str, destination: &str| {
            let octets = |text: &str| text.parse::<Ipv4Addr>().expect("a literal").octets();
            let (mut ips, mut proto, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
            push_attribute(&mut ips, SOURCE, &octets(source));
            push_attribute(&mut ips, DESTINATION, &octets(destination));
            push_attribute(&mut proto, NUMBER, &[protocol]);
            push_attribute(&mut tuple, ADDRESSES | NESTED, &ips);
            push_attribute(&mut tuple, PROTOCOL | NESTED, &proto);
            tuple
        };
        let [source, destination, back_from, back_to] = addresses;
        let mut body = vec![2, 0, 0, 0];
        push_attribute(&mut body, ORIGINAL | NESTED, &tuple(source, destination));
        push_attribute(&mut body, REPLY | NESTED, &tuple(back_from, back_to));
        push_attribute(&mut body, ID, &[1, 2, 3, 4]);
        body
    }

    #[test]
    fn an_address_that_moves_or_goes_takes_its_connections_along_and_no_others() {
        let old = wiring(
            &[
                ("10.210.1.2", "172.17.0.2", 5),
                ("10.210.1.3", "172.17.0.3", 6),
            ],
            &[],
        );
        assert_eq!(between(&old, &old), None);
        let moved = wiring(
            &[
                ("10.210.1.2", "172.17.0.9", 7),
                ("10.210.1.3", "172.17.0.3", 6),
            ],
            &[],
        );
        let gone = between(&old, &moved).expect("one moved");
        let ends = |addresses| gone.deletion(&told(6, addresses), 1).is_some();
        assert!(
            ends(["10.210.2.1", "10.210.1.2", "172.17.0.2", "10.210.2.1"]),
            "to it"
        );
        assert!(
            ends(["172.17.0.2", "10.210.2.1", "10.210.2.1", "10.210.1.2"]),
            "from it"
        );
        assert!(
            ends(["10.210.2.1", "10.210.0.64", "172.17.0.2", "10.210.2.1"]),
            "to its service"
        );
        assert!(
            !ends(["10.210.2.1", "10.210.1.3", "172.17.0.3", "10.210.2.1"]),
            "to another"
        );
        assert!(
            !ends(["172.17.0.2", "192.0.2.1", "192.0.2.1", "198.51.100.1"]),
            "to the world"
        );
    }

    #[test]
    fn another_process_at_the_same_address_is_another_container() {
        let old = wiring(&[("10.210.1.2", "172.17.0.2", 5)], &[]);
        let new = wiring(&[("10.210.1.2", "172.17.0.2", 9)], &[]);
        assert!(between(&old, &new).is_some());
    }

    #[test]
    fn only_udp_leaves_an_instance_that_its_service_address_no_longer_leads_to() {
        let old = wiring(&[], &[("10.210.0.64", &["10.210.2.2", "10.210.3.2"])]);
        let new = wiring(&[], &[("10.210.0.64", &["10.210.3.2"])]);
        let gone = between(&old, &new).expect("one left");
        let flow = ["10.210.1.1", "10.210.0.64", "10.210.2.2", "10.210.1.1"];
        let other = ["10.210.1.1", "10.210.0.64", "10.210.3.2", "10.210.1.1"];
        assert!(gone.deletion(&told(17, flow), 1).is_some());
        assert!(gone.deletion(&told(6, flow), 1).is_none());
        assert!(gone.deletion(&told(17, other), 1).is_none());
        assert_eq!(between(&new, &old), None);
    }

    #[test]
    fn a_deletion_names_the_connection_as_it_was_told() {
        let old = wiring(&[("10.210.1.2", "172.17.0.2", 5)], &[]);
        let gone = between(&old, &wiring(&[], &[])).expect("it went");
        let body = told(6, ["10.210.2.1", "10.210.1.2", "172.17.0.2", "10.210.2.1"]);
        let message = gone.deletion(&body, 7).expect("it ends");
        let (kind, flags, sent) = messages(&message).next().expect("whole");
        assert_eq!((kind, flags), (DELETE, ACKNOWLEDGED));
        let sent = sent.get(FAMILY_HEADER..).expect("whole");
        assert_eq!(
            attribute(sent, ORIGINAL),
            attribute(body.get(4..).expect("whole"), ORIGINAL)
        );
        assert_eq!(attribute(sent, ID), Some(&[1, 2, 3, 4][..]));
        assert_eq!(gone.deletion(&[2, 0, 0, 0, 9], 1), None);
    }
}
