//! `meshctl token revoke`.

use crate::cli::Globals;
use crate::cli::exit::CliError;
use crate::cli::node::revoke;
use crate::model::record::RevokedKind;
use crate::wire::admin::TokenList;
use crate::wire::api::ErrorCode;

pub(in crate::cli) async fn run(id: &str, globals: &Globals) -> Result<u8, CliError> {
    let list: TokenList = globals.coordinator().get("/v1/tokens").await?;
    let wanted = id.to_ascii_lowercase();
    let found: Vec<_> = list
        .tokens
        .iter()
        .filter(|token| token.id.to_string().starts_with(&wanted))
        .collect();
    match found.as_slice() {
        [token] => {
            revoke(token.id, RevokedKind::Token, globals).await?;
            eprintln!(
                "token {} is revoked: it admits nobody any more; nodes it admitted stay",
                token.id.short()
            );
            Ok(0)
        }
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
