//! One node's control stream, from its first message to its end. The exchange is in [`crate::wire::control`].
//!
//! A stream is one task. It is woken by what the node sends and by new revisions, and asks the hub what comes after
//! its cursor; nothing is queued for it, so a slow reader holds nothing but its own connection.

mod messages;
mod seat;
mod stranger;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::messages::{PATIENCE, read, receive, send, send_changes, send_frame};
use self::seat::{Order, Seat, Seats};
use self::stranger::{MAX_STRANGERS, Stranger};
use super::admin::crashed;
use super::hub::{Hub, Next, Position, Standing};
use super::server::Slot;
use crate::model::PublicKey;
use crate::wire::Envelope;
use crate::wire::api::ApiError;
use crate::wire::control::{
    FromCoordinator, FromNode, MAX_MESSAGE, MAX_RECORDS, PING_SECONDS, Refusal, agree,
    disagreement, proof_message,
};
use crate::wire::envelope::{Purpose, Signature};

/// Changes that come within this time travel together.
const COALESCE: Duration = Duration::from_millis(3);
/// Octets of each connection's buffers to begin with; they grow with a message. Most messages are far smaller.
const BUFFER: usize = 4096;
/// Writers that wait for the store at once at most; each has a thread, and they write one after the other.
const MAX_WRITERS: usize = 16;

/// What every connection is served with.
#[derive(Clone)]
pub(super) struct Served {
    /// The coordinator's state.
    pub hub: Arc<Hub>,
    /// Turns true when the coordinator stops.
    stop: watch::Receiver<bool>,
    strangers: Arc<Semaphore>,
    seats: Seats,
    writers: Arc<Semaphore>,
}

impl Served {
    pub(super) fn new(hub: Arc<Hub>, stop: watch::Receiver<bool>) -> Self {
        Self {
            hub,
            stop,
            strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
            seats: Seats::default(),
            writers: Arc::new(Semaphore::new(MAX_WRITERS)),
        }
    }

    /// Does what waits for the disk where nobody else waits with it.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Hub) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let _turn = self.writers.acquire().await.map_err(|_| crashed())?;
        let hub = Arc::clone(&self.hub);
        tokio::task::spawn_blocking(move || write(&hub))
            .await
            .unwrap_or_else(|_| Err(crashed()))
    }
}

/// Turns a request into a stream.
pub(super) async fn upgrade(
    State(served): State<Served>,
    Extension(slot): Extension<Slot>,
    socket: WebSocketUpgrade,
) -> Response {
    socket
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .on_upgrade(async move |socket| {
            run(served, socket).await;
            drop(slot);
        })
}

/// Why a stream ends.
enum End {
    /// The node is told.
    Refuse(Refusal, String),
    /// The node is told that it is a copy, with the original's word, if it gave one.
    Copy(Option<Signature>),
    /// It is gone.
    Gone,
}

async fn run(served: Served, mut socket: WebSocket) {
    let end = match open(&served, &mut socket).await {
        Ok(mut stream) => {
            served.hub.set_connected(stream.node, true);
            let Err(end) = converse(&served, &mut socket, &mut stream).await;
            served.hub.set_connected(stream.node, false);
            end
        }
        Err(end) => end,
    };
    let refusal = match end {
        End::Gone => None,
        End::Refuse(reason, message) => Some((reason, message, None)),
        End::Copy(proof) => Some((Refusal::Clone, seat::COPY.to_owned(), proof)),
    };
    if let Some((reason, message, proof)) = refusal {
        let refuse = FromCoordinator::Refuse {
            reason,
            message,
            proof,
        };
        let _ = send(&mut socket, &refuse).await;
        let _ = send_frame(&mut socket, Message::Close(None)).await;
        // The node closes in turn; a connection cut before could take the message along.
        let _ = tokio::time::timeout(PATIENCE.min(Duration::from_secs(1)), async {
            while let Some(Ok(_)) = socket.recv().await {}
        })
        .await;
    }
}

/// A node that has proved who it is, and what it holds.
struct Stream {
    node: PublicKey,
    /// The version of the protocol that both speak.
    protocol: u32,
    store: Option<String>,
    revision: u64,
    /// Absent for a node of a version that does not name its instance.
    seat: Option<Seat>,
}

async fn open(served: &Served, socket: &mut WebSocket) -> Result<Stream, End> {
    let hub = &served.hub;
    let refuse = |reason, message: &str| Err(End::Refuse(reason, message.to_owned()));
    let FromNode::Hello {
        protocol,
        oldest,
        node,
        store,
        revision,
        instance,
        ..
    } = receive(socket).await?
    else {
        return refuse(Refusal::Protocol, "the first message must be `hello`");
    };
    let oldest = oldest.unwrap_or(protocol);
    let Some(agreed) = agree(oldest, protocol) else {
        return Err(End::Refuse(
            Refusal::Version,
            disagreement(oldest, protocol),
        ));
    };
    let mut nonce = [0u8; 32];
    if getrandom::fill(&mut nonce).is_err() {
        return refuse(
            Refusal::Busy,
            "the coordinator has no randomness; try again later",
        );
    }
    // 32 octets in hexadecimal, as a key is written.
    let nonce = PublicKey(nonce).to_string();
    send(
        socket,
        &FromCoordinator::Challenge {
            nonce: nonce.clone(),
        },
    )
    .await?;
    let FromNode::Proof { signature } = receive(socket).await? else {
        return refuse(Refusal::Protocol, "the second message must be `proof`");
    };
    if !signature.holds(&node, Purpose::Control, &proof_message(&nonce, &hub.pin())) {
        return refuse(
            Refusal::Proof,
            "the node does not prove that it holds its identity key",
        );
    }
    if !hub.has_mesh() {
        // What it offers would be refused, and not be offered again.
        return refuse(
            Refusal::Busy,
            "the coordinator has no mesh; run `meshctl init` on it, with the mesh's key if there was one",
        );
    }
    if hub.standing(&node) == Standing::Revoked {
        return Err(removed());
    }
    let seat = match instance {
        Some(instance) => Some(served.seats.take(node, &instance).await?),
        None => None,
    };
    Ok(Stream {
        node,
        protocol: agreed,
        store,
        revision,
        seat,
    })
}

fn removed() -> End {
    End::Refuse(
        Refusal::Revoked,
        "this node was removed from the mesh; run `meshctl leave` on it".to_owned(),
    )
}

fn is_member(hub: &Hub, node: &PublicKey) -> bool {
    hub.standing(node) == Standing::Member
}

/// Where a stream stands.
struct Cursor {
    revision: u64,
    snapshot: bool,
}

async fn converse(
    served: &Served,
    socket: &mut WebSocket,
    stream: &mut Stream,
) -> Result<Infallible, End> {
    let hub = &served.hub;
    // From here on no revision is missed: those up to now the position counts, later ones wake the loop.
    let mut revisions = hub.follow();
    let mut stop = served.stop.clone();
    // Members alone receive the store's name and revision.
    let mut introduced = is_member(hub, &stream.node);
    let position = if introduced {
        hub.position(stream.store.as_deref(), stream.revision)
    } else {
        hub.position(None, 0)
    };
    if stream.store.as_deref() == Some(position.store.as_str()) {
        hub.handle_told(&stream.node);
    }
    let mut cursor = Cursor {
        revision: if position.snapshot {
            0
        } else {
            stream.revision
        },
        snapshot: position.snapshot,
    };
    let store = position.store.clone();
    let shown = if introduced {
        position
    } else {
        stranger::position()
    };
    send(socket, &welcome(stream.protocol, shown)).await?;
    let mut marking = Marking::default();
    marking.send(hub, socket, &stream.node).await?;
    let mut pings = interval(Duration::from_secs(PING_SECONDS));
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut stranger = None;
    loop {
        if !hub.is_on(&store) {
            // With the next stream the node tells the store what it misses.
            let text = "the coordinator's store was restored from a backup".to_owned();
            return Err(End::Refuse(Refusal::Busy, text));
        }
        match hub.standing(&stream.node) {
            Standing::Revoked => return Err(removed()),
            Standing::Stranger => match &stranger {
                None => stranger = Some(Stranger::admit(served)?),
                Some(stranger) => stranger.check()?,
            },
            Standing::Member => {
                stranger = None;
                if !introduced {
                    introduced = true;
                    let position = Position {
                        store: store.clone(),
                        revision: hub.revision(),
                        snapshot: true,
                    };
                    send(socket, &welcome(stream.protocol, position)).await?;
                    marking.send(hub, socket, &stream.node).await?;
                }
                catch_up(hub, socket, &mut cursor).await?;
            }
        }
        tokio::select! {
            message = socket.recv() => {
                heard = Instant::now();
                if let Some(seat) = &stream.seat {
                    seat.handle_heard();
                }
                let message = message.ok_or(End::Gone)?.map_err(|_| End::Gone)?;
                match read(message)? {
                    Some(FromNode::Publish { sequence, records }) => {
                        publish(served, socket, stream.node, &mut stranger, sequence, records).await?;
                    }
                    Some(FromNode::Farewell { departure }) => {
                        let node = stream.node;
                        // A farewell that cannot be kept is offered again with the next stream.
                        if let Err(error) = served.write(move |hub| hub.keep_farewell(&node, &departure)).await {
                            tracing::warn!(node = node.short(), %error, "a node's departure is not kept");
                        }
                    }
                    Some(FromNode::Told) => {
                        hub.handle_told(&stream.node);
                        if let Some(stranger) = stranger.as_ref().filter(|_| !is_member(hub, &stream.node)) {
                            stranger.handle_told()?;
                        }
                    }
                    Some(FromNode::Mark { mark }) => marking.handle(served, &stream.node, mark).await,
                    Some(FromNode::Vouch { instance, signature }) => {
                        if let Some(seat) = &stream.seat {
                            seat.handle_vouched(&instance, signature);
                        }
                    }
                    _ => {}
                }
            }
            order = next_order(&mut stream.seat) => match order {
                Order::Leave => return Err(End::Gone),
                Order::Vouch(instance) => {
                    send_frame(socket, Message::Ping(Default::default())).await?;
                    send(socket, &FromCoordinator::Copy { instance }).await?;
                }
                Order::None => {}
            },
            changed = revisions.changed() => {
                changed.map_err(|_| End::Gone)?;
                tokio::time::sleep(COALESCE).await;
            }
            _ = pings.tick() => {
                if heard.elapsed() > Duration::from_secs(3 * PING_SECONDS) {
                    return Err(End::Gone);
                }
                send_frame(socket, Message::Ping(Default::default())).await?;
                marking.send(hub, socket, &stream.node).await?;
            }
            _ = stop.changed() => {
                return Err(End::Refuse(Refusal::Busy, "the coordinator is stopping".to_owned()));
            }
        }
    }
}

/// The marks of one stream. A new one is sent at the beginning and with pings, not with each change: it is stored by the
/// node.
#[derive(Default)]
struct Marking {
    sent: Option<u64>,
    returned: bool,
}

impl Marking {
    /// Gives a member its mark, if the store has another revision than with the last one.
    async fn send(
        &mut self,
        hub: &Hub,
        socket: &mut WebSocket,
        node: &PublicKey,
    ) -> Result<(), End> {
        let revision = hub.revision();
        if self.sent == Some(revision) {
            return Ok(());
        }
        if let Some(mark) = hub.mark_of(node) {
            self.sent = Some(revision);
            send(socket, &FromCoordinator::Mark { mark }).await?;
        }
        Ok(())
    }

    /// Looks at the mark that the node returned; at the first one only.
    async fn handle(&mut self, served: &Served, node: &PublicKey, mark: String) {
        if std::mem::replace(&mut self.returned, true) || !served.hub.handle_mark(node, &mark) {
            return;
        }
        let node = *node;
        if let Err(error) = served
            .write(move |hub| hub.examine_loss(&node, &mark))
            .await
        {
            tracing::warn!(node = node.short(), %error, "a node's mark is not examined");
        }
    }
}

fn welcome(protocol: u32, position: Position) -> FromCoordinator {
    FromCoordinator::Welcome {
        protocol,
        store: position.store,
        revision: position.revision,
        snapshot: position.snapshot,
    }
}

async fn next_order(seat: &mut Option<Seat>) -> Order {
    match seat {
        Some(seat) => seat.order().await,
        None => std::future::pending().await,
    }
}

async fn catch_up(hub: &Hub, socket: &mut WebSocket, cursor: &mut Cursor) -> Result<(), End> {
    loop {
        if cursor.snapshot {
            // What changes while the parts are sent has a later revision, and comes after them.
            let revision = hub.revision();
            let mut after = None;
            loop {
                let (records, next) = hub.snapshot_part(after.as_ref());
                let reached = if next.is_none() { revision } else { 0 };
                send(
                    socket,
                    &FromCoordinator::Changes {
                        revision: reached,
                        records,
                    },
                )
                .await?;
                match next {
                    Some(key) => after = Some(key),
                    None => break,
                }
            }
            *cursor = Cursor {
                revision,
                snapshot: false,
            };
        }
        match hub.next(cursor.revision) {
            Next::UpToDate => return Ok(()),
            Next::Snapshot => cursor.snapshot = true,
            Next::Changes(records, revision) => {
                send_changes(socket, records, cursor.revision, revision).await?;
                cursor.revision = revision;
            }
        }
    }
}

async fn publish(
    served: &Served,
    socket: &mut WebSocket,
    node: PublicKey,
    stranger: &mut Option<Stranger>,
    sequence: u64,
    records: Vec<Envelope>,
) -> Result<(), End> {
    if records.len() > MAX_RECORDS {
        return Err(End::Refuse(
            Refusal::Protocol,
            format!("a message carries at most {MAX_RECORDS} records"),
        ));
    }
    let answer = match served.write(move |hub| hub.publish(&node, records)).await {
        Ok(published) => {
            if let Some(stranger) = stranger {
                stranger.handle_published(&published)?;
            }
            FromCoordinator::Published {
                sequence,
                accepted: published.accepted,
                refused: published.refused.iter().map(ToString::to_string).collect(),
                refused_records: messages::refused_records(published),
            }
        }
        Err(error) => FromCoordinator::Published {
            sequence,
            accepted: 0,
            refused: vec![error.message],
            refused_records: Vec::new(),
        },
    };
    send(socket, &answer).await
}
