//! `meshctl policy`: checks, signs and shows the policy of the mesh, and explains it.

mod apply;
mod check;
mod denied;
mod diff;
mod explain;
mod file;
mod show;

use std::path::PathBuf;

use clap::Subcommand;

use super::Globals;
use super::exit::CliError;
use crate::os::arguments;

/// The maximum number of nodes that a message names.
const MAX_NAMED: usize = 8;

/// The commands about the policy.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check a policy, sign it with the mesh key, and put it in force
    Apply(apply::ApplyArguments),
    /// Check a policy and run its tests against the present mesh
    #[command(after_help = "\
Examples:
  meshctl policy check shop.toml
  meshctl policy check shop.toml --json

A test that fails is named with its line, and the exit status is 2. Nothing is changed.")]
    Check {
        /// The file with the policy
        #[arg(value_name = "FILE", value_parser = arguments::path)]
        file: PathBuf,
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
    /// Show who would reach what with a policy, and no longer, compared with the one in force
    #[command(after_help = "\
Examples:
  meshctl policy diff shop.toml
  meshctl policy diff shop.toml --json

Lines with + are allowed by the file alone, and lines with - by the policy in force alone.")]
    Diff {
        /// The file with the policy
        #[arg(value_name = "FILE", value_parser = arguments::path)]
        file: PathBuf,
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
    /// Print the policy of the mesh
    #[command(after_help = "\
Examples:
  meshctl policy show
  meshctl policy show > shop.toml    to change it, and apply it again")]
    Show {
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
    /// Explain whether a service or node reaches a port of another one, and by which rule
    Explain(explain::ExplainArguments),
    /// List what this node refused lately because of the policy
    #[command(after_help = "\
Examples:
  meshctl policy denied
  meshctl policy denied --json

Run it on the node that refuses: it knows its last 64 refusals, and as many that a policy which is tried would make.")]
    Denied {
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(command: Command, globals: &Globals) -> Result<u8, CliError> {
    match command {
        Command::Apply(arguments) => apply::run(arguments, globals).await,
        Command::Check { file, json } => check::run(&file, json, globals).await,
        Command::Diff { file, json } => diff::run(&file, json, globals).await,
        Command::Show { json } => show::run(json, globals).await,
        Command::Explain(arguments) => explain::run(arguments, globals).await,
        Command::Denied { json } => denied::run(json, globals).await,
    }
}
