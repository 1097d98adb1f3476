//! `meshctl api-token list`.

use serde::Serialize;

use super::made;
use crate::cli::exit::CliError;
use crate::cli::{Globals, table};
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey};
use crate::os::clock;
use crate::protocol::admin::RevokedApiTokens;
use crate::protocol::api_token::{ApiCertificate, Scope};

/// `meshctl api-token list --json`.
#[derive(Debug, Serialize)]
struct ApiTokenList {
    /// The version of this document: 1.
    schema: u32,
    /// The tokens that were made on this machine, the newest first.
    tokens: Vec<ApiTokenRow>,
}

/// An API token.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct ApiTokenRow {
    id: PublicKey,
    name: Label,
    /// The calls that it permits.
    scopes: Vec<Scope>,
    /// The nodes whose API it permits. If there are none, it permits that of all nodes and of the coordinators.
    nodes: Vec<Label>,
    /// The callers that may use it. If there are none, any caller may.
    from: Vec<String>,
    /// When it was made.
    created_at: UnixSeconds,
    /// The time from which it permits nothing.
    expires_at: UnixSeconds,
    /// Whether it permits calls, and why not.
    state: ApiTokenState,
}

/// Whether an API token permits calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum ApiTokenState {
    Valid,
    Expired,
    Revoked,
}

pub(in crate::cli) async fn run(json: bool, globals: &Globals) -> Result<u8, CliError> {
    let made = made::read(&globals.mesh_key)?;
    let coordinator = globals.coordinator();
    let revoked: RevokedApiTokens = coordinator.get("/v1/api-tokens/revoked").await?;
    let now = UnixSeconds::from_system(clock::wall());
    let newest_first = made.into_iter().rev();
    let rows = newest_first.map(|certificate| row(certificate, &revoked.ids, now));
    let list = ApiTokenList {
        schema: 1,
        tokens: rows.collect(),
    };
    if json {
        return table::json(&list);
    }
    let rows: Vec<Vec<String>> = list.tokens.iter().map(|row| cells(row, now)).collect();
    table::table(&["NAME", "ID", "STATE", "SCOPES", "FROM", "NODES"], &rows);
    if rows.is_empty() {
        eprintln!("no API token was made on this machine; `meshctl api-token create` makes one");
    }
    Ok(0)
}

fn row(certificate: ApiCertificate, revoked: &[PublicKey], now: UnixSeconds) -> ApiTokenRow {
    let state = if revoked.contains(&certificate.id) {
        ApiTokenState::Revoked
    } else if now >= certificate.expires_at {
        ApiTokenState::Expired
    } else {
        ApiTokenState::Valid
    };
    ApiTokenRow {
        id: certificate.id,
        name: certificate.name,
        scopes: certificate.scopes,
        nodes: certificate.nodes,
        from: certificate.from,
        created_at: certificate.created_at,
        expires_at: certificate.expires_at,
        state,
    }
}

fn cells(row: &ApiTokenRow, now: UnixSeconds) -> Vec<String> {
    let state = match row.state {
        ApiTokenState::Valid => {
            let left = row.expires_at.0.saturating_sub(now.0);
            format!("valid for {}", table::age(left))
        }
        ApiTokenState::Expired => "expired".to_owned(),
        ApiTokenState::Revoked => "revoked".to_owned(),
    };
    let scopes: Vec<String> = row.scopes.iter().map(Scope::to_string).collect();
    let nodes: Vec<&str> = row.nodes.iter().map(Label::as_str).collect();
    let or = |text: String, all: &str| {
        if text.is_empty() {
            all.to_owned()
        } else {
            text
        }
    };
    vec![
        row.name.to_string(),
        row.id.short(),
        state,
        scopes.join(","),
        or(row.from.join(","), "anybody"),
        or(nodes.join(","), "all"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::records::label;

    #[test]
    fn a_token_is_listed_with_its_state_and_what_it_is_bound_to() {
        let certificate = |n: u8, expires_at| ApiCertificate {
            id: PublicKey([n; 32]),
            name: label("ci"),
            scopes: vec![Scope::Drain, Scope::StatusRead],
            nodes: vec![],
            from: vec!["ci/runner".to_owned()],
            created_at: UnixSeconds(0),
            expires_at: UnixSeconds(expires_at),
        };
        let now = UnixSeconds(1000);
        let shown = |n, expires_at| {
            let row = row(certificate(n, expires_at), &[PublicKey([9; 32])], now);
            cells(&row, now).join(" ")
        };
        let rest = "drain,status:read ci/runner all";
        let valid = format!("ci 070707070707 valid for {} {rest}", table::age(3600));
        assert_eq!(shown(7, 4600), valid);
        assert_eq!(shown(7, 1000), format!("ci 070707070707 expired {rest}"));
        assert_eq!(shown(9, 4600), format!("ci 090909090909 revoked {rest}"));
    }
}
