//! `meshctl rollout SERVICE --each COMMAND`: changes a service on all its nodes, one after the other, from one place.
//!
//! | file | what it does |
//! |---|---|
//! | `order` | what the rollout is to do: service, nodes, commands. Pure |
//! | `course` | how far it is: the entries of the journal, and what follows from them. Pure |
//! | `machine` | which step comes next. Pure |
//! | `view`, `events` | what the machine is told, and what it reports. Pure |
//! | `journal` | the file from which a rollout is resumed, and the lock against a second one |
//! | `fleet` | calls to the nodes, and queries to their DNS |
//! | `command` | runs the command of a node |
//!
//! meshd runs no command: the commands run on this machine, with the rights of the caller.

mod command;
mod course;
mod events;
mod fleet;
mod journal;
mod machine;
mod order;
mod view;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::POLL_INTERVAL;
use super::interrupt::Interrupt;
use crate::cli::exit::CliError;
use crate::cli::{Globals, table};
use crate::model::name::MAX_LABEL;
use crate::model::text::listed;
use crate::model::{Label, ServiceName};
use crate::os::arguments;
use crate::os::progress::ProgressLine;
use crate::os::random;
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{SCHEMA, ServiceRow};
use course::{Course, Version};
use events::{Document, Event};
use fleet::{Fleet, Mesh};
use journal::Journal;
use machine::{End, LocalFault, Look, Machine, Results, Step};
use order::{Order, Way};

/// The maximum length of a command, in bytes.
const MAX_COMMAND: usize = 64 * 1024;
/// The maximum number of nodes that a message names.
const MAX_NAMED: usize = 10;

/// The arguments of a rollout over all nodes of a service.
#[derive(Debug, Args)]
pub(super) struct EachArguments {
    /// Change all nodes of the service from here, one after the other, with this command; {node} in it is the name of the node
    #[arg(long, value_name = "COMMAND", value_parser = parse_command)]
    each: Option<String>,
    /// How many nodes are changed at the same time
    #[arg(long, value_name = "N", requires = "each", default_value = "1", value_parser = arguments::number(1u32, 1000, 1))]
    batch: u32,
    /// Change so many nodes first, and watch them before the others are changed
    #[arg(long, value_name = "N", requires = "each", value_parser = arguments::number(1u32, 1000, 1))]
    canary: Option<u32>,
    /// How long the nodes of --canary are watched
    #[arg(long, value_name = "TIME", requires = "canary", default_value = "60s", value_parser = arguments::duration("1s", "1d", "60s or 5m"), allow_hyphen_values = true)]
    soak: Duration,
    /// After a failure, the command that takes a changed node back; {node} in it is the name of the node
    #[arg(long, value_name = "COMMAND", requires = "each", value_parser = parse_command)]
    rollback: Option<String>,
    /// Print what would happen, and do nothing
    #[arg(long, requires = "each")]
    plan: bool,
    /// Continue a rollout that was interrupted: that of the service, or that of this journal
    #[arg(long, value_name = "FILE", conflicts_with = "each", value_parser = arguments::path)]
    resume: Option<Option<PathBuf>>,
    /// Where to write the journal for --resume [default: meshd/rollout-SERVICE.jsonl in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "FILE", requires = "each", value_parser = arguments::path)]
    journal: Option<PathBuf>,
    /// With --each or --resume: one JSON document on stdout for each event; with --plan one document
    #[arg(long, conflicts_with = "command")]
    json: bool,
}

impl EachArguments {
    /// Whether the rollout is one over all nodes.
    pub(super) fn is_asked(&self) -> bool {
        self.each.is_some() || self.resume.is_some()
    }
}

/// Checks a command for the nodes.
fn parse_command(text: &str) -> Result<String, String> {
    let example = "such as 'ssh {node} docker compose -f /srv/web.yml up -d'";
    if !text.contains(command::NODE) {
        return Err(format!(
            "it is a command with {{node}} for the name of the node, {example}"
        ));
    }
    let names = text.matches(command::NODE).count() * MAX_LABEL;
    if text.len() + names > MAX_COMMAND || text.contains('\0') {
        return Err(format!(
            "it is a command of at most {MAX_COMMAND} bytes with the names of nodes; put more into a script"
        ));
    }
    Ok(text.to_owned())
}

/// What the command line asks for.
pub(super) struct Asked<'a> {
    pub(super) arguments: &'a EachArguments,
    pub(super) services: &'a [ServiceName],
    pub(super) force: bool,
    pub(super) timeout: Duration,
}

pub(super) async fn run(asked: Asked<'_>, globals: &Globals) -> Result<u8, CliError> {
    let interrupt = Interrupt::new()?;
    let mesh = fleet::mesh(&globals.daemon()).await?;
    let arguments = asked.arguments;
    if arguments.plan {
        return plan(&asked.order(&mesh.services)?, arguments.json);
    }
    let Begun {
        order,
        course,
        fleet,
        journal,
    } = match &arguments.resume {
        Some(file) => resume(&asked, file.as_deref(), &mesh, globals).await?,
        None => begin(&asked, &mesh, globals).await?,
    };
    let (nodes, holder) = (order.nodes.clone(), order.holder.clone());
    let fleet = Rc::new(fleet);
    let rollout = Rollout {
        machine: Machine::new(order.clone(), course),
        order,
        fleet: Rc::clone(&fleet),
        journal,
        interrupt,
        is_json: arguments.json,
        is_journal_lost: false,
        progress: None,
    };
    let ended = tokio::select! {
        ended = rollout.drive() => ended,
        never = fleet.keep_reserved(&nodes, &holder) => match never {},
    };
    fleet.release(&nodes, &holder).await;
    ended
}

/// What a rollout goes on from. Its nodes are reserved.
struct Begun {
    order: Order,
    course: Course,
    fleet: Fleet,
    journal: Journal,
}

async fn begin(asked: &Asked<'_>, mesh: &Mesh, globals: &Globals) -> Result<Begun, CliError> {
    // A rollout that runs explains better than the nodes that it has drained why there cannot be a second one.
    let lock = journal::lock(asked.one_service()?)?;
    let mut order = asked.order(&mesh.services)?;
    order.holder = new_holder()?;
    let fleet = Fleet::open(globals, mesh, &order.service, &order.nodes)?;
    fleet.check(&order.nodes, false).await?;
    let path = match &asked.arguments.journal {
        Some(path) => path.clone(),
        None => journal::usual_path(&order.service)?,
    };
    reserve(&fleet, &order).await?;
    match Journal::create(&path, &order, lock) {
        Ok(journal) => Ok(Begun {
            order,
            course: Course::default(),
            fleet,
            journal,
        }),
        Err(error) => {
            fleet.release(&order.nodes, &order.holder).await;
            Err(error)
        }
    }
}

async fn resume(
    asked: &Asked<'_>,
    file: Option<&Path>,
    mesh: &Mesh,
    globals: &Globals,
) -> Result<Begun, CliError> {
    let path = match file {
        Some(file) => file.to_owned(),
        None => journal::usual_path(asked.one_service()?)?,
    };
    let (journal, recorded) = Journal::resume(&path)?;
    let mut order = recorded.order;
    order.way.force |= asked.force;
    if asked.services.iter().any(|asked| *asked != order.service) {
        let text = format!(
            "{} is the journal of a rollout of {}",
            path.display(),
            order.service
        );
        return Err(CliError::new(ErrorCode::BadRequest, text));
    }
    let course = Course::after(&recorded.entries);
    if course.has_ended() {
        let text = "this rollout has ended, so there is nothing to resume; begin a new one";
        return Err(CliError::new(ErrorCode::Conflict, text));
    }
    if order.holder.is_empty() {
        order.holder = new_holder()?;
    }
    let fleet = Fleet::open(globals, mesh, &order.service, &order.nodes)?;
    fleet.check(&order.nodes, true).await?;
    reserve(&fleet, &order).await?;
    Ok(Begun {
        order,
        course,
        fleet,
        journal,
    })
}

fn new_holder() -> Result<String, CliError> {
    let number = random::u64().map_err(CliError::failed)?;
    Ok(format!("{number:016x}"))
}

/// Reserves the nodes for this rollout. With `--force` it goes on without that.
async fn reserve(fleet: &Fleet, order: &Order) -> Result<(), CliError> {
    match fleet.reserve(&order.nodes, &order.holder).await {
        Err(_) if order.way.force => Ok(()),
        reserved => reserved,
    }
}

impl<'a> Asked<'a> {
    fn one_service(&self) -> Result<&'a ServiceName, CliError> {
        match self.services {
            [service] => Ok(service),
            _ => Err(CliError::new(
                ErrorCode::BadRequest,
                "rollout: --each and --resume need the name of one service, such as meshctl rollout web --resume",
            )),
        }
    }

    fn order(&self, rows: &[ServiceRow]) -> Result<Order, CliError> {
        let arguments = self.arguments;
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let way = Way {
            command: arguments.each.clone().unwrap_or_default(),
            rollback: arguments.rollback.clone(),
            batch: count(arguments.batch),
            canary: count(arguments.canary.unwrap_or_default()),
            soak_ms: milliseconds(arguments.soak),
            timeout_ms: milliseconds(self.timeout),
            force: self.force,
        };
        let order = Order::new(self.one_service()?, way, rows);
        order.map_err(|error| CliError::new(error.code, error.message))
    }
}

/// `meshctl rollout --each COMMAND --plan --json`.
#[derive(Serialize)]
struct Planned<'a> {
    #[serde(flatten)]
    order: &'a Order,
    /// The nodes that are changed together, in the order of the groups.
    groups: Vec<&'a [Label]>,
}

fn plan(order: &Order, is_json: bool) -> Result<u8, CliError> {
    if is_json {
        let groups = order.groups().collect();
        return table::json(&Planned { order, groups });
    }
    for line in order.lines(command::fill) {
        table::line(&line);
    }
    Ok(0)
}

/// A rollout that goes on.
struct Rollout {
    machine: Machine,
    order: Order,
    fleet: Rc<Fleet>,
    journal: Journal,
    interrupt: Interrupt,
    is_json: bool,
    /// Whether the journal could not be written.
    is_journal_lost: bool,
    progress: Option<ProgressLine>,
}

impl Rollout {
    /// Carries out one step after the other.
    async fn drive(mut self) -> Result<u8, CliError> {
        loop {
            let step = self.machine.poll(Instant::now());
            let (entries, events) = self.machine.take_news();
            let written = self.journal.append(&entries);
            for event in &events {
                self.show(event);
            }
            if let Err(error) = written
                && !self.is_journal_lost
            {
                self.is_journal_lost = true;
                let fault = LocalFault::Journal(error.message);
                self.machine.handle_fault(fault);
                continue;
            }
            match step {
                Step::Look(look) => self.look(&look).await,
                Step::Drain(nodes) => {
                    let results = self.fleet.drain(&nodes).await;
                    self.machine.handle_drained(&results, Instant::now());
                }
                Step::Publish(nodes) => {
                    let results = self.fleet.publish(&nodes).await;
                    self.machine.handle_published(&results, Instant::now());
                }
                Step::Run { nodes, rollback } => self.run(&nodes, rollback).await,
                Step::End(end) => return self.finish(&end),
            }
        }
    }

    async fn look(&mut self, look: &Look) {
        let fleet = &self.fleet;
        let view = async {
            sleep(POLL_INTERVAL).await;
            fleet.look(look).await
        };
        tokio::select! {
            view = view => match view {
                Ok(view) => self.machine.handle_view(&view, Instant::now()),
                Err(error) => self.machine.handle_fault(LocalFault::Meshd(error.message)),
            },
            () = self.interrupt.received() => self.machine.handle_interrupt(),
        }
    }

    /// Runs the command or the rollback for `nodes` at the same time. An interrupt ends the commands first.
    async fn run(&mut self, nodes: &[Label], rollback: bool) {
        let way = &self.order.way;
        let command = match &way.rollback {
            Some(command) if rollback => command,
            _ => &way.command,
        };
        let (limit, stop) = (self.order.timeout(), CancellationToken::new());
        let commands = nodes
            .iter()
            .map(|node| command::run(command, node, limit, &stop));
        let commands = join_all(commands);
        tokio::pin!(commands);
        let mut is_interrupted = false;
        let ended = loop {
            tokio::select! {
                // An interrupt from before is seen before a command starts.
                biased;
                () = self.interrupt.received(), if !is_interrupted => {
                    is_interrupted = true;
                    stop.cancel();
                }
                ended = &mut commands => break ended,
            }
        };
        if is_interrupted {
            return self.machine.handle_interrupt();
        }
        let results: Results = nodes.iter().cloned().zip(ended).collect();
        self.machine.handle_ran(&results, Instant::now());
    }

    /// Prints an event. If the reader or the terminal is gone, the rollout continues: it must not leave nodes drained.
    fn show(&mut self, event: &Event) {
        self.progress = None;
        if self.is_json {
            let document = Document {
                schema: SCHEMA,
                event,
            };
            let line = serde_json::to_string(&document).unwrap_or_default();
            let _ = writeln!(std::io::stdout(), "{line}");
            return;
        }
        super::say(&event.to_string());
        let waits = match event {
            Event::Draining { .. } => "waiting until no node sends new clients",
            Event::Waiting { .. } => "waiting",
            Event::Checking { .. } => {
                "waiting until the new instances are healthy, published and reached"
            }
            Event::Soaking { .. } => "watching",
            _ => return,
        };
        self.progress = Some(ProgressLine::start(waits));
    }

    fn finish(mut self, end: &End) -> Result<u8, CliError> {
        self.progress = None;
        let standing = self.standing();
        match end {
            End::Done => Ok(0),
            End::Failed(failure) => {
                let place = failure.node.as_ref().map(|node| format!(" at {node}"));
                Err(CliError::failed(format!(
                    "the rollout of {} stopped{}: {}; {standing}",
                    self.order.service,
                    place.unwrap_or_default(),
                    failure.why
                )))
            }
            End::Paused => Err(CliError::failed(format!(
                "interrupted; {standing}; continue with `meshctl rollout --resume {}`",
                self.journal.path().display()
            ))),
        }
    }

    /// Which nodes have which version, and which are still drained.
    fn standing(&self) -> String {
        let course = self.machine.course();
        let mut parts = Vec::new();
        for (version, what) in [
            (Version::New, "the new version is on"),
            (Version::Unsure, "the command was started on"),
            (Version::Reverting, "the rollback was started on"),
            (Version::Reverted, "rolled back:"),
            (Version::NotReverted, "not rolled back:"),
        ] {
            let nodes: Vec<&Label> = course.with_version(version).collect();
            if !nodes.is_empty() {
                parts.push(format!("{what} {}", listed(nodes, MAX_NAMED)));
            }
        }
        if parts.is_empty() {
            parts.push("no node was changed".to_owned());
        }
        if course.drained().is_empty() {
            parts.push("this rollout leaves no node drained".to_owned());
        } else {
            parts.push(format!(
                "may still be drained: {}; run `meshctl service undrain {}` there",
                listed(course.drained(), MAX_NAMED),
                self.order.service
            ));
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_without_the_node_is_refused() {
        assert!(parse_command("ssh {node} true").is_ok());
        for wrong in ["", "ssh web-1 true", "ssh {nodes} true"] {
            assert!(
                parse_command(wrong).is_err_and(|why| why.contains("{node}")),
                "{wrong}"
            );
        }
        let long = format!("{{node}}{}", " ".repeat(MAX_COMMAND));
        assert!(parse_command(&long).is_err());
        let names = "{node} ".repeat(MAX_COMMAND / 60);
        assert!(parse_command(&names).is_err(), "it is too long with names");
    }
}
