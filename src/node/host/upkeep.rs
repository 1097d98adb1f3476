//! Keeps the tunnel device configured as planned, and checks the routes to the mesh's addresses. One task does this.
//! Its report can be read without waiting for the task.
//!
//! The kernel sends a notification when another program changes something, and the task restores it at once. The task
//! also compares everything every 15 s. If a program removes the same thing again and again, the task restores it more
//! and more slowly, and the status shows a problem.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::netlink::{Applied, HostNetwork, HostNetworkError};
use super::notifications::{Notifications, Scope};
use super::plan::{Ipv6, NetworkEntry, NetworkPlan};
use super::route_lookup::{self, Rule, Target};
use super::survey::{DefaultGateway, Survey};
use crate::model::MeshAddresses;
use crate::model::address::Block;
use crate::model::pace::Pace;
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::protocol::local::{Problem, SystemEntry};

/// The interval at which everything is compared, with or without notifications.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(15);
/// The routes are checked whenever something has changed, and otherwise once in this number of comparisons.
const ROUTE_CHECK_EVERY: u32 = 4;
/// Other programs change several settings in a row, so the comparison waits this long after a notification.
const BURST_DELAY: Duration = Duration::from_millis(100);
/// The pause after a comparison is this many times as long as the comparison took, so that comparisons take only a
/// small part of the time.
const PAUSE_FACTOR: u32 = 20;
/// The longest pause of this kind.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// How long the configuration of another device may take.
const SET_DEVICE_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum number of other programs' routes inside the mesh prefix that are checked.
const MAX_OTHER_ROUTES: usize = 32;

/// The wanted configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The configuration of the device.
    pub plan: NetworkPlan,
    /// The index of the device.
    pub index: u32,
    /// A number that grows when the device was created again, or came back from another network namespace.
    pub device_revision: u64,
    pub mesh: MeshAddresses,
    /// The block of this node.
    pub block: Block,
    /// The names and addresses of the other nodes.
    pub peers: Vec<(String, Vec<IpAddr>)>,
}

/// The result of the last comparison.
#[derive(Debug, Default)]
struct Report {
    ipv6: Ipv6,
    refused: Vec<String>,
    contested: bool,
    notifications_error: Option<String>,
    route_problems: Vec<Problem>,
    /// The addresses of the mesh whose packets do not go into the tunnel.
    bypassing: BTreeSet<IpAddr>,
    guest_bridges: BTreeSet<String>,
    external_bridges: BTreeSet<String>,
    gateway: Option<DefaultGateway>,
    gateway_v6: Option<DefaultGateway>,
    /// The routes of other programs to networks to which other nodes route.
    taken: Vec<NetworkEntry>,
}

/// The handle of the task. Dropping it ends the task and leaves the machine's configuration as it is.
#[derive(Debug)]
pub struct Upkeep {
    wanted: watch::Sender<Arc<Wanted>>,
    changes: watch::Receiver<u64>,
    report: Arc<Mutex<Report>>,
    _task: AbortOnDrop,
}

impl Upkeep {
    /// Starts the task after the plan was applied once, with the result `applied`. This must be called in a tokio
    /// runtime.
    #[must_use]
    pub fn start(network: HostNetwork, wanted: Wanted, applied: &Applied) -> Self {
        let report = Report {
            ipv6: applied.ipv6,
            refused: texts(&applied.refused),
            guest_bridges: applied.survey.guest_bridges(),
            external_bridges: applied.survey.external_bridges(),
            gateway: applied.survey.gateway.clone(),
            gateway_v6: applied.survey.gateway_v6.clone(),
            ..Report::default()
        };
        let report = Arc::new(Mutex::new(report));
        let (wanted, receiver) = watch::channel(Arc::new(wanted));
        let (done, changes) = watch::channel(0);
        let work = Work {
            network,
            notifications: Notifications::open(),
            report: Arc::clone(&report),
            pace: Pace::default(),
            lines: Pace::default(),
            next: Instant::now(),
        };
        Self {
            wanted,
            changes,
            // The task ends when the wanted configuration is dropped.
            _task: Tasks::current()
                .spawn_finite("tunnel device", work.run(receiver, done))
                .abort_on_drop(),
            report,
        }
    }

    /// Changes the wanted configuration.
    pub fn set(&self, change: impl FnOnce(&mut Wanted)) {
        self.wanted.send_if_modified(|wanted| {
            let mut new = Wanted::clone(wanted);
            change(&mut new);
            let changed = new != **wanted;
            if changed {
                *wanted = Arc::new(new);
            }
            changed
        });
    }

    /// Applies the whole configuration to another device, with index `index`, or to a device that came back from
    /// another network namespace. Returns when that is done, or after a time limit.
    pub async fn set_device(&self, index: u32) {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        self.set(|wanted| {
            wanted.index = index;
            wanted.device_revision += 1;
        });
        let _ = timeout(SET_DEVICE_TIMEOUT, changes.changed()).await;
    }

    /// Changes when there was a comparison because another program changed something, or because there is another
    /// device.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Whether the device accepts IPv6 addresses.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6 {
        self.report().ipv6
    }

    /// The bridges that connect only guests of this machine, as far as the kernel shows.
    #[must_use]
    pub fn guest_bridges(&self) -> BTreeSet<String> {
        self.report().guest_bridges.clone()
    }

    /// The bridges to which other machines are connected as well, as far as the kernel shows.
    #[must_use]
    pub fn external_bridges(&self) -> BTreeSet<String> {
        self.report().external_bridges.clone()
    }

    /// The router to which this machine sends IPv4 packets for other networks.
    #[must_use]
    pub fn gateway(&self) -> Option<DefaultGateway> {
        self.report().gateway.clone()
    }

    /// The router to which this machine sends IPv6 packets for other networks.
    #[must_use]
    pub fn gateway_v6(&self) -> Option<DefaultGateway> {
        self.report().gateway_v6.clone()
    }

    /// The routes and rules that divert packets from the tunnel, as problems.
    #[must_use]
    pub fn route_problems(&self) -> Vec<Problem> {
        self.report().route_problems.clone()
    }

    /// Whether packets to any of `addresses` do not go into the tunnel.
    #[must_use]
    pub fn bypasses_tunnel(&self, addresses: &[IpAddr]) -> bool {
        let report = self.report();
        addresses.iter().any(|a| report.bypassing.contains(a))
    }

    /// All problems, with remedies.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let report = self.report();
        let interface = self.wanted.borrow().plan.interface.clone();
        let mut problems = report.route_problems.clone();
        problems.extend(report.ipv6.problem(&interface));
        if !report.refused.is_empty() {
            problems.push(Problem {
                what: "the tunnel device is not configured completely".into(),
                why: report.refused.join("; "),
                fix: "restart meshd; if that does not help, look for a program that manages all network interfaces".into(),
            });
        }
        if report.contested {
            problems.push(Problem {
                what: format!("another program removes addresses or routes of {interface} again and again"),
                why: "meshd restores them, but not more often than every 15 s".into(),
                fix: format!("find the program with `ip monitor`, and configure it to ignore {interface} (NetworkManager: `unmanaged-devices=interface-name:{interface}`; systemd-networkd: `Unmanaged=yes`)"),
            });
        }
        problems.extend(report.taken.iter().map(|taken| Problem {
            what: format!("this machine does not reach {} through the mesh", taken.net),
            why: format!("it has a route there already, by {}", taken.interface),
            fix: "nothing, if that route leads to the same network; otherwise remove it, or give one of the two networks other addresses".into(),
        }));
        if let Some(why) = &report.notifications_error {
            problems.push(Problem {
                what:
                    "changes to addresses and routes by other programs are noticed after up to 15 s"
                        .into(),
                why: why.clone(),
                fix: "allow meshd sockets of the family AF_NETLINK".into(),
            });
        }
        problems
    }

    /// All changes to the machine, with their reasons.
    #[must_use]
    pub fn entries(&self) -> Vec<SystemEntry> {
        let ipv6 = self.ipv6();
        self.wanted.borrow().plan.with_families(ipv6).entries()
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        lock(&self.report)
    }
}

fn lock(report: &Mutex<Report>) -> MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

fn texts(refused: &[HostNetworkError]) -> Vec<String> {
    refused.iter().map(ToString::to_string).collect()
}

struct Work {
    network: HostNetwork,
    notifications: Notifications,
    report: Arc<Mutex<Report>>,
    pace: Pace,
    /// Limits the log messages about routes that divert packets.
    lines: Pace,
    /// Notifications are not handled before this time.
    next: Instant,
}

impl Work {
    async fn run(mut self, mut wanted: watch::Receiver<Arc<Wanted>>, done: watch::Sender<u64>) {
        let mut ticks = interval(RECONCILE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut since_route_check, mut device_revision) =
            (ROUTE_CHECK_EVERY, wanted.borrow().device_revision);
        let mut applied = wanted.borrow().clone();
        loop {
            let scope = scope(&wanted.borrow());
            let rest = self
                .pace
                .rest(Instant::now())
                .max(self.next.saturating_duration_since(Instant::now()));
            let mut by_others = false;
            let noticed = async {
                sleep(rest).await;
                self.notifications.next(&scope).await;
                // This is set before the delay, so that the notification is not lost if something else ends the wait.
                by_others = true;
                sleep(BURST_DELAY).await;
            };
            tokio::select! {
                changed = wanted.changed() => match changed {
                    Ok(()) => since_route_check = ROUTE_CHECK_EVERY,
                    Err(_) => return,
                },
                () = noticed => {}
                _ = ticks.tick() => since_route_check += 1,
            }
            if by_others {
                since_route_check = ROUTE_CHECK_EVERY;
            }
            let now = wanted.borrow_and_update().clone();
            let begun = Instant::now();
            let is_new = now.device_revision != device_revision;
            if is_new {
                device_revision = now.device_revision;
                self.network.set_discipline(now.index).await;
            }
            withdraw(&self.network, &applied, &now).await;
            let is_other = is_new || applied.plan != now.plan;
            applied = Arc::clone(&now);
            let before = lock(&self.report).ipv6;
            if let Some(survey) = self.apply(&now, is_other).await
                && since_route_check >= ROUTE_CHECK_EVERY
            {
                since_route_check = 0;
                self.check_routes(&now, &survey).await;
            }
            self.next = Instant::now() + (begun.elapsed() * PAUSE_FACTOR).min(MAX_PAUSE);
            if by_others || is_new || lock(&self.report).ipv6 != before {
                done.send_modify(|number| *number += 1);
            }
        }
    }

    /// Compares the configuration with the wanted one and corrects the differences. Returns what was configured before.
    /// If the device or the plan `is_new`, differences are expected.
    async fn apply(&mut self, wanted: &Wanted, is_new: bool) -> Option<Survey> {
        let applied = self.network.apply(&wanted.plan, wanted.index).await;
        let mut report = lock(&self.report);
        report.notifications_error = self.notifications.error();
        let applied = match applied {
            Ok(Some(applied)) => applied,
            // The device is gone or in another network namespace. `node/device.rs` notices and reports that.
            Ok(None) => {
                report.refused.clear();
                report.route_problems.clear();
                report.bypassing.clear();
                return None;
            }
            Err(error) => {
                report.refused = vec![error.to_string()];
                return None;
            }
        };
        if applied.ipv6 != report.ipv6 {
            tracing::info!(now = ?applied.ipv6, "IPv6 of the tunnel device changed");
        } else if !applied.changed.is_empty() && !is_new {
            let changed: Vec<String> = applied.changed.iter().map(ToString::to_string).collect();
            if self.pace.handle_put_back(Instant::now()) {
                tracing::warn!(?changed, "restored what another program removed");
            }
        }
        report.ipv6 = applied.ipv6;
        report.contested = self.pace.is_contested(Instant::now());
        report.refused = texts(&applied.refused);
        report.guest_bridges = applied.survey.guest_bridges();
        report.external_bridges = applied.survey.external_bridges();
        report.gateway.clone_from(&applied.survey.gateway);
        report.gateway_v6.clone_from(&applied.survey.gateway_v6);
        report.taken = wanted.plan.taken(&applied.survey.found());
        Some(applied.survey)
    }

    /// Looks up the route to each peer, and to each part of the mesh prefix for which another program has a route.
    async fn check_routes(&mut self, wanted: &Wanted, survey: &Survey) {
        let ipv6 = lock(&self.report).ipv6;
        let mut lookups = Vec::new();
        for target in targets(wanted, survey, ipv6) {
            let source = match target.address {
                IpAddr::V4(_) => wanted.block.node_v4().into(),
                IpAddr::V6(_) => wanted.block.node_v6().into(),
            };
            match self
                .network
                .look_up_route(target.address, source, survey)
                .await
            {
                Ok(lookup) => lookups.push((target, lookup)),
                Err(error) => return tracing::debug!(%error, "cannot look up routes"),
            }
        }
        let own = &wanted.plan.interface;
        let bypassing: BTreeSet<IpAddr> = lookups
            .iter()
            .filter(|(_, lookup)| !route_lookup::goes_into_tunnel(own, lookup))
            .map(|(target, _)| target.address)
            .collect();
        let rules: Vec<Rule> = if bypassing.is_empty() {
            Vec::new()
        } else {
            self.network.rules().await.unwrap_or_default()
        };
        let problems = route_lookup::problems(own, &lookups, &rules, &survey.routes);
        let mut report = lock(&self.report);
        if report.route_problems != problems
            && !problems.is_empty()
            && self.lines.handle_put_back(Instant::now())
        {
            for problem in &problems {
                tracing::warn!(what = %problem.what, why = %problem.why, "packets do not go into the tunnel");
            }
        }
        report.route_problems = problems;
        report.bypassing = bypassing;
    }
}

/// Removes the routes to networks outside the mesh that are not wanted any more. Those of a device that is gone went with it.
async fn withdraw(network: &HostNetwork, before: &Wanted, now: &Wanted) {
    if before.index != now.index {
        return;
    }
    for net in before.plan.withdrawn(&now.plan) {
        if let Err(error) = network.remove_route(net, now.index).await {
            tracing::debug!(%net, %error, "a route is gone already");
        }
    }
}

fn scope(wanted: &Wanted) -> Scope {
    let prefixes: [IpNet; 2] = [wanted.mesh.prefix_v4.into(), wanted.mesh.prefix_v6.into()];
    let networks = wanted.plan.networks.iter().map(|(net, _)| *net);
    Scope {
        index: wanted.index,
        prefixes: prefixes.into_iter().chain(networks).collect(),
    }
}

/// The addresses to look up: one of each family for each peer, and some in the parts of the prefix that have other
/// routes.
fn targets(wanted: &Wanted, survey: &Survey, ipv6: Ipv6) -> Vec<Target> {
    let mut targets = Vec::new();
    for (node, addresses) in &wanted.peers {
        let there = addresses.iter().filter(|a| a.is_ipv4() || ipv6 == Ipv6::On);
        targets.extend(there.map(|address| Target {
            node: Some(node.clone()),
            address: *address,
        }));
    }
    let prefixes: [(IpNet, IpNet); 2] = [
        (wanted.mesh.prefix_v4.into(), wanted.block.v4.into()),
        (wanted.mesh.prefix_v6.into(), wanted.block.v6.into()),
    ];
    for (prefix, block) in prefixes {
        let taken =
            survey.routed_elsewhere(prefix, block, &wanted.plan.interface, MAX_OTHER_ROUTES);
        for address in taken {
            if !targets.iter().any(|t| t.address == address)
                && (address.is_ipv4() || ipv6 == Ipv6::On)
            {
                targets.push(Target {
                    node: None,
                    address,
                });
            }
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::super::plan::MAIN_TABLE;
    use super::super::survey::{Route, RouteKind};
    use super::*;

    fn wanted(peers: u32) -> Wanted {
        let mesh = MeshAddresses {
            prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
            prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
            node_block_v4: 24,
            node_block_v6: 64,
        };
        let block = mesh.block(1).expect("in the plan");
        let peers = (2..peers + 2).map(|n| {
            let block = mesh.block(n).expect("in the plan");
            let addresses = vec![block.node_v4().into(), block.node_v6().into()];
            (format!("n{n}"), addresses)
        });
        Wanted {
            plan: NetworkPlan::new("mesh0", 1420, &block, &mesh),
            index: 7,
            device_revision: 0,
            mesh,
            block,
            peers: peers.collect(),
        }
    }

    #[test]
    fn with_200_peers_the_kernel_is_asked_no_more_than_once_for_each_of_their_addresses() {
        let (wanted, mut survey) = (wanted(200), Survey::default());
        assert_eq!(targets(&wanted, &survey, Ipv6::On).len(), 400);
        assert_eq!(targets(&wanted, &survey, Ipv6::Off).len(), 200);
        for n in 0..250 {
            survey.routes.push(Route {
                table: MAIN_TABLE,
                kind: RouteKind::Unicast,
                net: format!("10.210.{n}.128/25").parse().expect("a net"),
                interface: Some("eth1".into()),
            });
        }
        let targets = targets(&wanted, &survey, Ipv6::On);
        assert_eq!(
            targets.len(),
            400 + MAX_OTHER_ROUTES,
            "routes of others are bounded"
        );
    }
}
