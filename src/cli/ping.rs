//! `meshctl ping`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::Args;
use clap_complete::ArgValueCandidates;
use serde::Serialize;

use super::exit::CliError;
use super::{Globals, names, table};
use crate::model::Label;
use crate::os::arguments;
use crate::protocol::local::{Ping, Pong, Problem, SCHEMA};

/// The arguments of `meshctl ping`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl ping web-2
  meshctl ping 10.210.2.1 -c 1

It exits with 1 if no answer comes, and with 2 if there is no such node.")]
pub(super) struct PingArguments {
    /// Name of a node, or one of its mesh addresses
    #[arg(value_name = "NODE", value_parser = parse_node, add = ArgValueCandidates::new(names::peers))]
    node: String,
    /// The number of pings
    #[arg(short, value_name = "N", default_value_t = 3, value_parser = arguments::number(1u32, 10_000, 3), allow_hyphen_values = true)]
    count: u32,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// `meshctl ping --json`.
#[derive(Debug, Serialize)]
struct PingReport {
    schema: u32,
    node: Label,
    address: IpAddr,
    endpoint: Option<SocketAddr>,
    sent: u32,
    received: usize,
    /// Milliseconds of each answer.
    rtt_ms: Vec<f64>,
    problems: Vec<Problem>,
}

/// Parses the name or the address of a node.
pub(super) fn parse_node(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("it is the name of a node, such as web-2, or one of its mesh addresses".into());
    }
    Ok(text.to_owned())
}

pub(super) async fn run(arguments: PingArguments, globals: &Globals) -> Result<u8, CliError> {
    let daemon = globals.daemon();
    let mut report: Option<PingReport> = None;
    for sequence in 1..=arguments.count {
        if sequence > 1 {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let ping = Ping {
            node: arguments.node.clone(),
            timeout_ms: 2000,
        };
        let pong: Pong = daemon.post("/v1/ping", &ping).await?;
        if !arguments.json {
            table::line(&line(&pong));
        }
        let report = report.get_or_insert_with(|| PingReport {
            schema: SCHEMA,
            node: pong.node.clone(),
            address: pong.address,
            endpoint: None,
            sent: 0,
            received: 0,
            rtt_ms: Vec::new(),
            problems: Vec::new(),
        });
        report.sent += 1;
        report.endpoint = pong.endpoint;
        report.problems = pong.problems;
        report.rtt_ms.extend(pong.rtt_ms);
        report.received = report.rtt_ms.len();
    }
    let Some(report) = report else { return Ok(0) };
    if arguments.json {
        table::json(&report)?;
    }
    conclude(&report, &arguments.node)
}

fn line(pong: &Pong) -> String {
    let endpoint = pong
        .endpoint
        .map_or_else(String::new, |e| format!(" over {e}"));
    let time = match pong.rtt_ms {
        Some(rtt) => format!("{rtt:.2} ms"),
        None => "no answer within 2 s".to_owned(),
    };
    format!("{} ({}): {time}{endpoint}", pong.node, pong.address)
}

fn conclude(report: &PingReport, node: &str) -> Result<u8, CliError> {
    if report.received == 0 {
        return Err(CliError::failed(format!(
            "{node} does not answer; check that meshd runs there and that its UDP port is open; `meshctl status` on both nodes shows problems"
        )));
    }
    if let Some(problem) = report.problems.first() {
        return Err(CliError::failed(format!(
            "the tunnel to {node} works, but {}: {}; {}",
            problem.what, problem.why, problem.fix
        )));
    }
    let best = report.rtt_ms.iter().copied().fold(f64::INFINITY, f64::min);
    eprintln!(
        "{} of {} answered, best {best:.2} ms",
        report.received, report.sent
    );
    Ok(0)
}
