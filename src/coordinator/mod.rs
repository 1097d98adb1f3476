//! The coordinator: admits nodes by join token, leases addresses, stores and forwards signed records.
//!
//! It is never in the data path and never trusted with keys. It verifies every record with the same [`crate::records::ledger`] that
//! nodes use, and the nodes verify the records that it forwards again.
//!
//! | module | what it is |
//! |---|---|
//! | `backup` | the commands that write a backup and restore it |
//! | `config` | coordinator.toml and the command line |
//! | `running` | starts and stops all parts of a coordinator |
//! | `server`, `control` | the API for nodes: the join call, the control stream |
//! | `own_urls` | whether the public URLs lead back to this coordinator |
//! | `slots` | how many connections there may be, in total and from each source |
//! | `admin`, `metrics` | the API for administrators, and metrics for their monitoring |
//! | `web`, `page` | the API for programs with tokens, and the page |
//! | `enroll` | whether a join is granted |
//! | `marks` | the text that a member returns to prove that it was a member |
//! | [`hub`] | the ledger in memory, and the changes that streams follow |
//! | [`store`] | records, leases and token uses on disk |

mod admin;
mod backup;
mod config;
mod control;
mod enroll;
pub mod hub;
mod limits;
mod marks;
mod metrics;
mod own_urls;
mod page;
mod public_url;
mod reply;
mod running;
mod server;
mod slots;
pub mod store;
mod stun;
mod tls;
mod web;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};

pub use config::{Arguments, Command, Config};
pub use marks::MarkKey;
pub use running::Coordinator;

use crate::os::signals::StopSignals;
use crate::os::{file, log};
use crate::protocol::api::ErrorCode;

/// A failure of the program, with its message and its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: String,
    code: ErrorCode,
}

impl Failure {
    fn new(code: ErrorCode, message: impl std::fmt::Display) -> Self {
        Self {
            message: message.to_string(),
            code,
        }
    }

    /// What kind of failure it is; it has the exit code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.code
    }
}

/// A failure that `option` avoids, if the rights of this user are the reason. `why` has no remedy yet.
fn without_rights(why: &str, option: &str) -> Failure {
    let text = format!(
        "{why}; use `systemctl start mesh-coordinator` or sudo, or name a place of this user with {option}"
    );
    Failure::new(ErrorCode::Permission, text)
}

impl From<file::FileError> for Failure {
    fn from(error: file::FileError) -> Self {
        let code = if error.is_permission() {
            ErrorCode::Permission
        } else {
            ErrorCode::Configuration
        };
        Self::new(code, error)
    }
}

/// The definition of the command line, for man pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Runs the program `mesh-coordinator`.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return crate::os::usage::report(&Arguments::command(), &error),
    };
    let result = Config::load(&arguments)
        .map_err(|e| Failure::new(ErrorCode::Configuration, e))
        .and_then(|config| {
            log::to_stderr(config.log);
            if arguments.check_config {
                println!("the configuration is right");
                return Ok(());
            }
            match &arguments.command {
                Some(Command::Backup { file }) => return backup::backup(&config, file),
                Some(Command::Restore { file }) => return backup::restore(&config, file),
                None => {}
            }
            let runtime =
                tokio::runtime::Runtime::new().map_err(|e| Failure::new(ErrorCode::Internal, e))?;
            let result = runtime.block_on(run(&config));
            // A thread that waits for a store without an answer cannot be interrupted.
            runtime.shutdown_timeout(Duration::from_secs(1));
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log::report_failure("mesh-coordinator", &failure.to_string());
            ExitCode::from(failure.code.exit_code())
        }
    }
}

async fn run(config: &Config) -> Result<(), Failure> {
    let mut signals = StopSignals::catch().map_err(|e| Failure::new(ErrorCode::Internal, e))?;
    let coordinator = tokio::select! {
        started = Coordinator::start(config) => started?,
        // The store may not answer.
        () = signals.received() => return Ok(()),
    };
    let (listen, urls) = (coordinator.listen(), coordinator.urls());
    tracing::info!(%listen, ?urls, admin = %config.admin_socket.display(), "ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let ended = tokio::select! {
        () = signals.received() => Ok(()),
        failure = coordinator.failed() => Err(Failure::new(ErrorCode::Internal, failure)),
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
    coordinator.stop().await;
    ended
}
