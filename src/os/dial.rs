//! Connects to a coordinator over TLS 1.3, whose key must be the one pinned in the join token.
//!
//! Names and validity times in the certificate do not count: the pin does. So a coordinator may move to
//! another address, and a clock that is wrong keeps nobody out.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;

/// How long TCP may take: the first packet is sent a second time after one second. Another coordinator may answer at once.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long TLS may take: many nodes may come back to a coordinator together.
const TLS_LIMIT: Duration = Duration::from_secs(5);
/// A connection on which nothing came for this long is looked at.
const IDLE: Duration = Duration::from_secs(2);
/// A machine that acknowledges nothing for this long is gone.
const UNANSWERED: Duration = Duration::from_secs(4);

/// Why there is no connection to a coordinator.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Name lookup or TCP failed.
    #[error(
        "cannot reach the coordinator at {url}: {why}; check that mesh-coordinator runs there and that its TCP port is open"
    )]
    Unreachable {
        /// Where.
        url: CoordinatorUrl,
        /// What the system said.
        why: String,
    },
    /// Something answers, but not a coordinator.
    #[error(
        "what answers at {url} is no mesh-coordinator ({why}); check the address, or the `public_urls` the token was made with"
    )]
    NotACoordinator {
        /// Where.
        url: CoordinatorUrl,
        /// What went wrong.
        why: String,
    },
    /// A TLS server with another key.
    #[error(
        "the server at {url} is not the coordinator this token was made for: its key is not the one pinned in the token. Nothing was sent to it. If the coordinator was set up anew, make a new token with `meshctl token create`"
    )]
    Pin {
        /// Where.
        url: CoordinatorUrl,
    },
}

/// Opens a connection to `url` and checks the pin before anything is sent.
///
/// # Errors
/// Tells a coordinator that is away from something that is none, and both from a wrong key.
pub async fn dial(url: &CoordinatorUrl, pin: SpkiPin) -> Result<TlsStream<TcpStream>, DialError> {
    let unreachable = |why: String| DialError::Unreachable {
        url: url.clone(),
        why,
    };
    let tcp = timeout(CONNECT_LIMIT, TcpStream::connect(url.authority()))
        .await
        .map_err(|_| unreachable("no answer within 3 seconds".into()))?
        .map_err(|e| unreachable(e.to_string()))?;
    // Small messages both ways: waiting to fill a segment only adds delay.
    let _ = tcp.set_nodelay(true);
    // The kernel asks, and answers, without either program: a busy coordinator is not taken for one that is gone.
    let socket = SockRef::from(&tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(IDLE)
        .with_interval(Duration::from_secs(1));
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(UNANSWERED));
    let name =
        ServerName::try_from(url.host().to_owned()).map_err(|e| unreachable(e.to_string()))?;
    let connector = TlsConnector::from(Arc::new(client_config(pin)));
    match timeout(TLS_LIMIT, connector.connect(name, tcp)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if is_pin_mismatch(&error) => Err(DialError::Pin { url: url.clone() }),
        Ok(Err(error)) => Err(DialError::NotACoordinator {
            url: url.clone(),
            why: error.to_string(),
        }),
        Err(_) => Err(DialError::NotACoordinator {
            url: url.clone(),
            why: "no TLS handshake within 5 seconds".into(),
        }),
    }
}

fn is_pin_mismatch(error: &std::io::Error) -> bool {
    matches!(
        error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>()),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::ApplicationVerificationFailure
        ))
    )
}

fn client_config(pin: SpkiPin) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinVerifier { pin, provider }))
        .with_no_client_auth()
}

/// Accepts a certificate whose public key has the pinned hash, and nothing else.
#[derive(Debug)]
struct PinVerifier {
    pin: SpkiPin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (_, certificate) = x509_parser::parse_x509_certificate(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let found: [u8; 32] = Sha256::digest(certificate.tbs_certificate.subject_pki.raw).into();
        if found == self.pin.0 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
