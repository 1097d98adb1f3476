//! A server that takes the place of a coordinator with its TLS key, and sends any message to the nodes that connect.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use meshd::protocol::control::{FromCoordinator, FromNode};
use meshd::records::Envelope;
use tokio_tungstenite::tungstenite::Message;

use super::WAIT_TIMEOUT;
use crate::mesh::Mesh;
use crate::stand_in::{Socket, acknowledge, greet, stand_in};

/// How often a stream checks whether there is more to send.
const TICK: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
struct Deck {
    /// The messages that are sent on every stream, in this order.
    messages: Vec<String>,
    revision: u64,
    /// All records that nodes have published.
    published: Vec<Envelope>,
    /// How many streams have been opened.
    streams: usize,
    /// A message that is sent on every stream again and again.
    flood: Option<String>,
    /// How many bytes of the flood were sent.
    flooded: u64,
}

/// A server in the coordinator's place. It runs until the test's process ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stolen(Arc<Mutex<Deck>>);

impl Stolen {
    /// Takes the place of the coordinator of `mesh`, which is killed.
    pub(crate) fn coordinator_of(mesh: &mut Mesh) -> Self {
        if let Some(mut coordinator) = mesh.coordinator.take() {
            coordinator.kill();
        }
        let stolen = Self::default();
        let serving = stolen.clone();
        stand_in(mesh, move |socket| serving.clone().stream(socket));
        stolen
    }

    /// Sends `records` on every stream that is open now or is opened later.
    pub(crate) fn send(&self, records: Vec<Envelope>) {
        let mut deck = self.0.lock().expect("no panic");
        deck.revision += 1;
        let changes = FromCoordinator::Changes {
            revision: deck.revision,
            records,
        };
        let text = serde_json::to_string(&changes).expect("plain data");
        deck.messages.push(text);
    }

    /// Sends a message on every stream, as it is.
    pub(crate) fn send_text(&self, text: impl Into<String>) {
        self.0.lock().expect("no panic").messages.push(text.into());
    }

    /// Sends a message on every stream again and again, as fast as the node takes it.
    pub(crate) fn flood(&self, text: impl Into<String>) {
        self.0.lock().expect("no panic").flood = Some(text.into());
    }

    /// How many bytes of the flood were sent so far.
    pub(crate) fn flooded(&self) -> u64 {
        self.0.lock().expect("no panic").flooded
    }

    /// All records that nodes published to it so far.
    pub(crate) fn published(&self) -> Vec<Envelope> {
        self.0.lock().expect("no panic").published.clone()
    }

    /// How many streams were opened so far.
    pub(crate) fn streams(&self) -> usize {
        self.0.lock().expect("no panic").streams
    }

    /// Waits until nodes have opened `count` streams.
    pub(crate) fn await_streams(&self, count: usize) {
        let end = Instant::now() + WAIT_TIMEOUT;
        while self.streams() < count {
            assert!(Instant::now() < end, "the nodes do not connect");
            std::thread::sleep(TICK);
        }
    }

    async fn stream(self, mut socket: Socket) -> Option<()> {
        greet(&mut socket).await?;
        self.0.lock().expect("no panic").streams += 1;
        let mut sent = 0;
        loop {
            let more = self.0.lock().expect("no panic").messages[sent..].to_vec();
            sent += more.len();
            for text in more {
                socket.send(Message::text(text)).await.ok()?;
            }
            let flood = self.0.lock().expect("no panic").flood.clone();
            if let Some(text) = flood {
                let bytes = text.len() as u64;
                socket.send(Message::text(text)).await.ok()?;
                self.0.lock().expect("no panic").flooded += bytes;
                // The messages of the node are not read during a flood.
                tokio::task::yield_now().await;
                continue;
            }
            let Ok(message) = tokio::time::timeout(TICK, socket.next()).await else {
                continue;
            };
            let Message::Text(text) = message?.ok()? else {
                continue;
            };
            if let Ok(FromNode::Publish { sequence, records }) = serde_json::from_str(&text) {
                let accepted = records.len();
                self.0.lock().expect("no panic").published.extend(records);
                acknowledge(&mut socket, sequence, accepted).await?;
            }
        }
    }
}
