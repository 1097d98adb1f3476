//! `meshctl bugreport`: one file with what is needed to find a fault, and without secrets.
//!
//! Each part is text. [`secrets`] removes secrets from all of them, whatever they come from: a log or a configuration may have a
//! token in a place where nobody expects one.

mod archive;
mod secrets;
mod sources;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use self::archive::Part;
use self::secrets::Secrets;
use super::exit::CliError;
use super::{Client, Globals, doctor, table};
use crate::model::time::UnixSeconds;
use crate::os::progress::ProgressLine;
use crate::os::{arguments, clock, file};
use crate::protocol::api::ErrorCode;
use crate::protocol::local::Status;

/// The arguments of `meshctl bugreport`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl bugreport                        writes meshd-bugreport-TIME.tar
  meshctl bugreport --output report.tar
  meshctl bugreport --output - > report.tar

It has the status, services, lookups, configuration, logs and network state of this machine, with the names and the
addresses of nodes. It has no keys, tokens or passwords: look through it before you pass it on all the same. It works
also while meshd does not run. Run it as root: other users cannot read the logs.")]
pub(super) struct BugreportArguments {
    /// The file to write, which must not exist; `-` is stdout [default: meshd-bugreport-TIME.tar]
    #[arg(long, short, value_name = "FILE", value_parser = arguments::path)]
    output: Option<PathBuf>,
    /// The configuration of meshd
    #[arg(long, value_name = "FILE", value_parser = arguments::path, default_value = "/etc/meshd/meshd.toml")]
    config: PathBuf,
    /// The configuration of mesh-coordinator
    #[arg(long, value_name = "FILE", value_parser = arguments::path, default_value = "/etc/meshd/coordinator.toml")]
    coordinator_config: PathBuf,
    /// One JSON document on stdout, with the name of the file and of its parts
    #[arg(long)]
    json: bool,
}

/// `meshctl bugreport --json`.
#[derive(Debug, Serialize)]
struct Written {
    schema: u32,
    file: PathBuf,
    parts: Vec<String>,
}

pub(super) async fn run(arguments: &BugreportArguments, globals: &Globals) -> Result<u8, CliError> {
    let now = UnixSeconds::from_system(clock::wall());
    let progress = ProgressLine::start("collecting");
    let secrets = Secrets::collect(
        &[&arguments.config, &arguments.coordinator_config],
        &globals.mesh_key,
    );
    let mut parts = collect(arguments, globals).await;
    for part in &mut parts {
        part.text = secrets.remove_from(&part.text);
    }
    drop(progress);
    let bytes = archive::tar(&parts, now).map_err(CliError::failed)?;
    let path = match &arguments.output {
        Some(path) if path.as_os_str() == "-" => {
            table::raw(&bytes);
            return Ok(0);
        }
        Some(path) => path.clone(),
        None => format!("meshd-bugreport-{}.tar", now.0).into(),
    };
    file::create_private_new(&path, &bytes).map_err(|error| {
        let code = match error.is_permission() {
            true => ErrorCode::Permission,
            false => ErrorCode::Internal,
        };
        CliError::new(
            code,
            format!("the report is not written: {error}; name another file with --output"),
        )
    })?;
    eprintln!(
        "wrote {}: look through it (`tar -xOf {} | less`) before you pass it on",
        path.display(),
        path.display()
    );
    if arguments.json {
        return table::json(&Written {
            schema: 1,
            file: path,
            parts: parts.into_iter().map(|part| part.name).collect(),
        });
    }
    Ok(0)
}

async fn collect(arguments: &BugreportArguments, globals: &Globals) -> Vec<Part> {
    let daemon = globals.daemon();
    let coordinator = globals.coordinator();
    let status: Option<Status> = daemon.get("/v1/status").await.ok();
    let interface = status.as_ref().and_then(|status| status.interface.as_ref());
    let interface = interface
        .map_or("mesh0", |interface| &interface.name)
        .to_owned();
    let mut parts = vec![
        Part::new("versions.txt", sources::versions(status.as_ref())),
        document("status.json", &daemon, "/v1/status").await,
        document("system.json", &daemon, "/v1/system").await,
        document("services.json", &daemon, "/v1/services").await,
        document("containers.json", &daemon, "/v1/containers").await,
        Part::new("doctor.json", doctor::document(globals).await),
        document("coordinator-nodes.json", &coordinator, "/v1/nodes").await,
        Part::new("meshd.toml", sources::read(&arguments.config)),
        Part::new(
            "coordinator.toml",
            sources::read(&arguments.coordinator_config),
        ),
    ];
    for (name, program, words) in sources::PROGRAMS {
        let words: Vec<&str> = words
            .iter()
            .map(|word| {
                if *word == sources::INTERFACE {
                    interface.as_str()
                } else {
                    *word
                }
            })
            .collect();
        parts.push(Part::new(name, sources::output(program, &words).await));
    }
    parts
}

/// The answer of a daemon, or why there is none.
async fn document(name: &str, daemon: &Client, path: &str) -> Part {
    let answer: Result<serde_json::Value, CliError> = daemon.get(path).await;
    let text = match answer {
        Ok(document) => serde_json::to_string_pretty(&document).unwrap_or_default(),
        Err(error) => format!("not available: {}", error.message),
    };
    Part::new(name, text)
}
