//! `meshctl token list`.

use crate::cli::exit::CliError;
use crate::cli::{Globals, table};
use crate::model::time::UnixSeconds;
use crate::os::clock;
use crate::protocol::admin::{TokenList, TokenState};

pub(in crate::cli) async fn run(json: bool, globals: &Globals) -> Result<u8, CliError> {
    let list: TokenList = globals.coordinator().get("/v1/tokens").await?;
    if json {
        return table::json(&list);
    }
    let now = UnixSeconds::from_system(clock::wall());
    let rows: Vec<Vec<String>> = list
        .tokens
        .iter()
        .map(|token| {
            let state = match token.state {
                TokenState::Valid => format!(
                    "valid for {}",
                    table::age(token.expires_at.0.saturating_sub(now.0))
                ),
                TokenState::Spent => "spent".into(),
                TokenState::Expired => "expired".into(),
                TokenState::Revoked => "revoked".into(),
            };
            let tags: Vec<&str> = token.tags.iter().map(crate::model::Label::as_str).collect();
            vec![
                token.id.short(),
                format!("{}/{}", token.used, token.uses),
                state,
                tags.join(","),
            ]
        })
        .collect();
    table::table(&["ID", "USED", "STATE", "TAGS"], &rows);
    if rows.is_empty() {
        eprintln!("there is no token; `meshctl token create` makes one");
    }
    Ok(0)
}
