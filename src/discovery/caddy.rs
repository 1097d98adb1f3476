//! Sites as a configuration of Caddy 2, which its HTTP loader polls.
//!
//! Caddy replaces its whole configuration by the one that it loads. So each configuration contains the loader as well, and Caddy polls
//! again. If Caddy loads the same bytes again, it changes nothing and ends no connection.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::sites::Site;
use crate::model::authority;
use crate::model::text::printable;

/// The path at which the configuration is served.
pub const PATH: &str = "/v1/caddy";
/// The addresses at which Caddy listens if the request names none.
const DEFAULT_LISTEN: &str = ":443";
/// The maximum number of addresses at which Caddy listens.
const MAX_LISTEN: usize = 4;
/// The pause between two loads.
const LOAD_DELAY: &str = "5s";
const LOAD_TIMEOUT: &str = "10s";
/// How long a request is tried at other servers before it fails. Caddy repeats no request whose server may have received it, unless it is
/// a GET.
const TRY_DURATION: &str = "5s";
/// How long a server that did not answer is left out.
const FAIL_DURATION: &str = "10s";

/// The parameters of a request for the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The addresses at which Caddy listens, such as `:443`.
    pub listen: Vec<String>,
    /// Whether Caddy gets certificates and speaks TLS, on ports other than 80.
    pub has_https: bool,
    /// The URL at which Caddy polls for the next configuration.
    pub source: Option<String>,
}

/// Why a request cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WantedError {
    #[error(
        "the query has `{0}`; `listen=ADDRESS` and `https=off` are possible, such as {PATH}?listen=:8080&https=off"
    )]
    Key(String),
    #[error(
        "`{0}` is no address to listen at; write a port, such as `:8080`, or an address and a port, such as `192.0.2.1:8080`"
    )]
    Listen(String),
    #[error("the query has `listen` {0} times; {MAX_LISTEN} times are the most")]
    TooMany(usize),
}

impl Wanted {
    /// Reads a request: the query of its URL, and the header `Host`. Caddy polls the host that this request named; without a port in it,
    /// as in requests over a Unix socket, there is nothing to poll.
    ///
    /// # Errors
    /// The query has an unknown parameter, a wrong address, or too many addresses.
    pub fn parse(query: Option<&str>, host: Option<&str>) -> Result<Self, WantedError> {
        let query = query.unwrap_or_default();
        let (mut listen, mut has_https) = (Vec::new(), true);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("listen", address)) if is_listen(address) => listen.push(address.to_owned()),
                Some(("listen", other)) => return Err(WantedError::Listen(printable(other, 64))),
                Some(("https", "off")) => has_https = false,
                _ => return Err(WantedError::Key(printable(pair, 64))),
            }
        }
        if listen.len() > MAX_LISTEN {
            return Err(WantedError::TooMany(listen.len()));
        }
        let mut query: Vec<String> = listen.iter().map(|l| format!("listen={l}")).collect();
        query.extend((!has_https).then(|| "https=off".to_owned()));
        let query = match query.as_slice() {
            [] => String::new(),
            some => format!("?{}", some.join("&")),
        };
        let polled = host.and_then(authority::split);
        let source = polled.and_then(|(host, port)| {
            let authority = authority::join(host, Some(port?));
            Some(format!("http://{authority}{PATH}{query}"))
        });
        if listen.is_empty() {
            listen.push(DEFAULT_LISTEN.to_owned());
        }
        Ok(Self {
            listen,
            has_https,
            source,
        })
    }
}

/// Whether a text is `:port` or `address:port`.
fn is_listen(text: &str) -> bool {
    let port = match text.strip_prefix(':') {
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok(),
        Some(_) => None,
        None => text.parse().ok().map(|address: SocketAddr| address.port()),
    };
    port.is_some_and(|port: u16| port != 0)
}

/// Writes the configuration.
#[must_use]
pub fn configuration(sites: &[Site], wanted: &Wanted) -> Value {
    let mut routes: Vec<Value> = sites.iter().map(route).collect();
    // Caddy answers a host name without a route with 200 and nothing.
    routes.push(json!({ "handle": [{ "handler": "static_response", "status_code": 404 }] }));
    let server = json!({
        "listen": wanted.listen,
        "routes": routes,
        "automatic_https": { "disable": !wanted.has_https },
    });
    let mut configuration = json!({ "apps": { "http": { "servers": { "mesh": server } } } });
    if let Some(url) = &wanted.source {
        let load = json!({ "module": "http", "url": url, "timeout": LOAD_TIMEOUT });
        configuration["admin"] = json!({ "config": { "load": load, "load_delay": LOAD_DELAY } });
    }
    configuration
}

fn route(site: &Site) -> Value {
    let servers = site.servers.iter();
    let upstreams: Vec<Value> = servers
        .map(|server| json!({ "dial": server.to_string() }))
        .collect();
    json!({
        "match": [{ "host": [site.host] }],
        "handle": [{
            "handler": "reverse_proxy",
            "upstreams": upstreams,
            "load_balancing": {
                "selection_policy": { "policy": "round_robin" },
                "try_duration": TRY_DURATION,
            },
            "health_checks": { "passive": { "fail_duration": FAIL_DURATION } },
        }],
        "terminal": true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(query: &str, host: &str) -> Result<Wanted, WantedError> {
        Wanted::parse(Some(query), Some(host))
    }

    #[test]
    fn a_site_is_a_route_and_the_configuration_is_polled_again() {
        let sites = [
            Site::sample("shop.example.com", &["10.210.1.7:8080", "[fd00::8]:80"]),
            Site::sample("*.example.com", &["10.210.2.9:80"]),
        ];
        let wanted = wanted("listen=:80", "127.0.0.1:9560").expect("right");
        let proxy = |upstreams: Value| {
            json!([{
                "handler": "reverse_proxy",
                "upstreams": upstreams,
                "load_balancing": {
                    "selection_policy": { "policy": "round_robin" },
                    "try_duration": "5s",
                },
                "health_checks": { "passive": { "fail_duration": "10s" } },
            }])
        };
        assert_eq!(
            configuration(&sites, &wanted),
            json!({
                "admin": {
                    "config": {
                        "load": {
                            "module": "http",
                            "url": "http://127.0.0.1:9560/v1/caddy?listen=:80",
                            "timeout": "10s",
                        },
                        "load_delay": "5s",
                    },
                },
                "apps": {
                    "http": {
                        "servers": {
                            "mesh": {
                                "automatic_https": { "disable": false },
                                "listen": [":80"],
                                "routes": [
                                    {
                                        "match": [{ "host": ["shop.example.com"] }],
                                        "handle": proxy(json!([
                                            { "dial": "10.210.1.7:8080" },
                                            { "dial": "[fd00::8]:80" },
                                        ])),
                                        "terminal": true,
                                    },
                                    {
                                        "match": [{ "host": ["*.example.com"] }],
                                        "handle": proxy(json!([{ "dial": "10.210.2.9:80" }])),
                                        "terminal": true,
                                    },
                                    {
                                        "handle": [{
                                            "handler": "static_response",
                                            "status_code": 404,
                                        }],
                                    },
                                ],
                            },
                        },
                    },
                },
            })
        );
    }

    #[test]
    fn caddy_listens_for_tls_unless_the_request_says_otherwise() {
        let found = wanted("", "[fd00::1]:7447").expect("right");
        assert_eq!(found.listen, [":443"]);
        assert!(found.has_https);
        let source = found.source.as_deref();
        assert_eq!(source, Some("http://[fd00::1]:7447/v1/caddy"));
        let found = wanted("listen=:80&listen=192.0.2.1:8080&listen=[::1]:81", "meshd");
        let found = found.expect("right");
        assert_eq!(found.listen, [":80", "192.0.2.1:8080", "[::1]:81"]);
        assert_eq!(found.source, None);
        let plain = wanted("https=off&listen=:8080", "localhost:9560").expect("right");
        let source = plain.source.as_deref();
        assert_eq!(
            source,
            Some("http://localhost:9560/v1/caddy?listen=:8080&https=off")
        );
        let server = &configuration(&[], &plain)["apps"]["http"]["servers"]["mesh"];
        assert_eq!(server["automatic_https"], json!({ "disable": true }));
        let found = Wanted::parse(None, Some("{env.HOME}:80")).expect("right");
        assert_eq!(found.source, None);
    }

    #[test]
    fn a_query_with_anything_else_is_refused_with_what_is_right() {
        for (query, why) in [
            (
                "port=80",
                "the query has `port=80`; `listen=ADDRESS` and `https=off` are possible",
            ),
            ("listen", "the query has `listen`;"),
            ("listen=80", "`80` is no address to listen at"),
            ("listen=:0", "`:0` is no address to listen at"),
            ("listen=:+80", "`:+80` is no address to listen at"),
            ("listen=unix//run/x", "`unix//run/x` is no address"),
            ("listen={env.X}:80", "`{env.X}:80` is no address"),
            (
                "listen=:1&listen=:2&listen=:3&listen=:4&listen=:5",
                "the query has `listen` 5 times; 4 times are the most",
            ),
        ] {
            let error = wanted(query, "127.0.0.1:9560").expect_err(query);
            assert!(error.to_string().starts_with(why), "{error}");
        }
    }
}
