//! The world of a simulation: all machines, the network between them, the clock, and the loop that takes one event after the other.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use meshd::coordinator::hub::Standing;
use meshd::model::PublicKey;
use meshd::model::time::Now;
use meshd::protocol::control::{FromCoordinator, FromNode};
use meshd::protocol::join::{JoinRequest, JoinResponse};
use meshd::records::kinds::Record;

use super::administrator::{Administrator, addresses};
use super::attackers::Attackers;
use super::coordinator::{Output, Site};
use super::machine::Machine;
use super::network::{At, Message, Network, Place, Purpose, Side, StreamId};
use super::plan::{Fault, Plan};
use super::queue::{Event, Queue};
use super::random::Random;
use super::store::{Disk, Sabotage};
use super::truth::Truth;

/// The wall clock of a machine without skew shows this at the beginning, in seconds since 1970.
const BEGINNING: u64 = 1_800_000_000;
/// After the last fault all honest nodes that are connected have equal netmaps within this time.
pub(crate) const CONVERGENCE: Duration = Duration::from_secs(180);
/// The same, if the store of the coordinators lost records or refused them, or if there were attackers. Nodes with old tokens
/// then wait for up to 300 s until all members have offered their records, a node offers a record that was refused again after
/// up to 300 s, and requests all records again after up to 600 s.
pub(crate) const CONVERGENCE_AFTER_LOSS: Duration = Duration::from_secs(1500);
/// The simulation goes on for so long after the nodes have converged.
const AFTERMATH: Duration = Duration::from_secs(15);

/// What a run found.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) log: String,
    /// The invariant that was broken.
    pub(crate) violation: Option<String>,
    pub(crate) events: u64,
    /// How long the nodes took to converge after the last fault.
    pub(crate) converged: Option<Duration>,
}

pub(crate) struct World {
    pub(crate) now: At,
    epoch: Instant,
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    pub(crate) queue: Queue,
    pub(crate) network: Network,
    pub(crate) machines: Vec<Machine>,
    pub(crate) sites: Vec<Site>,
    pub(crate) administrator: Administrator,
    pub(crate) attackers: Attackers,
    pub(crate) truth: Truth,
    pub(crate) sabotage: Option<Sabotage>,
    log: String,
    /// Whether the event log is printed as it is written.
    pub(crate) is_loud: bool,
    violation: Option<String>,
    /// Whether the time of faults is over.
    pub(crate) is_calm: bool,
    /// Whether the administrator has removed what the attackers had.
    pub(crate) is_clean: bool,
    converged: Option<At>,
}

impl World {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::of(seed, &mut random);
        let disk = Disk::new(plan.coordinators, random.next(), sabotage);
        let sites = (0..plan.coordinators).map(|_| Site::new(disk.clone()));
        let mut world = Self {
            now: At::ZERO,
            // Times before the beginning must be possible as well.
            epoch: Instant::now() + Duration::from_secs(1 << 24),
            network: Network::new(plan.slowest),
            queue: Queue::default(),
            machines: Vec::new(),
            sites: sites.collect(),
            administrator: Administrator::new(random.bytes()),
            attackers: Attackers::default(),
            truth: Truth::default(),
            sabotage,
            log: String::new(),
            is_loud: false,
            violation: None,
            is_calm: false,
            is_clean: false,
            converged: None,
            plan,
            random,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let Plan {
            nodes,
            coordinators,
            hostile,
            ..
        } = self.plan;
        self.note(|| {
            format!("{nodes} nodes, {hostile} of them hostile, {coordinators} coordinators")
        });
        for site in 0..self.sites.len() {
            self.queue.add(At::ZERO, Event::Open(site, 0));
        }
        for node in 0..nodes {
            let window = self.plan.joined.as_millis() as u64;
            let at = Duration::from_millis(100 + self.random.below(window.saturating_sub(100)));
            let number = self.add_machine(node < hostile);
            self.queue.add(at, Event::Join(number, 0));
        }
        for (at, fault) in self.plan.faults.clone() {
            self.queue.add(at, Event::Fault(fault));
        }
        self.queue.add(self.plan.calm, Event::Calm);
        self.queue.add(self.plan.joined, Event::Check);
    }

    /// How long the nodes may take to converge after the last fault.
    fn patience(&self) -> Duration {
        let is_slow = |fault: Fault| fault.is_attack() || fault == Fault::FillCoordinatorDisk;
        if self.truth.losses > 0 || self.plan.has(is_slow) {
            CONVERGENCE_AFTER_LOSS
        } else {
            CONVERGENCE
        }
    }

    /// Whether the mesh had so much time that people look at the problems which its nodes report.
    pub(crate) fn is_late(&self) -> bool {
        let since = self.now.saturating_sub(self.plan.calm);
        self.is_clean && self.converged.is_none() && since > self.patience() / 2
    }

    pub(crate) fn run(mut self) -> Outcome {
        let mut events = 0;
        while let Some((at, event)) = self.queue.next() {
            self.now = at;
            events += 1;
            self.handle(event);
            if self.violation.is_some() {
                break;
            }
            if let Some(converged) = self.converged
                && self.now >= converged + AFTERMATH
            {
                break;
            }
        }
        let calm = self.plan.calm;
        Outcome {
            log: self.log,
            violation: self.violation,
            events,
            converged: self.converged.map(|at| at.saturating_sub(calm)),
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver(stream, to) => self.deliver(stream, to),
            Event::Hangup(stream, side) => self.hang_up(stream, side),
            Event::Join(node, run) if self.is_run(node, run) => self.try_to_join(node),
            Event::Start(node, run) if self.is_run(node, run) => self.start(node),
            Event::Dial(node, run) if self.is_run(node, run) => self.dial(node),
            Event::Timer(node, run) if self.is_run(node, run) => self.handle_timer(node),
            Event::Written(node, run) if self.is_run(node, run) => self.handle_written(node),
            Event::Settle(node, run) if self.is_run(node, run) => self.handle_tick(node),
            Event::Unreached(node, run, peer) if self.is_run(node, run) => {
                self.handle_unreached(node, peer);
            }
            Event::Left(node, run) if self.is_run(node, run) => self.handle_left(node),
            Event::Open(site, run) if self.sites[site].run == run => self.open_site(site),
            Event::Push(site, run) if self.sites[site].run == run => {
                self.sites[site].is_push_due = false;
                self.push(site);
            }
            Event::Beat(site, run) if self.sites[site].run == run => self.beat(site),
            Event::Fault(fault) => self.strike(fault),
            Event::Calm => self.calm_down(),
            Event::CleanUp => self.clean_up(),
            Event::Check => self.handle_check(),
            // An event of an earlier run of a program.
            _ => {}
        }
    }

    fn is_run(&self, node: usize, run: u32) -> bool {
        self.machines[node].run == run
    }

    /// A settled point.
    fn handle_check(&mut self) {
        if let Err(why) = self.check_everything() {
            return self.violate(why);
        }
        let since = self.now.saturating_sub(self.plan.calm);
        if self.is_calm && self.converged.is_none() {
            match self.find_difference() {
                None => {
                    self.converged = Some(self.now);
                    self.note(|| format!("converged after {} s", since.as_secs()));
                }
                Some(why) if since > self.patience() => {
                    return self.violate(format!("no convergence: {why}"));
                }
                Some(_) => {}
            }
        }
        if self.is_late() {
            self.revoke_overspent();
        }
        let pause = if self.is_calm { 5 } else { 20 };
        self.queue
            .add(self.now + Duration::from_secs(pause), Event::Check);
    }

    /// The clocks of a machine whose wall clock is `skew` seconds ahead.
    pub(crate) fn clock(&self, skew: i64) -> Now {
        let true_time = UNIX_EPOCH + Duration::from_secs(BEGINNING) + self.now;
        let by = Duration::from_secs(skew.unsigned_abs());
        Now {
            monotonic: self.epoch + self.now,
            wall: if skew < 0 {
                true_time - by
            } else {
                true_time + by
            },
        }
    }

    pub(crate) fn wall(&self, skew: i64) -> SystemTime {
        self.clock(skew).wall
    }

    /// The virtual time of a monotonic clock.
    pub(crate) fn at(&self, instant: Instant) -> At {
        instant.saturating_duration_since(self.epoch)
    }

    /// Writes a line to the event log.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        let (seconds, millis) = (self.now.as_secs(), self.now.subsec_millis());
        let line = format!("{seconds:>6}.{millis:03}  {}", line());
        if self.is_loud {
            println!("{line}");
        }
        writeln!(self.log, "{line}").expect("memory does not fail");
    }

    /// Writes a line to the event log, unless the last such line of the node is the same.
    pub(crate) fn note_once(&mut self, node: usize, line: String) {
        if self.machines[node].noted.as_ref() != Some(&line) {
            self.note(|| line.clone());
            self.machines[node].noted = Some(line);
        }
    }

    pub(crate) fn violate(&mut self, why: String) {
        self.note(|| format!("VIOLATION: {why}"));
        self.violation.get_or_insert(why);
    }

    pub(crate) fn send(&mut self, stream: StreamId, from: Side, message: Message) {
        let due = self
            .network
            .send(stream, from, message, self.now, &mut self.random);
        self.queue.deliver(due);
    }

    /// One side closes a stream, and the other one learns it when all before has arrived.
    pub(crate) fn close(&mut self, stream: StreamId, side: Side) {
        self.send(stream, side, Message::End);
        self.network.close(stream, side);
    }

    /// A side of a stream learns that the other side is gone.
    pub(crate) fn hang_up(&mut self, stream: StreamId, side: Side) {
        let Some((place, purpose)) = self
            .network
            .stream(stream)
            .and_then(|s| s.open[side].then_some((s.ends[side], s.purpose)))
        else {
            return;
        };
        self.network.close(stream, side);
        match place {
            Place::Node(node) => self.handle_end_at_node(node, stream, purpose),
            Place::Coordinator(site) => {
                let now = self.clock(self.sites[site].skew);
                self.sites[site].handle_stream_closed(stream, now);
            }
        }
    }

    fn deliver(&mut self, stream: StreamId, to: Side) {
        let message = match self.network.arrive(stream, to, self.now) {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(later) => return self.queue.deliver(Some(later)),
        };
        let Some((place, purpose)) = self.network.stream(stream).map(|s| (s.ends[to], s.purpose))
        else {
            return;
        };
        match (place, message) {
            (_, Message::End) => self.hang_up(stream, to),
            (Place::Node(node), message) => self.receive_at_node(node, stream, purpose, message),
            (Place::Coordinator(site), message) => self.receive_at_site(site, stream, message),
        }
    }

    fn receive_at_site(&mut self, site: usize, stream: StreamId, message: Message) {
        let now = self.clock(self.sites[site].skew);
        match message {
            Message::Ping => {
                self.sites[site].handle_ping(stream, self.now);
            }
            Message::Join(request) => self.handle_join(site, stream, &request),
            Message::ToCoordinator(message) if self.sites[site].is_stolen => {
                self.handle_at_stolen(site, stream, message);
            }
            Message::ToCoordinator(message) => {
                let clocks = (self.now, now);
                let output =
                    self.sites[site].handle_message(stream, message, clocks, &mut self.random);
                let is_opened = |output: &Output| {
                    matches!(output, Output::Send(_, FromCoordinator::Welcome { .. }))
                };
                if output.iter().any(is_opened) {
                    self.sites[site].pushed = None;
                }
                self.carry_out_of_site(site, output);
                self.push_soon(site);
            }
            _ => {}
        }
    }

    fn handle_join(&mut self, site: usize, stream: StreamId, request: &JoinRequest) {
        if self.sites[site].is_stolen {
            let answer = self.join_at_stolen(request);
            if let Some(response) = answer {
                let answer = Message::Joined(Box::new(Ok(response)));
                self.send(stream, 1, answer);
            }
            return self.close(stream, 1);
        }
        let now = self.clock(self.sites[site].skew);
        let Some(hub) = &self.sites[site].hub else {
            return;
        };
        let answer = hub.join(request, meshd::os::audit::Who::Daemon, now);
        if let Ok(response) = &answer
            && let Err(why) = self.note_admitted(site, request, response)
        {
            self.violate(why);
        }
        self.send(stream, 1, Message::Joined(Box::new(answer)));
        self.close(stream, 1);
        self.push_soon(site);
    }

    /// An honest coordinator admitted a node.
    fn note_admitted(
        &mut self,
        site: usize,
        request: &JoinRequest,
        response: &JoinResponse,
    ) -> Result<(), String> {
        let Some(hub) = &self.sites[site].hub else {
            return Ok(());
        };
        let Ok((_, Record::Membership(membership))) = Record::parse(&request.membership.payload)
        else {
            return Err(format!("c{site} admitted a node without a membership"));
        };
        let life = self.sites[site].life();
        self.truth.acknowledge(life, &request.membership);
        let plan = addresses(&self.administrator.mesh.public());
        let Some(block) = plan.index_of(&response.block) else {
            return Err(format!(
                "c{site} leased {}, which is no block",
                response.block.v4
            ));
        };
        let (token, node) = (membership.token, membership.id);
        match self.truth.admit(life, token, node, block) {
            Some(other) if hub.standing(&other) == Standing::Member => Err(format!(
                "c{site} leased {} to {}, and it was leased to {}",
                response.block.v4,
                node.short(),
                other.short()
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn carry_out_of_site(&mut self, site: usize, output: Vec<Output>) {
        for output in output {
            match output {
                Output::Send(stream, message) => {
                    self.send(stream, 1, Message::ToNode(message));
                }
                Output::Refuse(stream, reason, message) => {
                    let refuse = FromCoordinator::Refuse {
                        reason,
                        message,
                        proof: None,
                    };
                    self.send(stream, 1, Message::ToNode(refuse));
                    self.close(stream, 1);
                    let now = self.clock(self.sites[site].skew);
                    self.sites[site].handle_stream_closed(stream, now);
                }
                Output::Acknowledged(records) => {
                    let life = self.sites[site].life();
                    for record in &records {
                        self.truth.acknowledge(life, record);
                    }
                }
            }
        }
    }

    /// All coordinators look soon whether there is something new for their streams.
    pub(crate) fn push_soon(&mut self, writer: usize) {
        let revision = self.sites[writer].hub.as_ref().map(|hub| hub.revision());
        if self.sites[writer].pushed == revision {
            return;
        }
        self.sites[writer].pushed = revision;
        for (number, site) in self.sites.iter_mut().enumerate() {
            if site.hub.is_some() && !std::mem::replace(&mut site.is_push_due, true) {
                let at = self.now + Duration::from_millis(3);
                self.queue.add(at, Event::Push(number, site.run));
            }
        }
    }

    fn push(&mut self, site: usize) {
        if self.sites[site].is_stolen {
            return;
        }
        if let Some(hub) = &self.sites[site].hub {
            hub.handle_news(self.clock(self.sites[site].skew));
        }
        let output = self.sites[site].push();
        self.carry_out_of_site(site, output);
    }

    fn beat(&mut self, site: usize) {
        let now = self.clock(self.sites[site].skew);
        for stream in self.sites[site].silent_streams(self.now) {
            self.sites[site].handle_stream_closed(stream, now);
            self.network.close(stream, 1);
        }
        if !self.sites[site].is_stolen {
            let output = self.sites[site].beat((self.now, now));
            self.carry_out_of_site(site, output);
            self.push_soon(site);
        }
        for stream in self.sites[site].open_streams() {
            self.send(stream, 1, Message::Ping);
        }
        self.sites[site].disk.sync();
        let run = self.sites[site].run;
        self.queue
            .add(self.now + Duration::from_secs(10), Event::Beat(site, run));
    }

    /// A node dials a place. None if nobody answers there.
    pub(crate) fn connect(&mut self, from: Place, to: Place, purpose: Purpose) -> Option<StreamId> {
        let is_up = match to {
            Place::Coordinator(site) => self.sites[site].hub.is_some(),
            Place::Node(node) => self.machines[node].up().is_some(),
        };
        if !is_up || self.network.is_cut(from, to) {
            return None;
        }
        Some(self.network.open(from, to, purpose))
    }

    /// The machine of a node.
    pub(crate) fn find(&self, id: &PublicKey) -> Option<usize> {
        self.machines.iter().position(|m| m.id() == *id)
    }

    /// A node's program signed its departure in advance.
    pub(crate) fn note_signed_in(&mut self, id: &PublicKey, message: &FromNode) {
        if let FromNode::Farewell { departure } = message
            && departure.signer == *id
        {
            self.truth.note_deposited(departure);
        }
    }
}
