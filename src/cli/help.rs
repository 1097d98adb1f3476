//! The help of `meshctl`: its commands in groups. clap lists commands in one group only.

use std::fmt::Write as _;

use clap::builder::Styles;
use clap::{Command, CommandFactory as _};

use super::Cli;

/// The groups of commands, in the order of the help.
const GROUPS: &[(&str, &[&str])] = &[
    (
        "Administration (where mesh-coordinator runs)",
        &["init", "token", "api-token", "node", "guest", "policy"],
    ),
    (
        "This node",
        &["join", "leave", "rename", "rotate-key", "status"],
    ),
    ("Services", &["service", "rollout"]),
    (
        "Names and diagnosis",
        &[
            "resolve",
            "ping",
            "why",
            "netcheck",
            "doctor",
            "audit",
            "bugreport",
        ],
    ),
    ("Other", &["demo", "completions", "help"]),
];

const EXAMPLES: &[(&str, &str)] = &[
    ("meshctl init", "create the mesh, once"),
    ("meshctl token create --uses 3", "a token for three servers"),
    ("meshctl join --token-file FILE", "on each server"),
    (
        "meshctl status --watch",
        "is it ready, and whom does it reach?",
    ),
    (
        "meshctl service add db --port 5432 --check-tcp",
        "publish db.svc.mesh",
    ),
    ("meshctl resolve db.svc.mesh", "what names lead to, and why"),
];

/// The command line of meshctl, with its help.
#[must_use]
pub fn command() -> Command {
    // The list of commands has their descriptions after `build`.
    let mut built = Cli::command();
    built.build();
    Cli::command().help_template(template(&built))
}

fn template(command: &Command) -> String {
    let styles = Styles::styled();
    let (header, literal) = (styles.get_header(), styles.get_literal());
    let mut text = String::from("{about}\n\n{usage-heading} {usage}\n");
    for (group, names) in GROUPS {
        let _ = write!(text, "\n{header}{group}:{header:#}\n");
        for name in *names {
            let about = command
                .find_subcommand(name)
                .and_then(Command::get_about)
                .map(ToString::to_string)
                .unwrap_or_default();
            let _ = writeln!(text, "  {literal}{name:<12}{literal:#}  {about}");
        }
    }
    let _ = write!(text, "\n{header}Examples:{header:#}\n");
    for (line, about) in EXAMPLES {
        let _ = writeln!(text, "  {literal}{line:<46}{literal:#}  {about}");
    }
    let _ = write!(
        text,
        "\n{header}Options of all commands:{header:#}\n{{options}}\n\nEach command has its own help with examples: meshctl COMMAND --help\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The commands below `command` that have no commands of their own, with the names that lead to them.
    fn leaves(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
        let mut has_commands = false;
        for next in command.get_subcommands().filter(|c| c.get_name() != "help") {
            has_commands = true;
            leaves(next, &format!("{path} {}", next.get_name()), found);
        }
        if !has_commands {
            found.push((path.trim_start().to_owned(), command.clone()));
        }
    }

    /// The words of a line, where single quotes keep spaces in one word.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut is_quoted = false;
        for c in line.chars() {
            match c {
                '\'' => is_quoted = !is_quoted,
                ' ' if !is_quoted => words.push(String::new()),
                c => words.last_mut().expect("there is one").push(c),
            }
        }
        words
    }

    #[test]
    fn each_command_is_in_one_group() {
        let mut built = Cli::command();
        built.build();
        let commands: BTreeSet<&str> = built
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(Command::get_name)
            .collect();
        let grouped: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| *names)
            .copied()
            .collect();
        assert_eq!(grouped.len(), commands.len(), "{grouped:?} {commands:?}");
        assert_eq!(grouped.into_iter().collect::<BTreeSet<_>>(), commands);
    }

    #[test]
    fn each_command_has_an_example_that_is_a_valid_command_line() {
        let mut found = Vec::new();
        leaves(&command(), "", &mut found);
        assert!(found.len() > 20, "{found:?}");
        let mut examples: Vec<String> = EXAMPLES
            .iter()
            .map(|(line, _)| (*line).to_owned())
            .collect();
        for (name, command) in found {
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            let lines: Vec<&str> = help.lines().map(str::trim).collect();
            let own: Vec<&&str> = lines.iter().filter(|l| l.starts_with("meshctl ")).collect();
            assert!(!own.is_empty(), "{name} has no example");
            let prefix = format!("meshctl {name}");
            assert!(
                own.iter().all(|l| l.starts_with(&prefix)),
                "{name}: {own:?}"
            );
            examples.extend(own.iter().map(|line| (**line).to_owned()));
        }
        for example in examples {
            // The explanation follows after two spaces, and a redirection is the shell's.
            let line = example.split("  ").next().unwrap_or_default();
            let line = line.split(" > ").next().unwrap_or_default();
            let parsed = command().try_get_matches_from(words(line));
            assert!(parsed.is_ok(), "{line}: {}", parsed.expect_err("checked"));
        }
    }
}
