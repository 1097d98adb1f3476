//! `meshctl completions`.

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::table;

/// The arguments of `meshctl completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

pub(super) fn run<C: CommandFactory>(arguments: &CompletionsArguments) -> u8 {
    table::raw(&script(arguments.shell, &mut C::command(), "meshctl"));
    0
}

/// The script that completes the commands of a program.
pub(super) fn script(shell: Shell, program: &mut Command, name: &str) -> Vec<u8> {
    // The script is generated in memory, because the generator panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, program, name, &mut script);
    script
}
