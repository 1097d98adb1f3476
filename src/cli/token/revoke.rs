//! `meshctl token revoke`.
//!
//! The revocation lists the nodes that stay. Without the list they could not be distinguished from nodes that somebody adds later
//! with a copy of the token, because any holder of the token can choose the date in a membership. The coordinator sends the
//! certificates of these nodes, and this command verifies them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cli::exit::CliError;
use crate::cli::node::revoke;
use crate::cli::{Globals, table};
use crate::model::{Label, PublicKey};
use crate::protocol::admin::{TokenList, TokenMemberships, memberships_path};
use crate::protocol::api::ErrorCode;
use crate::records::Envelope;
use crate::records::kinds::{Record, RevokedKind};

/// The maximum number of attempts. The coordinator refuses the revocation if a node has joined since the nodes were listed.
const MAX_TRIES: usize = 5;
/// The maximum number of nodes in a revocation, since a record has at most 64 KiB.
const MAX_STAYING: usize = 900;

/// `meshctl token revoke --json`.
#[derive(Debug, Serialize)]
struct Revoked {
    schema: u32,
    id: PublicKey,
    /// The names of the nodes that the token admitted, which stay members. It is null if they are not known.
    members: Option<Vec<String>>,
}

/// The beginning of an id, as `meshctl token list` shows it.
pub(in crate::cli) fn parse_id(text: &str) -> Result<String, String> {
    if text.starts_with("mesh1_") {
        return Err(
            "it is a token; give its id, which `meshctl token list` shows, such as 3f2a91".into(),
        );
    }
    let is_id = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    if is_id {
        return Ok(text.to_ascii_lowercase());
    }
    Err("it is the id of a token, or its first characters, as `meshctl token list` shows them, such as 3f2a91".into())
}

pub(in crate::cli) async fn run(id: &str, json: bool, globals: &Globals) -> Result<u8, CliError> {
    let list: TokenList = globals.coordinator().get("/v1/tokens").await?;
    let found: Vec<_> = list
        .tokens
        .iter()
        .filter(|token| token.id.to_string().starts_with(id))
        .collect();
    match found.as_slice() {
        [token] => revoke_token(token.id, json, globals).await,
        [] => Err(CliError::new(
            ErrorCode::NotFound,
            format!("there is no token {id}; `meshctl token list` shows all"),
        )),
        _ => Err(CliError::new(
            ErrorCode::BadRequest,
            format!("several tokens begin with {id}; give more of the id"),
        )),
    }
}

async fn revoke_token(token: PublicKey, json: bool, globals: &Globals) -> Result<u8, CliError> {
    let mut members = members_by(token, globals).await?;
    let mut tries = 1;
    loop {
        let stays = members
            .as_ref()
            .filter(|members| members.len() <= MAX_STAYING)
            .map(|members| members.keys().copied().collect());
        let Err(error) = revoke(token, RevokedKind::Token, stays, globals).await else {
            break;
        };
        // If the list cannot be read again, the first error is the one that matters.
        match members_by(token, globals).await {
            Ok(now) if now != members && tries < MAX_TRIES => members = now,
            _ => return Err(error),
        }
        tries += 1;
    }
    let revoked = Revoked {
        schema: 1,
        id: token,
        members: members
            .as_ref()
            .map(|members| members.values().map(ToString::to_string).collect()),
    };
    say(&token.short(), members.as_ref());
    if json {
        return table::json(&revoked);
    }
    Ok(0)
}

fn say(short: &str, members: Option<&BTreeMap<PublicKey, Label>>) {
    match members {
        Some(members) if members.is_empty() => {
            eprintln!(
                "token {short} is revoked: it admits no more nodes, and it admitted no present member"
            );
        }
        Some(members) if members.len() <= MAX_STAYING => {
            let mut names: Vec<&str> = members.values().map(Label::as_str).collect();
            names.sort_unstable();
            eprintln!(
                "token {short} is revoked: it admits no more nodes; these nodes, which it admitted, stay members: {}",
                names.join(", ")
            );
        }
        _ => eprintln!(
            "token {short} is revoked: it admits no more nodes; nodes that it admitted stay members. \
             The revocation does not list them, so until every node has received it, the holder of a copy of the token \
             may still add a node with an earlier date"
        ),
    }
}

/// The present members that the token admitted, with their names; none, if the coordinator is of an earlier version and cannot
/// list them.
async fn members_by(
    token: PublicKey,
    globals: &Globals,
) -> Result<Option<BTreeMap<PublicKey, Label>>, CliError> {
    let path = memberships_path(&token);
    let listed: Option<TokenMemberships> = globals.coordinator().get_if_known(&path).await?;
    let Some(listed) = listed else {
        return Ok(None);
    };
    let members = listed
        .memberships
        .iter()
        .map(|envelope| member(token, envelope));
    members.collect::<Option<_>>().map(Some).ok_or_else(|| {
        CliError::failed(
            "the coordinator lists a node that the token did not admit; do not trust this coordinator, and ask the person who runs it",
        )
    })
}

/// The node that `token` admitted with this membership; none, if the membership is not authentic or of another token.
fn member(token: PublicKey, envelope: &Envelope) -> Option<(PublicKey, Label)> {
    if envelope.signer != token || !envelope.is_authentic() {
        return None;
    }
    match Record::parse(&envelope.payload) {
        Ok((_, Record::Membership(membership))) if membership.token == token => {
            Some((membership.id, membership.name))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::UnixSeconds;
    use crate::model::{SigningKey, WireGuardKey};
    use crate::records::kinds::Membership;

    #[test]
    fn only_a_membership_by_the_token_itself_puts_a_node_on_the_list() {
        let key = |n| SigningKey::from_seed(&[n; 32]);
        let (token, other) = (key(1), key(2));
        let membership = |by: &SigningKey, signer: &SigningKey| {
            let membership = Membership {
                id: key(3).public(),
                version: 1,
                token: by.public(),
                name: Label::parse("n1").expect("a literal"),
                wireguard_key: WireGuardKey([3; 32]),
                tags: Vec::new(),
                issued_at: UnixSeconds(1),
                proof: None,
            };
            Envelope::seal(&Record::Membership(membership), signer)
        };
        let honest = membership(&token, &token);
        let mut forged = membership(&token, &other);
        forged.signer = token.public();
        assert_eq!(
            member(token.public(), &honest).map(|(id, _)| id),
            Some(key(3).public())
        );
        for wrong in [
            forged,
            membership(&other, &other),
            membership(&other, &token),
            membership(&token, &other),
        ] {
            assert_eq!(member(token.public(), &wrong), None, "{wrong:?}");
        }
    }
}
