//! A control stream, spoken by hand.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::{SinkExt as _, StreamExt as _};
use meshd::model::{PublicKey, SigningKey};
use meshd::wire::Envelope;
use meshd::wire::control::{FromCoordinator, PATH, PROTOCOL, Refusal, proof_message};
use meshd::wire::envelope::{Purpose, Signature};
use meshd::wire::token::SpkiPin;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::{At, PATIENCE, identity, raw};

/// What the first message says besides who speaks.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    /// Random by default; none: as nodes of earlier versions.
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

/// How a stream ended: with a refusal, or without a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End(pub(crate) Option<(Refusal, String)>);

/// What became of a `publish`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The coordinator answered.
    Published { accepted: u32, refused: Vec<String> },
    /// The coordinator ended the stream instead.
    Ended(End),
}

impl Answer {
    /// How many records were new; none of a stream that ended.
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

/// An open stream, and all that came on it.
pub(crate) struct Stream {
    pub(crate) socket: WebSocketStream<TlsStream<TcpStream>>,
    sequence: u64,
    /// The records that came, in order.
    pub(crate) received: Vec<Envelope>,
    /// As in the last `changes`.
    pub(crate) revision: u64,
    /// As in the last `welcome`.
    pub(crate) store: Option<String>,
    pub(crate) snapshot: bool,
}

impl Stream {
    /// A WebSocket on which nothing has been said. None: the coordinator does not take it.
    pub(crate) async fn silent(coordinator: &impl At) -> Option<Self> {
        Self::silent_from(coordinator, Ipv4Addr::UNSPECIFIED.into()).await
    }

    /// The same, from any address of 127.0.0.0/8.
    pub(crate) async fn silent_from(coordinator: &impl At, source: IpAddr) -> Option<Self> {
        let open = async {
            let tcp = raw::tcp(source, coordinator.at().0).await.ok()?;
            let tls = raw::tls(tcp).await.ok()?;
            let url = format!("wss://localhost{PATH}");
            let opened = tokio_tungstenite::client_async(url, tls).await;
            Some(opened.ok()?.0)
        };
        let socket = tokio::time::timeout(PATIENCE, open).await.ok()??;
        Some(Self {
            socket,
            sequence: 0,
            received: Vec::new(),
            revision: 0,
            store: None,
            snapshot: false,
        })
    }

    /// Proves `key`.
    ///
    /// # Errors
    /// The coordinator refuses, or hangs up.
    pub(crate) async fn open(
        coordinator: &impl At,
        key: &SigningKey,
        hello: &Hello,
    ) -> Result<Self, End> {
        let mut stream = Self::silent(coordinator).await.ok_or(End(None))?;
        stream.greet(coordinator.at().1, key, hello).await?;
        Ok(stream)
    }

    /// Hello and proof on a silent stream, up to the `welcome`.
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

    /// Sends one frame. A stream that has ended gives how, if the coordinator said so.
    pub(crate) async fn send(&mut self, frame: Message) -> Result<(), End> {
        let sent = tokio::time::timeout(PATIENCE, self.socket.send(frame));
        match sent.await.expect("no hang") {
            Ok(()) => Ok(()),
            Err(_) => Err(self.end().await),
        }
    }

    /// The next message. Pings are answered meanwhile, records and positions noted.
    pub(crate) async fn hear(&mut self) -> Result<FromCoordinator, End> {
        let heard = tokio::time::timeout(PATIENCE, self.hear_at_all());
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

    /// Reads until the stream ends.
    pub(crate) async fn end(&mut self) -> End {
        loop {
            if let Err(end) = self.hear().await {
                return end;
            }
        }
    }

    /// Publishes `records`, at most 256, and waits for the answer.
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

    /// Sends a `publish` and waits for nothing; gives its sequence number.
    pub(crate) async fn send_records(&mut self, records: &[Envelope]) -> Result<u64, End> {
        self.sequence += 1;
        let message = json!({"type": "publish", "sequence": self.sequence, "records": records});
        self.say(&message).await?;
        Ok(self.sequence)
    }

    /// That all it holds has been offered.
    pub(crate) async fn told(&mut self) -> Result<(), End> {
        self.say(&json!({"type": "told"})).await
    }

    /// Waits until this very record has come.
    pub(crate) async fn await_record(&mut self, record: &Envelope) -> Result<(), End> {
        while !self.received.contains(record) {
            self.hear().await?;
        }
        Ok(())
    }
}

/// Answers a challenge.
pub(crate) fn proof(key: &SigningKey, nonce: &str, pin: SpkiPin) -> Value {
    let message = proof_message(nonce, &pin);
    json!({"type": "proof", "signature": Signature::make(key, Purpose::Control, &message)})
}
