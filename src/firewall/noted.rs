//! The packets that the rules of the policy noted in the kernel: from how nftables lists them to the denials that are new. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::FirewallState;
use super::ruleset::{LIFETIME, MAX_NOTED, begins_set};
use crate::model::Protocol;
use crate::policy::Asked;

/// The maximum number of denials that wait until they are taken.
const MAX_WAITING: usize = 4 * MAX_NOTED;

/// Packets between addresses of this node that the policy denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalDenial {
    /// The address in the mesh of the source. A source without one counts as the node.
    pub from: IpAddr,
    /// The address in the mesh of the destination.
    pub to: IpAddr,
    /// What they asked of it.
    pub asked: Asked,
    /// How many there were since the last time.
    pub count: u64,
    /// How long ago there was the last one.
    pub age: Duration,
}

/// An element of one of the sets, with the addresses that packets have on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Noted {
    /// The element as nftables lists it, without what changes.
    key: String,
    from: IpAddr,
    to: IpAddr,
    asked: Asked,
    packets: u64,
    age: Duration,
}

/// The listing of a table without what is in the sets of denied packets, which is the same whatever was denied; and what is in them.
pub(super) fn split(listing: &str) -> (String, Vec<Noted>) {
    let mut rest = String::with_capacity(listing.len());
    let mut found = Vec::new();
    let mut inside: Option<String> = None;
    for line in listing.split_inclusive('\n') {
        let bare = line.trim_end();
        match inside.take() {
            Some(set) if bare == "\t}" => {
                found.extend(elements(&set));
                rest.push_str(line);
            }
            Some(mut set) => {
                set.push_str(line);
                inside = Some(set);
            }
            None => {
                rest.push_str(line);
                inside = begins_set(bare).then(String::new);
            }
        }
    }
    // A set without an end is none of ours.
    rest.push_str(&inside.unwrap_or_default());
    (rest, found)
}

/// The elements of a set. Those that are not understood are left out.
fn elements(set: &str) -> Vec<Noted> {
    let list = set.split_once("elements = {");
    let list = list.and_then(|(_, list)| list.rsplit_once('}'));
    let list = list.map_or("", |(list, _)| list);
    let elements = list.split(',').take(MAX_NOTED);
    elements.filter_map(element).collect()
}

/// An element such as `10.1.0.2 . 10.1.0.3 . tcp . 22 counter packets 1 bytes 60 expires 59m58s120ms`. The order of what follows the key
/// depends on the version of nftables.
fn element(text: &str) -> Option<Noted> {
    let mut words = text.split_whitespace().peekable();
    let mut key = vec![words.next()?];
    while words.next_if_eq(&".").is_some() {
        key.push(words.next()?);
    }
    let (from, to, asked) = match key.as_slice() {
        [from, to, protocol, port] => (from, to, with_port(protocol, port)?),
        [from, to, protocol] => (from, to, without_port(protocol)),
        _ => return None,
    };
    let (from, to) = (from.parse::<IpAddr>().ok()?, to.parse::<IpAddr>().ok()?);
    let (mut packets, mut left) = (None, None);
    while let Some(word) = words.next() {
        match word {
            "counter" => {}
            "packets" => packets = Some(words.next()?.parse::<u64>().ok()?),
            "bytes" => {
                words.next()?.parse::<u64>().ok()?;
            }
            "timeout" => {
                duration(words.next()?)?;
            }
            "expires" => left = Some(duration(words.next()?)?),
            _ => return None,
        }
    }
    (from.is_ipv4() == to.is_ipv4()).then_some(Noted {
        key: key.join(" . "),
        from,
        to,
        asked,
        packets: packets?,
        age: Duration::from_secs(LIFETIME).saturating_sub(left?),
    })
}

/// Where the file /etc/protocols is missing, nftables lists numbers.
fn with_port(protocol: &str, port: &str) -> Option<Asked> {
    let protocol = match protocol {
        "tcp" | "6" => Protocol::Tcp,
        "udp" | "17" => Protocol::Udp,
        _ => return None,
    };
    Some(Asked::Port(protocol, port.parse().ok()?))
}

fn without_port(protocol: &str) -> Asked {
    match protocol {
        "icmp" | "1" | "ipv6-icmp" | "icmpv6" | "58" => Asked::Icmp,
        _ => Asked::Other,
    }
}

/// A time in the syntax of nftables, such as `59m58s120ms`.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut milliseconds) = (text, 0u64);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let end = after.find(|c: char| c.is_ascii_digit());
        let (unit, after) = after.split_at(end.unwrap_or(after.len()));
        let unit = match unit {
            "d" => 86_400_000,
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return None,
        };
        let part = number.parse::<u64>().ok()?.checked_mul(unit)?;
        milliseconds = milliseconds.checked_add(part)?;
        rest = after;
    }
    Some(Duration::from_millis(milliseconds))
}

/// How many packets were read of each element of each table, so that each packet is counted once.
#[derive(Debug, Default)]
pub(super) struct Readings(BTreeMap<&'static str, BTreeMap<String, u64>>);

impl Readings {
    /// Reads what the table of a family has, and returns the elements with new packets, each with the number of these.
    pub(super) fn read(&mut self, family: &'static str, noted: Vec<Noted>) -> Vec<Noted> {
        let former = self.0.remove(family).unwrap_or_default();
        let packets = noted.iter().map(|one| (one.key.clone(), one.packets));
        self.0.insert(family, packets.collect());
        let fresh = noted.into_iter().map(|one| {
            // An element that was removed and came back counts from 0.
            let before = former.get(&one.key).copied();
            let before = before.filter(|before| *before <= one.packets);
            Noted {
                packets: one.packets - before.unwrap_or_default(),
                ..one
            }
        });
        fresh.filter(|one| one.packets > 0).collect()
    }

    /// The table of a family was replaced, so its sets are empty.
    pub(super) fn forget(&mut self, family: &'static str) {
        self.0.remove(family);
    }
}

/// Adds to `waiting` the denials that `noted` stands for. `containers` has the own addresses of the containers by instance address.
pub(super) fn add(
    waiting: &mut Vec<LocalDenial>,
    noted: Vec<Noted>,
    state: &FirewallState,
    containers: &BTreeMap<IpAddr, IpAddr>,
) {
    let instances = containers.iter().map(|(instance, own)| (*own, *instance));
    let instances: BTreeMap<IpAddr, IpAddr> = instances.collect();
    let in_mesh = |address: IpAddr| match (instances.get(&address), address) {
        (Some(instance), _) => *instance,
        (None, IpAddr::V4(v4)) if !state.prefix.contains(&v4) => state.node.into(),
        (None, IpAddr::V6(v6)) => match &state.v6 {
            Some(part) if !part.prefix.contains(&v6) => part.node.into(),
            _ => address,
        },
        (None, IpAddr::V4(_)) => address,
    };
    let room = MAX_WAITING.saturating_sub(waiting.len());
    waiting.extend(noted.into_iter().take(room).map(|one| LocalDenial {
        from: in_mesh(one.from),
        to: in_mesh(one.to),
        asked: one.asked,
        count: one.packets,
        age: one.age,
    }));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::firewall::{Outside, StateV6};

    /// A table as nftables 1.0.6 lists it. Later versions add the number of elements after the size.
    const LISTING: &str = "table ip meshd {
\tset members {
\t\ttype ipv4_addr
\t\telements = { 172.18.0.2, 172.18.0.3 }
\t}

\tset denied_ports {
\t\ttype ipv4_addr . ipv4_addr . inet_proto . inet_service
\t\tsize 1024\t# count 2
\t\tflags dynamic,timeout
\t\ttimeout 1h
\t\telements = { 172.18.0.2 . 172.18.0.3 . tcp . 22 counter packets 3 bytes 180 expires 59m58s996ms,
\t\t\t     172.18.0.9 . 172.18.0.3 . udp . 53 timeout 1h expires 59m counter packets 1 bytes 60 }
\t}

\tset denied_others {
\t\ttype ipv4_addr . ipv4_addr . inet_proto
\t\tsize 1024
\t\tflags dynamic,timeout
\t\ttimeout 1h
\t\telements = { 172.18.0.2 . 172.18.0.3 . icmp counter packets 2 bytes 168 expires 1h,
\t\t\t     172.18.0.3 . 10.210.1.1 . sctp counter packets 1 bytes 60 expires 30m }
\t}

\tchain prohibited {
\t\tdrop
\t}
}
";

    const WITHOUT_ELEMENTS: &str = "table ip meshd {
\tset members {
\t\ttype ipv4_addr
\t\telements = { 172.18.0.2, 172.18.0.3 }
\t}

\tset denied_ports {
\t}

\tset denied_others {
\t}

\tchain prohibited {
\t\tdrop
\t}
}
";

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a literal")
    }

    fn noted(key: &str, asked: Asked, packets: u64, age: Duration) -> Noted {
        let mut words = key.split(" . ");
        let [from, to] = [words.next(), words.next()].map(|word| ip(word.expect("an address")));
        Noted {
            key: key.into(),
            from,
            to,
            asked,
            packets,
            age,
        }
    }

    fn state() -> FirewallState {
        FirewallState {
            interface: "mesh0".into(),
            prefix: "10.210.0.0/16".parse().expect("a literal"),
            block: "10.210.1.0/24".parse().expect("a literal"),
            node: "10.210.1.1".parse().expect("a literal"),
            bridges: BTreeMap::new(),
            mappings: BTreeMap::new(),
            service_addresses: BTreeMap::new(),
            outside: Outside::default(),
            native: None,
            policy: None,
            guests: BTreeSet::new(),
            v6: Some(StateV6 {
                prefix: "fd00:1:2::/48".parse().expect("a literal"),
                block: "fd00:1:2:1::/64".parse().expect("a literal"),
                node: "fd00:1:2:1::1".parse().expect("a literal"),
                networks: BTreeMap::new(),
                mappings: BTreeMap::new(),
                guests: BTreeSet::new(),
            }),
        }
    }

    #[test]
    fn a_listing_is_split_into_what_was_noted_and_what_does_not_change() {
        let (rest, found) = split(LISTING);
        assert_eq!(rest, WITHOUT_ELEMENTS);
        let tcp = Asked::Port(Protocol::Tcp, 22);
        let udp = Asked::Port(Protocol::Udp, 53);
        let expected = [
            (
                "172.18.0.2 . 172.18.0.3 . tcp . 22",
                tcp,
                3,
                Duration::from_millis(1004),
            ),
            (
                "172.18.0.9 . 172.18.0.3 . udp . 53",
                udp,
                1,
                Duration::from_secs(60),
            ),
            (
                "172.18.0.2 . 172.18.0.3 . icmp",
                Asked::Icmp,
                2,
                Duration::ZERO,
            ),
            (
                "172.18.0.3 . 10.210.1.1 . sctp",
                Asked::Other,
                1,
                Duration::from_secs(1800),
            ),
        ];
        let expected = expected.map(|(key, asked, packets, age)| noted(key, asked, packets, age));
        assert_eq!(found, expected);
        assert_eq!(split(&rest), (rest.clone(), Vec::new()));
    }

    #[test]
    fn numbers_of_protocols_and_addresses_of_ipv6_are_understood() {
        let end = "counter packets 1 bytes 80 expires 3599s";
        let asked = |key: &str| element(&format!("{key} {end}")).map(|noted| noted.asked);
        let ends = "fd00:18::2 . fd00:18::3";
        let port = |protocol| Some(Asked::Port(protocol, 22));
        assert_eq!(asked(&format!("{ends} . 6 . 22")), port(Protocol::Tcp));
        assert_eq!(asked(&format!("{ends} . 17 . 22")), port(Protocol::Udp));
        assert_eq!(asked(&format!("{ends} . ipv6-icmp")), Some(Asked::Icmp));
        assert_eq!(asked(&format!("{ends} . 58")), Some(Asked::Icmp));
        assert_eq!(asked(&format!("{ends} . 132")), Some(Asked::Other));
    }

    #[test]
    fn elements_that_are_not_as_the_rules_make_them_are_left_out() {
        let key = "10.1.0.2 . 10.1.0.3 . tcp . 22";
        let end = "counter packets 1 bytes 60 expires 59m";
        assert!(element(&format!("{key} {end}")).is_some());
        for text in [
            String::new(),
            key.to_owned(),
            format!("{key} ."),
            format!("{key} . 5 {end}"),
            format!("10.1.0.2 . 10.1.0.3 {end}"),
            format!("10.1.0.2 . fd00::1 . tcp . 22 {end}"),
            format!("10.1.0.2 . db . tcp . 22 {end}"),
            format!("10.1.0.2 . 10.1.0.3 . sctp . 22 {end}"),
            format!("10.1.0.2 . 10.1.0.3 . tcp . 65536 {end}"),
            format!("10.1.0.2 . 10.1.0.3 . tcp . 22-23 {end}"),
            format!("{key} {end} comment \"x\""),
            format!("{key} counter packets -1 bytes 60 expires 59m"),
            format!("{key} counter packets 1 bytes 60"),
            format!("{key} expires 59m"),
            format!("{key} counter packets 1 bytes 60 expires 59"),
            format!("{key} counter packets 1 bytes 60 expires 59y"),
            format!("{key} counter packets 1 bytes 60 expires m"),
            format!("{key} counter packets 1 bytes 60 expires 99999999999999999d"),
            format!("{key} counter packets 99999999999999999999 bytes 60 expires 59m"),
        ] {
            assert_eq!(element(&text), None, "{text}");
        }
    }

    #[test]
    fn a_set_without_an_end_has_no_elements_and_more_elements_than_the_set_has_room_for_are_left_out()
     {
        let cut = LISTING
            .find("\n\t}\n\n\tset denied_others")
            .expect("an end");
        let (cut, _) = LISTING.split_at(cut);
        assert_eq!(split(cut), (cut.to_owned(), Vec::new()));

        let one = "10.1.0.2 . 10.1.0.3 . tcp . 22 counter packets 1 bytes 60 expires 59m";
        let many = vec![one; MAX_NOTED + 10].join(", ");
        let listing = format!("\tset denied_ports {{\n\t\telements = {{ {many} }}\n\t}}\n");
        assert_eq!(split(&listing).1.len(), MAX_NOTED);
    }

    #[test]
    fn each_packet_is_counted_once() {
        let (mut readings, tcp) = (Readings::default(), Asked::Port(Protocol::Tcp, 22));
        let mut read = |family, packets: &[u64]| -> Vec<u64> {
            let key = |n: usize| format!("10.1.0.{n} . 10.1.0.3 . tcp . 22");
            let found = packets.iter().enumerate();
            let found = found.map(|(n, packets)| noted(&key(n), tcp, *packets, Duration::ZERO));
            let fresh = readings.read(family, found.collect());
            fresh.iter().map(|one| one.packets).collect()
        };
        assert_eq!(read("ip", &[3, 1]), [3, 1]);
        assert_eq!(read("ip", &[3, 4]), [3]);
        assert_eq!(read("bridge", &[3]), [3], "another table");
        assert_eq!(read("ip", &[2, 4]), [2], "the first one is new again");
        assert_eq!(read("ip", &[]), [0; 0]);
        assert_eq!(read("ip", &[2]), [2], "it was away");
        readings.forget("ip");
        let again = noted("10.1.0.0 . 10.1.0.3 . tcp . 22", tcp, 5, Duration::ZERO);
        assert_eq!(readings.read("ip", vec![again.clone()]), [again]);
    }

    #[test]
    fn denials_have_the_addresses_of_the_mesh_and_every_other_source_is_the_node() {
        let containers = [
            ("10.210.1.2", "172.18.0.2"),
            ("10.210.1.3", "172.18.0.3"),
            ("fd00:1:2:1::2", "fd00:18::2"),
        ];
        let containers = containers.map(|(instance, own)| (ip(instance), ip(own)));
        let mut waiting = Vec::new();
        let noted = [
            "172.18.0.2 . 172.18.0.3",
            "172.18.0.9 . 172.18.0.3",
            "10.210.1.7 . 10.210.1.1",
            "fd00:18::2 . fd00:1:2:1::1",
            "fd00:18::9 . fd00:18::2",
        ]
        .map(|key| noted(key, Asked::Icmp, 2, Duration::from_secs(7)));
        add(&mut waiting, noted.to_vec(), &state(), &containers.into());
        let expected = [
            ("10.210.1.2", "10.210.1.3"),
            ("10.210.1.1", "10.210.1.3"),
            ("10.210.1.7", "10.210.1.1"),
            ("fd00:1:2:1::2", "fd00:1:2:1::1"),
            ("fd00:1:2:1::1", "fd00:1:2:1::2"),
        ]
        .map(|(from, to)| LocalDenial {
            from: ip(from),
            to: ip(to),
            asked: Asked::Icmp,
            count: 2,
            age: Duration::from_secs(7),
        });
        assert_eq!(waiting, expected);
        for _ in 0..MAX_WAITING {
            add(&mut waiting, noted.to_vec(), &state(), &BTreeMap::new());
        }
        assert_eq!(waiting.len(), MAX_WAITING);
    }

    proptest! {
        #[test]
        fn no_listing_causes_a_panic_and_nothing_is_added_to_it(
            text in "(\tset denied_ports \\{\n|\t\\}\n|elements = \\{|[0-9a-f:. ]{0,9}|counter packets [0-9]{1,25}|expires [0-9dhms]{0,12}|[{},\n\u{e9}]|tcp)*"
        ) {
            let (rest, found) = split(&text);
            prop_assert!(rest.len() <= text.len());
            prop_assert!(found.len() <= text.len());
        }
    }
}
