//! The kind of records about services, and the instances in it.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Deserializer, Serialize};

use super::members::{Lenient, first};
use super::rules::{RecordError, bounded, check_address};
use crate::model::key::PublicKey;
use crate::model::name::{Label, MAX_LABEL, ServiceName};
use crate::model::public_host::PublicHostError;
use crate::model::{Protocol, PublicHost};
use crate::policy::{Selector, SelectorError};
use crate::records::key::ServiceId;

/// The maximum number of instances of one service on one node; a /24 has 253 addresses.
pub const MAX_INSTANCES: usize = 256;
/// The maximum number of ports of an instance.
pub const MAX_PORTS: usize = 16;
/// The maximum number of addresses of an instance.
pub const MAX_ADDRESSES: usize = 4;
/// The maximum number of selectors in [`Instance::allow`] that are read.
pub const MAX_ALLOWED: usize = 16;
/// The maximum length of a selector in [`Instance::allow`], in bytes: the names of a project and of a service, and what joins them.
pub const MAX_SELECTOR: usize = 2 * MAX_LABEL + 8;
/// The maximum number of host names in [`Instance::public`] that are read.
pub const MAX_PUBLIC: usize = 8;

/// One service on one node. A record without instances says that the node no longer runs the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The text of [`Service::service_id`].
    pub id: String,
    /// The version, which grows with each change.
    pub version: u64,
    /// The node that runs the service and signs the record.
    pub node: PublicKey,
    /// The name of the service: `<name>.svc.<domain>`.
    pub name: Label,
    /// The Compose project, if the service has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Label>,
    /// The service address that the node claims, if the service asks for one; see [`crate::records::service_address`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_address: Option<Ipv4Addr>,
    /// The instances on this node.
    pub instances: Vec<Instance>,
}

impl Service {
    /// Returns the text with which the ids of all services of `node` begin.
    #[must_use]
    pub fn ids_of(node: &PublicKey) -> String {
        format!("{node}/")
    }

    /// Returns the text of the id of a service of `node`.
    #[must_use]
    pub fn id_of(node: &PublicKey, project: Option<&Label>, name: &Label) -> String {
        ServiceId::new(*node, project, name).to_string()
    }

    /// Returns the id that goes with the node, the project and the name.
    #[must_use]
    pub fn service_id(&self) -> ServiceId {
        ServiceId::new(self.node, self.project.as_ref(), &self.name)
    }

    /// Returns the name with that of the project.
    #[must_use]
    pub fn service_name(&self) -> ServiceName {
        ServiceName {
            name: self.name.clone(),
            project: self.project.clone(),
        }
    }

    pub(super) fn check(&self) -> Result<(), RecordError> {
        bounded("instances", self.instances.len(), MAX_INSTANCES)?;
        self.instances.iter().try_for_each(Instance::check)
    }
}

/// One running copy of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The name of the instance, `<id>.<service>.svc.<domain>`, which is unique within the service on its node.
    pub id: Label,
    /// The addresses at which it is reached; at least one.
    pub addresses: Vec<IpAddr>,
    /// The ports on which it listens, the main port first.
    pub ports: Vec<Port>,
    /// The health that its node reports.
    pub health: Health,
    /// The SRV weight (RFC 2782).
    #[serde(default = "default_weight")]
    pub weight: u16,
    /// The SRV priority (RFC 2782): clients use the instance with the lowest priority that answers.
    #[serde(default)]
    pub priority: u16,
    /// How it was registered.
    pub source: Source,
    /// Who may reach it, within the policy, as texts of [`crate::policy::Selector`]. If there are none, the policy alone decides. A text
    /// that is no selector of this version admits nobody. Records of earlier versions have none.
    #[serde(
        default,
        deserialize_with = "first_selectors",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub allow: Vec<String>,
    /// The host names under which an ingress offers it to the world outside the mesh. A text that is no host name for this version is
    /// left out. Records of earlier versions have none.
    #[serde(
        default,
        deserialize_with = "first::<_, _, MAX_PUBLIC>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub public: Vec<PublicHost>,
}

/// Why a list of selectors for [`Instance::allow`] is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowError {
    /// There is no selector, which could mean that everybody is admitted, or nobody.
    #[error("it names nobody; write one selector or more, such as `shop/api` or `tag:ops`")]
    Nobody,
    #[error("it has {0} selectors; {MAX_ALLOWED} are the most")]
    TooMany(usize),
    #[error(transparent)]
    Selector(#[from] SelectorError),
}

/// Parses the selectors of [`Instance::allow`].
///
/// # Errors
/// Says which selector is wrong, and what is right in its place.
pub fn parse_allowed<T: AsRef<str>>(texts: &[T]) -> Result<Vec<String>, AllowError> {
    match texts.len() {
        0 => return Err(AllowError::Nobody),
        1..=MAX_ALLOWED => {}
        more => return Err(AllowError::TooMany(more)),
    }
    let selectors = texts.iter().map(|text| Selector::parse(text.as_ref()));
    selectors
        .map(|selector| Ok(selector?.to_string()))
        .collect()
}

/// Why a list of host names for [`Instance::public`] is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublicError {
    #[error("it has no host name; write one or more, such as `shop.example.com`")]
    None,
    #[error("it has {0} host names; {MAX_PUBLIC} are the most")]
    TooMany(usize),
    #[error("it has {0} twice")]
    Twice(PublicHost),
    #[error(transparent)]
    Host(#[from] PublicHostError),
}

/// Parses the host names of [`Instance::public`].
///
/// # Errors
/// Says which host name is wrong, and what is right in its place.
pub fn parse_public<T: AsRef<str>>(texts: &[T]) -> Result<Vec<PublicHost>, PublicError> {
    match texts.len() {
        0 => return Err(PublicError::None),
        1..=MAX_PUBLIC => {}
        more => return Err(PublicError::TooMany(more)),
    }
    let mut hosts = Vec::with_capacity(texts.len());
    for text in texts {
        let host = PublicHost::parse(text.as_ref().trim_matches(' '))?;
        if hosts.contains(&host) {
            return Err(PublicError::Twice(host));
        }
        hosts.push(host);
    }
    Ok(hosts)
}

/// Returns the number of the port to which an ingress sends requests: of the TCP ports the one with the name `http`, or else the first.
#[must_use]
pub fn web_port(ports: &[Port]) -> Option<std::num::NonZeroU16> {
    let tcp = || ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let is_http = |port: &&Port| {
        port.name
            .as_ref()
            .is_some_and(|name| name.as_str() == "http")
    };
    tcp()
        .find(is_http)
        .or_else(|| tcp().next())
        .map(|port| port.number)
}

/// Reads the first selectors of a list. Versions before the field hold the record whatever the field contains, so this version must hold
/// it too. An entry that is no text becomes a text that admits nobody, so that no value of the field opens an instance to all.
fn first_selectors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let list = match Lenient::<Vec<Lenient<String>>>::deserialize(deserializer)? {
        Lenient::Known(list) => list,
        Lenient::Other(other) => vec![Lenient::Other(other)],
    };
    let text = |entry| match entry {
        Lenient::Known(text) => Some(text).filter(|text: &String| text.len() <= MAX_SELECTOR),
        Lenient::Other(_) => None,
    };
    let texts = list
        .into_iter()
        .map(|entry| text(entry).unwrap_or_default());
    Ok(texts.take(MAX_ALLOWED).collect())
}

impl Instance {
    fn check(&self) -> Result<(), RecordError> {
        bounded("ports", self.ports.len(), MAX_PORTS)?;
        bounded("addresses", self.addresses.len(), MAX_ADDRESSES)?;
        if self.ports.is_empty() {
            return Err(RecordError::Empty(self.id.clone(), "port"));
        }
        if self.addresses.is_empty() {
            return Err(RecordError::Empty(self.id.clone(), "address"));
        }
        self.addresses.iter().try_for_each(|a| check_address(*a))
    }
}

/// Returns the SRV weight of an instance for which no weight was configured.
#[must_use]
pub fn default_weight() -> u16 {
    10
}

/// A port of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Port {
    /// The port number, which is not 0.
    pub number: std::num::NonZeroU16,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The name of the port in SRV queries, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Label>,
}

/// The health that a node reports for its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// The instance passed its check.
    Healthy,
    /// The instance failed its check.
    Unhealthy,
    /// The instance was not checked yet, or it is not ready yet.
    Starting,
    /// The instance is about to stop and takes no new clients.
    Draining,
    /// The instance has no check.
    Unknown,
}

impl Health {
    /// Whether new clients may use the instance.
    #[must_use]
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Healthy | Self::Unknown)
    }

    /// Returns the text that `meshctl service list --json` prints.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::Unknown => "unknown",
        }
    }
}

/// How a service was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// With `meshctl service add`.
    Cli,
    /// By `[[service]]` in meshd.toml.
    Config,
    /// By the labels of a container.
    Docker,
}

impl Source {
    /// Returns the text that `meshctl service list --json` prints.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Config => "config",
            Self::Docker => "docker",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::records::port;

    #[test]
    fn a_list_of_selectors_has_one_or_more_up_to_a_number_and_all_of_them_are_right() {
        let parsed = parse_allowed(&["shop/api", " tag:ops "]);
        let expected = ["shop/api", "tag:ops"].map(str::to_owned);
        assert_eq!(parsed, Ok(expected.to_vec()));
        assert_eq!(parse_allowed::<&str>(&[]), Err(AllowError::Nobody));
        let most = parse_allowed(&["db"; MAX_ALLOWED]);
        assert_eq!(most.map(|list| list.len()), Ok(MAX_ALLOWED));
        let more = MAX_ALLOWED + 1;
        let too_many = parse_allowed(&["db"; MAX_ALLOWED + 1]);
        assert_eq!(too_many, Err(AllowError::TooMany(more)));
        let wrong = parse_allowed(&["db", "moon:full"]);
        assert!(matches!(wrong, Err(AllowError::Selector(_))), "{wrong:?}");
    }

    #[test]
    fn a_list_of_host_names_has_each_of_them_once_and_in_one_form() {
        let parse = |texts: &[String]| -> Result<Vec<String>, PublicError> {
            let hosts = parse_public(texts)?;
            Ok(hosts.iter().map(ToString::to_string).collect())
        };
        let owned = |texts: &[&str]| -> Vec<String> {
            texts.iter().map(|text| (*text).to_owned()).collect()
        };
        let given = owned(&["shop.example.com", " *.Example.com "]);
        let expected = owned(&["shop.example.com", "*.example.com"]);
        assert_eq!(parse(&given), Ok(expected));
        assert_eq!(parse(&[]), Err(PublicError::None));
        let hosts = |count: usize| -> Vec<String> {
            (0..count).map(|n| format!("h{n}.example.com")).collect()
        };
        assert_eq!(parse(&hosts(MAX_PUBLIC)), Ok(hosts(MAX_PUBLIC)));
        let more = MAX_PUBLIC + 1;
        assert_eq!(parse(&hosts(more)), Err(PublicError::TooMany(more)));
        let twice = parse(&owned(&["a.example", "A.example"]));
        assert!(matches!(twice, Err(PublicError::Twice(_))), "{twice:?}");
        let wrong = parse(&owned(&["10.0.0.1"]));
        assert!(matches!(wrong, Err(PublicError::Host(_))), "{wrong:?}");
    }

    #[test]
    fn requests_go_to_the_tcp_port_with_the_name_http_or_else_to_the_first_one() {
        let udp = Port {
            protocol: Protocol::Udp,
            ..port(443, Some("http"))
        };
        let number = |ports: &[Port]| web_port(ports).map(std::num::NonZeroU16::get);
        let first = [udp.clone(), port(80, None), port(81, Some("https"))];
        assert_eq!(number(&first), Some(80));
        let [udp_port, first, https] = first;
        let named = [udp_port, first, https, port(82, Some("http"))];
        assert_eq!(number(&named), Some(82));
        assert_eq!(number(&[udp]), None);
    }

    #[test]
    fn a_state_and_a_source_are_shown_by_the_text_in_the_record() {
        for (health, is_usable) in [
            (Health::Healthy, true),
            (Health::Unhealthy, false),
            (Health::Starting, false),
            (Health::Draining, false),
            (Health::Unknown, true),
        ] {
            let text = serde_json::to_value(health).expect("plain data");
            assert_eq!(text, health.as_str());
            assert_eq!(health.is_usable(), is_usable, "{health:?}");
        }
        for source in [Source::Cli, Source::Config, Source::Docker] {
            let text = serde_json::to_value(source).expect("plain data");
            assert_eq!(text, source.as_str());
        }
    }
}
