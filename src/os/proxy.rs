//! TCP connections through an HTTP proxy (CONNECT, RFC 9110 section 9.3.6), as networks have them that let nothing else out.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::tcp::connect_any;
use crate::model::authority;
use crate::model::text::printable;

/// The maximum length of the URL of a proxy, in bytes.
const MAX_URL: usize = 512;
/// The port of a proxy whose URL has none.
const PORT: u16 = 3128;
/// How long the lookup of a name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a proxy may take to connect and to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum size of the head of a proxy's answer, in bytes.
const MAX_HEAD: usize = 8 * 1024;

/// The URL of a proxy: `http://[user:password@]host[:port]`.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    host: String,
    port: u16,
    /// The value of `Proxy-Authorization`, if there are a user and a password.
    authorization: Option<String>,
}

/// The reason why a text is not the URL of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "write http://HOST:PORT, such as \"http://proxy.example.com:3128\"; only HTTP proxies with CONNECT are supported"
)]
pub struct NoProxyUrl;

impl std::str::FromStr for ProxyUrl {
    type Err = NoProxyUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |c: char| c.is_ascii_graphic();
        if text.len() > MAX_URL || !text.chars().all(is_plain) {
            return Err(NoProxyUrl);
        }
        // Some systems write the variable without a scheme.
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => return Err(NoProxyUrl),
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(unescaped(user)), place),
            None => (None, rest),
        };
        let (host, port) = match place.parse::<Ipv6Addr>() {
            // Some write no brackets around an address.
            Ok(_) => (place, None),
            Err(_) => authority::split(place).ok_or(NoProxyUrl)?,
        };
        Ok(Self {
            host: host.to_owned(),
            port: port.unwrap_or(PORT),
            authorization: user.map(|user| format!("Basic {}", STANDARD.encode(user))),
        })
    }
}

/// The text in which `%41` stands for `A` (RFC 3986 section 2.1).
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().iter();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let digits = bytes.as_slice().get(..2);
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escaped.filter(|_| *byte == b'%') {
            Some(escaped) => {
                plain.push(escaped);
                bytes.nth(1);
            }
            None => plain.push(*byte),
        }
    }
    plain
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", authority::join(&self.host, Some(self.port)))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Which connections go through a proxy. A clone is cheap.
#[derive(Debug, Clone, Default)]
pub struct Proxies(Arc<Settings>);

#[derive(Debug, Default)]
struct Settings {
    proxy: Option<ProxyUrl>,
    /// The hosts that are reached without it.
    exempt: Vec<Exempt>,
}

#[derive(Debug, PartialEq, Eq)]
enum Exempt {
    All,
    Net(IpNet),
    /// A host and all below it, and perhaps only with one port.
    Domain(String, Option<u16>),
}

impl Exempt {
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::All);
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return Some(Self::Net(net));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Net(address.into()));
        }
        let text = text.strip_prefix('*').unwrap_or(text);
        let (host, port) = authority::split(text.trim_start_matches('.'))?;
        Some(Self::Domain(host.to_ascii_lowercase(), port))
    }

    fn has(&self, host: &str, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Net(net) => host.parse().is_ok_and(|ip: IpAddr| net.contains(&ip)),
            Self::Domain(domain, of) => {
                let host = host.to_ascii_lowercase();
                let above = host.strip_suffix(domain.as_str());
                let is_below = above.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                is_below && of.is_none_or(|of| of == port)
            }
        }
    }
}

impl Proxies {
    /// The proxy that is `set`, or else the one that the variables of the environment name: `HTTPS_PROXY`, then `ALL_PROXY`.
    /// `NO_PROXY` lists the hosts that are reached without it. `variable` returns the value of one.
    #[must_use]
    pub fn new(set: Option<ProxyUrl>, variable: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            let value = variable(name).or_else(|| variable(&name.to_ascii_lowercase()));
            value.filter(|value| !value.is_empty())
        };
        let named = || {
            let text = either("HTTPS_PROXY").or_else(|| either("ALL_PROXY"))?;
            text.parse().ok()
        };
        let exempt = either("NO_PROXY").unwrap_or_default();
        let exempt = exempt.split([',', ' ']).map(str::trim);
        Self(Arc::new(Settings {
            proxy: set.or_else(named),
            exempt: exempt.filter_map(Exempt::parse).collect(),
        }))
    }

    /// As [`Proxies::new`], with the environment of this process.
    #[must_use]
    pub fn from_environment(set: Option<ProxyUrl>) -> Self {
        Self::new(set, |name| std::env::var(name).ok())
    }

    /// The proxy for connections to this host.
    #[must_use]
    pub fn of(&self, host: &str, port: u16) -> Option<&ProxyUrl> {
        let mut exempt = self.0.exempt.iter();
        let proxy = self.0.proxy.as_ref()?;
        (!exempt.any(|exempt| exempt.has(host, port))).then_some(proxy)
    }

    /// Connects to a host, through a proxy if there is one for it.
    ///
    /// # Errors
    /// There is no connection. The text says whether the proxy is the reason.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let Some(proxy) = self.of(host, port) else {
            return connect(host, port).await;
        };
        let through = |error: io::Error| {
            io::Error::new(error.kind(), format!("through the proxy {proxy}: {error}"))
        };
        let tcp = connect(&proxy.host, proxy.port).await.map_err(through)?;
        let to = authority::join(host, Some(port));
        let asked = timeout(ANSWER_TIMEOUT, ask(tcp, proxy, &to)).await;
        asked
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
            .flatten()
            .map_err(through)
    }
}

static OF_PROCESS: OnceLock<Proxies> = OnceLock::new();

/// Sets the proxies for the connections of this process that have no other setting. The first call counts.
pub fn set_of_process(proxies: Proxies) {
    let _ = OF_PROCESS.set(proxies);
}

/// The proxies that were set, or those of the environment.
#[must_use]
pub fn of_process() -> Proxies {
    OF_PROCESS
        .get_or_init(|| Proxies::from_environment(None))
        .clone()
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = timeout(LOOKUP_TIMEOUT, lookup_host((host, port)));
    let addresses = addresses
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the resolver does not answer"))??;
    let addresses: Vec<_> = addresses.collect();
    timeout(CONNECT_TIMEOUT, connect_any(&addresses))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 seconds"))?
}

/// Asks the proxy at the other end of `tcp` for a connection.
async fn ask(mut tcp: TcpStream, proxy: &ProxyUrl, to: &str) -> io::Result<TcpStream> {
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
    if let Some(authorization) = &proxy.authorization {
        request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    request.push_str("\r\n");
    tcp.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err(io::Error::other("its answer is too long"));
        }
        // What follows the head belongs to the connection, so no byte more is read.
        head.push(tcp.read_u8().await?);
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    match words.next() {
        Some(code) if is_http && code.len() == 3 && code.starts_with('2') => Ok(tcp),
        _ => {
            let answer = printable(&line, 100);
            Err(io::Error::other(format!("it answers {answer}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::new(None, |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn urls_of_proxies_are_read_and_no_password_is_shown() {
        for (text, shown) in [
            ("http://proxy:3128", "http://proxy:3128"),
            ("http://proxy/", "http://proxy:3128"),
            ("proxy:8080", "http://proxy:8080"),
            ("http://[::1]:1", "http://[::1]:1"),
            ("http://fd00::1", "http://[fd00::1]:3128"),
            ("http://a%40b:p%zz@proxy:1", "http://proxy:1"),
        ] {
            let url: ProxyUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
        let url: ProxyUrl = "http://a%40b:p%zz@proxy:1".parse().expect("valid");
        let expected = format!("Basic {}", STANDARD.encode("a@b:p%zz"));
        assert_eq!(url.authorization, Some(expected));
        for text in [
            "",
            "socks5://proxy:1",
            "https://proxy:1",
            "http://",
            "http://a:0",
            "a b",
        ] {
            assert_eq!(text.parse::<ProxyUrl>(), Err(NoProxyUrl), "{text}");
        }
    }

    #[test]
    fn the_variables_of_the_environment_name_a_proxy_and_its_exceptions() {
        let all = proxies(&[("all_proxy", "http://b:1"), ("HTTPS_PROXY", "http://a:1")]);
        assert_eq!(
            all.of("x", 443).map(ToString::to_string).as_deref(),
            Some("http://a:1")
        );
        let lower = proxies(&[("all_proxy", "http://b:1"), ("HTTPS_PROXY", "")]);
        assert_eq!(
            lower.of("x", 443).map(ToString::to_string).as_deref(),
            Some("http://b:1")
        );
        assert_eq!(proxies(&[]).of("x", 443), None);
        let no = ".example.com, 10.0.0.0/8,192.0.2.1,*.lan,host:8443";
        let some = proxies(&[("HTTPS_PROXY", "http://a:1"), ("no_proxy", no)]);
        for (host, port, is_exempt) in [
            ("example.com", 443, true),
            ("A.Example.com", 443, true),
            ("anexample.com", 443, false),
            ("10.1.2.3", 443, true),
            ("11.1.2.3", 443, false),
            ("192.0.2.1", 1, true),
            ("a.lan", 1, true),
            ("host", 8443, true),
            ("host", 443, false),
        ] {
            assert_eq!(some.of(host, port).is_none(), is_exempt, "{host}:{port}");
        }
        let none = proxies(&[("HTTPS_PROXY", "http://a:1"), ("NO_PROXY", "*")]);
        assert_eq!(none.of("x", 443), None);
    }

    /// The result of a connection through a proxy that answers with this, and what the proxy was asked.
    async fn through(answer: &'static [u8]) -> (io::Result<TcpStream>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let serve = async {
            let (mut tcp, _) = listener.accept().await.expect("a connection");
            let mut asked = [0; 1024];
            let length = tcp.read(&mut asked).await.expect("a request");
            tcp.write_all(answer).await.expect("connected");
            String::from_utf8_lossy(&asked[..length]).into_owned()
        };
        let url = format!("http://u:p@127.0.0.1:{port}");
        let proxies = Proxies::new(url.parse().ok(), |_| None);
        tokio::join!(proxies.connect("2001:db8::1", 443), serve)
    }

    #[tokio::test]
    async fn a_proxy_is_asked_for_a_connection_and_what_follows_its_answer_is_not_lost() {
        let (tcp, asked) =
            through(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nrest").await;
        let expected = "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\nProxy-Authorization: Basic dTpw\r\n\r\n";
        assert_eq!(asked, expected);
        let mut rest = String::new();
        let mut tcp = tcp.expect("connected");
        tcp.read_to_string(&mut rest).await.expect("text");
        assert_eq!(rest, "rest");
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named_with_its_answer() {
        for (answer, part) in [
            (&b"HTTP/1.1 403 Forbidden\r\n\r\n"[..], "403 Forbidden"),
            (b"SSH-2.0-x\r\n\r\n", "SSH-2.0-x"),
            (b"HTTP/1.1 200", "through the proxy"),
        ] {
            let (tcp, _) = through(answer).await;
            let error = tcp.expect_err("refused").to_string();
            assert!(
                error.contains(part) && error.contains("127.0.0.1"),
                "{error}"
            );
        }
    }
}
