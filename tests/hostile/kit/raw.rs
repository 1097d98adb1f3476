//! Connections below the protocol: TCP from any loopback address, TLS that verifies no certificate, and WebSocket
//! frames as bytes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::WAIT_TIMEOUT;

/// A WebSocket connection as bytes, after its HTTP upgrade.
pub(crate) struct Raw(pub(crate) TlsStream<TcpStream>);

/// Opens a TCP connection from `source`, which can be any address of 127.0.0.0/8.
pub(crate) async fn tcp(source: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens TLS on a connection and accepts any certificate.
pub(crate) async fn tls(stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAnybody))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a literal");
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await
}

impl Raw {
    /// Asks for the control stream over `tls`. Returns `None` if the coordinator refuses it or closes the connection.
    pub(crate) async fn upgrade(mut tls: TlsStream<TcpStream>) -> Option<Self> {
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            meshd::protocol::control::PATH
        );
        tls.write_all(request.as_bytes()).await.ok()?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = tokio::time::timeout(WAIT_TIMEOUT, tls.read_u8()).await;
            head.push(byte.ok()?.ok()?);
        }
        head.starts_with(b"HTTP/1.1 101").then_some(Self(tls))
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// Reads and drops all data. Returns whether the other side closes the connection within `limit`.
    pub(crate) async fn ends_within(&mut self, limit: Duration) -> bool {
        let mut buffer = vec![0; 65_536];
        let read = async { while matches!(self.0.read(&mut buffer).await, Ok(1..)) {} };
        tokio::time::timeout(limit, read).await.is_ok()
    }
}

pub(crate) const TEXT: u8 = 1;
pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const PING: u8 = 9;

/// The header of a client's frame with a payload of `length` bytes. The masking key is zero, so the payload is sent unchanged.
pub(crate) fn frame_header(opcode: u8, last: bool, length: u64) -> Vec<u8> {
    let mut head = vec![opcode | if last { 0x80 } else { 0 }];
    match length {
        0..=125 => head.push(0x80 | length as u8),
        126..=65_535 => {
            head.push(0x80 | 126);
            head.extend((length as u16).to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend(length.to_be_bytes());
        }
    }
    head.extend([0; 4]);
    head
}

/// A frame with its payload.
pub(crate) fn frame(opcode: u8, text: &[u8]) -> Vec<u8> {
    [
        frame_header(opcode, true, text.len() as u64).as_slice(),
        text,
    ]
    .concat()
}

/// Accepts every certificate and every signature: an attacker need not know to whom it connects.
#[derive(Debug)]
struct TrustsAnybody;

impl ServerCertVerifier for TrustsAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
