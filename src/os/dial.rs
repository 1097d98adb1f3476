//! Connects to a coordinator over TLS 1.3, whose key must be the one pinned in the join token.
//!
//! Names and validity times in the certificate do not count: the pin does. So a coordinator may move to
//! another address, and a clock that is wrong keeps nobody out. Nodes connect in this way, and a coordinator does so to
//! check its own URLs.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::CertificateError;
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tcp::connect_any;
use super::{proxy, tls};
use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;

/// How long the lookup of the coordinator's name may take.
const LOOKUP_LIMIT: Duration = Duration::from_secs(3);
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
    /// The name in the URL has no address.
    #[error(
        "the name {} in the coordinator's URL {url} does not resolve on this machine ({why}); make it resolve here, for example in /etc/hosts",
        url.host()
    )]
    Unresolved {
        /// The URL.
        url: CoordinatorUrl,
        /// The reason that the resolver gave.
        why: String,
    },
    /// There is no TCP connection.
    #[error("cannot reach the coordinator at {url}: {why}; {}", .obstacle.remedy())]
    Unreachable {
        /// The URL.
        url: CoordinatorUrl,
        /// The reason that the system gave.
        why: String,
        /// What kind of reason it is.
        obstacle: Obstacle,
    },
    /// Something answers, but not a coordinator.
    #[error(
        "what answers at {url} is no mesh-coordinator ({why}); check the address, or the `public_urls` the token was made with"
    )]
    NotACoordinator {
        /// The URL.
        url: CoordinatorUrl,
        /// What went wrong.
        why: String,
    },
    /// A TLS server with another key.
    #[error(
        "the server at {url} is not the coordinator this token was made for: its key is not the one pinned in the token. Nothing was sent to it. If the coordinator was set up anew, make a new token with `meshctl token create`; if a proxy answers there, let it pass TCP through and not end TLS"
    )]
    Pin {
        /// The URL.
        url: CoordinatorUrl,
    },
}

impl DialError {
    /// The reason without the URL and without a remedy, for the coordinator that dials itself.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Unresolved { url, why } => {
                format!("the name {} does not resolve ({why})", url.host())
            }
            Self::Unreachable { why, .. } => why.clone(),
            Self::NotACoordinator { why, .. } => {
                format!("what answers there is no mesh-coordinator ({why})")
            }
            Self::Pin { .. } => "a server with another TLS key answers there".to_owned(),
        }
    }
}

/// What keeps TCP from a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// The machine answers that nothing listens on the port.
    Refused,
    /// Nothing answers.
    Silence,
    /// The system reports another reason, such as a missing route.
    Other,
}

impl Obstacle {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::Silence,
            _ => Self::Other,
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Refused => {
                "that machine answers, but nothing listens on this port: start mesh-coordinator there (`systemctl start mesh-coordinator`), or check the port"
            }
            Self::Silence => {
                "check that mesh-coordinator runs there, and that its TCP port is open in every firewall and cloud security group between"
            }
            Self::Other => "check that mesh-coordinator runs there and that its TCP port is open",
        }
    }
}

/// Opens a connection to `url` and checks the pin before anything is sent.
///
/// # Errors
/// Tells a name without an address from a coordinator that is away, from something that is none, and from a wrong key.
pub async fn dial(url: &CoordinatorUrl, pin: SpkiPin) -> Result<TlsStream<TcpStream>, DialError> {
    let unreachable = |why: String, obstacle| DialError::Unreachable {
        url: url.clone(),
        why,
        obstacle,
    };
    let tcp = match connect(url).await {
        Ok(tcp) => tcp,
        Err(error) => through_proxy(url, error).await?,
    };
    // Small messages both ways: waiting to fill a segment only adds delay.
    let _ = tcp.set_nodelay(true);
    // The kernel asks, and answers, without either program: a busy coordinator is not taken for one that is gone.
    let socket = SockRef::from(&tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(IDLE)
        .with_interval(Duration::from_secs(1));
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(UNANSWERED));
    let name = ServerName::try_from(url.host().to_owned())
        .map_err(|error| unreachable(error.to_string(), Obstacle::Other))?;
    let connector = TlsConnector::from(Arc::new(tls::client_of_pin(pin)));
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

/// Connects without a proxy.
async fn connect(url: &CoordinatorUrl) -> Result<TcpStream, DialError> {
    let unreachable = |why: String, obstacle| DialError::Unreachable {
        url: url.clone(),
        why,
        obstacle,
    };
    let addresses = resolve(url).await?;
    timeout(CONNECT_LIMIT, connect_any(&addresses))
        .await
        .map_err(|_| unreachable("no answer within 3 seconds".into(), Obstacle::Silence))?
        .map_err(|error| unreachable(error.to_string(), Obstacle::of(&error)))
}

/// Connects through the proxy of this process, after `direct` has shown that there is no other way. A coordinator is often inside a
/// private network, to which the proxy does not lead, so the proxy comes second.
async fn through_proxy(url: &CoordinatorUrl, direct: DialError) -> Result<TcpStream, DialError> {
    let proxies = proxy::of_process();
    if proxies.of(url.host(), url.port()).is_none() {
        return Err(direct);
    }
    let tcp = proxies.connect(url.host(), url.port()).await;
    tcp.map_err(|error| DialError::Unreachable {
        url: url.clone(),
        why: format!("{}; {error}", direct.reason()),
        obstacle: Obstacle::Other,
    })
}

/// The addresses of the coordinator.
async fn resolve(url: &CoordinatorUrl) -> Result<Vec<SocketAddr>, DialError> {
    let unresolved = |why: String| DialError::Unresolved {
        url: url.clone(),
        why,
    };
    let found = timeout(LOOKUP_LIMIT, lookup_host(url.authority()))
        .await
        .map_err(|_| unresolved("the resolver does not answer within 3 seconds".into()))?
        .map_err(|error| {
            let text = error.to_string();
            // The C library's reason follows this text of the standard library.
            let reason = text.strip_prefix("failed to lookup address information: ");
            unresolved(reason.unwrap_or(&text).to_owned())
        })?;
    let addresses: Vec<SocketAddr> = found.collect();
    if addresses.is_empty() {
        return Err(unresolved("it has no address".into()));
    }
    Ok(addresses)
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn failure(url: &str) -> DialError {
        let url = url.parse().expect("a URL");
        let failed = dial(&url, SpkiPin([0; 32])).await;
        failed.map(drop).expect_err("there is no coordinator")
    }

    #[tokio::test]
    async fn a_name_without_an_address_and_a_closed_port_are_told_apart() {
        // The domain never has names (RFC 6761 section 6.4).
        let unresolved = failure("https://coordinator.invalid:7443").await;
        assert!(
            matches!(unresolved, DialError::Unresolved { .. }),
            "{unresolved}"
        );
        let text = unresolved.to_string();
        assert!(text.contains("the name coordinator.invalid "), "{text}");
        assert!(!text.contains("failed to lookup"), "{text}");

        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = closed.local_addr().expect("it is bound").port();
        drop(closed);
        let refused = failure(&format!("https://127.0.0.1:{port}")).await;
        assert!(
            matches!(
                refused,
                DialError::Unreachable {
                    obstacle: Obstacle::Refused,
                    ..
                }
            ),
            "{refused}"
        );
        assert!(refused.to_string().contains("nothing listens"), "{refused}");
    }
}
