//! `meshctl status`.

mod view;
mod watch;

use clap::{Args, ValueEnum};

use super::exit::CliError;
use super::style::Output;
use super::{Globals, table};
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{Status, SystemList};

/// The arguments of `meshctl status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl status
  meshctl status --watch
  meshctl status --check ready    exits with 2 while the node is not ready
  meshctl status --system         what meshd has changed on this machine")]
pub(super) struct StatusArguments {
    /// One JSON document on stdout; with --watch, one line for each change
    #[arg(long)]
    json: bool,
    /// Exit with 0 if the check passes; otherwise print why and exit with 2: `live` = meshd answers, `ready` = joined and working
    #[arg(long, value_enum, value_name = "live|ready")]
    check: Option<Check>,
    /// List all changes that meshd made to the machine, and why
    #[arg(long, conflicts_with = "check")]
    system: bool,
    /// Show it until Ctrl-C: redrawn on a terminal, otherwise a block for each change
    #[arg(long, short, conflicts_with_all = ["check", "system"])]
    watch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    Live,
    Ready,
}

pub(super) async fn run(arguments: &StatusArguments, globals: &Globals) -> Result<u8, CliError> {
    if arguments.system {
        let list: SystemList = globals.daemon().get("/v1/system").await?;
        if arguments.json {
            return table::json(&list);
        }
        let rows: Vec<Vec<String>> = list
            .entries
            .into_iter()
            .map(|e| vec![e.kind, e.what, e.why])
            .collect();
        table::table(&["KIND", "WHAT", "WHY"], &rows);
        return Ok(0);
    }
    if arguments.watch {
        return watch::run(arguments.json, globals).await;
    }
    let answer: Result<Status, CliError> = globals.daemon().get("/v1/status").await;
    if let Some(check) = arguments.check {
        return check_result(check, answer);
    }
    let status = answer?;
    if arguments.json {
        return table::json(&status);
    }
    for line in view::lines(&status, Output::stdout()) {
        table::line(&line);
    }
    Ok(0)
}

fn check_result(check: Check, answer: Result<Status, CliError>) -> Result<u8, CliError> {
    let not_ready = |why: &str| CliError::new(ErrorCode::NotFound, format!("not ready: {why}"));
    match (check, answer) {
        // If meshd does not answer, the check has failed. A caller without permission learns nothing about meshd.
        (_, Err(error)) if error.code == ErrorCode::Unreachable.exit_code() => {
            Err(CliError::new(ErrorCode::NotFound, error.message))
        }
        (_, Err(error)) => Err(error),
        (Check::Live, Ok(_)) => Ok(0),
        (Check::Ready, Ok(status)) => status
            .why_not_ready()
            .map_or(Ok(0), |why| Err(not_ready(&why))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::local::NodeState;

    #[test]
    fn ready_fails_with_the_reason_and_live_does_not() {
        let status = |state: NodeState, not_ready: Option<&str>| Status {
            schema: 1,
            version: "0".into(),
            state,
            not_ready: not_ready.map(str::to_owned),
            node: None,
            interface: None,
            coordinator: None,
            dns: None,
            policy: None,
            routes: Vec::new(),
            outside: Vec::new(),
            peers: Vec::new(),
            services: crate::protocol::local::ServiceCounts::default(),
            problems: Vec::new(),
        };
        let code = |check, status| match check_result(check, Ok(status)) {
            Ok(code) => (code, String::new()),
            Err(error) => (error.code, error.message),
        };
        let up = status(NodeState::Up, None);
        assert_eq!(code(Check::Ready, up), (0, String::new()));
        let alone = status(NodeState::Up, Some("no peer was reached"));
        let (ended, why) = code(Check::Ready, alone.clone());
        assert_eq!((ended, why.as_str()), (2, "not ready: no peer was reached"));
        assert_eq!(code(Check::Live, alone).0, 0);
        let (ended, why) = code(Check::Ready, status(NodeState::Removed, None));
        assert!(ended == 2 && why.contains("removed"), "{why}");
    }
}
