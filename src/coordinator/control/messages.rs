//! Messages on and off the socket, within bounds of time and size.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use tokio::time::timeout;

use super::End;
use crate::coordinator::hub::Published;
use crate::wire::Envelope;
use crate::wire::control::{FromCoordinator, FromNode, Refusal, RefusedRecord, parts};

/// How long a node may take for one step of the opening, or to take a message in.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

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

/// Names the records that were refused.
pub(super) fn refused_records(published: Published) -> Vec<RefusedRecord> {
    let refused = published.refused.into_iter().zip(published.refused_keys);
    refused
        .filter_map(|(why, key)| RefusedRecord::new(key?, why.to_string(), why.reason()))
        .collect()
}
