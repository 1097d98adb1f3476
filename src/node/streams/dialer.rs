//! Opens a stream to a relay, and carries it.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::opening::{self, OPENING_TIMEOUT};
use super::{Offered, RelayStreamEvent, Turn, carrying, tls};
use crate::model::{PublicKey, SigningKey};
use crate::os::proxy::Proxies;
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::protocol::stream::StreamTarget;
use crate::tunnel::{OtherEnd, StreamOpener};

/// How long the TLS handshake and the request for a WebSocket may take together.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// What every stream to a relay needs.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) key: SigningKey,
    pub(super) opener: StreamOpener,
    pub(super) proxies: Proxies,
    pub(super) events: mpsc::Sender<RelayStreamEvent>,
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

impl Dialer {
    /// Starts a stream to `relay`, whose events have this number. Dropping the task ends it.
    pub(super) fn start(&self, relay: PublicKey, number: u64, offered: Offered) -> AbortOnDrop {
        let dialer = self.clone();
        let task = Tasks::current().spawn_child("stream to a relay", async move {
            let event = |turn| RelayStreamEvent {
                relay,
                number,
                turn,
            };
            let why = dialer.run(&relay, &offered, event(Turn::Opened)).await;
            tracing::debug!(url = %offered.target.url, %why, "the stream to a relay ended");
            let _ = dialer.events.send(event(Turn::Closed(why))).await;
        });
        task.abort_on_drop()
    }

    /// Opens the stream, reports that, and carries it. Returns why it ended.
    async fn run(&self, relay: &PublicKey, offered: &Offered, opened: RelayStreamEvent) -> String {
        let mut socket = match self.connect(&offered.target).await {
            Ok(socket) => socket,
            Err(why) => return why,
        };
        let opening = opening::open(&mut socket, &self.key, relay);
        match timeout(OPENING_TIMEOUT, opening).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return why,
            Err(_) => return "the relay does not answer in time".to_owned(),
        }
        let end = self.opener.open(offered.address, OtherEnd::Relay);
        if self.events.send(opened).await.is_err() {
            return "this node stops".to_owned();
        }
        carrying::carry(socket, &end).await
    }

    async fn connect(&self, target: &StreamTarget) -> Result<Socket, String> {
        let url = &target.url;
        let text = |error: &dyn std::fmt::Display| format!("{url}: {error}");
        let tcp = self.proxies.connect(url.host(), url.port()).await;
        let tcp = tcp.map_err(|error| text(&error))?;
        carrying::set_options(&tcp);
        let config = tls::of_node(target.pin).map_err(|error| text(&error))?;
        let name = ServerName::try_from(url.host().to_owned()).map_err(|error| text(&error))?;
        let upgraded = timeout(UPGRADE_TIMEOUT, async {
            let tls = TlsConnector::from(Arc::new(config))
                .connect(name, tcp)
                .await;
            let tls = tls.map_err(|error| text(&error))?;
            let limits = Some(carrying::limits());
            let socket = client_async_with_config(url.request(), tls, limits).await;
            socket.map_err(|error| text(&error))
        });
        match upgraded.await {
            Ok(upgraded) => upgraded.map(|(socket, _)| socket),
            Err(_) => Err(text(&"no answer within 10 seconds")),
        }
    }
}
