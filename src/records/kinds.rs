//! Records: the facts nodes act on, each signed by whoever may say it.
//!
//! A record travels as an opaque payload (JSON text) inside a signed envelope; the types here are what a
//! reader makes of that text. Unknown fields are passed over and unknown kinds kept whole, so that
//! versions can be mixed: what is forwarded is always the envelope, never what was parsed from it.
//!
//! | kind | signed by | says |
//! |---|---|---|
//! | `mesh` | mesh key | domain and address plan |
//! | `token` | mesh key | what a join token may admit |
//! | `revocation` | mesh key | that a token or node is out |
//! | `membership` | token key | that a node is in, its name and tags |
//! | `departure` | node's identity key | that the node is out, for good |
//! | `node` | node's identity key | WireGuard key, address block, endpoints |
//! | `name` | node's identity key | another name than that of its membership |
//! | `service` | node's identity key | the node's instances of one service |
//!
//! Each carries a version that only grows; of two versions the higher holds.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize};

pub use super::key::{MESH_ID, RecordKey, ServiceId};
use crate::model::address::{Block, MeshAddresses, is_never_remote, is_routable};
use crate::model::key::{KeyProof, PublicKey, WireGuardKey};
use crate::model::name::Label;
use crate::model::time::UnixSeconds;

/// Coordinators of a mesh at most.
pub const MAX_COORDINATORS: usize = 16;
/// Tags of a node at most.
pub const MAX_TAGS: usize = 32;
/// Endpoints in a node record at most.
pub const MAX_ENDPOINTS: usize = 16;
/// Instances of one service on one node at most; a /24 holds 253.
pub const MAX_INSTANCES: usize = 256;
/// Ports of an instance at most.
pub const MAX_PORTS: usize = 16;
/// Addresses of an instance at most.
pub const MAX_ADDRESSES: usize = 4;
/// The maximum length of a kind that this version does not know.
const MAX_KIND: usize = 32;
/// The maximum length of the id of a record whose kind this version does not know.
const MAX_ID: usize = 256;

/// The fields that every payload has, whatever its kind. Nothing of it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The kind and id that the payload claims. A ledger may hold the record under another key, see
    /// [`super::Ledger::key_of`].
    pub key: RecordKey,
    /// The version, which grows with each change.
    pub version: u64,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename = "Header")]
        struct Fields<'a> {
            #[serde(borrow)]
            kind: Cow<'a, str>,
            #[serde(borrow)]
            id: Cow<'a, str>,
            version: u64,
        }
        let Fields { kind, id, version } = Fields::deserialize(deserializer)?;
        Ok(Self {
            key: RecordKey::parse(&kind, &id),
            version,
        })
    }
}

/// A parsed payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// The mesh itself.
    Mesh(Mesh),
    /// A token certificate.
    Token(Token),
    /// A token or node taken back.
    Revocation(Revocation),
    /// A node's membership certificate.
    Membership(Membership),
    /// A node's own word that it is out.
    Departure(Departure),
    /// A node's own account of itself.
    Node(Node),
    /// Another name of a node.
    Name(Name),
    /// One service on one node.
    Service(Service),
    /// A kind this version does not know; kept and forwarded.
    #[serde(other)]
    Unknown,
}

/// The mesh: its domain and address plan. There is one, with id `mesh`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Always `mesh`.
    pub id: String,
    /// Grows with each change.
    pub version: u64,
    /// The top label of all names, such as `mesh`.
    pub domain: Label,
    /// Who gets which addresses.
    #[serde(flatten)]
    pub addresses: MeshAddresses,
    /// Where the coordinators are, as `https://host:port`; none: where the token of a node says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coordinators: Vec<String>,
}

/// A token certificate: bounds what the holder of a join token may admit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The public half of the token's key.
    pub id: PublicKey,
    /// Grows with each change.
    pub version: u64,
    /// The tags that a membership may carry.
    pub tags: Vec<Label>,
    /// How many nodes it may admit.
    pub uses: u32,
    /// When it was made.
    pub created_at: UnixSeconds,
    /// From when on it admits nobody.
    pub expires_at: UnixSeconds,
    /// Whether its nodes are removed when they stay away.
    #[serde(default)]
    pub ephemeral: bool,
}

/// What a [`Revocation`] takes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevokedKind {
    /// A token: it admits nobody from then on; nodes it admitted before stay.
    Token,
    /// A node: it is out, for good.
    Node,
}

/// A token or node taken back by the administrator. Its id is the key taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The token or node.
    pub id: PublicKey,
    /// Grows with each change.
    pub version: u64,
    /// Which of the two it is.
    pub revoked: RevokedKind,
    /// Since when.
    pub at: UnixSeconds,
    /// For a token: the nodes admitted by it that stay members. All other nodes that it admitted are removed, whatever date
    /// their certificates have, since the holder of the token chose that date. Revocations of earlier versions do not have
    /// this field: the nodes admitted before `at` stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stays: Option<Vec<PublicKey>>,
}

impl Revocation {
    /// Whether `membership`, which was signed with the revoked token, stays in force.
    #[must_use]
    pub fn spares(&self, membership: &Membership) -> bool {
        match &self.stays {
            Some(stays) => stays.contains(&membership.id),
            None => membership.issued_at < self.at,
        }
    }
}

/// A node that is out by its own word, for good: its name and addresses are free. A node signs one when it leaves, or when
/// its join fails after it was admitted. A node that may be removed when it stays away leaves one with its coordinator in
/// advance. A machine that joins again has another identity key, so a departure that is repeated removes nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// The node's identity key.
    pub id: PublicKey,
    /// Grows with each change.
    pub version: u64,
}

impl Departure {
    /// The departure of `id`. All departures of a node are one text, so that ledgers agree whichever came first.
    #[must_use]
    pub fn of(id: PublicKey) -> Self {
        Self { id, version: 1 }
    }
}

/// A membership certificate: signed with a token's key by the node that joins with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The node's identity key.
    pub id: PublicKey,
    /// Grows with each change.
    pub version: u64,
    /// The token that admits it.
    pub token: PublicKey,
    /// The node's name: `<name>.node.<domain>`.
    pub name: Label,
    /// The node's WireGuard key at its join.
    pub wireguard_key: WireGuardKey,
    /// Tags asked for, each one of the token's; none: all of the token's.
    pub tags: Vec<Label>,
    /// When it was made, by the node's clock.
    pub issued_at: UnixSeconds,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The node's identity key.
    pub id: PublicKey,
    /// Grows with each change.
    pub version: u64,
    /// The key its tunnel speaks with.
    pub wireguard_key: WireGuardKey,
    /// The proof that the node holds the private key of `wireguard_key`. Records of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_proof: Option<KeyProof>,
    /// The addresses it owns.
    #[serde(flatten)]
    pub block: Block,
    /// Where its tunnel may be reached, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Whether IPv6 is switched off on its machine: nobody reaches its IPv6 address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_ipv6: bool,
    /// Service records of this node with a lower version are void. A node raises this version to remove the records of
    /// services that it has withdrawn.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub services_from: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a node wants to be called instead of the name it joined with. It gets that name where nobody else has it; the name of its
/// membership stays its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// The node's identity key.
    pub id: PublicKey,
    /// Grows with each change.
    pub version: u64,
    /// `<name>.node.<domain>`.
    pub name: Label,
}

/// One service on one node. No instances: the service has left this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `<node>/<name>` or `<node>/<project>/<name>`.
    pub id: String,
    /// Grows with each change.
    pub version: u64,
    /// The node that says so.
    pub node: PublicKey,
    /// `<name>.svc.<domain>`.
    pub name: Label,
    /// The Compose project, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Label>,
    /// The service address this node takes it to have, if it asks for one; see [`super::service_address`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_address: Option<Ipv4Addr>,
    /// What runs here.
    pub instances: Vec<Instance>,
}

impl Node {
    /// The endpoints to which every node can send.
    #[must_use]
    pub fn routable_endpoints(&self) -> Vec<SocketAddr> {
        let endpoints = self.endpoints.iter().copied();
        endpoints.filter(|e| is_routable(e.ip())).collect()
    }
}

impl Service {
    /// What the ids of the services of `node` begin with.
    #[must_use]
    pub fn ids_of(node: &PublicKey) -> String {
        format!("{node}/")
    }

    /// The id of a service of `node`.
    #[must_use]
    pub fn id_of(node: &PublicKey, project: Option<&Label>, name: &Label) -> String {
        ServiceId::new(*node, project, name).to_string()
    }

    /// The id that goes with the node, the project and the name.
    #[must_use]
    pub fn service_id(&self) -> ServiceId {
        ServiceId::new(self.node, self.project.as_ref(), &self.name)
    }
}

/// One running copy of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// `<id>.<service>.svc.<domain>`; unique within the service on its node.
    pub id: Label,
    /// Where it is reached, at least one.
    pub addresses: Vec<IpAddr>,
    /// What it listens on, the main port first.
    pub ports: Vec<Port>,
    /// What its node says of it.
    pub health: Health,
    /// SRV weight (RFC 2782).
    #[serde(default = "default_weight")]
    pub weight: u16,
    /// SRV priority (RFC 2782): clients use the lowest that answers.
    #[serde(default)]
    pub priority: u16,
    /// Who registered it.
    pub source: Source,
}

/// The SRV weight of what has none of its own.
#[must_use]
pub fn default_weight() -> u16 {
    10
}

/// A port of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Port {
    /// 1 to 65535.
    pub number: std::num::NonZeroU16,
    /// Over what.
    pub protocol: Protocol,
    /// The name asked for in SRV, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Label>,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`, as in SRV names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// An owner's verdict on its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Passed its check.
    Healthy,
    /// Failed its check.
    Unhealthy,
    /// Not checked yet, or not ready yet.
    Starting,
    /// About to leave: no new clients.
    Draining,
    /// Has no check.
    Unknown,
}

impl Health {
    /// Whether new clients may be sent to it.
    #[must_use]
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Healthy | Self::Unknown)
    }

    /// As in the JSON of `meshctl service list`.
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

/// Where a service was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `meshctl service add`.
    Cli,
    /// `[[service]]` in meshd.toml.
    Config,
    /// A container's labels.
    Docker,
}

impl Source {
    /// As in the JSON of `meshctl service list`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Config => "config",
            Self::Docker => "docker",
        }
    }
}

/// A record that breaks a rule of its own kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not the JSON expected.
    #[error("the payload is not a record: {0}")]
    Malformed(String),
    /// A list longer than its bound.
    #[error("the record has {found} {what}; {most} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        most: usize,
    },
    /// The id does not go with the rest.
    #[error("the record's id is not that of its content")]
    WrongId,
    /// An address that no instance or tunnel can have.
    #[error("{0} cannot be an address here")]
    Address(IpAddr),
    /// An instance without an address or port.
    #[error("instance {0} has no {1}")]
    Empty(Label, &'static str),
}

impl Record {
    /// Parses a payload and checks the rules that need nothing but the record itself.
    ///
    /// # Errors
    /// Says which rule it breaks; a kind that is not known is no error.
    pub fn parse(payload: &str) -> Result<(Header, Self), RecordError> {
        let malformed = |e: serde_json::Error| RecordError::Malformed(e.to_string());
        let header: Header = serde_json::from_str(payload).map_err(malformed)?;
        if let RecordKey::Unknown { kind, id } = &header.key
            && (id.is_empty() || id.len() > MAX_ID || kind.len() > MAX_KIND)
        {
            return Err(RecordError::WrongId);
        }
        let record: Self = serde_json::from_str(payload).map_err(malformed)?;
        record.check()?;
        if record.key().is_some_and(|key| key != header.key) {
            return Err(RecordError::WrongId);
        }
        Ok((header, record))
    }

    /// The payload of this record, as it is to be signed.
    #[must_use]
    pub fn payload(&self) -> String {
        serde_json::to_string(self).expect("records are maps with text keys")
    }

    /// Returns the key of the record; none for a kind that this version does not know.
    #[must_use]
    pub fn key(&self) -> Option<RecordKey> {
        Some(match self {
            Self::Mesh(_) => RecordKey::Mesh,
            Self::Token(token) => RecordKey::Token(token.id),
            Self::Revocation(revocation) => RecordKey::Revocation(revocation.id),
            Self::Membership(membership) => RecordKey::Membership(membership.id),
            Self::Departure(departure) => RecordKey::Departure(departure.id),
            Self::Node(node) => RecordKey::Node(node.id),
            Self::Name(name) => RecordKey::Name(name.id),
            Self::Service(service) => RecordKey::Service(service.service_id()),
            Self::Unknown => return None,
        })
    }

    fn check(&self) -> Result<(), RecordError> {
        match self {
            Self::Mesh(mesh) => {
                bounded("coordinators", mesh.coordinators.len(), MAX_COORDINATORS)?;
                mesh.addresses
                    .check()
                    .map_err(|e| RecordError::Malformed(e.to_string()))
            }
            Self::Token(token) => bounded("tags", token.tags.len(), MAX_TAGS),
            Self::Membership(member) => bounded("tags", member.tags.len(), MAX_TAGS),
            Self::Node(node) => {
                bounded("endpoints", node.endpoints.len(), MAX_ENDPOINTS)?;
                node.endpoints
                    .iter()
                    .try_for_each(|e| check_address(e.ip()))
            }
            Self::Service(service) => {
                bounded("instances", service.instances.len(), MAX_INSTANCES)?;
                service.instances.iter().try_for_each(Instance::check)
            }
            Self::Revocation(_) | Self::Departure(_) | Self::Name(_) | Self::Unknown => Ok(()),
        }
    }
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

/// Refuses what is never another machine's unicast address. What is no use for another reason is left out of the netmap:
/// versions that refuse different records never agree on what they hold.
fn check_address(address: IpAddr) -> Result<(), RecordError> {
    if is_never_remote(address) {
        return Err(RecordError::Address(address));
    }
    Ok(())
}

fn bounded(what: &'static str, found: usize, most: usize) -> Result<(), RecordError> {
    if found > most {
        Err(RecordError::TooMany { what, found, most })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;

    fn service() -> Service {
        let node = SigningKey::from_seed(&[3; 32]).public();
        let name = Label::parse("web").expect("a literal");
        Service {
            id: Service::id_of(&node, None, &name),
            version: 4,
            node,
            name,
            project: None,
            service_address: None,
            instances: vec![Instance {
                id: Label::parse("n1-80").expect("a literal"),
                addresses: vec!["10.210.1.1".parse().expect("a literal")],
                ports: vec![Port {
                    number: 80.try_into().expect("not zero"),
                    protocol: Protocol::Tcp,
                    name: None,
                }],
                health: Health::Healthy,
                weight: 10,
                priority: 0,
                source: Source::Cli,
            }],
        }
    }

    #[test]
    fn a_record_survives_its_payload() {
        let record = Record::Service(service());
        let (header, parsed) = Record::parse(&record.payload()).expect("just made");
        assert_eq!(parsed, record);
        assert_eq!((header.key.kind(), header.version), ("service", 4));
    }

    #[test]
    fn a_kind_of_a_later_version_is_kept() {
        let (header, record) =
            Record::parse(r#"{"kind":"weather","id":"x","version":1,"sky":"blue"}"#)
                .expect("a header");
        assert_eq!(record, Record::Unknown);
        assert_eq!(header.key.kind(), "weather");
    }

    #[test]
    fn a_field_of_a_later_version_is_passed_over() {
        let payload = Record::Service(service())
            .payload()
            .replacen('{', r#"{"mood":"good","#, 1);
        assert_eq!(
            Record::parse(&payload).map(|(_, r)| r),
            Ok(Record::Service(service()))
        );
    }

    #[test]
    fn what_a_node_is_without_is_written_only_where_it_is_without_it() {
        let node = |without_ipv6| Node {
            id: SigningKey::from_seed(&[3; 32]).public(),
            version: 1,
            wireguard_key: WireGuardKey([7; 32]),
            block: Block {
                v4: "10.210.1.0/24".parse().expect("a literal"),
                v6: "fd00:1:2:1::/64".parse().expect("a literal"),
            },
            endpoints: Vec::new(),
            without_ipv6,
            key_proof: None,
            services_from: 0,
        };
        // Versions that do not have the field read and write the same text.
        let payload = Record::Node(node(false)).payload();
        assert!(!payload.contains("ipv6"), "{payload}");
        for without in [false, true] {
            let record = Record::Node(node(without));
            assert_eq!(Record::parse(&record.payload()).map(|(_, r)| r), Ok(record));
        }
    }

    #[test]
    fn records_that_break_their_own_rules_are_refused() {
        let mut foreign = service();
        foreign.id = "other/web".into();
        assert_eq!(
            Record::parse(&Record::Service(foreign).payload()).map(drop),
            Err(RecordError::WrongId)
        );

        for address in ["127.0.0.1", "::ffff:127.0.0.1", "::ffff:0.0.0.0"] {
            let mut loopback = service();
            loopback.instances[0].addresses = vec![address.parse().expect("a literal")];
            assert!(matches!(
                Record::parse(&Record::Service(loopback).payload()),
                Err(RecordError::Address(_))
            ));
        }

        let mut many = service();
        many.instances = vec![many.instances[0].clone(); MAX_INSTANCES + 1];
        assert!(matches!(
            Record::parse(&Record::Service(many).payload()),
            Err(RecordError::TooMany { .. })
        ));

        for garbage in ["", "{}", "[]", "null", r#"{"kind":"node"}"#, "\u{0}"] {
            assert!(Record::parse(garbage).is_err(), "{garbage:?}");
        }
    }
}
