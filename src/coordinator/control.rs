//! One node's control stream, from its first message to its end. The exchange is in [`crate::wire::control`].

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::hub::{Hub, Next, Standing};
use crate::model::PublicKey;
use crate::wire::Envelope;
use crate::wire::control::{
    FromCoordinator, FromNode, MAX_MESSAGE, MAX_RECORDS, PING_SECONDS, PROTOCOL, Refusal,
    proof_message,
};
use crate::wire::envelope::Purpose;

/// How long a node may take for one step of the opening, or to take a message in.
const PATIENCE: Duration = Duration::from_secs(15);
/// Changes that come within this time travel together.
const COALESCE: Duration = Duration::from_millis(3);

/// What every connection is served with.
#[derive(Clone)]
pub(super) struct Served {
    /// The coordinator's state.
    pub hub: Arc<Hub>,
    /// Turns true when the coordinator stops.
    pub stop: watch::Receiver<bool>,
}

/// Turns a request into a stream.
pub(super) async fn upgrade(State(served): State<Served>, socket: WebSocketUpgrade) -> Response {
    socket
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .on_upgrade(|socket| run(served, socket))
}

/// Why a stream ends.
enum End {
    /// The node is told.
    Refuse(Refusal, String),
    /// It is gone.
    Gone,
}

async fn run(served: Served, mut socket: WebSocket) {
    let end = match open(&served.hub, &mut socket).await {
        Ok(stream) => {
            served.hub.set_connected(stream.node, true);
            let end = follow(&served, &mut socket, &stream).await;
            served.hub.set_connected(stream.node, false);
            end
        }
        Err(end) => end,
    };
    if let End::Refuse(reason, message) = end {
        let _ = send(&mut socket, &FromCoordinator::Refuse { reason, message }).await;
        let _ = timeout(PATIENCE, socket.send(Message::Close(None))).await;
    }
}

/// A node that has proved who it is.
struct Stream {
    node: PublicKey,
    store: Option<String>,
    revision: u64,
}

async fn open(hub: &Hub, socket: &mut WebSocket) -> Result<Stream, End> {
    let refuse = |reason, message: &str| Err(End::Refuse(reason, message.to_owned()));
    let Some(FromNode::Hello {
        protocol,
        node,
        store,
        revision,
        ..
    }) = receive(socket).await?
    else {
        return refuse(Refusal::Protocol, "the first message must be `hello`");
    };
    if protocol != PROTOCOL {
        let text = format!(
            "the node speaks protocol {protocol}, this coordinator speaks {PROTOCOL}; upgrade the older of the two"
        );
        return Err(End::Refuse(Refusal::Version, text));
    }
    let mut nonce = [0u8; 32];
    if getrandom::fill(&mut nonce).is_err() {
        return refuse(
            Refusal::Busy,
            "the coordinator has no randomness; try again later",
        );
    }
    let nonce = PublicKey(nonce).to_string();
    send(
        socket,
        &FromCoordinator::Challenge {
            nonce: nonce.clone(),
        },
    )
    .await?;
    let Some(FromNode::Proof { signature }) = receive(socket).await? else {
        return refuse(Refusal::Protocol, "the second message must be `proof`");
    };
    if !signature.holds(&node, Purpose::Control, &proof_message(&nonce, &hub.pin())) {
        return refuse(
            Refusal::Proof,
            "the node does not prove that it holds its identity key",
        );
    }
    if hub.standing(&node) == Standing::Revoked {
        return Err(removed());
    }
    Ok(Stream {
        node,
        store,
        revision,
    })
}

fn removed() -> End {
    End::Refuse(
        Refusal::Revoked,
        "this node was removed from the mesh; run `meshctl leave` on it".to_owned(),
    )
}

async fn follow(served: &Served, socket: &mut WebSocket, stream: &Stream) -> End {
    match converse(served, socket, stream).await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

async fn converse(
    served: &Served,
    socket: &mut WebSocket,
    stream: &Stream,
) -> Result<std::convert::Infallible, End> {
    let hub = &served.hub;
    let mut revisions = hub.follow();
    let mut stop = served.stop.clone();
    let (store, revision, mut snapshot) = hub.position(stream.store.as_deref(), stream.revision);
    let mut cursor = if snapshot { 0 } else { stream.revision };
    send(
        socket,
        &FromCoordinator::Welcome {
            protocol: PROTOCOL,
            store,
            revision,
            snapshot,
        },
    )
    .await?;
    let mut pings = interval(Duration::from_secs(PING_SECONDS));
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        // A stranger may prove by publishing that it belongs here (this store may have been emptied); until then it
        // is told nothing.
        match hub.standing(&stream.node) {
            Standing::Revoked => return Err(removed()),
            Standing::Stranger => {}
            Standing::Member => cursor = catch_up(hub, socket, cursor, &mut snapshot).await?,
        }
        tokio::select! {
            message = socket.recv() => {
                heard = Instant::now();
                let message = message.ok_or(End::Gone)?.map_err(|_| End::Gone)?;
                if let Some(FromNode::Publish { sequence, records }) = read(message)? {
                    let answer = publish(hub, sequence, records).await?;
                    send(socket, &answer).await?;
                }
            }
            changed = revisions.changed() => {
                changed.map_err(|_| End::Gone)?;
                tokio::time::sleep(COALESCE).await;
            }
            _ = pings.tick() => {
                if heard.elapsed() > Duration::from_secs(3 * PING_SECONDS) {
                    return Err(End::Gone);
                }
                timeout(PATIENCE, socket.send(Message::Ping(Default::default()))).await.map_err(|_| End::Gone)?.map_err(|_| End::Gone)?;
            }
            _ = stop.changed() => return Err(End::Refuse(Refusal::Busy, "the coordinator is stopping".to_owned())),
        }
    }
}

async fn catch_up(
    hub: &Hub,
    socket: &mut WebSocket,
    mut cursor: u64,
    snapshot: &mut bool,
) -> Result<u64, End> {
    loop {
        if *snapshot {
            let (records, revision) = hub.snapshot();
            send_snapshot(socket, &records, revision).await?;
            *snapshot = false;
            cursor = revision;
        }
        match hub.next(cursor) {
            Next::UpToDate => return Ok(cursor),
            Next::Snapshot => *snapshot = true,
            Next::Changes(records, revision) => {
                send(socket, &FromCoordinator::Changes { revision, records }).await?;
                cursor = revision;
            }
        }
    }
}

/// Only with the last part does the node hold the revision: one that is cut off before begins again.
async fn send_snapshot(
    socket: &mut WebSocket,
    records: &[Envelope],
    revision: u64,
) -> Result<(), End> {
    let mut chunks = records.chunks(MAX_RECORDS).peekable();
    if chunks.peek().is_none() {
        return send(
            socket,
            &FromCoordinator::Changes {
                revision,
                records: Vec::new(),
            },
        )
        .await;
    }
    while let Some(chunk) = chunks.next() {
        let revision = if chunks.peek().is_none() { revision } else { 0 };
        send(
            socket,
            &FromCoordinator::Changes {
                revision,
                records: chunk.to_vec(),
            },
        )
        .await?;
    }
    Ok(())
}

async fn publish(
    hub: &Arc<Hub>,
    sequence: u64,
    records: Vec<Envelope>,
) -> Result<FromCoordinator, End> {
    if records.len() > MAX_RECORDS {
        return Err(End::Refuse(
            Refusal::Protocol,
            format!("a message carries at most {MAX_RECORDS} records"),
        ));
    }
    let hub = Arc::clone(hub);
    match tokio::task::spawn_blocking(move || hub.publish(records)).await {
        Ok(Ok((accepted, refused))) => Ok(FromCoordinator::Published {
            sequence,
            accepted,
            refused,
        }),
        Ok(Err(error)) => Ok(FromCoordinator::Published {
            sequence,
            accepted: 0,
            refused: vec![error.message],
        }),
        Err(_) => Err(End::Gone),
    }
}

async fn receive(socket: &mut WebSocket) -> Result<Option<FromNode>, End> {
    loop {
        let message = timeout(PATIENCE, socket.recv())
            .await
            .map_err(|_| End::Gone)?
            .ok_or(End::Gone)?
            .map_err(|_| End::Gone)?;
        if let Some(message) = read(message)? {
            return Ok(Some(message));
        }
    }
}

fn read(message: Message) -> Result<Option<FromNode>, End> {
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

async fn send(socket: &mut WebSocket, message: &FromCoordinator) -> Result<(), End> {
    let text = serde_json::to_string(message).map_err(|_| End::Gone)?;
    // A reader this slow is cut; it resumes where it was.
    timeout(PATIENCE, socket.send(Message::Text(text.into())))
        .await
        .map_err(|_| End::Gone)?
        .map_err(|_| End::Gone)
}
