//! Keeps the tunnel device as planned, and the ways to the mesh's addresses under watch. One task; what it found is read
//! without waiting for it.
//!
//! The kernel sends a notice when somebody changes something, and it is put back at once. Everything is compared every 15 s
//! as well. Where a program removes the same thing again and again, it is put back more and more slowly, and the status
//! shows a problem.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::netlink::{Applied, HostNetwork, HostNetworkError};
use super::notices::{Notices, Scope};
use super::plan::{Ipv6, Plan};
use super::survey::Survey;
use super::ways::{self, Rule, Target};
use crate::model::MeshAddresses;
use crate::model::address::Block;
use crate::model::pace::Pace;
use crate::protocol::local::{Problem, SystemEntry};

/// Everything is looked at this often, noticed or not.
const LOOK: Duration = Duration::from_secs(15);
/// Without a notice the ways are asked for at every look of this number only.
const WAYS_EVERY: u32 = 4;
/// Changes by others come in bursts: one look for all of one.
const BURST: Duration = Duration::from_millis(100);
/// After a look that took long, this many times as long passes before the next: looks never take more than a small part of
/// the time.
const SHARE: u32 = 20;
/// The longest such rest.
const LONGEST_REST: Duration = Duration::from_secs(10);
/// How long it may take to put all on another device.
const REFIT: Duration = Duration::from_secs(2);
/// Routes of others inside the mesh prefix that are asked about at most.
const MAX_PARTS: usize = 32;

/// What there is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What the device is to have.
    pub plan: Plan,
    /// The device's number.
    pub index: u32,
    /// Grows when there is another device, or it came back from elsewhere.
    pub fitted: u64,
    /// The mesh's addresses.
    pub mesh: MeshAddresses,
    /// This node's.
    pub block: Block,
    /// The other nodes' names and addresses.
    pub peers: Vec<(String, Vec<IpAddr>)>,
}

/// What was found last.
#[derive(Debug, Default)]
struct Report {
    ipv6: Ipv6,
    refused: Vec<String>,
    contested: bool,
    blind: Option<String>,
    ways: Vec<Problem>,
    /// Addresses of the mesh whose packets do not go into the tunnel.
    astray: BTreeSet<IpAddr>,
    guest_bridges: BTreeSet<String>,
    outer_bridges: BTreeSet<String>,
}

/// The task. Dropping it ends it, and leaves the machine as it is.
#[derive(Debug)]
pub struct Upkeep {
    wanted: watch::Sender<Arc<Wanted>>,
    looks: watch::Receiver<u64>,
    report: Arc<Mutex<Report>>,
    task: JoinHandle<()>,
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upkeep {
    /// Goes on from where `applied` has brought the machine. To be called in a runtime.
    #[must_use]
    pub fn start(network: HostNetwork, wanted: Wanted, applied: &Applied) -> Self {
        let report = Report {
            ipv6: applied.ipv6,
            refused: texts(&applied.refused),
            guest_bridges: applied.survey.guest_bridges(),
            outer_bridges: applied.survey.outer_bridges(),
            ..Report::default()
        };
        let report = Arc::new(Mutex::new(report));
        let (wanted, receiver) = watch::channel(Arc::new(wanted));
        let (done, looks) = watch::channel(0);
        let work = Work {
            network,
            notices: Notices::open(),
            report: Arc::clone(&report),
            pace: Pace::default(),
            lines: Pace::default(),
            next: Instant::now(),
        };
        Self {
            wanted,
            looks,
            task: tokio::spawn(work.run(receiver, done)),
            report,
        }
    }

    /// Changes what there is to be.
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

    /// There is another device, of number `index`, or it came back from elsewhere: puts all on it. Returns when that is
    /// done, or takes unduly long.
    pub async fn refit(&self, index: u32) {
        let mut looks = self.looks.clone();
        looks.mark_unchanged();
        self.set(|wanted| {
            wanted.index = index;
            wanted.fitted += 1;
        });
        let _ = timeout(REFIT, looks.changed()).await;
    }

    /// Changes when a look was made because somebody changed something, or there is another device.
    #[must_use]
    pub fn looks(&self) -> watch::Receiver<u64> {
        self.looks.clone()
    }

    /// Whether the device takes IPv6 addresses.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6 {
        self.report().ipv6
    }

    /// Bridges that lead to guests of this machine only, as far as the kernel shows.
    #[must_use]
    pub fn guest_bridges(&self) -> BTreeSet<String> {
        self.report().guest_bridges.clone()
    }

    /// Bridges that other machines are on as well, as far as the kernel shows.
    #[must_use]
    pub fn outer_bridges(&self) -> BTreeSet<String> {
        self.report().outer_bridges.clone()
    }

    /// What takes packets away from the tunnel.
    #[must_use]
    pub fn ways(&self) -> Vec<Problem> {
        self.report().ways.clone()
    }

    /// Whether packets to any of `addresses` do not go into the tunnel.
    #[must_use]
    pub fn is_astray(&self, addresses: &[IpAddr]) -> bool {
        let report = self.report();
        addresses.iter().any(|a| report.astray.contains(a))
    }

    /// What is wrong, with remedies.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let report = self.report();
        let interface = self.wanted.borrow().plan.interface.clone();
        let mut problems = report.ways.clone();
        problems.extend(report.ipv6.problem(&interface));
        if !report.refused.is_empty() {
            problems.push(Problem {
                what: "the tunnel device is not as it should be".into(),
                why: report.refused.join("; "),
                fix: "restart meshd; if that does not help, look for a program that manages all network interfaces".into(),
            });
        }
        if report.contested {
            problems.push(Problem {
                what: format!("another program takes addresses or routes of {interface} away, again and again"),
                why: "meshd puts them back, but not more often than every 15 s".into(),
                fix: format!("find it with `ip monitor`, and have it leave {interface} alone (NetworkManager: `unmanaged-devices=interface-name:{interface}`; systemd-networkd: `Unmanaged=yes`)"),
            });
        }
        if let Some(why) = &report.blind {
            problems.push(Problem {
                what: "changes to addresses and routes by others are noticed after up to 15 s"
                    .into(),
                why: why.clone(),
                fix: "allow meshd sockets of the family AF_NETLINK".into(),
            });
        }
        problems
    }

    /// Everything that is on the machine, with its reason.
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
    notices: Notices,
    report: Arc<Mutex<Report>>,
    pace: Pace,
    /// Bounds the lines in the log about ways that come and go.
    lines: Pace,
    /// Not before then is anything looked at because of others.
    next: Instant,
}

impl Work {
    async fn run(mut self, mut wanted: watch::Receiver<Arc<Wanted>>, done: watch::Sender<u64>) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut since_ways, mut fitted) = (WAYS_EVERY, wanted.borrow().fitted);
        loop {
            let scope = scope(&wanted.borrow());
            let rest = self
                .pace
                .rest(Instant::now())
                .max(self.next.saturating_duration_since(Instant::now()));
            // Set before the burst has passed: another reason to look does not make it forgotten.
            let mut by_others = false;
            let noticed = async {
                sleep(rest).await;
                self.notices.next(&scope).await;
                by_others = true;
                sleep(BURST).await;
            };
            tokio::select! {
                changed = wanted.changed() => match changed {
                    Ok(()) => since_ways = WAYS_EVERY,
                    Err(_) => return,
                },
                () = noticed => {}
                _ = ticks.tick() => since_ways += 1,
            }
            if by_others {
                since_ways = WAYS_EVERY;
            }
            let now = wanted.borrow_and_update().clone();
            let begun = Instant::now();
            let is_new = now.fitted != fitted;
            if is_new {
                fitted = now.fitted;
                self.network.set_discipline(now.index).await;
            }
            let before = lock(&self.report).ipv6;
            if let Some(survey) = self.bring_about(&now, is_new).await
                && since_ways >= WAYS_EVERY
            {
                since_ways = 0;
                self.ask_ways(&now, &survey).await;
            }
            self.next = Instant::now() + (begun.elapsed() * SHARE).min(LONGEST_REST);
            if by_others || is_new || lock(&self.report).ipv6 != before {
                done.send_modify(|number| *number += 1);
            }
        }
    }

    /// Compares, and mends what differs; on a device that `is_new` everything does. Gives what was there.
    async fn bring_about(&mut self, wanted: &Wanted, is_new: bool) -> Option<Survey> {
        let applied = self.network.apply(&wanted.plan, wanted.index).await;
        let mut report = lock(&self.report);
        report.blind = self.notices.blind();
        let applied = match applied {
            Ok(Some(applied)) => applied,
            // The device is gone or elsewhere. `node/device.rs` notices that, and reports it.
            Ok(None) => {
                report.refused.clear();
                report.ways.clear();
                report.astray.clear();
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
                tracing::warn!(?changed, "put back what somebody took away");
            }
        }
        report.ipv6 = applied.ipv6;
        report.contested = self.pace.is_contested(Instant::now());
        report.refused = texts(&applied.refused);
        report.guest_bridges = applied.survey.guest_bridges();
        report.outer_bridges = applied.survey.outer_bridges();
        Some(applied.survey)
    }

    /// Asks the kernel for the way to each peer, and to each part of the mesh prefix that somebody else has a route for.
    async fn ask_ways(&mut self, wanted: &Wanted, survey: &Survey) {
        let ipv6 = lock(&self.report).ipv6;
        let mut asked = Vec::new();
        for target in targets(wanted, survey, ipv6) {
            let source = match target.address {
                IpAddr::V4(_) => wanted.block.node_v4().into(),
                IpAddr::V6(_) => wanted.block.node_v6().into(),
            };
            match self.network.way(target.address, source, survey).await {
                Ok(way) => asked.push((target, way)),
                Err(error) => return tracing::debug!(%error, "the ways are not known"),
            }
        }
        let own = &wanted.plan.interface;
        let astray: BTreeSet<IpAddr> = asked
            .iter()
            .filter(|(_, way)| !ways::is_right(own, way))
            .map(|(target, _)| target.address)
            .collect();
        let rules: Vec<Rule> = if astray.is_empty() {
            Vec::new()
        } else {
            self.network.rules().await.unwrap_or_default()
        };
        let problems = ways::problems(own, &asked, &rules, &survey.routes);
        let mut report = lock(&self.report);
        if report.ways != problems
            && !problems.is_empty()
            && self.lines.handle_put_back(Instant::now())
        {
            for problem in &problems {
                tracing::warn!(what = %problem.what, why = %problem.why, "packets do not go into the tunnel");
            }
        }
        report.ways = problems;
        report.astray = astray;
    }
}

fn scope(wanted: &Wanted) -> Scope {
    Scope {
        index: wanted.index,
        prefixes: vec![wanted.mesh.prefix_v4.into(), wanted.mesh.prefix_v6.into()],
    }
}

/// What the kernel is asked about: one address of each family a peer has, and some of the parts that others took.
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
        let taken = survey.parts_taken(prefix, block, &wanted.plan.interface, MAX_PARTS);
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
            plan: Plan::new("mesh0", 1420, &block, &mesh),
            index: 7,
            fitted: 0,
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
            400 + MAX_PARTS,
            "routes of others are bounded"
        );
    }
}
