//! Parses requests and writes answers.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::super::status::PeerStatus;

/// The maximum size of a request in bytes: enough for some thousands of peers.
pub const MAX_REQUEST: usize = 4 * 1024 * 1024;

/// A parsed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// `get=1`.
    Get,
    /// `set=1`.
    Set(Box<SetRequest>),
}

/// The content of a `set=1` request. An absent value stays as it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SetRequest {
    /// The private key of the device; all zeros remove it.
    pub private_key: Option<[u8; 32]>,
    /// The UDP port.
    pub listen_port: Option<u16>,
    /// The firewall mark; 0 removes it.
    pub fwmark: Option<u32>,
    /// Whether peers that the request does not name are removed.
    pub replace_peers: bool,
    /// The peers to add or change, in order.
    pub peers: Vec<PeerChange>,
}

impl std::fmt::Debug for SetRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetRequest")
            .field("listen_port", &self.listen_port)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

/// A change to one peer.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PeerChange {
    /// The public key of the peer.
    pub public_key: [u8; 32],
    /// Whether to remove the peer.
    pub remove: bool,
    /// Whether the change applies only if the peer exists.
    pub update_only: bool,
    /// The preshared key; all zeros remove it.
    pub preshared_key: Option<[u8; 32]>,
    pub endpoint: Option<SocketAddr>,
    /// The keepalive interval in seconds; 0 for none.
    pub persistent_keepalive: Option<u16>,
    /// Whether allowed IPs that the request does not name are removed.
    pub replace_allowed_ips: bool,
    /// The allowed IPs to add (true) or remove (false).
    pub allowed_ips: Vec<(IpNet, bool)>,
}

impl std::fmt::Debug for PeerChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerChange({:02x?})", self.public_key.first_chunk::<4>())
    }
}

/// A request that cannot be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestError {
    /// The `errno` of the answer.
    pub errno: i32,
}

const INVALID: RequestError = RequestError {
    errno: libc::EINVAL,
};
const PROTOCOL: RequestError = RequestError {
    errno: libc::EPROTO,
};

impl Request {
    /// Parses the lines of a request.
    ///
    /// # Errors
    /// A key is unknown, or a value is invalid.
    pub fn parse(text: &str) -> Result<Self, RequestError> {
        let mut lines = text.lines().filter(|line| !line.is_empty());
        match lines.next() {
            Some("get=1") => {
                if lines.next().is_none() {
                    Ok(Self::Get)
                } else {
                    Err(PROTOCOL)
                }
            }
            Some("set=1") => {
                let mut set = SetRequest::default();
                for line in lines {
                    let (key, value) = line.split_once('=').ok_or(PROTOCOL)?;
                    set.take(key, value)?;
                }
                Ok(Self::Set(Box::new(set)))
            }
            _ => Err(PROTOCOL),
        }
    }
}

impl SetRequest {
    fn take(&mut self, key: &str, value: &str) -> Result<(), RequestError> {
        if key == "public_key" {
            self.peers.push(PeerChange {
                public_key: parse_key(value)?,
                ..PeerChange::default()
            });
            return Ok(());
        }
        if let Some(peer) = self.peers.last_mut() {
            return peer.take(key, value);
        }
        match key {
            "private_key" => self.private_key = Some(parse_key(value)?),
            "listen_port" => self.listen_port = Some(value.parse().map_err(|_| INVALID)?),
            "fwmark" => self.fwmark = Some(parse_mark(value)?),
            "replace_peers" => self.replace_peers = parse_true(value)?,
            _ => return Err(PROTOCOL),
        }
        Ok(())
    }
}

impl PeerChange {
    fn take(&mut self, key: &str, value: &str) -> Result<(), RequestError> {
        match key {
            "remove" => self.remove = parse_true(value)?,
            "update_only" => self.update_only = parse_true(value)?,
            "preshared_key" => self.preshared_key = Some(parse_key(value)?),
            "endpoint" => self.endpoint = Some(value.parse().map_err(|_| INVALID)?),
            "persistent_keepalive_interval" => {
                self.persistent_keepalive = Some(value.parse().map_err(|_| INVALID)?)
            }
            "replace_allowed_ips" => self.replace_allowed_ips = parse_true(value)?,
            "allowed_ip" => {
                let (net, add) = value
                    .strip_prefix('-')
                    .map_or((value, true), |net| (net, false));
                let net: IpNet = net.parse().map_err(|_| INVALID)?;
                self.allowed_ips.push((net.trunc(), add));
            }
            "protocol_version" if value == "1" => {}
            "protocol_version" => {
                return Err(RequestError {
                    errno: libc::EOPNOTSUPP,
                });
            }
            _ => return Err(PROTOCOL),
        }
        Ok(())
    }
}

fn parse_true(value: &str) -> Result<bool, RequestError> {
    if value == "true" {
        Ok(true)
    } else {
        Err(INVALID)
    }
}

fn parse_mark(value: &str) -> Result<u32, RequestError> {
    match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => value.parse(),
    }
    .map_err(|_| INVALID)
}

fn parse_key(value: &str) -> Result<[u8; 32], RequestError> {
    value
        .parse::<crate::model::PublicKey>()
        .map(|key| key.0)
        .map_err(|_| INVALID)
}

/// A key in hexadecimal.
fn hex(key: &[u8; 32]) -> String {
    crate::model::PublicKey(*key).to_string()
}

/// The answer to `get=1`, without the line with `errno`.
#[must_use]
pub fn print(
    private_key: Option<&[u8; 32]>,
    listen_port: u16,
    mark: u32,
    peers: &[PeerStatus],
) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    // Writing to a String cannot fail.
    if let Some(key) = private_key {
        let _ = writeln!(text, "private_key={}", *Zeroizing::new(hex(key)));
    }
    let _ = writeln!(text, "listen_port={listen_port}");
    if mark != 0 {
        let _ = writeln!(text, "fwmark={mark}");
    }
    for peer in peers {
        let _ = writeln!(text, "public_key={}", hex(&peer.config.public_key));
        if let Some(key) = &peer.config.preshared_key {
            let _ = writeln!(text, "preshared_key={}", *Zeroizing::new(hex(key)));
        }
        let _ = writeln!(text, "protocol_version=1");
        if let Some(endpoint) = peer.endpoint {
            let _ = writeln!(text, "endpoint={endpoint}");
        }
        let handshake = peer
            .last_handshake
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
            .unwrap_or_default();
        let _ = writeln!(text, "last_handshake_time_sec={}", handshake.as_secs());
        let _ = writeln!(
            text,
            "last_handshake_time_nsec={}",
            handshake.subsec_nanos()
        );
        let _ = writeln!(text, "tx_bytes={}", peer.tx_bytes);
        let _ = writeln!(text, "rx_bytes={}", peer.rx_bytes);
        let _ = writeln!(
            text,
            "persistent_keepalive_interval={}",
            peer.config.persistent_keepalive.unwrap_or(0)
        );
        for net in &peer.config.allowed_ips {
            let _ = writeln!(text, "allowed_ip={net}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";

    #[test]
    fn a_request_of_wg_is_parsed() {
        let text = format!(
            "set=1\nprivate_key={KEY}\nlisten_port=51820\nfwmark=0x10\nreplace_peers=true\npublic_key={KEY}\nreplace_allowed_ips=true\n\
             preshared_key={KEY}\nendpoint=[2001:db8::1]:51820\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.9/24\nallowed_ip=-fd00::/64\n"
        );
        let Ok(Request::Set(set)) = Request::parse(&text) else {
            panic!("a set request")
        };
        assert_eq!(
            (
                set.listen_port,
                set.fwmark,
                set.replace_peers,
                set.peers.len()
            ),
            (Some(51820), Some(16), true, 1)
        );
        let nets: Vec<String> = set.peers[0]
            .allowed_ips
            .iter()
            .map(|(n, add)| format!("{add} {n}"))
            .collect();
        assert_eq!(nets, ["true 10.0.0.0/24", "false fd00::/64"]);
        assert_eq!(Request::parse("get=1\n"), Ok(Request::Get));
    }

    #[test]
    fn an_invalid_request_has_its_errno() {
        assert_eq!(Request::parse("get=2"), Err(PROTOCOL));
        assert_eq!(Request::parse("set=1\nlisten_port=70000"), Err(INVALID));
        assert_eq!(Request::parse("set=1\nnonsense=1"), Err(PROTOCOL));
        assert_eq!(
            Request::parse("set=1\nremove=true"),
            Err(PROTOCOL),
            "no peer yet"
        );
        assert_eq!(
            Request::parse(&format!("set=1\npublic_key={KEY}\nallowed_ip=10.0.0.0/33")),
            Err(INVALID)
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_request_or_an_error(text in "(set=1\n)?([a-z_]{1,30}=[ -~]{0,70}\n){0,10}") {
            let _ = Request::parse(&text);
        }
    }
}
