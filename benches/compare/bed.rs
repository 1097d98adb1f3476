//! Two hosts with a tunnel between them, and what is sent through it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use meshd::testbed::{Running, World};

use crate::rig::{
    DEVICE, Flow, Node, listen, machine_cpu, median, process_cpu, resident_kib, send,
};

/// Something to measure; without a program it is the bare network.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) program: Option<PathBuf>,
}

/// A transfer and what it cost.
pub(crate) struct Cost {
    pub(crate) flow: Flow,
    /// CPU seconds of the whole machine.
    pub(crate) machine: f64,
    /// CPU seconds of both daemons.
    pub(crate) daemons: f64,
}

impl Cost {
    pub(crate) fn gigabytes(&self) -> f64 {
        self.flow.bytes / 1e9
    }

    /// Datagrams that arrived.
    pub(crate) fn arrived(&self) -> f64 {
        self.flow.sent - self.flow.lost
    }
}

/// Both ends with fresh daemons, for one round.
pub(crate) struct Bed<'a> {
    ends: [Node; 2],
    daemons: Vec<Running>,
    /// Where the second end is reached.
    target: Ipv4Addr,
    logs: &'a Path,
    port: u16,
}

impl<'a> Bed<'a> {
    /// Starts both ends, and waits until they reach each other.
    pub(crate) fn new(world: &World, subject: &Subject, plain_nic: bool, logs: &'a Path) -> Self {
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
        let name = subject.name;
        assert!(ends[0].reaches(target, 15), "{name} does not connect");
        Self {
            ends,
            daemons,
            target,
            logs,
            port: 5200,
        }
    }

    /// Sends with iperf3, as its `arguments` say.
    pub(crate) fn transfer(&mut self, arguments: &str) -> Cost {
        self.port += 1;
        let _server = listen(&self.ends[1], self.target, self.port, self.logs);
        let before = (machine_cpu().0, self.daemons_cpu());
        let flow = send(&self.ends[0], self.target, self.port, arguments);
        Cost {
            flow,
            machine: machine_cpu().0 - before.0,
            daemons: self.daemons_cpu() - before.1,
        }
    }

    /// One TCP stream, and the median round trip beside it in microseconds.
    pub(crate) fn pinged_stream(&mut self, seconds: u32) -> (Cost, f64) {
        let mut command = self.ends[0].command("ping");
        let target = self.target.to_string();
        command.args(["-i", "0.05", "-W", "1", "-w", &seconds.to_string(), &target]);
        let log = self.logs.join("ping");
        let started = self.ends[0].host.start(&mut command, &log);
        let mut ping = started.expect("ping");
        let cost = self.transfer(&format!("-t {seconds} -C cubic"));
        ping.wait(Duration::from_secs(5));
        (cost, median_rtt(&ping.log()))
    }

    /// Datagrams of 64 bytes, as many as one sender sends.
    pub(crate) fn small_datagrams(&mut self, seconds: u32) -> Cost {
        self.transfer(&format!("-u -b 0 -l 64 -t {seconds}"))
    }

    /// The median round trip in microseconds while nothing else is sent.
    pub(crate) fn idle_round_trip(&self) -> f64 {
        let output = self.ends[0]
            .command("ping")
            .args("-c 300 -i 0.01 -W 1".split(' '))
            .arg(self.target.to_string())
            .output()
            .expect("ping");
        median_rtt(&String::from_utf8_lossy(&output.stdout))
    }

    /// Resident memory of one daemon in MiB; not a number without daemons.
    pub(crate) fn memory(&self) -> f64 {
        let resident: f64 = self.daemons.iter().map(resident_kib).sum();
        self.of_daemons(resident / self.ends.len() as f64 / 1024.0)
    }

    /// A figure about the daemons. The bare network has none.
    pub(crate) fn of_daemons(&self, value: f64) -> f64 {
        match self.daemons.is_empty() {
            true => f64::NAN,
            false => value,
        }
    }

    fn daemons_cpu(&self) -> f64 {
        let times = self.daemons.iter().map(process_cpu);
        times.map(|time| time.as_secs_f64()).sum()
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
        "meshd" => command.args(["wireguard", DEVICE]),
        "wireguard-go" => command.args(["-f", DEVICE]).env("LOG_LEVEL", "error"),
        _ => command
            .args(["-f", "--disable-drop-privileges", DEVICE])
            .env("WG_SUDO", "1"),
    };
    command
}
