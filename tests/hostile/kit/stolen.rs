//! A coordinator's place, taken with its TLS key: it sends to every node what the thief likes.

use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use meshd::model::PublicKey;
use meshd::wire::Envelope;
use meshd::wire::control::{FromCoordinator, FromNode, PROTOCOL};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::{PATIENCE, identity};
use crate::mesh::Mesh;

/// How often a stream looks for more to send.
const TICK: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
struct Deck {
    /// For every stream, in this order.
    messages: Vec<String>,
    revision: u64,
    /// All that nodes published.
    published: Vec<Envelope>,
    /// Streams that were opened so far.
    streams: usize,
    /// The nodes that have a stream, by opening.
    nodes: Vec<PublicKey>,
    /// For every stream, again and again.
    flood: Option<String>,
    /// Octets of the flood that were sent.
    flooded: u64,
}

/// Speaks as the coordinator until the test's process ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stolen(Arc<Mutex<Deck>>);

impl Stolen {
    /// Takes the place of the coordinator of `mesh`, which is killed.
    pub(crate) fn coordinator_of(mesh: &mut Mesh) -> Self {
        if let Some(mut coordinator) = mesh.coordinator.take() {
            coordinator.kill();
        }
        let listener = mesh
            .coordinator_host
            .inside(|| TcpListener::bind("0.0.0.0:7443"))
            .expect("a namespace")
            .expect("the coordinator is dead");
        Self::serve(listener, &mesh.coordinator_host.path("/run/coordinator"))
    }

    /// Serves the control protocol with the TLS key found in `state_directory`.
    pub(crate) fn serve(listener: TcpListener, state_directory: &Path) -> Self {
        let pem = |name: &str| std::fs::read(state_directory.join(name)).expect("its own file");
        let certificate = CertificateDer::from_pem_slice(&pem("tls.crt")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(&pem("tls.key")).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a pair");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        listener.set_nonblocking(true).expect("a socket");
        let stolen = Self::default();
        let serving = stolen.clone();
        // The thread ends with the test's process.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
                while let Ok((tcp, _)) = listener.accept().await {
                    if let Ok(tls) = acceptor.accept(tcp).await
                        && let Ok(socket) = tokio_tungstenite::accept_async(tls).await
                    {
                        tokio::spawn(serving.clone().stream(socket));
                    }
                }
            });
        });
        stolen
    }

    /// Sends `records` on every stream, those to come as well.
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

    /// Sends a message as it is.
    pub(crate) fn send_text(&self, text: impl Into<String>) {
        self.0.lock().expect("no panic").messages.push(text.into());
    }

    /// Sends a message on every stream again and again, as fast as the node takes it.
    pub(crate) fn flood(&self, text: impl Into<String>) {
        self.0.lock().expect("no panic").flood = Some(text.into());
    }

    /// Octets of the flood that were sent so far.
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

    /// Waits until nodes have opened so many streams.
    pub(crate) fn await_streams(&self, count: usize) {
        let end = Instant::now() + PATIENCE;
        while self.streams() < count {
            assert!(Instant::now() < end, "the nodes do not come");
            std::thread::sleep(TICK);
        }
    }

    async fn stream(
        self,
        mut socket: WebSocketStream<TlsStream<tokio::net::TcpStream>>,
    ) -> Option<()> {
        let say = |message: &FromCoordinator| {
            Message::text(serde_json::to_string(message).expect("plain data"))
        };
        let node = match socket.next().await?.ok()? {
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(FromNode::Hello { node, .. }) => node,
                _ => return None,
            },
            _ => return None,
        };
        let nonce = PublicKey(identity::random()).to_string();
        socket
            .send(say(&FromCoordinator::Challenge { nonce }))
            .await
            .ok()?;
        socket.next().await?.ok()?;
        let welcome = FromCoordinator::Welcome {
            protocol: PROTOCOL,
            store: "another".into(),
            revision: 1,
            snapshot: true,
        };
        socket.send(say(&welcome)).await.ok()?;
        {
            let mut deck = self.0.lock().expect("no panic");
            deck.streams += 1;
            deck.nodes.push(node);
        }
        let mut sent = 0;
        loop {
            let more = self.0.lock().expect("no panic").messages[sent..].to_vec();
            sent += more.len();
            for text in more {
                socket.send(Message::text(text)).await.ok()?;
            }
            let flood = self.0.lock().expect("no panic").flood.clone();
            if let Some(text) = flood {
                let octets = text.len() as u64;
                socket.send(Message::text(text)).await.ok()?;
                self.0.lock().expect("no panic").flooded += octets;
                // What the node says meanwhile is not read.
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
                let accepted = u32::try_from(records.len()).expect("few");
                self.0.lock().expect("no panic").published.extend(records);
                let published = FromCoordinator::Published {
                    sequence,
                    accepted,
                    refused: vec![],
                    refused_records: vec![],
                };
                socket.send(say(&published)).await.ok()?;
            }
        }
    }
}
