//! Guests, and networks behind nodes, beside the goals. A guest is wireguard-go with what `meshctl guest add` prints.
//!
//! ```text
//! cargo bench --bench guests                       # all lines; takes about a quarter of an hour
//! cargo bench --bench guests -- f1 --runs 50       # some of them, with more runs
//! ```
//!
//! | line | what it measures |
//! |---|---|
//! | `f1` | from the start of the device to a name that resolves, the size of the configuration, and from `guest remove` to the last answer |
//! | `rate` | a TCP stream through a door to another node, beside one to the door itself |
//! | `f3` | from the failure of the node by which a network is reached to a new connection that is answered, and what becomes of a stream |
//!
//! Needs root, `ip`, `nft`, `wg` and `wireguard-go`.

mod admission;
mod bed;
mod device;
mod rate;
mod routes;

#[path = "../rig/bulk.rs"]
mod bulk;
#[path = "../rig/control.rs"]
mod control;
#[path = "../rig/lines.rs"]
mod lines;
#[path = "../rig/median.rs"]
mod median;
#[path = "../rig/mesh.rs"]
mod mesh;
#[path = "../rig/queries.rs"]
#[expect(dead_code, reason = "there is one service, and one query at a time")]
mod queries;
#[path = "../rig/read.rs"]
#[expect(
    dead_code,
    reason = "memory, and the processor time of the whole machine, are of no use here"
)]
mod read;
#[path = "../paths/report.rs"]
mod report;

use std::process::ExitCode;

use lines::Line;

/// What the arguments say.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    lines: Vec<String>,
    /// The number of runs of each measurement.
    pub(crate) runs: usize,
}

impl Settings {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut settings = Self {
            lines: Vec::new(),
            runs: 20,
        };
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            if argument == "--runs" {
                let text = arguments.next().unwrap_or_default();
                let number = text.parse().ok().filter(|number| *number > 0);
                settings.runs =
                    number.ok_or_else(|| format!("--runs needs a number, not {text:?}"))?;
            } else if LINES.iter().any(|(name, _)| *name == argument) {
                settings.lines.push(argument);
            } else {
                return Err(format!("{argument:?} is neither a line nor an option"));
            }
        }
        Ok(settings)
    }
}

const LINES: [Line<Settings>; 3] = [
    ("f1", admission::in_and_out),
    ("rate", rate::through_a_door),
    ("f3", routes::fail_over),
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
