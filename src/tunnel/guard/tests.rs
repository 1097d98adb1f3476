//! The check on the packets of a small mesh. Node 1 has the instance `web`, and node 2 has the instance `db`.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::replies::LIFETIME;
use super::{Direction, Guard, Members, Memo, Verdict};
use crate::model::{Label, Protocol, ServiceName};
use crate::policy::{Asked, Offered, OfferedPort, Policy, Subject, Table, interpret};
use crate::tunnel::packet::{ICMP, ICMP6, Ip, TCP, UDP};

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;
const GRE: u8 = 47;
const GOSSIP: u16 = crate::protocol::gossip::PORT;

const NODE_1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 210, 1, 1));
const WEB: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 210, 1, 2));
const NODE_2: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 210, 2, 1));
const DB: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 210, 2, 2));
const NODE_3: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 210, 3, 1));

/// The rule that most tests are about.
const WEB_TO_DB: &str = r#"
language = 1
default = "deny"
[[allow]]
from = ["web"]
to = ["db:5432", "db:53/udp", "db:icmp"]
"#;

fn label(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

fn subject(node: u8, address: IpAddr, service: Option<(&str, &[(Protocol, u16)])>) -> Subject {
    let services = service.map(|(name, ports)| Offered {
        service: ServiceName::from(label(name)),
        ports: (ports.iter())
            .map(|(protocol, port)| OfferedPort {
                name: None,
                protocol: *protocol,
                port: *port,
            })
            .collect(),
        allow: Vec::new(),
    });
    Subject {
        addresses: vec![address],
        node: label(&format!("n{node}")),
        tags: vec![label(if node == 1 { "front" } else { "back" })],
        is_node: services.is_none(),
        guest: None,
        network: None,
        services: services.into_iter().collect(),
    }
}

fn subjects() -> Vec<Subject> {
    vec![
        subject(1, NODE_1, None),
        subject(2, NODE_2, None),
        subject(3, NODE_3, None),
        subject(1, WEB, Some(("web", &[(Protocol::Tcp, 80)]))),
        subject(
            2,
            DB,
            Some(("db", &[(Protocol::Tcp, 5432), (Protocol::Udp, 53)])),
        ),
    ]
}

fn table(policy: &str) -> Arc<Table> {
    let policy = Policy::parse(policy).unwrap_or_else(|error| panic!("{error}"));
    Arc::new(Table::compile(Some(&policy), &subjects()))
}

/// The members as the node with this number knows them.
#[derive(Clone, Copy)]
struct Node(u8);

fn octets(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => [0; 4],
    }
}

impl Members for Node {
    fn is_own(&self, address: IpAddr) -> bool {
        octets(address) == [10, 210, self.0, 1]
    }

    fn is_node(&self, address: IpAddr) -> bool {
        let [a, b, node, host] = octets(address);
        [a, b, host] == [10, 210, 1] && node != self.0
    }

    fn share_node(&self, one: IpAddr, other: IpAddr) -> bool {
        let node = |address| octets(address)[2];
        node(one) == node(other) && node(one) != self.0
    }
}

/// A node with a policy, at a time.
struct Checked {
    node: Node,
    guard: Guard,
    now: Instant,
}

impl Checked {
    fn new(node: u8, policy: &str) -> Self {
        Self {
            node: Node(node),
            guard: Guard::new(table(policy)),
            now: Instant::now(),
        }
    }

    /// The same node at the same time, with another guard.
    fn under(&self, guard: Guard) -> Self {
        Self { guard, ..*self }
    }

    /// The verdict about the first packet of a batch.
    fn verdict(&self, direction: Direction, packet: &[u8]) -> Verdict {
        let ip = Ip::parse(packet).expect("a whole packet");
        let (packet, mut memo) = ((packet, &ip), Memo::default());
        (self.guard).check(direction, packet, &self.node, &mut memo, self.now)
    }

    fn passes(&self, direction: Direction, packet: &[u8]) -> bool {
        self.verdict(direction, packet) == Verdict::Pass
    }

    fn sends(&self, packet: &[u8]) -> bool {
        self.passes(Direction::Outgoing, packet)
    }

    fn receives(&self, packet: &[u8]) -> bool {
        self.passes(Direction::Incoming, packet)
    }
}

/// A packet of this protocol. Its addresses are both of IPv4, or both of IPv6.
fn packet(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = ((20 + body.len()) as u16).to_be_bytes();
            let mut header = vec![
                0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0,
            ];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let [a, b] = (body.len() as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, a, b, protocol, 64];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        _ => panic!("two families"),
    };
    packet.extend(body);
    packet
}

fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Vec<u8> {
    let mut body = vec![0; 20];
    body[..2].copy_from_slice(&from.1.to_be_bytes());
    body[2..4].copy_from_slice(&to.1.to_be_bytes());
    body[12..14].copy_from_slice(&[5 << 4, flags]);
    packet(from.0, to.0, TCP, &body)
}

fn udp(from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let mut body = vec![0; 12];
    body[..2].copy_from_slice(&from.1.to_be_bytes());
    body[2..4].copy_from_slice(&to.1.to_be_bytes());
    body[5] = 12;
    packet(from.0, to.0, UDP, &body)
}

fn icmp(from: IpAddr, to: IpAddr, kind: u8, inside: &[u8]) -> Vec<u8> {
    let protocol = if from.is_ipv4() { ICMP } else { ICMP6 };
    let body = [&[kind, 0, 0, 0, 0, 7, 0, 1], inside].concat();
    packet(from, to, protocol, &body)
}

#[test]
fn a_connection_is_begun_only_by_the_side_that_may_and_its_segments_pass_both_ways() {
    let (one, two) = (Checked::new(1, WEB_TO_DB), Checked::new(2, WEB_TO_DB));
    let (client, server) = ((WEB, 40_000), (DB, 5432));
    for flags in [SYN, ACK, RST] {
        let segment = tcp(client, server, flags);
        assert!(one.sends(&segment) && two.receives(&segment), "{flags:#x}");
    }
    for flags in [SYN_ACK, ACK, RST] {
        let segment = tcp(server, client, flags);
        assert!(two.sends(&segment) && one.receives(&segment), "{flags:#x}");
    }
    for (from, to) in [
        (server, client),
        ((DB, 40_000), (WEB, 5432)),
        (client, (DB, 5433)),
        (client, (NODE_2, 5432)),
        ((NODE_1, 40_000), server),
    ] {
        let segment = tcp(from, to, SYN);
        assert!(
            !one.sends(&segment) && !two.sends(&segment),
            "{from:?} to {to:?}"
        );
        assert!(
            !one.receives(&segment) && !two.receives(&segment),
            "{from:?} to {to:?}"
        );
    }
    assert!(!one.receives(&tcp((DB, 5433), client, ACK)));
}

#[test]
fn a_datagram_from_a_server_passes_for_a_minute_after_a_request() {
    let mut one = Checked::new(1, WEB_TO_DB);
    let (client, server) = ((WEB, 40_000), (DB, 53));
    assert!(!one.receives(&udp(server, client)), "before the request");
    assert!(one.sends(&udp(client, server)));
    assert!(one.receives(&udp(server, client)));
    assert!(!one.receives(&udp(server, (WEB, 40_001))));
    assert!(!one.receives(&udp((DB, 54), client)));
    assert!(!one.receives(&udp((NODE_2, 53), client)));
    one.now += LIFETIME - Duration::from_secs(1);
    assert!(one.receives(&udp(server, client)));
    one.now += Duration::from_secs(1);
    assert!(
        !one.receives(&udp(server, client)),
        "an answer refreshes nothing"
    );
    let two = Checked::new(2, WEB_TO_DB);
    assert!(two.receives(&udp(client, server)));
    assert!(two.sends(&udp(server, client)));
    assert!(!two.sends(&udp((DB, 54), client)));
}

#[test]
fn a_denied_request_opens_nothing_for_its_answers() {
    let one = Checked::new(1, WEB_TO_DB);
    assert!(!one.sends(&udp((WEB, 40_000), (DB, 54))));
    assert!(!one.receives(&udp((DB, 54), (WEB, 40_000))));
    assert!(!one.sends(&icmp(WEB, NODE_2, 8, &[])));
    assert!(!one.receives(&icmp(NODE_2, WEB, 0, &[])));
}

#[test]
fn a_change_of_the_policy_ends_what_was_allowed_and_keeps_what_still_is() {
    let mut one = Checked::new(1, WEB_TO_DB);
    let (client, names, server) = ((WEB, 40_000), (DB, 53), (DB, 5432));
    assert!(one.sends(&udp(client, names)));
    let still = WEB_TO_DB.replace("\"db:5432\", ", "");
    one.guard = one.guard.with(table(&still));
    assert!(one.receives(&udp(names, client)));
    assert!(!one.receives(&tcp(server, client, ACK)));
    assert!(!one.sends(&tcp(client, server, ACK)));
    let none = WEB_TO_DB.replace("\"db:53/udp\", ", "");
    one.guard = one.guard.with(table(&none));
    assert!(!one.receives(&udp(names, client)));
    assert!(one.receives(&tcp(server, client, ACK)));
}

#[test]
fn an_echo_is_answered_only_if_it_was_sent() {
    let one = Checked::new(1, WEB_TO_DB);
    assert!(!one.receives(&icmp(DB, WEB, 0, &[])));
    assert!(!one.receives(&icmp(DB, WEB, 8, &[])));
    assert!(one.sends(&icmp(WEB, DB, 8, &[])));
    assert!(one.receives(&icmp(DB, WEB, 0, &[])));
    let two = Checked::new(2, WEB_TO_DB);
    assert!(two.sends(&icmp(DB, WEB, 0, &[])));
    assert!(!two.sends(&icmp(DB, WEB, 8, &[])));
}

#[test]
fn an_icmp_error_passes_if_the_packet_inside_may_have_been_sent_there() {
    let one = Checked::new(1, WEB_TO_DB);
    let error = |from, inside: &[u8]| icmp(from, WEB, 3, &inside[..28.min(inside.len())]);
    let (client, server) = ((WEB, 40_000), (DB, 5432));
    let asked = tcp(client, server, SYN);
    assert!(one.receives(&error(DB, &asked)));
    assert!(
        one.receives(&error(NODE_2, &asked)),
        "the node on which it is"
    );
    assert!(
        !one.receives(&error(NODE_3, &asked)),
        "a node that never saw it"
    );
    assert!(one.receives(&error(DB, &udp(client, (DB, 53)))));
    assert!(one.receives(&error(DB, &icmp(WEB, DB, 8, &[]))));
    // About its answers, on the side of the server.
    let two = Checked::new(2, WEB_TO_DB);
    let answer = tcp(server, client, SYN_ACK);
    assert!(two.receives(&icmp(WEB, DB, 3, &answer[..28])));

    let denied = tcp(client, (DB, 22), SYN);
    assert!(!one.receives(&error(DB, &denied)));
    let of_others = tcp((NODE_1, 40_000), server, SYN);
    assert!(
        !one.receives(&error(DB, &of_others)),
        "it was never sent by the receiver"
    );
    assert!(!one.receives(&error(DB, &asked[..19])), "too short");
    assert!(!one.receives(&icmp(DB, WEB, 5, &asked)), "a redirect");
    assert!(one.sends(&icmp(WEB, DB, 3, &answer[..28])));
    assert!(!one.sends(&icmp(WEB, NODE_2, 3, &answer[..28])));
}

#[test]
fn fragments_and_extension_headers_and_other_protocols_match_only_rules_without_ports() {
    let with_ports = Checked::new(2, &WEB_TO_DB.replace("db:icmp", "node:n2:1-65535"));
    let without = Checked::new(2, &WEB_TO_DB.replace("db:icmp", "node:n2"));
    let mut first = udp((WEB, 40_000), (NODE_2, 53));
    first[6] = 0x20;
    let mut later = tcp((WEB, 40_000), (NODE_2, 5432), ACK);
    later[6..8].copy_from_slice(&[0, 1]);
    let other = packet(WEB, NODE_2, GRE, &[0; 20]);
    let short = packet(WEB, NODE_2, TCP, &[0x9c, 0x40, 0x15, 0x38]);
    for packet in [first, later, other, short] {
        assert!(!with_ports.receives(&packet), "{packet:?}");
        assert!(without.receives(&packet), "{packet:?}");
    }
}

#[test]
fn a_fragment_is_no_answer() {
    let one = Checked::new(1, WEB_TO_DB);
    assert!(one.sends(&udp((WEB, 40_000), (DB, 53))));
    let mut answer = udp((DB, 53), (WEB, 40_000));
    answer[6] = 0x20;
    assert!(!one.receives(&answer));
    let mut segment = tcp((DB, 5432), (WEB, 40_000), ACK);
    segment[6] = 0x20;
    assert!(!one.receives(&segment));
}

#[test]
fn a_packet_with_a_source_route_never_passes() {
    let all = Checked::new(
        2,
        "language = 1\n[[allow]]\nfrom = [\"*\"]\nto = [\"*\", \"node:*\"]\n",
    );
    let with_options = |options: [u8; 4]| {
        let plain = tcp((WEB, 40_000), (NODE_2, 80), ACK);
        let mut packet = [&plain[..20], &options, &plain[20..]].concat();
        packet[0] = 0x46;
        packet[3] += 4;
        packet
    };
    assert!(all.receives(&with_options([1, 1, 1, 0])));
    assert!(all.receives(&with_options([148, 4, 0, 0])), "router alert");
    for options in [
        [131, 4, 4, 0],
        [1, 137, 3, 4],
        [7, 0, 131, 4],
        [7, 99, 0, 0],
        [1, 1, 1, 7],
    ] {
        assert!(!all.receives(&with_options(options)), "{options:?}");
    }
}

#[test]
fn messages_between_the_meshds_of_members_pass_without_a_rule_and_nothing_else_does() {
    let (one, two) = (
        Checked {
            guard: Guard::new(Arc::new(Table::closed())),
            ..Checked::new(1, WEB_TO_DB)
        },
        Checked {
            guard: Guard::new(Arc::new(Table::closed())),
            ..Checked::new(2, WEB_TO_DB)
        },
    );
    let (dialer, listener) = ((NODE_1, 40_000), (NODE_2, GOSSIP));
    for (packet, passes) in [
        (tcp(dialer, listener, SYN), true),
        (tcp(dialer, listener, ACK), true),
        (tcp((WEB, 40_000), listener, SYN), false),
        (tcp((WEB, 40_000), listener, ACK), false),
        (tcp(dialer, (DB, GOSSIP), SYN), false),
        (tcp((NODE_1, GOSSIP), (NODE_2, 22), SYN), false),
        (tcp(dialer, (NODE_2, 22), SYN), false),
        (udp(dialer, listener), false),
        (udp((NODE_1, 7446), (NODE_2, 7446)), true),
        (udp((NODE_1, 7446), (NODE_2, 53)), false),
        (icmp(NODE_1, NODE_2, 8, &[]), false),
    ] {
        assert_eq!(one.sends(&packet), passes, "{packet:?}");
        assert_eq!(two.receives(&packet), passes, "{packet:?}");
    }
    for flags in [SYN_ACK, ACK] {
        let answer = tcp(listener, dialer, flags);
        assert!(two.sends(&answer) && one.receives(&answer));
    }
}

#[test]
fn a_policy_that_is_tried_denies_nothing_and_says_what_it_would_deny() {
    let two = Checked::new(2, WEB_TO_DB);
    let open = Guard::new(Arc::new(Table::compile(None, &[])));
    let tried = two.under(open.trying(Some(Arc::clone(two.guard.policy()))));
    let check = |node: &Checked, packet: &[u8]| node.verdict(Direction::Incoming, packet);
    let (client, server) = ((WEB, 40_000), (DB, 5432));
    assert_eq!(check(&tried, &tcp(client, server, SYN)), Verdict::Pass);
    let other = tcp(client, (DB, 22), SYN);
    let asked = Asked::Port(Protocol::Tcp, 22);
    assert_eq!(check(&tried, &other), Verdict::WouldDeny(asked));
    assert_eq!(check(&two, &other), Verdict::Deny(asked));
    // What is denied is not also listed as tried.
    let policy = Arc::clone(two.guard.policy());
    let both = two.under(two.guard.clone().trying(Some(policy)));
    assert_eq!(check(&both, &other), Verdict::Deny(asked));
}

#[test]
fn beside_a_policy_that_is_tried_everything_passes_that_passes_without_one() {
    let two = Checked::new(2, WEB_TO_DB);
    let open = Guard::new(Arc::new(Table::compile(None, &[])));
    let tried = two.under(open.trying(Some(Arc::clone(two.guard.policy()))));
    let plain = tcp((WEB, 40_000), (DB, 5432), ACK);
    let mut routed = [&plain[..20], &[131, 4, 4, 0], &plain[20..]].concat();
    routed[0] = 0x46;
    routed[3] += 4;
    let incoming = tried.verdict(Direction::Incoming, &routed);
    assert_eq!(incoming, Verdict::WouldDeny(Asked::Other));
    // An error about a packet that its receiver has not sent.
    let error = icmp(WEB, NODE_2, 3, &tcp((DB, 5432), (WEB, 40_000), ACK));
    let incoming = tried.verdict(Direction::Incoming, &error);
    assert_eq!(incoming, Verdict::WouldDeny(Asked::Icmp));
    let error = icmp(NODE_2, WEB, 3, &tcp((NODE_1, 40_000), (DB, 5432), ACK));
    let outgoing = tried.verdict(Direction::Outgoing, &error);
    assert_eq!(outgoing, Verdict::WouldDeny(Asked::Icmp));
}

#[test]
fn a_policy_that_is_tried_would_not_deny_the_answers_to_requests_from_before() {
    let one = Checked::new(1, WEB_TO_DB);
    assert!(one.sends(&udp((WEB, 40_000), (DB, 53))));
    let policy = Arc::clone(one.guard.policy());
    let tried = one.under(one.guard.with(Arc::clone(&policy)).trying(Some(policy)));
    let answer = udp((DB, 53), (WEB, 40_000));
    let incoming = tried.verdict(Direction::Incoming, &answer);
    assert_eq!(incoming, Verdict::Pass);
}

#[test]
fn a_run_of_packets_is_looked_up_once_and_only_packets_that_are_the_same_count_as_one() {
    let two = Checked::new(2, WEB_TO_DB);
    let closed = Guard::new(Arc::new(Table::closed()));
    let mut memo = Memo::default();
    let mut pass = |guard: &Guard, packet: &[u8]| {
        let ip = Ip::parse(packet).expect("a whole packet");
        let packet = (packet, &ip);
        let verdict = guard.check(Direction::Incoming, packet, &two.node, &mut memo, two.now);
        verdict == Verdict::Pass
    };
    let (client, server) = ((WEB, 40_000), (DB, 5432));
    assert!(pass(&two.guard, &tcp(client, server, ACK)));
    // Another guard shows that the memo decides.
    assert!(pass(&closed, &tcp(client, server, ACK)));
    assert!(pass(&closed, &tcp(client, server, RST)));
    assert!(!pass(&closed, &tcp(client, server, SYN)));
    assert!(!pass(&closed, &tcp(client, (DB, 5433), ACK)));
    assert!(!pass(&closed, &tcp((WEB, 40_001), server, ACK)));
    assert!(!pass(&closed, &tcp((NODE_1, 40_000), server, ACK)));
    assert!(!pass(&closed, &udp(client, server)));
    let mut fragment = tcp(client, server, ACK);
    fragment[6] = 0x20;
    assert!(!pass(&closed, &fragment));
    assert!(pass(&closed, &tcp(client, server, ACK)));
    memo.clear();
    let mut pass = |guard: &Guard, packet: &[u8]| {
        let ip = Ip::parse(packet).expect("a whole packet");
        let packet = (packet, &ip);
        let verdict = guard.check(Direction::Incoming, packet, &two.node, &mut memo, two.now);
        verdict == Verdict::Pass
    };
    assert!(!pass(&closed, &tcp(client, server, ACK)), "the next batch");
}

#[test]
fn the_check_is_the_same_over_ipv6() {
    let v6 = |text: &str| -> IpAddr { text.parse().expect("a literal") };
    let (web, db) = (v6("fd00:0:0:1::2"), v6("fd00:0:0:2::2"));
    let mut subjects = subjects();
    subjects[3].addresses.push(web);
    subjects[4].addresses.push(db);
    let policy = Policy::parse(WEB_TO_DB).expect("a literal");
    let checked = |node| Checked {
        guard: Guard::new(Arc::new(Table::compile(Some(&policy), &subjects))),
        ..Checked::new(node, WEB_TO_DB)
    };
    let (one, two) = (checked(1), checked(2));
    assert!(two.receives(&tcp((web, 40_000), (db, 5432), SYN)));
    assert!(!two.receives(&tcp((web, 40_000), (db, 22), SYN)));
    assert!(!one.receives(&tcp((db, 5432), (web, 40_000), SYN)));
    assert!(one.receives(&tcp((db, 5432), (web, 40_000), ACK)));
    assert!(one.sends(&icmp(web, db, 128, &[])));
    assert!(one.receives(&icmp(db, web, 129, &[])));
    let asked = tcp((web, 40_000), (db, 5432), SYN);
    assert!(one.sends(&asked));
    assert!(two.sends(&icmp(db, web, 1, &asked)));
    // A destination option before the port.
    let mut hidden = tcp((web, 40_000), (db, 5432), SYN);
    hidden[6] = 60;
    assert!(!two.receives(&hidden));
}

/// A packet that asks for this, and begins something.
fn fresh(from: IpAddr, to: IpAddr, asked: Asked) -> Vec<u8> {
    match asked {
        Asked::Port(Protocol::Tcp, port) => tcp((from, 40_000), (to, port), SYN),
        Asked::Port(Protocol::Udp, port) => udp((from, 40_000), (to, port)),
        Asked::Icmp => icmp(from, to, 8, &[]),
        Asked::Other => packet(from, to, GRE, &[0; 8]),
    }
}

fn policies() -> impl Strategy<Value = String> {
    let selectors = ["*", "web", "db", "node:n1", "node:*", "tag:back", "node:n2"];
    let ports = ["", ":5432", ":53/udp", ":icmp", ":1-1000", ":80"];
    let from = prop::sample::select(selectors.to_vec());
    let to = (
        prop::sample::select(selectors.to_vec()),
        prop::sample::select(ports.to_vec()),
    );
    let rule = (from, to).prop_map(|(from, (to, port))| {
        format!("[[allow]]\nfrom = [\"{from}\"]\nto = [\"{to}{port}\"]\n")
    });
    prop::collection::vec(rule, 0..4)
        .prop_map(|rules| format!("language = 1\ndefault = \"deny\"\n{}", rules.concat()))
}

fn all_asked() -> impl Strategy<Value = Asked> {
    let port = prop::sample::select(vec![1, 53, 80, 5432, 5433, 65_535]);
    prop_oneof![
        port.clone()
            .prop_map(|port| Asked::Port(Protocol::Tcp, port)),
        port.prop_map(|port| Asked::Port(Protocol::Udp, port)),
        Just(Asked::Icmp),
        Just(Asked::Other),
    ]
}

/// A packet between two of the addresses: mostly one of a flow, sometimes damaged.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    let address = || prop::sample::select(vec![NODE_1, WEB, NODE_2, DB, NODE_3]);
    let port = || prop::sample::select(vec![53_u16, 80, 5432, 40_000, GOSSIP]);
    let flags = prop::sample::select(vec![SYN, SYN_ACK, ACK, RST]);
    let damage = prop::collection::vec((0_usize..60, any::<u8>()), 0..2);
    let ends = (address(), port(), address(), port());
    (ends, 0_u8..4, flags, damage).prop_map(|((from, a, to, b), kind, flags, damage)| {
        let asked = tcp((to, b), (from, a), flags);
        let mut packet = match kind {
            0 => tcp((from, a), (to, b), flags),
            1 => udp((from, a), (to, b)),
            2 => icmp(from, to, flags & 8, &[]),
            _ => icmp(from, to, 3, &asked),
        };
        for (at, byte) in damage {
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
        }
        packet
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_fresh_packet_passes_if_the_interpreter_allows_it(
        text in policies(),
        from in 0_usize..5,
        to in 0_usize..5,
        asked in all_asked(),
    ) {
        let subjects = subjects();
        let policy = Policy::parse(&text).expect("a policy");
        let (source, destination) = (&subjects[from], &subjects[to]);
        if source.node == destination.node {
            return Ok(());
        }
        let allowed = interpret(Some(&policy), source, destination, asked);
        let node = octets(destination.addresses[0])[2];
        let packet = fresh(source.addresses[0], destination.addresses[0], asked);
        let receives = Checked::new(node, &text).receives(&packet);
        prop_assert_eq!(receives, allowed == crate::policy::Verdict::Allow, "{}", text);
    }

    #[test]
    fn the_memo_changes_no_verdict(text in policies(), packets in prop::collection::vec(packets(), 1..20), outgoing: bool) {
        let with = Checked::new(1, &text);
        let without = Checked { now: with.now, ..Checked::new(1, &text) };
        let mut memo = Memo::default();
        for packet in &packets {
            let Some(ip) = Ip::parse(packet) else { continue };
            let direction = if outgoing { Direction::Outgoing } else { Direction::Incoming };
            let checked = (packet.as_slice(), &ip);
            let verdict = with.guard.check(direction, checked, &with.node, &mut memo, with.now);
            let expected = without.passes(direction, packet);
            prop_assert_eq!(verdict == Verdict::Pass, expected, "{:?}", packet);
        }
    }

    #[test]
    fn any_bytes_are_decided_about(
        mut bytes in prop::collection::vec(any::<u8>(), 0..120),
        first in prop::sample::select(vec![0x45_u8, 0x46, 0x4f, 0x60]),
        protocol in prop::sample::select(vec![ICMP, ICMP6, UDP, TCP, 0, 44]),
    ) {
        let length = bytes.len();
        if let Some(byte) = bytes.first_mut() { *byte = first; }
        if let Some(byte) = bytes.get_mut(3) { *byte = length as u8; }
        if let Some(byte) = bytes.get_mut(if first == 0x60 { 6 } else { 9 }) { *byte = protocol; }
        let closed = Checked {
            guard: Guard::new(Arc::new(Table::closed())),
            ..Checked::new(1, WEB_TO_DB)
        };
        if Ip::parse(&bytes).is_some() {
            prop_assert!(!closed.sends(&bytes) && !closed.receives(&bytes));
        }
    }
}
