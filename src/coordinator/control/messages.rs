//! Messages on and off the socket, within bounds of time and size.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::end::End;
use super::upgrade::Socket;
use crate::coordinator::hub::Published;
use crate::protocol::control::{FromCoordinator, FromNode, Refusal, RefusedRecord};

/// How long a node may take to receive a message.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);
/// The maximum number of frames that a node may send in the opening, pings included.
const MAX_OPENING_FRAMES: usize = 32;

/// Receives the next message of the opening exchange. The caller sets a deadline for the whole exchange.
pub(super) async fn receive(socket: &mut Socket) -> Result<FromNode, End> {
    for _ in 0..MAX_OPENING_FRAMES {
        if let Some(message) = read(next(socket).await?)? {
            return Ok(message);
        }
    }
    Err(End::Gone)
}

/// Receives the next frame. The stream is over if there is none.
pub(super) async fn next(socket: &mut Socket) -> Result<Message, End> {
    socket.next().await.ok_or(End::Gone)?.map_err(|_| End::Gone)
}

/// The message in a frame; none, if the frame is a ping or pong.
pub(super) fn read(message: Message) -> Result<Option<FromNode>, End> {
    match message {
        Message::Text(text) => FromNode::read(&text).map(Some).map_err(|error| {
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
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(None),
    }
}

/// Sends one message. The stream of a node that does not receive it in time ends; its next stream continues at the same place.
pub(super) async fn send(socket: &mut Socket, message: &FromCoordinator) -> Result<(), End> {
    let text = serde_json::to_string(message).map_err(|_| End::Gone)?;
    send_frame(socket, Message::Text(text.into())).await
}

/// Sends one frame, as [`send`] does.
pub(super) async fn send_frame(socket: &mut Socket, frame: Message) -> Result<(), End> {
    timeout(SEND_TIMEOUT, socket.send(frame))
        .await
        .map_err(|_| End::Gone)?
        .map_err(|_| End::Gone)
}

/// Lists the refused records whose payload says which record it is.
pub(super) fn refused_records(published: Published) -> Vec<RefusedRecord> {
    let refused = published.refused.into_iter();
    refused
        .filter_map(|(key, why)| RefusedRecord::new(key?, why.to_string(), why.reason()))
        .collect()
}
