//! `meshctl resolve`.

use clap::Args;

use super::exit::CliError;
use super::{Globals, table};
use crate::protocol::local::{Resolve, Resolved};

/// The arguments of `meshctl resolve`.
#[derive(Debug, Args)]
pub(super) struct ResolveArguments {
    /// A domain name, such as db.svc.mesh
    name: String,
    /// A record type
    #[arg(value_name = "TYPE", default_value = "A")]
    record_type: String,
}

pub(super) async fn run(arguments: ResolveArguments, globals: &Globals) -> Result<u8, CliError> {
    let resolve = Resolve {
        name: arguments.name,
        record_type: arguments.record_type,
    };
    let resolved: Resolved = globals.daemon().post("/v1/resolve", &resolve).await?;
    for answer in &resolved.answers {
        table::line(answer);
    }
    if resolved.answers.is_empty() {
        eprintln!(
            "{}: {} and no records of type {}",
            resolved.name,
            resolved.response_code,
            resolve.record_type.to_uppercase()
        );
    }
    for why in &resolved.why {
        eprintln!("{why}");
    }
    Ok(if resolved.answers.is_empty() { 2 } else { 0 })
}
