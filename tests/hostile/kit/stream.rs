//! A control stream as a client that sends any message.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::{SinkExt as _, StreamExt as _};
use meshd::model::{PublicKey, SigningKey};
use meshd::protocol::control::{FromCoordinator, PATH, PROTOCOL, Refusal, proof_message};
use meshd::protocol::token::SpkiPin;
use meshd::records::Envelope;
use meshd::records::envelope::{Purpose, Signature};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::{At, WAIT_TIMEOUT, identity, raw};

/// The fields of the first message besides the node's id.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    /// Random by default. `None` means that the field is left out, as nodes of earlier versions do.
    pub(crate) instance: Option<String>,
    pub(crate) store: Option<String>,
    pub(crate) revision: u64,
}

impl Default for Hello {
    fn default() -> Self {
        Self {
            instance: Some(PublicKey(identity::random()).to_string()),
            store: None,
            revision: 0,
        }
    }
}

impl Hello {
    pub(crate) fn without_instance() -> Self {
        Self {
            instance: None,
            ..Self::default()
        }
    }

    pub(crate) fn message(&self, node: PublicKey) -> Value {
        let mut hello = json!({
            "type": "hello", "protocol": PROTOCOL, "version": "0.1.0", "node": node,
            "store": self.store, "revision": self.revision,
        });
        if let Some(instance) = &self.instance {
            hello["instance"] = json!(instance);
        }
        hello
    }
}

/// How a stream ended: with a `refuse` message, or without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End(pub(crate) Option<(Refusal, String)>);

/// The outcome of a `publish`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The coordinator answered.
    Published { accepted: u32, refused: Vec<String> },
    /// The coordinator ended the stream instead.
    Ended(End),
}

impl Answer {
    /// How many records were new. It is 0 if the stream ended.
    pub(crate) fn accepted(&self) -> u32 {
        match self {
            Self::Published { accepted, .. } => *accepted,
            Self::Ended(_) => 0,
        }
    }

    pub(crate) fn refused(&self) -> &[String] {
        match self {
            Self::Published { refused, .. } => refused,
            Self::Ended(_) => &[],
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self, Self::Ended(_))
    }
}

/// An open stream, and what was received on it.
pub(crate) struct Stream {
    pub(crate) socket: WebSocketStream<TlsStream<TcpStream>>,
    sequence: u64,
    /// The records that were received, in order.
    pub(crate) received: Vec<Envelope>,
    /// The revision in the last `changes`.
    pub(crate) revision: u64,
    /// The store in the last `welcome`, if one was received.
    pub(crate) store: Option<String>,
    pub(crate) snapshot: bool,
}

impl Stream {
    /// Opens a WebSocket and sends nothing on it. Returns `None` if the coordinator does not accept it.
    pub(crate) async fn silent(coordinator: &impl At) -> Option<Self> {
        Self::silent_from(coordinator, Ipv4Addr::UNSPECIFIED.into()).await
    }

    /// Does the same from `source`, which can be any address of 127.0.0.0/8.
    pub(crate) async fn silent_from(coordinator: &impl At, source: IpAddr) -> Option<Self> {
        let open = async {
            let tcp = raw::tcp(source, coordinator.at().0).await.ok()?;
            let tls = raw::tls(tcp).await.ok()?;
            let url = format!("wss://localhost{PATH}");
            let opened = tokio_tungstenite::client_async(url, tls).await;
            Some(opened.ok()?.0)
        };
        let socket = tokio::time::timeout(WAIT_TIMEOUT, open).await.ok()??;
        Some(Self {
            socket,
            sequence: 0,
            received: Vec::new(),
            revision: 0,
            store: None,
            snapshot: false,
        })
    }

    /// Opens a stream and proves `key` on it.
    ///
    /// # Errors
    /// The coordinator refuses the stream or closes it.
    pub(crate) async fn open(
        coordinator: &impl At,
        key: &SigningKey,
        hello: &Hello,
    ) -> Result<Self, End> {
        let mut stream = Self::silent(coordinator).await.ok_or(End(None))?;
        stream.greet(coordinator.at().1, key, hello).await?;
        Ok(stream)
    }

    /// Sends `hello` and `proof` on a stream on which nothing was sent, and waits for the `welcome`.
    pub(crate) async fn greet(
        &mut self,
        pin: SpkiPin,
        key: &SigningKey,
        hello: &Hello,
    ) -> Result<(), End> {
        self.say(&hello.message(key.public())).await?;
        let nonce = match self.hear().await? {
            FromCoordinator::Challenge { nonce } => nonce,
            _ => return Err(End(None)),
        };
        self.say(&proof(key, &nonce, pin)).await?;
        while self.store.is_none() {
            self.hear().await?;
        }
        Ok(())
    }

    /// Sends one message.
    pub(crate) async fn say(&mut self, message: &Value) -> Result<(), End> {
        self.send(Message::Text(message.to_string().into())).await
    }

    /// Sends one frame. The error of a stream that has ended has the coordinator's refusal, if there was one.
    pub(crate) async fn send(&mut self, frame: Message) -> Result<(), End> {
        let sent = tokio::time::timeout(WAIT_TIMEOUT, self.socket.send(frame));
        match sent.await.expect("no hang") {
            Ok(()) => Ok(()),
            Err(_) => Err(self.end().await),
        }
    }

    /// Receives the next message, and keeps its records, revision and store. Pings are answered meanwhile.
    pub(crate) async fn hear(&mut self) -> Result<FromCoordinator, End> {
        let heard = tokio::time::timeout(WAIT_TIMEOUT, self.hear_at_all());
        heard.await.expect("no hang")
    }

    async fn hear_at_all(&mut self) -> Result<FromCoordinator, End> {
        loop {
            let Some(Ok(frame)) = self.socket.next().await else {
                return Err(End(None));
            };
            let Message::Text(text) = frame else {
                continue;
            };
            let message = serde_json::from_str(&text).expect("a message");
            match &message {
                FromCoordinator::Changes { revision, records } => {
                    self.revision = *revision;
                    self.received.extend(records.iter().cloned());
                }
                FromCoordinator::Welcome {
                    store, snapshot, ..
                } => {
                    self.store = Some(store.clone());
                    self.snapshot = *snapshot;
                }
                FromCoordinator::Refuse {
                    reason, message, ..
                } => return Err(End(Some((*reason, message.clone())))),
                _ => {}
            }
            return Ok(message);
        }
    }

    /// Waits for the mark that the coordinator sends to a member at the beginning of its stream.
    pub(crate) async fn mark(&mut self) -> String {
        loop {
            if let FromCoordinator::Mark { mark } = self.hear().await.expect("it goes on") {
                return mark;
            }
        }
    }

    /// Reads until the stream ends.
    pub(crate) async fn end(&mut self) -> End {
        loop {
            if let Err(end) = self.hear().await {
                return end;
            }
        }
    }

    /// Publishes `records`, of which there may be 256, and waits for the answer.
    pub(crate) async fn publish(&mut self, records: Vec<Envelope>) -> Answer {
        let sequence = match self.send_records(&records).await {
            Ok(sequence) => sequence,
            Err(end) => return Answer::Ended(end),
        };
        loop {
            match self.hear().await {
                Ok(FromCoordinator::Published {
                    sequence: answered,
                    accepted,
                    refused,
                    ..
                }) if answered == sequence => return Answer::Published { accepted, refused },
                Ok(_) => {}
                Err(end) => return Answer::Ended(end),
            }
        }
    }

    /// Sends a `publish` without waiting for the answer. Returns its sequence number.
    pub(crate) async fn send_records(&mut self, records: &[Envelope]) -> Result<u64, End> {
        self.sequence += 1;
        let message = json!({"type": "publish", "sequence": self.sequence, "records": records});
        self.say(&message).await?;
        Ok(self.sequence)
    }

    /// Sends the message that says that the node has offered all the records it holds.
    pub(crate) async fn told(&mut self) -> Result<(), End> {
        self.say(&json!({"type": "told"})).await
    }

    /// Waits until this record was received.
    pub(crate) async fn await_record(&mut self, record: &Envelope) -> Result<(), End> {
        while !self.received.contains(record) {
            self.hear().await?;
        }
        Ok(())
    }
}

/// Makes the `proof` message that answers a challenge.
pub(crate) fn proof(key: &SigningKey, nonce: &str, pin: SpkiPin) -> Value {
    let message = proof_message(nonce, &pin);
    json!({"type": "proof", "signature": Signature::make(key, Purpose::Control, &message)})
}
