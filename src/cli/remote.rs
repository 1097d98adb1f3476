//! Sends requests to the API over the network: of a coordinator over TLS, or of a node through the tunnel (`meshctl --api`).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::exit::CliError;
use super::opened_token;
use crate::model::address::is_public;
use crate::model::authority;
use crate::os::dial::dial;
use crate::os::file::open_regular;
use crate::os::http::{self, Answer, HttpError, Limits, Method, Request};
use crate::os::tcp::connect_any;
use crate::os::token_file::TokenReadError;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::api_token::{ApiToken, PREFIX};
use crate::protocol::url::CoordinatorUrl;
use crate::protocol::web::problem::Problem;
use crate::protocol::web::{COORDINATOR_PREFIX, PORT};

/// How long the address of a node may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What the paths of the local APIs begin with.
const LOCAL_PREFIX: &str = "/v1/";

/// Where the API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ApiUrl {
    /// `https://HOST:PORT`
    Coordinator(CoordinatorUrl),
    /// `http://HOST:PORT`
    Node { host: String, port: u16 },
}

/// The API of a coordinator or a node, and the token for it.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    url: ApiUrl,
    token: ApiToken,
}

impl ApiUrl {
    /// Parses the value of `--api`.
    ///
    /// # Errors
    /// It is no such URL.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            "it is https://HOST:PORT of a coordinator or http://HOST of a node, such as https://coord.example.com:7443 or http://web-1.node.mesh"
                .to_owned()
        };
        if text.starts_with("https://") {
            return text.parse().map(Self::Coordinator).map_err(|_| wrong());
        }
        let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = authority::split(rest).ok_or_else(wrong)?;
        Ok(Self::Node {
            host: host.to_owned(),
            port: port.unwrap_or(PORT),
        })
    }

    fn authority(&self) -> String {
        match self {
            Self::Coordinator(url) => url.authority(),
            Self::Node { host, port } => authority::join(host, Some(*port)),
        }
    }

    /// The path of a call of the local API or of the admin API.
    fn path(&self, path: &str) -> String {
        match (self, path.strip_prefix(LOCAL_PREFIX)) {
            (Self::Coordinator(_), Some(rest)) => format!("{COORDINATOR_PREFIX}{rest}"),
            _ => path.to_owned(),
        }
    }
}

impl std::fmt::Display for ApiUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Coordinator(url) => write!(f, "{url}"),
            Self::Node { .. } => write!(f, "http://{}", self.authority()),
        }
    }
}

impl Remote {
    /// Reads the token for `url` from a file.
    ///
    /// # Errors
    /// The file has no API token.
    pub(super) fn open(url: ApiUrl, file: &Path) -> Result<Self, CliError> {
        // Other messages repeat the name of the file, and a token is a secret.
        if file.to_string_lossy().starts_with(PREFIX) {
            return Err(CliError::new(
                ErrorCode::BadRequest,
                "--api-token-file has the token itself; write the token to a file that only you can read, and give the name of this file",
            ));
        }
        let name = file.display();
        let unreadable = |error: TokenReadError| {
            let text = format!(
                "cannot read the API token from {name}: {error}; the file holds what `meshctl api-token create` printed"
            );
            CliError::new(opened_token::code(&error), text)
        };
        let opened = open_regular(file).map_err(|error| unreadable(error.into()))?;
        let text = opened_token::read(opened, file).map_err(unreadable)?;
        let token = ApiToken::parse(&text)
            .map_err(|error| CliError::new(ErrorCode::BadRequest, format!("{name}: {error}")))?;
        Ok(Self { url, token })
    }

    /// The API at `url`, with the same token.
    pub(super) fn at(&self, url: ApiUrl) -> Self {
        Self {
            url,
            token: self.token.clone(),
        }
    }

    /// Sends one request.
    ///
    /// # Errors
    /// The API is not reached, or does not answer.
    pub(super) async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        limits: Limits,
    ) -> Result<Answer, CliError> {
        let request = Request::new(method, &self.url.path(path))
            .host(self.url.authority())
            .bearer(&self.token.text())
            .json(body);
        let answer = match &self.url {
            ApiUrl::Coordinator(url) => {
                let stream = dial(url, self.token.pin()).await;
                let stream = stream.map_err(|error| self.unreachable(&error.reason()))?;
                http::call(stream, request, limits).await
            }
            ApiUrl::Node { .. } => {
                let stream = self.connect().await?;
                http::call(stream, request, limits).await
            }
        };
        answer.map_err(|error| match error {
            HttpError::Request(_) => CliError::unsendable_name(),
            error => self.unreachable(&error.to_string()),
        })
    }

    /// Reads the document in an answer.
    ///
    /// # Errors
    /// The answer reports a failure, or is not one of the API.
    pub(super) fn parse<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, CliError> {
        if !answer.status.is_success() {
            let problem: Result<Problem, _> = serde_json::from_slice(&answer.body);
            return Err(match problem {
                Ok(problem) => ApiError::from(problem).into(),
                Err(_) => self.other_program(answer),
            });
        }
        serde_json::from_slice(&answer.body).map_err(|_| self.other_program(answer))
    }

    /// Connects to a node. The tunnel encrypts what is sent to a mesh address, and nothing else would.
    async fn connect(&self) -> Result<TcpStream, CliError> {
        let connected = async {
            let found = lookup_host(self.url.authority()).await;
            let addresses: Vec<SocketAddr> = found.map_err(|error| error.to_string())?.collect();
            if addresses.iter().any(|address| may_be_public(address.ip())) {
                return Err(
                    "it may be an address of the internet, to which a token must not be sent without TLS; name the mesh address of the node, or the URL of the coordinator"
                        .to_owned(),
                );
            }
            let stream = connect_any(&addresses).await;
            stream.map_err(|error| error.to_string())
        };
        match timeout(CONNECT_TIMEOUT, connected).await {
            Ok(connected) => connected.map_err(|why| self.unreachable(&why)),
            Err(_) => {
                let limit = CONNECT_TIMEOUT.as_secs();
                Err(self.unreachable(&format!("no answer within {limit} seconds")))
            }
        }
    }

    fn unreachable(&self, why: &str) -> CliError {
        let remedy = match &self.url {
            ApiUrl::Coordinator(_) => "check the URL, and that mesh-coordinator runs there",
            ApiUrl::Node { .. } => {
                "check the name, that the node has `[api] enabled = true`, and that the policy lets this machine reach its port"
            }
        };
        CliError::new(
            ErrorCode::Unreachable,
            format!("the API at {} is not reached: {why}; {remedy}", self.url),
        )
    }

    fn other_program(&self, answer: &Answer) -> CliError {
        let text = format!(
            "the program at {} is not the API of meshd or mesh-coordinator, or has another version (HTTP status {}); check --api",
            self.url,
            answer.status.as_u16()
        );
        CliError::new(ErrorCode::Unreachable, text)
    }
}

/// Whether what is sent to `address` may leave the machine for the internet. Some IPv6 addresses contain a public address of IPv4, in
/// the well-known prefix of translators (RFC 6052 section 2.1) for example, so only those of IPv6 that are for private use are not public.
fn may_be_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V6(v6) => !(v6.is_unique_local() || v6.is_loopback()),
        v4 @ IpAddr::V4(_) => is_public(v4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_sent_without_tls_to_private_addresses_alone() {
        let may_be_public = |text: &str| may_be_public(text.parse().expect("a literal"));
        for private in [
            "10.210.1.1",
            "192.168.1.1",
            "127.0.0.1",
            "::1",
            "fd00::1",
            "::ffff:10.210.1.1",
        ] {
            assert!(!may_be_public(private), "{private}");
        }
        for public in [
            "192.0.2.1",
            "2001:db8::1",
            "::ffff:192.0.2.1",
            "64:ff9b::192.0.2.1",
            "64:ff9b:1::192.0.2.1",
            "::192.0.2.1",
        ] {
            assert!(may_be_public(public), "{public}");
        }
    }

    #[test]
    fn a_url_names_a_coordinator_or_a_node() {
        let shown = |text: &str| ApiUrl::parse(text).map(|url| url.to_string());
        for (text, url) in [
            (
                "https://coord.example.com",
                "https://coord.example.com:7443",
            ),
            ("http://web-1.node.mesh", "http://web-1.node.mesh:7447"),
            ("http://10.210.1.1:8080/", "http://10.210.1.1:8080"),
            ("http://[fd00::1]", "http://[fd00::1]:7447"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(url));
        }
        for wrong in [
            "",
            "web-1",
            "http://",
            "ftp://a",
            "http://a/b",
            "https://a/v1",
            "http://a:0",
        ] {
            assert!(
                shown(wrong).is_err_and(|why| why.contains("such as")),
                "{wrong}"
            );
        }
    }

    #[test]
    fn the_calls_of_a_coordinator_are_below_one_path() {
        let coordinator = ApiUrl::parse("https://coord.example.com").expect("a URL");
        assert_eq!(coordinator.path("/v1/nodes"), "/v1/api/nodes");
        let node = ApiUrl::parse("http://web-1.node.mesh").expect("a URL");
        assert_eq!(node.path("/v1/status"), "/v1/status");
    }
}
