//! `meshctl rollout`: drain, wait until every node knows and no client remembers, run, wait until healthy, publish.

mod acknowledged;
mod plan;

use std::ffi::OsString;
use std::process::ExitStatus;
use std::time::Duration;

use clap::Args;
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::exit::CliError;
use super::{Client, Globals};
use crate::model::ServiceName;
use crate::model::time::milliseconds;
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{ContainerList, ServiceChanged, ServiceList, Status};
use plan::{Plan, Progress};

/// How long clients may keep an answer (the TTL of answers), and a second for those that take it late.
const ANSWERS_FORGOTTEN: Duration = Duration::from_secs(6);
/// Between one look at the containers and the next.
const LOOK: Duration = Duration::from_millis(300);

/// What to roll.
#[derive(Debug, Args)]
pub(super) struct RolloutArguments {
    /// Services of this node's containers, as `web` or `web.project` [default: all of them]
    #[arg(value_name = "SERVICE", value_parser = parse_service)]
    services: Vec<ServiceName>,
    /// Go on though nothing else in the mesh stands in
    #[arg(long)]
    force: bool,
    /// How long the new containers may take to become healthy
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_time)]
    timeout: Duration,
    /// What replaces the containers, such as docker compose up -d
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn parse_service(text: &str) -> Result<ServiceName, String> {
    ServiceName::parse(text).map_err(|error| error.to_string())
}

fn parse_time(text: &str) -> Result<Duration, String> {
    milliseconds(text)
        .map(Duration::from_millis)
        .ok_or_else(|| "write a duration such as 90s or 5m".to_owned())
}

pub(super) async fn run(arguments: RolloutArguments, globals: &Globals) -> Result<u8, CliError> {
    let daemon = globals.daemon();
    let containers: ContainerList = daemon.get("/v1/containers").await?;
    let list: ServiceList = daemon.get("/v1/services").await?;
    let status: Status = daemon.get("/v1/status").await?;
    let node = status
        .node
        .ok_or_else(|| CliError::new(ErrorCode::Conflict, "this node is in no mesh"))?;
    let plan = Plan::new(&arguments.services, &containers.containers)?;
    if !arguments.force {
        plan.refuse_the_last(&list.services, &node.name)?;
    }
    let mut rollout = Rollout {
        daemon,
        plan,
        domain: node.domain.to_string(),
        interrupt: Interrupt::new()?,
    };
    match rollout.replace(&arguments).await {
        Ok(()) => {
            rollout.set_drained(false).await?;
            say(&format!("{} published again; done", rollout.plan));
            Ok(0)
        }
        Err(error) => {
            // What still runs takes clients again, whatever went wrong.
            let again = rollout.set_drained(false).await;
            let after = match again {
                Ok(_) => "what runs of it on this node gets clients again".to_owned(),
                Err(also) => format!(
                    "and it is still drained ({}); run `meshctl service undrain`",
                    also.message
                ),
            };
            Err(CliError {
                message: format!("{}; {after}", error.message),
                ..error
            })
        }
    }
}

struct Rollout {
    daemon: Client,
    plan: Plan,
    domain: String,
    interrupt: Interrupt,
}

impl Rollout {
    /// All from the drain to the health of what is new.
    async fn replace(&mut self, arguments: &RolloutArguments) -> Result<(), CliError> {
        say(&format!("draining {} on this node", self.plan));
        if !self.set_drained(true).await? {
            return Err(CliError::new(
                ErrorCode::Unreachable,
                "the coordinator is away, so the other nodes would not hear of it; nothing was replaced",
            ));
        }
        let (daemon, plan, domain) = (&self.daemon, &self.plan, &self.domain);
        let told = acknowledged::wait(daemon, &plan.instances, domain);
        let notes = tokio::select! {
            notes = told => notes?,
            () = self.interrupt.come() => return Err(interrupted()),
        };
        for note in notes {
            say(&note);
        }
        let seconds = ANSWERS_FORGOTTEN.as_secs();
        say(&format!(
            "waiting {seconds} s, until clients have forgotten earlier answers"
        ));
        tokio::select! {
            () = sleep(ANSWERS_FORGOTTEN) => {}
            () = self.interrupt.come() => return Err(interrupted()),
        }
        let shown: Vec<_> = arguments
            .command
            .iter()
            .map(|a| a.to_string_lossy())
            .collect();
        say(&format!("running {}", shown.join(" ")));
        let status = self.run_command(&arguments.command).await?;
        if !status.success() {
            return Err(CliError::failed(format!("the command failed ({status})")));
        }
        tokio::select! {
            healthy = wait_until_healthy(&self.daemon, &self.plan, arguments.timeout) => healthy,
            () = self.interrupt.come() => Err(interrupted()),
        }
    }

    /// Drains all, or none; gives whether the coordinator has it.
    async fn set_drained(&self, drained: bool) -> Result<bool, CliError> {
        let verb = if drained { "drain" } else { "undrain" };
        let mut published = true;
        for service in &self.plan.services {
            let path = format!("/v1/services/{service}/{verb}");
            let changed: ServiceChanged = self.daemon.post(&path, &serde_json::json!({})).await?;
            published &= changed.published;
        }
        Ok(published)
    }

    /// Runs the command to its end. An interrupt from the terminal reaches it by itself, a request to end is passed on.
    async fn run_command(&mut self, command: &[OsString]) -> Result<ExitStatus, CliError> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(CliError::new(ErrorCode::BadRequest, "no command is given"));
        };
        let failed = |error: std::io::Error| {
            CliError::failed(format!("cannot run {}: {error}", program.to_string_lossy()))
        };
        let mut child = Command::new(program)
            .args(arguments)
            .spawn()
            .map_err(failed)?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        loop {
            tokio::select! {
                status = child.wait() => return status.map_err(failed),
                _ = self.interrupt.terminal.recv() => {}
                _ = self.interrupt.terminate.recv() => {
                    if let Some(pid) = pid {
                        let pid = nix::unistd::Pid::from_raw(pid);
                        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
                    }
                }
            }
        }
    }
}

/// Signals that ask this program to end: it has something to put back first.
struct Interrupt {
    terminal: Signal,
    terminate: Signal,
}

impl Interrupt {
    fn new() -> Result<Self, CliError> {
        Ok(Self {
            terminal: signal(SignalKind::interrupt()).map_err(CliError::failed)?,
            terminate: signal(SignalKind::terminate()).map_err(CliError::failed)?,
        })
    }

    async fn come(&mut self) {
        tokio::select! {
            _ = self.terminal.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn interrupted() -> CliError {
    CliError::failed("interrupted")
}

async fn wait_until_healthy(daemon: &Client, plan: &Plan, limit: Duration) -> Result<(), CliError> {
    say("waiting until what is new is healthy");
    let end = Instant::now() + limit;
    loop {
        // Before the first look as well: the engine's last events are on their way.
        sleep(LOOK).await;
        let list: ContainerList = daemon.get("/v1/containers").await?;
        match plan.progress(&list.containers) {
            Progress::Healthy => return Ok(()),
            Progress::Waiting(why) if Instant::now() >= end => {
                let text = format!("not healthy within {} s: {why}", limit.as_secs());
                return Err(CliError::failed(text));
            }
            Progress::Waiting(_) => {}
        }
    }
}

fn say(text: &str) {
    eprintln!("{text}");
}
