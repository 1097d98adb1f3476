//! A coordinator with a thousand nodes: simulated nodes over real TLS connections on loopback.
//!
//! ```text
//! cargo bench --bench storm -- [NODES [SERVICES [MORE]]]      default: 1000 10 10000
//! ```
//!
//! Each simulated node uses the control stream of meshd itself, and ignores the records that it receives. The
//! coordinator is a process of its own, measured with the kernel's figures about it (proc(5)). Printed are its memory, its
//! CPU while nothing happens, how long one change and one policy take to all nodes, how long all take to be back after `kill -9` and a
//! restart, and what a change costs once the store holds the records of MORE nodes; before all that, what the records of
//! a mesh of 200 nodes cost one node.

mod applying;
mod coordinator;
#[expect(
    dead_code,
    reason = "only the bench `change` needs the version of a record"
)]
mod node;
#[path = "../rig/numbers.rs"]
mod numbers;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use meshd::protocol::JoinToken;
use tokio::sync::mpsc;

use crate::coordinator::Coordinator;
use crate::node::{Heard, Member, Sim};
use crate::numbers::numbers;

/// Changes measured, one after the other.
const CHANGES: usize = 60;
/// Policies measured, one after the other.
const POLICIES: usize = 20;
/// How long idle CPU is measured: two rounds of pings.
const IDLE: Duration = Duration::from_secs(20);
/// Nodes in a mesh of the size meshd is made for.
const MESH: usize = 200;
/// Joins at once.
const JOINS: usize = 32;

fn main() -> ExitCode {
    let [nodes, services, more] = numbers([1000, 10, 10_000]);
    if let Err(error) = coordinator::raise_open_files() {
        eprintln!("too few open files for {nodes} connections: {error}");
        return ExitCode::FAILURE;
    }
    applying::measure(MESH, services);
    tokio::runtime::Runtime::new()
        .expect("threads")
        .block_on(storm(nodes, services, more));
    ExitCode::SUCCESS
}

async fn storm(nodes: usize, services: usize, more: usize) {
    let mut coordinator = Coordinator::start();
    let token = coordinator.token(nodes.max(more) + 1);
    let (heard, mut hearing) = mpsc::unbounded_channel();

    let begun = Instant::now();
    let members = join(&token, 0..nodes).await;
    println!(
        "{nodes} joins, {JOINS} at once: {:.1} s, {:.0} a second",
        begun.elapsed().as_secs_f64(),
        nodes as f64 / begun.elapsed().as_secs_f64()
    );

    // All members publish their records. Then all connect as nodes that have received all changes so far.
    let publisher = Sim::connect(&token, &members[0], None, heard.clone());
    assert!(
        publisher.publish(members[0].records(services)),
        "the stream takes it"
    );
    await_all(&mut hearing, 1, |heard| matches!(heard, Heard::Stored)).await;
    fill(&publisher, &token, &members[1..], services).await;
    let mut sims = connect_others(publisher, &token, &members, &heard);
    await_all(&mut hearing, nodes - 1, |heard| {
        matches!(heard, Heard::Opened(_))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!(
        "{nodes} nodes with {services} services each are connected: {} MiB resident, {} MiB at most so far",
        coordinator.resident() / 1024,
        coordinator.most_resident() / 1024
    );

    let before = coordinator.cpu();
    tokio::time::sleep(IDLE).await;
    println!(
        "idle: {:.2} % of a core",
        (coordinator.cpu() - before).as_secs_f64() / IDLE.as_secs_f64() * 100.0
    );

    changes(&mut coordinator, &sims, &mut hearing, nodes).await;
    policies(&coordinator, &mut hearing, nodes).await;

    let cut = Instant::now();
    coordinator.kill_and_restart();
    let restarted = cut.elapsed();
    let back = await_all(&mut hearing, nodes, |heard| {
        matches!(heard, Heard::Opened(_))
    })
    .await;
    let mut times: Vec<Duration> = back.iter().map(|at| at.duration_since(cut)).collect();
    println!(
        "all cut by kill -9, the coordinator answers again after {:.2} s; nodes are back: {}",
        restarted.as_secs_f64(),
        summary(&mut times)
    );
    let refused = sims.iter().filter(|sim| sim.was_refused()).count();
    println!("nodes that were refused: {refused}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!(
        "after that: {} MiB resident, {} MiB at most",
        coordinator.resident() / 1024,
        coordinator.most_resident() / 1024
    );

    if more <= nodes {
        return;
    }
    // Only one node counts everything that it receives.
    sims.truncate(1);
    let publisher = sims.remove(0);
    let begun = Instant::now();
    let others = join(&token, nodes..more).await;
    fill(&publisher, &token, &others, services).await;
    println!(
        "{} more joins, {} records published: {:.0} s",
        more - nodes,
        others.len() * (services + 1),
        begun.elapsed().as_secs_f64()
    );
    let sims = connect_others(publisher, &token, &members, &heard);
    await_all(&mut hearing, nodes - 1, |heard| {
        matches!(heard, Heard::Opened(_))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!(
        "records of {more} nodes: {} MiB resident, {} MiB at most",
        coordinator.resident() / 1024,
        coordinator.most_resident() / 1024
    );
    changes(&mut coordinator, &sims, &mut hearing, nodes).await;
}

/// Connects all members but the first, which is there, as after a pause in which they missed nothing.
fn connect_others(
    first: Sim,
    token: &JoinToken,
    members: &[Member],
    heard: &mpsc::UnboundedSender<Heard>,
) -> Vec<Sim> {
    let position = first.position();
    let others = members.iter().skip(1);
    std::iter::once(first)
        .chain(
            others.map(|member| Sim::connect(token, member, Some(position.clone()), heard.clone())),
        )
        .collect()
}

/// Lets nodes in.
async fn join(token: &JoinToken, numbers: std::ops::Range<usize>) -> Vec<Member> {
    let mut members = Vec::with_capacity(numbers.len());
    let mut running = tokio::task::JoinSet::new();
    for n in numbers {
        if running.len() >= JOINS {
            members.extend(running.join_next().await.map(|m| m.expect("no panic")));
        }
        running.spawn(Member::join(token.clone(), n));
    }
    while let Some(member) = running.join_next().await {
        members.push(member.expect("no panic"));
    }
    members
}

/// Publishes the records of the members, each over its own stream, and waits until all records are stored. The rate at which one
/// node may publish is too low for the records of thousands.
async fn fill(follower: &Sim, token: &JoinToken, members: &[Member], services: usize) {
    let mut running = tokio::task::JoinSet::new();
    for member in members {
        if running.len() >= JOINS {
            running
                .join_next()
                .await
                .expect("some run")
                .expect("no panic");
        }
        let (heard, mut hearing) = mpsc::unbounded_channel();
        // The member connects as a node that has received all changes so far.
        let sim = Sim::connect(token, member, Some(follower.position()), heard);
        let records = member.records(services);
        running.spawn(async move {
            await_all(&mut hearing, 1, |heard| matches!(heard, Heard::Opened(_))).await;
            assert!(sim.publish(records), "the stream takes it");
            await_all(&mut hearing, 1, |heard| matches!(heard, Heard::Stored)).await;
        });
    }
    while let Some(filled) = running.join_next().await {
        filled.expect("no panic");
    }
}

/// Changes one service again and again, and measures how long each change takes to all nodes.
async fn changes(
    coordinator: &mut Coordinator,
    sims: &[Sim],
    hearing: &mut mpsc::UnboundedReceiver<Heard>,
    nodes: usize,
) {
    let before = coordinator.cpu();
    let (mut each, mut last) = (Vec::new(), Vec::new());
    for n in 0..CHANGES {
        let sim = &sims[n % sims.len()];
        let begun = Instant::now();
        assert!(sim.publish(vec![sim.change()]), "the stream takes it");
        let arrivals = await_all(hearing, nodes, |heard| matches!(heard, Heard::Change(..))).await;
        let times: Vec<Duration> = arrivals.iter().map(|at| at.duration_since(begun)).collect();
        last.extend(times.iter().max());
        each.extend(times);
    }
    let cost = (coordinator.cpu() - before).as_secs_f64() * 1e6 / (CHANGES * nodes) as f64;
    println!("one change, to each node: {}", summary(&mut each));
    println!("one change, to the last node: {}", summary(&mut last));
    println!("the coordinator's CPU for one change: {cost:.1} us a node");
}

/// Applies one policy after the other, and measures how long each takes to all nodes, from the start of the command.
async fn policies(
    coordinator: &Coordinator,
    hearing: &mut mpsc::UnboundedReceiver<Heard>,
    nodes: usize,
) {
    let (mut each, mut last) = (Vec::new(), Vec::new());
    for n in 0..POLICIES {
        let text = applying::policy(n as u64);
        let begun = Instant::now();
        tokio::task::block_in_place(|| coordinator.apply_policy(&text));
        let arrivals = await_all(hearing, nodes, |heard| matches!(heard, Heard::Policy(_))).await;
        let times: Vec<Duration> = arrivals.iter().map(|at| at.duration_since(begun)).collect();
        last.extend(times.iter().max());
        each.extend(times);
    }
    println!("`policy apply`, to each node: {}", summary(&mut each));
    println!("`policy apply`, to the last node: {}", summary(&mut last));
}

/// Waits for `count` events of a kind; gives when each came.
async fn await_all(
    hearing: &mut mpsc::UnboundedReceiver<Heard>,
    count: usize,
    wanted: impl Fn(&Heard) -> bool,
) -> Vec<Instant> {
    let time = |heard: &Heard| match heard {
        Heard::Opened(at) | Heard::Change(at, _) | Heard::Policy(at) => *at,
        Heard::Stored => Instant::now(),
    };
    node::await_all(hearing, count, move |heard| {
        wanted(heard).then(|| time(heard))
    })
    .await
}

fn summary(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() as f64 * share).ceil() as usize;
        times
            .get(index.saturating_sub(1))
            .map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    format!(
        "p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    )
}
