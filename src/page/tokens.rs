//! The view of tokens: the join tokens of the mesh, and the API tokens that were revoked.

use maud::{Markup, html};

use super::table::{MAX_ROWS, Tone, cut, date, heading, mark, table, text};
use crate::model::Label;
use crate::protocol::admin::{RevokedApiTokens, TokenList, TokenRow, TokenState};

/// The tokens. The coordinator has no API token that is valid, because nobody publishes one.
#[must_use]
pub fn view(list: &TokenList, revoked: &RevokedApiTokens) -> Markup {
    let rows: Vec<Vec<Markup>> = list.tokens.iter().take(MAX_ROWS).map(row).collect();
    let revoked_rows = revoked.ids.iter().take(MAX_ROWS);
    let revoked_rows: Vec<Vec<Markup>> = revoked_rows.map(|id| vec![text(&id.short())]).collect();
    let columns = [
        "Token",
        "State",
        "Nodes admitted",
        "Tags",
        "Made",
        "Expires",
    ];
    html! {
        (heading("Tokens"))
        (table("Join tokens, the latest first", &columns, &rows))
        (cut(list.tokens.len()))
        @if revoked_rows.is_empty() {
            p { "No API token is revoked." }
        } @else {
            (table("Revoked API tokens", &["Token"], &revoked_rows))
            (cut(revoked.ids.len()))
        }
        p {
            "The texts of tokens are nowhere on this server. Where the mesh key is, " code { "meshctl api-token list" }
            " shows the API tokens that were made there."
        }
    }
}

fn row(token: &TokenRow) -> Vec<Markup> {
    let (tone, state) = match token.state {
        TokenState::Valid => (Tone::Good, "valid"),
        TokenState::Spent => (Tone::Plain, "spent"),
        TokenState::Expired => (Tone::Plain, "expired"),
        TokenState::Revoked => (Tone::Bad, "revoked"),
    };
    let tags: Vec<&str> = token.tags.iter().map(Label::as_str).collect();
    vec![
        text(&token.id.short()),
        html! {
            (mark(tone, state))
            @if token.ephemeral { ", for nodes that may be removed when they stay away" }
        },
        html! { (token.used) " of " (token.uses) },
        text(&tags.join(", ")),
        text(&date(token.created_at)),
        text(&date(token.expires_at)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PublicKey;
    use crate::model::time::UnixSeconds;

    #[test]
    fn each_token_has_its_state_and_its_uses() {
        let states = [
            (TokenState::Valid, "good\">valid"),
            (TokenState::Spent, "plain\">spent"),
            (TokenState::Expired, "plain\">expired"),
            (TokenState::Revoked, "bad\">revoked"),
        ];
        for (state, shown) in states {
            let token = TokenRow {
                id: PublicKey([0xab; 32]),
                tags: vec![Label::parse("web").expect("a literal")],
                uses: 3,
                used: 2,
                created_at: UnixSeconds(0),
                expires_at: UnixSeconds(u64::MAX),
                ephemeral: true,
                state,
            };
            let tokens = TokenList {
                schema: 1,
                tokens: vec![token],
            };
            let revoked = RevokedApiTokens {
                schema: 1,
                ids: vec![PublicKey([0xcd; 32])],
            };
            let page = view(&tokens, &revoked).into_string();
            for text in [shown, "2 of 3", ">web<", "abababababab", "cdcdcdcdcdcd"] {
                assert!(page.contains(text), "{text}: {page}");
            }
            let whole = PublicKey([0xab; 32]).to_string();
            assert!(!page.contains(&whole), "the short id is enough");
        }
    }
}
