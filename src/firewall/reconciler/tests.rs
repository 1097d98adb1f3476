use std::net::Ipv4Addr;
use std::time::Instant;

use ipnet::Ipv4Net;
use tokio::sync::Notify;

use super::*;
use crate::firewall::ports::Port;
use crate::firewall::ruleset::TABLE;
use crate::firewall::{LocalPolicy, Mapped, Native, StateV6};
use crate::model::Protocol;
use crate::policy::Asked;

/// The state of a kernel in memory, which a test can inspect and change.
#[derive(Debug, Default)]
struct FakeState {
    tables: BTreeMap<String, String>,
    rules: Vec<String>,
    rules_v6: Vec<String>,
    ports: Ports,
    forwards: bool,
    forwards_v6: bool,
    translates_v4_alone: bool,
    bridges_v4_alone: bool,
    deleted: usize,
    is_untracked: bool,
    route: Option<(String, Ipv4Net, Ipv4Addr)>,
    refuses: Option<KernelError>,
    written: usize,
    /// The number of transactions.
    generation: u32,
    /// How many more of meshd's writes another program follows at once by a removal of all tables.
    removals: usize,
}

impl FakeState {
    fn rules_of(&mut self, program: &str) -> &mut Vec<String> {
        match program {
            IP6TABLES => &mut self.rules_v6,
            _ => &mut self.rules,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct FakeKernel {
    memory: Arc<Mutex<FakeState>>,
    notify: Arc<Notify>,
}

impl FakeKernel {
    fn with<T>(&self, act: impl FnOnce(&mut FakeState) -> T) -> T {
        act(&mut self.memory.lock().expect("no test panics with it held"))
    }

    fn shown(&self) -> String {
        self.with(|m| {
            let rules = (&m.rules, &m.rules_v6);
            format!("{:?} {rules:?} {:?} {}", m.tables, m.ports, m.forwards)
        })
    }
}

impl Kernel for FakeKernel {
    async fn nft(&mut self, script: &str) -> Result<(), KernelError> {
        self.with(|m| {
            if let Some(refused) = m.refuses.clone() {
                return Err(refused);
            }
            if m.translates_v4_alone && script.contains("table ip6") && script.contains("type nat")
            {
                return Err(KernelError::Failed("nft", "No such file".into()));
            }
            if m.bridges_v4_alone && script.contains("table bridge") && script.contains("ip6") {
                return Err(KernelError::Failed("nft", "No such file".into()));
            }
            m.written += 1;
            m.generation += 1;
            let family = script.split_whitespace().nth(2).expect("add table FAMILY");
            let body = script.lines().skip(2).collect::<Vec<_>>().join("\n");
            m.tables.remove(family);
            if !body.is_empty() {
                m.tables.insert(family.to_owned(), body);
            }
            if m.removals > 0 {
                m.removals -= 1;
                m.generation += 1;
                m.tables.clear();
            }
            Ok(())
        })
    }

    async fn table(&mut self, family: &str, name: &str) -> Result<Option<String>, KernelError> {
        Ok(self.with(|m| {
            let key = if name == TABLE { family } else { name };
            m.tables.get(key).cloned()
        }))
    }

    fn generation(&mut self) -> Option<u32> {
        Some(self.with(|m| m.generation))
    }

    async fn filter(&mut self, program: &'static str) -> Result<String, KernelError> {
        let listing = self.with(|m| m.rules_of(program).join("\n"));
        if listing == NO_TABLE {
            return Err(KernelError::Failed(program, listing));
        }
        Ok(listing)
    }

    async fn iptables(
        &mut self,
        program: &'static str,
        call: &[String],
    ) -> Result<(), KernelError> {
        self.with(|m| {
            let rules = m.rules_of(program);
            match call.first().map(String::as_str) {
                Some("-N") => rules.push(call.join(" ")),
                Some("-I") => rules.insert(1, format!("-A {} {}", call[1], call[3..].join(" "))),
                _ => {
                    let rule = format!("-A DOCKER-USER {}", call[2..].join(" "));
                    rules.retain(|r| *r != rule);
                }
            }
        });
        Ok(())
    }

    async fn ports(&mut self, _: &FirewallState) -> Result<Ports, KernelError> {
        Ok(self.with(|m| {
            let mut ports = m.ports.clone();
            if !m.forwards {
                ports.not_forwarding.push("docker0".into());
            }
            ports
        }))
    }

    async fn set_hairpin(&mut self, index: u32, on: bool) -> Result<(), KernelError> {
        self.with(|m| {
            for port in m.ports.found.values_mut().filter(|p| p.index == index) {
                port.hairpin = on;
            }
        });
        Ok(())
    }

    fn forwards(&mut self) -> Result<bool, KernelError> {
        Ok(self.with(|m| m.forwards))
    }

    fn set_forwards(&mut self, on: bool) -> Result<(), KernelError> {
        self.with(|m| m.forwards = on);
        Ok(())
    }

    fn forwards_v6(&mut self) -> Result<bool, KernelError> {
        Ok(self.with(|m| m.forwards_v6))
    }

    async fn add_route(&mut self, native: &Native, node: Ipv4Addr) -> Result<(), KernelError> {
        self.with(|m| m.route = Some((native.bridge.clone(), native.range, node)));
        Ok(())
    }

    async fn remove_route(&mut self, _: &Native) -> Result<(), KernelError> {
        self.with(|m| m.route = None);
        Ok(())
    }

    async fn delete_connections(&mut self, _: StaleConnections) -> Result<usize, KernelError> {
        self.with(|m| {
            if m.is_untracked {
                let why = "Protocol not supported".into();
                return Err(KernelError::Failed("connection tracking", why));
            }
            m.deleted += 1;
            Ok(1)
        })
    }

    async fn changed(&mut self) {
        self.notify.notified().await;
    }

    fn notifications_error(&self) -> Option<String> {
        None
    }
}

fn state() -> FirewallState {
    let mapped = Mapped {
        container: "172.17.0.2".parse().expect("a literal"),
        pid: Some(77),
        name: "db-1".into(),
        ports: None,
    };
    FirewallState {
        interface: "mesh0".into(),
        prefix: "10.210.0.0/16".parse().expect("a literal"),
        block: "10.210.1.0/24".parse().expect("a literal"),
        node: "10.210.1.1".parse().expect("a literal"),
        bridges: BTreeMap::from([(
            "docker0".into(),
            vec!["172.17.0.0/16".parse().expect("a literal")],
        )]),
        mappings: BTreeMap::from([("10.210.1.2".parse().expect("a literal"), mapped)]),
        service_addresses: BTreeMap::new(),
        native: None,
        outside: crate::firewall::Outside::default(),
        policy: None,
        guests: std::collections::BTreeSet::new(),
        v6: None,
    }
}

/// The same, with an IPv6 address of the container.
fn dual() -> FirewallState {
    let mapped = Mapped {
        container: "fd00:17::2".parse().expect("a literal"),
        pid: Some(77),
        name: "db-1".into(),
        ports: None,
    };
    FirewallState {
        v6: Some(StateV6 {
            prefix: "fd00:1:2::/48".parse().expect("a literal"),
            block: "fd00:1:2:1::/64".parse().expect("a literal"),
            node: "fd00:1:2:1::1".parse().expect("a literal"),
            networks: BTreeMap::from([(
                "docker0".into(),
                vec!["fd00:17::/64".parse().expect("a literal")],
            )]),
            mappings: BTreeMap::from([("fd00:1:2:1::2".parse().expect("a literal"), mapped)]),
            guests: std::collections::BTreeSet::new(),
        }),
        ..state()
    }
}

fn docker() -> FakeKernel {
    let kernel = FakeKernel::default();
    kernel.with(|m| {
        m.rules = vec![
            "-N DOCKER-USER".into(),
            "-A FORWARD -j DOCKER-USER".into(),
            "-A DOCKER-USER -j RETURN".into(),
        ];
        m.rules_v6.clone_from(&m.rules);
        m.forwards_v6 = true;
        m.ports.found.insert(
            "172.17.0.2".parse().expect("a literal"),
            Port {
                index: 9,
                name: "veth9".into(),
                hairpin: false,
                others: vec![],
            },
        );
    });
    kernel
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "timed out waiting until {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn all_changes_are_listed_and_removed_when_the_firewall_stops() {
    let kernel = docker();
    let before = kernel.shown();
    let firewall = Firewall::on(kernel.clone());
    assert_eq!(
        kernel.shown(),
        before,
        "nothing changes before a state is set"
    );
    firewall.set(dual());
    firewall.wait_until_applied().await;
    assert!(firewall.is_active() && firewall.is_active_v6());
    assert_eq!(firewall.problems(), []);
    let shown: Vec<String> = firewall
        .entries()
        .iter()
        .map(|e| format!("{} {}", e.kind, e.what))
        .collect();
    assert_eq!(
        shown,
        [
            "rule nftables table bridge meshd",
            "rule nftables table ip meshd",
            "rule nftables table ip6 meshd",
            "rule ip6tables DOCKER-USER -m conntrack --ctstate DNAT --ctorigdst fd00:1:2::/48 -m comment --comment meshd -j ACCEPT",
            "rule iptables DOCKER-USER -m conntrack --ctstate DNAT --ctorigdst 10.210.0.0/16 -m comment --comment meshd -j ACCEPT",
            "link veth9 hairpin on",
            "sysctl net.ipv4.ip_forward = 1 (was 0)",
        ]
    );
    firewall.stop().await;
    assert_eq!(kernel.shown(), before);
}

#[tokio::test]
async fn rules_that_others_remove_are_restored_and_own_changes_cause_no_write() {
    let kernel = docker();
    let firewall = Firewall::on(kernel.clone());
    firewall.set(state());
    firewall.wait_until_applied().await;
    let wanted = kernel.shown();
    let written = kernel.with(|m| m.written);
    kernel.notify.notify_one();
    sleep(BURST_DELAY * 3).await;
    assert_eq!(kernel.with(|m| m.written), written);

    kernel.with(|m| {
        m.tables.clear();
        m.rules.retain(|r| !r.contains("meshd"));
        m.ports.found.values_mut().for_each(|p| p.hairpin = false);
    });
    kernel.notify.notify_one();
    until("all is back", || kernel.shown() == wanted).await;
}

#[tokio::test]
async fn what_the_rules_noted_is_no_change_and_is_read_on_request_and_before_a_table_is_replaced() {
    let denying = FirewallState {
        policy: Some(LocalPolicy::default()),
        ..state()
    };
    let denied = |count| LocalDenial {
        from: "10.210.1.2".parse().expect("a literal"),
        to: "10.210.1.1".parse().expect("a literal"),
        asked: Asked::Port(Protocol::Tcp, 22),
        count,
        age: Duration::from_secs(60),
    };
    let kernel = docker();
    let in_table = |from: &str, to: &str| {
        kernel.with(|m| {
            let table = m.tables.get_mut("ip").expect("it is written");
            assert!(table.contains(from), "{table}");
            *table = table.replace(from, to);
        });
    };
    let firewall = Firewall::on(kernel.clone());
    firewall.set(denying.clone());
    firewall.wait_until_applied().await;
    let written = kernel.with(|m| m.written);
    let set = "\tset denied_ports {\n";
    let element = "172.17.0.2 . 10.210.1.1 . tcp . 22 counter packets 3 bytes 180 expires 59m";
    in_table(set, &format!("{set}\t\telements = {{ {element} }}\n"));
    firewall.read_denials().await.expect("the task runs");
    assert_eq!(firewall.take_denials(), [denied(3)]);
    assert_eq!(firewall.take_denials(), []);
    kernel.notify.notify_one();
    sleep(BURST_DELAY * 3).await;
    assert_eq!(kernel.with(|m| m.written), written);
    assert_eq!(firewall.take_denials(), []);

    // The address belonged to the former container until the table was replaced.
    in_table("packets 3", "packets 5");
    let mut next = denying;
    for mapped in next.mappings.values_mut() {
        mapped.container = "172.17.0.3".parse().expect("a literal");
    }
    firewall.set(next);
    firewall.wait_until_applied().await;
    assert_eq!(firewall.take_denials(), [denied(2)]);
    firewall.read_denials().await.expect("the task runs");
    assert_eq!(firewall.take_denials(), []);
}

#[test]
fn requests_for_what_the_rules_noted_cause_few_comparisons() {
    let start = Instant::now();
    let rest = Work::<FakeKernel>::read_rest;
    assert_eq!(rest(None, start), Duration::ZERO);
    assert_eq!(rest(Some(start), start), READ_INTERVAL);
    let half = READ_INTERVAL / 2;
    assert_eq!(rest(Some(start), start + half), READ_INTERVAL - half);
    assert_eq!(rest(Some(start), start + READ_INTERVAL * 2), Duration::ZERO);
}

#[tokio::test]
async fn what_another_program_makes_of_a_table_before_it_is_listed_is_not_taken_for_what_is_wanted()
{
    let kernel = docker();
    let firewall = Firewall::on(kernel.clone());
    kernel.with(|m| m.removals = 1);
    firewall.set(state());
    firewall.wait_until_applied().await;
    let wanted = kernel.shown();
    assert!(kernel.with(|m| m.tables.contains_key("ip")));

    // It goes on for longer than meshd repeats its write. The next comparison writes the table again.
    kernel.with(|m| {
        m.tables.clear();
        m.removals = MAX_WRITES;
    });
    kernel.notify.notify_one();
    until("the writes are followed by removals", || {
        kernel.with(|m| m.removals == 0)
    })
    .await;
    kernel.notify.notify_one();
    until("all is back", || kernel.shown() == wanted).await;
}

#[tokio::test]
async fn the_connections_of_a_replaced_container_are_deleted() {
    let kernel = docker();
    let firewall = Firewall::on(kernel.clone());
    firewall.set(state());
    firewall.wait_until_applied().await;
    firewall.set(state());
    firewall.wait_until_applied().await;
    assert_eq!(kernel.with(|m| m.deleted), 0);
    let mut next = state();
    for mapped in next.mappings.values_mut() {
        mapped.pid = Some(78);
    }
    firewall.set(next);
    firewall.wait_until_applied().await;
    assert_eq!(kernel.with(|m| m.deleted), 1);
}

#[tokio::test]
async fn containers_are_not_reached_by_ipv6_while_the_machine_does_not_forward_it() {
    let kernel = docker();
    kernel.with(|m| m.forwards_v6 = false);
    let firewall = Firewall::on(kernel.clone());
    firewall.set(dual());
    firewall.wait_until_applied().await;
    assert!(firewall.is_active() && !firewall.is_active_v6());
    let problems = firewall.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].fix.contains("net.ipv6.conf.all.forwarding=1"));
    // It is not switched on by meshd, because the machine may lose its own addresses then.
    assert!(!kernel.with(|m| m.forwards_v6));
    kernel.with(|m| m.forwards_v6 = true);
    firewall.request_check();
    until("they are reached", || firewall.is_active_v6()).await;
    assert_eq!(firewall.problems(), []);
}

#[tokio::test]
async fn a_kernel_without_the_tables_of_ip6tables_has_no_rules_that_drop() {
    let kernel = docker();
    kernel.with(|m| m.rules_v6 = vec![NO_TABLE.into()]);
    let firewall = Firewall::on(kernel.clone());
    firewall.set(dual());
    firewall.wait_until_applied().await;
    assert!(firewall.is_active() && firewall.is_active_v6());
    assert_eq!(firewall.problems(), []);
    // Docker always has rules of IPv4.
    let kernel = docker();
    kernel.with(|m| m.rules = vec![NO_TABLE.into()]);
    let firewall = Firewall::on(kernel);
    firewall.set(dual());
    firewall.wait_until_applied().await;
    assert!(!firewall.is_active());
}

#[tokio::test]
async fn a_kernel_that_cannot_translate_ipv6_keeps_the_guard_and_its_containers_have_ipv4() {
    let kernel = docker();
    kernel.with(|m| m.translates_v4_alone = true);
    let firewall = Firewall::on(kernel.clone());
    firewall.set(dual());
    firewall.wait_until_applied().await;
    assert!(firewall.is_active() && !firewall.is_active_v6());
    let problems = firewall.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(
        problems[0].what,
        "containers have no IPv6 addresses in the mesh"
    );
    let guard = kernel.with(|m| m.tables.get("ip6").cloned().unwrap_or_default());
    assert!(guard.contains("ip6 saddr fd00:1:2::/48 drop") && !guard.contains("dnat"));
    kernel.with(|m| m.translates_v4_alone = false);
    firewall.request_check();
    until("it is translated", || firewall.is_active_v6()).await;
    assert_eq!(firewall.problems(), []);
}

#[tokio::test]
async fn the_guard_of_ipv4_between_containers_stays_where_the_kernel_has_no_rules_of_ipv6_for_bridges()
 {
    let kernel = docker();
    kernel.with(|m| {
        let port = m.ports.found.values().next().cloned().expect("a port");
        let v6 = "fd00:17::2".parse().expect("a literal");
        m.ports.found.insert(v6, port);
        m.bridges_v4_alone = true;
    });
    let firewall = Firewall::on(kernel.clone());
    firewall.set(dual());
    firewall.wait_until_applied().await;
    let guard = kernel.with(|m| m.tables.get("bridge").cloned().unwrap_or_default());
    assert!(guard.contains("\"veth9\" . 172.17.0.2"), "{guard}");
    let problems = firewall.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].what.contains("each other's addresses"));
}

#[tokio::test]
async fn without_containers_that_have_ipv6_there_is_no_rule_of_it_in_the_engines_chain() {
    let kernel = docker();
    kernel.with(|m| m.forwards_v6 = false);
    let firewall = Firewall::on(kernel.clone());
    firewall.set(dual());
    firewall.wait_until_applied().await;
    let mut next = dual();
    if let Some(v6) = &mut next.v6 {
        v6.mappings.clear();
    }
    firewall.set(next);
    firewall.wait_until_applied().await;
    assert!(firewall.is_active() && !firewall.is_active_v6());
    assert_eq!(firewall.problems(), [], "nobody needs IPv6 to be forwarded");
    let rules = kernel.with(|m| m.rules_v6.clone());
    assert!(
        !rules.iter().any(|rule| rule.contains("meshd")),
        "{rules:?}"
    );
    assert!(
        kernel.with(|m| m.tables.contains_key("ip6")),
        "the guard stays"
    );
}

#[tokio::test]
async fn each_problem_has_its_remedy() {
    let what = async |kernel: FakeKernel| {
        let firewall = Firewall::on(kernel);
        firewall.set(state());
        firewall.wait_until_applied().await;
        let problems = firewall.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        (firewall.is_active(), problems[0].clone())
    };
    let kernel = docker();
    kernel.with(|m| m.refuses = Some(KernelError::NotInstalled("nft")));
    let (active, problem) = what(kernel).await;
    assert!(
        !active && problem.fix.contains("apt install nftables"),
        "{problem:?}"
    );

    let kernel = docker();
    kernel.with(|m| m.refuses = Some(KernelError::NotPermitted("nft")));
    assert!(what(kernel).await.1.fix.contains("CAP_NET_ADMIN"));

    let kernel = docker();
    kernel.with(|m| m.tables.insert("docker-bridges".into(), "drop".into()));
    let (_, problem) = what(kernel.clone()).await;
    assert!(
        problem
            .fix
            .contains("\"bridge-accept-fwmark\": \"0x02000000/0x02000000\"")
    );
    assert!(kernel.with(|m| {
        m.tables
            .get("ip")
            .is_none_or(|t| t.contains("meta mark set"))
    }));

    let kernel = docker();
    kernel.with(|m| m.ports.absent = vec!["docker0".into()]);
    assert!(what(kernel).await.1.why.contains("without root"));
}

#[tokio::test]
async fn rules_for_networks_that_a_killed_meshd_left_are_removed_if_they_are_not_wanted() {
    let kernel = docker();
    let rule = |network: &str| {
        format!(
            "-A DOCKER-USER -m conntrack --ctorigsrc 10.210.0.0/16 --ctorigdst {network} -m comment --comment meshd-route -j ACCEPT"
        )
    };
    let (kept, left) = (rule("192.168.1.0/24"), rule("192.168.2.0/24"));
    kernel.with(|m| m.rules.extend([kept.clone(), left.clone()]));
    let mut wanted = state();
    wanted.outside.routes = vec!["192.168.1.0/24".parse().expect("a literal")];
    let firewall = Firewall::on(kernel.clone());
    firewall.set(wanted);
    firewall.wait_until_applied().await;
    kernel.with(|m| assert!(m.rules.contains(&kept) && !m.rules.contains(&left)));
    firewall.stop().await;
    // The same if no network is wanted at all.
    kernel.with(|m| m.rules.push(left.clone()));
    let firewall = Firewall::on(kernel.clone());
    firewall.set(state());
    firewall.wait_until_applied().await;
    kernel.with(|m| assert!(!m.rules.contains(&left) && !m.rules.contains(&kept)));
}

#[tokio::test]
async fn a_node_without_an_engine_routes_on_a_kernel_without_the_tables_of_iptables() {
    let kernel = FakeKernel::default();
    kernel.with(|m| m.rules = vec![NO_TABLE.into()]);
    let mut wanted = state();
    wanted.bridges.clear();
    wanted.mappings.clear();
    wanted.outside.routes = vec!["192.168.1.0/24".parse().expect("a literal")];
    let firewall = Firewall::on(kernel.clone());
    firewall.set(wanted);
    firewall.wait_until_applied().await;
    assert!(firewall.is_active());
    assert_eq!(firewall.problems(), []);
    assert!(kernel.with(|m| m.forwards));
}

#[tokio::test]
async fn connections_that_could_not_be_deleted_are_a_problem_until_they_are_deleted() {
    let kernel = docker();
    let firewall = Firewall::on(kernel.clone());
    firewall.set(state());
    firewall.wait_until_applied().await;
    kernel.with(|m| m.is_untracked = true);
    let mut without = state();
    without.mappings.clear();
    firewall.set(without);
    firewall.wait_until_applied().await;
    let is_problem = || {
        let problems = firewall.problems();
        let mut texts = problems.iter().map(|problem| problem.what.as_str());
        texts.any(|what| what.contains("connections to removed containers"))
    };
    assert!(is_problem());
    let mut compared = firewall.changes();
    compared.mark_unchanged();
    firewall.request_check();
    compared.changed().await.expect("the firewall runs");
    assert!(is_problem());
    kernel.with(|m| m.is_untracked = false);
    firewall.request_check();
    until("they are deleted", || !is_problem()).await;
    assert_eq!(kernel.with(|m| m.deleted), 1);
}

#[tokio::test]
async fn forwarding_stays_on_for_an_engine_that_was_started_after_it_was_turned_on() {
    let mut alone = state();
    alone.bridges.clear();
    for (later, stays) in [(state(), true), (alone.clone(), false)] {
        let kernel = docker();
        let firewall = Firewall::on(kernel.clone());
        firewall.set(alone.clone());
        firewall.wait_until_applied().await;
        assert!(kernel.with(|m| m.forwards));
        firewall.set(later);
        firewall.wait_until_applied().await;
        firewall.stop().await;
        assert_eq!(kernel.with(|m| m.forwards), stays);
    }
}

#[tokio::test]
async fn the_chain_that_docker_lost_is_made_again() {
    let kernel = docker();
    kernel.with(|m| m.rules = vec!["-N DOCKER".into()]);
    let firewall = Firewall::on(kernel.clone());
    firewall.set(state());
    firewall.wait_until_applied().await;
    assert!(firewall.is_active() && firewall.problems().is_empty());
    let rules = kernel.with(|m| m.rules.clone());
    let has = |start: &str| rules.iter().any(|rule| rule.starts_with(start));
    assert!(has("-N DOCKER-USER") && has("-A FORWARD -j DOCKER-USER"));
    assert!(has("-A DOCKER-USER -m conntrack"), "{rules:?}");
}

#[tokio::test]
async fn the_route_to_containers_with_mesh_addresses_is_added_and_removed() {
    let kernel = docker();
    let firewall = Firewall::on(kernel.clone());
    let range: Ipv4Net = "10.210.1.0/25".parse().expect("a literal");
    let mut native = state();
    native.native = Some(Native {
        bridge: "br-mesh".into(),
        range,
    });
    firewall.set(native.clone());
    firewall.wait_until_applied().await;
    let route = || kernel.with(|m| m.route.clone());
    assert_eq!(route(), Some(("br-mesh".into(), range, native.node)));
    let has_state = || kernel.with(|m| m.rules.iter().any(|r| r.contains("--ctstate")));
    assert!(!has_state());
    let entries = firewall.entries();
    let shown: Vec<&str> = entries.iter().map(|e| e.what.as_str()).collect();
    assert!(
        shown.contains(&"10.210.1.0/25 dev br-mesh src 10.210.1.1"),
        "{shown:?}"
    );
    firewall.set(state());
    firewall.wait_until_applied().await;
    assert_eq!(route(), None);
    assert!(has_state());
    firewall.set(native);
    firewall.wait_until_applied().await;
    firewall.stop().await;
    assert_eq!(route(), None);
}

#[tokio::test]
async fn forwarding_that_others_switch_off_again_and_again_is_restored_more_slowly_and_is_one_problem()
 {
    let kernel = docker();
    let firewall = Firewall::on(kernel.clone());
    firewall.set(state());
    firewall.wait_until_applied().await;
    let switch_off = async || {
        kernel.with(|m| m.forwards = false);
        firewall.request_check();
        until("it forwards again", || kernel.with(|m| m.forwards)).await;
    };
    for _ in 0..5 {
        switch_off().await;
    }
    assert!(!firewall.is_contested());
    switch_off().await;
    until("the state is contested", || firewall.is_contested()).await;
    let begun = Instant::now();
    switch_off().await;
    assert!(begun.elapsed() >= Duration::from_millis(900));
    let problems = firewall.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].what.contains("again and again"), "{problems:?}");
}
