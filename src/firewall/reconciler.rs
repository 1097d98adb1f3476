//! Brings the kernel to the wiring, and keeps it there. One task; what it did is read without waiting for it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::Ipv6Net;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::conntrack::Gone;
use super::docker_user::{self, Engine, Rule};
use super::kernel::{Kernel, Machine};
use super::ports::Ports;
use super::problems::{docker_drops, left_out, no_bridge, no_hairpin, no_tables, problem};
use super::refused::Refused;
use super::ruleset::{self, MARK, Sound, TABLE};
use super::{Native, Wiring};
use crate::model::interface::is_plain_interface;
use crate::model::pace::Pace;
use crate::os::tasks::{TaskHandle, Tasks};
use crate::protocol::local::{Problem, SystemEntry};

/// Everything is looked at this often, notified or not.
const RECONCILE: Duration = Duration::from_secs(15);
/// Changes by others come in bursts: one look for all of one.
const BURST: Duration = Duration::from_millis(100);
/// Docker's nftables backend keeps its rules for bridges here.
const DOCKER_TABLE: &str = "docker-bridges";

/// The kernel's part of reaching containers.
#[derive(Debug)]
pub struct Firewall {
    wanted: watch::Sender<(u64, Option<Arc<Wiring>>)>,
    settled: watch::Receiver<u64>,
    report: Arc<Mutex<Report>>,
    nudge: Arc<Notify>,
    stop: oneshot::Sender<()>,
    task: TaskHandle,
}

/// What can be asked at any time.
#[derive(Debug, Default)]
struct Report {
    in_force: bool,
    contested: bool,
    in_place: Option<Arc<Wiring>>,
    problems: Vec<Problem>,
    entries: Vec<SystemEntry>,
}

impl Firewall {
    /// Starts with nothing to do. With `prefix_v6`, the mesh's IPv6 prefix is guarded too. To be called in a runtime.
    #[must_use]
    pub fn start(prefix_v6: Option<Ipv6Net>) -> Self {
        Self::on(Machine::open(), prefix_v6)
    }

    pub(super) fn on<K: Kernel>(kernel: K, prefix_v6: Option<Ipv6Net>) -> Self {
        let (wanted, receiver) = watch::channel((0, None));
        let (done, settled) = watch::channel(0);
        let (stop, stopped) = oneshot::channel();
        let report = Arc::default();
        let nudge = Arc::new(Notify::new());
        let work = Work {
            kernel,
            prefix_v6,
            report: Arc::clone(&report),
            was: Was::default(),
            pace: Pace::default(),
        };
        Self {
            wanted,
            settled,
            report,
            stop,
            // It ends when it is stopped, after it has undone its changes.
            task: Tasks::current().spawn_finite(
                "firewall",
                work.run(receiver, done, Arc::clone(&nudge), stopped),
            ),
            nudge,
        }
    }

    /// Says what there is to be from now on. Does not wait; of several in a row the last counts.
    pub fn set(&self, wiring: Wiring) {
        self.wanted.send_if_modified(|(number, wanted)| {
            if wanted.as_deref() == Some(&wiring) {
                return false;
            }
            *number += 1;
            *wanted = Some(Arc::new(wiring));
            true
        });
    }

    /// Somebody changed something that may be ours: has it looked at soon.
    pub fn look(&self) {
        self.nudge.notify_one();
    }

    /// Changes whenever the kernel has been brought to what was set, or looked at.
    #[must_use]
    pub fn looks(&self) -> watch::Receiver<u64> {
        self.settled.clone()
    }

    /// What was carried out last, or found impossible; none before the first.
    #[must_use]
    pub fn in_place(&self) -> Option<Arc<Wiring>> {
        self.report().in_place.clone()
    }

    /// Returns when what was set last has been carried out, or found impossible.
    pub async fn settled(&self) {
        let number = self.wanted.borrow().0;
        let mut settled = self.settled.clone();
        let _ = settled.wait_for(|done| *done >= number).await;
    }

    /// Whether instance addresses are mapped: otherwise nothing reaches a container by one.
    #[must_use]
    pub fn in_force(&self) -> bool {
        self.report().in_force
    }

    /// Whether somebody takes it away again and again.
    #[must_use]
    pub fn is_contested(&self) -> bool {
        self.report().contested
    }

    /// What is in the way, with remedies.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.report().problems.clone()
    }

    /// Everything it has put on the machine.
    #[must_use]
    pub fn entries(&self) -> Vec<SystemEntry> {
        self.report().entries.clone()
    }

    /// Takes everything away again.
    pub async fn stop(mut self) {
        let _ = self.stop.send(());
        self.task.ended().await;
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task.
struct Work<K> {
    kernel: K,
    prefix_v6: Option<Ipv6Net>,
    report: Arc<Mutex<Report>>,
    was: Was,
    pace: Pace,
}

/// What was done so far.
#[derive(Default)]
struct Was {
    wiring: Option<(Arc<Wiring>, Sound)>,
    /// By family: the script, and how the kernel shows what came of it.
    tables: BTreeMap<&'static str, (String, Option<String>)>,
    /// The rule in the engine's chain.
    rule: Option<Rule>,
    /// The network of the engine's that the mesh is led to, and the source of packets to it.
    native: Option<(Native, Ipv4Addr)>,
    /// Ports that were set to turn packets around: index and name.
    hairpins: BTreeMap<u32, String>,
    /// Forwarding was off before.
    forwarding: bool,
}

impl<K: Kernel> Work<K> {
    async fn run(
        mut self,
        mut wanted: watch::Receiver<(u64, Option<Arc<Wiring>>)>,
        done: watch::Sender<u64>,
        nudge: Arc<Notify>,
        mut stop: oneshot::Receiver<()>,
    ) {
        let mut look = interval(RECONCILE);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let rest = self.pace.rest(Instant::now());
            let others = async {
                sleep(rest).await;
                tokio::select! {
                    () = self.kernel.changed() => {}
                    () = nudge.notified() => {}
                }
                sleep(BURST).await;
            };
            tokio::select! {
                _ = &mut stop => break,
                changed = wanted.changed() => if changed.is_err() {
                    break;
                },
                () = others, if self.was.wiring.is_some() => {}
                _ = look.tick() => {}
            }
            let (number, wiring) = wanted.borrow_and_update().clone();
            if let Some(wiring) = wiring {
                self.bring_about(wiring).await;
                look.reset();
            }
            let _ = done.send(number);
        }
        self.take_away().await;
    }

    /// Compares, and mends what differs.
    async fn bring_about(&mut self, wiring: Arc<Wiring>) {
        let sound = Sound::of(&wiring);
        let mut problems: Vec<Problem> = sound.left_out.iter().map(|what| left_out(what)).collect();
        if let Some(why) = self.kernel.blind() {
            problems.push(problem(
                "changes to the firewall by others are noticed after up to 15 s",
                why,
                "allow meshd the capability CAP_NET_ADMIN and sockets of the family AF_NETLINK",
            ));
        }
        let in_force = match self.tables(&wiring, &sound, &mut problems).await {
            Ok(passes) => {
                self.lead(&wiring, &mut problems).await;
                self.rule(&wiring, &mut problems).await && passes
            }
            Err(refused) => {
                problems.push(no_tables(&refused, wiring.node));
                false
            }
        };
        if let Some((old, old_sound)) = &self.was.wiring
            && let Some(gone) = Gone::between((old, old_sound), (&wiring, &sound))
            && let Err(refused) = self.kernel.forget(gone).await
        {
            problems.push(problem(
                "connections to containers that are gone go on until they time out",
                refused.to_string(),
                "load the kernel module nf_conntrack_netlink",
            ));
        }
        if self.pace.is_contested(Instant::now()) {
            problems.push(problem(
                "another program changes meshd's firewall rules or switches forwarding off, again and again",
                "meshd puts them back, but not more often than every 15 s",
                "find it with `nft monitor` or in /etc/sysctl.d, and have it leave the tables `meshd`, the chain DOCKER-USER and net.ipv4.ip_forward alone",
            ));
        }
        problems.sort();
        problems.dedup();
        self.was.wiring = Some((Arc::clone(&wiring), sound));
        self.tell(in_force, Some(wiring), problems);
    }

    /// Our tables and the ports of the bridges; gives whether the engine's tables let mapped connections pass.
    async fn tables(
        &mut self,
        wiring: &Wiring,
        sound: &Sound,
        problems: &mut Vec<Problem>,
    ) -> Result<bool, Refused> {
        if !is_plain_interface(&wiring.interface) {
            let why = format!("the interface name {:?} is not plain", wiring.interface);
            return Err(Refused::Said("nft", why));
        }
        let docker = if wiring.bridges.is_empty() {
            None
        } else {
            self.kernel.table("ip", DOCKER_TABLE).await?
        };
        let mark = format!("{MARK:#010x}");
        let passes = docker.as_ref().is_none_or(|text| text.contains(&mark));
        if !passes {
            problems.push(docker_drops(&mark));
        }
        self.table("ip", sound.table(wiring, docker.is_some()))
            .await?;
        if let Some(prefix) = self.prefix_v6 {
            let script = sound.guard_v6(&wiring.interface, prefix);
            if let Err(refused) = self.table("ip6", script).await {
                problems.push(problem(
                    "neighbours on the network below can claim IPv6 addresses of the mesh",
                    refused.to_string(),
                    "use a kernel with nftables for IPv6",
                ));
            }
        }
        let ports = match self.kernel.ports(wiring).await {
            Ok(ports) => ports,
            Err(refused) => {
                problems.push(no_hairpin(&refused));
                return Ok(passes);
            }
        };
        let absent = ports.absent.iter();
        problems.extend(absent.map(|bridge| no_bridge(bridge, wiring.node)));
        self.forwarding(wiring, &ports, problems);
        self.hairpins(&ports, problems).await;
        let owners: BTreeMap<Ipv4Addr, Vec<String>> = ports
            .found
            .into_iter()
            .map(|(address, port)| (address, [vec![port.name], port.others].concat()))
            .collect();
        // Without anything to guard the kernel need not even have the module.
        if owners.is_empty() && !self.was.tables.contains_key("bridge") {
            return Ok(passes);
        }
        if let Err(refused) = self.table("bridge", ruleset::guard_bridges(&owners)).await {
            problems.push(problem(
                "containers on one bridge can claim each other's addresses",
                refused.to_string(),
                "load the kernel module nf_tables_bridge (`meta bridge` support of nftables)",
            ));
        }
        Ok(passes)
    }

    /// Leads the mesh to containers that have addresses of it themselves, and no longer to others.
    async fn lead(&mut self, wiring: &Wiring, problems: &mut Vec<Problem>) {
        let wanted = wiring.native.clone().map(|native| (native, wiring.node));
        if self.was.native != wanted
            && let Some((old, _)) = self.was.native.take()
        {
            let _ = self.kernel.lead_away(&old).await;
        }
        let Some((native, node)) = wanted else { return };
        match self.kernel.lead(&native, node).await {
            Ok(()) => self.was.native = Some((native, node)),
            Err(refused) => problems.push(problem(
                "the containers that have mesh addresses of their own cannot be reached",
                refused.to_string(),
                "restart Docker, so that it makes its bridges again",
            )),
        }
    }

    /// One table: written when its script is new, and when the kernel no longer shows what came of it.
    async fn table(&mut self, family: &'static str, script: String) -> Result<(), Refused> {
        if let Some((old, shown)) = self.was.tables.get(family)
            && *old == script
        {
            let now = self.kernel.table(family, TABLE).await?;
            if now == *shown {
                return Ok(());
            }
            if self.pace.handle_put_back(Instant::now()) {
                tracing::warn!(family, "put back the table that somebody changed");
            }
        }
        self.kernel.nft(&script).await?;
        let shown = self.kernel.table(family, TABLE).await?;
        self.was.tables.insert(family, (script, shown));
        Ok(())
    }

    /// Turns packets around at the ports of exposed containers, and of no others that we turned on.
    async fn hairpins(&mut self, ports: &Ports, problems: &mut Vec<Problem>) {
        let wanted = |index: u32| ports.found.values().any(|port| port.index == index);
        let idle: Vec<u32> = self
            .was
            .hairpins
            .keys()
            .copied()
            .filter(|i| !wanted(*i))
            .collect();
        for index in idle {
            // The port goes with its container; then there is nothing to set back.
            let _ = self.kernel.set_hairpin(index, false).await;
            self.was.hairpins.remove(&index);
        }
        for port in ports.found.values().filter(|port| !port.hairpin) {
            match self.kernel.set_hairpin(port.index, true).await {
                Ok(()) => {
                    self.was.hairpins.insert(port.index, port.name.clone());
                }
                Err(refused) => problems.push(no_hairpin(&refused)),
            }
        }
    }

    /// The rule in the engine's chain; gives whether mapped connections get through.
    async fn rule(&mut self, wiring: &Wiring, problems: &mut Vec<Problem>) -> bool {
        if wiring.bridges.is_empty() && self.was.rule.is_none() {
            return true;
        }
        let wanted = Rule {
            prefix: wiring.prefix,
            native: wiring.native.is_some(),
        };
        let wanted = Some(wanted).filter(|_| !wiring.bridges.is_empty());
        let result = self.set_rule(wanted).await;
        let (what, why, fix) = match result {
            Ok(Engine::Docker | Engine::None) => return true,
            Ok(Engine::WithoutUserChain) => (
                "containers may not be reached by their mesh addresses",
                format!("Docker's chains are there, but {} is not", docker_user::CHAIN),
                "restart Docker, so that it makes its chains again".to_owned(),
            ),
            // Without the program there are no rules of it either, as on a machine with Podman alone.
            Err(Refused::NoProgram(_)) => return true,
            Err(refused @ Refused::NoRights(_)) => (
                "containers cannot be reached by their mesh addresses",
                refused.to_string(),
                "run meshd as root or with the capability CAP_NET_ADMIN; the legacy iptables program needs CAP_NET_RAW too".to_owned(),
            ),
            Err(refused) => (
                "containers cannot be reached by their mesh addresses",
                refused.to_string(),
                format!(
                    "try `iptables -I {} 1 {}`",
                    docker_user::CHAIN,
                    wanted.map(|rule| rule.words().join(" ")).unwrap_or_default()
                ),
            ),
        };
        problems.push(problem(what, why, &fix));
        false
    }

    async fn set_rule(&mut self, wanted: Option<Rule>) -> Result<Engine, Refused> {
        let listing = self.kernel.filter().await?;
        let steps = docker_user::steps(&listing, wanted);
        if self.was.rule.is_some()
            && self.was.rule == wanted
            && !steps.calls.is_empty()
            && self.pace.handle_put_back(Instant::now())
        {
            tracing::warn!(
                "put back the rule in {} that somebody changed",
                docker_user::CHAIN
            );
        }
        for call in &steps.calls {
            self.kernel.iptables(call).await?;
        }
        self.was.rule = wanted.filter(|_| steps.engine == Engine::Docker);
        Ok(steps.engine)
    }

    /// Containers need a machine that forwards.
    fn forwarding(&mut self, wiring: &Wiring, ports: &Ports, problems: &mut Vec<Problem>) {
        let Some(stuck) = ports.stuck.first().filter(|_| !wiring.mappings.is_empty()) else {
            return;
        };
        let why = match self.kernel.forwards() {
            Ok(false) => match self.kernel.set_forwards(true) {
                Ok(()) => {
                    // Unless it is set for the first time, somebody has switched it off again.
                    if self.was.forwarding && self.pace.handle_put_back(Instant::now()) {
                        tracing::warn!("put back net.ipv4.ip_forward, which somebody switched off");
                    }
                    self.was.forwarding = true;
                    return;
                }
                Err(refused) => refused.to_string(),
            },
            Ok(true) => format!("forwarding is off for {stuck}"),
            Err(refused) => refused.to_string(),
        };
        problems.push(problem(
            "containers cannot be reached: this machine does not forward packets",
            why,
            &format!(
                "run `sysctl -w net.ipv4.ip_forward=1 net.ipv4.conf.{stuck}.forwarding=1`, and put `net.ipv4.ip_forward = 1` into a file of /etc/sysctl.d"
            ),
        ));
    }

    fn tell(&self, in_force: bool, in_place: Option<Arc<Wiring>>, problems: Vec<Problem>) {
        let mut entries = Vec::new();
        let mut entry = |kind: &str, what: String, why: &str| {
            entries.push(SystemEntry {
                kind: kind.into(),
                what,
                why: why.into(),
            });
        };
        for family in self.was.tables.keys() {
            let why = match *family {
                "ip" => {
                    "maps instance and service addresses, refuses what leads nowhere, drops claimed mesh addresses"
                }
                "ip6" => "drops IPv6 packets that claim a mesh address",
                _ => "drops packets of containers that claim a neighbour's address",
            };
            entry("rule", format!("nftables table {family} {TABLE}"), why);
        }
        if let Some(rule) = self.was.rule {
            entry(
                "rule",
                format!("iptables {} {}", docker_user::CHAIN, rule.words().join(" ")),
                "lets connections to instance addresses pass the container engine's rules",
            );
        }
        if let Some((native, node)) = &self.was.native {
            entry(
                "route",
                format!("{} dev {} src {node}", native.range, native.bridge),
                "leads to the containers that have mesh addresses of their own",
            );
            entry(
                "sysctl",
                format!(
                    "net.ipv4.conf.{0}.proxy_arp = 1 (was 0), net.ipv4.neigh.{0}.proxy_delay = 0 (was 80)",
                    native.bridge
                ),
                "those containers take the whole mesh for their neighbours",
            );
        }
        for name in self.was.hairpins.values() {
            entry(
                "link",
                format!("{name} hairpin on"),
                "lets the container reach its own mesh name",
            );
        }
        if self.was.forwarding {
            entry(
                "sysctl",
                "net.ipv4.ip_forward = 1 (was 0)".into(),
                "packets between the mesh and containers are forwarded",
            );
        }
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Report {
            in_force,
            contested: self.pace.is_contested(Instant::now()),
            in_place,
            problems,
            entries,
        };
    }

    async fn take_away(&mut self) {
        let said = |result: Result<(), Refused>| {
            if let Err(refused) = result {
                tracing::warn!(%refused, "something of the firewall stays behind");
            }
        };
        for family in std::mem::take(&mut self.was.tables).into_keys() {
            said(self.kernel.nft(&ruleset::replacing(family)).await);
        }
        if self.was.rule.is_some() {
            said(self.set_rule(None).await.map(drop));
        }
        if let Some((native, _)) = self.was.native.take() {
            // It went with its bridge, if that is gone.
            let _ = self.kernel.lead_away(&native).await;
        }
        for index in std::mem::take(&mut self.was.hairpins).into_keys() {
            let _ = self.kernel.set_hairpin(index, false).await;
        }
        if std::mem::take(&mut self.was.forwarding) {
            said(self.kernel.set_forwards(false));
        }
        self.tell(false, None, Vec::new());
    }
}

#[cfg(test)]
mod tests;
