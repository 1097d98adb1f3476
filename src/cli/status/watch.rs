//! `meshctl status --watch`: on a terminal the status is drawn again and again; otherwise there is a block for each change.

use std::time::Duration;

use super::view;
use crate::cli::exit::CliError;
use crate::cli::style::{BAD, Output};
use crate::cli::{Globals, table};
use crate::protocol::api::ErrorCode;
use crate::protocol::local::Status;

/// The time between two looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// What was last found.
#[derive(Debug, Clone, PartialEq)]
enum Found {
    Status(Box<Status>),
    /// meshd does not answer.
    Silent(String),
}

/// Shows the status until a signal ends this program.
pub(super) async fn run(json: bool, globals: &Globals) -> Result<u8, CliError> {
    let is_drawn = Output::stdout().width.is_some() && !json;
    let mut last: Option<Found> = None;
    loop {
        let found = look(globals).await?;
        if is_drawn {
            draw(&found);
        } else if last.as_ref().map(steady) != Some(steady(&found)) {
            print(&found, json, last.is_none())?;
        }
        last = Some(found);
        tokio::time::sleep(INTERVAL).await;
    }
}

/// A daemon that does not answer may come back. Any other error ends the program.
async fn look(globals: &Globals) -> Result<Found, CliError> {
    match globals.daemon().get("/v1/status").await {
        Ok(status) => Ok(Found::Status(Box::new(status))),
        Err(error) if error.code == ErrorCode::Unreachable.exit_code() => {
            Ok(Found::Silent(error.message))
        }
        Err(error) => Err(error),
    }
}

fn lines(found: &Found) -> Vec<String> {
    let output = Output::stdout();
    match found {
        Found::Status(status) => view::lines(status, output),
        Found::Silent(why) => {
            output.wrap("", &format!("{}: {why}", output.paint(BAD, "not ready")))
        }
    }
}

fn draw(found: &Found) {
    // Cursor to the first cell, and erase what follows it (ECMA-48 8.3.21 and 8.3.39).
    let text = lines(found).join("\n");
    table::raw(format!("\u{1b}[H\u{1b}[J{text}\n\n(every 2 s; Ctrl-C ends)\n").as_bytes());
}

fn print(found: &Found, json: bool, is_first: bool) -> Result<(), CliError> {
    match found {
        Found::Status(status) if json => drop(table::json_line(status)?),
        Found::Silent(why) if json => {
            let silent = serde_json::json!({"schema": 1, "state": "not_running", "not_ready": why});
            table::json_line(&silent)?;
        }
        found => {
            if !is_first {
                table::line("");
            }
            lines(found).iter().for_each(|line| table::line(line));
        }
    }
    Ok(())
}

/// What was found, without the numbers that change all the time.
fn steady(found: &Found) -> Found {
    let Found::Status(status) = found else {
        return found.clone();
    };
    let mut status = status.clone();
    if let Some(coordinator) = &mut status.coordinator {
        coordinator.synced_seconds_ago = None;
        coordinator.revision = 0;
    }
    for peer in &mut status.peers {
        peer.last_heard_seconds_ago = peer.last_heard_seconds_ago.map(|_| 0.0);
        peer.last_handshake_seconds_ago = None;
        peer.rtt_ms = None;
        peer.rx_bytes = 0;
        peer.tx_bytes = 0;
    }
    Found::Status(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::view::sample;

    #[test]
    fn ages_and_counters_are_no_change_and_states_are() {
        let found = |state: &str, heard| {
            let status = sample(&[("a", state, heard)], 0);
            Found::Status(Box::new(status))
        };
        let before = found("direct", Some(1.0));
        assert_eq!(steady(&before), steady(&found("direct", Some(9.0))));
        assert_ne!(steady(&before), steady(&found("unreachable", Some(9.0))));
        assert_ne!(steady(&before), steady(&Found::Silent("x".into())));
    }
}
