//! The control stream: kept open, and opened again with full jitter when it breaks.
//!
//! One task owns the socket. It takes records to publish and gives events; it holds no state of the mesh.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{Sink, SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

use super::dial::dial;
use crate::model::{PublicKey, SigningKey, text};
pub use crate::node::replica::{Position, StreamEvent as Event};
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::protocol::control::{
    FromCoordinator, FromNode, MAX_MARK, MAX_MESSAGE, OLDEST, PATH, PING_SECONDS, PROTOCOL,
    Refusal, copy_message, proof_message,
};
use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;
use crate::records::Envelope;
use crate::records::envelope::{Purpose, Signature};

/// The first wait after a failure is up to this long; it doubles with each further failure.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// No wait is longer.
const BACKOFF_MOST: Duration = Duration::from_secs(15);
/// How long a copy of another machine waits: when a coordinator comes back, the original has to be there first.
const CLONE_WAIT: Duration = Duration::from_secs(60);
/// The maximum number of messages that wait to be sent. They hold all that a node of a large mesh offers to a new store.
const OUTGOING: usize = 2048;
/// Answers to the coordinator that wait to be sent at most.
const WORDS: usize = 4;
/// How long one step of the opening exchange may take.
const OPENING_LIMIT: Duration = Duration::from_secs(10);
/// How long a coordinator may take to receive one message. A coordinator makes a pause before it reads more from a node that
/// has sent much. Whether it is still there is known from its pings.
const SEND_LIMIT: Duration = Duration::from_secs(120);

/// Whom the stream speaks for and with.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// All coordinators; one is picked at random each time.
    pub urls: Vec<CoordinatorUrl>,
    /// The key they have.
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
    /// Starts at `position`; events go to `events`, which ends the stream when it is closed.
    #[must_use]
    pub fn start(config: StreamConfig, position: Position, events: mpsc::Sender<Event>) -> Self {
        let (sender, outgoing) = mpsc::channel(OUTGOING);
        let (position, positions) = tokio::sync::watch::channel(position);
        let (urls, all) = tokio::sync::watch::channel(config.urls.clone());
        let reopen = Arc::new(Notify::new());
        let overflowed = Arc::new(AtomicBool::new(false));
        let all = Asked {
            urls: all,
            position: positions,
            reopen: Arc::clone(&reopen),
            overflowed: Arc::clone(&overflowed),
        };
        let task = run(config, all, instance(), outgoing, events);
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

    /// Says where the coordinators are, for the next time the stream opens.
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

    /// Says what is held, for the next time the stream opens.
    pub fn set_position(&self, position: Position) {
        self.position.send_replace(position);
    }

    /// Closes the stream if it is open or opening, so that it opens again at the position of [`Stream::set_position`].
    pub fn reopen(&self) {
        self.reopen.notify_waiters();
    }
}

/// What the node requests of the task while it runs.
struct Asked {
    urls: tokio::sync::watch::Receiver<Vec<CoordinatorUrl>>,
    position: tokio::sync::watch::Receiver<Position>,
    reopen: Arc<Notify>,
    overflowed: Arc<AtomicBool>,
}

async fn run(
    config: StreamConfig,
    asked: Asked,
    instance: String,
    mut outgoing: mpsc::Receiver<FromNode>,
    events: mpsc::Sender<Event>,
) {
    let mut failures = 0u32;
    let mut failed = None;
    loop {
        let url = pick(&asked.urls.borrow(), failed.as_ref()).cloned();
        let Some(url) = url.as_ref() else {
            let mut urls = asked.urls.clone();
            if urls.wait_for(|urls| !urls.is_empty()).await.is_err() {
                return;
            }
            continue;
        };
        failed = Some(url.clone());
        let opened = Instant::now();
        let ended = converse(&config, &instance, url, &asked, &mut outgoing, &events).await;
        let Err(Ended {
            why,
            refusal,
            copied,
        }) = ended
        else {
            return;
        };
        if events
            .send(Event::Closed {
                url: url.clone(),
                why,
                refusal,
                copied,
            })
            .await
            .is_err()
        {
            return;
        }
        // A stream that held for a while was no failure of this kind.
        failures = if opened.elapsed() > Duration::from_secs(60) {
            0
        } else {
            failures.saturating_add(1)
        };
        sleep(if copied {
            CLONE_WAIT
        } else {
            backoff(failures)
        })
        .await;
        // What was handed over meanwhile is offered again at the opening.
        while outgoing.try_recv().is_ok() {}
        asked.overflowed.store(false, Ordering::Release);
    }
}

/// Full jitter: anything from nothing to a bound that doubles with each failure.
fn backoff(failures: u32) -> Duration {
    let bound = BACKOFF_FIRST
        .saturating_mul(1u32 << failures.saturating_sub(1).min(10))
        .min(BACKOFF_MOST);
    Duration::from_millis(random_below(
        bound.as_millis().try_into().unwrap_or(u64::MAX).max(1),
    ))
}

/// A name for this run of the program.
fn instance() -> String {
    let [a, b] = [(); 2].map(|()| getrandom::u64().unwrap_or_default());
    format!("{a:016x}{b:016x}")
}

/// Which coordinator is next: any, but for the one that failed last, if there are others.
fn pick<'a>(
    urls: &'a [CoordinatorUrl],
    failed: Option<&CoordinatorUrl>,
) -> Option<&'a CoordinatorUrl> {
    let others: Vec<&CoordinatorUrl> = urls.iter().filter(|url| Some(*url) != failed).collect();
    match others.len() {
        0 => urls.first(),
        count => others.get(random_below(count as u64) as usize).copied(),
    }
}

/// Anything below `bound`.
pub(super) fn random_below(bound: u64) -> u64 {
    let random = getrandom::u64().unwrap_or_default();
    if bound == 0 { 0 } else { random % bound }
}

/// Why a conversation ended.
struct Ended {
    why: String,
    refusal: Option<Refusal>,
    copied: bool,
}

impl<E: std::fmt::Display> From<E> for Ended {
    fn from(error: E) -> Self {
        Self {
            // Errors of the parser and of the handshake quote what the coordinator sent.
            why: text::message(&error.to_string()),
            refusal: None,
            copied: false,
        }
    }
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// One stream from opening to end. `Ok` means the receiver of the events is gone.
async fn converse(
    config: &StreamConfig,
    instance: &str,
    url: &CoordinatorUrl,
    asked: &Asked,
    outgoing: &mut mpsc::Receiver<FromNode>,
    events: &mpsc::Sender<Event>,
) -> Result<(), Ended> {
    // Created before the position is read, so that no request is lost that comes while the stream opens.
    let reopen = asked.reopen.notified();
    let position = asked.position.borrow().clone();
    let tls = dial(url, config.pin).await?;
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let request = format!("wss://{}{PATH}", url.authority());
    let (mut socket, _) = timeout(
        OPENING_LIMIT,
        tokio_tungstenite::client_async_with_config(request, tls, Some(limits)),
    )
    .await
    .map_err(|_| "the coordinator did not answer in time")??;

    let (store, revision, snapshot) = timeout(
        OPENING_LIMIT,
        open(&mut socket, config, instance, &position),
    )
    .await
    .map_err(|_| "the coordinator did not answer in time")??;
    // The mark is sent before all records, since the coordinator treats the records by it.
    if let Some(mark) = &position.mark {
        let mark = mark.clone();
        send(&mut socket, &FromNode::Mark { mark }).await?;
    }
    let mut position = Position {
        revision: if snapshot { 0 } else { position.revision },
        store: Some(store.clone()),
        mark: position.mark,
    };
    if events
        .send(Event::Opened {
            url: url.clone(),
            store,
            revision,
        })
        .await
        .is_err()
    {
        return Ok(());
    }

    // Written and read side by side: a coordinator that has as much to say as this node reads no more until it is heard.
    let (mut sink, mut source) = socket.split();
    let (words, mut to_say) = mpsc::channel(WORDS);
    let write = async {
        let mut pings = interval(Duration::from_secs(PING_SECONDS));
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = outgoing.recv() => {
                    let Some(message) = message else { return Ok(()) };
                    send(&mut sink, &message).await?;
                }
                Some(word) = to_say.recv() => send(&mut sink, &word).await?,
                _ = pings.tick() => {
                    timeout(SEND_LIMIT, sink.send(Message::Ping(tungstenite::Bytes::new())))
                        .await
                        .map_err(|_| "the coordinator takes nothing in")??;
                }
            }
        }
    };
    let hear = async {
        loop {
            let message = timeout(Duration::from_secs(3 * PING_SECONDS), source.next())
                .await
                .map_err(|_| "the coordinator fell silent")?
                .ok_or("the coordinator closed the stream")??;
            let event = match read(message)? {
                Some(FromCoordinator::Changes { revision, records }) => {
                    position.revision = revision;
                    Event::Changes {
                        records,
                        position: position.clone(),
                    }
                }
                Some(FromCoordinator::Mark { mark }) if mark.len() <= MAX_MARK => {
                    position.mark = Some(mark);
                    Event::Changes {
                        records: Vec::new(),
                        position: position.clone(),
                    }
                }
                // The first one did not name the store: this node was no member there yet.
                Some(FromCoordinator::Welcome {
                    store, revision, ..
                }) => {
                    position.store = Some(store);
                    Event::Admitted { revision }
                }
                Some(FromCoordinator::Published {
                    sequence,
                    refused,
                    refused_records,
                    ..
                }) => Event::Published {
                    sequence,
                    refused,
                    refused_records,
                },
                Some(FromCoordinator::Refuse {
                    reason,
                    message,
                    proof,
                }) => {
                    return Err(refused(config, instance, reason, message, proof));
                }
                Some(FromCoordinator::Copy { instance: other }) => {
                    // One that asks faster than it listens is not answered each time.
                    if let Some(vouch) = vouch(config, instance, other) {
                        let _ = words.try_send(vouch);
                    }
                    Event::Alive
                }
                _ => Event::Alive,
            };
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::select! {
        ended = write => ended,
        ended = hear => ended,
        () = reopen => Err("this node requests all records again".into()),
    }
}

/// The opening exchange. Returns the name of the store, its revision, and whether a snapshot follows.
async fn open(
    socket: &mut Socket,
    config: &StreamConfig,
    instance: &str,
    position: &Position,
) -> Result<(String, u64, bool), Ended> {
    let node: PublicKey = config.identity.public();
    let hello = FromNode::Hello {
        protocol: PROTOCOL,
        oldest: Some(OLDEST),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node,
        store: position.store.clone(),
        revision: position.revision,
        instance: Some(instance.to_owned()),
    };
    send(socket, &hello).await?;
    loop {
        let message = socket
            .next()
            .await
            .ok_or("the coordinator closed the stream")??;
        match read(message)? {
            Some(FromCoordinator::Challenge { nonce }) => {
                let message = proof_message(&nonce, &config.pin);
                let signature = Signature::make(&config.identity, Purpose::Control, &message);
                send(socket, &FromNode::Proof { signature }).await?;
            }
            Some(FromCoordinator::Welcome { protocol, .. })
                if !(OLDEST..=PROTOCOL).contains(&protocol) =>
            {
                return Err(format!("the coordinator wants to speak protocol {protocol}, which this node does not; upgrade the older of the two").into());
            }
            Some(FromCoordinator::Welcome {
                store,
                revision,
                snapshot,
                ..
            }) => return Ok((store, revision, snapshot)),
            Some(FromCoordinator::Refuse {
                reason,
                message,
                proof,
            }) => return Err(refused(config, instance, reason, message, proof)),
            _ => {}
        }
    }
}

/// A refusal. That this node is a copy of another machine is only believed to that machine.
fn refused(
    config: &StreamConfig,
    instance: &str,
    reason: Refusal,
    why: String,
    proof: Option<Signature>,
) -> Ended {
    let copied = reason == Refusal::Clone
        && proof.is_some_and(|proof| {
            let message = copy_message(instance);
            proof.holds(&config.identity.public(), Purpose::DuplicateProof, &message)
        });
    Ended {
        why,
        refusal: Some(reason),
        copied,
    }
}

/// This node's word that `other` is another machine, unless it is this very run.
fn vouch(config: &StreamConfig, instance: &str, other: String) -> Option<FromNode> {
    (other != instance).then(|| FromNode::Vouch {
        signature: Signature::make(
            &config.identity,
            Purpose::DuplicateProof,
            &copy_message(&other),
        ),
        instance: other,
    })
}

async fn send(
    socket: &mut (impl Sink<Message, Error = tungstenite::Error> + Unpin),
    message: &FromNode,
) -> Result<(), Ended> {
    let text = serde_json::to_string(message)?;
    timeout(SEND_LIMIT, socket.send(Message::Text(text.into())))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn any_coordinator_but_the_one_that_failed_is_next() {
        let urls: Vec<CoordinatorUrl> = ["https://a", "https://b", "https://c"]
            .map(|url| url.parse().expect("a literal"))
            .to_vec();
        let picked = |count: usize, failed: Option<usize>| -> BTreeSet<Option<&CoordinatorUrl>> {
            let failed = failed.map(|n| &urls[n]);
            (0..200).map(|_| pick(&urls[..count], failed)).collect()
        };
        let [a, b, c] = [0, 1, 2].map(|n| Some(&urls[n]));
        assert_eq!(picked(0, None), [None].into());
        assert_eq!(picked(1, Some(0)), [a].into());
        assert_eq!(picked(3, None), [a, b, c].into());
        assert_eq!(picked(3, Some(1)), [a, c].into());
    }

    #[test]
    fn a_node_believes_only_its_own_key_that_it_is_a_copy_and_never_signs_against_itself() {
        let config = StreamConfig {
            urls: Vec::new(),
            pin: SpkiPin([0; 32]),
            identity: SigningKey::from_seed(&[1; 32]),
        };
        let word = |key: &SigningKey, instance: &str| {
            Some(Signature::make(
                key,
                Purpose::DuplicateProof,
                &copy_message(instance),
            ))
        };
        let is_copied = |reason, proof| refused(&config, "a", reason, String::new(), proof).copied;
        let stranger = SigningKey::from_seed(&[2; 32]);
        assert!(is_copied(Refusal::Clone, word(&config.identity, "a")));
        assert!(!is_copied(Refusal::Clone, None));
        assert!(!is_copied(Refusal::Clone, word(&config.identity, "b")));
        assert!(!is_copied(Refusal::Clone, word(&stranger, "a")));
        let control = Signature::make(&config.identity, Purpose::Control, &copy_message("a"));
        assert!(!is_copied(Refusal::Clone, Some(control)));
        assert!(!is_copied(Refusal::Busy, word(&config.identity, "a")));

        assert_eq!(vouch(&config, "a", "a".into()), None);
        assert!(
            matches!(vouch(&config, "a", "b".into()), Some(FromNode::Vouch { instance, signature }) if instance == "b" && Some(signature) == word(&config.identity, "b"))
        );
    }

    #[test]
    fn waits_grow_up_to_a_bound_and_are_never_longer() {
        for failures in 0..40u32 {
            let bound = BACKOFF_FIRST
                .saturating_mul(1u32 << failures.saturating_sub(1).min(10))
                .min(BACKOFF_MOST);
            for _ in 0..20 {
                assert!(backoff(failures) <= bound);
            }
        }
    }
}
