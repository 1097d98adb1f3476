//! A server that takes the place of a coordinator, with the coordinator's own TLS key.

use std::path::Path;
use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use meshd::model::PublicKey;
use meshd::protocol::control::{FromCoordinator, FromNode, PROTOCOL};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::mesh::Mesh;

/// The coordinator's end of a node's control stream.
pub(crate) type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// Makes an acceptor of TLS with the certificate and key in a coordinator's state directory.
pub(crate) fn acceptor(state_directory: &Path) -> TlsAcceptor {
    let pem =
        |name: &str| std::fs::read(state_directory.join(name)).expect("the coordinator's own file");
    let certificate = CertificateDer::from_pem_slice(&pem("tls.crt")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(&pem("tls.key")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}

/// Accepts control streams on `listener` and passes each of them to `serve`. The thread ends with the test's process.
fn accept<F>(
    listener: std::net::TcpListener,
    state_directory: &Path,
    serve: impl Fn(Socket) -> F + Send + 'static,
) where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let acceptor = acceptor(state_directory);
    listener.set_nonblocking(true).expect("a socket");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).expect("a socket");
            while let Ok((tcp, _)) = listener.accept().await {
                // A connection that does not become a WebSocket is not one of a node.
                if let Ok(tls) = acceptor.accept(tcp).await
                    && let Ok(socket) = tokio_tungstenite::accept_async(tls).await
                {
                    tokio::spawn(serve(socket));
                }
            }
        });
    });
}

/// Takes the place of the coordinator of `mesh`, which has ended, and passes each control stream to `serve`.
pub(crate) fn stand_in<F>(mesh: &Mesh, serve: impl Fn(Socket) -> F + Send + 'static)
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let host = &mesh.coordinator_host;
    let listener = host
        .inside(|| std::net::TcpListener::bind("0.0.0.0:7443"))
        .expect("a namespace")
        .expect("the coordinator is dead");
    accept(listener, &host.path("/run/coordinator"), serve);
}

/// Encodes a message as a WebSocket frame.
pub(crate) fn frame(message: &FromCoordinator) -> Message {
    Message::text(serde_json::to_string(message).expect("plain data"))
}

/// Opens a stream as a coordinator does whose store is new to the node. Returns the id of the node.
pub(crate) async fn greet(socket: &mut Socket) -> Option<PublicKey> {
    let Message::Text(text) = socket.next().await?.ok()? else {
        return None;
    };
    let Ok(FromNode::Hello { node, .. }) = serde_json::from_str(&text) else {
        return None;
    };
    let challenge = FromCoordinator::Challenge {
        nonce: PublicKey([7; 32]).to_string(),
    };
    socket.send(frame(&challenge)).await.ok()?;
    socket.next().await?.ok()?;
    let welcome = FromCoordinator::Welcome {
        protocol: PROTOCOL,
        store: "another".into(),
        revision: 1,
        snapshot: true,
    };
    socket.send(frame(&welcome)).await.ok()?;
    Some(node)
}

/// Answers a `publish`: all of its records were accepted.
pub(crate) async fn acknowledge(socket: &mut Socket, sequence: u64, accepted: usize) -> Option<()> {
    let published = FromCoordinator::Published {
        sequence,
        accepted: u32::try_from(accepted).expect("few"),
        refused: vec![],
        refused_records: vec![],
        failed: false,
    };
    socket.send(frame(&published)).await.ok()
}
