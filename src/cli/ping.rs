//! `meshctl ping`.

use std::time::Duration;

use clap::Args;

use super::exit::CliError;
use super::{Globals, table};
use crate::protocol::local::{Ping, Pong};

/// The arguments of `meshctl ping`.
#[derive(Debug, Args)]
pub(super) struct PingArguments {
    /// Name of a node, or one of its mesh addresses
    node: String,
    /// The number of pings
    #[arg(short, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
}

pub(super) async fn run(arguments: PingArguments, globals: &Globals) -> Result<u8, CliError> {
    let daemon = globals.daemon();
    let mut times = Vec::new();
    let mut problems = Vec::new();
    for sequence in 1..=arguments.count {
        if sequence > 1 {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let ping = Ping {
            node: arguments.node.clone(),
            timeout_ms: 2000,
        };
        let pong: Pong = daemon.post("/v1/ping", &ping).await?;
        problems = pong.problems;
        let endpoint = pong
            .endpoint
            .map_or_else(String::new, |e| format!(" over {e}"));
        match pong.rtt_ms {
            Some(rtt) => {
                times.push(rtt);
                table::line(&format!(
                    "{} ({}): {rtt:.2} ms{endpoint}",
                    pong.node, pong.address
                ));
            }
            None => table::line(&format!(
                "{} ({}): no answer within 2 s{endpoint}",
                pong.node, pong.address
            )),
        }
    }
    let best = times.iter().copied().fold(f64::INFINITY, f64::min);
    if times.is_empty() {
        return Err(CliError::failed(format!(
            "{} does not answer; check that meshd runs there and that its UDP port is open; `meshctl status` on both nodes shows problems",
            arguments.node
        )));
    }
    if let Some(problem) = problems.first() {
        return Err(CliError::failed(format!(
            "the tunnel to {} works, but {}: {}; {}",
            arguments.node, problem.what, problem.why, problem.fix
        )));
    }
    eprintln!(
        "{} of {} answered, best {best:.2} ms",
        times.len(),
        arguments.count
    );
    Ok(0)
}
