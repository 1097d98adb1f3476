//! meshd: passes values between the tunnel, the paths, DNS, services, containers, the firewall and the coordinator.
//!
//! [`agent`] is one task that owns everything and receives events: commands from [`api`], events of a joined node, time.
//!
//! | file | what it is |
//! |---|---|
//! | [`joined`] | a joined node: passes each event to the part that handles it |
//! | [`settle`] | the one order in which changes are applied to the parts |
//! | [`timers`] | the table of deadlines |
//! | [`boot`] | starts a joined node from what is on disk |
//! | [`replica`], [`control`], [`gossip`], [`connections`] | records, and the connections over which they are sent and received |
//! | [`own_records`] | which records this node publishes |
//! | [`device`], [`paths`], [`host`] | the tunnel device, the paths to peers, this machine's network |
//! | [`streams`] | streams over TLS to relays, and those of members for which this node relays |
//! | [`names`], [`resolver`] | the zone, and the resolver's surroundings |
//! | [`workloads`], [`docker`] | services, containers and the firewall |
//! | [`naming`] | lookups of the host names of services outside the mesh |
//! | [`state`], [`disk`], [`changes`], [`keys`] | the files of the node, the task that writes them, and changes that wait for it |
//! | [`joining`], [`unattended`], [`departing`] | a join, a join with a token file, and departures that wait for a coordinator |
//! | [`rows`] | what other nodes tell of their paths |
//! | [`report`], [`contact`], [`metrics`] | status, problems and metrics of the node |
//! | [`discovery`] | the calls with which Prometheus and an ingress follow the services |
//! | [`web`], [`page`] | the API over the network, at the mesh addresses, and the page |
//! | [`spawn`] | containers that callers spawn from templates |
//! | [`docker_face`] | Docker's API for callers of the mesh, who create containers by templates |
//! | [`transitions`] | the transitions that have a line in the log |

mod agent;
pub mod api;
mod boot;
mod calling;
mod change_times;
mod changes;
pub mod config;
mod connections;
mod contact;
pub mod control;
mod departing;
mod device;
mod discovery;
mod disk;
mod dns_address;
mod docker;
mod docker_face;
pub mod gossip;
mod guests;
pub mod host;
mod join_problem;
mod joined;
mod joining;
mod keys;
mod mapping;
mod metrics;
mod names;
mod naming;
mod own_records;
mod page;
pub mod paths;
mod policy;
mod reach;
mod remedies;
pub mod replica;
mod report;
mod resolv_conf;
mod resolved;
mod resolver;
mod routing;
mod rows;
mod settle;
mod spawn;
pub mod state;
mod streams;
mod stun;
mod timers;
mod transitions;
mod unattended;
mod unwritten;
mod web;
mod workloads;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory as _, Parser as _};
use tokio::sync::{mpsc, oneshot};

use crate::os::audit::Audit;
use crate::os::log;
use crate::os::rights;
use crate::os::signals::StopSignals;
use crate::os::tasks::Tasks;
use crate::os::unix_server;
use crate::protocol::api::{ApiError, ErrorCode};
use config::{Arguments, Config, Job, ResolvConfJob};
use state::{StateDir, StateError};

/// The definition of the command line, for man pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Runs meshd with the arguments of the command line, and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return crate::os::usage::report(&Arguments::command(), &error),
    };
    if let Some(Job::Wireguard { interface, workers }) = &arguments.job {
        log::to_stderr(log::LogSettings::default());
        return finish(
            crate::tunnel::uapi::run(interface, *workers).map_err(|error| {
                let code = match &error {
                    crate::tunnel::uapi::StandaloneError::Tunnel(error) => device::code_of(error),
                    _ => ErrorCode::Configuration,
                };
                ApiError::new(code, error.to_string())
            }),
        );
    }
    finish(
        Config::load(&arguments)
            .map_err(|error| ApiError::new(ErrorCode::Configuration, error.to_string()))
            .and_then(|config| {
                log::to_stderr(config.log);
                if arguments.check_config {
                    println!("the configuration is right");
                    return Ok(());
                }
                if arguments.restore_resolv_conf {
                    return restore_resolv_conf(&config);
                }
                if let Some(Job::ResolvConf { what }) = arguments.job {
                    return match what {
                        ResolvConfJob::Apply => apply_resolv_conf(&config),
                        ResolvConfJob::Restore => restore_resolv_conf(&config),
                    };
                }
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
                runtime.block_on(run(config))
            }),
    )
}

fn restore_resolv_conf(config: &Config) -> Result<(), ApiError> {
    let restored = host::ResolvConf::new(&config.state_dir).restore();
    let restored = restored.map_err(of_resolv_conf)?;
    eprintln!(
        "meshd: {}",
        if restored {
            "restored /etc/resolv.conf"
        } else {
            "/etc/resolv.conf was not written by meshd; nothing was changed"
        }
    );
    Ok(())
}

/// Changes /etc/resolv.conf as the helper. The helper runs as root, so it uses nothing that meshd's user can write except the
/// request.
fn apply_resolv_conf(config: &Config) -> Result<(), ApiError> {
    let changed = host::ResolvConf::of_helper().follow_request(config.runtime_dir());
    if changed.map_err(of_resolv_conf)? {
        eprintln!("meshd: changed /etc/resolv.conf as meshd has requested");
    }
    Ok(())
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is passed to `map_err`, which gives it the error"
)]
fn of_resolv_conf(error: host::ResolvConfError) -> ApiError {
    let code = if error.is_permission() {
        ErrorCode::Permission
    } else {
        ErrorCode::Configuration
    };
    ApiError::new(code, error.to_string())
}

fn finish(result: Result<(), ApiError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::report_failure("meshd", &error.message);
            ExitCode::from(error.code.exit_code())
        }
    }
}

/// The rights that meshd needs, and how it gets them.
const NEEDED_RIGHTS: &str =
    "meshd needs root or CAP_NET_ADMIN; use sudo or `systemctl start meshd`";

/// The error of a start that failed for the reason `why`, by a user who cannot run meshd at all.
fn without_rights(why: &str) -> ApiError {
    ApiError::new(ErrorCode::Permission, format!("{NEEDED_RIGHTS} ({why})"))
}

async fn run(config: Config) -> Result<(), ApiError> {
    let config = Arc::new(config);
    // The signals are caught before anything is changed on the machine, so that meshd undoes its changes if it is ended while
    // it starts.
    let mut signals = StopSignals::catch()
        .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
    let has_rights = rights::has_net_admin();
    let mut dir = StateDir::open(&config.state_dir).map_err(|error| match &error {
        StateError::File(file) if file.is_permission() && !has_rights => {
            without_rights(&file.reason())
        }
        _ => error.into(),
    })?;
    let listener = unix_server::bind(&config.api.socket).await;
    let listener = listener.map_err(|error| match error.code() {
        ErrorCode::Permission if !has_rights => without_rights(&error.to_string()),
        code => ApiError::new(code, error.to_string()),
    })?;
    // The log is opened after the socket is bound: if another meshd runs, it has the socket, and writes the log in the state directory.
    dir.audit = Audit::open(&config.state_dir);
    let audit = dir.audit.clone();
    if !has_rights {
        tracing::warn!("meshd cannot join a mesh as this user; {NEEDED_RIGHTS}");
    }
    let tasks = Tasks::new("meshd");
    let spawner = spawn::Spawner::open(&config, &dir, &tasks);
    let starting = agent::Agent::start(Arc::clone(&config), dir);
    let mut agent = tasks.scope(starting).await?;

    let (commands, receiver) = mpsc::channel(64);
    let api = api::LocalApi {
        commands: commands.clone(),
        audit: audit.clone(),
        tasks: tasks.clone(),
        spawner: spawner.clone(),
    };
    if let Some(spawner) = spawner {
        let keeping = spawn::keep(spawner, audit.clone());
        tasks.spawn("spawned containers", keeping);
    }
    if config.api.needs_tokens() {
        let serving = web::serve(api.clone(), config.api.clone());
        tasks.spawn("API over the network", serving);
    }
    let path = config.api.socket.clone();
    let discovery = discovery::router(commands.clone());
    let serve_locally = async move { api::serve(listener, &path, api, discovery).await };
    tasks.spawn("local API", serve_locally);
    if let Some(listen) = config.metrics.listen {
        let discovery = config.metrics.discovery;
        let discovery = discovery.then(|| discovery::open_router(commands.clone()));
        let router = metrics::router(commands.clone()).merge(discovery.unwrap_or_default());
        tasks.spawn("metrics", metrics::serve(listen, router));
    }
    if let Some(file) = config.token_file.clone() {
        tasks.spawn_finite("unattended join", unattended::run(file, commands));
    }
    tracing::info!(socket = %config.api.socket.display(), "ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let (stop, stopped) = oneshot::channel();
    let running = tasks.scope(Box::pin(agent.run(receiver, stopped)));
    let ended = until_stopped(running, signals.received(), stop, &tasks).await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
    let _ = std::fs::remove_file(&config.api.socket);
    Box::pin(agent.stop()).await;
    tasks.stop().await;
    audit.stop().await;
    ended
}

/// Waits until the agent, which is `running`, has ended after a signal, or until a task has failed that meshd depends on.
async fn until_stopped(
    running: impl Future<Output = Result<(), ApiError>>,
    signal: impl Future<Output = ()>,
    stop: oneshot::Sender<()>,
    tasks: &Tasks,
) -> Result<(), ApiError> {
    let stopping = async {
        signal.await;
        // The agent may have ended in the meantime.
        let _ = stop.send(());
        std::future::pending().await
    };
    tokio::select! {
        ended = running => ended,
        () = stopping => Ok(()),
        failure = tasks.failed() => Err(ApiError::new(ErrorCode::Internal, failure.to_string())),
    }
}

impl From<StateError> for ApiError {
    fn from(error: StateError) -> Self {
        let permission = matches!(&error, StateError::File(file) if file.is_permission());
        Self::new(
            if permission {
                ErrorCode::Permission
            } else {
                ErrorCode::Configuration
            },
            error.to_string(),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use super::*;

    /// The error with which meshd ends while its agent still runs and no signal arrives.
    async fn end_of(tasks: &Tasks) -> ApiError {
        let (stop, _stopped) = oneshot::channel();
        let ended = until_stopped(pending(), pending(), stop, tasks);
        tokio::time::timeout(Duration::from_secs(10), ended)
            .await
            .expect("meshd ends")
            .expect_err("with an error")
    }

    #[tokio::test]
    async fn meshd_ends_with_an_error_when_its_local_api_is_not_served_any_more() {
        let tasks = Tasks::new("meshd");
        tasks.spawn("local API", async {
            Err::<(), _>(std::io::Error::other("the listener broke"))
        });
        let error = end_of(&tasks).await;
        assert_eq!(error.code, ErrorCode::Internal);
        assert_eq!(
            error.message,
            "the task `local API` of meshd failed: the listener broke"
        );
    }

    #[tokio::test]
    async fn meshd_ends_in_order_at_a_signal_once_its_agent_has_ended() {
        let tasks = Tasks::new("meshd");
        let (stop, stopped) = oneshot::channel();
        let agent = async {
            stopped.await.expect("a signal stops the agent");
            Ok(())
        };
        let ended = until_stopped(agent, async {}, stop, &tasks).await;
        assert_eq!(ended, Ok(()));
    }
}
