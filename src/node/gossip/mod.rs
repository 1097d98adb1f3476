//! Conversations between nodes, through the tunnel. While the coordinator is away, nodes send each other new records, and
//! bring each other up to date.
//!
//! | file | what it is |
//! |---|---|
//! | [`exchange`] | one conversation, pure |
//! | [`inbound_limit`] | limits how many conversations peers may begin and what a peer may cost, pure |
//! | [`session`] | carries a conversation over its socket |
//!
//! Which peers are dialled when, and which of their records are accepted, is decided in [`super::replica`].
//!
//! The sockets are bound to the tunnel device, so no host outside the tunnel can reach them. The address of a connection names
//! the peer, since the tunnel delivers a packet only from the owner of its source address. A connection from an address of no
//! peer is closed. The peer proves its identity with its key as well. A firewall that drops what comes in from the tunnel
//! leaves a node with the conversations that it begins itself, which bring records both ways.

pub mod exchange;
mod inbound_limit;
mod session;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::exchange::Exchange;
use self::inbound_limit::{Cost, InboundLimit, Proved};
use super::replica::{LedgerReply, LedgerRequest, Opening};
use crate::model::{PublicKey, SigningKey};
use crate::os::random;
use crate::os::tasks::{AbortOnDrop, TaskHandle, Tasks};
use crate::protocol::gossip::PORT;
use crate::records::Envelope;

/// How long a dialled peer may take to answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long peers may take to receive a departure.
const DEPARTURE_TIMEOUT: Duration = Duration::from_secs(4);
/// The pause between two attempts to listen: the address may be missing from the device for a moment.
const LISTEN_RETRY_PAUSE: Duration = Duration::from_secs(2);
/// The maximum number of events that wait for the agent.
const MAX_EVENTS: usize = 16;

/// An event of a conversation, for the agent.
#[derive(Debug)]
pub(super) enum PeerEvent {
    /// A conversation asks for this. A request without an answer ends the conversation.
    Request(LedgerRequest, oneshot::Sender<LedgerReply>),
    /// A conversation with this peer ended that this node began, and whether it came to its end.
    Ended(PublicKey, bool),
}

/// The peers by mesh address, and their addresses.
#[derive(Debug, Default)]
struct AddressIndex {
    by_address: BTreeMap<Ipv4Addr, PublicKey>,
    by_id: BTreeMap<PublicKey, Ipv4Addr>,
}

/// The conversations of this node.
pub(super) struct Gossip {
    line: Line,
    listener: AbortOnDrop,
}

/// The values that every conversation needs.
#[derive(Clone)]
struct Line {
    key: SigningKey,
    own: Ipv4Addr,
    interface: String,
    index: Arc<ArcSwap<AddressIndex>>,
    events: mpsc::Sender<PeerEvent>,
    limits: Arc<Limits>,
}

/// The limit of inbound connections, and the tasks of those that it admitted.
#[derive(Debug, Default)]
struct Limits(Mutex<(InboundLimit, BTreeMap<u64, TaskHandle>)>);

impl Limits {
    fn with<T>(
        &self,
        act: impl FnOnce(&mut InboundLimit, &mut BTreeMap<u64, TaskHandle>) -> T,
    ) -> T {
        // A panic under the lock cannot leave the limit and the tasks half changed.
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (limit, tasks) = &mut *held;
        act(limit, tasks)
    }

    /// Ends the conversation with this number, since another one takes its place.
    fn end(tasks: &mut BTreeMap<u64, TaskHandle>, number: Option<u64>) {
        if let Some(task) = number.and_then(|number| tasks.remove(&number)) {
            task.abort();
        }
    }
}

/// Charges a conversation to its peer, and holds its place in the limit if the peer began it. Dropping it frees the place.
struct ConversationSlot {
    limits: Arc<Limits>,
    peer: PublicKey,
    /// The number of the inbound connection. None if this node began the conversation.
    number: Option<u64>,
}

impl ConversationSlot {
    fn peer(&self) -> PublicKey {
        self.peer
    }

    /// The peer has proved its identity.
    fn handle_proven(&self) -> Result<(), session::Failure> {
        let Some(number) = self.number else {
            return Ok(());
        };
        self.limits.with(
            |limit, tasks| match limit.prove(number, self.peer, Instant::now()) {
                Proved::GoesOn { ends } => {
                    Limits::end(tasks, ends);
                    Ok(())
                }
                Proved::Refused => Err("the other node begins too many conversations".to_owned()),
            },
        )
    }

    /// Charges `cost` to the peer. Returns how long to wait before the next message is read.
    fn charge(&self, cost: Cost) -> Duration {
        let now = Instant::now();
        self.limits
            .with(|limit, _| limit.charge(self.peer, cost, now))
    }
}

impl Drop for ConversationSlot {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.limits.with(|limit, tasks| {
                limit.handle_ended(number);
                tasks.remove(&number);
            });
        }
    }
}

impl Gossip {
    /// Listens at `own` on the device `interface`. The events of conversations come out of the receiver.
    pub(super) fn start(
        key: SigningKey,
        own: Ipv4Addr,
        interface: String,
    ) -> (Self, mpsc::Receiver<PeerEvent>) {
        let (events, receiver) = mpsc::channel(MAX_EVENTS);
        let line = Line {
            key,
            own,
            interface,
            index: Arc::default(),
            events,
            limits: Arc::default(),
        };
        let listener = start_listener(&line);
        (Self { line, listener }, receiver)
    }

    /// Listens on the device anew. A socket stays bound to the device for which it was made, also when that device is gone and
    /// another one has its name.
    pub(super) fn listen_again(&mut self) {
        self.listener = start_listener(&self.line);
    }

    /// Sets the peers and their mesh addresses.
    pub(super) fn set_peers(&mut self, peers: BTreeMap<Ipv4Addr, PublicKey>) {
        let by_id: BTreeMap<_, _> = peers.iter().map(|(at, id)| (*id, *at)).collect();
        self.line.index.store(Arc::new(AddressIndex {
            by_address: peers,
            by_id,
        }));
    }

    /// Hands this node's departure to `peers`, all at once. Returns how many of them have received it in time.
    pub(super) fn hand_over(
        &self,
        departure: &Envelope,
        peers: Vec<(PublicKey, Ipv4Addr)>,
    ) -> impl Future<Output = usize> + use<> {
        let (line, departure) = (self.line.clone(), departure.clone());
        async move {
            let mut dialled = JoinSet::new();
            for (peer, address) in peers {
                dialled.spawn(hand_over(line.clone(), peer, address, departure.clone()));
            }
            let mut received = 0;
            let _ = timeout(DEPARTURE_TIMEOUT, async {
                while let Some(ended) = dialled.join_next().await {
                    match ended {
                        Ok(Ok(())) => received += 1,
                        Ok(Err(why)) => {
                            tracing::debug!(%why, "a peer did not receive the departure")
                        }
                        Err(_) => {}
                    }
                }
            })
            .await;
            received
        }
    }

    /// Begins a conversation with `peer`. Its end is an event.
    pub(super) fn dial(&self, peer: PublicKey, opening: Opening) {
        let address = self.line.index.load().by_id.get(&peer).copied();
        let conversation = dial(self.line.clone(), peer, address, opening);
        Tasks::current().spawn_child("conversation with a peer", conversation);
    }
}

fn start_listener(line: &Line) -> AbortOnDrop {
    let listener = Tasks::current().spawn("listener for peers", listen(line.clone()));
    listener.abort_on_drop()
}

/// A socket that speaks through the tunnel device alone.
fn socket(line: &Line, port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind_device(Some(line.interface.as_bytes()))?;
    socket.bind(SocketAddrV4::new(line.own, port).into())?;
    Ok(socket)
}

fn nonce() -> Result<String, String> {
    random::nonce().map_err(|error| error.to_string())
}

async fn connect(line: &Line, address: Ipv4Addr) -> Result<TcpStream, session::Failure> {
    let socket = socket(line, 0).map_err(|e| e.to_string())?;
    let there = SocketAddrV4::new(address, PORT).into();
    timeout(DIAL_TIMEOUT, socket.connect(there))
        .await
        .map_err(|_| "it does not answer".to_owned())?
        .map_err(|e| e.to_string())
}

async fn hand_over(
    line: Line,
    peer: PublicKey,
    address: Ipv4Addr,
    departure: Envelope,
) -> Result<(), session::Failure> {
    let stream = connect(&line, address).await?;
    let opening = Opening {
        news: vec![departure],
        asks: Vec::new(),
    };
    let exchange = Exchange::dial(line.key, peer, nonce()?, opening);
    session::hand_over(stream, exchange).await
}

async fn dial(line: Line, peer: PublicKey, address: Option<Ipv4Addr>, opening: Opening) {
    let talked = async {
        let address = address.ok_or("it has no address")?;
        let stream = connect(&line, address).await?;
        let exchange = Exchange::dial(line.key.clone(), peer, nonce()?, opening);
        let slot = ConversationSlot {
            limits: Arc::clone(&line.limits),
            peer,
            number: None,
        };
        session::run(stream, exchange, line.events.clone(), slot).await
    }
    .await;
    if let Err(why) = &talked {
        tracing::debug!(peer = peer.short(), %why, "a peer was not brought up to date");
    }
    let _ = line
        .events
        .send(PeerEvent::Ended(peer, talked.is_ok()))
        .await;
}

async fn listen(line: Line) {
    let mut is_reported = false;
    loop {
        match socket(&line, PORT).and_then(|socket| socket.listen(64)) {
            Ok(listener) => {
                is_reported = false;
                accept(&line, &listener).await;
            }
            Err(error) if !is_reported => {
                is_reported = true;
                tracing::warn!(%error, port = PORT, "peers cannot tell this node what is new while the coordinator is away");
            }
            Err(_) => {}
        }
        sleep(LISTEN_RETRY_PAUSE).await;
    }
}

/// Accepts connections until the listener breaks.
async fn accept(line: &Line, listener: &TcpListener) {
    loop {
        let (stream, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => return tracing::debug!(%error, "cannot accept a connection of a peer"),
        };
        let index = line.index.load();
        let peer = match source {
            SocketAddr::V4(v4) => index.by_address.get(v4.ip()).copied(),
            SocketAddr::V6(_) => None,
        };
        let Some(peer) = peer else { continue };
        let now = Instant::now();
        let admitted = line.limits.with(|limit, tasks| {
            limit.retain(|id| index.by_id.contains_key(id), now);
            let admitted = limit.admit(peer, now)?;
            Limits::end(tasks, admitted.ends);
            Some(admitted.number)
        });
        let Some(number) = admitted else { continue };
        let slot = ConversationSlot {
            limits: Arc::clone(&line.limits),
            peer,
            number: Some(number),
        };
        // Not under the lock: a runtime that stops drops the task at once, and dropping the slot takes the lock.
        let conversation = answer(line.clone(), stream, slot);
        let task = Tasks::current().spawn_child("conversation of a peer", conversation);
        line.limits.with(|limit, tasks| {
            // The conversation may have ended already.
            if limit.is_open(number) {
                tasks.insert(number, task);
            }
        });
    }
}

async fn answer(line: Line, stream: TcpStream, slot: ConversationSlot) {
    let peer = slot.peer();
    let talked = match nonce() {
        Ok(nonce) => {
            let exchange = Exchange::answer(line.key.clone(), peer, nonce);
            session::run(stream, exchange, line.events.clone(), slot).await
        }
        Err(why) => Err(why),
    };
    if let Err(why) = talked {
        tracing::debug!(peer = peer.short(), %why, "a peer's conversation broke off");
    }
}

#[cfg(test)]
mod tests;
