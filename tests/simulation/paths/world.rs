//! The world of a simulation of paths: its nodes, the network between them, the clock, and the loop that takes one event after the
//! other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use meshd::model::Path;

use super::invariants::{FOUND_WITHIN, FOUND_WITHIN_LOSS, Watched};
use super::network::{Datagram, Network, Sent, VICTIM};
use super::node::{Node, Output, Record};
use super::plan::{Fault, Plan, Traffic};
use super::truth::{Direct, Truth};
use crate::network::At;
use crate::random::Random;

/// How often the timers of the sessions run.
const TICK: Duration = Duration::from_millis(200);
/// How long a node takes to look at the news of its tunnel.
const REACTION: Duration = Duration::from_micros(200);
/// Before the end each pair sends packets for so long.
const LAST_PACKETS: Duration = Duration::from_secs(12);
const LAST_INTERVAL: Duration = Duration::from_millis(500);
/// How often the packets that did not arrive are looked at.
const CHECK: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
enum Event {
    Start(usize),
    /// The record of the second node arrives at the first.
    Record(usize, usize, Record),
    ToSite(usize, Datagram),
    ToNode(usize, Datagram),
    News(usize),
    Timer(usize),
    Tick(usize),
    TickPaths(usize),
    /// The nodes of this pair send a packet to each other. The last packets have their own interval.
    Packets(usize, bool),
    Fault(Fault),
    Check,
}

/// What a run found.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) log: String,
    /// The invariant that was broken.
    pub(crate) violation: Option<String>,
    pub(crate) counts: Counts,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) events: u64,
    pub(crate) changes: u64,
    pub(crate) probes: u64,
    /// The pairs that ended with a direct path, and those that ended with a relay.
    pub(crate) direct: u64,
    pub(crate) relayed: u64,
    /// How long a pair took at most until packets arrived.
    pub(crate) slowest: Duration,
}

pub(crate) struct World {
    now: At,
    plan: Plan,
    random: Random,
    events: BTreeMap<(At, u64), Event>,
    added: u64,
    network: Network,
    nodes: Vec<Option<Node>>,
    /// When each node's timer goes off, and whether it is about to look at news.
    timers: Vec<(Option<At>, bool)>,
    watch: Watched,
    truth: Truth,
    /// When the last node got the record of the last other one, or something last went wrong.
    since: At,
    log: String,
    pub(crate) is_loud: bool,
    violation: Option<String>,
    counts: Counts,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::of(&mut random);
        Self::with_plan(plan, random)
    }

    pub(crate) fn with_plan(plan: Plan, random: Random) -> Self {
        let epoch = Instant::now() + Duration::from_secs(1 << 24);
        let network = Network::new(&plan.sites, &plan.homes, plan.loss);
        let nodes = (0..plan.homes.len()).map(|number| {
            let is_public = plan.sites[plan.homes[number]].kind.is_public();
            let is_liar = plan.liar == Some(number);
            let lies =
                (0..if is_liar { 7 } else { 0 }).map(|n| SocketAddr::from((VICTIM, 1000 + n)));
            let own = network.address_of(number);
            Some(Node::new(number, own, is_public, lies.collect(), epoch))
        });
        let nodes: Vec<Option<Node>> = nodes.collect();
        let mut world = Self {
            now: At::ZERO,
            timers: vec![(None, false); nodes.len()],
            events: BTreeMap::new(),
            added: 0,
            network,
            nodes,
            watch: Watched::default(),
            truth: Truth::new(),
            since: At::ZERO,
            log: String::new(),
            is_loud: false,
            violation: None,
            counts: Counts::default(),
            plan,
            random,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let plan = self.plan.clone();
        for (number, home) in plan.homes.iter().enumerate() {
            let site = &plan.sites[*home];
            let own = self.network.address_of(number);
            self.note(|| format!("node {number} at {own} in site {home}, {site:?}"));
        }
        self.note(|| {
            format!(
                "loss {} %, liar {:?}, {:?}",
                plan.loss, plan.liar, plan.traffic
            )
        });
        for (number, at) in plan.starts.iter().enumerate() {
            self.add(*at, Event::Start(number));
        }
        for (number, (_, _, traffic)) in plan.traffic.iter().enumerate() {
            if let Traffic::Every(_) = traffic {
                self.add(Duration::from_secs(5), Event::Packets(number, false));
            }
            self.add(
                plan.end.saturating_sub(LAST_PACKETS),
                Event::Packets(number, true),
            );
        }
        for (at, fault) in &plan.faults {
            self.add(*at, Event::Fault(*fault));
        }
        self.add(CHECK, Event::Check);
    }

    fn add(&mut self, at: At, event: Event) {
        self.added += 1;
        self.events.insert((at, self.added), event);
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let line = format!("{:>10.3} {}", self.now.as_secs_f64(), line());
        if self.is_loud {
            println!("{line}");
        }
        let _ = writeln!(self.log, "{line}");
    }

    pub(crate) fn run(mut self) -> Outcome {
        self.run_until(self.plan.end);
        if self.violation.is_none() {
            self.check_end();
        }
        self.counts.changes = self.watch.changes;
        self.counts.probes = self.watch.total_probes;
        Outcome {
            log: self.log,
            violation: self.violation,
            counts: self.counts,
        }
    }

    pub(crate) fn run_until(&mut self, end: At) {
        while let Some(entry) = self.events.first_entry() {
            let (at, _) = *entry.key();
            if at > end || self.violation.is_some() {
                break;
            }
            let event = entry.remove();
            self.now = at;
            self.counts.events += 1;
            self.handle(event);
        }
    }

    /// Whether both nodes send to each other without a relay.
    pub(crate) fn are_direct(&self, one: usize, other: usize) -> bool {
        self.both_use(one, other, |path| path.relay().is_none())
    }

    /// Whether both nodes send to each other through a relay.
    pub(crate) fn are_relayed(&self, one: usize, other: usize) -> bool {
        self.both_use(one, other, |path| path.relay().is_some())
    }

    fn both_use(&self, one: usize, other: usize, is_meant: impl Fn(&Path) -> bool) -> bool {
        [(one, other), (other, one)].iter().all(|(node, peer)| {
            let path = self.watch.primary(*node, *peer);
            path.is_some_and(|path| is_meant(&path))
        })
    }

    /// The bytes that a node forwarded.
    pub(crate) fn forwarded(&self, node: usize) -> usize {
        self.nodes[node].as_ref().map_or(0, |node| node.forwarded)
    }

    fn violate(&mut self, why: String) {
        self.note(|| format!("BROKEN: {why}"));
        self.violation.get_or_insert(why);
    }

    fn handle(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Start(node) => {
                self.add(now + TICK, Event::Tick(node));
                self.with(node, |node, now, random| node.handle_timer(now, random));
            }
            Event::Record(to, from, record) => {
                self.watch.allow(to, from, &record.endpoints);
                let serves = self.plan.serves[from];
                self.with(to, |node, now, _| {
                    node.handle_record(from, record, serves, now)
                });
                let is_new = |node: &Node| node.peers.len() + 1 == self.plan.homes.len();
                if self.since == At::ZERO && self.nodes.iter().flatten().all(is_new) {
                    self.since = now;
                    self.note(|| "each node has the records of all others".to_owned());
                }
            }
            Event::ToSite(site, datagram) => {
                if let Some((node, datagram)) = self.network.arrive(site, datagram, now) {
                    self.deliver(node, &datagram);
                }
            }
            Event::ToNode(node, datagram) => self.deliver(node, &datagram),
            Event::News(node) => {
                self.timers[node].1 = false;
                self.with(node, |node, now, random| node.handle_news(now, random));
            }
            Event::Timer(node) => {
                if self.timers[node].0 == Some(now) {
                    self.timers[node].0 = None;
                    self.with(node, |node, now, random| node.handle_timer(now, random));
                }
            }
            Event::Tick(node) => {
                let next = self.with(node, |node, now, random| node.tick(now, random));
                self.plan_silence(node, next.flatten());
                self.add(now + TICK, Event::Tick(node));
            }
            Event::TickPaths(node) => {
                let next = self.with(node, |node, now, _| node.tick_paths(now));
                self.plan_silence(node, next.flatten());
            }
            Event::Packets(pair, is_last) => self.send_packets(pair, is_last),
            Event::Fault(fault) => self.handle_fault(fault),
            Event::Check => {
                self.check_packets();
                self.add(now + CHECK, Event::Check);
            }
        }
    }

    /// The silence of a path is noticed between two ticks as well.
    fn plan_silence(&mut self, node: usize, next: Option<At>) {
        if let Some(at) = next.filter(|at| *at < self.now + TICK && *at > self.now) {
            self.add(at, Event::TickPaths(node));
        }
    }

    fn deliver(&mut self, node: usize, datagram: &Datagram) {
        if let (Some(message), None) = (&datagram.message, datagram.header) {
            self.watch.allow(node, message.from, &[datagram.from]);
        }
        let is_loud = self.is_loud;
        if is_loud {
            self.note(|| {
                format!(
                    "        {} -> node {node}: {:?}",
                    datagram.from, datagram.message
                )
            });
        }
        self.with(node, |node, now, random| {
            node.receive(datagram, now, random)
        });
    }

    /// Lets a node do something, and carries out what follows. Nothing happens if it was killed.
    fn with<T>(
        &mut self,
        number: usize,
        act: impl FnOnce(&mut Node, At, &mut Random) -> T,
    ) -> Option<T> {
        let now = self.now;
        if now < self.plan.starts[number] {
            return None;
        }
        let node = self.nodes[number].as_mut()?;
        let result = act(node, now, &mut self.random);
        let outputs = std::mem::take(&mut node.out);
        let has_news = node.has_news();
        let due = node.poll_timeout();
        let primaries: Vec<_> = (node.peers.keys())
            .filter_map(|peer| Some((*peer, node.primary(*peer)?)))
            .collect();
        for output in outputs {
            self.carry_out(number, output);
        }
        if has_news && !std::mem::replace(&mut self.timers[number].1, true) {
            self.add(now + REACTION, Event::News(number));
        }
        if let Some(at) = due {
            let at = at.max(now + Duration::from_micros(100));
            if self.timers[number]
                .0
                .is_none_or(|before| before <= now || at < before)
            {
                self.timers[number].0 = Some(at);
                self.add(at, Event::Timer(number));
            }
        }
        for (peer, path) in primaries {
            match self.watch.handle_primary(number, peer, path) {
                Ok(true) => {
                    let state = self.nodes[number].as_ref().map(|node| node.describe(peer));
                    let state = state.unwrap_or_default();
                    self.note(|| format!("node {number} -> node {peer}: {path}, {state}"));
                }
                Ok(false) => {}
                Err(why) => self.violate(why),
            }
        }
        Some(result)
    }

    fn carry_out(&mut self, number: usize, output: Output) {
        let now = self.now;
        match output {
            Output::Send {
                datagram,
                to,
                is_probe,
            } => {
                if self.is_loud {
                    self.note(|| {
                        let Datagram {
                            to,
                            ttl,
                            message,
                            header,
                            ..
                        } = &datagram;
                        format!("    node {number} -> {to} ttl {ttl} {header:?} {message:?}")
                    });
                }
                let seen = self.watch.handle_sent(number, to, &datagram, is_probe, now);
                if let Err(why) = seen {
                    self.violate(why);
                }
                let home = self.plan.homes[number];
                match self.network.send(home, datagram, now, &mut self.random) {
                    Sent::ToSite(site, delay, datagram) => {
                        self.add(now + delay, Event::ToSite(site, datagram));
                    }
                    Sent::ToNode(node, delay, datagram) => {
                        self.add(now + delay, Event::ToNode(node, datagram));
                    }
                    Sent::Lost => {}
                }
            }
            Output::Publish(record) => {
                self.note(|| format!("node {number} publishes {record:?}"));
                for other in 0..self.plan.homes.len() {
                    let delay = Duration::from_millis(self.random.range(20, 200));
                    if other != number {
                        // A node that starts later receives the records of all others at its start.
                        let at = now.max(self.plan.starts[other]) + delay;
                        self.add(at, Event::Record(other, number, record.clone()));
                    }
                }
            }
            Output::Received(from) => {
                self.watch.received.insert((from, number), now);
            }
            Output::Consent(peer, addresses) => self.watch.allow(number, peer, &addresses),
        }
    }

    fn send_packets(&mut self, pair: usize, is_last: bool) {
        let (one, other, traffic) = self.plan.traffic[pair];
        for (from, to) in [(one, other), (other, one)] {
            self.with(from, |node, now, random| {
                if node.peers.contains_key(&to) {
                    node.send_packet(to, now, random);
                }
            });
        }
        let interval = match traffic {
            _ if is_last => LAST_INTERVAL,
            Traffic::Every(interval) => interval,
            Traffic::None => return,
        };
        self.add(self.now + interval, Event::Packets(pair, is_last));
    }

    fn handle_fault(&mut self, fault: Fault) {
        self.note(|| format!("{fault:?}"));
        self.truth.handle_fault(fault);
        self.network.cuts.clone_from(&self.truth.cuts);
        match fault {
            Fault::Rebind(site) => self.network.rebind(site),
            Fault::Kill(node) => self.nodes[node] = None,
            Fault::Cut(..) | Fault::CutOneWay(..) | Fault::Heal => {}
        }
        self.watch.handle_fault();
        self.since = self.now;
    }

    /// Two nodes between which there is a path receive each other's packets.
    fn check_packets(&mut self) {
        if self.since == At::ZERO {
            return;
        }
        let limit = match self.plan.loss {
            0 => FOUND_WITHIN,
            _ => FOUND_WITHIN_LOSS,
        };
        for (one, other, traffic) in self.plan.traffic.clone() {
            let began = match traffic {
                Traffic::None => self.plan.end.saturating_sub(LAST_PACKETS),
                Traffic::Every(_) => Duration::from_secs(5),
            };
            if !self.truth.has_path(&self.plan, one, other) {
                continue;
            }
            for (from, to) in [(one, other), (other, one)] {
                let received = self.watch.received.get(&(from, to));
                let received = received.copied().unwrap_or_default();
                let last = self.since.max(began).max(received);
                let silence = self.now.saturating_sub(last);
                if received < self.now.saturating_sub(CHECK) {
                    self.counts.slowest = self.counts.slowest.max(silence);
                }
                if silence > limit {
                    let states = [(from, to), (to, from)].map(|(node, peer)| {
                        let state = self.nodes[node].as_ref().map(|node| node.describe(peer));
                        let path = self.watch.primary(node, peer).map(|path| path.to_string());
                        format!(
                            "{}, {}",
                            path.unwrap_or_default(),
                            state.unwrap_or_default()
                        )
                    });
                    self.violate(format!(
                        "there is a path, and no packet of node {from} arrived at node {to} for {silence:?}: {states:?}"
                    ));
                    return;
                }
            }
        }
    }

    /// Each pair has the path that it is to have, at both ends.
    fn check_end(&mut self) {
        for (one, other, _) in self.plan.traffic.clone() {
            if !self.truth.has_path(&self.plan, one, other) {
                continue;
            }
            let direct = self.truth.direct(&self.plan, one, other);
            for (node, peer) in [(one, other), (other, one)] {
                let Some(path) = self.watch.primary(node, peer) else {
                    return self.violate(format!("node {node} has no path to node {peer}"));
                };
                let is_direct = path.relay().is_none();
                if is_direct {
                    self.counts.direct += 1;
                } else {
                    self.counts.relayed += 1;
                }
                let is_right = match direct {
                    Direct::Possible => is_direct,
                    Direct::Impossible => !is_direct,
                    Direct::Unclear => true,
                };
                if !is_right {
                    return self.violate(format!(
                        "node {node} sends to node {peer} by {path}, and a direct path is {direct:?}"
                    ));
                }
            }
        }
    }
}
