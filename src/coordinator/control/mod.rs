//! One node's control stream, from its first message to its end. The exchange is in [`crate::protocol::control`].
//!
//! A stream is one task. It is woken by what the node sends and by new revisions, and asks the hub what comes after
//! its cursor. The coordinator queues nothing for a stream, so a slow reader holds only its own connection and one part of
//! the records that it has yet to receive.
//!
//! What a node may send depends on its standing. Until it has proved its identity, its messages have to be small ([`frames`]).
//! Until it is a member, it may send the records that prove its membership ([`stranger`]). A member may send as much as its
//! allowance permits ([`allowance`]).

mod allowance;
mod frames;
mod intake;
mod messages;
mod seat;
mod stranger;
mod upgrade;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use self::allowance::Allowances;
use self::frames::Bound;
use self::intake::{Intake, Step};
use self::messages::{next, read, receive, send, send_frame};
use self::seat::{Order, Seat, Seats};
use self::stranger::Stranger;
use self::upgrade::Socket;
use super::admin::crashed;
use super::hub::{Cursor, Hub, Position, Standing};
use super::slots::Slot;
use crate::model::PublicKey;
use crate::os::clock;
use crate::os::unix_server::failure;
use crate::protocol::api::ApiError;
use crate::protocol::control::{
    FromCoordinator, FromNode, MAX_FROM_NODE, PING_SECONDS, Refusal, agree, disagreement,
    proof_message,
};
use crate::records::envelope::{Purpose, Signature};

/// Changes that are written within this time are sent together.
const COALESCE: Duration = Duration::from_millis(3);
/// The maximum number of writers that wait for the store at once. Each has a thread, and they write one after the other.
const MAX_WRITERS: usize = 16;
/// The maximum number of these writers that work for nodes that are not members: for joins, and for records of strangers.
const MAX_STRANGE_WRITERS: usize = 4;
/// The maximum size of a message in the opening, in bytes. A `hello` and a `proof` are far smaller.
const MAX_OPENING: usize = 16 * 1024;
/// How long one message of a member may take, and how long a member may send nothing.
const MESSAGE_LIMIT: Duration = Duration::from_secs(3 * PING_SECONDS);
/// How long one message of a stranger may take. Nodes of this version send short messages until they are members.
const STRANGER_MESSAGE_LIMIT: Duration = Duration::from_secs(10);
/// The maximum number of large messages of strangers that are received at once. Nodes of earlier versions send these: they
/// offer all records that they hold.
const MAX_LARGE: usize = 3;
/// How long a refused node may take to receive the refusal.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

/// The state that all connections share.
#[derive(Clone)]
pub(super) struct Served {
    /// The coordinator's state.
    pub hub: Arc<Hub>,
    /// Becomes true when the coordinator stops.
    stop: watch::Receiver<bool>,
    seats: Seats,
    allowances: Allowances,
    writers: Arc<Semaphore>,
    strange_writers: Arc<Semaphore>,
    /// Permits for large messages of strangers.
    large: Arc<Semaphore>,
}

impl Served {
    pub(super) fn new(hub: Arc<Hub>, stop: watch::Receiver<bool>) -> Self {
        Self {
            hub,
            stop,
            seats: Seats::default(),
            allowances: Allowances::default(),
            writers: Arc::new(Semaphore::new(MAX_WRITERS)),
            strange_writers: Arc::new(Semaphore::new(MAX_STRANGE_WRITERS)),
            large: Arc::new(Semaphore::new(MAX_LARGE)),
        }
    }

    /// Runs a write for a member in a thread of its own, since it waits for the disk. The write keeps its turn until it ends,
    /// even if the connection that it is for ends before.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Hub) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let writers = Arc::clone(&self.writers);
        let turn = writers.acquire_owned().await.map_err(|_| crashed())?;
        let hub = Arc::clone(&self.hub);
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            write(&hub)
        })
        .await
        .unwrap_or_else(|_| Err(crashed()))
    }

    /// Runs a write for a node that is not a member. All of these writes together use only a few of the writers' turns.
    pub(super) async fn write_for_stranger<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Hub) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let writers = Arc::clone(&self.strange_writers);
        let turn = writers.acquire_owned().await.map_err(|_| crashed())?;
        self.write(move |hub| {
            let _turn = turn;
            write(hub)
        })
        .await
    }

    fn bound_of_member() -> Bound {
        Bound {
            message: MAX_FROM_NODE,
            time: MESSAGE_LIMIT,
            large: None,
        }
    }

    fn bound_of_stranger(&self) -> Bound {
        Bound {
            message: MAX_FROM_NODE,
            time: STRANGER_MESSAGE_LIMIT,
            large: Some(Arc::clone(&self.large)),
        }
    }
}

/// Turns a request into a stream.
pub(super) async fn upgrade(
    State(served): State<Served>,
    Extension(slot): Extension<Slot>,
    mut request: Request,
) -> Response {
    let (response, upgraded) = match upgrade::accept(&mut request) {
        Ok(accepted) => accepted,
        Err(refused) => return failure(refused),
    };
    tokio::spawn(async move {
        let Ok(Ok(upgraded)) = timeout_at(slot.deadline(), upgraded).await else {
            return;
        };
        let bound = Bound {
            message: MAX_OPENING,
            time: MESSAGE_LIMIT,
            large: None,
        };
        let socket = upgrade::socket(upgraded, bound).await;
        run(served, slot, socket).await;
    });
    response
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

async fn run(served: Served, slot: Slot, mut socket: Socket) {
    let ended = tokio::select! {
        ended = serve(&served, &slot, &mut socket) => ended,
        () = slot.revoked() => Err(End::Gone),
    };
    let Err(end) = ended;
    let (reason, message, proof) = match end {
        End::Gone => return,
        End::Refuse(reason, message) => (reason, message, None),
        End::Copy(proof) => (Refusal::Clone, seat::COPY.to_owned(), proof),
    };
    let refuse = FromCoordinator::Refuse {
        reason,
        message,
        proof,
    };
    let farewell = async {
        send(&mut socket, &refuse).await?;
        send_frame(&mut socket, Message::Close(None)).await?;
        // The node closes in turn; a connection cut before could take the message along.
        while next(&mut socket).await.is_ok() {}
        Ok::<(), End>(())
    };
    let _ = timeout(FAREWELL_LIMIT, farewell).await;
}

/// Serves a connection from its first message to its end.
async fn serve(served: &Served, slot: &Slot, socket: &mut Socket) -> Result<Infallible, End> {
    let opened = timeout_at(slot.deadline(), open(served, slot, socket));
    let stream = opened.await.map_err(|_| End::Gone)??;
    let node = stream.node;
    let mut lost = stream.seat.lost();
    let connected = Connected::new(&served.hub, node);
    let conversation = Conversation {
        served,
        slot,
        socket,
        stream,
        intake: None,
        paused: None,
        heard: Instant::now(),
        marking: Marking::default(),
    };
    let ended = tokio::select! {
        ended = conversation.run() => ended,
        // The stream also ends while it waits for a node that does not read.
        _ = lost.wait_for(|lost| *lost) => Err(End::Gone),
    };
    drop(connected);
    ended
}

/// Counts the node as connected in the hub until this value is dropped.
struct Connected<'a> {
    hub: &'a Hub,
    node: PublicKey,
}

impl<'a> Connected<'a> {
    fn new(hub: &'a Hub, node: PublicKey) -> Self {
        hub.set_connected(node, true, clock::now());
        Self { hub, node }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.hub.set_connected(self.node, false, clock::now());
    }
}

/// The stream of a node that has proved its identity.
struct Stream {
    node: PublicKey,
    /// The version of the protocol that both sides use.
    protocol: u32,
    seat: Seat,
    /// The name that the store had when the stream was opened.
    store: String,
    cursor: Cursor,
    /// Wakes the stream at each new revision.
    revisions: watch::Receiver<u64>,
    /// Set while the node is not a member.
    stranger: Option<Stranger>,
}

/// The contents of a node's `hello`, after the node has proved its identity.
struct Greeting {
    protocol: u32,
    node: PublicKey,
    store: Option<String>,
    revision: u64,
    instance: String,
}

async fn open(served: &Served, slot: &Slot, socket: &mut Socket) -> Result<Stream, End> {
    let hub = &served.hub;
    let greeting = greet(hub, socket).await?;
    let node = greeting.node;
    if !hub.has_mesh() {
        // A coordinator without a mesh would refuse the node's records, and the node would not offer them again.
        return Err(End::Refuse(
            Refusal::Busy,
            "the coordinator has no mesh; run `meshctl init` on it, with the mesh's key if there was one".to_owned(),
        ));
    }
    let standing = hub.standing(&node);
    match standing {
        Standing::Revoked => return Err(removed()),
        Standing::Stranger if !slot.handle_stranger() => return Err(stranger::too_many()),
        Standing::Stranger => {}
        Standing::Member => handle_member(served, slot, node)?,
    }
    let seat = served.seats.take(node, &greeting.instance).await?;
    // From this point on the stream misses no revision: the position includes the earlier ones, and later ones wake the loop.
    let revisions = hub.follow();
    let is_member = standing == Standing::Member;
    let position = if is_member {
        hub.position(greeting.store.as_deref(), greeting.revision)
    } else {
        hub.position(None, 0)
    };
    if greeting.store.as_deref() == Some(position.store.as_str()) {
        hub.handle_told(&node);
    }
    let store = position.store.clone();
    let cursor = if position.snapshot {
        Cursor::start()
    } else {
        Cursor::at(greeting.revision)
    };
    // Only members receive the store's name and revision.
    let (shown, bound) = if is_member {
        (position, Served::bound_of_member())
    } else {
        (stranger::position(), served.bound_of_stranger())
    };
    socket.get_mut().set_bound(bound);
    send(socket, &welcome(greeting.protocol, shown)).await?;
    Ok(Stream {
        node,
        protocol: greeting.protocol,
        seat,
        store,
        cursor,
        revisions,
        stranger: (!is_member).then(Stranger::new),
    })
}

/// Runs the exchange up to the proof of the identity.
async fn greet(hub: &Hub, socket: &mut Socket) -> Result<Greeting, End> {
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
    let Some(protocol) = agree(oldest, protocol) else {
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
    // The nonce has the text form of a key: 32 bytes in hexadecimal.
    let nonce = PublicKey(nonce).to_string();
    let challenge = FromCoordinator::Challenge {
        nonce: nonce.clone(),
    };
    send(socket, &challenge).await?;
    let FromNode::Proof { signature } = receive(socket).await? else {
        return refuse(Refusal::Protocol, "the second message must be `proof`");
    };
    if !signature.holds(&node, Purpose::Control, &proof_message(&nonce, &hub.pin())) {
        return refuse(
            Refusal::Proof,
            "the node does not prove that it holds its identity key",
        );
    }
    Ok(Greeting {
        protocol,
        node,
        store,
        revision,
        instance: instance.unwrap_or_default(),
    })
}

/// Charges a member for a new stream, and counts its connection as a member's.
fn handle_member(served: &Served, slot: &Slot, node: PublicKey) -> Result<(), End> {
    if !served.allowances.open(node, std::time::Instant::now()) {
        return Err(End::Refuse(
            Refusal::Busy,
            "this node opens streams too often; try again".to_owned(),
        ));
    }
    slot.handle_member();
    Ok(())
}

fn removed() -> End {
    End::Refuse(
        Refusal::Revoked,
        "this node was removed from the mesh; run `meshctl leave` on it".to_owned(),
    )
}

fn welcome(protocol: u32, position: Position) -> FromCoordinator {
    FromCoordinator::Welcome {
        protocol,
        store: position.store,
        revision: position.revision,
        snapshot: position.snapshot,
    }
}

/// An open stream with the state that it needs to be served.
struct Conversation<'a> {
    served: &'a Served,
    slot: &'a Slot,
    socket: &'a mut Socket,
    stream: Stream,
    /// The `publish` that is being processed. Nothing is read until it is done.
    intake: Option<Intake>,
    /// Until this time nothing is read, and the intake waits.
    paused: Option<Instant>,
    /// When the node last sent a frame, or when reading resumed after a pause.
    heard: Instant,
    marking: Marking,
}

/// The marks of one stream. The coordinator sends a new mark at the beginning and with pings, and not with each change, since
/// the node writes each mark to its disk.
#[derive(Default)]
struct Marking {
    /// The revision in the mark that was sent last.
    sent: Option<u64>,
    /// Whether the node has returned a mark.
    returned: bool,
}

impl Conversation<'_> {
    async fn run(mut self) -> Result<Infallible, End> {
        let hub = Arc::clone(&self.served.hub);
        let mut stop = self.served.stop.clone();
        let mut pings = interval(Duration::from_secs(PING_SECONDS));
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.send_mark(&hub).await?;
        loop {
            self.check_standing(&hub).await?;
            let has_more = self.send_part(&hub).await?;
            let waits = self.intake.is_some() || self.paused.is_some();
            let resume = self.paused.unwrap_or_else(Instant::now);
            let end = self.stream.stranger.as_ref().map(Stranger::end);
            tokio::select! {
                message = next(self.socket), if !waits => self.handle_frame(message?).await?,
                () = sleep_until(resume), if waits => self.resume().await?,
                order = self.stream.seat.order() => self.handle_order(order).await?,
                changed = self.stream.revisions.changed(), if !has_more => {
                    changed.map_err(|_| End::Gone)?;
                    tokio::time::sleep(COALESCE).await;
                }
                () = std::future::ready(()), if has_more => {}
                _ = pings.tick() => {
                    if !waits && self.heard.elapsed() > MESSAGE_LIMIT {
                        return Err(End::Gone);
                    }
                    send_frame(self.socket, Message::Ping(Default::default())).await?;
                    self.send_mark(&hub).await?;
                }
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                    return Err(self.stream.stranger.as_ref().map_or(End::Gone, Stranger::refusal));
                }
                _ = stop.changed() => {
                    return Err(End::Refuse(Refusal::Busy, "the coordinator is stopping".to_owned()));
                }
            }
        }
    }

    /// Ends the stream if the node or the store no longer permits it, and begins to serve a stranger that became a member.
    async fn check_standing(&mut self, hub: &Hub) -> Result<(), End> {
        if !hub.is_on(&self.stream.store) {
            // With its next stream the node offers all records that it holds to the restored store.
            let text = "the coordinator's store was restored from a backup".to_owned();
            return Err(End::Refuse(Refusal::Busy, text));
        }
        let node = self.stream.node;
        match hub.standing(&node) {
            Standing::Revoked => Err(removed()),
            Standing::Member if self.stream.stranger.take().is_some() => {
                handle_member(self.served, self.slot, node)?;
                self.socket.get_mut().set_bound(Served::bound_of_member());
                let position = Position {
                    store: self.stream.store.clone(),
                    revision: hub.revision(),
                    snapshot: true,
                };
                send(self.socket, &welcome(self.stream.protocol, position)).await?;
                self.send_mark(hub).await
            }
            Standing::Member | Standing::Stranger => Ok(()),
        }
    }

    /// Sends a member the next part of the records that it has not received. Returns whether another part may follow.
    async fn send_part(&mut self, hub: &Hub) -> Result<bool, End> {
        if self.stream.stranger.is_some() {
            return Ok(false);
        }
        let Some(part) = hub.read_part(&mut self.stream.cursor) else {
            return Ok(false);
        };
        let changes = FromCoordinator::Changes {
            revision: part.revision,
            records: part.records,
        };
        send(self.socket, &changes).await?;
        Ok(true)
    }

    /// Sends a member a new mark, if the store's revision has changed since the last one.
    async fn send_mark(&mut self, hub: &Hub) -> Result<(), End> {
        let revision = hub.revision();
        if self.marking.sent == Some(revision) {
            return Ok(());
        }
        if let Some(mark) = hub.mark_of(&self.stream.node) {
            self.marking.sent = Some(revision);
            send(self.socket, &FromCoordinator::Mark { mark }).await?;
        }
        Ok(())
    }

    /// Checks the mark that the node returned. Only the first mark of a stream is checked, since that may take a write.
    async fn handle_mark(&mut self, mark: String) {
        let node = self.stream.node;
        if std::mem::replace(&mut self.marking.returned, true)
            || !self.served.hub.handle_mark(&node, &mark)
        {
            return;
        }
        let examined = self
            .served
            .write(move |hub| hub.examine_loss(&node, &mark, clock::now()));
        if let Err(error) = examined.await {
            tracing::warn!(node = node.short(), %error, "a node's mark could not be checked");
        }
    }

    async fn handle_order(&mut self, order: Order) -> Result<(), End> {
        if let Order::Vouch(instance) = order {
            send_frame(self.socket, Message::Ping(Default::default())).await?;
            send(self.socket, &FromCoordinator::Copy { instance }).await?;
        }
        Ok(())
    }

    async fn handle_frame(&mut self, frame: Message) -> Result<(), End> {
        self.heard = Instant::now();
        self.stream.seat.handle_heard();
        let node = self.stream.node;
        match &mut self.stream.stranger {
            Some(stranger) => stranger.handle_message(frame.len())?,
            None => {
                let allowances = &self.served.allowances;
                let now = std::time::Instant::now();
                let next = allowances.handle_message(node, frame.len(), now);
                self.pause_until(next);
            }
        }
        match read(frame)? {
            Some(FromNode::Publish { sequence, records }) => {
                let stranger = self.stream.stranger.as_mut();
                let hub = &self.served.hub;
                self.intake = Some(Intake::new(hub, node, sequence, records, stranger)?);
                if self.paused.is_none() {
                    self.advance().await?;
                }
            }
            Some(FromNode::Farewell { departure }) if self.stream.stranger.is_none() => {
                let next = self
                    .served
                    .allowances
                    .charge(node, std::time::Instant::now());
                self.pause_until(next);
                let kept = self
                    .served
                    .write(move |hub| hub.keep_farewell(&node, &departure, clock::now()));
                // The node offers its departure again with its next stream, if this one cannot store it.
                if let Err(error) = kept.await {
                    tracing::warn!(node = node.short(), %error, "a node's departure could not be stored");
                }
            }
            Some(FromNode::Told) => {
                let hub = &self.served.hub;
                hub.handle_told(&node);
                if hub.standing(&node) != Standing::Member
                    && let Some(stranger) = &self.stream.stranger
                {
                    stranger.handle_told()?;
                }
            }
            Some(FromNode::Mark { mark }) => self.handle_mark(mark).await,
            Some(FromNode::Vouch {
                instance,
                signature,
            }) => self.stream.seat.handle_vouched(&instance, signature),
            _ => {}
        }
        Ok(())
    }

    /// Stops reading until `next`, if that is in the future.
    fn pause_until(&mut self, next: std::time::Instant) {
        let next = Instant::from_std(next);
        if next > Instant::now() {
            self.paused = Some(self.paused.map_or(next, |paused| paused.max(next)));
            self.stream.seat.set_paused(true);
        }
    }

    /// Continues after a pause.
    async fn resume(&mut self) -> Result<(), End> {
        self.paused = None;
        if self.intake.is_some() {
            self.advance().await?;
        }
        if self.intake.is_none() && self.paused.is_none() {
            self.heard = Instant::now();
            self.socket.get_mut().resume(self.heard);
            self.stream.seat.set_paused(false);
        }
        Ok(())
    }

    /// Processes more of a `publish`, and answers it once all its records are processed. The answer is sent before anything that
    /// follows from a changed standing of the node.
    async fn advance(&mut self) -> Result<(), End> {
        while let Some(intake) = &mut self.intake {
            match intake.advance(self.served).await? {
                Step::Again => {
                    if let Some(stranger) = &mut self.stream.stranger
                        && let Some(why) = intake.later()
                    {
                        stranger.handle_later(why);
                    }
                }
                Step::Wait(next) => {
                    self.pause_until(next);
                    // Even if the time has passed already, the loop gets a turn for its other work.
                    self.paused.get_or_insert_with(Instant::now);
                    return Ok(());
                }
                Step::Done(answer) => {
                    self.intake = None;
                    send(self.socket, &answer).await?;
                }
            }
        }
        Ok(())
    }
}
