//! Applies the wanted state to the kernel and keeps it applied. One task does this. Its report can be read without
//! waiting for the task.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::FirewallState;
use super::applied::{Applied, Forwarding};
use super::conntrack::StaleConnections;
use super::docker_user::{self, IP6TABLES, IPTABLES, Rule};
use super::error::KernelError;
use super::kernel::{Kernel, Machine};
use super::noted::{LocalDenial, Readings};
use super::ports::Ports;
use super::problems::{
    docker_drops, left_out, no_bridge, no_hairpin, no_native, no_tables, problem,
};
use super::ruleset::{self, MARK, ValidState};
use crate::model::interface::is_plain_interface;
use crate::model::pace::Pace;
use crate::os::tasks::{TaskHandle, Tasks};
use crate::protocol::local::{Problem, SystemEntry};

mod connections;
mod routes;
mod tables;
mod v6;

/// The interval at which the whole state is compared with the kernel, with or without notifications.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(15);
/// Other programs change several rules in a row, so the comparison waits this long after a notification.
const BURST_DELAY: Duration = Duration::from_millis(100);
/// The maximum number of times that a table is written in a row because other programs write at the same time.
const MAX_WRITES: usize = 4;
/// The maximum number of requests that wait for the packets that the kernel denied.
const MAX_READ_REQUESTS: usize = 16;
/// The minimum time between a comparison with the kernel and one that such a request causes. A comparison starts several programs, and
/// members can cause such requests over the API.
const READ_INTERVAL: Duration = Duration::from_millis(500);
/// What `ip6tables` says if the kernel has no table of its kind.
const NO_TABLE: &str = "Table does not exist";
/// The table in which Docker's nftables backend has its rules for bridges.
const DOCKER_TABLE: &str = "docker-bridges";

/// The handle of the task that configures the kernel.
#[derive(Debug)]
pub struct Firewall {
    wanted: watch::Sender<(u64, Option<Arc<FirewallState>>)>,
    applied_revision: watch::Receiver<u64>,
    report: Arc<Mutex<Report>>,
    check_request: Arc<Notify>,
    read_requests: mpsc::Sender<oneshot::Sender<()>>,
    denials: Arc<Mutex<Vec<LocalDenial>>>,
    stop: oneshot::Sender<()>,
    task: TaskHandle,
}

/// The last result of the task.
#[derive(Debug, Default)]
struct Report {
    active: bool,
    active_v6: bool,
    contested: bool,
    applied_state: Option<Arc<FirewallState>>,
    problems: Vec<Problem>,
    entries: Vec<SystemEntry>,
}

impl Firewall {
    /// Starts the task, which changes nothing until [`Firewall::set`] is called. This must be called in a tokio runtime.
    #[must_use]
    pub fn start() -> Self {
        Self::on(Machine::open())
    }

    pub(super) fn on<K: Kernel>(kernel: K) -> Self {
        let (wanted, receiver) = watch::channel((0, None));
        let (done, applied_revision) = watch::channel(0);
        let (stop, stopped) = oneshot::channel();
        let (report, denials) = (Arc::default(), Arc::default());
        let check_request = Arc::new(Notify::new());
        let (read_requests, reads) = mpsc::channel(MAX_READ_REQUESTS);
        let work = Work {
            kernel,
            report: Arc::clone(&report),
            applied: Applied::default(),
            pace: Pace::default(),
            readings: Readings::default(),
            denials: Arc::clone(&denials),
        };
        Self {
            wanted,
            applied_revision,
            report,
            read_requests,
            denials,
            stop,
            // The task ends when it is stopped, after it has undone its changes.
            task: Tasks::current().spawn_finite(
                "firewall",
                work.run(receiver, done, (Arc::clone(&check_request), reads), stopped),
            ),
            check_request,
        }
    }

    /// Sets the wanted state. Returns at once, with whether the state differs from the one before. If it is called several times in a row,
    /// only the last state is applied.
    pub fn set(&self, state: FirewallState) -> bool {
        self.wanted.send_if_modified(|(number, wanted)| {
            if wanted.as_deref() == Some(&state) {
                return false;
            }
            *number += 1;
            *wanted = Some(Arc::new(state));
            true
        })
    }

    /// Whether the state that was set last has been applied, even if parts of it failed.
    #[must_use]
    pub fn is_applied(&self) -> bool {
        *self.applied_revision.borrow() >= self.wanted.borrow().0
    }

    /// Requests a comparison with the kernel soon, because another program may have changed these rules.
    pub fn request_check(&self) {
        self.check_request.notify_one();
    }

    /// Returns a receiver that is notified whenever the kernel has been compared with the wanted state.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.applied_revision.clone()
    }

    /// The state that was applied last, even if parts of it failed. None before the first one was applied.
    #[must_use]
    pub fn applied_state(&self) -> Option<Arc<FirewallState>> {
        self.report().applied_state.clone()
    }

    /// Returns when the state that was set last has been applied, even if parts of it failed.
    pub async fn wait_until_applied(&self) {
        let number = self.wanted.borrow().0;
        let mut applied_revision = self.applied_revision.clone();
        let _ = applied_revision.wait_for(|done| *done >= number).await;
    }

    /// Whether instance addresses are mapped. If they are not, nothing can reach a container by its instance address.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.report().active
    }

    /// Whether IPv6 instance addresses are mapped.
    #[must_use]
    pub fn is_active_v6(&self) -> bool {
        self.report().active_v6
    }

    /// Whether another program removes the rules again and again.
    #[must_use]
    pub fn is_contested(&self) -> bool {
        self.report().contested
    }

    /// The problems of the last comparison, each with a remedy.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.report().problems.clone()
    }

    /// All changes to the machine that are in place.
    #[must_use]
    pub fn entries(&self) -> Vec<SystemEntry> {
        self.report().entries.clone()
    }

    /// Requests a comparison with the kernel soon, at which the packets are read that it denied between addresses of this host. The
    /// receiver ends when [`Firewall::take_denials`] has them.
    pub fn read_denials(&self) -> oneshot::Receiver<()> {
        let (reply, read) = oneshot::channel();
        // Without room the others that wait are answered soon, and the receiver of this one ends at once.
        let _ = self.read_requests.try_send(reply);
        read
    }

    /// Takes the packets between addresses of this host that the policy denied and that were not taken yet. They are read at each
    /// comparison with the kernel too.
    #[must_use]
    pub fn take_denials(&self) -> Vec<LocalDenial> {
        std::mem::take(&mut *self.denials.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops the task, which removes all changes to the machine.
    pub async fn stop(mut self) {
        let _ = self.stop.send(());
        self.task.ended().await;
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of the task.
struct Work<K> {
    kernel: K,
    report: Arc<Mutex<Report>>,
    applied: Applied,
    pace: Pace,
    readings: Readings,
    denials: Arc<Mutex<Vec<LocalDenial>>>,
}

impl<K: Kernel> Work<K> {
    async fn run(
        mut self,
        mut wanted: watch::Receiver<(u64, Option<Arc<FirewallState>>)>,
        done: watch::Sender<u64>,
        (check_request, mut reads): (Arc<Notify>, mpsc::Receiver<oneshot::Sender<()>>),
        mut stop: oneshot::Receiver<()>,
    ) {
        let mut reconcile = interval(RECONCILE_INTERVAL);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut compared = None;
        loop {
            let rest = self.pace.rest(Instant::now());
            let notes_packets = self.notes_packets();
            let changed_by_others = async {
                sleep(rest).await;
                tokio::select! {
                    () = self.kernel.changed() => {}
                    () = check_request.notified() => {}
                }
                sleep(BURST_DELAY).await;
            };
            let requested = Self::requested(notes_packets, compared, &mut reads);
            let mut asked = None;
            tokio::select! {
                _ = &mut stop => break,
                Some(read) = requested => asked = Some(read),
                changed = wanted.changed() => if changed.is_err() {
                    break;
                },
                () = changed_by_others, if self.applied.state.is_some() => {}
                _ = reconcile.tick() => {}
            }
            // The comparison answers all requests that were made before it.
            let others = std::iter::from_fn(|| reads.try_recv().ok());
            let waiting: Vec<oneshot::Sender<()>> = asked.into_iter().chain(others).collect();
            let (number, state) = wanted.borrow_and_update().clone();
            if let Some(state) = state {
                self.apply(state).await;
                compared = Some(Instant::now());
                reconcile.reset();
            }
            let _ = done.send(number);
            for read in waiting {
                let _ = read.send(());
            }
        }
        self.remove_all().await;
    }

    /// Compares the kernel with the wanted state, and corrects the differences.
    async fn apply(&mut self, state: Arc<FirewallState>) {
        let valid = ValidState::of(&state);
        let mut problems: Vec<Problem> = valid.left_out.iter().map(|what| left_out(what)).collect();
        if let Some(why) = self.kernel.notifications_error() {
            problems.push(problem(
                "changes to the firewall by other programs are noticed after up to 15 s",
                why,
                "allow meshd the capability CAP_NET_ADMIN and sockets of the family AF_NETLINK",
            ));
        }
        let (active, active_v6) = match self.tables(&state, &valid, &mut problems).await {
            Ok(passes) => {
                self.apply_route(&state, &mut problems).await;
                self.route_rules(&state, &mut problems).await;
                let wanted = Rule {
                    prefix: state.prefix.into(),
                    native: state.native.is_some(),
                };
                let wanted = Some(wanted).filter(|_| !state.bridges.is_empty());
                let active = self.rule(IPTABLES, wanted, &mut problems).await && passes;
                (active, self.apply_v6(&state, &valid, &mut problems).await)
            }
            Err(error) => {
                problems.push(no_tables(&error, state.node));
                (false, false)
            }
        };
        let old = self.applied.state.as_ref();
        let stale = old.and_then(|(old, old_valid)| {
            StaleConnections::between((old, old_valid), (&state, &valid))
        });
        self.delete_connections(stale, &valid, &mut problems).await;
        if self.pace.is_contested(Instant::now()) {
            problems.push(problem(
                "another program changes meshd's firewall rules or switches forwarding off again and again",
                "meshd restores them, but not more often than every 15 s",
                "find the program with `nft monitor` or in /etc/sysctl.d, and configure it not to change the tables `meshd`, the rule of meshd in the chain DOCKER-USER, and net.ipv4.ip_forward",
            ));
        }
        problems.sort();
        problems.dedup();
        self.applied.state = Some((Arc::clone(&state), valid));
        self.update_report((active, active_v6), Some(state), problems);
    }

    /// Applies the tables and the settings of the bridge ports. Returns whether the engine's tables accept mapped
    /// connections.
    async fn tables(
        &mut self,
        state: &FirewallState,
        valid: &ValidState,
        problems: &mut Vec<Problem>,
    ) -> Result<bool, KernelError> {
        if !is_plain_interface(&state.interface) {
            let why = format!("the interface name {:?} is not plain", state.interface);
            return Err(KernelError::Failed("nft", why));
        }
        let docker = if state.bridges.is_empty() {
            None
        } else {
            self.kernel.table("ip", DOCKER_TABLE).await?
        };
        let mark = format!("{MARK:#010x}");
        let passes = docker.as_ref().is_none_or(|text| text.contains(&mark));
        if !passes {
            problems.push(docker_drops(&mark));
        }
        self.table("ip", valid.table(state, docker.is_some()))
            .await?;
        let ports = match self.kernel.ports(state).await {
            Ok(ports) => ports,
            Err(error) => {
                problems.push(no_hairpin(&error));
                return Ok(passes);
            }
        };
        let absent = ports.absent.iter();
        problems.extend(absent.map(|bridge| no_bridge(bridge, state.node)));
        self.forwarding(state, &ports, problems);
        self.hairpins(&ports, problems).await;
        let mut owners: BTreeMap<IpAddr, Vec<String>> = ports
            .found
            .into_iter()
            .map(|(address, port)| (address, [vec![port.name], port.others].concat()))
            .collect();
        // Without a container to guard there is no table, since the kernel may not have the module for it.
        if owners.is_empty() && !self.applied.tables.contains_key("bridge") {
            return Ok(passes);
        }
        let script = ruleset::guard_bridges(state, &owners, valid.local());
        if let Err(error) = self.table("bridge", script).await {
            // A kernel may lack what only the rules of IPv6 need, and the guard of IPv4 must not go with them.
            owners.retain(|address, _| address.is_ipv4());
            let of_v4 = ruleset::guard_bridges(state, &owners, valid.local());
            let _ = self.table("bridge", of_v4).await;
            problems.push(problem(
                "containers on one bridge can send packets with each other's addresses",
                error.to_string(),
                "load the kernel module nf_tables_bridge (`meta bridge` support of nftables)",
            ));
        }
        Ok(passes)
    }

    /// Adds the route to the engine's network whose containers have mesh addresses, and removes the former one.
    async fn apply_route(&mut self, state: &FirewallState, problems: &mut Vec<Problem>) {
        let wanted = state.native.clone().map(|native| (native, state.node));
        if self.applied.native != wanted
            && let Some((old, _)) = self.applied.native.take()
        {
            let _ = self.kernel.remove_route(&old).await;
        }
        let Some((native, node)) = wanted else { return };
        match self.kernel.add_route(&native, node).await {
            Ok(()) => self.applied.native = Some((native, node)),
            Err(error) => problems.push(no_native(&error)),
        }
    }

    /// Turns on hairpin mode at the ports of exposed containers, and turns it off where it was turned on and is no
    /// longer needed.
    async fn hairpins(&mut self, ports: &Ports, problems: &mut Vec<Problem>) {
        let wanted = |index: u32| ports.found.values().any(|port| port.index == index);
        let idle: Vec<u32> = self
            .applied
            .hairpins
            .keys()
            .copied()
            .filter(|i| !wanted(*i))
            .collect();
        for index in idle {
            // A port disappears together with its container, and then there is nothing to turn off.
            let _ = self.kernel.set_hairpin(index, false).await;
            self.applied.hairpins.remove(&index);
        }
        for port in ports.found.values().filter(|port| !port.hairpin) {
            match self.kernel.set_hairpin(port.index, true).await {
                Ok(()) => {
                    self.applied.hairpins.insert(port.index, port.name.clone());
                }
                Err(error) => problems.push(no_hairpin(&error)),
            }
        }
    }

    /// Applies the rule in the engine's chain of one family. Returns whether that chain accepts mapped connections.
    async fn rule(
        &mut self,
        program: &'static str,
        wanted: Option<Rule>,
        problems: &mut Vec<Problem>,
    ) -> bool {
        if wanted.is_none() && !self.applied.rules.contains_key(program) {
            return true;
        }
        let result = self.set_rule(program, wanted).await;
        let unreached = match program {
            IP6TABLES => "containers cannot be reached by their IPv6 mesh addresses",
            _ => "containers cannot be reached by their mesh addresses",
        };
        let (what, why, fix) = match result {
            Ok(()) => return true,
            // Without the program there are no rules that it made, as on a machine with only Podman.
            Err(KernelError::NotInstalled(_)) => return true,
            // Nor are there any in a kernel without the table. An engine that makes no rules of IPv6 runs on such a kernel.
            Err(KernelError::Failed(_, why)) if program == IP6TABLES && why.contains(NO_TABLE) => {
                return true;
            }
            Err(error @ KernelError::NotPermitted(_)) => (
                unreached,
                error.to_string(),
                "run meshd as root or with the capability CAP_NET_ADMIN; the legacy iptables program needs CAP_NET_RAW too".to_owned(),
            ),
            Err(error) => (
                unreached,
                error.to_string(),
                format!(
                    "try `{program} -I {} 1 {}`",
                    docker_user::CHAIN,
                    wanted.map(|rule| rule.words().join(" ")).unwrap_or_default()
                ),
            ),
        };
        problems.push(problem(what, why, &fix));
        false
    }

    async fn set_rule(
        &mut self,
        program: &'static str,
        wanted: Option<Rule>,
    ) -> Result<(), KernelError> {
        let listing = self.kernel.filter(program).await?;
        let steps = docker_user::steps(&listing, wanted);
        let applied = self.applied.rules.get(program).copied();
        if applied.is_some()
            && applied == wanted
            && !steps.calls.is_empty()
            && self.pace.handle_put_back(Instant::now())
        {
            tracing::warn!(
                "restored the rule in {} that another program changed",
                docker_user::CHAIN
            );
        }
        for call in &steps.calls {
            self.kernel.iptables(program, call).await?;
        }
        self.applied.rules.remove(program);
        let added = wanted.filter(|_| steps.has_docker);
        self.applied.rules.extend(added.map(|rule| (program, rule)));
        Ok(())
    }

    /// Turns on IPv4 forwarding, which containers and networks behind this node need.
    fn forwarding(&mut self, state: &FirewallState, ports: &Ports, problems: &mut Vec<Problem>) {
        let Some(not_forwarding) = ports
            .not_forwarding
            .first()
            .filter(|_| !state.mappings.is_empty() || !state.outside.routes.is_empty())
        else {
            return;
        };
        let why = match self.kernel.forwards() {
            Ok(false) => match self.kernel.set_forwards(true) {
                Ok(()) => {
                    // If it was turned on before, another program has turned it off since.
                    let was_on = self.applied.forwarding.is_some();
                    if was_on && self.pace.handle_put_back(Instant::now()) {
                        tracing::warn!(
                            "restored net.ipv4.ip_forward, which another program switched off"
                        );
                    }
                    let had_engine = !state.bridges.is_empty();
                    self.applied
                        .forwarding
                        .get_or_insert(Forwarding { had_engine });
                    return;
                }
                Err(error) => error.to_string(),
            },
            Ok(true) => format!("forwarding is off for {not_forwarding}"),
            Err(error) => error.to_string(),
        };
        let unreached = match state.outside.routes.as_slice() {
            [] => "containers cannot be reached: this machine does not forward packets",
            _ => {
                "neither containers nor the networks behind this node can be reached: this machine does not forward packets"
            }
        };
        problems.push(problem(
            unreached,
            why,
            &format!(
                "run `sysctl -w net.ipv4.ip_forward=1 net.ipv4.conf.{not_forwarding}.forwarding=1`, and put `net.ipv4.ip_forward = 1` into a file of /etc/sysctl.d"
            ),
        ));
    }

    fn update_report(
        &self,
        (active, active_v6): (bool, bool),
        applied_state: Option<Arc<FirewallState>>,
        problems: Vec<Problem>,
    ) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Report {
            active,
            active_v6,
            contested: self.pace.is_contested(Instant::now()),
            applied_state,
            problems,
            entries: self.applied.entries(),
        };
    }

    async fn remove_all(&mut self) {
        let log_error = |result: Result<(), KernelError>| {
            if let Err(error) = result {
                tracing::warn!(%error, "could not remove a part of the firewall");
            }
        };
        for family in std::mem::take(&mut self.applied.tables).into_keys() {
            log_error(self.kernel.nft(&ruleset::replacing(family)).await);
        }
        for program in self.applied.rules.clone().into_keys() {
            log_error(self.set_rule(program, None).await);
        }
        if let Some(prefix) = self.applied.routed {
            log_error(self.set_route_rules(prefix, &[]).await);
        }
        if let Some((native, _)) = self.applied.native.take() {
            // The route disappears together with its bridge.
            let _ = self.kernel.remove_route(&native).await;
        }
        for index in std::mem::take(&mut self.applied.hairpins).into_keys() {
            let _ = self.kernel.set_hairpin(index, false).await;
        }
        // An engine that is started while forwarding is on relies on that, and does not turn it on again.
        let state = self.applied.state.as_ref();
        let has_engine = state.is_some_and(|(state, _)| !state.bridges.is_empty());
        if let Some(Forwarding { had_engine }) = self.applied.forwarding.take()
            && (had_engine || !has_engine)
        {
            log_error(self.kernel.set_forwards(false));
        }
        self.update_report((false, false), None, Vec::new());
    }
}

#[cfg(test)]
mod tests;
