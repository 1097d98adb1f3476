//! `meshctl join`.

use clap::Args;

use super::Globals;
use super::exit::CliError;
use crate::wire::JoinToken;
use crate::wire::api::ErrorCode;
use crate::wire::local::{Join, Joined};

/// What to join with.
#[derive(Args)]
pub(super) struct Arguments {
    /// The word that `meshctl token create` printed
    token: String,
    /// The node's name [default: `name` in meshd.toml, else the host name]
    #[arg(long)]
    name: Option<String>,
    /// When to give up
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_seconds)]
    timeout: f64,
}

impl std::fmt::Debug for Arguments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arguments")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is no time such as 30s or 2m, from 1s to 600s");
    let (number, factor) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60.0),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    number
        .parse::<f64>()
        .ok()
        .map(|n| n * factor)
        .filter(|s| (1.0..=600.0).contains(s))
        .ok_or_else(wrong)
}

pub(super) async fn run(arguments: Arguments, globals: &Globals) -> Result<u8, CliError> {
    JoinToken::parse(&arguments.token)
        .map_err(|error| CliError::new(ErrorCode::BadRequest, error.to_string()))?;
    let join = Join {
        token: arguments.token,
        name: arguments.name,
        timeout_seconds: arguments.timeout,
    };
    let joined: Joined = globals.daemon().post("/v1/join", &join).await?;
    for note in &joined.notes {
        eprintln!("note: {note}");
    }
    eprintln!(
        "joined as {} with {} and {}",
        joined.name, joined.address_v4, joined.address_v6
    );
    Ok(0)
}
