//! The sections of meshd.toml, as they are written in the file.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU16};
use std::path::PathBuf;

use serde::Deserialize;

use crate::dns::forward::{Server, ServerError};
use crate::os::log::LogSettings;
use crate::os::metrics::MetricsListen;
use crate::records::kinds::{Protocol, default_weight};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub(super) state_dir: Option<PathBuf>,
    pub(super) socket: Option<PathBuf>,
    pub(super) name: Option<String>,
    pub(super) interface: Option<String>,
    pub(super) listen_port: Option<u16>,
    pub(super) mtu: Option<u16>,
    pub(super) tunnel: TunnelSection,
    pub(super) join: JoinSection,
    pub(super) dns: DnsSection,
    pub(super) docker: DockerSection,
    pub(super) metrics: MetricsSection,
    pub(super) path: PathSection,
    pub(super) relay: RelaySection,
    pub(super) route: RouteSection,
    pub(super) api: ApiSection,
    pub(super) web: WebSection,
    pub(super) log: LogSettings,
    pub(super) service: Vec<ServiceSection>,
    pub(super) spawn: Vec<SpawnSection>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TunnelSection {
    pub(super) workers: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct JoinSection {
    pub(super) token_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DnsSection {
    pub(super) enabled: bool,
    pub(super) listen: Vec<IpAddr>,
    pub(super) upstreams: Vec<Upstream>,
    pub(super) split_dns: SplitDns,
    pub(super) when_none_usable: NoneUsable,
    pub(super) max_addresses: Option<NonZeroU16>,
    pub(super) manage_resolv_conf: bool,
}

impl Default for DnsSection {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: Vec::new(),
            upstreams: Vec::new(),
            split_dns: SplitDns::Auto,
            when_none_usable: NoneUsable::All,
            max_addresses: None,
            manage_resolv_conf: false,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Upstream(pub(super) Server);

impl TryFrom<String> for Upstream {
    type Error = ServerError;

    fn try_from(text: String) -> Result<Self, ServerError> {
        text.parse().map(Self)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum SplitDns {
    #[serde(rename = "auto")]
    Auto,
    #[serde(rename = "systemd-resolved")]
    Resolved,
    #[serde(rename = "none")]
    None,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum NoneUsable {
    All,
    None,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DockerSection {
    pub(super) enabled: Enabled,
    pub(super) socket: Option<PathBuf>,
    pub(super) expose: ExposeWord,
    pub(super) ports: PortsWord,
    pub(super) addressing: Addressing,
    pub(super) trust_image_labels: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "EnabledValue")]
pub(super) enum Enabled {
    #[default]
    Auto,
    Yes,
    No,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "it is \"auto\", true or false")]
pub(super) enum EnabledValue {
    Word(AutoWord),
    Flag(bool),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum AutoWord {
    Auto,
}

impl From<EnabledValue> for Enabled {
    fn from(value: EnabledValue) -> Self {
        match value {
            EnabledValue::Word(AutoWord::Auto) => Self::Auto,
            EnabledValue::Flag(true) => Self::Yes,
            EnabledValue::Flag(false) => Self::No,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ExposeWord {
    #[default]
    Labelled,
    All,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PortsWord {
    #[default]
    Declared,
    All,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Addressing {
    #[default]
    Nat,
    Network,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MetricsSection {
    pub(super) listen: Option<MetricsListen>,
    pub(super) per_peer: bool,
    pub(super) per_service: bool,
    pub(super) discovery: bool,
}

impl Default for MetricsSection {
    fn default() -> Self {
        Self {
            listen: None,
            per_peer: true,
            per_service: true,
            discovery: false,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct PathSection {
    pub(super) port_mapping: Enabled,
    pub(super) advertise: Vec<String>,
    pub(super) stun: Vec<String>,
    pub(super) exclude: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RelaySection {
    #[serde(rename = "use")]
    pub(super) is_used: bool,
    pub(super) offer: Enabled,
    pub(super) limit: Option<String>,
    pub(super) listen: Option<String>,
    pub(super) public_url: Option<String>,
    pub(super) proxy: Option<String>,
}

impl Default for RelaySection {
    fn default() -> Self {
        Self {
            is_used: true,
            offer: Enabled::Auto,
            limit: None,
            listen: None,
            public_url: None,
            proxy: None,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RouteSection {
    pub(super) advertise: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ApiSection {
    pub(super) enabled: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WebSection {
    pub(super) enabled: bool,
    pub(super) listen: WebListen,
}

/// An address and a port. An empty text stands for the addresses of the API.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct WebListen(pub(super) Option<SocketAddr>);

impl TryFrom<String> for WebListen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let address = text.parse().map_err(|_| {
            format!(
                "`{text}` is not an address with a port, such as 127.0.0.1:7448; \"\" stands for the addresses of the API"
            )
        })?;
        Ok(Self(Some(address)))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceSection {
    pub(super) name: String,
    pub(super) port: u16,
    #[serde(default)]
    pub(super) port_name: Option<String>,
    #[serde(default)]
    pub(super) protocol: Option<Protocol>,
    #[serde(default)]
    pub(super) address: Option<String>,
    #[serde(default)]
    pub(super) check: Option<CheckSection>,
    #[serde(default = "default_weight")]
    pub(super) weight: u16,
    #[serde(default)]
    pub(super) priority: u16,
    #[serde(default)]
    pub(super) allow: Option<Vec<String>>,
    #[serde(default)]
    pub(super) public: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CheckSection {
    pub(super) tcp: bool,
    pub(super) http: Option<String>,
    pub(super) interval: Option<String>,
    pub(super) timeout: Option<String>,
    pub(super) rise: Option<NonZeroU8>,
    pub(super) fall: Option<NonZeroU8>,
    pub(super) status: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpawnSection {
    pub(super) name: String,
    #[serde(default)]
    pub(super) from: Vec<String>,
    pub(super) images: Vec<String>,
    #[serde(default)]
    pub(super) command: bool,
    #[serde(default)]
    pub(super) environment: bool,
    #[serde(default)]
    pub(super) volumes: Vec<VolumeWord>,
    pub(super) memory: Option<String>,
    pub(super) cpus: Option<f64>,
    pub(super) pids: Option<u32>,
    pub(super) max: Option<u32>,
    pub(super) memory_total: Option<String>,
    pub(super) rate: Option<String>,
    pub(super) ttl: Option<String>,
    #[serde(default)]
    pub(super) network: NetworkWord,
    pub(super) user: Option<String>,
    #[serde(default)]
    pub(super) labels: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum VolumeWord {
    Scratch,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum NetworkWord {
    #[default]
    Own,
    None,
}
