//! What the audit log records: who did what to which object, and with what result. Pure.
//!
//! The name of a variant of [`What`] in snake case is the value `what` of a line, and its fields are the value `object`.
//! `docs/howto/audit.md` lists them. No event carries a key, a token, or anything else that is secret: a token is named by its
//! public id.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use serde::{Serialize, Serializer};

use super::digest::LineDigest;
use crate::model::text::printable;
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey, WireGuardKey};
use crate::protocol::api_token::Scope;

/// The maximum length of a text in an event, in characters. Some texts come from other machines.
const MAX_TEXT: usize = 400;

/// An event, without its number and its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub who: Who,
    pub what: What,
    pub result: Outcome,
    /// How many events like this one, of the same object, were left out before it.
    pub repeats: u64,
}

impl Event {
    /// An event that succeeded.
    #[must_use]
    pub fn done(who: Who, what: What) -> Self {
        Self {
            who,
            what,
            result: Outcome::Done,
            repeats: 0,
        }
    }

    /// An event with the result of an action.
    #[must_use]
    pub fn of_result<T, E: std::fmt::Display>(who: Who, what: What, result: &Result<T, E>) -> Self {
        let result = match result {
            Ok(_) => Outcome::Done,
            Err(error) => Outcome::Failed(Text::from(error.to_string().as_str())),
        };
        Self {
            result,
            ..Self::done(who, what)
        }
    }
}

/// A transition has a line in the log of the daemon, and may have an event in the audit log.
pub trait Transition {
    /// Writes the line to the log of the daemon.
    fn log(&self);

    /// The event for the audit log. None if the transition is an event only in the log of the daemon.
    fn event(&self) -> Option<Event>;
}

/// A text of at most 400 characters, without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(printable(text, MAX_TEXT))
    }
}

impl Text {
    /// The text that a value is shown as.
    #[must_use]
    pub fn of(value: &impl std::fmt::Display) -> Self {
        Self::from(value.to_string().as_str())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Who caused an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Who {
    /// The daemon itself.
    Daemon,
    /// A process of this machine, by the credentials that the kernel recorded when the process connected.
    Local { uid: u32, pid: Option<i32> },
    /// A machine that wants to join, with the id of its token as far as that is known.
    Joiner {
        address: IpAddr,
        #[serde(skip_serializing_if = "Option::is_none")]
        token: Option<PublicKey>,
    },
    /// A program that called the API over the network, with the token that it showed if this is one of the mesh.
    ApiCaller {
        address: IpAddr,
        #[serde(skip_serializing_if = "Option::is_none")]
        token: Option<PublicKey>,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<Label>,
    },
    /// The administrator, whose mesh key signed what caused the event.
    Administrator,
    /// A member of the mesh.
    Member { name: Label, id: PublicKey },
}

/// How an event ended. A line has it as one text: `ok`, `refused: ...` or `failed: ...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// It was not permitted.
    Refused(Text),
    /// It was tried without success.
    Failed(Text),
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Done => serializer.serialize_str("ok"),
            Self::Refused(why) => serializer.collect_str(&format_args!("refused: {}", why.0)),
            Self::Failed(why) => serializer.collect_str(&format_args!("failed: {}", why.0)),
        }
    }
}

/// A call of meshd's local API that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalCall {
    Join,
    Leave,
    Rename,
    RotateKey,
    AddService,
    RemoveService,
    DrainService,
    UndrainService,
    RemoveGuest,
}

impl LocalCall {
    /// The call as the log has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Leave => "leave",
            Self::Rename => "rename",
            Self::RotateKey => "rotate_key",
            Self::AddService => "add_service",
            Self::RemoveService => "remove_service",
            Self::DrainService => "drain_service",
            Self::UndrainService => "undrain_service",
            Self::RemoveGuest => "remove_guest",
        }
    }
}

/// The kind of an event, and its object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", content = "object", rename_all = "snake_case")]
pub enum What {
    /// The daemon was started. `torn_bytes` of an unfinished last line were removed from the file: the daemon was killed while
    /// it wrote them, and acknowledged no action of that line. `head` says whether the file with the last number was found.
    Started {
        version: &'static str,
        torn_bytes: u64,
        head: HeadFound,
    },
    /// The daemon was stopped in order.
    Stopped {},
    /// `count` events are not in the log, because it could not be written.
    EventsLost {
        count: u64,
        reason: Text,
    },
    /// `count` events of one kind are not in the log, because too many objects had such events.
    LeftOut {
        kind: &'static str,
        count: u64,
    },
    /// The oldest file was removed, with all lines up to the number `through`. The digest is that of its last line.
    LogTrimmed {
        through: u64,
        digest: LineDigest,
    },

    /// The coordinator received the mesh record for the first time.
    MeshMade {
        mesh_key: PublicKey,
    },
    /// The coordinator received a newer mesh record.
    MeshChanged {
        version: u64,
    },
    TokenMade {
        token: PublicKey,
        uses: u32,
        tags: Vec<Label>,
        ephemeral: bool,
        expires_at: UnixSeconds,
    },
    TokenRevoked {
        token: PublicKey,
    },
    ApiTokenMade {
        token: PublicKey,
        name: Label,
        scopes: Vec<Scope>,
        expires_at: UnixSeconds,
    },
    ApiTokenRevoked {
        token: PublicKey,
    },
    /// The administrator added a guest. `expires_at` is absent if it stays until it is removed.
    GuestAdded {
        guest: Label,
        key: WireGuardKey,
        doors: Vec<PublicKey>,
        tags: Vec<Label>,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_at: Option<UnixSeconds>,
    },
    /// The guest was removed, or it expired. `guest` is absent if the record of the guest is not known.
    GuestRemoved {
        #[serde(skip_serializing_if = "Option::is_none")]
        guest: Option<Label>,
        key: WireGuardKey,
        reason: &'static str,
    },
    /// This node is the door of the guest, and heard it for the first time, or after three minutes or more. The endpoint is where its
    /// packets came from.
    GuestSeen {
        guest: Label,
        key: WireGuardKey,
        #[serde(skip_serializing_if = "Option::is_none")]
        endpoint: Option<SocketAddr>,
    },
    /// A call over the network was refused for its token. `call` is the method and the path.
    ApiRefused {
        call: Text,
    },
    JoinRefused {
        #[serde(skip_serializing_if = "Option::is_none")]
        node: Option<Label>,
    },
    NodeAdmitted {
        node: Label,
        id: PublicKey,
        token: PublicKey,
        block: Ipv4Net,
    },
    NodeRemoved {
        node: Label,
        id: PublicKey,
        reason: &'static str,
    },
    NodeLeft {
        node: Label,
        id: PublicKey,
    },
    NodeRenamed {
        node: Label,
        id: PublicKey,
        before: Label,
    },
    /// The node has had no control stream to this coordinator for a minute.
    NodeAway {
        node: Label,
        id: PublicKey,
    },
    /// A node that was away has a control stream again.
    NodeBack {
        node: Label,
        id: PublicKey,
        away_seconds: u64,
    },
    /// `mesh-coordinator restore` put this backup in the place of the store.
    Restored {
        backup: Text,
    },
    /// The store lacks records that it had, so it is filled again from the nodes.
    StoreWentBack {
        reason: Text,
    },
    /// The coordinator received a policy. `digest` is the SHA-256 of its text; it is absent if this version does not understand the
    /// form of the record.
    PolicyApplied {
        version: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        digest: Option<LineDigest>,
    },
    /// The coordinator received a policy that is tried beside the one in force, or this node tries one from now on. Nothing is denied by
    /// it. `digest` is the SHA-256 of its text, and `in_force` that of the policy in force, which the same record has.
    PolicyTried {
        version: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        digest: Option<LineDigest>,
        #[serde(skip_serializing_if = "Option::is_none")]
        in_force: Option<LineDigest>,
    },

    /// A process called the local API to change something, or a program with an API token did. The node's own transitions follow as
    /// events of their own.
    LocalCall {
        call: LocalCall,
        /// The name of the service or of the node that the call names.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<Text>,
    },
    /// This node joined a mesh.
    Joined {
        node: Label,
        id: PublicKey,
        address: Ipv4Addr,
    },
    /// This node left its mesh.
    Left {
        node: Label,
        id: PublicKey,
    },
    NodeJoined {
        node: Label,
        id: PublicKey,
        address: Ipv4Addr,
    },
    ServicePublished {
        service: Text,
        instance: Label,
        health: &'static str,
        source: &'static str,
    },
    /// The health of a published instance changed.
    ServiceHealth {
        service: Text,
        instance: Label,
        health: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<Text>,
    },
    ServiceWithdrawn {
        service: Text,
        instance: Label,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<Text>,
    },
    PeerReached {
        peer: Label,
        #[serde(skip_serializing_if = "Option::is_none")]
        endpoint: Option<SocketAddr>,
    },
    PeerNotReached {
        peer: Label,
        reason: Text,
    },
    PeerLost {
        peer: Label,
        reason: Text,
    },
    PeerBack {
        peer: Label,
        away_seconds: u64,
    },
    /// Packets to a peer take another path.
    PathChanged {
        peer: Label,
        path: Text,
    },
    ContainerRefused {
        container: Text,
        reason: Text,
    },
    EngineConnected {
        version: Text,
    },
    EngineLost {
        reason: Text,
    },
    CoordinatorConnected {
        url: Text,
    },
    CoordinatorAway {
        url: Text,
        reason: Text,
    },
    CoordinatorBack {
        url: Text,
        away_seconds: u64,
    },
    /// A policy is in force on this node from now on.
    PolicyInForce {
        version: u64,
    },
    /// This node does not understand a policy. `in_force` is the one that it keeps to; without one, only control traffic passes.
    PolicyNotUnderstood {
        version: u64,
        in_force: Option<u64>,
        reason: Text,
    },
    /// A caller created a container from a template. `container` is the name by which the engine has it.
    Spawned {
        template: Label,
        owner: Text,
        container: Text,
        image: Text,
    },
    /// A caller started a further process in a container that it spawned.
    SpawnExec {
        template: Label,
        owner: Text,
        container: Text,
        command: Text,
    },
    /// A caller started a container that it spawned.
    SpawnStarted {
        template: Label,
        owner: Text,
        container: Text,
    },
    /// A caller stopped a container that it spawned.
    SpawnStopped {
        template: Label,
        owner: Text,
        container: Text,
    },
    /// A caller sent a signal to the first process of a container that it spawned.
    SpawnKilled {
        template: Label,
        owner: Text,
        container: Text,
        signal: Text,
    },
    /// A spawned container does not exist any more: its caller or somebody else removed it.
    SpawnRemoved {
        template: Label,
        owner: Text,
        container: Text,
        reason: &'static str,
    },
    /// The time of a spawned container was over, and it was removed.
    SpawnExpired {
        template: Label,
        owner: Text,
        container: Text,
    },
    /// A call about spawned containers asked for more than a template permits.
    SpawnRefused {
        call: Text,
    },
    /// A container with the label of spawned ones was in no list, and was removed.
    SpawnOrphanRemoved {
        container: Text,
    },
    /// Packets to a network outside the mesh are sent to another member, or to none any more.
    RouteChanged {
        network: Text,
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<Label>,
    },
    /// The first packet was denied between two addresses. The texts name them, and the nodes that have them.
    PairDenied {
        from: Text,
        to: Text,
        port: Text,
        direction: &'static str,
    },
}

/// Whether the file with the last number was found at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadFound {
    /// There was no log yet.
    New,
    /// It was found and agrees with the log, or the log has lines after it.
    Ok,
    /// It is missing although there is a log.
    Missing,
    /// It cannot be read.
    Unreadable,
    /// It names a line that the log does not have, or has with other content.
    Differs,
}

/// A class of events that outside causes can repeat without end. Each class has a limit of its own, so that no class can take
/// the place of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Noise {
    Joins,
    Members,
    Peers,
    Paths,
    Services,
    Containers,
    Uplinks,
    Denials,
    Calls,
    Guests,
    Spawns,
}

impl Noise {
    /// The name of the class in a line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joins => "join_refused",
            Self::Members => "node_away",
            Self::Peers => "peer_lost",
            Self::Paths => "path_changed",
            Self::Services => "service_health",
            Self::Containers => "container_refused",
            Self::Uplinks => "coordinator_away",
            Self::Denials => "pair_denied",
            Self::Calls => "api_refused",
            Self::Guests => "guest_seen",
            Self::Spawns => "spawn_refused",
        }
    }
}

impl Event {
    /// The class of an event that can be repeated without end, and its object. None for an event that always has a line.
    #[must_use]
    pub fn noise(&self) -> Option<(Noise, String)> {
        Some(match &self.what {
            What::JoinRefused { .. } => (Noise::Joins, source_of(&self.who)),
            What::ApiRefused { .. } => (Noise::Calls, source_of(&self.who)),
            What::SpawnRefused { .. } => (Noise::Spawns, source_of(&self.who)),
            What::SpawnExec { container, .. }
            | What::SpawnStarted { container, .. }
            | What::SpawnStopped { container, .. }
            | What::SpawnKilled { container, .. } => (Noise::Spawns, container.0.clone()),
            What::NodeAway { id, .. } | What::NodeBack { id, .. } => {
                (Noise::Members, id.to_string())
            }
            What::PeerReached { peer, .. }
            | What::PeerNotReached { peer, .. }
            | What::PeerLost { peer, .. }
            | What::PeerBack { peer, .. } => (Noise::Peers, peer.to_string()),
            What::GuestSeen { guest, .. } => (Noise::Guests, guest.to_string()),
            What::PathChanged { peer, .. } => (Noise::Paths, peer.to_string()),
            What::RouteChanged { network, .. } => (Noise::Paths, network.0.clone()),
            What::ServicePublished {
                service, instance, ..
            }
            | What::ServiceHealth {
                service, instance, ..
            }
            | What::ServiceWithdrawn {
                service, instance, ..
            } => (Noise::Services, format!("{} {instance}", service.0)),
            What::ContainerRefused { container, .. } => (Noise::Containers, container.0.clone()),
            What::EngineConnected { .. } | What::EngineLost { .. } => {
                (Noise::Uplinks, "engine".to_owned())
            }
            What::CoordinatorConnected { .. }
            | What::CoordinatorAway { .. }
            | What::CoordinatorBack { .. } => (Noise::Uplinks, "coordinator".to_owned()),
            What::PairDenied { from, to, .. } => (Noise::Denials, format!("{} {}", from.0, to.0)),
            _ => return None,
        })
    }
}

/// The source of a join or of a call, as it is counted: a host has an IPv6 network of its own, with any number of addresses.
fn source_of(who: &Who) -> String {
    let (Who::Joiner { address, .. } | Who::ApiCaller { address, .. }) = who else {
        return String::new();
    };
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_of_joins_is_an_address_or_the_network_of_an_ipv6_host() {
        let of = |address: &str| {
            let who = Who::Joiner {
                address: address.parse().expect("a literal"),
                token: None,
            };
            let refused = Event::done(who, What::JoinRefused { node: None });
            refused.noise().map(|(_, source)| source)
        };
        assert_eq!(of("192.0.2.7"), of("::ffff:192.0.2.7"));
        assert_ne!(of("192.0.2.7"), of("::ffff:192.0.2.8"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }

    #[test]
    fn a_text_from_outside_has_a_bound_and_no_control_characters() {
        let text = Text::from(format!("a\n\u{1b}[2J{}", "x".repeat(10_000)).as_str());
        assert!(text.as_str().starts_with("a??[2Jx"));
        assert_eq!(text.as_str().chars().count(), MAX_TEXT);
    }

    #[test]
    fn the_document_lists_each_event() {
        let document = include_str!("../../../docs/howto/audit.md");
        let source = include_str!("event.rs").split_once("pub enum What {");
        let variants = source.and_then(|(_, rest)| rest.split_once("\n}"));
        let (variants, _) = variants.expect("the enum is above");
        let names = variants
            .lines()
            .filter_map(|line| line.strip_prefix("    "));
        let names = names.filter(|name| name.starts_with(char::is_uppercase));
        let mut count = 0;
        for name in names.filter_map(|name| name.split(' ').next()) {
            let mut snake = String::new();
            for letter in name.chars() {
                if letter.is_uppercase() && !snake.is_empty() {
                    snake.push('_');
                }
                snake.push(letter.to_ascii_lowercase());
            }
            assert!(document.contains(&format!("`{snake}`")), "{snake}");
            count += 1;
        }
        assert!(count > 30, "{count}");
    }
}
