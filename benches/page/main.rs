//! How long Chromium takes to paint the page of a coordinator with many nodes and services.
//!
//! ```text
//! cargo bench --bench page -- [LOADS [NODES [SERVICES]]]      default: 20 200 10
//! ```
//!
//! The nodes are those of the bench `storm`: each has SERVICES services and a real control stream. A browser without a window loads the page
//! LOADS times for each view. Printed are the time from the request to the first paint of the frame, and the time from the token to the
//! frame in which the view is painted. The programs, the nodes and the browser share this machine's cores. Needs chromedriver and curl.

mod browser;

#[path = "../../tests/api/coordinator.rs"]
#[expect(dead_code, reason = "nobody ends the coordinator in the middle")]
mod coordinator;
#[path = "../storm/node.rs"]
#[expect(dead_code, reason = "the simulated nodes change nothing")]
mod node;
#[path = "../rig/numbers.rs"]
mod numbers;

use std::process::{Command, ExitCode};

use meshd::protocol::JoinToken;
use meshd::testbed::paired::Spread;
use tokio::sync::mpsc;

use browser::Browser;
use coordinator::Coordinator;
use node::{Heard, Member, Sim, await_all};
use numbers::numbers;

/// The views that are longest in a mesh with many nodes and services.
const VIEWS: [&str; 2] = ["nodes", "services"];
/// The goal for the first paint, in milliseconds.
const GOAL: u32 = 300;

fn main() -> ExitCode {
    let [loads, nodes, services] = numbers([20, 200, 10]);
    for program in ["chromedriver", "curl"] {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("{program} is not installed (Debian: chromium-driver, curl)");
            return ExitCode::FAILURE;
        }
    }
    let coordinator = Coordinator::start();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let sims = runtime.block_on(fill(&coordinator, nodes, services));
    println!(
        "{} nodes with {services} services each are connected; the goal for the first paint is {GOAL} ms",
        sims.len()
    );
    let scopes = ["status:read", "nodes:read", "services:read"];
    let scopes = scopes.iter().flat_map(|scope| ["--scope", *scope]);
    let create = ["api-token", "create", "--name", "page"];
    let create: Vec<&str> = create.into_iter().chain(scopes).collect();
    let token = coordinator.admin(&create);
    let browser = Browser::start();
    for view in VIEWS {
        let url = format!("https://127.0.0.1:{}/page#{view}", coordinator.port());
        let load = |_| browser.load(&url, token.trim());
        let times: Vec<(f64, f64)> = (0..loads).map(load).collect();
        print(
            &format!("{view}: first paint"),
            times.iter().map(|time| time.0),
        );
        print(
            &format!("{view}: the view is painted after the token"),
            times.iter().map(|time| time.1),
        );
    }
    ExitCode::SUCCESS
}

/// Lets nodes in, each of which publishes its services and stays connected.
async fn fill(coordinator: &Coordinator, nodes: usize, services: usize) -> Vec<Sim> {
    let created = coordinator.admin(&["token", "create", "--uses", &nodes.to_string()]);
    let token = JoinToken::parse(created.trim()).expect("a token");
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let mut sims: Vec<Sim> = Vec::with_capacity(nodes);
    for n in 0..nodes {
        let member = Member::join(token.clone(), n).await;
        // It connects as a node that has received all changes so far.
        let position = sims.first().map(Sim::position);
        let sim = Sim::connect(&token, &member, position, heard.clone());
        await_all(&mut hearing, 1, |heard| {
            matches!(heard, Heard::Opened(_)).then_some(())
        })
        .await;
        assert!(sim.publish(member.records(services)), "the stream takes it");
        await_all(&mut hearing, 1, |heard| {
            matches!(heard, Heard::Stored).then_some(())
        })
        .await;
        sims.push(sim);
    }
    sims
}

fn print(what: &str, times: impl Iterator<Item = f64>) {
    let times: Vec<f64> = times.collect();
    let measured = times.iter().filter(|time| time.is_finite()).count();
    let Some(spread) = Spread::of(times) else {
        println!("{what}: never");
        return;
    };
    println!(
        "{what}: median {:.0} ms of {measured} loads, from {:.0} to {:.0} ms",
        spread.median, spread.least, spread.most
    );
}
