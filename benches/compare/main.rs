//! meshd's data plane beside other WireGuards in user space, in network namespaces of one machine.
//!
//! ```text
//! cargo bench --bench compare -- [--rounds N] [--seconds N] [--plain-nic] [PEERS...]
//! ```
//!
//! Peers are `raw` (no tunnel: the limit), `wireguard-go`, `boringtun` and `gotatun`; without any named, those that are
//! installed. Programs come from the `PATH`, or from `BIN_MESHD`, `BIN_WIREGUARD_GO`, `BIN_BORINGTUN` and `BIN_GOTATUN`.
//! Needs root, iperf3, ping, `wg`, and ethtool for `--plain-nic`.
//!
//! Both ends and iperf3 share the machine's cores, and rounds are interleaved, so that what else the machine does hits all
//! alike. Whole-machine CPU time per gigabyte is the figure least moved by it; compare ratios within a run, not runs.

#[path = "../rig/mod.rs"]
mod rig;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use meshd::testbed::{Running, World, as_root};

use rig::{Flow, Node, listen, machine_cpu, median, print_table, process_cpu, resident_kib, send};

/// Measures meshd beside other user space WireGuards.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each is measured; the table has medians.
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// How long each transfer lasts.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Takes the offloads of the network between the ends away.
    #[arg(long)]
    plain_nic: bool,
    /// The programs to measure beside meshd: raw, wireguard-go, boringtun, gotatun.
    peers: Vec<String>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A program to measure: its name, the environment variable with its path, and its paths when it is installed.
const PROGRAMS: [(&str, &str, &[&str]); 4] = [
    ("meshd", "BIN_MESHD", &[env!("CARGO_BIN_EXE_meshd")]),
    ("wireguard-go", "BIN_WIREGUARD_GO", &["wireguard-go"]),
    ("boringtun", "BIN_BORINGTUN", &["boringtun-cli"]),
    ("gotatun", "BIN_GOTATUN", &["gotatun", "gotatun-cli"]),
];

/// The measurements, in the order of the table.
const FIGURES: [&str; 12] = [
    "TCP one stream, Gbit/s",
    "TCP four streams, Gbit/s",
    "TCP reverse, Gbit/s",
    "TCP one stream, machine CPU s/GB",
    "TCP four streams, machine CPU s/GB",
    "TCP reverse, machine CPU s/GB",
    "idle ping p50, us",
    "ping p50 under one stream, us",
    "UDP 64 bytes received, kpps",
    "UDP 64 bytes, daemons' CPU us/packet",
    "UDP 64 bytes, machine CPU us/packet",
    "memory after the flood, MiB an end",
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let subjects = match subjects(&arguments.peers) {
        Ok(subjects) => subjects,
        Err(reason) => {
            eprintln!("{reason}");
            return ExitCode::FAILURE;
        }
    };
    match as_root(|| {
        compare(&arguments, &subjects);
        0
    }) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Something to measure; without a program it is the bare network.
struct Subject {
    name: &'static str,
    program: Option<PathBuf>,
}

/// meshd, and what is asked for, or what there is.
fn subjects(asked: &[String]) -> Result<Vec<Subject>, String> {
    let known: Vec<&str> = PROGRAMS.iter().map(|(name, ..)| *name).collect();
    if let Some(name) = asked
        .iter()
        .find(|name| *name != "raw" && !known.contains(&name.as_str()))
    {
        return Err(format!("`{name}` is unknown: raw, {}", known.join(", ")));
    }
    let mut subjects = Vec::new();
    for (name, variable, programs) in PROGRAMS {
        let wanted = name == "meshd" || asked.iter().any(|other| other == name);
        if !wanted && !asked.is_empty() {
            continue;
        }
        let program = std::env::var_os(variable)
            .map(PathBuf::from)
            .or_else(|| programs.iter().find_map(|program| installed(program)));
        match program {
            Some(program) => subjects.push(Subject {
                name,
                program: Some(program),
            }),
            None if wanted => {
                return Err(format!("{name} is not installed; name it in {variable}"));
            }
            None => {}
        }
    }
    if asked.is_empty() || asked.iter().any(|name| name == "raw") {
        subjects.push(Subject {
            name: "raw",
            program: None,
        });
    }
    Ok(subjects)
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn compare(arguments: &Arguments, subjects: &[Subject]) {
    let (_, stolen) = machine_cpu();
    let began = std::time::Instant::now();
    // One list of samples for every subject and figure.
    let mut samples = vec![vec![Vec::new(); FIGURES.len()]; subjects.len()];
    for round in 1..=arguments.rounds {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            let figures = measure(subject, arguments);
            eprintln!("round {round}: {} done", subject.name);
            for (figure, samples) in figures.into_iter().zip(samples) {
                samples.push(figure);
            }
        }
    }
    let withheld = (machine_cpu().1 - stolen) / began.elapsed().as_secs_f64();
    let medians: Vec<Vec<f64>> = samples
        .iter()
        .map(|figures| figures.iter().map(|figure| median(figure)).collect())
        .collect();
    let network = if arguments.plain_nic {
        "a network without offloads"
    } else {
        "a network with offloads"
    };
    println!(
        "medians of {} rounds over {network}; the host withheld {withheld:.2} cores\n",
        arguments.rounds
    );
    let names: Vec<&str> = subjects.iter().map(|subject| subject.name).collect();
    let rows = |cell: &dyn Fn(usize, usize) -> String| -> Vec<Vec<String>> {
        FIGURES
            .iter()
            .enumerate()
            .map(|(figure, name)| {
                let cells = (0..subjects.len()).map(|subject| cell(subject, figure));
                std::iter::once((*name).to_owned()).chain(cells).collect()
            })
            .collect()
    };
    let head = |first| {
        std::iter::once(first)
            .chain(names.iter().copied())
            .collect()
    };
    let (first, second): (Vec<&str>, Vec<&str>) = (head("median"), head("meshd divided by"));
    print_table(
        &first,
        &rows(&|subject, figure| number(medians[subject][figure])),
    );
    println!();
    print_table(
        &second,
        &rows(&|subject, figure| number(medians[0][figure] / medians[subject][figure])),
    );
}

/// Three digits or so; a dash for what was not measured.
fn number(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "-".to_owned(),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A transfer and what it cost.
struct Cost {
    flow: Flow,
    machine: f64,
    daemons: f64,
}

impl Cost {
    fn per_gigabyte(&self) -> f64 {
        self.machine / (self.flow.bytes / 1e9)
    }
}

/// Both ends with fresh daemons, for one round.
struct Bed<'a> {
    ends: [Node; 2],
    daemons: Vec<Running>,
    /// Where the second end is reached.
    target: Ipv4Addr,
    logs: &'a Path,
    port: u16,
}

fn measure(subject: &Subject, arguments: &Arguments) -> [f64; FIGURES.len()] {
    let logs = tempfile::tempdir().expect("a temporary directory");
    let world = World::new().expect("root may make namespaces");
    let mut bed = Bed::new(&world, subject, arguments.plain_nic, logs.path());
    assert!(
        bed.ends[0].reaches(bed.target, 15),
        "{} does not connect",
        subject.name
    );
    let seconds = arguments.seconds;
    let idle = bed.ping("-c 300 -i 0.01 -W 1");
    let mut under_load = f64::NAN;
    let mut tcp = |extra: &str, pinged: bool| {
        let transfer = format!("-t {seconds} -C cubic {extra}");
        if !pinged {
            return bed.transfer(&transfer);
        }
        let mut command = bed.ends[0].command("ping");
        let target = bed.target.to_string();
        command.args(["-i", "0.05", "-W", "1", "-w", &seconds.to_string(), &target]);
        let mut ping = bed.ends[0]
            .host
            .start(&mut command, &bed.logs.join("ping"))
            .expect("ping");
        let cost = bed.transfer(&transfer);
        ping.wait(std::time::Duration::from_secs(5));
        under_load = median_rtt(&ping.log());
        cost
    };
    let (one, four, reverse) = (tcp("", true), tcp("-P 4", false), tcp("-R", false));
    let udp = bed.transfer(&format!("-u -b 0 -l 64 -t {seconds}"));
    let arrived = udp.flow.sent - udp.flow.lost;
    let resident: f64 = bed.daemons.iter().map(resident_kib).sum();
    // The bare network has no daemons.
    let of_daemons = |value: f64| match bed.daemons.is_empty() {
        true => f64::NAN,
        false => value,
    };
    [
        one.flow.gbps,
        four.flow.gbps,
        reverse.flow.gbps,
        one.per_gigabyte(),
        four.per_gigabyte(),
        reverse.per_gigabyte(),
        idle,
        under_load,
        arrived / f64::from(seconds) / 1e3,
        of_daemons(udp.daemons * 1e6 / arrived),
        udp.machine * 1e6 / arrived,
        of_daemons(resident / 2.0 / 1024.0),
    ]
}

impl<'a> Bed<'a> {
    fn new(world: &World, subject: &Subject, plain_nic: bool, logs: &'a Path) -> Self {
        let node = |name, last| Node::new(world, name, Ipv4Addr::new(10, 9, 0, last));
        let ends = [node("a", 1), node("b", 2)];
        if plain_nic {
            for end in &ends {
                end.run(
                    "ethtool",
                    "-K eth0 tso off gso off gro off tx-udp-segmentation off",
                );
            }
        }
        let mut daemons = Vec::new();
        if let Some(program) = &subject.program {
            for (own, other) in [(0, 1), (1, 0)] {
                let command = command(&ends[own], subject.name, program);
                let peers = [ends[other].as_peer()];
                daemons.push(ends[own].start(command, &peers, logs));
            }
        }
        let target = match subject.program {
            Some(_) => ends[1].address,
            None => ends[1].host.v4(),
        };
        Self {
            ends,
            daemons,
            target,
            logs,
            port: 5200,
        }
    }

    fn transfer(&mut self, arguments: &str) -> Cost {
        self.port += 1;
        let _server = listen(&self.ends[1], self.target, self.port, self.logs);
        let daemons = |bed: &Self| -> f64 {
            bed.daemons
                .iter()
                .map(|daemon| process_cpu(daemon).as_secs_f64())
                .sum()
        };
        let before = (machine_cpu().0, daemons(self));
        let flow = send(&self.ends[0], self.target, self.port, arguments);
        Cost {
            flow,
            machine: machine_cpu().0 - before.0,
            daemons: daemons(self) - before.1,
        }
    }

    /// The median round trip of some echoes in microseconds.
    fn ping(&self, arguments: &str) -> f64 {
        let output = self.ends[0]
            .command("ping")
            .args(arguments.split(' '))
            .arg(self.target.to_string())
            .output()
            .expect("ping");
        median_rtt(&String::from_utf8_lossy(&output.stdout))
    }
}

fn median_rtt(text: &str) -> f64 {
    let milliseconds = text
        .lines()
        .filter_map(|line| line.split_once("time="))
        .filter_map(|(_, rest)| rest.split_whitespace().next()?.parse::<f64>().ok());
    median(&milliseconds.map(|ms| ms * 1e3).collect::<Vec<_>>())
}

fn command(node: &Node, name: &str, program: &Path) -> Command {
    let mut command = node.command(&program.to_string_lossy());
    match name {
        "meshd" => command.args(["wireguard", rig::DEVICE]),
        "wireguard-go" => command.args(["-f", rig::DEVICE]).env("LOG_LEVEL", "error"),
        _ => command
            .args(["-f", "--disable-drop-privileges", rig::DEVICE])
            .env("WG_SUDO", "1"),
    };
    command
}
