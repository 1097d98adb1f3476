//! The sections about paths and relays.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::file::{Enabled, PathSection, RelaySection, RouteSection};
use crate::model::address::is_routable;
use crate::model::interface::check_interface;
use crate::model::prefix;
use crate::os::config_file::Findings;
use crate::os::proxy::ProxyUrl;
use crate::path::candidates::Exclude;
use crate::protocol::stream::StreamUrl;
use crate::records::kinds::MAX_ROUTES;
use crate::tunnel::relay::RelayLimit;

/// The maximum number of entries in `advertise`.
const MAX_ADVERTISED: usize = 8;
/// The maximum number of entries in `stun`.
const MAX_STUN: usize = 8;
/// The maximum number of entries in `exclude`.
const MAX_EXCLUDED: usize = 64;
/// How much a node relays for each member.
const DEFAULT_LIMIT: RelayLimit = RelayLimit {
    bits_per_second: 200_000_000,
};
/// The lowest limit of a relay. A lower one is of no use; `offer = false` is the setting for a node that does not relay.
const MIN_LIMIT: u64 = 64_000;

/// Which addresses this node offers to its peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathSettings {
    /// Whether the router is asked for a port.
    pub maps_port: bool,
    /// The addresses at which this node is reached, whatever its interfaces have.
    pub advertise: Vec<NamedAddress>,
    /// The STUN servers that are asked besides the coordinators.
    pub stun: Vec<NamedAddress>,
    /// What is never offered.
    pub exclude: Vec<Exclude>,
    /// The networks outside the mesh to which this node offers to route.
    pub routes: Vec<IpNet>,
}

/// An address and a port, or a name and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedAddress {
    /// An address and a port.
    Address(SocketAddr),
    /// A name, which is looked up again and again, and a port.
    Name(String, u16),
}

/// Whether and how much this node relays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySettings {
    /// Whether this node reaches peers through relays.
    pub is_used: bool,
    /// Whether this node relays for its peers. Without a value it does if strangers reach it.
    pub is_offered: Option<bool>,
    /// How much it relays for each member.
    pub limit: RelayLimit,
    /// Where it takes streams of nodes whose network drops UDP.
    pub listen: Option<StreamListen>,
    /// The URL at which other nodes reach these streams, if it does not follow from the address.
    pub public_url: Option<StreamUrl>,
    /// The proxy for this node's own streams.
    pub proxy: Option<ProxyUrl>,
}

/// Where a node takes streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamListen {
    pub address: SocketAddr,
    /// Whether this node ends TLS. Otherwise a proxy does.
    pub has_tls: bool,
}

/// Makes the settings of what is written, and adds everything that is wrong to `wrong`.
pub(super) fn path(
    section: PathSection,
    route: &RouteSection,
    wrong: &mut Findings<'_>,
) -> PathSettings {
    if section.port_mapping == Enabled::Yes {
        let error = "write \"auto\" or false".to_owned();
        wrong.add("path.port_mapping", error);
    }
    PathSettings {
        maps_port: section.port_mapping != Enabled::No,
        advertise: list(
            "path.advertise",
            &section.advertise,
            (MAX_ADVERTISED, "addresses"),
            |text| named_address(text, ADVERTISE_EXAMPLES),
            wrong,
        ),
        stun: list(
            "path.stun",
            &section.stun,
            (MAX_STUN, "servers"),
            |text| named_address(text, STUN_EXAMPLES),
            wrong,
        ),
        exclude: list(
            "path.exclude",
            &section.exclude,
            (MAX_EXCLUDED, "entries"),
            exclude,
            wrong,
        ),
        routes: list(
            "route.advertise",
            &route.advertise,
            (MAX_ROUTES, "networks"),
            |text| prefix::parse(text).map_err(|error| error.to_string()),
            wrong,
        ),
    }
}

/// Reads the entries of the list at `key`, of which `most` are possible. Adds everything that is wrong to `wrong`.
fn list<T>(
    key: &str,
    texts: &[String],
    (most, what): (usize, &str),
    read: impl Fn(&str) -> Result<T, String>,
    wrong: &mut Findings<'_>,
) -> Vec<T> {
    let mut found = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let mut add = |error: String| {
            wrong.add(key, format!("entry {}: {error}", number + 1));
        };
        match read(text) {
            Ok(_) if number >= most => {
                add(format!("at most {most} {what} are possible"));
                break;
            }
            Ok(entry) => found.push(entry),
            Err(error) => add(error),
        }
    }
    found
}

/// Makes the settings of what is written, and adds everything that is wrong to `wrong`.
pub(super) fn relay(section: &RelaySection, wrong: &mut Findings<'_>) -> RelaySettings {
    let mut add = |key: &str, error: String| wrong.add(&format!("relay.{key}"), error);
    let listens_at = set(section.listen.as_deref());
    let listen = listens_at.and_then(|text| {
        let listen = stream_listen(text);
        listen.map_err(|error| add("listen", error)).ok()
    });
    let reached_at = set(section.public_url.as_deref());
    let public_url = reached_at.and_then(|text| {
        let url = text.parse::<StreamUrl>();
        url.map_err(|error| add("public_url", error.to_string()))
            .ok()
    });
    let proxy = set(section.proxy.as_deref()).and_then(|text| {
        let proxy = text.parse::<ProxyUrl>();
        proxy.map_err(|error| add("proxy", error.to_string())).ok()
    });
    if reached_at.is_some() && listens_at.is_none() {
        add(
            "public_url",
            "nothing listens for these streams: set `listen` as well, such as \"http://127.0.0.1:8443\" behind a proxy"
                .to_owned(),
        );
    }
    if section.offer == Enabled::No && listen.is_some() {
        add(
            "listen",
            "this node does not relay because of `offer = false`: remove one of the two".to_owned(),
        );
    }
    if listen.is_some_and(|listen| !listen.has_tls) && reached_at.is_none() {
        add(
            "listen",
            "a proxy ends TLS, and its URL is not known: set `public_url`, such as \"wss://web-1.example.com/meshd\""
                .to_owned(),
        );
    }
    let limit = match section.limit.as_deref().map(rate) {
        None => DEFAULT_LIMIT,
        Some(Ok(limit)) => limit,
        Some(Err(error)) => {
            wrong.add("relay.limit", error);
            DEFAULT_LIMIT
        }
    };
    RelaySettings {
        is_used: section.is_used,
        is_offered: match section.offer {
            Enabled::Auto => None,
            Enabled::Yes => Some(true),
            Enabled::No => Some(false),
        },
        limit,
        listen,
        public_url,
        proxy,
    }
}

/// A setting that is not the empty text, which stands for none.
fn set(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// Reads "0.0.0.0:443", or "http://127.0.0.1:8443" if a proxy ends TLS.
fn stream_listen(text: &str) -> Result<StreamListen, String> {
    let plain = text.strip_prefix("http://");
    let address = plain.unwrap_or(text).parse::<SocketAddr>().ok();
    let address = address.filter(|address| address.port() != 0);
    let address = address.ok_or_else(|| {
        "an address and a port are needed, such as \"0.0.0.0:443\", or \"http://127.0.0.1:8443\" behind a proxy that ends TLS"
            .to_owned()
    })?;
    Ok(StreamListen {
        address,
        has_tls: plain.is_none(),
    })
}

const ADVERTISE_EXAMPLES: &str = "\"203.0.113.7:51820\" or \"home.example.com:51820\"";
const STUN_EXAMPLES: &str = "\"203.0.113.7:3478\" or \"stun.example.com:3478\"";

/// Reads "203.0.113.7:51820", "[2001:db8::7]:51820" or "home.example.com:51820".
fn named_address(text: &str, examples: &str) -> Result<NamedAddress, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return match is_routable(address.ip()) && address.port() != 0 {
            true => Ok(NamedAddress::Address(address)),
            false => Err(format!("no other machine can send to {address}")),
        };
    }
    let (name, port) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("an address and a port are needed, such as {examples}"))?;
    let port = port.parse::<u16>().ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| format!("a port of 1 to 65535 is needed, as in {examples}"))?;
    match is_host_name(name) {
        true => Ok(NamedAddress::Name(name.to_owned(), port)),
        false => Err(format!(
            "neither an address nor a name stands before the port; examples: {examples}"
        )),
    }
}

/// Whether `name` is a host name (RFC 1123 section 2.1). One that consists of numbers is an address that is not complete.
fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && name.split('.').all(is_label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

/// Reads a prefix, an address, or the name of an interface.
fn exclude(text: &str) -> Result<Exclude, String> {
    if let Ok(prefix) = text.parse::<IpNet>() {
        return Ok(Exclude::Prefix(prefix));
    }
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(Exclude::Prefix(address.into()));
    }
    check_interface(text)
        .map(|()| Exclude::Interface(text.to_owned()))
        .map_err(|_| {
            "neither a prefix nor the name of an interface; examples: \"10.9.0.0/16\", \"eth2\""
                .to_owned()
        })
}

/// Reads a rate in the units of tc(8): "200mbit".
fn rate(text: &str) -> Result<RelayLimit, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "bit" => Some(1),
        "kbit" => Some(1_000),
        "mbit" => Some(1_000_000),
        "gbit" => Some(1_000_000_000),
        _ => None,
    };
    let number = number.parse::<u64>().ok();
    let bits = number
        .zip(factor)
        .and_then(|(number, factor)| number.checked_mul(factor));
    match bits {
        None => {
            Err("a number with bit, kbit, mbit or gbit is needed, such as \"200mbit\"".to_owned())
        }
        Some(bits) if bits < MIN_LIMIT => {
            Err("at least \"64kbit\" is needed; `offer = false` switches relaying off".to_owned())
        }
        Some(bits_per_second) => Ok(RelayLimit { bits_per_second }),
    }
}
