//! The values of all options and arguments of the three programs: whatever is wrong with one, the message says it in a
//! sentence of ours.

use std::ffi::OsString;

use clap::{Command, CommandFactory as _};

/// Values that few options take.
const WRONG: &[&str] = &[
    "",
    " ",
    "-1",
    "-1h",
    "0",
    "1w",
    "99999999999999999999999",
    "1e999",
    "NaN",
    "a_b",
    "a..b",
    "\u{fc}",
    "a\u{7}b",
    "https://",
    "256.0.0.1",
    "1.2.3.4:70000",
];

/// Texts of Rust and of clap.
const DEBUG_TEXTS: &[&str] = &[
    "invalid digit",
    "invalid IP",
    "invalid socket",
    "invalid value",
    "is not in ",
    "too large to fit",
    "invalid float",
    "unexpected argument",
];

/// A command line that ends at `command`, with the program's own name first.
struct Place {
    words: Vec<String>,
    command: Command,
}

fn places(program: Command) -> Vec<Place> {
    let mut found = Vec::new();
    let mut open = vec![Place {
        words: vec![program.get_name().to_owned()],
        command: program,
    }];
    while let Some(place) = open.pop() {
        let commands = place.command.get_subcommands();
        for next in commands.filter(|command| command.get_name() != "help") {
            open.push(Place {
                words: [place.words.clone(), vec![next.get_name().to_owned()]].concat(),
                command: next.clone(),
            });
        }
        found.push(place);
    }
    found
}

/// The errors that `value` causes as the value of each argument of each command.
fn errors(program: &Command, value: &str) -> Vec<(String, String, clap::error::ErrorKind)> {
    let mut errors = Vec::new();
    for place in places(program.clone()) {
        for argument in place.command.get_arguments() {
            if !argument.get_action().takes_values() {
                continue;
            }
            let mut line = place.words.clone();
            match (argument.get_long(), argument.get_short()) {
                (Some(long), _) => line.push(format!("--{long}={value}")),
                (None, Some(short)) => line.extend([format!("-{short}"), value.to_owned()]),
                (None, None) => line.extend(["--".to_owned(), value.to_owned()]),
            }
            if let Err(error) = program.clone().try_get_matches_from(&line) {
                let words: Vec<OsString> = line.iter().skip(1).map(OsString::from).collect();
                let text = meshd::os::usage::line(program, &words, &error);
                errors.push((format!("{line:?}"), text, error.kind()));
            }
        }
    }
    errors
}

#[test]
fn each_wrong_value_is_named_with_its_command_its_option_and_what_is_allowed() {
    use clap::error::ErrorKind::{InvalidValue, ValueValidation};
    let programs = [
        meshd::cli::command(),
        meshd::node::config::Arguments::command(),
        meshd::coordinator::Arguments::command(),
    ];
    let mut refused = 0;
    for program in &programs {
        for value in WRONG {
            for (line, text, kind) in errors(program, value) {
                let faults: Vec<&&str> =
                    DEBUG_TEXTS.iter().filter(|t| text.contains(**t)).collect();
                assert!(faults.is_empty() && !text.contains('\n'), "{line}: {text}");
                if !matches!(kind, ValueValidation | InvalidValue) {
                    continue;
                }
                refused += 1;
                let names_argument =
                    text.contains("--") || text.contains('<') || text.contains('[');
                let has_cause = text.contains("is not a value of")
                    || text.contains("is empty:")
                    || text.contains("needs a value");
                assert!(names_argument && has_cause, "{line}: {text}");
                let has_example = [
                    "such as",
                    "it is ",
                    "an example",
                    "for example",
                    "write the name",
                    "meshctl resolve",
                ];
                assert!(
                    has_example.iter().any(|e| text.contains(e)),
                    "{line}: {text}"
                );
                assert!(text.ends_with(" --help`"), "{line}: {text}");
            }
        }
    }
    assert!(refused > 200, "{refused} values were refused");
}
