//! Messages on and off the socket, within bounds of time and size.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use tokio::time::timeout;

use super::End;
use crate::wire::Envelope;
use crate::wire::control::{FromCoordinator, FromNode, MAX_RECORDS, Refusal};

/// How long a node may take for one step of the opening, or to take a message in.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// Octets of payload in one message of changes at most. Quoting may double them, and signatures come on top: far
/// below what a message may have, so that readers need no large buffers.
const MAX_PAYLOADS: usize = 512 * 1024;

/// The next message in the opening exchange.
pub(super) async fn receive(socket: &mut WebSocket) -> Result<FromNode, End> {
    loop {
        let message = timeout(PATIENCE, socket.recv())
            .await
            .map_err(|_| End::Gone)?
            .ok_or(End::Gone)?
            .map_err(|_| End::Gone)?;
        if let Some(message) = read(message)? {
            return Ok(message);
        }
    }
}

/// What a frame says; nothing, if it is a ping or pong.
pub(super) fn read(message: Message) -> Result<Option<FromNode>, End> {
    match message {
        Message::Text(text) => serde_json::from_str(&text).map(Some).map_err(|error| {
            End::Refuse(
                Refusal::Protocol,
                format!("a message cannot be read: {error}"),
            )
        }),
        Message::Binary(_) => Err(End::Refuse(
            Refusal::Protocol,
            "messages are text".to_owned(),
        )),
        Message::Close(_) => Err(End::Gone),
        Message::Ping(_) | Message::Pong(_) => Ok(None),
    }
}

/// Sends one message. A reader that does not take it in time is cut; it resumes where it was.
pub(super) async fn send(socket: &mut WebSocket, message: &FromCoordinator) -> Result<(), End> {
    let text = serde_json::to_string(message).map_err(|_| End::Gone)?;
    send_frame(socket, Message::Text(text.into())).await
}

/// Sends one frame, as [`send`] does.
pub(super) async fn send_frame(socket: &mut WebSocket, frame: Message) -> Result<(), End> {
    timeout(PATIENCE, socket.send(frame))
        .await
        .map_err(|_| End::Gone)?
        .map_err(|_| End::Gone)
}

/// Sends `records` in as many messages as they need. Only with the last does the reader hold `revision`; one that is
/// cut off before is still at `before`.
pub(super) async fn send_changes(
    socket: &mut WebSocket,
    records: Vec<Envelope>,
    before: u64,
    revision: u64,
) -> Result<(), End> {
    let mut parts = parts(records).into_iter().peekable();
    while let Some(records) = parts.next() {
        let revision = if parts.peek().is_none() {
            revision
        } else {
            before
        };
        send(socket, &FromCoordinator::Changes { revision, records }).await?;
    }
    Ok(())
}

/// Cuts a list of records into messages; at least one, which may be empty.
fn parts(records: Vec<Envelope>) -> Vec<Vec<Envelope>> {
    let mut parts = vec![Vec::new()];
    let mut octets = 0;
    for record in records {
        octets += record.payload.len();
        match parts.last_mut() {
            Some(last) if last.is_empty() || last.len() < MAX_RECORDS && octets <= MAX_PAYLOADS => {
                last.push(record);
            }
            _ => {
                octets = record.payload.len();
                parts.push(vec![record]);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;
    use crate::wire::control::MAX_MESSAGE;
    use crate::wire::envelope::MAX_PAYLOAD;

    fn record(octets: usize) -> Envelope {
        // Quotes are the worst that can be in a payload: each takes two octets on the way.
        Envelope::seal_payload("\"".repeat(octets), &SigningKey::from_seed(&[1; 32]))
    }

    fn sizes(records: Vec<Envelope>) -> Vec<usize> {
        parts(records).iter().map(Vec::len).collect()
    }

    #[test]
    fn no_message_has_more_records_than_it_may() {
        assert_eq!(sizes(vec![]), [0]);
        assert_eq!(sizes(vec![record(1); 256]), [256]);
        assert_eq!(sizes(vec![record(1); 600]), [256, 256, 88]);
    }

    #[test]
    fn no_message_is_larger_than_a_reader_takes() {
        let parts = parts(vec![record(MAX_PAYLOAD); 100]);
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 100);
        for records in parts {
            let revision = u64::MAX;
            let text = serde_json::to_string(&FromCoordinator::Changes { revision, records })
                .expect("plain data");
            assert!(text.len() < MAX_MESSAGE, "{}", text.len());
        }
    }
}
