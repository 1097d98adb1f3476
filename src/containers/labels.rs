//! Parses a container's labels. Pure. Labels are untrusted text.
//!
//! A label that the image has with the same value belongs to the image, not to the container: the author of an image
//! must not decide which services this host has. Only `mesh.enable=false` applies in both cases.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::time::Duration;

use crate::model::text::listed;
use crate::model::time::milliseconds;
use crate::model::{Label, PublicHost, ServiceName};
use crate::records::kinds::{
    AllowError, MAX_PORTS, Port, Protocol, PublicError, default_weight, parse_allowed,
    parse_public, web_port,
};

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// The maximum length of the value of a label that meshd uses, in bytes.
const MAX_VALUE: usize = 256;
/// The longest time to drain.
const MAX_DRAIN: Duration = Duration::from_secs(3600);

/// The prefix of all labels of meshd.
const OWN_PREFIX: &str = "mesh.";
/// The labels that meshd knows, besides `mesh.port.NAME`.
const KNOWN: [&str; 11] = [
    "mesh.service",
    "mesh.port",
    "mesh.weight",
    "mesh.priority",
    "mesh.allow",
    "mesh.public",
    "mesh.network",
    "mesh.check",
    "mesh.drain",
    "mesh.vip",
    "mesh.enable",
];
/// The maximum number of labels of a container that a problem names.
const MAX_UNUSED: usize = 8;
/// How similar a known label must be to be named as the one that was meant, from 0 to 1 (Jaro-Winkler).
const MIN_SIMILARITY: f64 = 0.75;

const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";
const COMPOSE_NUMBER: &str = "com.docker.compose.container-number";
const COMPOSE_ONE_OFF: &str = "com.docker.compose.oneoff";

/// Which containers are exposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expose {
    /// Containers with the label `mesh.service`.
    #[default]
    Labelled,
    /// Also containers of Compose, but only as `<service>.<project>`.
    All,
}

/// On which ports an exposed container accepts connections from the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OpenPorts {
    /// Those that its labels name, or else the one that its image exposes.
    #[default]
    Declared,
    /// All.
    All,
}

/// The settings about labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// Which containers are exposed.
    pub expose: Expose,
    /// Whether labels of the image are used.
    pub trust_image_labels: bool,
    /// On which ports an exposed container accepts connections.
    pub ports: OpenPorts,
}

/// How a container's health is determined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthSource {
    /// Its HEALTHCHECK, which the engine runs.
    Engine,
    /// A TCP connection to this port.
    Tcp(NonZeroU16),
    /// The health is unknown.
    None,
}

/// How a container is exposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    /// Its services. The service of the label comes first.
    pub services: Vec<ServiceName>,
    /// Its names in Compose, if Compose created it.
    pub compose: Option<Compose>,
    /// The ports that it listens on, the main port first.
    pub ports: Vec<Port>,
    /// SRV weight (RFC 2782).
    pub weight: u16,
    /// The SRV priority (RFC 2782): clients use the lowest one that answers.
    pub priority: u16,
    /// Who may reach it, within the policy: selectors as text. If there are none, the policy alone decides.
    pub allow: Vec<String>,
    /// The host names under which an ingress offers it to the world outside the mesh.
    pub public: Vec<PublicHost>,
    /// The network in which it is reached, if a label names one.
    pub network: Option<String>,
    /// How its health is determined.
    pub health: HealthSource,
    /// How long after its stop signal its address stays mapped, unless it ends before.
    pub drain: Option<Duration>,
    /// Whether its first service has a service address.
    pub service_address: bool,
    /// Labels with the prefix of meshd that meshd does not know.
    pub unknown: Vec<String>,
}

/// The names in Compose, which may contain characters that a DNS name cannot have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compose {
    pub service: String,
    pub project: String,
    /// The DNS name of the two.
    pub name: ServiceName,
    /// The name within the project that the label `mesh.service` requests, if it is another name.
    pub labelled: Option<ServiceName>,
}

/// Why a label cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The value is longer than any valid one.
    #[error("its label {0} has {1} bytes; {MAX_VALUE} are the most")]
    TooLong(String, usize),
    /// The value is not valid.
    #[error("its label {label} is `{value}`; write {wanted}")]
    Value {
        label: String,
        /// Its value, without unprintable characters.
        value: String,
        /// The valid values.
        wanted: &'static str,
    },
    /// The value is not a name.
    #[error("its label {0}: {1}")]
    Name(String, crate::model::name::LabelError),
    /// The value is not a list of selectors.
    #[error("its label {0}: {1}")]
    Allow(&'static str, AllowError),
    /// The value is not a list of host names.
    #[error("its label {0}: {1}")]
    Public(&'static str, PublicError),
    /// The label names host names, but there is no TCP port behind them.
    #[error(
        "its label {0} is for a web server, but it has no TCP port; name one with the label mesh.port"
    )]
    NoWebPort(&'static str),
    /// The name in Compose cannot be a DNS label.
    #[error("its Compose {0} `{1}` has no letter or digit, or is too long for a DNS label")]
    ComposeName(&'static str, String),
    /// Two labels name the same port.
    #[error("its labels name port {0}/{1} twice")]
    DuplicatePort(NonZeroU16, &'static str),
    /// The labels name too many ports.
    #[error("its labels name {0} ports; {MAX_PORTS} are the most")]
    TooManyPorts(usize),
    /// Neither a label nor the image names a port.
    #[error("its image exposes no port; name one with the label mesh.port")]
    NoPort,
    /// The image exposes several ports.
    #[error("its image exposes {0} ports; name the one to use with the label mesh.port")]
    SeveralPorts(usize),
    /// The label requests the HEALTHCHECK, but there is none.
    #[error("its label mesh.check is `docker`, but it has no HEALTHCHECK")]
    NoHealthcheck,
    /// The label requests a TCP probe, but there is no TCP port.
    #[error("its label mesh.check is `tcp`, but it has no TCP port")]
    NoTcpPort,
    /// Without the labels of the image, meshd cannot know which labels are the container's own.
    #[error(
        "its image cannot be inspected, so meshd cannot know which labels are the container's own"
    )]
    ImageUnknown,
}

/// What is known about a container apart from its labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The ports that its image or definition exposes.
    pub exposed: BTreeSet<(Protocol, NonZeroU16)>,
    /// Whether it has a HEALTHCHECK.
    pub has_healthcheck: bool,
}

/// Whether labels may expose a container.
#[must_use]
pub fn may_expose(labels: &Labels, rules: Rules) -> bool {
    labels.contains_key("mesh.service")
        || (rules.expose == Expose::All && labels.contains_key(COMPOSE_PROJECT))
}

/// Whether a container has labels that concern meshd: they may expose it, or they have the prefix of meshd, maybe by mistake. Only
/// such containers are inspected.
#[must_use]
pub fn concerns(labels: &Labels, rules: Rules) -> bool {
    may_expose(labels, rules) || labels.keys().any(|label| label.starts_with(OWN_PREFIX))
}

/// The labels of a container that is not exposed which have no effect, up to [`MAX_UNUSED`]. `image` are the labels of its image, if
/// they are known.
#[must_use]
pub fn unused(labels: &Labels, image: Option<&Labels>, rules: Rules) -> Vec<String> {
    let is_hidden = labels.get("mesh.enable").is_some_and(|v| v == "false");
    let Ok(own) = OwnLabels::new(labels, image, rules) else {
        return Vec::new();
    };
    // With a service, the container is not exposed for another reason.
    if is_hidden || own.labels.contains_key("mesh.service") {
        return own.unknown();
    }
    own.some(|_| true)
}

/// Explains labels that have no effect on a container: those that meshd does not know, each with the most similar label that it
/// knows, and the others.
pub(super) fn explain_unused(labels: &[String]) -> String {
    let (unknown, known): (Vec<&String>, Vec<&String>) =
        labels.iter().partition(|label| !is_known(label));
    let unknown = unknown.into_iter().map(|label| match nearest(label) {
        Some(nearest) => format!("{label} (the most similar one that it knows is {nearest})"),
        None => label.clone(),
    });
    let unknown: Vec<String> = unknown.collect();
    let mut reasons = Vec::new();
    if !unknown.is_empty() {
        reasons.push(format!("meshd knows no label {}", unknown.join(", ")));
    }
    if !known.is_empty() {
        let known = listed(known, MAX_UNUSED);
        reasons.push(format!(
            "{known} has an effect only together with mesh.service"
        ));
    }
    reasons.join("; ")
}

/// The label that is most similar to an unknown one. None if none is similar.
fn nearest(label: &str) -> Option<&'static str> {
    let scored = KNOWN.iter().map(|known| {
        // All have the prefix, so only the rest tells them apart.
        let rest = |label: &str| label.trim_start_matches(OWN_PREFIX).to_ascii_lowercase();
        (*known, strsim::jaro_winkler(&rest(label), &rest(known)))
    });
    let best = scored.max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.filter(|(_, score)| *score >= MIN_SIMILARITY)
        .map(|(known, _)| known)
}

/// Parses how a container is exposed. `image` are the labels of its image, if they are known. None if it is not
/// exposed.
///
/// # Errors
/// A label cannot be used. The container is not exposed in that case.
pub fn exposed(
    labels: &Labels,
    image: Option<&Labels>,
    facts: &Facts,
    rules: Rules,
) -> Result<Option<Exposed>, LabelError> {
    if !may_expose(labels, rules) || labels.get("mesh.enable").is_some_and(|v| v == "false") {
        return Ok(None);
    }
    let own = OwnLabels::new(labels, image, rules)?;
    if own
        .text(COMPOSE_ONE_OFF)?
        .is_some_and(|v| v.eq_ignore_ascii_case("true"))
    {
        // `docker compose run` creates a container for a single task, not another instance of the service.
        return Ok(None);
    }
    own.flag("mesh.enable")?;
    let labelled = own.text("mesh.service")?;
    let mut services: Vec<ServiceName> = Vec::new();
    if let Some(text) = labelled {
        services.push(name("mesh.service", text)?.into());
    }
    let compose = match labelled.is_some() || rules.expose == Expose::All {
        true => compose(&own, services.first())?,
        false => None,
    };
    if let Some(compose) = &compose {
        services.push(compose.name.clone());
        services.extend(compose.labelled.clone());
    }
    if services.is_empty() {
        return Ok(None);
    }
    let ports = match ports(&own, facts, labelled.is_some()) {
        // A container of Compose without a port and without a label is not a service.
        Err(LabelError::NoPort) if labelled.is_none() => return Ok(None),
        ports => ports?,
    };
    let unknown = own.unknown();
    Ok(Some(Exposed {
        services,
        compose,
        health: health(&own, &ports, facts)?,
        public: public(&own, &ports)?,
        ports,
        weight: number(&own, "mesh.weight")?.unwrap_or_else(default_weight),
        priority: number(&own, "mesh.priority")?.unwrap_or(0),
        allow: allow(&own)?,
        network: own.text("mesh.network")?.map(str::to_owned),
        drain: drain(&own)?,
        service_address: own.flag("mesh.vip")?.unwrap_or(false),
        unknown,
    }))
}

/// The labels that belong to the container itself.
struct OwnLabels<'a> {
    labels: BTreeMap<&'a str, &'a str>,
}

impl<'a> OwnLabels<'a> {
    fn new(labels: &'a Labels, image: Option<&Labels>, rules: Rules) -> Result<Self, LabelError> {
        let image = match image {
            _ if rules.trust_image_labels => None,
            Some(image) => Some(image),
            None => return Err(LabelError::ImageUnknown),
        };
        let own = labels
            .iter()
            .filter(|(key, value)| image.is_none_or(|image| image.get(*key) != Some(value)))
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        // Compose also writes the project and the service into the images that it builds. It writes the number only
        // into containers.
        let mut own = Self { labels: own };
        if own.labels.contains_key(COMPOSE_NUMBER) {
            for key in [COMPOSE_PROJECT, COMPOSE_SERVICE] {
                if let Some((key, value)) = labels.get_key_value(key) {
                    own.labels.insert(key, value);
                }
            }
        }
        Ok(own)
    }

    /// The labels with the prefix of meshd that it does not know, up to [`MAX_UNUSED`].
    fn unknown(&self) -> Vec<String> {
        self.some(|label| !is_known(label))
    }

    /// The labels with the prefix of meshd for which `condition` holds, up to [`MAX_UNUSED`].
    fn some(&self, condition: impl Fn(&str) -> bool) -> Vec<String> {
        let labels = self.labels.keys();
        labels
            .filter(|label| label.starts_with(OWN_PREFIX) && condition(label))
            .map(|label| printable(label))
            .take(MAX_UNUSED)
            .collect()
    }

    fn text(&self, label: &str) -> Result<Option<&'a str>, LabelError> {
        match self.labels.get(label) {
            Some(value) if value.len() > MAX_VALUE => {
                Err(LabelError::TooLong(printable(label), value.len()))
            }
            value => Ok(value.copied()),
        }
    }

    fn flag(&self, label: &str) -> Result<Option<bool>, LabelError> {
        match self.text(label)? {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(wrong(label, other, "true or false")),
        }
    }
}

fn is_known(label: &str) -> bool {
    label.starts_with("mesh.port.") || KNOWN.contains(&label)
}

fn compose(
    own: &OwnLabels<'_>,
    labelled: Option<&ServiceName>,
) -> Result<Option<Compose>, LabelError> {
    let (Some(project), Some(service), Some(_)) = (
        own.text(COMPOSE_PROJECT)?,
        own.text(COMPOSE_SERVICE)?,
        own.text(COMPOSE_NUMBER)?,
    ) else {
        return Ok(None);
    };
    let nearest = |what, text: &str| {
        Label::nearest(text).ok_or_else(|| LabelError::ComposeName(what, printable(text)))
    };
    let name = ServiceName {
        name: nearest("service", service)?,
        project: Some(nearest("project", project)?),
    };
    let labelled = labelled.map(|labelled| ServiceName {
        name: labelled.name.clone(),
        project: name.project.clone(),
    });
    Ok(Some(Compose {
        service: service.to_owned(),
        project: project.to_owned(),
        labelled: labelled.filter(|labelled| *labelled != name),
        name,
    }))
}

fn ports(own: &OwnLabels<'_>, facts: &Facts, labelled: bool) -> Result<Vec<Port>, LabelError> {
    let mut ports: Vec<Port> = Vec::new();
    if let Some(text) = own.text("mesh.port")? {
        ports.push(port("mesh.port", text, None)?);
    }
    let named: Vec<&str> = own
        .labels
        .keys()
        .copied()
        .filter(|key| key.starts_with("mesh.port."))
        .collect();
    if named.len() + ports.len() > MAX_PORTS {
        return Err(LabelError::TooManyPorts(named.len() + ports.len()));
    }
    for label in named {
        let text = own.text(label)?.unwrap_or_default();
        let called = name(label, label.trim_start_matches("mesh.port."))?;
        ports.push(port(label, text, Some(called))?);
    }
    let mut seen = BTreeSet::new();
    for port in &ports {
        if !seen.insert((port.number, port.protocol)) {
            return Err(LabelError::DuplicatePort(
                port.number,
                port.protocol.as_str(),
            ));
        }
    }
    if !ports.is_empty() {
        return Ok(ports);
    }
    match facts.exposed.len() {
        0 => Err(LabelError::NoPort),
        // If there are several ports, the author of the label has to choose one.
        several if several > 1 && labelled => Err(LabelError::SeveralPorts(several)),
        _ => Ok(facts
            .exposed
            .iter()
            .take(MAX_PORTS)
            .map(|(protocol, number)| Port {
                number: *number,
                protocol: *protocol,
                name: None,
            })
            .collect()),
    }
}

fn port(label: &str, text: &str, name: Option<Label>) -> Result<Port, LabelError> {
    let (number, protocol) = match text.split_once('/') {
        None => (text, Some(Protocol::Tcp)),
        Some((number, "tcp")) => (number, Some(Protocol::Tcp)),
        Some((number, "udp")) => (number, Some(Protocol::Udp)),
        Some((number, _)) => (number, None),
    };
    let digits = number.bytes().all(|c| c.is_ascii_digit());
    match (number.parse(), protocol) {
        (Ok(number), Some(protocol)) if digits => Ok(Port {
            number,
            protocol,
            name,
        }),
        _ => Err(wrong(
            label,
            text,
            "a number from 1 to 65535, with /udp behind it if it is UDP",
        )),
    }
}

fn health(own: &OwnLabels<'_>, ports: &[Port], facts: &Facts) -> Result<HealthSource, LabelError> {
    let tcp = ports
        .iter()
        .find(|port| port.protocol == Protocol::Tcp)
        .map(|port| HealthSource::Tcp(port.number));
    match own.text("mesh.check")? {
        None if facts.has_healthcheck => Ok(HealthSource::Engine),
        None => Ok(tcp.unwrap_or(HealthSource::None)),
        Some("docker") if facts.has_healthcheck => Ok(HealthSource::Engine),
        Some("docker") => Err(LabelError::NoHealthcheck),
        Some("tcp") => tcp.ok_or(LabelError::NoTcpPort),
        Some("none") => Ok(HealthSource::None),
        Some(other) => Err(wrong("mesh.check", other, "docker, tcp or none")),
    }
}

fn number(own: &OwnLabels<'_>, label: &str) -> Result<Option<u16>, LabelError> {
    let Some(text) = own.text(label)? else {
        return Ok(None);
    };
    let digits = text.bytes().all(|c| c.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number
        .map(Some)
        .ok_or_else(|| wrong(label, text, "a number from 0 to 65535"))
}

/// Who may reach the container. A label without a selector is an error, since it could mean everybody or nobody.
fn allow(own: &OwnLabels<'_>) -> Result<Vec<String>, LabelError> {
    const LABEL: &str = "mesh.allow";
    let Some(text) = own.text(LABEL)? else {
        return Ok(Vec::new());
    };
    let selectors: Vec<&str> = text.split(',').collect();
    parse_allowed(&selectors).map_err(|error| LabelError::Allow(LABEL, error))
}

/// The host names under which the container is offered to the world outside the mesh.
fn public(own: &OwnLabels<'_>, ports: &[Port]) -> Result<Vec<PublicHost>, LabelError> {
    const LABEL: &str = "mesh.public";
    let Some(text) = own.text(LABEL)? else {
        return Ok(Vec::new());
    };
    let hosts: Vec<&str> = text.split(',').collect();
    let hosts = parse_public(&hosts).map_err(|error| LabelError::Public(LABEL, error))?;
    if web_port(ports).is_none() {
        return Err(LabelError::NoWebPort(LABEL));
    }
    Ok(hosts)
}

fn drain(own: &OwnLabels<'_>) -> Result<Option<Duration>, LabelError> {
    let Some(text) = own.text("mesh.drain")? else {
        return Ok(None);
    };
    milliseconds(text)
        .map(Duration::from_millis)
        .filter(|drain| *drain <= MAX_DRAIN)
        .map(Some)
        .ok_or_else(|| {
            wrong(
                "mesh.drain",
                text,
                "a duration of an hour at most, such as 10s",
            )
        })
}

fn name(label: &str, text: &str) -> Result<Label, LabelError> {
    Label::parse(text).map_err(|error| LabelError::Name(printable(label), error))
}

fn wrong(label: &str, value: &str, wanted: &'static str) -> LabelError {
    LabelError::Value {
        label: printable(label),
        value: printable(value),
        wanted,
    }
}

/// The text without characters that are unsafe to print, and not longer than a limit.
pub(super) fn printable(text: &str) -> String {
    crate::model::text::printable(text, 64)
}

#[cfg(test)]
mod tests;
