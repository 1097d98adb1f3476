//! Reports errors of the command line in the same way for all three programs: help on stdout with status 0, an error in
//! one line on stderr with status 64 (`EX_USAGE`). The line names the command, the option and the value, and says what is
//! allowed.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::model::text;
use crate::protocol::{api_token, token};

/// The exit status of a wrong command line.
const USAGE: u8 = 64;
/// The maximum number of characters of an argument that a message repeats.
const MAX_SHOWN: usize = 80;

/// Reports an `error` of clap, which may also be a request for the help or the version. `command` is the program. Returns
/// the exit status.
#[must_use]
pub fn report(command: &Command, error: &clap::Error) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let is_help = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // It is no failure if the reader of the help has closed the pipe.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => arguments.is_empty(),
        _ => false,
    };
    if is_help {
        let _ = error.print();
    } else {
        let line = line(command, &arguments, error);
        let _ = writeln!(std::io::stderr(), "{}: {line}", command.get_name());
    }
    ExitCode::from(USAGE)
}

/// Reports a failure of `program` in one line on stderr. The numbers that the standard library adds to errors of the system are
/// left out.
pub fn fail(program: &str, message: &str) {
    let _ = writeln!(std::io::stderr(), "{program}: {}", without_numbers(message));
}

/// `message` without each ` (os error N)`.
pub(super) fn without_numbers(message: &str) -> String {
    const START: &str = " (os error ";
    let mut parts = message.split(START);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => {
                text.push_str(rest);
            }
            _ => {
                text.push_str(START);
                text.push_str(part);
            }
        }
    }
    text
}

/// The line for an `error` of the program `command` with `arguments`, without the name of the program.
#[must_use]
pub fn line(command: &Command, arguments: &[OsString], error: &clap::Error) -> String {
    // Only a command that was built knows the form of its arguments.
    let mut built = command.clone();
    built.build();
    let place = Place::find(&built, arguments);
    let what = Mistake {
        error,
        place: &place,
        arguments,
    };
    let words = place.words.join(" ");
    let prefix = if words.is_empty() {
        String::new()
    } else {
        format!("{words}: ")
    };
    let name = [command.get_name(), &words].join(" ");
    format!("{prefix}{}; see `{} --help`", what.text(), name.trim_end())
}

/// The command that the arguments name.
struct Place<'a> {
    command: &'a Command,
    words: Vec<&'a str>,
}

impl<'a> Place<'a> {
    fn find(program: &'a Command, arguments: &[OsString]) -> Self {
        let mut place = Self {
            command: program,
            words: Vec::new(),
        };
        let mut skips_value = false;
        for argument in arguments.iter().filter_map(|argument| argument.to_str()) {
            if std::mem::take(&mut skips_value) {
                continue;
            }
            if argument == "--" {
                break;
            }
            if argument.starts_with('-') {
                skips_value = place.takes_value(program, argument);
                continue;
            }
            let Some(next) = place.command.find_subcommand(argument) else {
                break;
            };
            place.command = next;
            place.words.push(next.get_name());
        }
        place
    }

    /// Whether the next argument is the value of `option`. Global options are those of the program.
    fn takes_value(&self, program: &Command, option: &str) -> bool {
        let known = self.command.get_arguments().chain(program.get_arguments());
        known
            .filter(|known| known.get_action().takes_values())
            .any(|known| {
                let long = known.get_long().map(|long| format!("--{long}"));
                let short = known.get_short().map(|short| format!("-{short}"));
                [long, short].iter().flatten().any(|name| name == option)
            })
    }

    /// An example of its help: the first one with `option`, or else the first one.
    fn example(&self, option: &str) -> Option<String> {
        let help = self.command.get_after_help()?.to_string();
        let lines = help.lines().map(str::trim);
        let examples: Vec<&str> = lines.filter(|line| line.starts_with("mesh")).collect();
        let with_option = examples.iter().find(|line| line.contains(option));
        let line = with_option.or(examples.first())?;
        // Examples have their explanation after two spaces.
        Some(line.split("  ").next().unwrap_or(line).to_owned())
    }

    fn commands(&self) -> String {
        let commands = self.command.get_subcommands();
        let names: Vec<&str> = commands
            .filter(|command| !command.is_hide_set() && command.get_name() != "help")
            .map(Command::get_name)
            .collect();
        either(&names)
    }
}

/// An error, and where it happened.
struct Mistake<'a> {
    error: &'a clap::Error,
    place: &'a Place<'a>,
    arguments: &'a [OsString],
}

impl Mistake<'_> {
    fn text(&self) -> String {
        match self.error.kind() {
            ErrorKind::ValueValidation => self.wrong_value(),
            ErrorKind::InvalidValue => self.impossible_value(),
            ErrorKind::UnknownArgument => self.unknown_argument(),
            ErrorKind::InvalidSubcommand => self.unknown_command(),
            ErrorKind::MissingRequiredArgument => {
                let missing = self.list(ContextKind::InvalidArg);
                let verb = if missing.len() == 1 { "is" } else { "are" };
                format!("{} {verb} missing{}", missing.join(" and "), self.example())
            }
            ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                match self.place.commands() {
                    commands if commands.is_empty() => {
                        format!("arguments are missing{}", self.example())
                    }
                    commands => format!("a command is missing: {commands}{}", self.example()),
                }
            }
            ErrorKind::ArgumentConflict => self.conflict(),
            _ => joined(&self.error.render().to_string()),
        }
    }

    /// A parser of this program has refused the value, and its error says what is allowed.
    fn wrong_value(&self) -> String {
        let (argument, value) = (self.argument(), self.one(ContextKind::InvalidValue));
        let why = std::error::Error::source(self.error).map(ToString::to_string);
        let why = why.unwrap_or_else(|| "it is not allowed".to_owned());
        let origin = self.origin(&value);
        if value.is_empty() {
            return format!("the value of {argument}{origin} is empty: {why}");
        }
        format!(
            "`{}` is not a value of {argument}{origin}: {why}",
            shown(&value)
        )
    }

    /// The value is missing, or is not in the list of possible values.
    fn impossible_value(&self) -> String {
        let (argument, value) = (self.argument(), self.one(ContextKind::InvalidValue));
        let possible = self.list(ContextKind::ValidValue);
        let possible: Vec<&str> = possible.iter().map(String::as_str).collect();
        let allowed = match possible.as_slice() {
            [] => self.example(),
            possible => format!(": it is {}", either(possible)),
        };
        if value.is_empty() {
            return format!("{argument} needs a value{allowed}");
        }
        let origin = self.origin(&value);
        format!(
            "`{}` is not a value of {argument}{origin}{allowed}",
            shown(&value)
        )
    }

    fn unknown_argument(&self) -> String {
        let argument = self.argument();
        if !argument.starts_with('-') {
            return format!("`{argument}` is one argument too many{}", self.example());
        }
        let nearest = self.one(ContextKind::SuggestedArg);
        let nearest = match nearest.as_str() {
            "" => String::new(),
            nearest => format!("; the nearest option is {nearest}"),
        };
        format!("there is no option {argument}{nearest}")
    }

    fn unknown_command(&self) -> String {
        let wanted = self.one(ContextKind::InvalidSubcommand);
        let nearest = self.list(ContextKind::SuggestedSubcommand);
        let remedy = match nearest.first() {
            Some(nearest) => format!("; the nearest is `{nearest}`"),
            None => format!(
                "; there are {}",
                self.place.commands().replace(" or ", " and ")
            ),
        };
        format!("there is no command `{}`{remedy}", shown(&wanted))
    }

    fn conflict(&self) -> String {
        let argument = self.argument();
        let others = self.list(ContextKind::PriorArg);
        if others.iter().all(|other| *other == argument) {
            return format!("{argument} is given more than once; give it once");
        }
        format!(
            "{argument} and {} exclude each other; give one of them",
            others.join(", ")
        )
    }

    /// The argument at fault, as the help shows it.
    fn argument(&self) -> String {
        shown(&self.one(ContextKind::InvalidArg))
    }

    /// Names the environment variable that a value comes from, if it is not in the command line.
    fn origin(&self, value: &str) -> String {
        let is_given = self.arguments.iter().any(|argument| {
            let argument = argument.to_string_lossy();
            argument == value || argument.ends_with(&format!("={value}")) || {
                argument.starts_with('-') && !value.is_empty() && argument.ends_with(value)
            }
        });
        let wanted = self.one(ContextKind::InvalidArg);
        let known = self.place.command.get_arguments();
        let variable = known
            .filter(|argument| argument.to_string() == wanted)
            .find_map(|argument| argument.get_env());
        match variable {
            Some(variable) if !is_given => {
                format!(" (from the variable {})", variable.to_string_lossy())
            }
            _ => String::new(),
        }
    }

    fn example(&self) -> String {
        let argument = self.one(ContextKind::InvalidArg);
        let option = argument.split(' ').next().unwrap_or_default();
        let example = self.place.example(option);
        example.map_or_else(String::new, |line| format!("; for example: {line}"))
    }

    fn list(&self, kind: ContextKind) -> Vec<String> {
        match self.error.get(kind) {
            Some(ContextValue::String(one)) => vec![one.clone()],
            Some(ContextValue::Strings(all)) => all.clone(),
            _ => Vec::new(),
        }
    }

    fn one(&self, kind: ContextKind) -> String {
        self.list(kind).into_iter().next().unwrap_or_default()
    }
}

/// An argument as a message repeats it. A join token and an API token are secrets, so only their beginning is repeated.
fn shown(argument: &str) -> String {
    let prefixes = [token::PREFIX, api_token::PREFIX];
    let found = prefixes.map(|prefix| argument.find(prefix).map(|at| (at, prefix)));
    let first = found.into_iter().flatten().min();
    match first.and_then(|(at, prefix)| Some((argument.get(..at)?, prefix))) {
        Some((before, prefix)) => format!("{}{prefix}...", text::printable(before, MAX_SHOWN)),
        None => text::printable(argument, MAX_SHOWN),
    }
}

/// `a`, `a or b`, `a, b or c`.
fn either(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// Joins clap's message and tips into one line, without its usage.
fn joined(rendered: &str) -> String {
    let paragraphs = rendered.split("\n\n").map(|paragraph| {
        let words: Vec<&str> = paragraph.split_whitespace().collect();
        words.join(" ")
    });
    let parts: Vec<String> = paragraphs
        .filter(|line| !line.is_empty())
        .filter(|line| !line.starts_with("Usage: ") && !line.starts_with("For more information"))
        .map(|line| {
            let line = line.strip_prefix("error: ").unwrap_or(&line);
            line.strip_prefix("tip: ").unwrap_or(line).to_owned()
        })
        .collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser};

    use super::*;
    use crate::os::arguments;

    #[derive(Debug, Parser)]
    #[command(name = "meshprog", disable_help_subcommand = true)]
    enum Example {
        /// Joins
        #[command(after_help = "Examples:\n  meshprog join --port 80 x  as an example")]
        Join {
            #[arg(long, value_parser = arguments::port, allow_hyphen_values = true, env = "MESHPROG_PORT")]
            port: u16,
            #[arg(long, value_parser = ["tcp", "udp"])]
            protocol: Option<String>,
            #[arg(long, conflicts_with = "protocol")]
            any: bool,
            token: String,
        },
        Status,
        #[command(subcommand)]
        Node(Node),
    }

    #[derive(Debug, clap::Subcommand)]
    enum Node {
        List,
        Remove { name: String },
    }

    fn line_of(words: &[&str]) -> String {
        let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        let all = std::iter::once(OsString::from("meshprog")).chain(arguments.clone());
        let error = Example::try_parse_from(all).expect_err("wrong on purpose");
        line(&Example::command(), &arguments, &error)
    }

    #[test]
    fn each_mistake_is_one_line_with_the_remedy() {
        for (words, expected) in [
            (
                &["join", "--port", "1"][..],
                "join: <TOKEN> is missing; for example: meshprog join --port 80 x; see `meshprog join --help`",
            ),
            (
                &["statsu"],
                "there is no command `statsu`; the nearest is `status`; see `meshprog --help`",
            ),
            (
                &["xyz"],
                "there is no command `xyz`; there are join, status and node; see `meshprog --help`",
            ),
            (
                &["join", "x", "--port", "70000"],
                "join: `70000` is not a value of --port <PORT>: a port is a number from 1 to 65535, such as 5432; see `meshprog join --help`",
            ),
            (
                &["join", "x", "--port", "-1"],
                "join: `-1` is not a value of --port <PORT>: a port is a number from 1 to 65535, such as 5432; see `meshprog join --help`",
            ),
            (
                &["join", "x", "--port"],
                "join: --port <PORT> needs a value; for example: meshprog join --port 80 x; see `meshprog join --help`",
            ),
            (
                &["join", "x", "--port", "1", "--protocol", "icmp"],
                "join: `icmp` is not a value of --protocol <PROTOCOL>: it is tcp or udp; see `meshprog join --help`",
            ),
            (
                &["join", "x", "--port", "1", "--protocol", "tcp", "--any"],
                "join: --protocol <PROTOCOL> and --any exclude each other; give one of them; see `meshprog join --help`",
            ),
            (
                &["join", "x", "--port", "1", "--port", "2"],
                "join: --port <PORT> is given more than once; give it once; see `meshprog join --help`",
            ),
            (
                &["join", "x", "y", "--port", "1"],
                "join: `y` is one argument too many; for example: meshprog join --port 80 x; see `meshprog join --help`",
            ),
            (
                &["status", "--nope"],
                "status: there is no option --nope; see `meshprog status --help`",
            ),
            (
                &["node"],
                "node: a command is missing: list or remove; see `meshprog node --help`",
            ),
        ] {
            assert_eq!(line_of(words), expected, "{words:?}");
        }
    }

    #[test]
    fn no_message_repeats_a_token() {
        for (argument, expected) in [
            ("mesh1_AbC", "mesh1_..."),
            ("mesha1_AbC", "mesha1_..."),
            ("--token=mesha1_AbC", "--token=mesha1_..."),
            ("mesha1_AbC mesh1_AbC", "mesha1_..."),
            ("mesh1_AbC mesha1_AbC", "mesh1_..."),
            ("mesh", "mesh"),
        ] {
            assert_eq!(shown(argument), expected);
        }
    }

    #[test]
    fn a_failure_has_no_number_of_the_system() {
        for (message, expected) in [
            (
                "cannot read x: No such file or directory (os error 2)",
                "cannot read x: No such file or directory",
            ),
            ("a (os error 13); b (os error 2); c", "a; b; c"),
            ("a (os error", "a (os error"),
            ("a (os error x) b", "a (os error x) b"),
        ] {
            assert_eq!(without_numbers(message), expected);
        }
    }

    #[test]
    fn the_command_is_found_behind_options_and_their_values() {
        let arguments: Vec<OsString> = ["node", "remove", "status"].map(OsString::from).to_vec();
        let program = Example::command();
        assert_eq!(Place::find(&program, &arguments).words, ["node", "remove"]);
        let arguments: Vec<OsString> = ["join", "--port", "status"].map(OsString::from).to_vec();
        assert_eq!(Place::find(&program, &arguments).words, ["join"]);
    }
}
