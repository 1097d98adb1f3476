//! meshd beside what it was before, or beside other WireGuards in user space, in network namespaces of one machine.
//!
//! ```text
//! cargo bench --bench compare -- COMMIT [WHAT...] [--rounds N] [--seconds N] [--plain-nic]     default: 8 rounds of all
//! cargo bench --bench compare -- [PEERS...] [--rounds N] [--seconds N] [--plain-nic]           default: 4 rounds
//! ```
//!
//! COMMIT is any name that git knows, such as `HEAD~3` or `v0.1.0`. Its programs are built in `target/compare/`, where they stay for the
//! next run. WHAT is one of these, or all without any: `tcp`, `udp`, `ping`, `memory` (of `meshd wireguard`), `dns` (of a node, at its
//! own address) and `demo` (`meshctl demo`). What the earlier programs do not have is left out. For each figure the table has both
//! medians, the ratio within the rounds, the least and the most of each, and whether the difference is larger than the spread
//! ([`meshd::testbed::paired`]). With `HEAD` and no change in the worktree, the table shows the differences that the machine alone makes.
//!
//! PEERS are `raw` (no tunnel: the limit), `wireguard-go`, `boringtun` and `gotatun`; without any named, those that are
//! installed. Programs come from the `PATH`, or from `BIN_MESHD`, `BIN_WIREGUARD_GO`, `BIN_BORINGTUN` and `BIN_GOTATUN`.
//!
//! Needs root, iperf3, ping, `wg`, and ethtool for `--plain-nic`; git and cargo for a commit.
//!
//! Both ends and iperf3 share the machine's cores, and rounds are interleaved, so that what else the machine does hits all
//! alike. CPU time per gigabyte is the figure least moved by it; compare ratios within a run, not runs.

mod bed;
mod builds;
mod earlier;
mod names;
mod peers;

#[path = "../rig/control.rs"]
#[expect(dead_code, reason = "each build is configured by its own meshctl")]
mod control;
#[path = "../rig/mesh.rs"]
mod mesh;
#[path = "../rig/queries.rs"]
mod queries;
#[path = "../rig/mod.rs"]
mod rig;

use std::process::ExitCode;

use clap::Parser;
use meshd::testbed::as_root;

use builds::Wanted;

/// Measures meshd beside an earlier build of it, or beside other user space WireGuards.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each is measured; 8 beside a commit, where fewer rounds show no difference, otherwise 4.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=200))]
    rounds: Option<u16>,
    #[command(flatten)]
    settings: Settings,
    /// A commit and what to measure of it (tcp, udp, ping, memory, dns, demo), or programs to measure beside meshd (raw, wireguard-go,
    /// boringtun, gotatun).
    words: Vec<String>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Settings {
    /// How long each transfer lasts.
    #[arg(long, default_value_t = 5)]
    pub(crate) seconds: u32,
    /// Takes the offloads of the network between the ends away.
    #[arg(long)]
    pub(crate) plain_nic: bool,
}

impl Settings {
    pub(crate) fn network(&self) -> &'static str {
        if self.plain_nic {
            "a network without offloads"
        } else {
            "a network with offloads"
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let compared = match arguments.words.split_first() {
        Some((commit, what)) if !peers::is_peer(commit) => beside_commit(&arguments, commit, what),
        _ => beside_peers(&arguments),
    };
    compared.unwrap_or_else(|reason| {
        eprintln!("{reason}");
        ExitCode::FAILURE
    })
}

fn beside_commit(arguments: &Arguments, commit: &str, what: &[String]) -> Result<ExitCode, String> {
    let wanted = Wanted::parse(what)?;
    let earlier = earlier::build(commit)?;
    let rounds = arguments.rounds.unwrap_or(8).into();
    let code = as_root(|| {
        let compared = builds::compare(&arguments.settings, rounds, &wanted, &earlier);
        u8::from(!compared)
    });
    code.map(ExitCode::from).map_err(|error| error.to_string())
}

fn beside_peers(arguments: &Arguments) -> Result<ExitCode, String> {
    let subjects = peers::subjects(&arguments.words)?;
    let rounds = arguments.rounds.unwrap_or(4).into();
    let code = as_root(|| {
        peers::compare(&arguments.settings, rounds, &subjects);
        0
    });
    code.map(ExitCode::from).map_err(|error| error.to_string())
}

/// Three digits or so; a dash for what was not measured.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "-".to_owned(),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
