//! `meshctl demo`.

use clap::Args;

use super::exit::CliError;

/// How large.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=50))]
    nodes: u32,
    /// Leave it running until Ctrl-C
    #[arg(long)]
    keep: bool,
}

pub(super) fn run(_arguments: &Arguments) -> Result<u8, CliError> {
    Ok(1)
}
