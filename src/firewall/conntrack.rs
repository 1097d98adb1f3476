//! Computes which tracked connections the kernel must delete when a mapping changes, and the netlink messages that
//! delete them. Pure.
//!
//! Connection tracking keeps the translation of an established connection, whatever the rules say afterwards. So the
//! connections of an instance address are deleted when the address is assigned to another container or removed. UDP
//! flows do not end by themselves, so a UDP flow is deleted when its service address no longer leads to its instance.
//! Connections between containers of this host that a new policy denies are deleted too. The rules stop their packets already, but
//! the rules may be removed for a moment by another program.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::FirewallState;
use super::netfilter::{ALL_FAMILIES, FAMILY_HEADER, IPV4, message_of};
use super::ruleset::{LocalRules, ValidState};
use crate::model::Protocol;
use crate::os::netlink::{attribute, attributes, push_attribute};
use crate::policy::Asked;

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
/// `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`, and the attributes inside them.
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;
const SOURCE_V6: u16 = 3;
const DESTINATION_V6: u16 = 4;
const NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;
/// IP protocol numbers.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;

/// The maximum number of addresses and of pairs of addresses that are kept of earlier changes. The connections of further ones continue
/// until they time out.
const MAX_EARLIER: usize = 16_384;

/// The connections that must be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StaleConnections {
    /// The prefixes of the mesh.
    prefixes: Vec<IpNet>,
    instances: BTreeSet<IpAddr>,
    containers: BTreeSet<IpAddr>,
    /// Pairs of a service address and an instance to which that address no longer leads.
    balanced: BTreeSet<(IpAddr, IpAddr)>,
    /// The policy of this host for each family for which it changed.
    local: Vec<LocalRules>,
}

impl StaleConnections {
    /// The connections that the change from `old` to `new` makes stale. None if there are none.
    pub(super) fn between(
        old: (&FirewallState, &ValidState),
        new: (&FirewallState, &ValidState),
    ) -> Option<Self> {
        let prefix_v6 = old.0.v6.as_ref().map(|v6| IpNet::V6(v6.prefix));
        let local = new.1.local().filter(|it| old.1.local() != Some(*it));
        let local_v6 = new.1.local_v6();
        let local_v6 = local_v6.filter(|it| old.1.local_v6() != Some(*it));
        let mut stale = Self {
            prefixes: [IpNet::V4(old.0.prefix)]
                .into_iter()
                .chain(prefix_v6)
                .collect(),
            instances: BTreeSet::new(),
            containers: BTreeSet::new(),
            balanced: BTreeSet::new(),
            local: local.into_iter().chain(local_v6).cloned().collect(),
        };
        let containers = new.1.containers();
        for (instance, container) in old.1.containers() {
            let process = |state: &FirewallState| state.process_at(instance);
            let stays = containers.get(&instance) == Some(&container)
                && match (process(old.0), process(new.0)) {
                    (Some(before), Some(after)) => before == after,
                    _ => true,
                };
            if !stays {
                stale.instances.insert(instance);
                stale.containers.insert(container);
            }
        }
        for (service, targets) in old.1.services() {
            let now = new.1.services().get(service);
            let left = |target: &&Ipv4Addr| now.is_none_or(|now| !now.contains(target));
            stale.balanced.extend(
                targets
                    .iter()
                    .filter(left)
                    .map(|target| (IpAddr::V4(*service), IpAddr::V4(*target))),
            );
        }
        stale.has_any().then_some(stale)
    }

    fn has_any(&self) -> bool {
        !self.instances.is_empty() || !self.balanced.is_empty() || !self.local.is_empty()
    }

    /// These connections, and those that `earlier` changes made stale.
    pub(super) fn with_earlier(mut self, earlier: Self) -> Self {
        for prefix in earlier.prefixes {
            if !self.prefixes.contains(&prefix) {
                self.prefixes.push(prefix);
            }
        }
        for policy in earlier.local {
            if !self.local.contains(&policy) {
                self.local.push(policy);
            }
        }
        let count = earlier.instances.len() + earlier.containers.len() + earlier.balanced.len();
        if count <= MAX_EARLIER {
            self.instances.extend(earlier.instances);
            self.containers.extend(earlier.containers);
            self.balanced.extend(earlier.balanced);
        }
        self
    }

    /// The same connections after a later change, to the state `now`. The policy that is in force now decides which ones are denied,
    /// since an earlier one may deny what is allowed now. None if no connection can be stale any more.
    pub(super) fn after(mut self, now: &ValidState) -> Option<Self> {
        if !self.local.is_empty() {
            let policies = now.local().into_iter().chain(now.local_v6());
            self.local = policies.cloned().collect();
        }
        self.has_any().then_some(self)
    }

    /// The message that deletes the connection that `body` describes, if the connection is stale. `body` is the body of
    /// a message of the dump.
    pub(super) fn deletion(&self, body: &[u8], sequence: u32) -> Option<Vec<u8>> {
        let (family, connection) = (*body.first()?, body.get(FAMILY_HEADER..)?);
        let original = attribute(connection, ORIGINAL)?;
        let reply = attribute(connection, REPLY)?;
        let (to, back_from, back_to) =
            (destination(original)?, source(reply)?, destination(reply)?);
        let denies = |local: &LocalRules| {
            let ends = source(original).map(|from| (from, to, back_from));
            ends.is_some_and(|ends| !local.allows(ends, asked(original)))
        };
        let ends = self.instances.contains(&to)
            || self.instances.contains(&back_to)
            || (self.is_of_mesh(to) && self.containers.contains(&back_from))
            || (protocol(original) == Some(UDP) && self.balanced.contains(&(to, back_from)))
            || self.local.iter().any(denies);
        ends.then(|| {
            let mut identity = Vec::new();
            push_attribute(&mut identity, ORIGINAL | NESTED, original);
            for (kind, value) in attributes(connection) {
                if kind == ID || kind == ZONE {
                    push_attribute(&mut identity, kind, value);
                }
            }
            message_of(family, DELETE, ACKNOWLEDGED, sequence, &identity)
        })
    }

    fn is_of_mesh(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(&address))
    }

    /// The request for all connections among which there may be stale ones.
    pub(super) fn dump(&self) -> Vec<u8> {
        let families = match self.prefixes.as_slice() {
            [IpNet::V4(_)] => IPV4,
            _ => ALL_FAMILIES,
        };
        message_of(families, GET, DUMP, 1, &[])
    }
}

fn source(tuple: &[u8]) -> Option<IpAddr> {
    address(tuple, SOURCE, SOURCE_V6)
}

fn destination(tuple: &[u8]) -> Option<IpAddr> {
    address(tuple, DESTINATION, DESTINATION_V6)
}

/// The address of either family in a tuple.
fn address(tuple: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    let addresses = attribute(tuple, ADDRESSES)?;
    if let Some(bytes) = attribute(addresses, v4) {
        let bytes: [u8; 4] = bytes.try_into().ok()?;
        return Some(Ipv4Addr::from(bytes).into());
    }
    let bytes: [u8; 16] = attribute(addresses, v6)?.try_into().ok()?;
    Some(Ipv6Addr::from(bytes).into())
}

fn protocol(tuple: &[u8]) -> Option<u8> {
    attribute(attribute(tuple, PROTOCOL)?, NUMBER)?
        .first()
        .copied()
}

/// What a connection asks of its server.
fn asked(original: &[u8]) -> Asked {
    let port = attribute(original, PROTOCOL).and_then(|of| attribute(of, DESTINATION_PORT));
    let port = port.and_then(|bytes| Some(u16::from_be_bytes(*bytes.first_chunk()?)));
    match (protocol(original), port) {
        (Some(TCP), Some(port)) => Asked::Port(Protocol::Tcp, port),
        (Some(UDP), Some(port)) => Asked::Port(Protocol::Udp, port),
        (Some(ICMP | ICMP_V6), _) => Asked::Icmp,
        _ => Asked::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::firewall::netfilter::IPV6;
    use crate::firewall::{LocalPolicy, Mapped, StateV6};
    use crate::os::netlink::messages;
    use crate::policy::PortSet;

    fn state(mappings: &[(&str, &str, u32)], services: &[(&str, &[&str])]) -> FirewallState {
        let ip = |text: &str| text.parse::<Ipv4Addr>().expect("a literal");
        FirewallState {
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
                        ports: None,
                    };
                    (ip(instance), mapped)
                })
                .collect(),
            service_addresses: services
                .iter()
                .map(|(service, to)| (ip(service), to.iter().map(|t| ip(t)).collect()))
                .collect(),
            native: None,
            outside: crate::firewall::Outside::default(),
            policy: None,
            guests: BTreeSet::new(),
            v6: None,
        }
    }

    /// The same, with the counterparts in IPv6 of these last bytes of addresses, each with its process.
    fn state_v6(mappings: &[(u16, u32)]) -> FirewallState {
        let at = |net: u16, last: u16| Ipv6Addr::from([0xfd00, net, 2, 1, 0, 0, 0, last]);
        let mappings = mappings.iter().map(|(last, pid)| {
            let mapped = Mapped {
                container: at(17, *last),
                pid: Some(*pid),
                name: "db".into(),
                ports: None,
            };
            (at(1, *last), mapped)
        });
        FirewallState {
            v6: Some(StateV6 {
                prefix: "fd00:1:2::/48".parse().expect("a literal"),
                block: "fd00:1:2:1::/64".parse().expect("a literal"),
                node: at(1, 1),
                networks: BTreeMap::new(),
                mappings: mappings.collect(),
                guests: BTreeSet::new(),
            }),
            ..state(&[], &[])
        }
    }

    fn between(old: &FirewallState, new: &FirewallState) -> Option<StaleConnections> {
        StaleConnections::between((old, &ValidState::of(old)), (new, &ValidState::of(new)))
    }

    /// The body of a message that describes a connection with these sources and destinations in both directions.
    fn connection(protocol: u8, addresses: [&str; 4]) -> Vec<u8> {
        let push = |ips: &mut Vec<u8>, kinds: [u16; 2], text: &str| {
            let [v4, v6] = kinds;
            match text.parse::<IpAddr>().expect("a literal") {
                IpAddr::V4(address) => push_attribute(ips, v4, &address.octets()),
                IpAddr::V6(address) => push_attribute(ips, v6, &address.octets()),
            }
        };
        let tuple = |source: &str, destination: &str| {
            let (mut ips, mut proto, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
            push(&mut ips, [SOURCE, SOURCE_V6], source);
            push(&mut ips, [DESTINATION, DESTINATION_V6], destination);
            push_attribute(&mut proto, NUMBER, &[protocol]);
            push_attribute(&mut tuple, ADDRESSES | NESTED, &ips);
            push_attribute(&mut tuple, PROTOCOL | NESTED, &proto);
            tuple
        };
        let [source, destination, back_from, back_to] = addresses;
        let is_v6 = source.contains(':');
        let mut body = vec![if is_v6 { IPV6 } else { IPV4 }, 0, 0, 0];
        push_attribute(&mut body, ORIGINAL | NESTED, &tuple(source, destination));
        push_attribute(&mut body, REPLY | NESTED, &tuple(back_from, back_to));
        push_attribute(&mut body, ID, &[1, 2, 3, 4]);
        body
    }

    #[test]
    fn connections_of_an_address_that_moves_or_is_removed_are_deleted_and_no_others() {
        let old = state(
            &[
                ("10.210.1.2", "172.17.0.2", 5),
                ("10.210.1.3", "172.17.0.3", 6),
            ],
            &[],
        );
        assert_eq!(between(&old, &old), None);
        let moved = state(
            &[
                ("10.210.1.2", "172.17.0.9", 7),
                ("10.210.1.3", "172.17.0.3", 6),
            ],
            &[],
        );
        let stale = between(&old, &moved).expect("one moved");
        let ends = |addresses| stale.deletion(&connection(6, addresses), 1).is_some();
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
    fn connections_that_an_earlier_change_made_stale_are_deleted_with_the_others() {
        let (one, other) = (
            ("10.210.1.2", "172.17.0.2", 5),
            ("10.210.1.3", "172.17.0.3", 6),
        );
        let (both, rest, none) = (
            state(&[one, other], &[]),
            state(&[other], &[]),
            state(&[], &[]),
        );
        let earlier = between(&both, &rest).expect("one is gone");
        let stale = between(&rest, &none).expect("the other one is gone");
        let stale = stale.with_earlier(earlier);
        for (instance, container, _) in [one, other] {
            let to = connection(6, ["10.210.2.1", instance, container, "10.210.2.1"]);
            assert!(stale.deletion(&to, 1).is_some(), "{instance}");
        }
        // An address of IPv6 that is gone is asked for, although the later change is one of IPv4.
        let earlier = between(&state_v6(&[(2, 5)]), &none).expect("it is gone");
        let stale = between(&rest, &none).expect("the other one is gone");
        let dump = stale.with_earlier(earlier).dump();
        let family = messages(&dump).next();
        let family = family.and_then(|it| it.body.first().copied());
        assert_eq!(family, Some(ALL_FAMILIES));
    }

    #[test]
    fn what_earlier_changes_made_stale_is_bounded() {
        let both = state(&[("10.210.1.2", "172.17.0.2", 5)], &[]);
        let stale = between(&both, &state(&[], &[])).expect("it is gone");
        let earlier = |count: usize| StaleConnections {
            containers: (0..)
                .map(|n| IpAddr::V4(Ipv4Addr::from_bits(n)))
                .take(count)
                .collect(),
            ..stale.clone()
        };
        let kept = |count| stale.clone().with_earlier(earlier(count)).containers.len();
        assert_eq!(kept(MAX_EARLIER - 1), MAX_EARLIER);
        assert_eq!(kept(MAX_EARLIER), 1);
    }

    #[test]
    fn connections_that_an_earlier_policy_denied_are_kept_if_the_present_one_allows_them() {
        let ip = |text: &str| text.parse::<Ipv4Addr>().expect("a literal");
        let mappings = [
            ("10.210.1.2", "172.17.0.2", 5),
            ("10.210.1.3", "172.17.0.3", 6),
        ];
        let without = state(&mappings, &[]);
        let with = |allowed: &[(Ipv4Addr, Ipv4Addr, PortSet)]| FirewallState {
            policy: Some(LocalPolicy::allowing(allowed)),
            ..without.clone()
        };
        let denying = with(&[]);
        let ping = PortSet::of(Asked::Icmp);
        let allowing = with(&[(ip("10.210.1.2"), ip("10.210.1.3"), ping)]);
        let stale = between(&without, &denying).expect("a policy");
        let after = |state: &FirewallState| stale.clone().after(&ValidState::of(state));
        let is_deleted = |stale: Option<StaleConnections>, protocol| {
            let ends = ["172.17.0.2", "10.210.1.3", "172.17.0.3", "10.210.1.2"];
            stale.is_some_and(|stale| stale.deletion(&connection(protocol, ends), 1).is_some())
        };
        assert!(is_deleted(after(&denying), ICMP));
        assert!(!is_deleted(after(&allowing), ICMP));
        assert!(is_deleted(after(&allowing), TCP));
        assert_eq!(after(&without), None);
    }

    #[test]
    fn connections_over_ipv6_are_deleted_as_those_over_ipv4_are() {
        let old = state_v6(&[(2, 5), (3, 6)]);
        assert_eq!(between(&old, &old), None);
        let stale = between(&old, &state_v6(&[(2, 9), (3, 6)])).expect("another process");
        let deletion = |addresses| stale.deletion(&connection(TCP, addresses), 1);
        let [other, instance, container] = ["fd00:1:2:2::1", "fd00:1:2:1::2", "fd00:11:2:1::2"];
        let to_it = deletion([other, instance, container, other]).expect("it ends");
        let sent = messages(&to_it).next().expect("whole");
        assert_eq!(sent.body.first(), Some(&IPV6));
        assert!(deletion([container, other, other, instance]).is_some());
        let [kept, at] = ["fd00:1:2:1::3", "fd00:11:2:1::3"];
        assert!(deletion([other, kept, at, other]).is_none());
        let v4 = ["10.210.2.1", "10.210.1.2", "172.17.0.2", "10.210.2.1"];
        assert!(deletion(v4).is_none());
        // The first byte after the header is the family of the connections that are asked for.
        let family = |stale: &StaleConnections| {
            let dump = stale.dump();
            messages(&dump)
                .next()
                .and_then(|it| it.body.first().copied())
        };
        assert_eq!(family(&stale), Some(ALL_FAMILIES));
        let v4_only = between(
            &state(&[("10.210.1.2", "172.17.0.2", 5)], &[]),
            &state(&[], &[]),
        );
        assert_eq!(family(&v4_only.expect("it went")), Some(IPV4));
    }

    #[test]
    fn another_process_at_the_same_address_is_another_container() {
        let old = state(&[("10.210.1.2", "172.17.0.2", 5)], &[]);
        let new = state(&[("10.210.1.2", "172.17.0.2", 9)], &[]);
        assert!(between(&old, &new).is_some());
    }

    #[test]
    fn only_udp_flows_are_deleted_when_a_service_address_no_longer_leads_to_an_instance() {
        let old = state(&[], &[("10.210.0.64", &["10.210.2.2", "10.210.3.2"])]);
        let new = state(&[], &[("10.210.0.64", &["10.210.3.2"])]);
        let stale = between(&old, &new).expect("one left");
        let flow = ["10.210.1.1", "10.210.0.64", "10.210.2.2", "10.210.1.1"];
        let other = ["10.210.1.1", "10.210.0.64", "10.210.3.2", "10.210.1.1"];
        assert!(stale.deletion(&connection(17, flow), 1).is_some());
        assert!(stale.deletion(&connection(6, flow), 1).is_none());
        assert!(stale.deletion(&connection(17, other), 1).is_none());
        assert_eq!(between(&new, &old), None);
    }

    #[test]
    fn connections_that_a_new_policy_denies_are_deleted() {
        let ip = |text: &str| text.parse::<Ipv4Addr>().expect("a literal");
        let mappings = [
            ("10.210.1.2", "172.17.0.2", 5),
            ("10.210.1.3", "172.17.0.3", 6),
        ];
        let old = state(&mappings, &[]);
        let mut new = state(&mappings, &[]);
        let ping = PortSet::of(Asked::Icmp);
        let policy = LocalPolicy::allowing(&[(ip("10.210.1.2"), ip("10.210.1.3"), ping)]);
        new.policy = Some(policy);
        let stale = between(&old, &new).expect("a policy");
        let ends = |protocol, addresses| stale.deletion(&connection(protocol, addresses), 1);
        let forth = ["172.17.0.2", "10.210.1.3", "172.17.0.3", "10.210.1.2"];
        assert!(ends(TCP, forth).is_some());
        assert!(ends(ICMP, forth).is_none());
        let back = ["172.17.0.3", "10.210.1.2", "172.17.0.2", "10.210.1.3"];
        assert!(ends(ICMP, back).is_some());
        let remote = ["10.210.2.1", "10.210.1.2", "172.17.0.2", "10.210.2.1"];
        assert!(ends(TCP, remote).is_none());
        assert_eq!(between(&new, &new), None);
        assert_eq!(between(&new, &old), None, "everything is allowed");
    }

    #[test]
    fn a_deletion_names_the_connection_as_the_dump_described_it() {
        let old = state(&[("10.210.1.2", "172.17.0.2", 5)], &[]);
        let stale = between(&old, &state(&[], &[])).expect("it went");
        let body = connection(6, ["10.210.2.1", "10.210.1.2", "172.17.0.2", "10.210.2.1"]);
        let message = stale.deletion(&body, 7).expect("it ends");
        let sent = messages(&message).next().expect("whole");
        let flags = u16::from_ne_bytes([sent.bytes[6], sent.bytes[7]]);
        assert_eq!((sent.kind, flags), (DELETE, ACKNOWLEDGED));
        let sent = sent.body.get(FAMILY_HEADER..).expect("whole");
        assert_eq!(
            attribute(sent, ORIGINAL),
            attribute(body.get(4..).expect("whole"), ORIGINAL)
        );
        assert_eq!(attribute(sent, ID), Some(&[1, 2, 3, 4][..]));
        assert_eq!(stale.deletion(&[2, 0, 0, 0, 9], 1), None);
    }
}
