//! `meshctl completions`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// For which shell.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The shell
    shell: Shell,
}

pub(super) fn run<C: CommandFactory>(arguments: &Arguments) -> u8 {
    clap_complete::generate(
        arguments.shell,
        &mut C::command(),
        "meshctl",
        &mut std::io::stdout(),
    );
    0
}
