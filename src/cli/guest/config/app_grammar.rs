//! The grammar of configurations that both WireGuard apps for phones read: what one of the two refuses is refused here.
//!
//! The rules are those of `Sources/Shared/Model/TunnelConfiguration+WgQuickConfig.swift` with `Sources/WireGuardKit/Endpoint.swift`,
//! `IPAddressRange.swift` and `Sources/WireGuardKitC/key.c` of wireguard-apple, and of `Config.java`, `Interface.java`, `Peer.java`,
//! `Attribute.java`, `InetNetwork.java` and `InetEndpoint.java` in `tunnel/src/main/java/com/wireguard/config` with `crypto/Key.java` of
//! wireguard-android.
//!
//! | rule | iOS | Android |
//! |---|---|---|
//! | `#` begins a comment; case does not matter in headings and keys; unknown keys are refused | yes | yes |
//! | there is exactly one `[Interface]` | yes | several are one |
//! | a line before the first heading is refused | no | yes |
//! | a value is not empty | no | yes |
//! | a key stands once in a section, except for those of lists | yes | the last one counts |
//! | the elements of a list are not empty | they are skipped | yes |
//! | a prefix length is not longer than the address | it is cut | yes |
//! | a key has 44 characters of Base64, without bits that are cut off | yes | yes |
//! | no two peers have one public key | yes | no |

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;

/// The keys of an interface that both apps know.
const INTERFACE: [&str; 5] = ["privatekey", "address", "dns", "listenport", "mtu"];
/// The keys of a peer that both apps know.
const PEER: [&str; 5] = [
    "publickey",
    "presharedkey",
    "allowedips",
    "endpoint",
    "persistentkeepalive",
];
/// The keys that may stand several times in a section.
const LISTS: [&str; 3] = ["address", "dns", "allowedips"];

/// What an app reads from a configuration.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) private_key: [u8; 32],
    pub(super) addresses: Vec<IpNet>,
    pub(super) dns: Vec<IpAddr>,
    pub(super) peers: Vec<ReadPeer>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReadPeer {
    pub(super) public_key: [u8; 32],
    pub(super) preshared_key: Option<[u8; 32]>,
    pub(super) allowed: Vec<IpNet>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) keepalive: Option<u16>,
}

/// Reads a configuration.
///
/// # Errors
/// One of the apps, or both of them, would refuse it.
pub(super) fn read(text: &str) -> Result<Read, String> {
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        if line.starts_with('[') {
            sections.push(Section::begin(line)?);
            continue;
        }
        let section = sections.last_mut();
        section
            .ok_or_else(|| format!("{line}: it is in no section"))?
            .add(line)?;
    }
    let (interfaces, peers): (Vec<Section>, Vec<Section>) = sections
        .into_iter()
        .partition(|section| section.is_interface);
    let [interface] = interfaces.as_slice() else {
        return Err(format!("there are {} interfaces", interfaces.len()));
    };
    let peers = peers.iter().map(Section::peer);
    let peers: Vec<ReadPeer> = peers.collect::<Result<_, String>>()?;
    let keys: BTreeSet<[u8; 32]> = peers.iter().map(|peer| peer.public_key).collect();
    if keys.len() < peers.len() {
        return Err("two peers have one public key".to_owned());
    }
    for name in ["listenport", "mtu"] {
        interface.number(name)?;
    }
    Ok(Read {
        private_key: interface.required_key("privatekey")?,
        addresses: interface.list("address")?,
        dns: interface.list("dns")?,
        peers,
    })
}

struct Section {
    is_interface: bool,
    values: BTreeMap<String, String>,
}

impl Section {
    fn begin(heading: &str) -> Result<Self, String> {
        let is_interface = match heading.to_ascii_lowercase().as_str() {
            "[interface]" => true,
            "[peer]" => false,
            _ => return Err(format!("{heading}: no such section")),
        };
        Ok(Self {
            is_interface,
            values: BTreeMap::new(),
        })
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let fault = |what: &str| format!("{line}: {what}");
        let (name, value) = line.split_once('=').ok_or_else(|| fault("no value"))?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        let known = if self.is_interface { INTERFACE } else { PEER };
        if !known.contains(&name.as_str()) {
            return Err(fault("no such key in this section"));
        }
        if value.is_empty() {
            return Err(fault("the value is empty"));
        }
        let is_list = LISTS.contains(&name.as_str());
        let value = match self.values.get(&name) {
            Some(before) if is_list => format!("{before},{value}"),
            Some(_) => return Err(fault("the key is there twice")),
            None => value.to_owned(),
        };
        self.values.insert(name, value);
        Ok(())
    }

    fn peer(&self) -> Result<ReadPeer, String> {
        Ok(ReadPeer {
            public_key: self.required_key("publickey")?,
            preshared_key: self.key("presharedkey")?,
            allowed: self.list("allowedips")?,
            endpoint: self.parsed("endpoint")?,
            keepalive: self.number("persistentkeepalive")?,
        })
    }

    fn required_key(&self, name: &str) -> Result<[u8; 32], String> {
        self.key(name)?.ok_or_else(|| format!("there is no {name}"))
    }

    fn key(&self, name: &str) -> Result<Option<[u8; 32]>, String> {
        let Some(value) = self.values.get(name) else {
            return Ok(None);
        };
        let bytes = STANDARD.decode(value).unwrap_or_default();
        let key = <[u8; 32]>::try_from(bytes);
        key.map(Some).map_err(|_| format!("{name}: {value}"))
    }

    fn number(&self, name: &str) -> Result<Option<u16>, String> {
        self.parsed(name)
    }

    fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let value = self.values.get(name);
        value.map(|value| parse(name, value)).transpose()
    }

    fn list<T: FromStr>(&self, name: &str) -> Result<Vec<T>, String> {
        let Some(values) = self.values.get(name) else {
            return Ok(Vec::new());
        };
        let values = values.split(',');
        values.map(|value| parse(name, value.trim())).collect()
    }
}

fn parse<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name}: {value}"))
}
