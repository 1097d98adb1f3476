//! `meshctl api-token revoke`.

use serde::Serialize;

use super::made;
use crate::cli::exit::CliError;
use crate::cli::{Globals, mesh_key, table};
use crate::model::{Label, PublicKey};
use crate::protocol::admin::{MeshState, Submit, Submitted};
use crate::protocol::api::ErrorCode;
use crate::protocol::api_token::{ApiCertificate, PREFIX};
use crate::records::api_revocation;

/// `meshctl api-token revoke --json`.
#[derive(Debug, Serialize)]
struct RevokedApiToken {
    schema: u32,
    id: PublicKey,
    /// It is null if another machine made the token.
    name: Option<Label>,
}

/// A name, or the beginning of an id, as `meshctl api-token list` shows them.
pub(in crate::cli) fn parse_token(text: &str) -> Result<String, String> {
    if text.starts_with(PREFIX) {
        return Err(
            "it is a token itself; give its name or its id, which `meshctl api-token list` shows, such as 3f2a91"
                .to_owned(),
        );
    }
    let name = Label::parse(text).map_err(|_| {
        "it is the name of a token, or the beginning of its id, as `meshctl api-token list` shows them, such as ci or 3f2a91"
            .to_owned()
    });
    // A whole id is longer than a name can be.
    match text.parse::<PublicKey>() {
        Ok(id) => Ok(id.to_string()),
        Err(_) => name.map(|name| name.to_string()),
    }
}

pub(in crate::cli) async fn run(
    token: &str,
    json: bool,
    globals: &Globals,
) -> Result<u8, CliError> {
    let made = made::read(&globals.mesh_key)?;
    let (id, name) = find(&made, token)?;
    let coordinator = globals.coordinator();
    let state: MeshState = coordinator.get("/v1/mesh").await?;
    let (_, key) = mesh_key::of_mesh(&state, &globals.mesh_key)?;
    let submit = Submit {
        mesh_key: None,
        records: vec![api_revocation::seal(id, &key)],
    };
    let _: Submitted = coordinator.post("/v1/records", &submit).await?;
    let called = name.as_ref().map_or_else(|| id.short(), Label::to_string);
    eprintln!(
        "API token {called} is revoked: each node refuses it as soon as it receives the revocation"
    );
    if json {
        return table::json(&RevokedApiToken {
            schema: 1,
            id,
            name,
        });
    }
    Ok(0)
}

/// Finds the token with a name or with the beginning of an id. A name comes first, since it may look like the beginning of an id.
fn find(made: &[ApiCertificate], token: &str) -> Result<(PublicKey, Option<Label>), CliError> {
    let named = made.iter().filter(|own| own.name.as_str() == token);
    let mut found: Vec<&ApiCertificate> = named.collect();
    if found.is_empty() {
        let begins = |own: &&ApiCertificate| own.id.to_string().starts_with(token);
        found = made.iter().filter(begins).collect();
    }
    match (found.as_slice(), token.parse::<PublicKey>()) {
        ([own], _) => Ok((own.id, Some(own.name.clone()))),
        ([], Ok(id)) => Ok((id, None)),
        ([], Err(_)) => Err(CliError::new(
            ErrorCode::NotFound,
            format!(
                "there is no API token {token} that was made on this machine; `meshctl api-token list` shows all, and one of another machine is revoked by its whole id"
            ),
        )),
        _ => Err(CliError::new(
            ErrorCode::BadRequest,
            format!(
                "several API tokens are called {token} or begin so; give more of the id, which `meshctl api-token list` shows"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::UnixSeconds;
    use crate::testbed::records::label;

    fn certificate(n: u8, name: &str) -> ApiCertificate {
        ApiCertificate {
            id: PublicKey([n; 32]),
            name: label(name),
            scopes: vec![],
            nodes: vec![],
            from: vec![],
            created_at: UnixSeconds(1),
            expires_at: UnixSeconds(2),
        }
    }

    #[test]
    fn a_token_is_found_by_its_name_or_the_beginning_of_its_id() {
        let made = [
            certificate(0xab, "ci"),
            certificate(0xac, "twice"),
            certificate(0xcd, "twice"),
            certificate(0xee, "ab"),
        ];
        let id = |text: &str| find(&made, text).ok().map(|(id, _)| id.0[0]);
        assert_eq!(id("ci"), Some(0xab));
        assert_eq!(id("abab"), Some(0xab));
        assert_eq!(id("ab"), Some(0xee), "a name comes first");
        assert_eq!(id("cd"), Some(0xcd));
        for none in ["twice", "a", "web", "abac"] {
            assert_eq!(id(none), None, "{none}");
        }
        let other = PublicKey([1; 32]);
        let found = find(&made, &other.to_string()).map_err(|error| error.message);
        assert_eq!(found, Ok((other, None)));
    }

    #[test]
    fn a_token_itself_is_no_id() {
        assert!(parse_token("mesha1_abc").is_err_and(|why| why.starts_with("it is a token")));
        assert_eq!(parse_token("3F2A91").as_deref(), Ok("3f2a91"));
        let id = PublicKey([1; 32]).to_string();
        assert_eq!(parse_token(&id), Ok(id));
        assert!(parse_token("a b").is_err());
    }
}
