//! Reports errors of the command line in the same way for all three programs: help on stdout with status 0, an error in
//! one line on stderr with status 64 (`EX_USAGE`).

use std::io::Write as _;
use std::process::ExitCode;

use clap::error::ErrorKind;

/// The exit status of a wrong command line.
const USAGE: u8 = 64;

/// Reports an `error` of clap, which may also be a request for the help or the version. Returns the exit status.
#[must_use]
pub fn report(program: &str, error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // It is no failure if the reader of the help has closed the pipe.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(USAGE)
        }
        _ => {
            let line = one_line(program, &error.render().to_string());
            let _ = writeln!(std::io::stderr(), "{program}: {line}");
            ExitCode::from(USAGE)
        }
    }
}

/// Joins clap's message and tips into one line. Its usage lines become a reference to the help of the command.
fn one_line(program: &str, rendered: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut command = program.to_owned();
    for paragraph in rendered.split("\n\n") {
        let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some(usage) = line.strip_prefix("Usage: ") {
            let verbs = usage.split(' ').take_while(|word| {
                !word.starts_with('-') && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
            });
            command = verbs.collect::<Vec<_>>().join(" ");
        } else if !line.is_empty() && !line.starts_with("For more information") {
            let line = line.strip_prefix("error: ").unwrap_or(&line);
            parts.push(line.strip_prefix("tip: ").unwrap_or(line).to_owned());
        }
    }
    format!("{}; see `{command} --help`", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "prog")]
    enum Example {
        Join {
            #[arg(long)]
            port: u16,
            token: String,
        },
        Status,
    }

    fn said(words: &[&str]) -> String {
        let line = ["prog"].iter().chain(words);
        let error = Example::try_parse_from(line).expect_err("wrong on purpose");
        one_line("prog", &error.render().to_string())
    }

    #[test]
    fn each_mistake_is_one_line_that_points_to_its_help() {
        assert_eq!(
            said(&["join", "--port", "1"]),
            "the following required arguments were not provided: <TOKEN>; see `prog join --help`"
        );
        assert_eq!(
            said(&["statsu"]),
            "unrecognized subcommand 'statsu'; a similar subcommand exists: 'status'; see `prog --help`"
        );
        assert_eq!(
            said(&["join", "x", "--port", "70000"]),
            "invalid value '70000' for '--port <PORT>': 70000 is not in 0..=65535; see `prog --help`"
        );
        assert_eq!(
            said(&["status", "--nope"]),
            "unexpected argument '--nope' found; see `prog status --help`"
        );
    }
}
