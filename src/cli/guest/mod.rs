//! `meshctl guest`: devices with nothing but a WireGuard app.

mod add;
mod config;
mod door;
mod list;
mod remove;
mod row;

use clap::Subcommand;

use super::Globals;
use super::exit::CliError;
use crate::model::Label;
use crate::os::arguments;

/// The commands about guests.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Add a guest, and print the configuration for its WireGuard app
    Add(add::AddArguments),
    /// List the guests, with their doors and addresses
    #[command(after_help = "\
Examples:
  meshctl guest list
  meshctl guest list --json

A guest is here while its door has heard it in the last three minutes. If its door is away or was removed, it reaches nothing.")]
    List {
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
    /// Show one guest, with its key and its addresses
    #[command(after_help = "\
Examples:
  meshctl guest show anna

The private key of a guest is stored nowhere, so its configuration cannot be shown again. Remove the guest, and add it anew.")]
    Show {
        /// The name of the guest
        #[arg(value_name = "NAME", value_parser = arguments::label)]
        name: Label,
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
    /// Remove a guest for good: its door ends its session at once
    #[command(after_help = "\
Examples:
  meshctl guest remove anna          asks first, on a terminal
  meshctl guest remove anna --yes

Its key never works again. The name is free for another guest. While no coordinator answers, the node on this machine passes the
removal on to the others: run it on any node, and name the file of the mesh key with --mesh-key.")]
    Remove {
        /// The name of the guest
        #[arg(value_name = "NAME", value_parser = arguments::label)]
        name: Label,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(command: Command, globals: &Globals) -> Result<u8, CliError> {
    match command {
        Command::Add(arguments) => add::run(arguments, globals).await,
        Command::List { json } => list::run(json, globals).await,
        Command::Show { name, json } => list::show(&name, json, globals).await,
        Command::Remove { name, yes, json } => {
            let options = remove::Options { yes, json };
            remove::run(&name, options, globals).await
        }
    }
}
