//! The commands that README.md tells people to type exist, with the options it gives them.

use std::collections::BTreeSet;

use crate::{program, read, repository};

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
fn what_the_readme_installs_and_runs_was_built_and_installed_by_the_lines_before() {
    assert_eq!(out_of_order(&read("README.md")), Vec::<String>::new());
}

#[test]
fn a_program_that_nothing_built_or_installed_is_found() {
    let text = "    cargo run --release --bin meshctl -- demo\n    sudo install target/release/meshctl target/release/meshd /usr/local/bin/\n    meshctl status\n    mesh-coordinator &\n    install systemd/nothing.service /etc\n";
    assert_eq!(
        out_of_order(text),
        [
            "target/release/meshd is not built yet",
            "mesh-coordinator is not installed yet",
            "systemd/nothing.service is not in the repository",
        ]
    );
}

/// Programs that the indented commands of a README use before a command above built or installed them, and files that do not exist.
fn out_of_order(readme: &str) -> Vec<String> {
    let (mut built, mut installed) = (BTreeSet::new(), BTreeSet::new());
    let mut faults = Vec::new();
    let lines = readme.lines().filter_map(|line| line.strip_prefix("    "));
    for line in lines.map(|code| code.split(" #").next().unwrap_or_default()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let words = words.strip_prefix(&["sudo"]).unwrap_or(&words);
        if words.starts_with(&["cargo"]) {
            let chosen = words.windows(2).find(|pair| pair[0] == "--bin");
            let programs = PROGRAMS.into_iter();
            built.extend(programs.filter(|p| chosen.is_none_or(|pair| pair[1] == *p)));
            continue;
        }
        for word in words {
            if let Some(program) = word.strip_prefix("target/release/") {
                if built.contains(program) {
                    installed.insert(program);
                } else {
                    faults.push(format!("{word} is not built yet"));
                }
            } else if (word.starts_with("systemd/") || word.starts_with("config/"))
                && !repository(word).exists()
            {
                faults.push(format!("{word} is not in the repository"));
            }
        }
        let first = words.first().copied().unwrap_or_default();
        if PROGRAMS.contains(&first) && !installed.contains(first) {
            faults.push(format!("{first} is not installed yet"));
        }
    }
    faults
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
