//! `meshctl leave`.

use std::time::Duration;

use clap::Args;

use super::exit::CliError;
use super::{Globals, table};
use crate::os::progress::ProgressLine;
use crate::protocol::local::{DepartureState, Left, Status};

/// How long undoing all changes to the machine may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(60);

/// The arguments of `meshctl leave`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl leave    the name and the addresses of this node are free afterwards")]
pub(super) struct LeaveArguments {
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: &LeaveArguments, globals: &Globals) -> Result<u8, CliError> {
    let status: Status = globals.daemon().get("/v1/status").await?;
    let progress = ProgressLine::start("leaving: undoing the changes to this machine");
    let answer: serde_json::Value = globals
        .daemon()
        .within(LEAVE_TIMEOUT)
        .post("/v1/leave", &serde_json::json!({}))
        .await?;
    drop(progress);
    // A meshd of an earlier version returns an empty document, and signs no departure.
    let left: Option<Left> = serde_json::from_value(answer).ok();
    let name = left
        .as_ref()
        .and_then(|left| left.name.clone())
        .or(status.node.map(|node| node.name));
    let name = name.map_or_else(|| "its name".to_owned(), |name| name.to_string());
    eprintln!("left the mesh; {}", outcome(left.as_ref(), &name));
    match left.filter(|_| arguments.json) {
        Some(left) => table::json(&left),
        None => Ok(0),
    }
}

fn outcome(left: Option<&Left>, name: &str) -> String {
    let unsigned = || {
        format!(
            "run `meshctl node remove {name}` on the administrator's machine to free the name and addresses"
        )
    };
    let Some(left) = left else {
        return unsigned();
    };
    match left.departure {
        DepartureState::Published => format!("{name} and its addresses are free"),
        DepartureState::Pending => format!(
            "no coordinator can be reached, so {name} stays taken until one is back: {} peer(s) and meshd on this host deliver the departure then",
            left.peers_reached
        ),
        DepartureState::Copy => format!("the other machine with these keys continues as {name}"),
        DepartureState::Unneeded => "no coordinator has this node as a member".to_owned(),
        DepartureState::Unknown => unsigned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_for_the_name_is_printed() {
        let left = |departure| Left {
            schema: 1,
            name: None,
            departure,
            peers_reached: 2,
        };
        let outcome_of = |departure| outcome(Some(&left(departure)), "web");
        assert_eq!(
            outcome_of(DepartureState::Published),
            "web and its addresses are free"
        );
        assert!(outcome_of(DepartureState::Pending).contains("web stays taken"));
        assert!(outcome_of(DepartureState::Pending).contains("2 peer(s)"));
        assert!(outcome_of(DepartureState::Copy).contains("continues as web"));
        assert!(outcome(None, "web").contains("meshctl node remove web"));
    }
}
