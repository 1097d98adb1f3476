//! `meshctl join`.

use std::io::Read as _;
use std::time::Duration;

use clap::Args;

use super::Globals;
use super::exit::CliError;
use crate::wire::JoinToken;
use crate::wire::api::ErrorCode;
use crate::wire::local::{Join, Joined};

/// What meshd may take beyond the time it was given, to say that the time is over.
const GRACE: Duration = Duration::from_secs(10);
/// Octets of a token on stdin at most; the longest is under 3 KiB.
const MAX_TOKEN: u64 = 16 * 1024;

/// What to join with.
#[derive(Args)]
pub(super) struct Arguments {
    /// The word that `meshctl token create` printed; `-` reads it from stdin, where no other user sees it
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
    let token = read_token(arguments.token)?;
    JoinToken::parse(&token)
        .map_err(|error| CliError::new(ErrorCode::BadRequest, error.to_string()))?;
    let join = Join {
        token: token.trim().to_owned(),
        name: arguments.name,
        timeout_seconds: arguments.timeout,
    };
    let limit = Duration::from_secs_f64(join.timeout_seconds) + GRACE;
    let daemon = globals.daemon().within(limit);
    let joined: Joined = daemon.post("/v1/join", &join).await?;
    for note in &joined.notes {
        eprintln!("note: {note}");
    }
    eprintln!(
        "joined as {} with {} and {}",
        joined.name, joined.address_v4, joined.address_v6
    );
    super::reached::report(globals).await;
    Ok(0)
}

fn read_token(argument: String) -> Result<String, CliError> {
    if argument != "-" {
        return Ok(argument);
    }
    let mut token = String::new();
    std::io::stdin()
        .take(MAX_TOKEN)
        .read_to_string(&mut token)
        .map_err(|error| {
            let text = format!("cannot read the token from stdin: {error}");
            CliError::new(ErrorCode::BadRequest, text)
        })?;
    Ok(token)
}
