//! `meshctl doctor`: probes the tunnels, looks a mesh name up as programs do, and explains how to correct problems.
//!
//! This program makes the lookups, not meshd. Entering the network namespace of a container needs rights over the whole
//! machine, which an administrator has and the daemon does not.

mod explain;
mod lookup;
mod tunnels;

use std::net::IpAddr;

use clap::Args;
use serde::Serialize;

use self::explain::{Finding, LookupResult, Machine, Outcome, Place, explain};
use super::exit::CliError;
use super::{Globals, table};
use crate::os::progress::ProgressLine;
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{Checkup, Problem, SCHEMA, TunnelCheck};

/// The arguments of `meshctl doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl doctor
  meshctl doctor --json

Run it as root: it enters the networks of containers. It exits with 2 if something does not work.")]
pub(super) struct DoctorArguments {
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// `meshctl doctor --json`.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    /// Whether everything works.
    ok: bool,
    /// The name looked up.
    name: String,
    tunnels: Vec<TunnelCheck>,
    places: Vec<Row>,
    /// Routes and rules that divert packets from the tunnel.
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Row {
    /// `host`, or `container NAME`.
    place: String,
    network: Option<String>,
    servers: Vec<Server>,
    #[serde(flatten)]
    finding: Finding,
}

#[derive(Debug, Serialize)]
struct Server {
    address: IpAddr,
    outcome: Outcome,
}

pub(super) async fn run(arguments: &DoctorArguments, globals: &Globals) -> Result<u8, CliError> {
    let report = report(globals).await?;
    let ok = report.ok;
    if arguments.json {
        table::json(&report)?;
    } else {
        print(&report);
    }
    Ok(if ok { 0 } else { 2 })
}

/// The document of `meshctl doctor --json`, or why there is none.
pub(super) async fn document(globals: &Globals) -> String {
    match report(globals).await {
        Ok(report) => serde_json::to_string_pretty(&report).unwrap_or_default(),
        Err(error) => format!("not available: {}", error.message),
    }
}

async fn report(globals: &Globals) -> Result<Report, CliError> {
    let progress = ProgressLine::start("probing the tunnels and looking names up");
    let checkup: Checkup = globals.daemon().get("/v1/checkup").await?;
    if checkup.removed {
        return Err(CliError::new(ErrorCode::NotFound, tunnels::REMOVED));
    }
    let report = tokio::task::spawn_blocking(move || examine(&checkup))
        .await
        .map_err(CliError::failed)?;
    drop(progress);
    report
}

fn examine(checkup: &Checkup) -> Result<Report, CliError> {
    let Some(dns) = checkup.dns else {
        return Err(CliError::new(
            ErrorCode::Configuration,
            "this node answers no DNS queries; set `[dns] enabled = true` in meshd.toml",
        ));
    };
    let look_up = |process| lookup::look_up(process, &checkup.name, checkup.expected);
    let mut machine = Machine {
        dns,
        split: checkup.split_dns != "none",
        host_resolves: false,
    };
    let found = look_up(None);
    let finding = explain(&Place::Host, &found, &machine);
    machine.host_resolves = finding.ok;
    let mut rows = vec![row(&Place::Host, found, finding)];
    for container in &checkup.containers {
        let place = Place::Container {
            name: container.name.clone(),
            network: container.network.clone(),
            kind: container.kind,
        };
        let found = look_up(Some(container.pid));
        let finding = explain(&place, &found, &machine);
        rows.push(row(&place, found, finding));
    }
    Ok(Report {
        schema: SCHEMA,
        ok: rows.iter().all(|row| row.finding.ok)
            && checkup.problems.is_empty()
            && tunnels::all_work(&checkup.tunnels),
        name: checkup.name.clone(),
        tunnels: checkup.tunnels.clone(),
        places: rows,
        problems: checkup.problems.clone(),
    })
}

fn row(place: &Place, found: LookupResult, finding: Finding) -> Row {
    let (place, network) = match place {
        Place::Host => ("host".to_owned(), None),
        Place::Container { name, network, .. } => {
            (format!("container {name}"), Some(network.clone()))
        }
    };
    let servers = match found {
        LookupResult::Servers(servers) => servers,
        LookupResult::Failed(_) => Vec::new(),
    };
    Row {
        place,
        network,
        servers: servers
            .into_iter()
            .map(|(address, outcome)| Server { address, outcome })
            .collect(),
        finding,
    }
}

fn print(report: &Report) {
    tunnels::print(&report.tunnels);
    for row in &report.places {
        let network = row.network.as_ref();
        let network = network.map_or_else(String::new, |name| format!(" (network {name})"));
        let verdict = if row.finding.ok {
            "resolves"
        } else {
            "does not resolve"
        };
        table::line(&format!(
            "{}{network}: {} {verdict}",
            row.place, report.name
        ));
        table::line(&format!("  why: {}", row.finding.why));
        if let Some(fix) = &row.finding.fix {
            table::line(&format!("  fix: {fix}"));
        }
    }
    for problem in &report.problems {
        table::line(&problem.what);
        table::line(&format!("  why: {}", problem.why));
        table::line(&format!("  fix: {}", problem.fix));
    }
}
