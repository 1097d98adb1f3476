//! meshctl: one file for each command. Data is written to stdout, messages to stderr. `--json` prints the answers of
//! the APIs.

mod api_token;
mod audit;
mod bugreport;
mod client;
mod completions;
mod confirmed;
mod demo;
mod doctor;
mod exit;
mod guest;
mod help;
mod init;
mod join;
mod leave;
mod live;
mod mesh_key;
mod names;
mod netcheck;
mod node;
mod opened_token;
mod package_files;
mod ping;
mod policy;
mod reached;
mod remote;
mod rename;
mod resolve;
mod rollout;
mod rotate_key;
mod service;
mod status;
mod style;
mod table;
mod token;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, FromArgMatches as _, Parser, Subcommand};

use crate::os::arguments;
use crate::protocol::api::ErrorCode;
use client::Daemon;
use remote::{ApiUrl, Remote};

pub use client::Client;
pub use exit::CliError;
pub use help::command;

/// Joins servers to a mesh, and shows and changes their services
#[derive(Debug, Parser)]
#[command(
    name = "meshctl",
    version,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

const DEFAULT_SOCKET: &str = "/run/meshd/meshd.sock";
const DEFAULT_ADMIN_SOCKET: &str = "/run/mesh-coordinator/admin.sock";
/// The heading of the options that each command has.
const GLOBAL_OPTIONS: &str = "Global options";

/// The paths of the daemons' sockets and of the mesh key.
#[derive(Debug, Clone, Args)]
struct Globals {
    /// meshd's socket
    #[arg(
        long,
        global = true,
        env = "MESHD_SOCKET",
        value_name = "PATH",
        value_parser = arguments::path,
        help_heading = GLOBAL_OPTIONS,
        default_value = DEFAULT_SOCKET
    )]
    socket: PathBuf,
    /// mesh-coordinator's admin socket
    #[arg(
        long,
        global = true,
        env = "MESH_ADMIN_SOCKET",
        value_name = "PATH",
        value_parser = arguments::path,
        help_heading = GLOBAL_OPTIONS,
        default_value = DEFAULT_ADMIN_SOCKET
    )]
    admin_socket: PathBuf,
    /// The mesh key, with which the administrator signs
    #[arg(
        long,
        global = true,
        env = "MESH_KEY",
        value_name = "FILE",
        value_parser = arguments::path,
        help_heading = GLOBAL_OPTIONS,
        default_value = "/etc/meshd/mesh.key"
    )]
    mesh_key: PathBuf,
    /// The API of a coordinator or a node, in place of the sockets: https://coord.example.com or http://web-1.node.mesh
    #[arg(
        long,
        global = true,
        value_name = "URL",
        value_parser = ApiUrl::parse,
        help_heading = GLOBAL_OPTIONS
    )]
    api: Option<ApiUrl>,
    /// A file with the API token for --api, or for rollout --each
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        value_parser = arguments::path,
        help_heading = GLOBAL_OPTIONS
    )]
    api_token_file: Option<PathBuf>,
    /// The API at `api`, with the token from `api_token_file`. `open_api` sets it.
    #[arg(skip)]
    remote: Option<Remote>,
}

impl Globals {
    fn daemon(&self) -> Client {
        Client::new(&self.socket, Daemon::Meshd).over(self.remote.clone())
    }

    fn coordinator(&self) -> Client {
        Client::new(&self.admin_socket, Daemon::Coordinator).over(self.remote.clone())
    }

    /// Reads the API token, if the command line names an API over the network. `command` must be one that works over it.
    fn open_api(&mut self, command: &Command) -> Result<(), CliError> {
        let wrong = |text: &str| Err(CliError::new(ErrorCode::BadRequest, text));
        match (&self.api, &self.api_token_file) {
            (None, None) => Ok(()),
            (None, Some(_)) if command.calls_other_nodes() => Ok(()),
            (None, Some(_)) => wrong(
                "--api-token-file is for --api; give both, such as --api https://coord.example.com",
            ),
            (Some(_), None) => {
                wrong("--api needs an API token; name the file that has it with --api-token-file")
            }
            (Some(_), Some(_)) if !command.works_over_network() => wrong(
                "this command does not work over the network; leave --api out, and run it on the machine that it is about",
            ),
            (Some(url), Some(file)) => {
                self.remote = Some(Remote::open(url.clone(), file)?);
                Ok(())
            }
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create the mesh key, and send its public half to the coordinator
    Init(init::InitArguments),
    /// Create, list and revoke join tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Create, list and revoke tokens for programs that call the API
    #[command(subcommand)]
    ApiToken(api_token::Command),
    /// List and remove nodes
    #[command(subcommand)]
    Node(node::Command),
    /// Add, list and remove guests: devices with nothing but a WireGuard app
    #[command(subcommand)]
    Guest(guest::Command),
    /// Check and apply the policy of the mesh, show and explain it
    #[command(subcommand)]
    Policy(policy::Command),
    /// Join this server to a mesh
    Join(join::JoinArguments),
    /// Remove this server from its mesh
    Leave(leave::LeaveArguments),
    /// Change the name of this server in the mesh
    Rename(rename::RenameArguments),
    /// Replace the key of this server's tunnel, without losing packets
    RotateKey(rotate_key::RotateKeyArguments),
    /// Show whether this node is ready, its problems and its peers
    Status(status::StatusArguments),
    /// Measure round trips to a node through the tunnel
    Ping(ping::PingArguments),
    /// Explain which path leads to a node and why, what was tried, and what to mend
    Why(why::WhyArguments),
    /// Show what this node knows of its network: UDP, IPv6, address translation, relays
    Netcheck(netcheck::NetcheckArguments),
    /// List the services of the mesh, add and change those of this node
    #[command(subcommand)]
    Service(service::Command),
    /// Drain this node's containers, run a command that replaces them, and publish the new ones when they are healthy; with --each on all nodes
    Rollout(rollout::RolloutArguments),
    /// Show what this node's DNS answers, and why
    Resolve(resolve::ResolveArguments),
    /// Look a mesh name up from this host and from inside its containers, and show how to correct problems
    Doctor(doctor::DoctorArguments),
    /// Show who changed what on this machine, and verify that nobody changed the log of that
    Audit(audit::AuditArguments),
    /// Write a file without secrets for a report of a fault
    Bugreport(bugreport::BugreportArguments),
    /// Print a script that completes commands and names in a shell
    Completions(completions::CompletionsArguments),
    /// Run a mesh of a coordinator and some nodes on this machine
    Demo(demo::DemoArguments),
    /// Write the man pages and the completions of all programs, for packages
    #[command(hide = true)]
    PackageFiles(package_files::PackageFilesArguments),
}

impl Command {
    /// Whether the command finds out by itself which API it calls, so that it needs a token without `--api`.
    fn calls_other_nodes(&self) -> bool {
        matches!(self, Self::Rollout(arguments) if arguments.calls_other_nodes())
    }

    /// Whether all that the command needs can be asked of the API over the network.
    fn works_over_network(&self) -> bool {
        match self {
            Self::Status(_)
            | Self::Why(_)
            | Self::Netcheck(_)
            | Self::Service(_)
            | Self::Resolve(_) => true,
            Self::Node(command) => matches!(command, node::Command::List { .. }),
            Self::Policy(command) => matches!(command, policy::Command::Denied { .. }),
            _ => false,
        }
    }
}

/// The program. `daemons` has the command lines of the other two programs, which packages document as well.
#[must_use]
pub fn main(daemons: [clap::Command; 2]) -> ExitCode {
    // In a script of a shell this process completes a command line instead.
    completions::complete_if_asked();
    let parsed = command()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return crate::os::usage::report(&command(), &error),
    };
    match run(cli, daemons) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            crate::os::usage::fail("meshctl", &error.message);
            ExitCode::from(error.code)
        }
    }
}

fn run(cli: Cli, daemons: [clap::Command; 2]) -> Result<u8, CliError> {
    let mut globals = cli.globals;
    globals.open_api(&cli.command)?;
    // These commands need a process without the threads of a runtime.
    match cli.command {
        Command::Demo(arguments) => return demo::run(&arguments),
        Command::PackageFiles(arguments) => {
            let programs = daemons.into_iter().chain([command()]);
            return package_files::run(&arguments, programs.collect());
        }
        Command::Completions(arguments) => return completions::run(&arguments),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::failed)?;
    runtime.block_on(async move {
        match cli.command {
            Command::Init(arguments) => init::run(&arguments, &globals).await,
            Command::Token(command) => token::run(command, &globals).await,
            Command::ApiToken(command) => api_token::run(command, &globals).await,
            Command::Node(command) => node::run(command, &globals).await,
            Command::Guest(command) => guest::run(command, &globals).await,
            Command::Policy(command) => policy::run(command, &globals).await,
            Command::Join(arguments) => join::run(arguments, &globals).await,
            Command::Leave(arguments) => leave::run(&arguments, &globals).await,
            Command::Rename(arguments) => rename::run(arguments, &globals).await,
            Command::RotateKey(arguments) => rotate_key::run(&arguments, &globals).await,
            Command::Status(arguments) => status::run(&arguments, &globals).await,
            Command::Ping(arguments) => ping::run(arguments, &globals).await,
            Command::Why(arguments) => why::run(arguments, &globals).await,
            Command::Netcheck(arguments) => netcheck::run(&arguments, &globals).await,
            Command::Service(command) => service::run(command, &globals).await,
            Command::Rollout(arguments) => rollout::run(arguments, &globals).await,
            Command::Resolve(arguments) => resolve::run(arguments, &globals).await,
            Command::Doctor(arguments) => doctor::run(&arguments, &globals).await,
            Command::Audit(arguments) => audit::run(&arguments).await,
            Command::Bugreport(arguments) => bugreport::run(&arguments, &globals).await,
            Command::Completions(_) | Command::Demo(_) | Command::PackageFiles(_) => Ok(0),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }
}
