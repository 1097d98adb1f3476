//! The key of a record: its kind and its id as one typed value.
//!
//! Two records with equal keys are versions of one record. The order of the variants is the order of dependency: each kind comes
//! after the kinds that its records depend on, so another ledger can accept records that are sorted by their keys.
//!
//! Files, stores and messages contain a key as two texts, `kind` and `id`. Every pair of texts is a key: a pair that is not exactly
//! what a kind of this version writes becomes [`RecordKey::Unknown`], and is written as it was read.

use std::borrow::Cow;
use std::fmt;

use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{Label, PublicKey};

/// The only id of a mesh record.
pub const MESH_ID: &str = "mesh";

/// Identifies a record among all records of a mesh.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKey {
    /// The mesh record; there is one.
    Mesh,
    /// The certificate of a token.
    Token(PublicKey),
    /// The membership certificate of a node.
    Membership(PublicKey),
    /// The revocation of a token or node.
    Revocation(PublicKey),
    /// The departure of a node.
    Departure(PublicKey),
    /// The record in which a node describes itself.
    Node(PublicKey),
    /// The name that a node wants instead of the name it joined with.
    Name(PublicKey),
    /// A service on a node.
    Service(ServiceId),
    /// The policy of the mesh; there is one.
    Policy,
    /// A kind that this version does not know, or an id that no record of its kind can have.
    Unknown {
        /// The kind as it was read. A ledger appends the signer to it, see [`super::Ledger::key_of`].
        kind: String,
        /// The id as it was read.
        id: String,
    },
}

/// The kinds that this version knows, in the order of dependency.
const KINDS: [&str; 9] = [
    "mesh",
    "token",
    "membership",
    "revocation",
    "departure",
    "node",
    "name",
    "service",
    "policy",
];
/// The number of kinds that every version knows. They are the first ones of [`KINDS`]. If a member signs a record of one of the other
/// kinds, earlier versions hold it under a key of the member's own, and so does this version.
const OLDEST_KINDS: usize = 8;

impl RecordKey {
    /// Reads a key from its two texts.
    #[must_use]
    pub fn parse(kind: &str, id: &str) -> Self {
        let key = |make: fn(PublicKey) -> Self| id.parse().ok().map(make);
        let known = match kind {
            "mesh" => Some(Self::Mesh),
            "token" => key(Self::Token),
            "membership" => key(Self::Membership),
            "revocation" => key(Self::Revocation),
            "departure" => key(Self::Departure),
            "node" => key(Self::Node),
            "name" => key(Self::Name),
            "service" => ServiceId::parse(id).map(Self::Service),
            "policy" => Some(Self::Policy),
            _ => None,
        };
        // A key can be written in several forms, for example with capital digits. Only one of them is that of the record.
        known
            .filter(|known| known.id() == id)
            .unwrap_or_else(|| Self::Unknown {
                kind: kind.to_owned(),
                id: id.to_owned(),
            })
    }

    /// Returns the kind as it is stored and sent.
    #[must_use]
    pub fn kind(&self) -> &str {
        match self {
            Self::Unknown { kind, .. } => kind,
            known => KINDS.get(known.stage()).copied().unwrap_or_default(),
        }
    }

    /// Returns the id as it is stored and sent.
    #[must_use]
    pub fn id(&self) -> Cow<'_, str> {
        match self {
            Self::Mesh | Self::Policy => Cow::Borrowed(MESH_ID),
            Self::Token(key)
            | Self::Membership(key)
            | Self::Revocation(key)
            | Self::Departure(key)
            | Self::Node(key)
            | Self::Name(key) => Cow::Owned(key.to_string()),
            Self::Service(id) => Cow::Owned(id.to_string()),
            Self::Unknown { id, .. } => Cow::Borrowed(id),
        }
    }

    /// Returns the position of the kind in the order of dependency. Use this to sort records by their dependency and to keep
    /// another order among the records of one kind; the order of whole keys also compares ids.
    #[must_use]
    pub fn stage(&self) -> usize {
        match self {
            Self::Mesh => 0,
            Self::Token(_) => 1,
            Self::Membership(_) => 2,
            Self::Revocation(_) => 3,
            Self::Departure(_) => 4,
            Self::Node(_) => 5,
            Self::Name(_) => 6,
            Self::Service(_) => 7,
            // Digests depend on the order, and earlier versions have it after the kinds that they know.
            Self::Policy => 8,
            Self::Unknown { .. } => KINDS.len(),
        }
    }

    /// Returns the key under which a ledger holds a record with this key that `signer` signed, if `signer` is not the mesh key.
    pub(super) fn of_member(self, signer: &PublicKey) -> Self {
        let is_oldest = |kind: &str| KINDS.iter().take(OLDEST_KINDS).any(|known| *known == kind);
        if is_oldest(self.kind()) {
            return self;
        }
        Self::Unknown {
            kind: format!("{} of {signer}", self.kind()),
            id: self.id().into_owned(),
        }
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.id())
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for RecordKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut texts = serializer.serialize_struct("RecordKey", 2)?;
        texts.serialize_field("kind", self.kind())?;
        texts.serialize_field("id", &self.id())?;
        texts.end()
    }
}

impl<'de> Deserialize<'de> for RecordKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename = "RecordKey")]
        struct Texts<'a> {
            #[serde(borrow)]
            kind: Cow<'a, str>,
            #[serde(borrow)]
            id: Cow<'a, str>,
        }
        let Texts { kind, id } = Texts::deserialize(deserializer)?;
        Ok(Self::parse(&kind, &id))
    }
}

/// The id of a service record: `<node>/<name>` or `<node>/<project>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId {
    node: PublicKey,
    /// `<name>` or `<project>/<name>`. It is one text, so that the order of ids is the order of their texts.
    path: String,
}

impl ServiceId {
    /// The id of the service `name` of `node`, which belongs to a Compose project or to none.
    #[must_use]
    pub fn new(node: PublicKey, project: Option<&Label>, name: &Label) -> Self {
        let path = match project {
            Some(project) => format!("{project}/{name}"),
            None => name.to_string(),
        };
        Self { node, path }
    }

    /// Reads an id. Returns none if `text` is not the id of any service.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (node, path) = text.split_once('/')?;
        let node = node.parse().ok()?;
        let (project, name) = match path.split_once('/') {
            Some((project, name)) => (Some(Label::parse(project).ok()?), name),
            None => (None, path),
        };
        let id = Self::new(node, project.as_ref(), &Label::parse(name).ok()?);
        (id.path == path).then_some(id)
    }

    /// Returns the name of the service with that of its project: `<name>` or `<name>.<project>`.
    #[must_use]
    pub fn service_name(&self) -> String {
        match self.path.split_once('/') {
            Some((project, name)) => format!("{name}.{project}"),
            None => self.path.clone(),
        }
    }

    /// Returns the node that serves it.
    #[must_use]
    pub fn node(&self) -> PublicKey {
        self.node
    }

    /// Returns an id that no service has and that comes before those of all services of `node`.
    pub(super) fn before_all_of(node: PublicKey) -> Self {
        Self {
            node,
            path: String::new(),
        }
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.path)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn public(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn label(text: &str) -> Label {
        Label::parse(text).expect("a literal")
    }

    /// One key of each kind, in the order of dependency.
    fn keys() -> Vec<RecordKey> {
        let service = ServiceId::new(public(0), Some(&label("shop")), &label("web"));
        vec![
            RecordKey::Mesh,
            RecordKey::Token(public(9)),
            RecordKey::Membership(public(8)),
            RecordKey::Revocation(public(7)),
            RecordKey::Departure(public(6)),
            RecordKey::Node(public(5)),
            RecordKey::Name(public(4)),
            RecordKey::Service(service),
            RecordKey::Policy,
            RecordKey::Unknown {
                kind: "a".into(),
                id: String::new(),
            },
        ]
    }

    #[test]
    fn the_order_of_keys_is_the_order_of_dependency() {
        let keys = keys();
        assert!(keys.is_sorted());
        let stages: Vec<usize> = keys.iter().map(RecordKey::stage).collect();
        assert_eq!(stages, Vec::from_iter(0..10));
        let kinds: Vec<&str> = keys.iter().map(RecordKey::kind).collect();
        assert_eq!(kinds[..9], KINDS);
    }

    #[test]
    fn a_key_is_written_in_the_form_of_earlier_versions() {
        let text = |key| serde_json::to_string(&key).expect("plain data");
        assert_eq!(text(RecordKey::Mesh), r#"{"kind":"mesh","id":"mesh"}"#);
        let id = "0101010101010101010101010101010101010101010101010101010101010101";
        assert_eq!(
            text(RecordKey::Membership(public(1))),
            format!(r#"{{"kind":"membership","id":"{id}"}}"#)
        );
        let service = ServiceId::new(public(1), None, &label("web"));
        assert_eq!(
            text(RecordKey::Service(service)),
            format!(r#"{{"kind":"service","id":"{id}/web"}}"#)
        );
        let service = ServiceId::new(public(1), Some(&label("shop")), &label("web"));
        assert_eq!(
            text(RecordKey::Service(service)),
            format!(r#"{{"kind":"service","id":"{id}/shop/web"}}"#)
        );
        assert_eq!(text(RecordKey::Policy), r#"{"kind":"policy","id":"mesh"}"#);
        assert_eq!(
            text(RecordKey::Policy.of_member(&public(1))),
            format!(r#"{{"kind":"policy of {id}","id":"mesh"}}"#)
        );
        let unknown = RecordKey::parse("weather", "here");
        assert_eq!(
            text(unknown.of_member(&public(1))),
            format!(r#"{{"kind":"weather of {id}","id":"here"}}"#)
        );
    }

    #[test]
    fn a_key_is_shown_by_its_two_texts() {
        let key = RecordKey::parse("weather", "here");
        assert_eq!(format!("{key} {key:?}"), "weather here weather here");
    }

    #[test]
    fn every_kind_is_read_from_what_it_is_written_as() {
        for key in keys() {
            assert_eq!(RecordKey::parse(key.kind(), &key.id()), key);
            let text = serde_json::to_string(&key).expect("plain data");
            assert_eq!(serde_json::from_str::<RecordKey>(&text).ok(), Some(key));
        }
    }

    #[test]
    fn an_id_that_no_record_of_its_kind_has_is_kept_as_it_is() {
        let node = public(0xab);
        let capitals = node.to_string().to_uppercase();
        for (kind, id) in [
            ("mesh", "other"),
            ("node", ""),
            ("node", "x"),
            ("node", capitals.as_str()),
            ("service", &format!("{node}/")),
            ("service", &format!("{node}/Web")),
            ("service", &format!("{node}/a/b/c")),
            ("service", &format!("{node}//web")),
            ("service", &format!("{capitals}/web")),
            ("service", &node.to_string()),
        ] {
            let key = RecordKey::parse(kind, id);
            assert!(matches!(key, RecordKey::Unknown { .. }), "{kind} {id}");
            assert_eq!((key.kind(), &*key.id()), (kind, id));
            // The kind is known, so a ledger does not append a signer.
            assert_eq!(key.clone().of_member(&public(1)), key);
        }
    }

    #[test]
    fn the_ids_of_the_services_of_a_node_follow_each_other_in_the_order_of_their_texts() {
        let id = |project: Option<&str>, name: &str| {
            ServiceId::new(public(1), project.map(label).as_ref(), &label(name))
        };
        let mut ids = [
            id(Some("a"), "x"),
            id(None, "a-b"),
            id(None, "b"),
            id(Some("a0"), "x"),
            id(None, "a"),
        ];
        ids.sort();
        let texts = ids.each_ref().map(ToString::to_string);
        assert!(texts.is_sorted(), "{texts:?}");
        assert!(
            ids.iter()
                .all(|id| *id > ServiceId::before_all_of(public(1)))
        );
        assert!(
            ids.iter()
                .all(|id| *id < ServiceId::before_all_of(public(2)))
        );
        assert!(ids.iter().all(|id| id.node() == public(1)));
    }

    proptest! {
        #[test]
        fn every_pair_of_texts_is_written_as_it_was_read(
            kind in prop_oneof![prop::sample::select(KINDS.to_vec()).prop_map(str::to_owned), ".{0,40}"],
            id in prop_oneof!["[0-9a-fA-F]{64}(/[a-zA-Z0-9-]{1,5}){0,3}", ".{0,80}", Just(MESH_ID.to_owned())],
        ) {
            let key = RecordKey::parse(&kind, &id);
            prop_assert_eq!(key.kind(), &kind);
            prop_assert_eq!(key.id(), id);
        }
    }
}
