//! `meshctl policy show`.

use serde::Serialize;

use super::MAX_NAMED;
use crate::cli::exit::CliError;
use crate::cli::live::Live;
use crate::cli::{Globals, table};
use crate::model::Label;
use crate::model::text::listed;

/// `meshctl policy show --json`.
#[derive(Debug, Serialize)]
struct Shown {
    schema: u32,
    /// It is null if there is no policy.
    version: Option<u64>,
    /// It is null if there is no policy, or one in a form of a later version.
    text: Option<String>,
    /// The policy that is tried beside it, with `meshctl policy apply --dry-run`.
    tried: Option<String>,
    /// The nodes that do not keep to it, because their version of meshd knows no policies.
    without: Vec<Label>,
}

pub(super) async fn run(json: bool, globals: &Globals) -> Result<u8, CliError> {
    let live = Live::read(globals).await?;
    let version = Some(live.version()).filter(|version| *version > 0);
    let text = live.text();
    if json {
        return table::json(&Shown {
            schema: 1,
            version,
            text: text.map(str::to_owned),
            tried: live.tried().map(str::to_owned),
            without: live.without_policies(),
        });
    }
    match (version, text) {
        (None, _) => eprintln!(
            "there is no policy: every node may serve every name, and reach all that is exposed; `meshctl policy apply` makes one"
        ),
        (Some(version), None) => {
            // The error has the reason.
            live.policy("show")?;
            eprintln!("version {version} of the policy has no text");
        }
        (Some(version), Some(text)) => {
            eprintln!("version {version} of the policy:");
            table::raw(text.as_bytes());
        }
    }
    if live.tried().is_some() {
        eprintln!("another policy is tried beside it; `meshctl policy show --json` has its text");
    }
    let without = live.without_policies();
    if version.is_some() && !without.is_empty() {
        eprintln!(
            "warning: these nodes do not keep to it, since their version of meshd knows no policies; upgrade them: {}",
            listed(&without, MAX_NAMED)
        );
    }
    Ok(0)
}
