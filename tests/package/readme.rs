//! The commands that README.md tells people to type exist, with the options it gives them.

use std::collections::BTreeSet;

use crate::{program, read};

const PROGRAMS: [&str; 3] = ["meshctl", "mesh-coordinator", "meshd"];

#[test]
fn every_command_of_the_readme_exists_with_its_options() {
    let commands = commands(&read("README.md"));
    assert!(commands.len() >= 10, "the scan has lost some: {commands:?}");
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        let (help, unknown) = help_of(&words);
        assert!(
            unknown.is_empty() || !help.contains("\nCommands:\n"),
            "`{command}`: there is no {unknown}"
        );
        for option in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "`{command}`: no {option} in\n{help}");
        }
    }
}

#[test]
fn commands_are_found_in_code_only() {
    let text = "meshctl a\nsee `meshctl e f` and `meshd`\n    sudo meshctl b -c 2 | jq .   # c\n    x \"$(meshctl d g)\" && meshd\n    ls\n";
    let found: Vec<String> = commands(text).into_iter().collect();
    assert_eq!(found, ["meshctl b -c 2", "meshctl d g", "meshctl e f"]);
}

/// The help of the command that `words` begin with, and the first word that is none of its own commands.
fn help_of(words: &[&str]) -> (String, String) {
    let (name, rest) = words.split_first().expect("a program at least");
    let mut verbs: Vec<&str> = rest
        .iter()
        .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()))
        .copied()
        .collect();
    let mut unknown = "";
    loop {
        let output = program(name)
            .args(&verbs)
            .arg("--help")
            .output()
            .expect("it is built");
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        let usage = format!(
            "Usage: {} ",
            [&[*name], verbs.as_slice()].concat().join(" ")
        );
        if output.status.success() && help.contains(&usage) {
            return (help, unknown.to_owned());
        }
        unknown = verbs.pop().expect("a program has help");
    }
}

/// Commands of our programs in the README: in indented blocks and between backticks, without what is around them.
fn commands(readme: &str) -> BTreeSet<String> {
    let mut commands = BTreeSet::new();
    for line in readme.lines() {
        let spans: Vec<&str> = match line.strip_prefix("    ") {
            Some(code) => vec![code.split(" #").next().unwrap_or_default()],
            None => line.split('`').skip(1).step_by(2).collect(),
        };
        for part in spans
            .iter()
            .flat_map(|s| s.split(['|', '&', '(', ')', '>']))
        {
            let part = part.trim().trim_start_matches("sudo ");
            let mut words = part.split_whitespace();
            let is_ours = words.next().is_some_and(|first| PROGRAMS.contains(&first));
            // A lone name is mostly talk of the program.
            if is_ours && words.next().is_some() {
                commands.insert(part.to_owned());
            }
        }
    }
    commands
}
