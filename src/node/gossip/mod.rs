//! Nodes carry the mesh: what a node has to say goes to its peers through the tunnel while the coordinator is away, and
//! whoever was away is brought up to date by whom it reaches.
//!
//! | file | what it is |
//! |---|---|
//! | [`exchange`] | one conversation, pure |
//! | [`inbound_limit`] | limits how many conversations others may begin and what a peer may cost, pure |
//! | [`session`] | carries a conversation over its socket |
//!
//! The sockets are bound to the tunnel device: nobody outside the tunnel can speak to them. Who is on the other side
//! follows from the address, since the tunnel delivers a packet only from the owner of its source, and an address that is no
//! peer's is not listened to; it is proved with the identity key besides. A firewall that drops what comes in from the tunnel
//! leaves a node with the conversations it begins itself, which bring records both ways.

mod exchange;
mod inbound_limit;

mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use self::exchange::{Exchange, Opening};
use self::inbound_limit::{Cost, InboundLimit, Proved};
use super::replica::refusals::Verdict;

use super::replica::schedule::SyncSchedule;
use crate::model::{PublicKey, SigningKey};
use crate::protocol::gossip::PORT;
use crate::records::Envelope;
use crate::records::digest::Holdings;
use crate::records::kinds::RecordKey;

/// How long a dialled peer may take to answer.
const DIAL_LIMIT: Duration = Duration::from_secs(3);
/// How long peers may take to receive a departure.
const DEPARTURE_LIMIT: Duration = Duration::from_secs(4);
/// Between two attempts to listen: the address may be taken from the device for a moment.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);
/// Questions to the agent that wait at most.
const ASKS: usize = 16;
/// News that travel ahead of the comparison at most; the rest is found by it.
const MOST_NEWS: usize = 64;

/// What a conversation asks of the agent.
#[derive(Debug)]
pub(super) enum Ask {
    /// What the ledger holds.
    Holdings(oneshot::Sender<Arc<Holdings>>),
    /// Apply these records, which the peer sent.
    Apply(PublicKey, Vec<Envelope>, oneshot::Sender<Verdict>),
    /// The peer vouches for these memberships.
    Vouched(PublicKey, Vec<Envelope>, oneshot::Sender<()>),
    /// Return those memberships of these nodes for which this node vouches.
    Memberships(Vec<PublicKey>, oneshot::Sender<Vec<Envelope>>),
    /// What it holds of these signers.
    Records(Vec<PublicKey>, oneshot::Sender<Vec<Envelope>>),
    /// A conversation begun here is over.
    Ended(PublicKey, bool),
}

/// Whose which mesh address is.
#[derive(Debug, Default)]
struct Directory {
    by_address: BTreeMap<Ipv4Addr, PublicKey>,
    by_id: BTreeMap<PublicKey, Ipv4Addr>,
}

/// The conversations of this node.
pub(super) struct Peers {
    line: Line,
    rounds: SyncSchedule,
    /// Own records that the coordinator has not confirmed.
    pub(super) news: BTreeSet<RecordKey>,
    /// Since when it has not, although it is connected.
    pub(super) unconfirmed: Option<Instant>,
    /// Of the ledger as it is; none if it changed since.
    pub(super) holdings: Option<Arc<Holdings>>,
    /// Nodes about whose memberships peers are asked.
    asks: Vec<PublicKey>,
    listener: JoinHandle<()>,
}

/// What a conversation needs.
#[derive(Clone)]
struct Line {
    key: SigningKey,
    own: Ipv4Addr,
    interface: String,
    directory: Arc<ArcSwap<Directory>>,
    asks: mpsc::Sender<Ask>,
    toll_gate: Arc<TollGate>,
}

/// The gate, and the tasks of the connections that it admitted.
#[derive(Debug, Default)]
struct TollGate(Mutex<(InboundLimit, BTreeMap<u64, AbortHandle>)>);

impl TollGate {
    fn with<T>(
        &self,
        act: impl FnOnce(&mut InboundLimit, &mut BTreeMap<u64, AbortHandle>) -> T,
    ) -> T {
        // A panic under the lock cannot leave the gate and the tasks half changed.
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (gate, tasks) = &mut *held;
        act(gate, tasks)
    }

    /// Ends the conversation with this number, since another one takes its place.
    fn end(tasks: &mut BTreeMap<u64, AbortHandle>, number: Option<u64>) {
        if let Some(task) = number.and_then(|number| tasks.remove(&number)) {
            task.abort();
        }
    }
}

/// Charges a conversation to its peer, and holds its place in the gate if the peer began it. Dropping it frees the place.
struct Toll {
    gate: Arc<TollGate>,
    peer: PublicKey,
    place: Option<u64>,
}

impl Toll {
    fn peer(&self) -> PublicKey {
        self.peer
    }

    /// The peer has proved its identity.
    fn handle_proven(&self) -> Result<(), session::Failure> {
        let Some(number) = self.place else {
            return Ok(());
        };
        self.gate.with(
            |gate, tasks| match gate.prove(number, self.peer, Instant::now()) {
                Proved::GoesOn { ends } => {
                    TollGate::end(tasks, ends);
                    Ok(())
                }
                Proved::Refused => Err("the other node begins too many conversations".to_owned()),
            },
        )
    }

    /// Charges `cost` to the peer. Returns how long to wait before the next message is read.
    fn charge(&self, cost: Cost) -> Duration {
        let now = Instant::now();
        self.gate.with(|gate, _| gate.charge(self.peer, cost, now))
    }
}

impl Drop for Toll {
    fn drop(&mut self) {
        if let Some(number) = self.place {
            self.gate.with(|gate, tasks| {
                gate.handle_ended(number);
                tasks.remove(&number);
            });
        }
    }
}

impl Peers {
    /// Listens at `own` on the device `interface`; questions of conversations come out of the receiver.
    pub(super) fn start(
        key: SigningKey,
        own: Ipv4Addr,
        interface: String,
    ) -> (Self, mpsc::Receiver<Ask>) {
        let (asks, receiver) = mpsc::channel(ASKS);
        let line = Line {
            key,
            own,
            interface,
            directory: Arc::default(),
            asks,
            toll_gate: Arc::default(),
        };
        let listener = tokio::spawn(listen(line.clone()));
        let peers = Self {
            line,
            rounds: SyncSchedule::default(),
            news: BTreeSet::new(),
            unconfirmed: None,
            holdings: None,
            asks: Vec::new(),
            listener,
        };
        (peers, receiver)
    }

    /// Listens on the device anew: a socket stays bound to the one that it was made for, also when that is gone and
    /// another has its name.
    pub(super) fn listen_again(&mut self) {
        self.listener.abort();
        self.listener = tokio::spawn(listen(self.line.clone()));
    }

    /// Who the peers are, and at which mesh addresses.
    pub(super) fn set_peers(&mut self, peers: BTreeMap<Ipv4Addr, PublicKey>) {
        let by_id: BTreeMap<_, _> = peers.iter().map(|(at, id)| (*id, *at)).collect();
        self.rounds.set_peers(by_id.keys().copied());
        self.line.directory.store(Arc::new(Directory {
            by_address: peers,
            by_id,
        }));
    }

    /// This node said something new under these keys.
    pub(super) fn note_news(&mut self, keys: impl Iterator<Item = RecordKey>, now: Instant) {
        self.news.extend(keys);
        self.unconfirmed.get_or_insert(now);
    }

    /// The coordinator does not spread the news: this node does.
    pub(super) fn spread_news(&mut self, now: Instant) {
        self.unconfirmed = None;
        self.rounds.handle_news(now);
    }

    /// The coordinator has them.
    pub(super) fn handle_confirmed(&mut self) {
        self.news.clear();
        self.unconfirmed = None;
        self.rounds.handle_confirmed();
    }

    /// Whether a peer is reached.
    pub(super) fn handle_reach(
        &mut self,
        id: &PublicKey,
        reachable: bool,
        away: bool,
        now: Instant,
    ) {
        self.rounds.handle_reach(id, reachable, away, now);
    }

    /// A conversation begun here is over.
    pub(super) fn handle_ended(&mut self, id: &PublicKey, well: bool, now: Instant) {
        self.rounds.handle_ended(id, well, now);
    }

    /// Hands this node's departure to `peers`, all at once. Gives how many have received it in time.
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
            let _ = timeout(DEPARTURE_LIMIT, async {
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

    /// Sets the nodes whose memberships this node holds back. Peers are dialled in turn to be asked about them.
    pub(super) fn ask_about(&mut self, nodes: Vec<PublicKey>) {
        self.asks = nodes;
    }

    /// Dials who is due, with the records `news` gives for a list of keys.
    pub(super) fn dial(
        &mut self,
        away: bool,
        now: Instant,
        news: impl FnOnce(&mut dyn Iterator<Item = &RecordKey>) -> Vec<Envelope>,
    ) {
        let due = self.rounds.poll(away || !self.asks.is_empty(), now);
        if due.is_empty() {
            return;
        }
        let news = news(&mut self.news.iter().take(MOST_NEWS));
        let directory = self.line.directory.load();
        for id in due {
            if let Some(address) = directory.by_id.get(&id) {
                let opening = Opening {
                    news: news.clone(),
                    // No node vouches for itself.
                    asks: self
                        .asks
                        .iter()
                        .filter(|node| **node != id)
                        .copied()
                        .collect(),
                };
                tokio::spawn(dial(self.line.clone(), id, *address, opening));
            }
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// A socket that speaks through the tunnel device alone.
fn socket(line: &Line, port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind_device(Some(line.interface.as_bytes()))?;
    socket.bind(SocketAddrV4::new(line.own, port).into())?;
    Ok(socket)
}

/// 32 random octets in hexadecimal.
fn nonce() -> Result<String, String> {
    let mut octets = [0; 32];
    getrandom::fill(&mut octets).map_err(|e| e.to_string())?;
    Ok(PublicKey(octets).to_string())
}

async fn connect(line: &Line, address: Ipv4Addr) -> Result<TcpStream, session::Failure> {
    let socket = socket(line, 0).map_err(|e| e.to_string())?;
    let there = SocketAddrV4::new(address, PORT).into();
    timeout(DIAL_LIMIT, socket.connect(there))
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

async fn dial(line: Line, peer: PublicKey, address: Ipv4Addr, opening: Opening) {
    let talked = async {
        let stream = connect(&line, address).await?;
        let exchange = Exchange::dial(line.key.clone(), peer, nonce()?, opening);
        let toll = Toll {
            gate: Arc::clone(&line.toll_gate),
            peer,
            place: None,
        };
        session::run(stream, exchange, line.asks.clone(), toll).await
    }
    .await;
    if let Err(why) = &talked {
        tracing::debug!(peer = peer.short(), %why, "a peer was not brought up to date");
    }
    let _ = line.asks.send(Ask::Ended(peer, talked.is_ok())).await;
}

async fn listen(line: Line) {
    let mut said = false;
    loop {
        match socket(&line, PORT).and_then(|socket| socket.listen(64)) {
            Ok(listener) => {
                said = false;
                accept(&line, &listener).await;
            }
            Err(error) if !said => {
                said = true;
                tracing::warn!(%error, port = PORT, "peers cannot tell this node what is new while the coordinator is away");
            }
            Err(_) => {}
        }
        sleep(LISTEN_AGAIN).await;
    }
}

/// Takes conversations until the listener breaks.
async fn accept(line: &Line, listener: &TcpListener) {
    loop {
        let (stream, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => return tracing::debug!(%error, "cannot take a peer's conversation"),
        };
        let directory = line.directory.load();
        let peer = match source {
            SocketAddr::V4(v4) => directory.by_address.get(v4.ip()).copied(),
            SocketAddr::V6(_) => None,
        };
        let Some(peer) = peer else { continue };
        let now = Instant::now();
        let place = line.toll_gate.with(|gate, tasks| {
            gate.retain(|id| directory.by_id.contains_key(id), now);
            let admitted = gate.admit(peer, now)?;
            TollGate::end(tasks, admitted.ends);
            Some(admitted.number)
        });
        let Some(number) = place else { continue };
        let toll = Toll {
            gate: Arc::clone(&line.toll_gate),
            peer,
            place,
        };
        // Not under the lock: a runtime that stops drops the task at once, and dropping the toll takes the lock.
        let task = tokio::spawn(answer(line.clone(), stream, toll)).abort_handle();
        line.toll_gate.with(|gate, tasks| {
            // The conversation may have ended already.
            if gate.is_open(number) {
                tasks.insert(number, task);
            }
        });
    }
}

async fn answer(line: Line, stream: TcpStream, toll: Toll) {
    let peer = toll.peer();
    let talked = match nonce() {
        Ok(nonce) => {
            let exchange = Exchange::answer(line.key.clone(), peer, nonce);
            session::run(stream, exchange, line.asks.clone(), toll).await
        }
        Err(why) => Err(why),
    };
    if let Err(why) = talked {
        tracing::debug!(peer = peer.short(), %why, "a peer's conversation broke off");
    }
}

#[cfg(test)]
mod tests;
