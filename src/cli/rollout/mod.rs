//! `meshctl rollout`: drains the services, waits until all nodes know it and clients have dropped earlier DNS answers,
//! runs the command, waits until the new containers are healthy, and publishes them. With `--each` it does this from one place for
//! all nodes of a service ([`each`]).

mod acknowledged;
mod each;
mod interrupt;
mod plan;
mod resolvers;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitStatus;
use std::time::Duration;

use clap::Args;
use clap_complete::ArgValueCandidates;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::exit::CliError;
use super::{Client, Globals, names};
use crate::model::ServiceName;
use crate::model::text::listed;
use crate::os::arguments;
use crate::os::progress::ProgressLine;
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{ContainerList, ServiceChanged, ServiceList, Status};
use each::EachArguments;
use interrupt::Interrupt;
use plan::{Progress, RolloutPlan};

/// How long clients may keep an answer: its TTL, and a second for delayed ones.
const ANSWER_LIFETIME: Duration = Duration::from_secs(6);
/// The maximum number of services that a message names.
const MAX_NAMED: usize = 10;
/// The interval at which the containers are listed.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// The arguments of `meshctl rollout`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl rollout -- docker compose up -d
  meshctl rollout web --timeout 10m -- docker compose up -d web
  meshctl rollout web --each 'ssh {node} docker compose -f /srv/web.yml up -d' --plan
  meshctl rollout web --each 'ssh {node} /srv/deploy 2.1' --rollback 'ssh {node} /srv/deploy 2.0' --canary 1 --soak 60s --api-token-file rollout.token
  meshctl rollout web --resume

If the command fails, the containers that still run get clients again.

With --each, the commands run on this machine, which has to be a node of the mesh. The other nodes need `[api] enabled = true`, and
--api-token-file names the token for them, which has the scope drain. The first failure stops the rollout, and --rollback takes the
changed nodes back, newest first.")]
pub(super) struct RolloutArguments {
    /// Services of this node's containers, as `web` or `web.project` [default: all of them]; with --each one service of the mesh
    #[arg(value_name = "SERVICE", value_parser = arguments::service, add = ArgValueCandidates::new(names::own_services))]
    services: Vec<ServiceName>,
    /// Continue even if no other node serves the service
    #[arg(long)]
    force: bool,
    /// The time limit for the new containers to become healthy; with --each also that of each command
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = arguments::duration("1s", "1d", "90s or 5m"), allow_hyphen_values = true)]
    timeout: Duration,
    #[command(flatten)]
    each: EachArguments,
    /// The command that replaces the containers, such as docker compose up -d
    #[arg(last = true, required_unless_present_any = ["each", "resume"], conflicts_with_all = ["each", "resume"], value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl RolloutArguments {
    /// Whether the rollout calls the API of other nodes, for which it needs a token.
    pub(super) fn calls_other_nodes(&self) -> bool {
        self.each.is_asked()
    }
}

pub(super) async fn run(arguments: RolloutArguments, globals: &Globals) -> Result<u8, CliError> {
    if arguments.each.is_asked() {
        let asked = each::Asked {
            arguments: &arguments.each,
            services: &arguments.services,
            force: arguments.force,
            timeout: arguments.timeout,
        };
        return Box::pin(each::run(asked, globals)).await;
    }
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
            rollout.undrain().await?;
            say(&format!("{} published again; done", rollout.plan));
            Ok(0)
        }
        Err(error) => {
            // Containers that still run get clients again, whatever the error was.
            let after = match rollout.undrain().await {
                Ok(()) => "the instances that run on this node get clients again".to_owned(),
                Err(also) => also.message,
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
        if !self.drain().await? {
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

    /// Drains all services. Returns whether the coordinator has received it.
    async fn drain(&self) -> Result<bool, CliError> {
        let mut published = true;
        for service in &self.plan.services {
            published &= self.change(service, "drain").await?.published;
        }
        Ok(published)
    }

    /// Publishes all services again. A service that cannot be published does not keep the others drained.
    async fn undrain(&self) -> Result<(), CliError> {
        let mut drained = Vec::new();
        let mut failure = None;
        for service in &self.plan.services {
            match self.change(service, "undrain").await {
                Ok(_) => {}
                // Nothing of the service is left on this node, not even the mark that it is drained.
                Err(error) if error.code == ErrorCode::NotFound.exit_code() => {}
                Err(error) => {
                    drained.push(service);
                    failure = failure.or(Some(error));
                }
            }
        }
        failure.map_or(Ok(()), |error| Err(still_drained(&drained, &error)))
    }

    async fn change(&self, service: &ServiceName, verb: &str) -> Result<ServiceChanged, CliError> {
        let path = format!("/v1/services/{service}/{verb}");
        self.daemon.post(&path, &serde_json::json!({})).await
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

/// The error if these services could not be published again, the first one because of `error`.
fn still_drained(services: &[&ServiceName], error: &CliError) -> CliError {
    let commands = services.iter();
    let commands = commands.map(|service| format!("`meshctl service undrain {service}`"));
    CliError {
        code: error.code,
        message: format!(
            "{} may still be drained: {}; run {}",
            listed(services, MAX_NAMED),
            error.message,
            listed(commands, MAX_NAMED)
        ),
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

/// Writes a line to stderr. If the terminal is gone, the rollout continues: it must not leave services drained.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_could_not_be_published_are_named_with_what_to_run() {
        let [web, shop] =
            ["web", "web.shop"].map(|text| ServiceName::parse(text).expect("a literal"));
        let away = CliError::new(ErrorCode::Unreachable, "meshd is not running");
        let error = still_drained(&[&web, &shop], &away);
        assert_eq!(error.code, away.code);
        assert_eq!(
            error.message,
            "web, web.shop may still be drained: meshd is not running; run `meshctl service undrain web`, `meshctl service undrain web.shop`"
        );
        let services: Vec<ServiceName> = (0..12)
            .map(|n| ServiceName::parse(&format!("web{n}")).expect("a literal"))
            .collect();
        let many: Vec<&ServiceName> = services.iter().collect();
        let message = still_drained(&many, &away).message;
        assert_eq!(
            message.matches("`meshctl service undrain ").count(),
            MAX_NAMED
        );
        assert_eq!(message.matches(", 2 more").count(), 2, "{message}");
    }
}
