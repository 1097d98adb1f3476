//! `meshctl completions`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::table;

/// The arguments of `meshctl completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

pub(super) fn run<C: CommandFactory>(arguments: &CompletionsArguments) -> u8 {
    // The script is generated in memory, because the generator panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut C::command(), "meshctl", &mut script);
    table::raw(&script);
    0
}
