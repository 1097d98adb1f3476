use std::time::Instant;

use ipnet::Ipv4Net;
use tokio::sync::Notify;

use super::*;
use crate::firewall::Mapped;
use crate::firewall::ports::Port;

/// A kernel in memory: what a test looks at, and what it does to it behind the firewall's back.
#[derive(Debug, Default)]
struct Memory {
    tables: BTreeMap<String, String>,
    rules: Vec<String>,
    ports: Ports,
    forwards: bool,
    forgotten: usize,
    led: Option<(String, Ipv4Net, Ipv4Addr)>,
    refuses: Option<Refused>,
    written: usize,
}

#[derive(Debug, Clone, Default)]
struct Twin {
    memory: Arc<Mutex<Memory>>,
    notify: Arc<Notify>,
}

impl Twin {
    fn look<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> T {
        act(&mut self.memory.lock().expect("no test panics with it held"))
    }

    fn shown(&self) -> String {
        self.look(|m| format!("{:?} {:?} {:?} {}", m.tables, m.rules, m.ports, m.forwards))
    }
}

impl Kernel for Twin {
    async fn nft(&mut self, script: &str) -> Result<(), Refused> {
        self.look(|m| {
            if let Some(refused) = m.refuses.clone() {
                return Err(refused);
            }
            m.written += 1;
            let family = script.split_whitespace().nth(2).expect("add table FAMILY");
            let body = script.lines().skip(2).collect::<Vec<_>>().join("\n");
            m.tables.remove(family);
            if !body.is_empty() {
                m.tables.insert(family.to_owned(), body);
            }
            Ok(())
        })
    }

    async fn table(&mut self, family: &str, name: &str) -> Result<Option<String>, Refused> {
        Ok(self.look(|m| {
            let key = if name == TABLE { family } else { name };
            m.tables.get(key).cloned()
        }))
    }

    async fn filter(&mut self) -> Result<String, Refused> {
        Ok(self.look(|m| m.rules.join("\n")))
    }

    async fn iptables(&mut self, call: &[String]) -> Result<(), Refused> {
        self.look(|m| match call.first().map(String::as_str) {
            Some("-I") => m
                .rules
                .insert(1, format!("-A DOCKER-USER {}", call[3..].join(" "))),
            _ => {
                let rule = format!("-A DOCKER-USER {}", call[2..].join(" "));
                m.rules.retain(|r| *r != rule);
            }
        });
        Ok(())
    }

    async fn ports(&mut self, _: &Wiring) -> Result<Ports, Refused> {
        Ok(self.look(|m| {
            let mut ports = m.ports.clone();
            if !m.forwards {
                ports.stuck.push("docker0".into());
            }
            ports
        }))
    }

    async fn set_hairpin(&mut self, index: u32, on: bool) -> Result<(), Refused> {
        self.look(|m| {
            for port in m.ports.found.values_mut().filter(|p| p.index == index) {
                port.hairpin = on;
            }
        });
        Ok(())
    }

    fn forwards(&mut self) -> Result<bool, Refused> {
        Ok(self.look(|m| m.forwards))
    }

    fn set_forwards(&mut self, on: bool) -> Result<(), Refused> {
        self.look(|m| m.forwards = on);
        Ok(())
    }

    async fn lead(&mut self, native: &Native, node: Ipv4Addr) -> Result<(), Refused> {
        self.look(|m| m.led = Some((native.bridge.clone(), native.range, node)));
        Ok(())
    }

    async fn lead_away(&mut self, _: &Native) -> Result<(), Refused> {
        self.look(|m| m.led = None);
        Ok(())
    }

    async fn forget(&mut self, _: Gone) -> Result<usize, Refused> {
        self.look(|m| m.forgotten += 1);
        Ok(1)
    }

    async fn changed(&mut self) {
        self.notify.notified().await;
    }

    fn blind(&self) -> Option<String> {
        None
    }
}

fn wiring() -> Wiring {
    let mapped = Mapped {
        container: "172.17.0.2".parse().expect("a literal"),
        pid: Some(77),
        name: "db-1".into(),
    };
    Wiring {
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
    }
}

fn docker() -> Twin {
    let twin = Twin::default();
    twin.look(|m| {
        m.rules = vec!["-N DOCKER-USER".into(), "-A DOCKER-USER -j RETURN".into()];
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
    twin
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn everything_is_listed_and_goes_when_it_stops() {
    let kernel = docker();
    let before = kernel.shown();
    let prefix = "fd00:1:2::/48".parse().ok();
    let firewall = Firewall::on(kernel.clone(), prefix);
    assert_eq!(
        kernel.shown(),
        before,
        "nothing is done before it is asked for"
    );
    firewall.set(wiring());
    firewall.settled().await;
    assert!(firewall.in_force());
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
            "rule iptables DOCKER-USER -m conntrack --ctstate DNAT --ctorigdst 10.210.0.0/16 -m comment --comment meshd -j ACCEPT",
            "link veth9 hairpin on",
            "sysctl net.ipv4.ip_forward = 1 (was 0)",
        ]
    );
    firewall.stop().await;
    assert_eq!(kernel.shown(), before);
}

#[tokio::test]
async fn what_somebody_takes_away_is_put_back_and_own_changes_are_no_reason() {
    let kernel = docker();
    let firewall = Firewall::on(kernel.clone(), None);
    firewall.set(wiring());
    firewall.settled().await;
    let wanted = kernel.shown();
    let written = kernel.look(|m| m.written);
    kernel.notify.notify_one();
    sleep(BURST * 3).await;
    assert_eq!(kernel.look(|m| m.written), written);

    kernel.look(|m| {
        m.tables.clear();
        m.rules.retain(|r| !r.contains("meshd"));
        m.ports.found.values_mut().for_each(|p| p.hairpin = false);
    });
    kernel.notify.notify_one();
    until("all is back", || kernel.shown() == wanted).await;
}

#[tokio::test]
async fn a_container_that_is_replaced_takes_its_connections_along() {
    let kernel = docker();
    let firewall = Firewall::on(kernel.clone(), None);
    firewall.set(wiring());
    firewall.settled().await;
    firewall.set(wiring());
    firewall.settled().await;
    assert_eq!(kernel.look(|m| m.forgotten), 0);
    let mut next = wiring();
    for mapped in next.mappings.values_mut() {
        mapped.pid = Some(78);
    }
    firewall.set(next);
    firewall.settled().await;
    assert_eq!(kernel.look(|m| m.forgotten), 1);
}

#[tokio::test]
async fn what_is_in_the_way_is_said_with_its_remedy() {
    let what = async |kernel: Twin| {
        let firewall = Firewall::on(kernel, None);
        firewall.set(wiring());
        firewall.settled().await;
        let problems = firewall.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        (firewall.in_force(), problems[0].clone())
    };
    let kernel = docker();
    kernel.look(|m| m.refuses = Some(Refused::NoProgram("nft")));
    let (in_force, problem) = what(kernel).await;
    assert!(
        !in_force && problem.fix.contains("apt install nftables"),
        "{problem:?}"
    );

    let kernel = docker();
    kernel.look(|m| m.refuses = Some(Refused::NoRights("nft")));
    assert!(what(kernel).await.1.fix.contains("CAP_NET_ADMIN"));

    let kernel = docker();
    kernel.look(|m| m.rules = vec!["-N DOCKER".into()]);
    let (in_force, problem) = what(kernel).await;
    assert!(
        !in_force && problem.fix.contains("restart Docker"),
        "{problem:?}"
    );

    let kernel = docker();
    kernel.look(|m| m.tables.insert("docker-bridges".into(), "drop".into()));
    let (_, problem) = what(kernel.clone()).await;
    assert!(
        problem
            .fix
            .contains("\"bridge-accept-fwmark\": \"0x02000000/0x02000000\"")
    );
    assert!(kernel.look(|m| {
        m.tables
            .get("ip")
            .is_none_or(|t| t.contains("meta mark set"))
    }));

    let kernel = docker();
    kernel.look(|m| m.ports.absent = vec!["docker0".into()]);
    assert!(what(kernel).await.1.why.contains("without root"));
}

#[tokio::test]
async fn the_way_to_containers_with_mesh_addresses_comes_and_goes() {
    let kernel = docker();
    let firewall = Firewall::on(kernel.clone(), None);
    let range: Ipv4Net = "10.210.1.0/25".parse().expect("a literal");
    let mut native = wiring();
    native.native = Some(Native {
        bridge: "br-mesh".into(),
        range,
    });
    firewall.set(native.clone());
    firewall.settled().await;
    let led = || kernel.look(|m| m.led.clone());
    assert_eq!(led(), Some(("br-mesh".into(), range, native.node)));
    let has_state = || kernel.look(|m| m.rules.iter().any(|r| r.contains("--ctstate")));
    assert!(!has_state());
    let entries = firewall.entries();
    let shown: Vec<&str> = entries.iter().map(|e| e.what.as_str()).collect();
    assert!(
        shown.contains(&"10.210.1.0/25 dev br-mesh src 10.210.1.1"),
        "{shown:?}"
    );
    firewall.set(wiring());
    firewall.settled().await;
    assert_eq!(led(), None);
    assert!(has_state());
    firewall.set(native);
    firewall.settled().await;
    firewall.stop().await;
    assert_eq!(led(), None);
}

#[tokio::test]
async fn what_others_switch_off_for_ever_is_put_back_more_slowly_and_is_one_problem() {
    let kernel = docker();
    let firewall = Firewall::on(kernel.clone(), None);
    firewall.set(wiring());
    firewall.settled().await;
    let switch_off = async || {
        kernel.look(|m| m.forwards = false);
        firewall.look();
        until("it forwards again", || kernel.look(|m| m.forwards)).await;
    };
    for _ in 0..5 {
        switch_off().await;
    }
    assert!(!firewall.is_contested());
    switch_off().await;
    until("it is a fight", || firewall.is_contested()).await;
    let begun = Instant::now();
    switch_off().await;
    assert!(begun.elapsed() >= Duration::from_millis(900));
    let problems = firewall.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].what.contains("again and again"), "{problems:?}");
}
