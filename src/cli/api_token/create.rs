//! `meshctl api-token create`.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use zeroize::Zeroizing;

use super::made;
use crate::cli::exit::CliError;
use crate::cli::{Globals, mesh_key, table};
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey, SigningKey};
use crate::os::{arguments, clock, random};
use crate::policy::Selector;
use crate::protocol::admin::{ApiTokenNoted, MeshState};
use crate::protocol::api::ErrorCode;
use crate::protocol::api_token::{ApiCertificate, ApiToken, MAX_BINDINGS, MAX_NODES, Scope};
use crate::protocol::token::SpkiPin;

/// Options of the new token.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl api-token create --name dashboard --scope status:read --scope services:read
  meshctl api-token create --name ci --scope drain --node web-1 --from ci/runner --ttl 30d

The token is the only text on stdout. Whoever has it can make these calls: pass it on in a file. With --from it works for callers
that have the address of this service, tag or node in the mesh, and is of no use to others who steal it.")]
pub(in crate::cli) struct CreateArguments {
    /// What the token is for, in logs and lists
    #[arg(long, value_name = "NAME", value_parser = arguments::label)]
    name: Label,
    /// The calls that it permits, such as services:read; may be given several times
    #[arg(long = "scope", value_name = "SCOPE", required = true, value_parser = parse_scope)]
    scopes: Vec<Scope>,
    /// A node whose API it permits; may be given several times [default: all nodes, and the coordinators]
    #[arg(long = "node", value_name = "NODE", value_parser = arguments::label)]
    nodes: Vec<Label>,
    /// The callers that may use it, as a policy names them: ci/runner, tag:ops; may be given several times [default: any caller]
    #[arg(long, value_name = "WHO", value_parser = parse_caller)]
    from: Vec<String>,
    /// How long it is valid: 12h, 30d
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = arguments::duration("1s", "3650d", "12h or 30d"), allow_hyphen_values = true)]
    ttl: Duration,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// `meshctl api-token create --json`.
#[derive(Serialize)]
struct CreatedApiToken {
    schema: u32,
    /// By which logs and lists name the token.
    id: PublicKey,
    name: Label,
    /// The token itself, which is a secret.
    token: String,
    /// The time from which it permits nothing.
    expires_at: UnixSeconds,
}

fn parse_scope(text: &str) -> Result<Scope, String> {
    text.parse::<Scope>().map_err(|error| error.to_string())
}

/// Checks a selector, and returns it in the form in which it is printed.
fn parse_caller(text: &str) -> Result<String, String> {
    let example = "; an example is ci/runner, tag:ops or node:web-1";
    match Selector::parse(text) {
        Ok(Selector::SameProject) => Err(format!(
            "it stands for the project of the other side, which no call has{example}"
        )),
        Ok(selector) => Ok(selector.to_string()),
        Err(error) => Err(format!("{error}{example}")),
    }
}

pub(in crate::cli) async fn run(
    arguments: CreateArguments,
    globals: &Globals,
) -> Result<u8, CliError> {
    check_bounds(&arguments)?;
    let coordinator = globals.coordinator();
    let state: MeshState = coordinator.get("/v1/mesh").await?;
    let (_, key) = mesh_key::of_mesh(&state, &globals.mesh_key)?;
    let mut id = [0u8; 32];
    random::fill(&mut id).map_err(CliError::failed)?;
    let created_at = UnixSeconds::from_system(clock::wall());
    let certificate = ApiCertificate {
        id: PublicKey(id),
        name: arguments.name,
        scopes: arguments.scopes,
        nodes: arguments.nodes,
        from: arguments.from,
        created_at,
        expires_at: created_at.plus(arguments.ttl),
    };
    let token = sign(certificate.clone(), state.pin, &key)?;
    // A token that nobody can find again could not be revoked, so it is listed before it is printed.
    made::add(&globals.mesh_key, &certificate)?;
    let _: ApiTokenNoted = coordinator.post("/v1/api-tokens", &certificate).await?;
    let created = CreatedApiToken {
        schema: 1,
        id: certificate.id,
        name: certificate.name.clone(),
        expires_at: certificate.expires_at,
        token: token.to_string(),
    };
    if arguments.json {
        return table::json(&created);
    }
    table::line(&created.token);
    Ok(0)
}

/// Signs a token. A token with so many names that no server would read it is refused.
fn sign(
    certificate: ApiCertificate,
    pin: SpkiPin,
    key: &SigningKey,
) -> Result<Zeroizing<String>, CliError> {
    let text = ApiToken::sign(certificate, pin, key).text();
    if ApiToken::parse(&text).is_err() {
        return Err(CliError::new(
            ErrorCode::BadRequest,
            "api-token create: the token would be too long; give fewer of --scope, --node and --from, or make several tokens",
        ));
    }
    Ok(text)
}

fn check_bounds(arguments: &CreateArguments) -> Result<(), CliError> {
    let bounds = [
        ("--node", arguments.nodes.len(), MAX_NODES),
        ("--from", arguments.from.len(), MAX_BINDINGS),
    ];
    for (option, count, most) in bounds {
        if count > most {
            let text = format!(
                "api-token create: {option} is given {count} times; {most} are the most, so make several tokens, or name a tag"
            );
            return Err(CliError::new(ErrorCode::BadRequest, text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::records as build;

    #[test]
    fn a_token_that_no_server_would_read_is_not_made() {
        let is_made = |scopes: usize, nodes: usize, from: usize| {
            let certificate = ApiCertificate {
                id: PublicKey([7; 32]),
                name: build::label("ci"),
                scopes: vec![Scope::Drain; scopes],
                nodes: vec![build::label(&"n".repeat(63)); nodes],
                from: vec![format!("{}/{}", "p".repeat(63), "s".repeat(63)); from],
                created_at: UnixSeconds(1),
                expires_at: UnixSeconds(2),
            };
            sign(certificate, SpkiPin([9; 32]), &build::key(1)).is_ok()
        };
        assert!(is_made(1, MAX_NODES, 0) && is_made(1, 0, MAX_BINDINGS));
        assert!(!is_made(1, MAX_NODES, MAX_BINDINGS));
        assert!(is_made(32, 0, 0) && !is_made(33, 0, 0));
    }

    #[test]
    fn a_caller_is_a_selector_that_stands_alone() {
        for text in ["ci/runner", "tag:ops", "node:web-1", "*", "db"] {
            assert_eq!(parse_caller(text).as_deref(), Ok(text));
        }
        for wrong in ["", "same-project", "10.0.0.1", "tags:ops", "a.b"] {
            let error = parse_caller(wrong).expect_err(wrong);
            assert!(error.ends_with("an example is ci/runner, tag:ops or node:web-1"));
        }
    }
}
