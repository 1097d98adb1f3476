//! The JSON objects as the engine writes them, reduced to the fields that meshd reads.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::containers::labels::Labels;

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct RawEvent {
    #[serde(rename = "Type", deserialize_with = "or_default")]
    pub(super) kind: String,
    #[serde(rename = "Action", deserialize_with = "or_default")]
    pub(super) action: String,
    #[serde(rename = "Actor")]
    pub(super) actor: Option<RawActor>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct RawActor {
    #[serde(rename = "ID", deserialize_with = "or_default")]
    pub(super) id: String,
    #[serde(rename = "Attributes")]
    pub(super) attributes: Option<RawAttributes>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct RawAttributes {
    #[serde(deserialize_with = "or_default")]
    pub(super) signal: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) container: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawListed {
    pub(super) id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) state: String,
    #[serde(default)]
    pub(super) labels: Option<RawLabels>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawContainer {
    #[serde(deserialize_with = "or_default")]
    pub(super) id: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) image: String,
    pub(super) state: Option<RawState>,
    pub(super) config: Option<RawConfig>,
    pub(super) host_config: Option<RawHostConfig>,
    pub(super) network_settings: Option<RawNetworkSettings>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawState {
    #[serde(deserialize_with = "or_default")]
    pub(super) running: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) paused: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) restarting: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) pid: i64,
    pub(super) started_at: Option<String>,
    pub(super) health: Option<RawHealth>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawHealth {
    pub(super) status: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawConfig {
    pub(super) labels: Option<RawLabels>,
    pub(super) exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    pub(super) stop_signal: Option<String>,
    pub(super) healthcheck: Option<RawHealthcheck>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawHealthcheck {
    pub(super) test: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawHostConfig {
    #[serde(deserialize_with = "or_default")]
    pub(super) network_mode: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawNetworkSettings {
    pub(super) networks: Option<BTreeMap<String, Option<RawEndpoint>>>,
    pub(super) ports: Option<RawPorts>,
}

/// By the port in the container, such as `5432/tcp`.
pub(super) type RawPorts = BTreeMap<String, Option<Vec<RawBinding>>>;

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawBinding {
    #[serde(deserialize_with = "or_default")]
    pub(super) host_ip: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) host_port: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct RawEndpoint {
    #[serde(rename = "IPAddress")]
    pub(super) ip_address: Option<String>,
    /// Both engines write an empty text if the endpoint has no IPv6.
    #[serde(rename = "GlobalIPv6Address")]
    pub(super) ipv6_address: Option<String>,
    #[serde(rename = "NetworkID")]
    pub(super) network_id: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawImage {
    pub(super) config: Option<RawImageConfig>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawImageConfig {
    pub(super) labels: Option<RawLabels>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawVersion {
    #[serde(deserialize_with = "or_default")]
    pub(super) version: String,
    pub(super) components: Option<Vec<RawComponent>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawComponent {
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawFacts {
    pub(super) firewall_backend: Option<RawFirewall>,
    pub(super) security_options: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawFirewall {
    pub(super) driver: Option<String>,
}

/// A network as Docker writes it, and as Podman's own API writes it with other names. Only that API of Podman has the name of
/// the bridge.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct RawNetwork {
    #[serde(alias = "Id", deserialize_with = "or_default")]
    pub(super) id: String,
    #[serde(alias = "Name", deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(alias = "Driver", deserialize_with = "or_default")]
    pub(super) driver: String,
    #[serde(alias = "Internal", deserialize_with = "or_default")]
    pub(super) internal: bool,
    /// Podman's own API calls it otherwise than Docker's.
    #[serde(rename = "EnableIPv6", alias = "ipv6_enabled")]
    pub(super) ipv6: Option<bool>,
    #[serde(rename = "Options")]
    pub(super) options: Option<BTreeMap<String, String>>,
    #[serde(rename = "IPAM")]
    pub(super) ipam: Option<RawIpam>,
    pub(super) network_interface: Option<String>,
    pub(super) subnets: Option<Vec<RawSubnet>>,
    #[serde(rename = "Labels")]
    pub(super) labels: Option<RawLabels>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RawIpam {
    pub(super) config: Option<Vec<RawSubnet>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct RawSubnet {
    #[serde(alias = "Subnet", deserialize_with = "or_default")]
    pub(super) subnet: String,
    #[serde(rename = "IPRange")]
    pub(super) range: Option<String>,
    #[serde(alias = "Gateway")]
    pub(super) gateway: Option<String>,
}

/// The value of a field, or the default if it is null.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Labels, without those that meshd does not use: anyone may set such labels, and they may be large.
#[derive(Default)]
pub(super) struct RawLabels(pub(super) Labels);

impl<'de> Deserialize<'de> for RawLabels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Kept;
        impl<'de> Visitor<'de> for Kept {
            type Value = RawLabels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawLabels, A::Error> {
                let mut labels = Labels::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key.starts_with("mesh.") || key.starts_with("com.docker.compose.") {
                        let value: Option<String> = map.next_value()?;
                        labels.insert(key, value.unwrap_or_default());
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(RawLabels(labels))
            }
        }
        deserializer.deserialize_map(Kept)
    }
}
