//! `meshctl audit`: shows the log of events of a daemon on this machine, and verifies that nobody changed it. It reads the files
//! of the log, so the daemon need not run.

mod findings;
mod place;
mod text;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;

use self::place::Place;
use super::exit::CliError;
use super::style::Output;
use super::table;
use crate::model::time::utc;
use crate::os::audit::line::Line;
use crate::os::audit::reading::{EventReader, NextEvent};
use crate::os::{arguments, clock};
use crate::protocol::api::ErrorCode;

/// The time between two looks for new events.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(300);
/// The number of earlier events that `--follow` shows.
const MAX_EARLIER: usize = 10;

/// The arguments of `meshctl audit`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl audit --since 1h     the events of the last hour
  meshctl audit --follow       the last events, and then each new one
  meshctl audit --verify       name each line that was deleted, moved or changed
  meshctl audit --file /var/lib/mesh-coordinator

Run it as root. Without --file this is the log of meshd, or that of mesh-coordinator where there is no meshd.")]
pub(super) struct AuditArguments {
    /// The state directory of the daemon, or its audit.jsonl
    #[arg(long, value_name = "PATH", value_parser = arguments::path)]
    file: Option<PathBuf>,
    /// Show the events of this time only: 30m, 1h, 7d
    #[arg(long, value_name = "TIME", value_parser = arguments::duration("1s", "3650d", "30m, 1h or 7d"), allow_hyphen_values = true)]
    since: Option<Duration>,
    /// Show new events until a signal ends this command
    #[arg(long, short)]
    follow: bool,
    /// Verify the chain through all lines
    #[arg(long, conflicts_with_all = ["follow", "since"])]
    verify: bool,
    /// One JSON document on stdout; with --follow one for each event
    #[arg(long)]
    json: bool,
}

/// An event of `meshctl audit --follow --json`.
#[derive(Serialize)]
struct Followed<'a> {
    schema: u32,
    #[serde(flatten)]
    line: &'a Line,
}

pub(super) async fn run(arguments: &AuditArguments) -> Result<u8, CliError> {
    let place = place::find(arguments.file.as_deref())?;
    if let (Some(other), false) = (&place.other, arguments.json) {
        eprintln!("{other}");
    }
    if arguments.verify {
        return findings::verify(&place.directory, arguments.json);
    }
    let since = arguments.since.map(|since| {
        let start = clock::wall().checked_sub(since);
        start.unwrap_or(SystemTime::UNIX_EPOCH)
    });
    let events = Events::open(&place, since)?;
    match (arguments.follow, arguments.json) {
        (true, json) => follow(events, json).await,
        (false, true) => document(events),
        (false, false) => show(events),
    }
}

/// Reads the events that are to be shown.
struct Events {
    reader: EventReader,
    directory: PathBuf,
    /// Earlier events are not shown.
    since: Option<String>,
    unreadable: u64,
}

impl Events {
    fn open(place: &Place, since: Option<SystemTime>) -> Result<Self, CliError> {
        let directory = place.directory.clone();
        let reader = EventReader::open_since(&directory, since.unwrap_or(SystemTime::UNIX_EPOCH));
        Ok(Self {
            reader: reader.map_err(|error| failed(&directory, &error))?,
            directory,
            since: since.map(utc),
            unreadable: 0,
        })
    }

    fn next(&mut self) -> Result<Option<Line>, CliError> {
        loop {
            let next = self.reader.poll();
            match next.map_err(|error| failed(&self.directory, &error))? {
                None => return Ok(None),
                Some(NextEvent::Unreadable) => self.unreadable += 1,
                Some(NextEvent::Event(line)) => {
                    // All times have the same form, so they can be compared as texts.
                    if self.since.as_ref().is_none_or(|since| line.at >= *since) {
                        return Ok(Some(*line));
                    }
                }
            }
        }
    }

    /// Says how many lines could not be shown.
    fn finish(&self) {
        if self.unreadable > 0 {
            eprintln!(
                "{} line(s) cannot be read; `meshctl audit --verify` says which",
                self.unreadable
            );
        }
    }
}

fn show(mut events: Events) -> Result<u8, CliError> {
    let output = Output::stdout();
    let mut is_empty = true;
    while let Some(line) = events.next()? {
        is_empty = false;
        table::line(&text::event(&line, output));
    }
    if is_empty {
        eprintln!("there is no event");
    }
    events.finish();
    Ok(0)
}

/// Prints one document, of which no more than one event is in memory.
fn document(mut events: Events) -> Result<u8, CliError> {
    let directory = serde_json::to_string(&events.directory).map_err(CliError::failed)?;
    table::raw(format!("{{\"schema\":1,\"directory\":{directory},\"events\":[").as_bytes());
    let mut separator = "\n";
    while let Some(line) = events.next()? {
        let text = serde_json::to_string(&line).map_err(CliError::failed)?;
        table::raw(format!("{separator}{text}").as_bytes());
        separator = ",\n";
    }
    table::line("\n]}");
    events.finish();
    Ok(0)
}

async fn follow(mut events: Events, json: bool) -> Result<u8, CliError> {
    let output = Output::stdout();
    let print = |line: &Line| {
        if json {
            return table::json_line(&Followed { schema: 1, line }).map(drop);
        }
        table::line(&text::event(line, output));
        Ok(())
    };
    if events.since.is_none() {
        let mut earlier = VecDeque::new();
        while let Some(line) = events.next()? {
            if earlier.len() >= MAX_EARLIER {
                earlier.pop_front();
            }
            earlier.push_back(line);
        }
        earlier.iter().try_for_each(print)?;
    }
    loop {
        while let Some(line) = events.next()? {
            print(&line)?;
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
        let followed = events.reader.follow();
        followed.map_err(|error| failed(&events.directory, &error))?;
    }
}

/// The error of a log that cannot be read.
fn failed(directory: &Path, error: &std::io::Error) -> CliError {
    let directory = directory.display();
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => CliError::new(
            ErrorCode::Permission,
            format!(
                "only root and the user of the daemon may read the log in {directory}; use sudo"
            ),
        ),
        std::io::ErrorKind::NotFound => CliError::new(
            ErrorCode::NotFound,
            format!(
                "there is no audit log in {directory}; name the state directory of a daemon with --file"
            ),
        ),
        _ => CliError::failed(format!(
            "the audit log in {directory} cannot be read: {error}"
        )),
    }
}
