//! `meshctl rotate-key`.

use clap::Args;

use super::exit::CliError;
use super::{Globals, table};
use crate::protocol::local::KeyRotated;

/// The arguments of `meshctl rotate-key`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl rotate-key    the peers accept both keys until all have the new one")]
pub(super) struct RotateKeyArguments {
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: &RotateKeyArguments, globals: &Globals) -> Result<u8, CliError> {
    let rotated: KeyRotated = globals
        .daemon()
        .post("/v1/rotate-key", &serde_json::json!({}))
        .await?;
    let later = table::later(rotated.published, rotated.unpublished.as_ref());
    eprintln!(
        "the tunnel's key is {}; the former key is accepted for a while{later}",
        rotated.public_key
    );
    if arguments.json {
        return table::json(&rotated);
    }
    Ok(0)
}
