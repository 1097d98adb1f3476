//! The control stream to a coordinator. It is kept open, and opened again after a pause when it breaks.
//!
//! One task owns the socket. It sends the messages that it is given and returns events. [`super::session`] has the protocol.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{Sink, SinkExt as _, Stream as Source, StreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

use super::attempts::Attempts;
use super::session::{Ended, Output, Session, SessionKeys};
use crate::model::SigningKey;
pub use crate::node::replica::{Position, StreamEvent as Event};
use crate::os::dial::dial;
use crate::os::random;
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::protocol::control::{FromCoordinator, FromNode, MAX_MESSAGE, PATH, PING_SECONDS};
use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;
use crate::records::Envelope;

/// The maximum number of messages that wait to be sent. They hold all that a node of a large mesh offers to a new store.
const MAX_OUTGOING: usize = 2048;
/// The maximum number of answers to the coordinator that wait to be sent.
const MAX_ANSWERS: usize = 4;
/// How long one step of the opening exchange may take.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a coordinator may take to receive one message. A coordinator makes a pause before it reads more from a node that
/// has sent much. Whether it is still there is known from its pings.
const SEND_TIMEOUT: Duration = Duration::from_secs(120);

/// The node and the coordinators of a stream.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// All coordinators. The stream opens to one of them, chosen at random.
    pub urls: Vec<CoordinatorUrl>,
    /// The key of the coordinators.
    pub pin: SpkiPin,
    /// The node's identity key.
    pub identity: SigningKey,
}

/// A running stream. Dropping it ends it.
#[derive(Debug)]
pub struct Stream {
    outgoing: mpsc::Sender<FromNode>,
    position: tokio::sync::watch::Sender<Position>,
    urls: tokio::sync::watch::Sender<Vec<CoordinatorUrl>>,
    reopen: Arc<Notify>,
    /// Whether a message found the queue full since the stream opened.
    overflowed: Arc<AtomicBool>,
    /// Its panic ends meshd, which would otherwise never receive anything from a coordinator again.
    _task: AbortOnDrop,
}

impl Stream {
    /// Starts at `position`. Events are sent to `events`. The stream ends when that channel is closed.
    #[must_use]
    pub fn start(config: StreamConfig, position: Position, events: mpsc::Sender<Event>) -> Self {
        let (sender, outgoing) = mpsc::channel(MAX_OUTGOING);
        let (position, positions) = tokio::sync::watch::channel(position);
        let (urls, new_urls) = tokio::sync::watch::channel(config.urls.clone());
        let reopen = Arc::new(Notify::new());
        let overflowed = Arc::new(AtomicBool::new(false));
        let requests = Requests {
            urls: new_urls,
            position: positions,
            reopen: Arc::clone(&reopen),
            overflowed: Arc::clone(&overflowed),
        };
        let task = run(config, requests, outgoing, events);
        let task = Tasks::current().spawn_finite("control stream", task);
        Self {
            outgoing: sender,
            position,
            urls,
            reopen,
            overflowed,
            _task: task.abort_on_drop(),
        }
    }

    /// The next stream opens to one of `urls`.
    pub fn set_urls(&self, urls: Vec<CoordinatorUrl>) {
        self.urls.send_replace(urls);
    }

    /// Publishes records, see [`Stream::send`].
    pub fn publish(&self, sequence: u64, records: Vec<Envelope>) -> bool {
        self.send(FromNode::Publish { sequence, records })
    }

    /// Sends a message. If the queue is full, the stream closes and opens again, and takes no message until then: a message that
    /// is missing must not be followed by others. Returns false if the message is not sent.
    pub fn send(&self, message: FromNode) -> bool {
        if self.overflowed.load(Ordering::Acquire) {
            return false;
        }
        let sent = self.outgoing.try_send(message).is_ok();
        if !sent {
            self.overflowed.store(true, Ordering::Release);
            self.reopen.notify_waiters();
        }
        sent
    }

    /// Sends a message that may be lost, if few others wait.
    pub fn try_send(&self, message: FromNode) -> bool {
        let is_idle = self.outgoing.capacity() > MAX_OUTGOING / 2;
        let is_open = is_idle && !self.overflowed.load(Ordering::Acquire);
        is_open && self.outgoing.try_send(message).is_ok()
    }

    /// The next stream opens at `position`.
    pub fn set_position(&self, position: Position) {
        self.position.send_replace(position);
    }

    /// Closes the stream if it is open or opening, so that it opens again at the position of [`Stream::set_position`].
    pub fn reopen(&self) {
        self.reopen.notify_waiters();
    }
}

/// The requests of the node to the running task.
struct Requests {
    urls: tokio::sync::watch::Receiver<Vec<CoordinatorUrl>>,
    position: tokio::sync::watch::Receiver<Position>,
    reopen: Arc<Notify>,
    overflowed: Arc<AtomicBool>,
}

async fn run(
    config: StreamConfig,
    requests: Requests,
    mut outgoing: mpsc::Receiver<FromNode>,
    events: mpsc::Sender<Event>,
) {
    let instance = instance();
    let mut attempts = Attempts::default();
    loop {
        let url = attempts.next(&requests.urls.borrow(), random());
        let Some(url) = url else {
            let mut urls = requests.urls.clone();
            if urls.wait_for(|urls| !urls.is_empty()).await.is_err() {
                return;
            }
            continue;
        };
        // Created before the position is read, so that no request is lost that comes while the stream opens.
        let reopen = requests.reopen.notified();
        let keys = SessionKeys {
            identity: config.identity.clone(),
            pin: config.pin,
            instance: instance.clone(),
        };
        let position = requests.position.borrow().clone();
        let session = Session::new(keys, url.clone(), position);
        let began = Instant::now();
        let ended = tokio::select! {
            ended = converse(session, &url, config.pin, &mut outgoing, &events) => ended,
            () = reopen => Err("this node requests all records again".into()),
        };
        let Err(Ended {
            why,
            refusal,
            copied,
        }) = ended
        else {
            return;
        };
        let closed = Event::Closed {
            url,
            why,
            refusal,
            copied,
        };
        if events.send(closed).await.is_err() {
            return;
        }
        sleep(attempts.handle_ended(began.elapsed(), copied, random())).await;
        // The records that were published meanwhile are offered again when the stream opens.
        while outgoing.try_recv().is_ok() {}
        requests.overflowed.store(false, Ordering::Release);
    }
}

/// A name for this run of the program.
fn instance() -> String {
    let [a, b] = [(); 2].map(|()| random());
    format!("{a:016x}{b:016x}")
}

/// A random number. It is 0 if the system returns none, which no security depends on.
pub(super) fn random() -> u64 {
    random::u64().unwrap_or_default()
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// One stream from opening to end. `Ok` means that the receiver of the events is gone.
async fn converse(
    mut session: Session,
    url: &CoordinatorUrl,
    pin: SpkiPin,
    outgoing: &mut mpsc::Receiver<FromNode>,
    events: &mpsc::Sender<Event>,
) -> Result<(), Ended> {
    let mut socket = connect(url, pin).await?;
    let opening = timeout(OPENING_TIMEOUT, open(&mut socket, &mut session)).await;
    let opened = opening.map_err(|_| "the coordinator did not answer in time")??;
    if events.send(opened).await.is_err() {
        return Ok(());
    }
    // Messages are sent and received side by side. A coordinator that has as much to send as this node reads nothing more
    // until this node has read its messages.
    let (sink, source) = socket.split();
    let (answers, to_send) = mpsc::channel(MAX_ANSWERS);
    tokio::select! {
        ended = write(sink, outgoing, to_send) => ended,
        ended = receive(source, session, answers, events) => ended,
    }
}

async fn connect(url: &CoordinatorUrl, pin: SpkiPin) -> Result<Socket, Ended> {
    let tls = dial(url, pin).await?;
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let request = format!("wss://{}{PATH}", url.authority());
    let upgrade = tokio_tungstenite::client_async_with_config(request, tls, Some(limits));
    let (socket, _) = timeout(OPENING_TIMEOUT, upgrade)
        .await
        .map_err(|_| "the coordinator did not answer in time")??;
    Ok(socket)
}

/// The opening exchange. Returns the event of the opened stream.
async fn open(socket: &mut Socket, session: &mut Session) -> Result<Event, Ended> {
    send(socket, &session.hello()).await?;
    loop {
        let message = socket
            .next()
            .await
            .ok_or("the coordinator closed the stream")??;
        let Some(message) = read(message)? else {
            continue;
        };
        for output in session.handle_message(message)? {
            match output {
                Output::Send(message) => send(socket, &message).await?,
                Output::Event(opened) => return Ok(opened),
            }
        }
    }
}

/// Sends messages and pings until the stream breaks.
async fn write(
    mut sink: impl Sink<Message, Error = tungstenite::Error> + Unpin,
    outgoing: &mut mpsc::Receiver<FromNode>,
    mut answers: mpsc::Receiver<FromNode>,
) -> Result<(), Ended> {
    let mut pings = interval(Duration::from_secs(PING_SECONDS));
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = outgoing.recv() => {
                let Some(message) = message else { return Ok(()) };
                send(&mut sink, &message).await?;
            }
            Some(answer) = answers.recv() => send(&mut sink, &answer).await?,
            _ = pings.tick() => {
                timeout(SEND_TIMEOUT, sink.send(Message::Ping(tungstenite::Bytes::new())))
                    .await
                    .map_err(|_| "the coordinator takes nothing in")??;
            }
        }
    }
}

/// Receives messages until the stream breaks.
async fn receive(
    mut source: impl Source<Item = Result<Message, tungstenite::Error>> + Unpin,
    mut session: Session,
    answers: mpsc::Sender<FromNode>,
    events: &mpsc::Sender<Event>,
) -> Result<(), Ended> {
    loop {
        let message = timeout(Duration::from_secs(3 * PING_SECONDS), source.next())
            .await
            .map_err(|_| "the coordinator fell silent")?
            .ok_or("the coordinator closed the stream")??;
        let outputs = match read(message)? {
            Some(message) => session.handle_message(message)?,
            None => session.handle_alive(),
        };
        for output in outputs {
            match output {
                // A coordinator that asks faster than it reads gets no answer to each question.
                Output::Send(answer) => drop(answers.try_send(answer)),
                Output::Event(event) => {
                    if events.send(event).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

async fn send(
    socket: &mut (impl Sink<Message, Error = tungstenite::Error> + Unpin),
    message: &FromNode,
) -> Result<(), Ended> {
    let text = serde_json::to_string(message)?;
    timeout(SEND_TIMEOUT, socket.send(Message::Text(text.into())))
        .await
        .map_err(|_| "the coordinator takes nothing in")??;
    Ok(())
}

fn read(message: Message) -> Result<Option<FromCoordinator>, Ended> {
    match message {
        Message::Text(text) => Ok(Some(serde_json::from_str(&text)?)),
        Message::Close(_) => Err("the coordinator closed the stream".into()),
        _ => Ok(None),
    }
}
