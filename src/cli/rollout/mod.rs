//! `meshctl rollout`: drains the services, waits until all nodes know it and clients have dropped earlier DNS answers,
//! runs the command, waits until the new containers are healthy, and publishes them.

mod acknowledged;
mod plan;

use std::ffi::OsString;
use std::process::ExitStatus;
use std::time::Duration;

use clap::Args;
use clap_complete::ArgValueCandidates;
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::exit::CliError;
use super::{Client, Globals, names};
use crate::model::ServiceName;
use crate::os::arguments;
use crate::os::progress::ProgressLine;
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{ContainerList, ServiceChanged, ServiceList, Status};
use plan::{Progress, RolloutPlan};

/// How long clients may keep an answer: its TTL, and a second for delayed ones.
const ANSWER_LIFETIME: Duration = Duration::from_secs(6);
/// The interval at which the containers are listed.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// The arguments of `meshctl rollout`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl rollout -- docker compose up -d
  meshctl rollout web --timeout 10m -- docker compose up -d web

If the command fails, the containers that still run get clients again.")]
pub(super) struct RolloutArguments {
    /// Services of this node's containers, as `web` or `web.project` [default: all of them]
    #[arg(value_name = "SERVICE", value_parser = arguments::service, add = ArgValueCandidates::new(names::own_services))]
    services: Vec<ServiceName>,
    /// Continue even if no other node serves the service
    #[arg(long)]
    force: bool,
    /// The time limit for the new containers to become healthy
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = arguments::duration("1s", "1d", "90s or 5m"), allow_hyphen_values = true)]
    timeout: Duration,
    /// The command that replaces the containers, such as docker compose up -d
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) async fn run(arguments: RolloutArguments, globals: &Globals) -> Result<u8, CliError> {
    let daemon = globals.daemon();
    let containers: ContainerList = daemon.get("/v1/containers").await?;
    let list: ServiceList = daemon.get("/v1/services").await?;
    let status: Status = daemon.get("/v1/status").await?;
    let node = status.node.ok_or_else(|| {
        CliError::new(
            ErrorCode::Conflict,
            "this node is not in a mesh; run `meshctl join -` with a token first",
        )
    })?;
    let plan = RolloutPlan::new(&arguments.services, &containers.containers)?;
    if !arguments.force {
        plan.check_other_nodes(&list.services, &node.name)?;
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
            // Containers that still run get clients again, whatever the error was.
            let again = rollout.set_drained(false).await;
            let after = match again {
                Ok(_) => "the instances that run on this node get clients again".to_owned(),
                Err(also) => format!(
                    "and they are still drained ({}); run `meshctl service undrain`",
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
    plan: RolloutPlan,
    domain: String,
    interrupt: Interrupt,
}

impl Rollout {
    /// Drains, replaces the containers, and waits until the new ones are healthy.
    async fn replace(&mut self, arguments: &RolloutArguments) -> Result<(), CliError> {
        say(&format!("draining {} on this node", self.plan));
        if !self.set_drained(true).await? {
            return Err(CliError::new(
                ErrorCode::Unreachable,
                "the coordinator is not reachable, so the other nodes would not know; nothing was replaced",
            ));
        }
        let (daemon, plan, domain) = (&self.daemon, &self.plan, &self.domain);
        let acknowledged = acknowledged::wait(daemon, &plan.instances, domain);
        let progress = ProgressLine::start("waiting until no other node sends new clients");
        let notes = tokio::select! {
            notes = acknowledged => notes?,
            () = self.interrupt.received() => return Err(interrupted()),
        };
        drop(progress);
        for note in notes {
            say(&note);
        }
        let seconds = ANSWER_LIFETIME.as_secs();
        say(&format!(
            "waiting {seconds} s until clients have dropped earlier answers"
        ));
        let progress = ProgressLine::start("waiting");
        tokio::select! {
            () = sleep(ANSWER_LIFETIME) => {}
            () = self.interrupt.received() => return Err(interrupted()),
        }
        drop(progress);
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
            () = self.interrupt.received() => Err(interrupted()),
        }
    }

    /// Drains or undrains all services. Returns whether the coordinator has received it.
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

    /// Runs the command until it exits. An interrupt from the terminal reaches the command directly. SIGTERM is passed
    /// on to it.
    async fn run_command(&mut self, command: &[OsString]) -> Result<ExitStatus, CliError> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(CliError::new(ErrorCode::BadRequest, "no command is given"));
        };
        let failed = |error: std::io::Error| {
            let why = match error.kind() {
                std::io::ErrorKind::NotFound => "there is no such program in PATH".to_owned(),
                std::io::ErrorKind::PermissionDenied => "it is not executable".to_owned(),
                _ => error.to_string(),
            };
            CliError::failed(format!("cannot run {}: {why}", program.to_string_lossy()))
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

/// The signals that request this program to end. Before it ends, it has to undrain the services.
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

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminal.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn interrupted() -> CliError {
    CliError::failed("interrupted")
}

async fn wait_until_healthy(
    daemon: &Client,
    plan: &RolloutPlan,
    limit: Duration,
) -> Result<(), CliError> {
    say("waiting until the new containers are healthy");
    let _progress = ProgressLine::start("waiting");
    let end = Instant::now() + limit;
    loop {
        // The first list waits as well, because the engine's last events may not have arrived yet.
        sleep(POLL_INTERVAL).await;
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
