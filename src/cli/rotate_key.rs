//! `meshctl rotate-key`.

use super::Globals;
use super::exit::CliError;
use crate::protocol::local::KeyRotated;

pub(super) async fn run(globals: &Globals) -> Result<u8, CliError> {
    let rotated: KeyRotated = globals
        .daemon()
        .post("/v1/rotate-key", &serde_json::json!({}))
        .await?;
    let later = if rotated.published {
        ""
    } else {
        "; the coordinator is not reachable, so only the reachable peers receive it now"
    };
    eprintln!(
        "the tunnel's key is {}; the former key is accepted for a while{later}",
        rotated.public_key
    );
    Ok(0)
}
