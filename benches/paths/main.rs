//! How fast and how gently paths are found, changed and replaced, and what a policy does to traffic on them, beside the goals. Nodes are
//! in network namespaces, most of them behind routers.
//!
//! ```text
//! cargo bench --bench paths                                # all lines; takes about an hour
//! cargo bench --bench paths -- a5 a6 --runs 10             # some of them, with fewer runs
//! cargo bench --bench paths -- a6 --runs 5 --calm 300      # the time over which changes of paths are counted
//! ```
//!
//! | line | what it measures |
//! |---|---|
//! | `a1` | from the start of two nodes behind routers to the first packet, and to a direct path |
//! | `a4` | packets that are lost while two nodes move from a relay to a direct path and back, under load |
//! | `a5` | the outage when a direct path is cut, and when a relay is killed |
//! | `a6` | the outage when the direct path loses one direction, and the changes of paths after that |
//! | `a7` | the rate through a relay beside the direct one, and what the relay's processor does for it |
//! | `a8` | the rate through a relay over TLS beside the direct one, and the round trips under that load |
//! | `a10` | the bytes that a relay forwards until a direct path is there, and the probes of two nodes that find none |
//! | `a12` | packets and memory of idle nodes |
//! | `b1` | the rate of a TCP stream without a policy and with one of 1,000 rules, and the processor time for it |
//! | `b2` | how soon established TCP, UDP and pings end after a policy that denies them is applied |
//!
//! Needs root, `ip` and `nft`. `BIN_MESHD` names another build of meshd. With `MESHD_EARLIER`, a directory with programs of an earlier
//! version, `a12` measures these as well.

mod flow;
mod idle;
mod lab;
mod opening;
mod outage;
mod policed;
mod rate;
mod report;
mod stream;
mod switching;

#[path = "../rig/bulk.rs"]
mod bulk;
#[path = "../rig/control.rs"]
mod control;
#[path = "../rig/lines.rs"]
mod lines;
#[path = "../rig/median.rs"]
mod median;
#[path = "../rig/read.rs"]
#[expect(
    dead_code,
    reason = "the processor time of the whole machine is of no use here"
)]
mod read;
#[path = "../rig/scrape.rs"]
mod scrape;

use std::process::ExitCode;
use std::time::Duration;

use meshd::testbed::Nat;

use lines::Line;

/// What the arguments say.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    lines: Vec<String>,
    /// The number of runs of each measurement.
    pub(crate) runs: usize,
    /// For how long changes of paths, and probes, are counted.
    pub(crate) calm: Duration,
    /// The packets in a second that are sent during a switch.
    pub(crate) packets: u32,
    /// The number of idle nodes.
    pub(crate) nodes: usize,
    /// The routers at both ends of the pairs whose start is measured.
    pub(crate) kinds: Vec<Nat>,
}

impl Settings {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut settings = Self {
            lines: Vec::new(),
            runs: 50,
            calm: Duration::from_secs(60),
            packets: 4000,
            nodes: 8,
            kinds: vec![Nat::Restricted, Nat::Plain, Nat::Cgnat],
        };
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            let mut value = || -> Result<u32, String> {
                let text = arguments.next().unwrap_or_default();
                let number = text.parse().ok().filter(|number| *number > 0);
                number.ok_or_else(|| format!("{argument} needs a number, not {text:?}"))
            };
            match argument.as_str() {
                "--runs" => settings.runs = value()? as usize,
                "--calm" => settings.calm = Duration::from_secs(value()?.into()),
                "--packets" => settings.packets = value()?,
                "--nodes" => settings.nodes = value()?.max(3) as usize,
                "--kinds" => {
                    let names = arguments.next().unwrap_or_default();
                    let kinds = names.split(',').map(|name| {
                        let kind = Nat::ALL.into_iter().find(|kind| kind.as_str() == name);
                        kind.ok_or_else(|| format!("there are no routers of kind {name:?}"))
                    });
                    settings.kinds = kinds.collect::<Result<_, _>>()?;
                }
                line if LINES.iter().any(|(name, _)| *name == line) => {
                    settings.lines.push(argument);
                }
                other => return Err(format!("{other:?} is neither a line nor an option")),
            }
        }
        Ok(settings)
    }
}

const LINES: [Line<Settings>; 10] = [
    ("a1", opening::first_packets),
    ("a4", switching::losses),
    ("a5", outage::cuts_and_kills),
    ("a6", outage::one_way),
    ("a7", rate::relayed_and_direct),
    ("a8", stream::over_tls_and_direct),
    ("a10", opening::bytes_and_probes),
    ("a12", idle::packets_and_memory),
    ("b1", policed::throughput),
    ("b2", policed::cuts),
];

fn main() -> ExitCode {
    match Settings::parse(std::env::args().skip(1)) {
        Ok(settings) => lines::print(&settings, &settings.lines, &LINES),
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(64)
        }
    }
}
