//! `meshctl completions`, and what the printed scripts call: this program completes the words of a command line itself, so that
//! names of nodes and services are completed too.

use clap::{Args, Command};
use clap_complete::Shell;
use clap_complete::env::{CompleteEnv, Shells};

use super::exit::CliError;
use super::{help, table};

/// The variable with which a script asks for completions.
const VARIABLE: &str = "MESHCTL_COMPLETE";
const PROGRAM: &str = "meshctl";

/// The arguments of `meshctl completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl completions bash > /etc/bash_completion.d/meshctl
  meshctl completions zsh > /usr/share/zsh/site-functions/_meshctl
  meshctl completions fish > /etc/fish/completions/meshctl.fish

The script asks meshctl, and meshctl asks meshd for the names of nodes and services, if this user may use its socket.")]
pub(super) struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

pub(super) fn run(arguments: &CompletionsArguments) -> Result<u8, CliError> {
    table::raw(&registration(arguments.shell)?);
    Ok(0)
}

/// The script with which a shell calls this program to complete a command line.
fn registration(shell: Shell) -> Result<Vec<u8>, CliError> {
    let name = shell.to_string();
    let shells = Shells::builtins();
    let Some(completer) = shells.completer(&name) else {
        return Err(CliError::failed(format!("there is no script for {name}")));
    };
    let mut script = Vec::new();
    completer
        .write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)
        .map_err(CliError::failed)?;
    if shell == Shell::Zsh {
        script.extend_from_slice(ZSH_AUTOLOAD.as_bytes());
    }
    Ok(script)
}

/// zsh runs a file in its fpath as a function at the first completion. The script alone only registers itself then.
const ZSH_AUTOLOAD: &str = "
if [[ \"${funcstack[1]}\" == \"_meshctl\" ]]; then
    _clap_dynamic_completer_meshctl \"$@\"
fi
";

/// Completes a command line and ends, if a script has called this program for that.
pub(super) fn complete_if_asked() {
    CompleteEnv::with_factory(help::command)
        .var(VARIABLE)
        .complete();
}

/// The script that completes the commands of a program. Only meshctl is called by its script.
pub(super) fn script(shell: Shell, program: &mut Command, name: &str) -> Result<Vec<u8>, CliError> {
    if name == PROGRAM {
        return registration(shell);
    }
    // The script is generated in memory, because the generator panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, program, name, &mut script);
    Ok(script)
}
