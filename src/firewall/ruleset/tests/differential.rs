//! The rules of a host, as the kernel has them, against the table that they come from and against the plain reading of the policy.
//! `MESHD_POLICY_CASES=5000000` sets the number of verdicts that are compared with the sets in the kernel, and
//! `MESHD_POLICY_PACKETS=1000000` the number of packets that are sent.

mod network;

use std::cell::Cell;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::process::Stdio;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::Value;

use self::network::{Network, Packet};
use super::*;
use crate::model::Label;
use crate::policy::tests::worlds::{asked_for, everything_asked, mesh, policy, run_until};
use crate::policy::{Policy, Subject, Table, Verdict, interpret};
use crate::testbed::{Host, World};

/// The verdicts that are compared, and about how many of them are about one host.
const CASES: u64 = 200_000;
const CASES_OF_HOST: u64 = 6_000;
/// The packets that are sent, and about how many of them are sent on one host.
const PACKETS: u64 = 20_000;
const PACKETS_OF_HOST: u64 = 250;
/// The containers between which packets are sent.
const CONTAINERS: usize = 4;
/// The step between two of the ports that are asked for beside those that rules name.
const STEP: usize = 1_021;

/// The mesh address of end `n` of a host, and the address that its packets have there. End 0 is the node, and all others are containers.
/// If `has_natives`, every second container has a mesh address of its own.
fn place(n: usize, has_natives: bool) -> (Ipv4Addr, Ipv4Addr) {
    let last = u8::try_from(n + 1).expect("few containers");
    let (instance, native) = (
        Ipv4Addr::new(10, 210, 1, last),
        Ipv4Addr::new(10, 210, 1, 128 + last),
    );
    match n {
        0 => (instance, instance),
        n if has_natives && n % 2 == 1 => (native, native),
        _ => (instance, Ipv4Addr::new(172, 17, 0, last)),
    }
}

/// The same for IPv6, in which no container has a mesh address of its own.
fn place_v6(n: usize) -> (Ipv6Addr, Ipv6Addr) {
    let last = u16::try_from(n + 1).expect("few containers");
    let instance = Ipv6Addr::new(0xfd00, 1, 2, 1, 0, 0, 0, last);
    match n {
        0 => (instance, instance),
        _ => (instance, Ipv6Addr::new(0xfd00, 0x17, 0, 0, 0, 0, 0, last)),
    }
}

/// A host with a policy and with all its ends.
struct OneHost {
    policy: Option<Policy>,
    subjects: Vec<Subject>,
    places: Vec<(Ipv4Addr, Ipv4Addr)>,
    table: Table,
    state: FirewallState,
}

impl OneHost {
    /// The first one of `subjects` becomes the node, and the others become its containers.
    fn new(text: Option<&str>, subjects: Vec<Subject>, has_natives: bool) -> Self {
        let policy = text.map(|text| Policy::parse(text).expect("a policy"));
        let places: Vec<_> = (0..subjects.len()).map(|n| place(n, has_natives)).collect();
        let node = Label::parse("n1").expect("a literal");
        let subjects = subjects.into_iter().zip(&places).enumerate();
        let subjects = subjects.map(|(n, (subject, (address, _)))| Subject {
            addresses: vec![(*address).into(), place_v6(n).0.into()],
            node: node.clone(),
            is_node: n == 0,
            network: None,
            ..subject
        });
        let subjects: Vec<Subject> = subjects.collect();
        let table = Table::compile(policy.as_ref(), &subjects);
        let addresses = subjects.iter().flat_map(|subject| &subject.addresses);
        let addresses: BTreeSet<IpAddr> = addresses.copied().collect();
        let mappings = places.iter().skip(1).map(|(instance, container)| {
            let mapped = Mapped {
                container: *container,
                pid: None,
                name: "c".into(),
                // The policy alone decides.
                ports: None,
            };
            (*instance, mapped)
        });
        let translated = (1..places.len()).filter(|n| places[*n].0 != places[*n].1);
        let mappings_v6 = translated.map(|n| {
            let (instance, container) = place_v6(n);
            let mapped = Mapped {
                container,
                pid: None,
                name: "c".into(),
                ports: None,
            };
            (instance, mapped)
        });
        let v6 = StateV6 {
            mappings: mappings_v6.collect(),
            ..without_containers_v6()
        };
        let native = has_natives.then(|| Native {
            bridge: "br-mesh".into(),
            range: net("10.210.1.128/25"),
        });
        let state = FirewallState {
            bridges: BTreeMap::from([("docker0".into(), vec![net("172.17.0.0/16")])]),
            mappings: mappings.collect(),
            native,
            outside: Outside::default(),
            policy: LocalPolicy::of(&table, &addresses),
            v6: Some(v6),
            ..without_containers()
        };
        Self {
            policy,
            subjects,
            places,
            table,
            state,
        }
    }

    /// The rules of all families.
    fn script(&self) -> String {
        let valid = ValidState::of(&self.state);
        assert_eq!(valid.left_out, Vec::<String>::new());
        let bridges = guard_bridges(&self.state, &BTreeMap::new(), valid.local());
        valid.table(&self.state, false) + &table_v6(&self.state) + &bridges
    }

    /// All pairs of two ends. An end may ask itself for everything, whatever the policy says.
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let ends = self.subjects.len();
        let pairs = (0..ends).flat_map(move |from| (0..ends).map(move |to| (from, to)));
        pairs.filter(|(from, to)| from != to)
    }

    fn is_native(&self, n: usize) -> bool {
        let (instance, container) = self.places[n];
        n > 0 && instance == container
    }

    /// The verdict of the plain reading, which that of the table has to equal.
    fn allows(&self, from: usize, to: usize, asked: Asked) -> Result<bool, TestCaseError> {
        let [source, destination] = [from, to].map(|n| &self.subjects[n]);
        let plain = interpret(self.policy.as_ref(), source, destination, asked) == Verdict::Allow;
        let [from, to] = [source, destination].map(|s| self.table.class(s.addresses[0]));
        let compiled = self.table.allows(from, to, asked);
        prop_assert_eq!(
            compiled,
            plain,
            "the table: {} from {} to {}",
            asked,
            source,
            destination
        );
        Ok(plain)
    }

    fn shown(&self, from: usize, to: usize, asked: Asked) -> String {
        let text = self.policy.as_ref().map_or("no policy", Policy::text);
        let [source, destination] = [from, to].map(|n| &self.subjects[n]);
        format!("{asked} from {source} (end {from}) to {destination} (end {to}) under\n{text}")
    }
}

/// The ports of each element of a set. Elements without ports have 0.
type Elements = BTreeMap<String, Vec<RangeInclusive<u64>>>;

/// The sets in the kernel that have what the policy allows, by the family of their table and by their name.
struct KernelSets(BTreeMap<(String, String), Elements>);

impl KernelSets {
    fn of(host: &Host) -> Self {
        let mut command = host.command("nft").expect("a namespace");
        let output = command.args(["-j", "list", "ruleset"]).output();
        let output = output.expect("nft");
        assert!(output.status.success(), "{output:?}");
        let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let mut sets: BTreeMap<_, Elements> = BTreeMap::new();
        let entries = listed["nftables"].as_array().expect("a list");
        for set in entries.iter().filter_map(|entry| entry.get("set")) {
            let text = |field: &str| set[field].as_str().expect("a text").to_owned();
            let (family, name) = (text("family"), text("name"));
            let kinds = ["between_", "from_members_", "from_node_", "to_node_"];
            if !kinds.iter().any(|kind| name.starts_with(kind)) {
                continue;
            }
            let elements = sets.entry((family, name)).or_default();
            for element in set["elem"].as_array().into_iter().flatten() {
                let (ends, ports) = parsed(element);
                elements.entry(ends).or_default().push(ports);
            }
        }
        Self(sets)
    }

    fn has(&self, family: &str, set: String, element: &str, port: u16) -> bool {
        let elements = self.0.get(&(family.to_owned(), set));
        let ports = elements.expect("the set is there").get(element);
        ports.is_some_and(|ports| ports.iter().any(|range| range.contains(&u64::from(port))))
    }

    /// The verdict of the sets of one kind, in the order of the rules that refer to them.
    fn allow(&self, family: &str, kind: &str, ends: &str, asked: Asked) -> bool {
        let has = |set: &str, element: &str, port: u16| {
            self.has(family, format!("{kind}_{set}"), element, port)
        };
        has("all", ends, 0)
            || match asked {
                Asked::Port(protocol, port) => {
                    has("ports", &format!("{ends} . {}", protocol.as_str()), port)
                }
                Asked::Icmp => has("pings", ends, 0),
                Asked::Other => has("others", ends, 0),
            }
    }

    /// The verdicts of all tables that have rules about packets between two ends.
    fn verdicts(&self, host: &OneHost, from: usize, to: usize, asked: Asked) -> Vec<bool> {
        // Of one packet, the rules ask the sets of all these kinds.
        let kinds = |[source, destination]: [String; 2]| match (from, to) {
            (0, _) => vec![("from_node", destination)],
            (_, 0) => vec![("to_node", source)],
            _ => vec![
                ("between", format!("{source} . {destination}")),
                ("from_members", destination),
            ],
        };
        let is_bridged = host.is_native(to) && (from == 0 || host.is_native(from));
        let has_ipv6 = !host.is_native(from) && !host.is_native(to);
        let v4 = kinds([from, to].map(|n| host.places[n].1.to_string()));
        let v6 = kinds([from, to].map(|n| place_v6(n).1.to_string()));
        let by = |family: &str, kinds: &[(&str, String)]| {
            let mut kinds = kinds.iter();
            kinds.any(|(kind, ends)| self.allow(family, kind, ends, asked))
        };
        let mut verdicts = vec![by("ip", &v4)];
        verdicts.extend(is_bridged.then(|| by("bridge", &v4)));
        verdicts.extend(has_ipv6.then(|| by("ip6", &v6)));
        verdicts
    }
}

/// The ends in an element of a set with the protocol, in the syntax of nftables, and the ports.
fn parsed(element: &Value) -> (String, RangeInclusive<u64>) {
    let parts = match element.get("concat") {
        Some(parts) => parts.as_array().expect("a list").as_slice(),
        None => std::slice::from_ref(element),
    };
    let number = |value: &Value| value.as_u64().expect("a port");
    let (mut words, mut ports) = (Vec::new(), 0..=0);
    for part in parts {
        match (part.as_str(), part["range"].as_array().map(Vec::as_slice)) {
            (Some(word), _) => words.push(word),
            (None, Some([first, last])) => ports = number(first)..=number(last),
            (None, _) => ports = number(part)..=number(part),
        }
    }
    (words.join(" . "), ports)
}

/// Replaces the tables of a host.
fn load(host: &Host, script: &str) {
    let mut command = host.command("nft").expect("a namespace");
    command.args(["-f", "-"]).stdin(Stdio::piped());
    let mut nft = command.spawn().expect("nft");
    let mut stdin = nft.stdin.take().expect("it is piped");
    stdin.write_all(script.as_bytes()).expect("it reads");
    drop(stdin);
    assert!(nft.wait().expect("it ends").success(), "{script}");
}

fn world() -> Option<World> {
    if !nix::unistd::geteuid().is_root() {
        crate::testbed::skip_test("network namespaces need root");
        return None;
    }
    Some(World::new().expect("root may make namespaces"))
}

/// Prints what was tried, of which both verdicts have to be a fair part.
fn report(what: &str, seen: u64, passed: u64) {
    let share = passed * 100 / seen;
    println!("{seen} {what}, of which {share} % pass");
    assert!((5..=95).contains(&share), "{share} % pass");
}

#[test]
fn the_sets_in_the_kernel_have_the_verdicts_of_the_table_and_of_the_plain_reading() {
    let Some(world) = world() else { return };
    let host = world.host("host").expect("a namespace");
    let more = (0..=u16::MAX).step_by(STEP).flat_map(|port| {
        let of = |protocol| Asked::Port(protocol, port);
        [of(Protocol::Tcp), of(Protocol::Udp)]
    });
    let asked: Vec<Asked> = everything_asked().into_iter().chain(more).collect();
    let strategy = (prop::option::weighted(0.9, policy()), mesh(), any::<bool>());
    let wanted = asked_for("MESHD_POLICY_CASES", CASES);
    let (all, passed) = (Cell::new(0), Cell::new(0));
    run_until(
        wanted,
        CASES_OF_HOST,
        &strategy,
        |(text, subjects, has_natives)| {
            let one = OneHost::new(text.as_deref(), subjects, has_natives);
            load(&host, &one.script());
            let sets = KernelSets::of(&host);
            let mut seen = 0;
            for (from, to) in one.pairs() {
                for asked in &asked {
                    let allowed = one.allows(from, to, *asked)?;
                    // Without a policy there are no sets, and no rules.
                    let verdicts = match one.state.policy {
                        Some(_) => sets.verdicts(&one, from, to, *asked),
                        None => vec![sets.0.is_empty()],
                    };
                    for verdict in verdicts {
                        let shown = || one.shown(from, to, *asked);
                        prop_assert_eq!(verdict, allowed, "the kernel: {}", shown());
                    }
                    seen += 1;
                    passed.set(passed.get() + u64::from(allowed));
                }
            }
            all.set(all.get() + seen);
            Ok(seen)
        },
    );
    report("verdicts of the kernel's sets", all.get(), passed.get());
}

/// Whether packets of protocols without ports are sent from one end to the other one. Between the node and a container they are not sent the
/// other way too: the kernel drops a request whose answers it would take for packets of another connection.
fn asks_first(from: usize, to: usize) -> bool {
    let has_node = from == 0 || to == 0;
    !has_node || (from + to).is_multiple_of(2) == (from < to)
}

#[test]
fn packets_on_one_host_arrive_exactly_if_the_plain_reading_and_the_table_allow_them() {
    let Some(world) = world() else { return };
    // No program can listen on port 0.
    let asked = everything_asked().into_iter();
    let asked: Vec<Asked> = asked.filter(|a| !matches!(a, Asked::Port(_, 0))).collect();
    let network = Network::start(world, &asked);
    let strategy = (prop::option::weighted(0.9, policy()), mesh());
    let wanted = asked_for("MESHD_POLICY_PACKETS", PACKETS);
    let (all, passed) = (Cell::new(0), Cell::new(0));
    run_until(
        wanted,
        PACKETS_OF_HOST,
        &strategy,
        |(text, mut subjects)| {
            subjects.truncate(CONTAINERS + 1);
            let one = OneHost::new(text.as_deref(), subjects, false);
            load(network.host(), &one.script());
            let (mut packets, mut expected) = (Vec::new(), BTreeSet::new());
            for (from, to) in one.pairs() {
                for asked in &asked {
                    if *asked == Asked::Other && !asks_first(from, to) {
                        continue;
                    }
                    if one.allows(from, to, *asked)? {
                        expected.insert(packets.len());
                    }
                    let asked = *asked;
                    packets.push(Packet { from, to, asked });
                }
            }
            let arrived = network.exchange(&packets, &expected);
            let wrong = arrived.symmetric_difference(&expected).map(|number| {
                let Packet { from, to, asked } = packets[*number];
                let what = if arrived.contains(number) {
                    "arrived"
                } else {
                    "did not arrive"
                };
                format!("{what}: {}", one.shown(from, to, asked))
            });
            let wrong: Vec<String> = wrong.collect();
            prop_assert!(wrong.is_empty(), "{}", wrong.join("\n"));
            let seen = packets.len() as u64;
            all.set(all.get() + seen);
            passed.set(passed.get() + expected.len() as u64);
            Ok(seen)
        },
    );
    report("packets", all.get(), passed.get());
}
