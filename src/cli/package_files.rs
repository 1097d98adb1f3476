//! `meshctl package-files`: writes the man pages and the shell completions of all three programs, for packages. They are generated
//! from the definitions with which the programs parse their command lines. `packaging/build` runs this command.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::completions;
use super::exit::CliError;
use crate::os::arguments;

/// The name of the file with the completions of a program.
type FileName = fn(&str) -> String;

/// The shells, each with its folder and the name of the file for a program.
const SHELLS: [(Shell, &str, FileName); 3] = [
    (Shell::Bash, "bash", |program| program.to_owned()),
    (Shell::Zsh, "zsh", |program| format!("_{program}")),
    (Shell::Fish, "fish", |program| format!("{program}.fish")),
];

/// The arguments of `meshctl package-files`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  meshctl package-files target/package-files --date 2026-01-31    the pages have this date")]
pub(super) struct PackageFilesArguments {
    /// The directory in which `man`, `bash`, `zsh` and `fish` are made
    #[arg(value_parser = arguments::path)]
    directory: PathBuf,
    /// The date in the man pages
    #[arg(long, value_name = "YYYY-MM-DD", default_value = "")]
    date: String,
}

pub(super) fn run(
    arguments: &PackageFilesArguments,
    programs: Vec<Command>,
) -> Result<u8, CliError> {
    for mut program in programs {
        let name = program.get_name().to_owned();
        for (shell, folder, file) in SHELLS {
            let script = completions::script(shell, &mut program, &name)?;
            write(&arguments.directory.join(folder), &file(&name), &script)?;
        }
        let section = if name == "meshctl" { "1" } else { "8" };
        let pages = arguments.directory.join(format!("man/man{section}"));
        let mut program = program.disable_help_subcommand(true);
        program.build();
        let page = |command: &Command, name: &str| {
            let man = Man::new(command.clone())
                .title(name)
                .section(section)
                .date(&arguments.date)
                .source(format!("meshd {}", env!("CARGO_PKG_VERSION")))
                .manual("meshd");
            let mut text = Vec::new();
            man.render(&mut text).map_err(CliError::failed)?;
            // clap_mangen writes an empty line between two breaks, which mandoc's checker warns of. One vertical space looks the same.
            let text = String::from_utf8_lossy(&text).replace("\n.br\n\n.br\n", "\n.sp\n");
            write(&pages, &format!("{name}.{section}"), text.as_bytes())
        };
        each_command(&program, &name, &page)?;
    }
    Ok(0)
}

/// Calls `page` for `command` and for each command below it that the help shows, with names such as `meshctl-token-create`.
fn each_command(
    command: &Command,
    name: &str,
    page: &dyn Fn(&Command, &str) -> Result<(), CliError>,
) -> Result<(), CliError> {
    page(command, name)?;
    for below in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        each_command(below, &format!("{name}-{}", below.get_name()), page)?;
    }
    Ok(())
}

fn write(directory: &Path, name: &str, text: &[u8]) -> Result<(), CliError> {
    let path = directory.join(name);
    let failed = |error: io::Error| CliError::failed(format!("{}: {error}", path.display()));
    std::fs::create_dir_all(directory).map_err(failed)?;
    std::fs::write(&path, text).map_err(failed)
}
