//! What the blocks of the pages contain is valid, and every block of commands runs or says why it does not.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use meshd::policy::{Policy, run_tests};
use meshd::testbed::World;

use crate::page::{Block, Marker, Page};
use crate::tool::find_program;
use crate::{pages, program};

/// The languages of blocks of commands.
const COMMANDS: [&str; 2] = ["sh", "console"];
const OTHERS: [&str; 5] = ["toml", "yaml", "json", "nft", "text"];
/// The file whose name the first line of a block has, and the program that checks it.
const TOML_FILES: [(&str, &str); 2] = [
    ("# /etc/meshd/meshd.toml", "meshd"),
    ("# /etc/meshd/coordinator.toml", "mesh-coordinator"),
];

/// The end of the first line of a block that is a policy. The parser checks the policy, and its tests must hold without a mesh.
const POLICY: &str = "policy.toml";

/// All blocks of a language, with their pages.
fn blocks(language: &str) -> Vec<(String, Block)> {
    let all = pages();
    let blocks = all.iter().flat_map(|page| {
        let own = page.blocks().filter(|block| block.language == language);
        own.map(|block| (format!("{}:{}", page.path, block.line), block.clone()))
    });
    blocks.collect()
}

#[test]
fn every_block_of_commands_runs_or_says_why_it_does_not() {
    let (mut run, mut reasons, mut faults) = (0, BTreeMap::<String, usize>::new(), Vec::new());
    for page in pages() {
        faults.extend(page.faults.iter().cloned());
        for block in page.blocks() {
            let at = format!("{}:{}", page.path, block.line);
            match (&block.marker, block.language.as_str()) {
                (Some(Marker::NotRun(why)), language) if COMMANDS.contains(&language) => {
                    *reasons.entry(why.clone()).or_default() += 1;
                    if why.split(' ').count() < 4 {
                        faults.push(format!("{at}: `{why}` is no reason"));
                    }
                }
                (Some(Marker::On(_)), "sh") | (None | Some(Marker::NotCompared(_)), "console") => {
                    run += 1;
                }
                (Some(Marker::FileOn(_)) | None, language) if OTHERS.contains(&language) => {}
                (None, "sh") => faults.push(format!(
                    "{at}: name the host that runs it (`on: HOST`), or why no test does (`not run: REASON`)"
                )),
                (marker, language) => {
                    faults.push(format!("{at}: {marker:?} does not fit a block `{language}`"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let not_run: usize = reasons.values().sum();
    println!("{run} blocks of commands run, {not_run} do not:");
    for (reason, count) in &reasons {
        println!("{count:4}  {reason}");
    }
    assert!(run >= 35, "{run} blocks run");
}

#[test]
fn every_configuration_is_accepted_by_its_program() {
    let mut faults = Vec::new();
    let blocks = blocks("toml");
    for (at, block) in &blocks {
        let first = block.text.lines().next().unwrap_or_default();
        if first.starts_with("# ") && first.ends_with(POLICY) {
            faults.extend(faults_of_policy(at, &block.text));
            continue;
        }
        let Some((_, name)) = TOML_FILES.iter().find(|(file, _)| *file == first) else {
            faults.push(format!("{at}: the first line names no file of ours"));
            continue;
        };
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(block.text.as_bytes()).expect("writable");
        let mut command = program(name);
        command
            .args(["--check-config", "--config"])
            .arg(file.path());
        if cfg!(not(feature = "etcd")) && block.text.contains("\"etcd\"") {
            continue;
        }
        faults.extend(refusal(at, &command.output().expect("it is built")));
    }
    assert!(blocks.len() >= 12, "{} blocks", blocks.len());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn faults_of_policy(at: &str, text: &str) -> Vec<String> {
    match Policy::check(text) {
        Ok(policy) => {
            let failures = run_tests(&policy, &[]);
            failures
                .iter()
                .map(|failure| format!("{at}: {failure}"))
                .collect()
        }
        Err(errors) => errors
            .iter()
            .map(|error| format!("{at}: {error}"))
            .collect(),
    }
}

#[test]
fn every_compose_file_is_accepted_by_compose() {
    let blocks = blocks("yaml");
    assert!(blocks.len() >= 7, "{} blocks", blocks.len());
    let (compose, others): (Vec<_>, Vec<_>) = blocks.iter().partition(|(_, block)| {
        block
            .text
            .lines()
            .next()
            .is_some_and(|l| l.ends_with("compose.yaml"))
    });
    for (at, block) in others {
        assert!(block.text.starts_with("# prometheus.yml\n"), "{at}");
    }
    let compose_program = find_program("docker-compose");
    let subcommand = compose_program.is_none().then_some("compose");
    let Some(program) = compose_program.or_else(|| find_program("docker")) else {
        return meshd::testbed::skip_test("docker-compose is not installed");
    };
    let mut faults = Vec::new();
    for (at, block) in compose {
        let folder = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(folder.path().join("compose.yaml"), &block.text).expect("writable");
        let output = Command::new(&program)
            .args(subcommand)
            .args(["-f", "compose.yaml", "config", "-q"])
            .current_dir(folder.path())
            .output()
            .expect("it is installed");
        faults.extend(refusal(at, &output));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_configuration_of_prometheus_is_accepted_by_promtool() {
    let Some(program) = find_program("promtool") else {
        return meshd::testbed::skip_test("there is no promtool");
    };
    for (at, block) in blocks("yaml") {
        if !block.text.starts_with("# prometheus.yml\n") {
            continue;
        }
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), &block.text).expect("writable");
        let output = Command::new(&program)
            .args(["check", "config", "--syntax-only"])
            .arg(file.path())
            .output()
            .expect("it is installed");
        assert_eq!(refusal(&at, &output), None);
    }
}

#[test]
fn every_ruleset_is_accepted_by_nft() {
    if !nix::unistd::geteuid().is_root() {
        return meshd::testbed::skip_test("network namespaces need root");
    }
    let Some(program) = find_program("nft") else {
        return meshd::testbed::skip_test("nft is not installed");
    };
    let world = World::new().expect("root may make namespaces");
    let host = world.host("firewall").expect("a namespace");
    let blocks = blocks("nft");
    assert!(!blocks.is_empty());
    for (at, block) in blocks {
        let mut command = host
            .command(&program.to_string_lossy())
            .expect("a namespace");
        command.args(["--check", "--file", "-"]);
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it is installed");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(block.text.as_bytes()).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(refusal(&at, &output), None);
    }
}

#[test]
fn every_json_document_is_valid() {
    for (at, block) in blocks("json") {
        let parsed = serde_json::from_str::<serde_json::Value>(&block.text);
        assert!(parsed.is_ok(), "{at}: {parsed:?}");
    }
}

#[test]
fn the_compose_example_is_the_one_of_the_first_page_for_containers() {
    let example = crate::read("config/compose.example.yaml");
    let page = Page::read("docs/howto/compose.md");
    let first = page.blocks().find(|block| block.language == "yaml");
    let labels = "    labels:\n      mesh.service: db\n      mesh.port: \"5432\"\n";
    assert!(first.is_some_and(|block| block.text.contains(labels)));
    assert!(example.contains(labels), "{example}");
}

fn refusal(at: &str, output: &Output) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("{at}: {}", said.trim()))
}
