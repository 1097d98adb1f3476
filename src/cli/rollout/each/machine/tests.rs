//! Rollouts in a small world: nodes that are drained, that run commands and that fail, on a clock of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::super::super::ANSWER_LIFETIME;
use super::super::super::resolvers::Resolver;
use super::super::order::Way;
use super::super::view::Own;
use super::*;
use crate::model::ServiceName;
use crate::protocol::local::SCHEMA;

/// How long a look takes.
const LOOK: Duration = Duration::from_millis(300);
/// How long a command takes.
const COMMAND: Duration = Duration::from_secs(5);
/// More steps than any rollout of these tests takes.
const MAX_STEPS: usize = 20_000;

/// What fails, always on the same node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// The node cannot be drained.
    Drain(usize),
    /// The DNS of a node does not receive that this node is drained.
    Acknowledge(usize),
    /// The command fails, and changes nothing.
    Command(usize),
    /// The new version never becomes healthy.
    Health(usize),
    /// The DNS of a node does not receive that the new version is published.
    Seen(usize),
    /// The new version becomes unhealthy some seconds after it was published.
    Later(usize),
    /// The node dies while its command runs.
    Death(usize),
}

impl Fault {
    fn node(self) -> Option<usize> {
        match self {
            Self::Nothing => None,
            Self::Drain(n)
            | Self::Acknowledge(n)
            | Self::Command(n)
            | Self::Health(n)
            | Self::Seen(n)
            | Self::Later(n)
            | Self::Death(n) => Some(n),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    is_new: bool,
    is_healthy: bool,
    is_drained: bool,
    is_alive: bool,
    published_at: Option<Instant>,
}

#[derive(Debug, Clone)]
struct World {
    now: Instant,
    nodes: BTreeMap<Label, Node>,
    fault: Fault,
    /// Whether the rollback fails on the node at fault.
    is_rollback_broken: bool,
    /// The smallest number of usable nodes at any moment.
    fewest: usize,
}

fn label(n: usize) -> Label {
    Label::parse(&format!("n{n}")).expect("a name")
}

fn order(nodes: usize, batch: usize, canary: usize) -> Order {
    Order {
        schema: SCHEMA,
        service: ServiceName::parse("web").expect("a literal"),
        nodes: (0..nodes).map(label).collect(),
        holder: String::new(),
        way: Way {
            command: "up {node}".into(),
            rollback: Some("down {node}".into()),
            batch,
            canary,
            soak_ms: 60_000,
            timeout_ms: 60_000,
            force: false,
        },
    }
}

impl World {
    fn new(nodes: usize, fault: Fault) -> Self {
        let node = Node {
            is_new: false,
            is_healthy: true,
            is_drained: false,
            is_alive: true,
            published_at: None,
        };
        Self {
            now: Instant::now(),
            nodes: (0..nodes).map(|n| (label(n), node.clone())).collect(),
            fault,
            is_rollback_broken: false,
            fewest: nodes,
        }
    }

    fn fails(&self, node: &Label, fault: impl Fn(usize) -> Fault) -> bool {
        self.fault
            .node()
            .is_some_and(|n| label(n) == *node && fault(n) == self.fault)
    }

    fn usable(&self) -> BTreeSet<Label> {
        let nodes = self.nodes.iter();
        nodes
            .filter(|(_, node)| node.is_healthy && !node.is_drained && node.is_alive)
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn watch(&mut self) {
        self.fewest = self.fewest.min(self.usable().len());
    }

    fn look(&mut self, look: &Look) -> View {
        self.now += LOOK;
        if let Fault::Later(n) = self.fault
            && let Some(node) = self.nodes.get_mut(&label(n))
            && node.is_new
            && let Some(at) = node.published_at
            && self.now > at + Duration::from_secs(20)
        {
            node.is_healthy = false;
        }
        self.watch();
        let own = look.nodes.iter().map(|name| {
            let own = match self.nodes.get(name) {
                Some(node) if !node.is_alive => Own::Away("it is dead".into()),
                Some(node) if node.is_healthy => Own::Healthy(Duration::from_secs(2)),
                _ => Own::Waiting("it is unhealthy".into()),
            };
            (name.clone(), own)
        });
        let own = own.collect();
        let is_behind = |name: &Label| match look.expect {
            Some(Expect::Drained) => self.fails(name, Fault::Acknowledge),
            Some(Expect::Published) => {
                self.fails(name, Fault::Seen) && self.nodes.get(name).is_some_and(|n| n.is_new)
            }
            None => false,
        };
        let state = if look.nodes.iter().any(is_behind) {
            Resolver::Behind
        } else {
            Resolver::Reached
        };
        View {
            usable: self.usable(),
            own,
            resolvers: self
                .nodes
                .keys()
                .map(|name| (name.clone(), state))
                .collect(),
        }
    }

    fn drain(&mut self, names: &[Label]) -> BTreeMap<Label, Drain> {
        let mut results = BTreeMap::new();
        for name in names {
            let fails = self.fails(name, Fault::Drain);
            let node = self.nodes.get_mut(name).expect("a node of the order");
            let result = if !node.is_alive {
                Drain::Failed("it is dead".to_owned())
            } else if fails {
                Drain::Failed("it refuses".to_owned())
            } else if node.is_drained {
                Drain::Before
            } else {
                node.is_drained = true;
                Drain::Done
            };
            results.insert(name.clone(), result);
        }
        self.watch();
        results
    }

    fn publish(&mut self, names: &[Label]) -> Results {
        let mut results = Results::new();
        for name in names {
            let node = self.nodes.get_mut(name).expect("a node of the order");
            let result = if node.is_alive {
                node.is_drained = false;
                node.published_at = Some(self.now);
                Ok(())
            } else {
                Err("it is dead".to_owned())
            };
            results.insert(name.clone(), result);
        }
        self.watch();
        results
    }

    fn run(&mut self, names: &[Label], rollback: bool) -> Results {
        self.now += COMMAND;
        // While the command runs, nothing runs on these nodes, whether clients come or not.
        let others = self.usable();
        let others = others.iter().filter(|name| !names.contains(name));
        self.fewest = self.fewest.min(others.count());
        let mut results = Results::new();
        for name in names {
            let is_at_fault = self.fault.node().is_some_and(|n| label(n) == *name);
            let fails = (!rollback && self.fails(name, Fault::Command))
                || (rollback && is_at_fault && self.is_rollback_broken);
            let is_sick = self.fails(name, Fault::Health);
            let dies = self.fails(name, Fault::Death);
            let node = self.nodes.get_mut(name).expect("a node of the order");
            assert!(node.is_drained, "{name} has clients while its command runs");
            let result = if dies || !node.is_alive {
                node.is_alive = false;
                Err("it is dead".to_owned())
            } else if fails {
                Err("the command failed".to_owned())
            } else {
                node.is_new = !rollback;
                node.is_healthy = rollback || !is_sick;
                Ok(())
            };
            results.insert(name.clone(), result);
        }
        results
    }

    /// Carries out a step. Returns how the rollout has ended, if it has.
    fn perform(&mut self, machine: &mut Machine, step: &Step) -> Option<End> {
        match step {
            Step::Look(look) => {
                let view = self.look(look);
                machine.handle_view(&view, self.now);
            }
            Step::Drain(nodes) => {
                let results = self.drain(nodes);
                machine.handle_drained(&results, self.now);
            }
            Step::Publish(nodes) => {
                let results = self.publish(nodes);
                machine.handle_published(&results, self.now);
            }
            Step::Run { nodes, rollback } => {
                let results = self.run(nodes, *rollback);
                machine.handle_ran(&results, self.now);
            }
            Step::End(end) => return Some(end.clone()),
        }
        None
    }

    /// Runs to the end. Returns how it ended, and all entries of the journal.
    fn finish(&mut self, machine: &mut Machine) -> (End, Vec<Entry>) {
        let mut entries = Vec::new();
        for _ in 0..MAX_STEPS {
            let step = machine.poll(self.now);
            entries.extend(machine.take_news().0);
            if let Some(end) = self.perform(machine, &step) {
                return (end, entries);
            }
        }
        panic!("the rollout does not end: {machine:?}");
    }

    fn versions(&self) -> Vec<bool> {
        self.nodes.values().map(|node| node.is_new).collect()
    }

    fn drained(&self) -> usize {
        let alive = self.nodes.values().filter(|node| node.is_alive);
        alive.filter(|node| node.is_drained).count()
    }
}

fn roll_out(order: Order, world: &mut World) -> (End, Vec<Entry>) {
    world.finish(&mut Machine::new(order, Course::default()))
}

fn nodes_of(entries: &[Entry], of: impl Fn(&Entry) -> Option<&Label>) -> Vec<Label> {
    entries.iter().filter_map(of).cloned().collect()
}

fn started(entries: &[Entry]) -> Vec<Label> {
    nodes_of(entries, |entry| match entry {
        Entry::Run { node } => Some(node),
        _ => None,
    })
}

fn taken_back(entries: &[Entry]) -> Vec<Label> {
    nodes_of(entries, |entry| match entry {
        Entry::Revert { node } => Some(node),
        _ => None,
    })
}

#[test]
fn all_nodes_are_changed_in_their_order_and_the_canary_is_watched() {
    let mut world = World::new(4, Fault::Nothing);
    let began = world.now;
    let (end, entries) = roll_out(order(4, 2, 1), &mut world);
    assert_eq!(end, End::Done);
    assert_eq!(world.versions(), [true; 4]);
    assert_eq!(started(&entries), (0..4).map(label).collect::<Vec<_>>());
    assert_eq!((world.fewest, world.drained()), (2, 0));
    let soaked = entries.iter().position(|entry| *entry == Entry::Soaked);
    let second = entries
        .iter()
        .position(|e| *e == Entry::Run { node: label(1) });
    assert!(soaked.is_some() && soaked < second, "{entries:?}");
    assert!(world.now - began >= Duration::from_secs(60));
}

#[test]
fn each_command_waits_until_the_answers_before_the_drain_have_expired() {
    let mut world = World::new(2, Fault::Nothing);
    let mut machine = Machine::new(order(2, 1, 0), Course::default());
    let mut drained_at = None;
    loop {
        let step = machine.poll(world.now);
        machine.take_news();
        match &step {
            Step::Drain(_) => drained_at = Some(world.now),
            Step::Run { .. } => {
                let waited = world.now - drained_at.expect("it was drained");
                assert!(waited >= ANSWER_LIFETIME, "{waited:?}");
            }
            _ => {}
        }
        if world.perform(&mut machine, &step).is_some() {
            return;
        }
    }
}

#[test]
fn a_failure_at_each_step_stops_the_rollout_and_takes_the_changed_nodes_back() {
    for (fault, why) in [
        (Fault::Drain(1), "it was not drained: it refuses"),
        (Fault::Acknowledge(1), "still sends clients after 15 s"),
        (Fault::Command(1), "the command failed"),
        (Fault::Health(1), "not healthy within 60 s: it is unhealthy"),
        (Fault::Seen(1), "its instances are not reached from"),
        (Fault::Death(1), "it is dead"),
    ] {
        let mut world = World::new(3, fault);
        let (end, entries) = roll_out(order(3, 1, 0), &mut world);
        let End::Failed(failure) = end else {
            panic!("{fault:?} is a failure");
        };
        assert!(failure.why.contains(why), "{fault:?}: {}", failure.why);
        assert_eq!(failure.node, Some(label(1)), "{fault:?}");
        assert_eq!(world.versions(), [false; 3], "{fault:?}");
        assert!(!started(&entries).contains(&label(2)), "{fault:?}");
        assert_eq!(world.drained(), 0, "{fault:?}");
        assert!(world.fewest >= 1, "{fault:?}");
    }
}

#[test]
fn a_bad_version_is_noticed_on_the_canary_and_changes_no_other_node() {
    for fault in [Fault::Health(0), Fault::Later(0)] {
        let mut world = World::new(6, fault);
        let (end, entries) = roll_out(order(6, 1, 1), &mut world);
        assert!(matches!(end, End::Failed(_)), "{fault:?}");
        assert_eq!(started(&entries), [label(0)], "{fault:?}");
        assert_eq!(taken_back(&entries), [label(0)], "{fault:?}");
        assert_eq!(world.versions(), [false; 6], "{fault:?}");
        assert_eq!(world.usable().len(), 6, "{fault:?}");
    }
}

#[test]
fn without_a_rollback_what_still_runs_is_published() {
    let mut order = order(3, 1, 0);
    order.way.rollback = None;
    let mut world = World::new(3, Fault::Command(1));
    let (end, entries) = roll_out(order, &mut world);
    assert!(matches!(end, End::Failed(_)));
    assert_eq!(taken_back(&entries), Vec::<Label>::new());
    assert_eq!(world.versions(), [true, false, false]);
    assert_eq!((world.drained(), world.usable().len()), (0, 3));
}

#[test]
fn the_last_healthy_instance_is_not_drained_without_force() {
    let mut world = World::new(2, Fault::Nothing);
    world
        .nodes
        .get_mut(&label(1))
        .expect("it is there")
        .is_healthy = false;
    let mut forced = order(2, 1, 0);
    let (end, entries) = roll_out(forced.clone(), &mut world);
    let End::Failed(failure) = end else {
        panic!("it is the last one");
    };
    assert!(failure.why.contains("--force"), "{}", failure.why);
    assert_eq!((started(&entries), world.fewest), (vec![], 1));
    forced.way.force = true;
    assert_eq!(roll_out(forced, &mut world).0, End::Done);
}

#[test]
fn a_node_without_dns_does_not_stop_the_rollout_and_a_silent_one_is_waited_for() {
    let mut machine = Machine::new(order(2, 1, 0), Course::default());
    let mut world = World::new(2, Fault::Nothing);
    let mut silent = Vec::new();
    for _ in 0..MAX_STEPS {
        let step = machine.poll(world.now);
        let news = machine.take_news();
        silent.extend(news.1.into_iter().filter_map(|event| match event {
            Event::Drained { silent, .. } => Some(silent),
            _ => None,
        }));
        match &step {
            Step::Look(look) => {
                let mut view = world.look(look);
                view.resolvers.insert(label(9), Resolver::Silent);
                machine.handle_view(&view, world.now);
            }
            step => {
                if world.perform(&mut machine, step).is_some() {
                    break;
                }
            }
        }
    }
    assert_eq!(silent, [vec![label(9)], vec![label(9)]]);
    assert_eq!(world.versions(), [true, true]);
}

#[test]
fn an_interrupt_at_each_step_leaves_no_node_drained_and_is_resumed() {
    let mut at = 0;
    loop {
        let mut world = World::new(3, Fault::Nothing);
        let mut machine = Machine::new(order(3, 1, 1), Course::default());
        let mut entries = Vec::new();
        let mut ended = None;
        for _ in 0..at {
            let step = machine.poll(world.now);
            entries.extend(machine.take_news().0);
            ended = ended.or(world.perform(&mut machine, &step));
        }
        machine.handle_interrupt();
        let (end, more) = world.finish(&mut machine);
        entries.extend(more);
        assert_eq!(world.drained(), 0, "after {at} steps");
        if ended.is_some() {
            assert_eq!(end, End::Done);
            return;
        }
        let mut resumed = Machine::new(order(3, 1, 1), Course::after(&entries));
        let (end, _) = world.finish(&mut resumed);
        assert_eq!(end, End::Done, "after {at} steps");
        assert_eq!(world.versions(), [true; 3], "after {at} steps");
        assert!(world.fewest >= 1, "after {at} steps");
        at += 1;
    }
}

#[test]
fn an_interrupt_of_a_rollback_at_each_step_is_resumed_to_the_same_end() {
    let mut at = 0;
    loop {
        let mut world = World::new(3, Fault::Health(1));
        let mut machine = Machine::new(order(3, 1, 0), Course::default());
        let mut entries = Vec::new();
        let mut has_ended = false;
        for _ in 0..at {
            let step = machine.poll(world.now);
            entries.extend(machine.take_news().0);
            has_ended |= world.perform(&mut machine, &step).is_some();
        }
        if has_ended {
            return;
        }
        machine.handle_interrupt();
        let (_, more) = world.finish(&mut machine);
        entries.extend(more);
        assert_eq!(world.drained(), 0, "after {at} steps");
        let mut resumed = Machine::new(order(3, 1, 0), Course::after(&entries));
        let (end, _) = world.finish(&mut resumed);
        assert!(matches!(end, End::Failed(_)), "after {at} steps");
        assert_eq!(world.versions(), [false; 3], "after {at} steps");
        assert_eq!(world.drained(), 0, "after {at} steps");
        at += 1;
    }
}

#[test]
fn a_rollback_that_is_resumed_drains_a_node_that_somebody_has_published_meanwhile() {
    let mut world = World::new(3, Fault::Nothing);
    let node = label(1);
    let entries = [
        Entry::Drain { node: node.clone() },
        Entry::Run { node: node.clone() },
        Entry::Failed {
            node: Some(node.clone()),
            why: "it failed".into(),
        },
        Entry::Revert { node: node.clone() },
    ];
    let mut machine = Machine::new(order(3, 1, 0), Course::after(&entries));
    let (_, more) = world.finish(&mut machine);
    assert_eq!(more.first(), Some(&Entry::Drain { node: node.clone() }));
    assert!(more.contains(&Entry::Reverted { node }), "{more:?}");
}

#[test]
fn a_node_that_another_rollout_has_drained_is_left_alone() {
    let mut world = World::new(4, Fault::Nothing);
    let foreign = label(1);
    world
        .nodes
        .get_mut(&foreign)
        .expect("it is there")
        .is_drained = true;
    let (end, entries) = roll_out(order(4, 2, 1), &mut world);
    let End::Failed(failure) = end else {
        panic!("the node belongs to another rollout");
    };
    assert_eq!(failure.node, Some(foreign.clone()));
    assert!(failure.why.contains("another machine"), "{}", failure.why);
    assert_eq!(started(&entries), [label(0)]);
    assert_eq!(world.versions(), [false; 4]);
    let drained = world.nodes.iter().filter(|(_, node)| node.is_drained);
    let drained: Vec<&Label> = drained.map(|(name, _)| name).collect();
    assert_eq!(drained, [&foreign], "the other rollout publishes it");
    let mut forced = order(4, 2, 1);
    forced.way.force = true;
    assert_eq!(roll_out(forced, &mut world).0, End::Done);
    assert_eq!(world.drained(), 0);
}

#[test]
fn a_node_that_dies_at_any_moment_leaves_one_version_and_no_drained_node() {
    let mut at = 0;
    loop {
        let mut world = World::new(4, Fault::Nothing);
        let mut machine = Machine::new(order(4, 1, 1), Course::default());
        let mut has_ended = false;
        for _ in 0..at {
            let step = machine.poll(world.now);
            has_ended |= world.perform(&mut machine, &step).is_some();
        }
        if has_ended {
            return;
        }
        let dead = world.nodes.get_mut(&label(1)).expect("it is there");
        dead.is_alive = false;
        let (end, entries) = world.finish(&mut machine);
        let is_done = end == End::Done;
        let alive = world.nodes.values().filter(|node| node.is_alive);
        let versions: Vec<bool> = alive.map(|node| node.is_new).collect();
        assert_eq!(versions, [is_done; 3], "after {at} steps: {entries:?}");
        assert_eq!(world.drained(), 0, "after {at} steps");
        assert!(world.fewest >= 1, "after {at} steps");
        at += 1;
    }
}

#[test]
fn an_engine_or_a_meshd_that_restarts_in_the_middle_is_waited_for() {
    let mut world = World::new(2, Fault::Nothing);
    let mut machine = Machine::new(order(2, 1, 0), Course::default());
    let mut restarting_until = world.now + Duration::from_secs(5);
    let mut has_run = false;
    for _ in 0..MAX_STEPS {
        let step = machine.poll(world.now);
        machine.take_news();
        let Step::Look(look) = &step else {
            if world.perform(&mut machine, &step) == Some(End::Done) {
                assert_eq!(world.versions(), [true, true]);
                assert_eq!(world.drained(), 0);
                return;
            }
            has_run = matches!(step, Step::Run { .. });
            restarting_until = world.now + Duration::from_secs(5);
            continue;
        };
        let mut view = world.look(look);
        if world.now < restarting_until {
            for own in view.own.values_mut() {
                *own = if has_run {
                    Own::Waiting("no instance runs".into())
                } else {
                    Own::Away("meshd is not running".into())
                };
            }
        }
        machine.handle_view(&view, world.now);
    }
    panic!("the rollout does not end: {machine:?}");
}

#[test]
fn a_rollback_goes_on_without_its_journal() {
    let mut world = World::new(3, Fault::Health(1));
    let mut machine = Machine::new(order(3, 1, 0), Course::default());
    let mut is_lost = false;
    for _ in 0..MAX_STEPS {
        let step = machine.poll(world.now);
        let (_, events) = machine.take_news();
        is_lost |= events
            .iter()
            .any(|event| matches!(event, Event::JournalLost { .. }));
        if matches!(step, Step::Run { rollback: true, .. }) && !is_lost {
            machine.handle_fault(LocalFault::Journal("no space is left".into()));
        } else if world.perform(&mut machine, &step).is_some() {
            break;
        }
    }
    assert!(is_lost);
    assert_eq!(world.versions(), [false; 3]);
    assert_eq!(world.drained(), 0);
}

#[test]
fn a_fault_while_nodes_are_published_gives_up_no_other_node() {
    let mut world = World::new(4, Fault::Drain(2));
    let mut machine = Machine::new(order(4, 2, 1), Course::default());
    let mut entries = Vec::new();
    loop {
        let step = machine.poll(world.now);
        entries.extend(machine.take_news().0);
        if machine.course().is_back() && matches!(step, Step::Publish(_)) {
            break;
        }
        assert_eq!(world.perform(&mut machine, &step), None);
    }
    machine.handle_fault(LocalFault::Meshd("it restarts".into()));
    let (_, more) = world.finish(&mut machine);
    entries.extend(more);
    assert_eq!(taken_back(&entries), [label(0)]);
    assert_eq!(world.versions(), [false; 4]);
    assert_eq!(world.drained(), 0);
    let is_given_up = |entry: &Entry| matches!(entry, Entry::NotReverted { .. });
    assert!(!entries.iter().any(is_given_up), "{entries:?}");
}

#[test]
fn a_fault_of_the_machine_itself_stops_the_rollout() {
    let mut world = World::new(2, Fault::Nothing);
    let mut machine = Machine::new(order(2, 1, 0), Course::default());
    while world.drained() == 0 {
        let step = machine.poll(world.now);
        assert_eq!(world.perform(&mut machine, &step), None);
    }
    machine.handle_fault(LocalFault::Journal("no space is left".into()));
    let (end, _) = world.finish(&mut machine);
    let failure = Failure {
        node: None,
        why: "no space is left".into(),
    };
    assert_eq!(end, End::Failed(failure));
    assert_eq!(world.drained(), 0);
}

/// Rollouts that die at any moment, and are resumed from what the journal has: what the end is, and whether it was always safe.
fn resumed_everywhere(order: &Order, fault: Fault) -> Vec<(bool, Vec<bool>, usize)> {
    let nodes = order.nodes.len();
    let mut world = World::new(nodes, fault);
    let mut entries: Vec<Entry> = Vec::new();
    let mut machine = Machine::new(order.clone(), Course::default());
    let mut ends = Vec::new();
    let mut resume = |entries: &[Entry], world: &World| {
        let course = Course::after(entries);
        if course.has_ended() {
            return;
        }
        let mut world = world.clone();
        let (end, _) = world.finish(&mut Machine::new(order.clone(), course));
        assert!(world.fewest >= 1, "{fault:?} after {entries:?}");
        ends.push((end == End::Done, world.versions(), world.drained()));
    };
    for _ in 0..MAX_STEPS {
        let step = machine.poll(world.now);
        let new = machine.take_news().0;
        let is_look = matches!(step, Step::Look(_));
        if new.is_empty() && is_look {
            // Nothing changes while it looks.
            world.perform(&mut machine, &step);
            continue;
        }
        for written in 0..=new.len() {
            let before = [&entries[..], &new[..written]].concat();
            resume(&before, &world);
        }
        entries.extend(new);
        if world.perform(&mut machine, &step).is_some() {
            return ends;
        }
        resume(&entries, &world);
    }
    panic!("the rollout does not end: {machine:?}");
}

#[test]
fn a_rollout_that_is_resumed_from_any_part_of_its_journal_has_the_same_end() {
    for fault in [
        Fault::Nothing,
        Fault::Drain(2),
        Fault::Acknowledge(2),
        Fault::Command(2),
        Fault::Health(2),
        Fault::Seen(2),
    ] {
        let order = order(4, 1, 1);
        let is_done = fault == Fault::Nothing;
        let ends = resumed_everywhere(&order, fault);
        assert!(ends.len() > 20, "{fault:?}: {}", ends.len());
        for end in ends {
            assert_eq!(end, (is_done, vec![is_done; 4], 0), "{fault:?}");
        }
    }
}

fn a_fault() -> impl Strategy<Value = Fault> {
    let kinds: [fn(usize) -> Fault; 8] = [
        |_| Fault::Nothing,
        Fault::Drain,
        Fault::Acknowledge,
        Fault::Command,
        Fault::Health,
        Fault::Seen,
        Fault::Later,
        Fault::Death,
    ];
    (0..kinds.len(), 0usize..6).prop_map(move |(kind, node)| kinds[kind](node))
}

proptest! {
    #[test]
    fn a_usable_instance_is_left_at_every_moment_and_the_newest_is_taken_back_first(
        nodes in 1usize..7,
        batch in 1usize..4,
        canary in 0usize..3,
        fault in a_fault(),
        is_rollback_broken in any::<bool>(),
        has_rollback in any::<bool>(),
    ) {
        let mut order = order(nodes, batch, canary);
        if !has_rollback {
            order.way.rollback = None;
        }
        let mut world = World::new(nodes, fault);
        world.is_rollback_broken = is_rollback_broken;
        let (end, entries) = roll_out(order, &mut world);
        prop_assert!(world.fewest >= 1, "{entries:?}");
        prop_assert_eq!(world.drained(), 0);
        let hits = fault.node().is_some_and(|n| n < nodes);
        if !hits && nodes > batch {
            prop_assert_eq!(&end, &End::Done);
        }
        let mut newest_first = started(&entries);
        newest_first.reverse();
        let back = taken_back(&entries);
        // A node that could not be drained again is left out; the order stays.
        let mut rest = newest_first.iter();
        prop_assert!(back.iter().all(|node| rest.any(|other| other == node)), "{entries:?}");
        prop_assert!(has_rollback || back.is_empty());
        prop_assert_eq!(entries.last(), Some(&Entry::Ended));
    }
}
