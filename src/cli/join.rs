//! `meshctl join`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::exit::CliError;
use super::{Globals, opened_token, table};
use crate::model::Label;
use crate::os::arguments;
use crate::os::progress::ProgressLine;
use crate::os::token_file::{self, TokenReadError};
use crate::protocol::JoinToken;
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{Join, Joined};

/// The time that meshd may use in addition to the limit of the join, to report that the limit has passed.
const GRACE: Duration = Duration::from_secs(10);

/// The arguments of `meshctl join`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  meshctl join --token-file /root/token    other users cannot see the token
  meshctl join -                           the token is read from stdin
  meshctl join - --name web-1              the node has this name in the mesh

`meshctl token create` on the administrator's machine prints a token.")]
pub(super) struct JoinArguments {
    /// The token that `meshctl token create` printed; `-` reads it from stdin. Other users can see this argument
    #[arg(required_unless_present = "token_file", value_name = "TOKEN")]
    token: Option<String>,
    /// A file with the token, which other users cannot see
    #[arg(long, value_name = "FILE", conflicts_with = "token", value_parser = arguments::path)]
    token_file: Option<PathBuf>,
    /// The node's name [default: `name` in meshd.toml, else the host name]
    #[arg(long, value_name = "NAME", value_parser = arguments::label)]
    name: Option<Label>,
    /// When to give up
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_timeout, allow_hyphen_values = true)]
    timeout: Duration,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

impl std::fmt::Debug for JoinArguments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinArguments")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A duration. A number without a unit is in seconds.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    let has_unit = !text.ends_with(|c: char| c.is_ascii_digit());
    let with_unit = if has_unit {
        text.to_owned()
    } else {
        format!("{text}s")
    };
    arguments::duration("1s", "10m", "30s or 2m")(&with_unit)
}

pub(super) async fn run(arguments: JoinArguments, globals: &Globals) -> Result<u8, CliError> {
    let token = read_token(arguments.token, arguments.token_file)?;
    if token.is_empty() {
        return Err(CliError::new(
            ErrorCode::BadRequest,
            "join: the join token is empty; give the whole word that `meshctl token create` printed",
        ));
    }
    JoinToken::parse(&token)
        .map_err(|error| CliError::new(ErrorCode::BadRequest, format!("join: {error}")))?;
    let join = Join {
        token: token.trim().to_owned(),
        name: arguments.name.map(|name| name.to_string()),
        timeout_seconds: arguments.timeout.as_secs_f64(),
    };
    let limit = Duration::from_secs_f64(join.timeout_seconds) + GRACE;
    let daemon = globals.daemon().within(limit);
    let progress = ProgressLine::start("joining: waiting for the coordinator and for the tunnel");
    let joined: Result<Joined, CliError> = daemon.post("/v1/join", &join).await;
    drop(progress);
    let joined = joined?;
    if arguments.json {
        table::json(&joined)?;
    }
    for note in &joined.notes {
        eprintln!("note: {note}");
    }
    eprintln!(
        "joined as {} with {} and {}",
        joined.name, joined.address_v4, joined.address_v6
    );
    if !joined.published {
        // The node is a member, but others cannot reach it yet. The exit code lets scripts notice that.
        return Ok(ErrorCode::Unreachable.exit_code());
    }
    super::reached::report(globals).await;
    Ok(0)
}

fn read_token(argument: Option<String>, file: Option<PathBuf>) -> Result<String, CliError> {
    match (argument, file) {
        (_, Some(path)) => read_file(&path),
        (Some(token), None) if token != "-" => Ok(token),
        (_, None) => {
            token_file::read(std::io::stdin()).map_err(|error| unreadable("stdin", &error))
        }
    }
}

/// The file may be a pipe: a shell gives one for the output of a command.
fn read_file(path: &Path) -> Result<String, CliError> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| unreadable(&name, &error.into()))?;
    opened_token::read(file, path).map_err(|error| unreadable(&name, &error))
}

fn unreadable(name: &str, error: &TokenReadError) -> CliError {
    let advice = match error {
        TokenReadError::Permission => "; use sudo",
        _ => "",
    };
    CliError::new(
        opened_token::code(error),
        format!(
            "join: cannot read the token from {name}: {error}{advice}; the file holds what `meshctl token create` printed"
        ),
    )
}
