//! `meshctl service drain` and `undrain`.

use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::cli::exit::CliError;
use crate::cli::{Globals, names};
use crate::model::ServiceName;
use crate::os::arguments;
use crate::os::progress::ProgressLine;
use crate::protocol::local::ServiceChanged;

/// The arguments of `meshctl service drain` and `undrain`.
#[derive(Debug, Args)]
pub(in crate::cli) struct DrainArguments {
    /// The service, as `web` or `web.project`
    #[arg(value_name = "NAME", value_parser = arguments::service, add = ArgValueCandidates::new(names::own_services))]
    name: ServiceName,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(in crate::cli) async fn run(
    arguments: &DrainArguments,
    drain: bool,
    globals: &Globals,
) -> Result<u8, CliError> {
    let (verb, what) = if drain {
        ("drain", "gets no new clients on this node")
    } else {
        ("undrain", "gets clients on this node again")
    };
    let path = format!("/v1/services/{}/{verb}", arguments.name);
    let progress = ProgressLine::start("waiting for the coordinator");
    let changed: Result<ServiceChanged, CliError> =
        globals.daemon().post(&path, &serde_json::json!({})).await;
    drop(progress);
    let changed = changed?;
    super::report(
        &changed,
        &format!("{} {what}", changed.name),
        arguments.json,
    )
}
