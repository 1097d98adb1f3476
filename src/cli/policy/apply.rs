//! `meshctl policy apply`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{MAX_NAMED, check, file};
use crate::cli::exit::CliError;
use crate::cli::live::Live;
use crate::cli::{Globals, mesh_key, table};
use crate::model::Label;
use crate::model::text::listed;
use crate::model::time::next_version;
use crate::os::{arguments, clock};
use crate::policy::{OPEN, Policy, Unmatched, unmatched};
use crate::protocol::admin::{MeshState, Submit, Submitted};
use crate::protocol::api::ErrorCode;
use crate::protocol::policy_check::UnmatchedSelector;
use crate::records::Envelope;
use crate::records::envelope::MAX_PAYLOAD;
use crate::records::kinds::{MeshPolicy, Record};

/// The arguments of `meshctl policy apply`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl policy apply shop.toml
  meshctl policy apply shop.toml --dry-run    nothing is denied by it; nodes list what would be

The tests in the file run first; one that fails prevents the change. Keep the file: `meshctl policy show` prints what is in force.")]
pub(in crate::cli) struct ApplyArguments {
    /// The file with the policy
    #[arg(value_name = "FILE", value_parser = arguments::path)]
    file: PathBuf,
    /// Apply it although some nodes have a version of meshd that knows no policies, and do not keep to it
    #[arg(long)]
    force: bool,
    /// Do not enforce it: each node lists what it would deny, in `meshctl policy denied`, beside what the policy in force denies
    #[arg(long)]
    dry_run: bool,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// `meshctl policy apply --json`.
#[derive(Debug, Serialize)]
struct Applied {
    schema: u32,
    /// Whether the policy is in force from now on. It is false with `--dry-run`.
    applied: bool,
    /// The version of the policy.
    version: u64,
    /// The nodes that do not keep to it.
    without: Vec<Label>,
    /// The selectors that select nobody in the present mesh, which may be errors in writing.
    unmatched: Vec<UnmatchedSelector>,
}

pub(in crate::cli) async fn run(
    arguments: ApplyArguments,
    globals: &Globals,
) -> Result<u8, CliError> {
    let path = &arguments.file;
    let policy = file::read("apply", path)?;
    let state: MeshState = globals.coordinator().get("/v1/mesh").await?;
    let (held, key) = mesh_key::of_mesh(&state, &globals.mesh_key)?;
    let live = Live::of_mesh(held, globals).await?;
    let failures = check::failures(&policy, &live);
    if !failures.is_empty() {
        for failure in &failures {
            eprintln!("{}", check::line_of(path, failure));
        }
        return Err(check::failed("apply", path, &failures));
    }
    let unmatched = unmatched(&policy, &live.subjects(Some(&policy)));
    // The nodes without policies are named below.
    check::warn(path, &unmatched, &[]);
    let without = live.not_keeping_to(&policy);
    if !without.is_empty() && !arguments.force {
        return Err(not_everywhere(&without));
    }
    if live.text() == Some(policy.text()) && live.tried().is_none() && !arguments.dry_run {
        eprintln!(
            "version {} of the policy is this one already; nothing changed",
            live.version()
        );
        return report(&arguments, live.version(), without, &unmatched);
    }
    let version = next_version(live.version(), clock::wall());
    let record = if arguments.dry_run {
        let in_force = live.policy("apply")?;
        let in_force = in_force.as_ref().map_or(OPEN, Policy::text);
        MeshPolicy::new(version, in_force).trying(policy.text())
    } else {
        MeshPolicy::new(version, policy.text())
    };
    let envelope = Envelope::seal(&Record::Policy(record), &key);
    if envelope.payload.len() > MAX_PAYLOAD {
        return Err(too_long(envelope.payload.len(), arguments.dry_run));
    }
    submit(envelope, version, globals).await?;
    say(&arguments, &policy, version, &without);
    report(&arguments, version, without, &unmatched)
}

/// Sends the signed policy to the coordinator.
async fn submit(envelope: Envelope, version: u64, globals: &Globals) -> Result<(), CliError> {
    let mesh_key = envelope.signer;
    let submit = Submit {
        mesh_key: None,
        records: vec![envelope],
    };
    let sent = globals.coordinator().post("/v1/records", &submit).await;
    let Err(error): Result<Submitted, CliError> = sent else {
        return Ok(());
    };
    // Somebody else may have applied a policy since the records were read.
    match Live::of_mesh(mesh_key, globals).await {
        Ok(live) if live.version() >= version => Err(CliError::new(
            ErrorCode::Conflict,
            format!(
                "policy apply: another policy was applied meanwhile (version {}); compare it with `meshctl policy diff`, and apply again",
                live.version()
            ),
        )),
        _ => Err(error),
    }
}

fn say(arguments: &ApplyArguments, policy: &Policy, version: u64, without: &[Label]) {
    if arguments.dry_run {
        eprintln!(
            "each node tries {} as soon as it has received it: `meshctl policy denied` there lists what would be denied, and it passes; apply the file without --dry-run to enforce it",
            arguments.file.display()
        );
    } else {
        let language = policy.language();
        eprintln!(
            "version {version} of the policy (language {language}) is signed and with the coordinator: each node keeps to it as soon as it has received it"
        );
    }
    if !without.is_empty() {
        eprintln!(
            "warning: these nodes ignore it, since their version of meshd does not know policies like it: {}",
            listed(without, MAX_NAMED)
        );
    }
}

fn report(
    arguments: &ApplyArguments,
    version: u64,
    without: Vec<Label>,
    unmatched: &[Unmatched],
) -> Result<u8, CliError> {
    if !arguments.json {
        return Ok(0);
    }
    table::json(&Applied {
        schema: 1,
        applied: !arguments.dry_run,
        version,
        without,
        unmatched: unmatched.iter().map(UnmatchedSelector::from).collect(),
    })
}

fn not_everywhere(without: &[Label]) -> CliError {
    let text = format!(
        "policy apply: {} would not keep to it, since their version of meshd does not know policies like it; upgrade them, or apply it all the same with --force",
        listed(without, MAX_NAMED)
    );
    CliError::new(ErrorCode::Conflict, text)
}

fn too_long(bytes: usize, is_dry_run: bool) -> CliError {
    let record = if is_dry_run {
        "the record of this policy and of the one in force"
    } else {
        "the record of this policy"
    };
    let text = format!(
        "policy apply: {record} has {bytes} bytes, and {MAX_PAYLOAD} are the most; shorten it with groups and `*`"
    );
    CliError::new(ErrorCode::Configuration, text)
}
