//! From the start of a container to the answer for its name on the farthest node, with the parts of that time.
//!
//! ```text
//! cargo bench --bench change -- [ROUNDS [NODES [SERVICES]]]      default: 100 200 5
//! ```
//!
//! Two of the nodes are meshd itself: one has a stand-in for a container engine, and the other one is asked for the name again and again.
//! The others are those of the bench `storm`: they have SERVICES services each, their control streams are real, and they note when a
//! record arrives. The farthest node is taken to answer when the last of them has received the record, and the time has passed that the
//! asked node needs to process it (`verify` and `zone`), or when the asked node answers, if that is later.
//!
//! The parts are those of the metric `meshd_change_seconds` (docs/metrics.md), and `stream`, the time from the answer of the coordinator
//! to the last arrival. `waits` is what is left: queues, wakeups, and whole milliseconds of the time in a record. All nodes share this
//! machine's cores, so a mesh of as many servers is faster. Needs root, `ip` and `nft`.

mod engine;

#[path = "../rig/control.rs"]
#[expect(dead_code, reason = "the mesh has a function for it")]
mod control;
#[path = "../rig/mesh.rs"]
#[expect(dead_code, reason = "only answers are measured, not the daemon")]
mod mesh;
#[path = "../storm/node.rs"]
#[expect(
    dead_code,
    reason = "the simulated nodes change nothing, and nobody cuts them"
)]
mod node;
#[path = "../rig/numbers.rs"]
mod numbers;
#[path = "../rig/queries.rs"]
#[expect(dead_code, reason = "the container is the only service of its node")]
mod queries;
#[path = "../paths/report.rs"]
#[expect(dead_code, reason = "each change arrives")]
mod report;
#[path = "../rig/scrape.rs"]
mod scrape;
#[path = "../../tests/system/engine.rs"]
#[expect(dead_code, reason = "the engine that the tests have changes nothing")]
mod system_engine;
#[path = "../rig/table.rs"]
mod table;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use meshd::protocol::JoinToken;
use meshd::testbed::{Host, World, as_root};
use tokio::sync::mpsc;

use engine::Engine;
use mesh::{Member, Mesh};
use node::{Heard, MARK, Sim, WAIT_TIMEOUT, await_all};
use numbers::numbers;
use queries::{client, query};
use report::{Times, ms, print};
use scrape::scrape;

/// Rounds that are not counted.
const WARM_UP: usize = 3;
/// How long the nodes have, before the first change, to find each other and to learn which of them answer.
const SETTLE: Duration = Duration::from_secs(20);
/// The pause after a change.
const PAUSE: Duration = Duration::from_millis(300);
/// The pause between two queries.
const POLL: Duration = Duration::from_micros(500);
/// How long to wait for the answer of the coordinator after the last arrival.
const ACKNOWLEDGED: Duration = Duration::from_millis(50);
/// The goal beyond the health check, in milliseconds.
const GOAL: u64 = 300;

/// The parts of a change, in the order of the table.
const PARTS: [&str; 9] = [
    "engine", "probe", "firewall", "sign", "store", "stream", "verify", "zone", "waits",
];

fn main() -> ExitCode {
    let [rounds, nodes, services] = numbers([100, 200, 5]);
    if !(3..=250).contains(&nodes) {
        eprintln!("a mesh with the default prefix has room for 3 to 250 nodes, not {nodes}");
        return ExitCode::from(64);
    }
    match as_root(|| {
        measure(rounds, nodes, services);
        0
    }) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(rounds: usize, nodes: usize, services: usize) {
    let world = World::new().expect("a network");
    let programs = Path::new(env!("CARGO_BIN_EXE_meshd")).parent();
    let mesh = Mesh::start(&world, programs.expect("a program is in a directory"));
    let (origin, asked) = (mesh.add("origin", ""), mesh.add("asked", ""));
    let container = world.host("container").expect("a namespace");
    system_engine::attach(&origin.host, &container);
    accept_connections(&container);
    let bench = Bench {
        engine: Engine::start(&origin.host, MARK, container.pid()),
        origin,
        asked,
        simulated: nodes - 2,
    };
    let token = JoinToken::parse(&mesh.token(bench.simulated)).expect("a token");
    // The threads of the runtime are in the network of the one that makes it, which reaches the coordinator.
    let changes = mesh.coordinator_host.inside(|| {
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        runtime.block_on(bench.run(rounds, &token, services))
    });
    let changes = changes.expect("a namespace");
    println!(
        "{rounds} starts of a container in a mesh of {nodes} nodes with {services} services each"
    );
    show(&changes);
}

/// The container accepts connections at port 80, and closes them.
fn accept_connections(container: &Host) {
    let bind = || TcpListener::bind("0.0.0.0:80");
    let listener = container.inside(bind).expect("a namespace");
    let listener = listener.expect("a free port");
    std::thread::spawn(move || listener.incoming().for_each(drop));
}

/// One start of a container.
struct Change {
    /// In the order of [`PARTS`].
    parts: [Duration; PARTS.len()],
    /// From the event of the engine to the answer of the node that is asked.
    answered: Duration,
    /// From the event of the engine to the last arrival.
    arrived: Duration,
    /// From the event of the engine to the answer on the farthest node.
    whole: Duration,
}

impl Change {
    /// The whole time without the health check.
    fn beyond_check(&self) -> Duration {
        self.whole.saturating_sub(self.parts[1])
    }
}

struct Bench {
    engine: Engine,
    origin: Member,
    asked: Member,
    simulated: usize,
}

impl Bench {
    async fn run(&self, rounds: usize, token: &JoinToken, services: usize) -> Vec<Change> {
        let (heard, mut hearing) = mpsc::unbounded_channel();
        let mut sims = Vec::with_capacity(self.simulated);
        let mut members = Vec::with_capacity(self.simulated);
        for number in 0..self.simulated {
            let member = Box::pin(node::Member::join(token.clone(), number)).await;
            sims.push(Sim::connect(token, &member, None, heard.clone()));
            members.push(member);
        }
        await_all(&mut hearing, self.simulated, |heard| {
            matches!(heard, Heard::Opened(_)).then_some(())
        })
        .await;
        for (sim, member) in sims.iter().zip(&members) {
            assert!(sim.publish(member.records(services)), "the stream takes it");
        }
        await_all(&mut hearing, self.simulated, |heard| {
            matches!(heard, Heard::Stored).then_some(())
        })
        .await;
        tokio::time::sleep(SETTLE).await;
        assert!(self.engine.is_followed(), "meshd follows the engine");
        let mut changes = Vec::with_capacity(rounds);
        for round in 0..WARM_UP + rounds {
            let change = self.change(round as u64 + 1, &mut hearing).await;
            if round >= WARM_UP {
                changes.push(change);
            }
        }
        changes
    }

    /// Starts a container, measures how long the parts of this change take, and removes the container.
    async fn change(&self, number: u64, hearing: &mut mpsc::UnboundedReceiver<Heard>) -> Change {
        let before = self.pages();
        let (begun, date) = (Instant::now(), SystemTime::now());
        self.engine.start_container(number);
        let answered = self.await_name(true);
        let arrivals = self.await_arrivals(hearing).await;
        let (last, version) = arrivals
            .into_iter()
            .max()
            .expect("there are simulated nodes");
        tokio::time::sleep(ACKNOWLEDGED).await;
        let after = self.pages();

        self.engine.remove_container(number);
        self.await_name(false);
        self.await_arrivals(hearing).await;
        tokio::time::sleep(PAUSE).await;
        while hearing.try_recv().is_ok() {}

        let took = |node: usize, stage| {
            let (before, after) = (sum(&before[node], stage), sum(&after[node], stage));
            Duration::from_secs_f64((after - before).max(0.0))
        };
        let [engine, probe, firewall, sign, store] =
            ["engine", "probe", "firewall", "sign", "store"].map(|stage| took(0, stage));
        let [verify, zone] = ["verify", "zone"].map(|stage| took(1, stage));
        // The version of a record is the date of its signature in milliseconds.
        let signing = UNIX_EPOCH + Duration::from_millis(version);
        let signing = signing.duration_since(date).unwrap_or_default();
        let arrived = last - begun;
        let stream = arrived.saturating_sub(signing + sign + store);
        let answered = answered - begun;
        let whole = answered.max(arrived + verify + zone);
        let known = engine + probe.max(firewall) + sign + store + stream + verify + zone;
        let waits = whole.saturating_sub(known);
        Change {
            parts: [
                engine, probe, firewall, sign, store, stream, verify, zone, waits,
            ],
            answered,
            arrived,
            whole,
        }
    }

    /// The metrics of both nodes.
    fn pages(&self) -> [String; 2] {
        tokio::task::block_in_place(|| [&self.origin, &self.asked].map(|node| scrape(&node.host)))
    }

    /// Asks for the name until it has addresses, or has none any more. Returns the time of that answer.
    fn await_name(&self, has_addresses: bool) -> Instant {
        let server = SocketAddr::new(self.asked.address.into(), 53);
        let ask = || {
            let socket = client(server);
            let second = Some(Duration::from_secs(1));
            socket.set_read_timeout(second).expect("a socket");
            let end = Instant::now() + WAIT_TIMEOUT;
            let mut buffer = [0; 1500];
            for number in 0.. {
                let _ = socket.send(&query(number, &[MARK, "svc", "mesh"]));
                let length = socket.recv(&mut buffer).unwrap_or(0);
                let now = Instant::now();
                // The number of answers (RFC 1035 section 4.1.1).
                if let [_, _, _, _, _, _, a, b, ..] = buffer[..length]
                    && ((a, b) != (0, 0)) == has_addresses
                {
                    return now;
                }
                assert!(now < end, "the answer for {MARK} does not change");
                std::thread::sleep(POLL);
            }
            unreachable!("there are enough numbers")
        };
        tokio::task::block_in_place(|| self.asked.host.inside(ask)).expect("a namespace")
    }

    /// Waits until the record has arrived at all simulated nodes. Returns the time and the version of each arrival.
    async fn await_arrivals(
        &self,
        hearing: &mut mpsc::UnboundedReceiver<Heard>,
    ) -> Vec<(Instant, u64)> {
        await_all(hearing, self.simulated, |heard| match heard {
            Heard::Change(at, version) => Some((*at, *version)),
            _ => None,
        })
        .await
    }
}

/// The seconds of a stage on a page of metrics.
fn sum(page: &str, stage: &str) -> f64 {
    let head = format!("meshd_change_seconds_sum{{stage=\"{stage}\"}} ");
    let mut values = page.lines().filter_map(|line| line.strip_prefix(&head));
    let value = values.next().and_then(|value| value.parse().ok());
    value.expect("the node has the metric")
}

fn show(changes: &[Change]) {
    let times = |value: &dyn Fn(&Change) -> Duration| {
        let mut times = Times::default();
        for change in changes {
            times.add(Some(value(change)));
        }
        times
    };
    let row = |what: &str, value: &dyn Fn(&Change) -> Duration| {
        let times = times(value);
        let shown = |percent| format!("{:.2}", times.percentile(percent).as_secs_f64() * 1e3);
        vec![what.to_owned(), shown(50), shown(99), shown(100)]
    };
    let mut rows: Vec<Vec<String>> = PARTS
        .iter()
        .enumerate()
        .map(|(at, part)| row(part, &|change| change.parts[at]))
        .collect();
    rows.extend([
        row("answered on the node that is asked", &|c| c.answered),
        row("received by the last node", &|c| c.arrived),
        row("answered on the farthest node", &|c| c.whole),
        row("the same beyond the health check", &Change::beyond_check),
    ]);
    table::print_table(&["part", "p50, ms", "p99, ms", "most, ms"], &rows);
    let beyond = times(&Change::beyond_check);
    print(
        "",
        "from the start of a container to the farthest answer",
        &beyond.shown(),
        &format!("p99 <= {GOAL} ms beyond the health check"),
        beyond.percentile(99) <= ms(GOAL),
    );
}
