//! The commands in the pages: our programs accept them, and the files that they name exist.

use std::collections::BTreeSet;

use crate::page::Page;
use crate::{pages, program, repository};

const PROGRAMS: [&str; 3] = ["meshctl", "mesh-coordinator", "meshd"];
/// Words before the program of a command.
const PREFIXES: [&str; 9] = [
    "sudo", "exec", "until", "while", "do", "if", "then", "else", "!",
];

#[test]
fn every_command_of_our_programs_is_accepted_by_them() {
    let mut commands = BTreeSet::new();
    for page in pages() {
        commands.extend(ours(&page));
    }
    assert!(commands.len() >= 40, "the scan has lost some: {commands:?}");
    let faults: Vec<String> = commands.iter().filter_map(|words| refused(words)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_command_that_does_not_exist_is_refused() {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(refused(&words("meshctl token create --uses 3")), None);
    assert_eq!(refused(&words("meshctl rollout db -- docker --nope")), None);
    for wrong in [
        "meshctl tokens create",
        "meshctl token create --usess 3",
        "meshctl token create --uses x",
        "mesh-coordinator back-up x",
    ] {
        assert!(refused(&words(wrong)).is_some(), "{wrong}");
    }
}

/// Why a program refuses a command. The parser of the program reads all arguments before it prints its help.
fn refused(words: &[String]) -> Option<String> {
    let (name, arguments) = words.split_first()?;
    let own = arguments
        .iter()
        .take_while(|word| *word != "--")
        .filter(|word| *word != "...");
    let output = program(name)
        .args(own)
        .arg("--help")
        .output()
        .expect("it is built");
    let said = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("`{}`: {}", words.join(" "), said.trim()))
}

/// The commands of our programs in the blocks of a page, and between backticks.
fn ours(page: &Page) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for block in page.blocks() {
        let text = match block.language.as_str() {
            "sh" => block.text.clone(),
            "console" => {
                let lines = block.text.lines();
                let typed = lines.filter_map(|line| line.split_once("# "));
                typed.map(|(_, command)| format!("{command}\n")).collect()
            }
            _ => continue,
        };
        found.extend(simple_commands(&text));
    }
    let spans = page.spans.iter().flat_map(|span| simple_commands(span));
    // A lone name between backticks is talk of the program.
    found.extend(spans.filter(|words| words.len() > 1));
    found.retain(|words| {
        words
            .first()
            .is_some_and(|word| PROGRAMS.contains(&word.as_str()))
    });
    found
}

/// Splits a script into commands without pipes, redirections and prefixes, each as its words.
pub(crate) fn simple_commands(script: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = script.chars().peekable();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('$', None | Some('"')) if chars.peek() == Some(&'(') => {
                chars.next();
                let mut depth = 1;
                let mut inner = String::new();
                for c in chars.by_ref() {
                    depth += i32::from(c == '(') - i32::from(c == ')');
                    if depth == 0 {
                        break;
                    }
                    inner.push(c);
                }
                commands.extend(simple_commands(&inner));
                // This is a number of any base, a name and the id of a token.
                word.get_or_insert_default().push('f');
            }
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('\\', None) => {
                if let Some(c) = chars.next().filter(|c| *c != '\n') {
                    word.get_or_insert_default().push(c);
                }
            }
            ('#', None) if word.is_none() => while chars.next_if(|c| *c != '\n').is_some() {},
            (' ' | '\t', None) => words.extend(word.take()),
            ('\n' | '|' | '&' | ';' | '(' | ')' | '<' | '>', None) => {
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
            }
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    commands.push(words);
    for words in &mut commands {
        while words.first().is_some_and(|word| {
            PREFIXES.contains(&word.as_str())
                || word.split_once('=').is_some_and(|(n, _)| !n.contains('-'))
        }) {
            words.remove(0);
        }
    }
    commands.retain(|words| !words.is_empty());
    commands
}

#[test]
fn a_script_is_split_into_its_commands() {
    let script = "sudo meshctl b -c 2 | jq .   # c\nMESH_KEY=/k meshctl d \"$(meshctl e 'f g')\" && meshd &\nuntil meshctl s; do sleep 1; done\na \\\n  b >c\n";
    let split: Vec<String> = simple_commands(script)
        .iter()
        .map(|words| words.join(" "))
        .collect();
    assert_eq!(
        split,
        [
            "meshctl b -c 2",
            "jq .",
            "meshctl e f g",
            "meshctl d f",
            "meshd",
            "meshctl s",
            "sleep 1",
            "done",
            "a b",
            "c"
        ]
    );
}

#[test]
fn what_the_pages_install_was_built_by_a_line_before_and_is_in_the_repository() {
    for path in ["README.md", "docs/install.md"] {
        assert_eq!(
            out_of_order(&Page::read(path)),
            Vec::<String>::new(),
            "{path}"
        );
    }
    let mut missing = Vec::new();
    for page in pages() {
        let scripts = page.blocks().filter(|block| block.language == "sh");
        for words in scripts.flat_map(|block| simple_commands(&block.text)) {
            let files = words.iter().filter(|word| {
                ["systemd/", "config/", "tests/"]
                    .iter()
                    .any(|folder| word.starts_with(folder))
            });
            let absent = files.filter(|word| !repository(word).exists());
            missing.extend(absent.map(|word| format!("{}: there is no {word}", page.path)));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn a_program_that_nothing_built_or_installed_is_found() {
    let text = "```sh\ncargo run --release --bin meshctl -- demo\nsudo install target/release/meshctl target/release/meshd /usr/local/bin/\nmeshctl status\nmesh-coordinator &\n```\n";
    let page = Page::new("p.md", text.to_owned());
    assert_eq!(
        out_of_order(&page),
        [
            "target/release/meshd is not built yet",
            "mesh-coordinator is not installed yet",
        ]
    );
}

/// Programs that the blocks of a page use before a command above built or installed them. A package installs all of them.
fn out_of_order(page: &Page) -> Vec<String> {
    let (mut built, mut installed) = (BTreeSet::new(), BTreeSet::new());
    let mut faults = Vec::new();
    let scripts = page.blocks().filter(|block| block.language == "sh");
    for words in scripts.flat_map(|block| simple_commands(&block.text)) {
        let first = words.first().map(String::as_str).unwrap_or_default();
        if first == "cargo" {
            let chosen = words.windows(2).find(|pair| pair[0] == "--bin");
            let programs = PROGRAMS.into_iter();
            built.extend(programs.filter(|p| chosen.is_none_or(|pair| pair[1] == *p)));
            continue;
        }
        if ["apt", "dnf"].contains(&first) {
            installed.extend(PROGRAMS);
        }
        for word in &words {
            let Some(program) = word.strip_prefix("target/release/") else {
                continue;
            };
            match built.get(program) {
                Some(program) => {
                    installed.insert(program);
                }
                None => faults.push(format!("{word} is not built yet")),
            }
        }
        if PROGRAMS.contains(&first) && !installed.contains(first) {
            faults.push(format!("{first} is not installed yet"));
        }
    }
    faults
}
