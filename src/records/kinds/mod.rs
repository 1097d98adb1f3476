//! The kinds of records: signed facts on which nodes act.
//!
//! A record travels as an opaque payload (JSON text) inside a signed envelope; a reader parses that text into the types here. Unknown
//! fields are ignored and records of unknown kinds are stored whole, so that a mesh can mix versions: a node forwards the envelope that
//! it received, and never what it parsed from it.
//!
//! | kind | signed by | contents |
//! |---|---|---|
//! | `mesh` | mesh key | domain and address plan |
//! | `token` | mesh key | limits of a join token |
//! | `revocation` | mesh key | removal of a token or node |
//! | `policy` | mesh key | who may serve a name, who may reach it, and who may route to a network |
//! | `membership` | token key | admission of a node, with its name and tags |
//! | `departure` | node's identity key | the node has left for good |
//! | `node` | node's identity key | WireGuard key, address block, endpoints, networks that it offers |
//! | `name` | node's identity key | another name than that of its membership |
//! | `service` | node's identity key | the node's instances of one service |
//! | `api_revocation`, `guest`, `guest_removal` | mesh key | see [`super::api_revocation`] and [`Guest`] |
//!
//! Each record has a version that only grows; of two versions the higher one is kept.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};

mod guest;
mod members;
mod policy;
mod rules;
mod services;

pub use self::guest::{
    Door, GUEST, GUEST_REMOVAL, Guest, GuestLease, MAX_DOORS, MAX_GUEST_TAGS, MAX_GUESTS,
};
pub use self::members::{
    CALLS_1, Departure, MAX_COORDINATORS, MAX_ENDPOINTS, MAX_OBSERVED, MAX_RELAYS, MAX_ROUTES,
    MAX_STREAM_URL, MAX_TAGS, Membership, Mesh, Name, Node, PATHS_1, PEER_CALLS_1, POLICY_1,
    ROUTES_1, Revocation, RevokedKind, SPOKEN, StreamOffer, Token,
};
pub use self::policy::{MeshPolicy, NotUnderstood};
pub use self::rules::RecordError;
pub use self::services::{
    AllowError, Health, Instance, MAX_ADDRESSES, MAX_ALLOWED, MAX_INSTANCES, MAX_PORTS, MAX_PUBLIC,
    MAX_SELECTOR, Port, PublicError, Service, Source, default_weight, parse_allowed, parse_public,
    web_port,
};
pub use super::key::{MESH_ID, RecordKey, ServiceId};
pub use crate::model::Protocol;
use crate::policy::Policy;

/// The maximum length of a kind that this version does not know.
const MAX_KIND: usize = 32;
/// The maximum length of the id of a record whose kind this version does not know.
const MAX_ID: usize = 256;

/// The fields that every payload has, whatever its kind. They are not verified.
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
#[expect(
    clippy::large_enum_variant,
    reason = "a ledger has some thousand records, for which the difference is less than a megabyte"
)]
pub enum Record {
    /// The domain and address plan of the mesh.
    Mesh(Mesh),
    /// A token certificate.
    Token(Token),
    /// The administrator's revocation of a token or node.
    Revocation(Revocation),
    /// A node's membership certificate.
    Membership(Membership),
    /// A node's own record that it has left.
    Departure(Departure),
    /// A node's own description.
    Node(Node),
    /// Another name of a node.
    Name(Name),
    /// One service on one node.
    Service(Service),
    /// The policy of the mesh.
    Policy(MeshPolicy),
    /// A kind that this version does not know. Such a record is stored and forwarded.
    #[serde(other)]
    Unknown,
}

impl Record {
    /// Parses a payload and checks the rules that need nothing but the record itself. A kind that is not known is not an error.
    ///
    /// # Errors
    /// Says which rule the record breaks.
    pub fn parse(payload: &str) -> Result<(Header, Self), RecordError> {
        let malformed = |e: serde_json::Error| RecordError::Malformed(e.to_string());
        let header: Header = serde_json::from_str(payload).map_err(malformed)?;
        if let RecordKey::Unknown { kind, id } = &header.key
            && (id.is_empty() || id.len() > MAX_ID || kind.len() > MAX_KIND)
        {
            return Err(RecordError::WrongId);
        }
        let record = match serde_json::from_str(payload) {
            // Earlier versions hold records of this kind whatever is in them, so this version must hold them too.
            Ok(Self::Policy(_)) if header.key != RecordKey::Policy => Self::Unknown,
            Err(_) if header.key.kind() == RecordKey::Policy.kind() => Self::Unknown,
            parsed => parsed.map_err(malformed)?,
        };
        record.check()?;
        if record.key().is_some_and(|key| key != header.key) {
            return Err(RecordError::WrongId);
        }
        Ok((header, record))
    }

    /// Returns the payload of this record, as it is to be signed.
    #[must_use]
    pub fn payload(&self) -> String {
        serde_json::to_string(self).expect("records are maps with text keys")
    }

    /// Returns the policy of a record that a ledger holds as the policy of the mesh. It may be [`Record::Unknown`], see [`Record::parse`].
    ///
    /// # Errors
    /// This version does not understand the form of the record or the text.
    pub fn policy(&self) -> Result<Policy, NotUnderstood> {
        match self {
            Self::Policy(policy) => policy.policy(),
            _ => Err(NotUnderstood::Form),
        }
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
            Self::Policy(_) => RecordKey::Policy,
            Self::Unknown => return None,
        })
    }

    fn check(&self) -> Result<(), RecordError> {
        match self {
            Self::Mesh(mesh) => mesh.check(),
            Self::Token(token) => token.check(),
            Self::Membership(membership) => membership.check(),
            Self::Node(node) => node.check(),
            Self::Service(service) => service.check(),
            Self::Revocation(_)
            | Self::Departure(_)
            | Self::Name(_)
            | Self::Policy(_)
            | Self::Unknown => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PublicHost, WireGuardKey};
    use crate::testbed::records as build;

    fn service() -> Service {
        let address = "10.210.1.1".parse().expect("a literal");
        let instance = build::instance("n1-80", vec![address]);
        Service {
            version: 4,
            ..build::service(&build::id(3), "web", vec![instance])
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
    fn the_version_of_a_program_is_short_and_can_be_printed() {
        let node = |version: Option<&str>| Node {
            program_version: version.map(str::to_owned),
            ..build::node(&build::id(3), build::block(1))
        };
        // Versions that do not have the field read and write the same text.
        assert!(
            !Record::Node(node(None))
                .payload()
                .contains("program_version")
        );
        for version in [None, Some("0.2.0"), Some("1\n2\u{1b}[2J")] {
            let record = Record::Node(node(version));
            assert_eq!(Record::parse(&record.payload()).map(|(_, r)| r), Ok(record));
        }
        assert_eq!(
            node(Some("1\n2\u{1b}[2J")).shown_version().as_deref(),
            Some("1?2?[2J")
        );
        let long = Record::Node(node(Some(&"9".repeat(65))));
        assert!(Record::parse(&long.payload()).is_err());
    }

    #[test]
    fn a_node_says_what_it_speaks_and_other_words_are_ignored() {
        let node = |speaks: &[&str]| Node {
            speaks: speaks.iter().map(|word| (*word).to_owned()).collect(),
            ..build::node(&build::id(3), build::block(1))
        };
        // Versions that do not have the fields read and write the same text.
        let payload = Record::Node(node(&[])).payload();
        for field in [
            "speaks",
            "relays",
            "observed",
            "mapped",
            "stream",
            "guest",
            "services_from",
        ] {
            assert!(!payload.contains(field), "{field}");
        }
        for (speaks, expected) in [
            (&[][..], false),
            (&["paths-2"], false),
            (&["paths-1"], true),
            (&["smoke", "paths-1"], true),
        ] {
            let record = Record::Node(node(speaks));
            let (_, read) = Record::parse(&record.payload()).expect("just made");
            assert_eq!(read, record);
            assert_eq!(node(speaks).speaks(PATHS_1), expected, "{speaks:?}");
        }
    }

    /// A ledger holds the record, whatever a member writes into a field that earlier versions do not have: they hold it as well.
    #[test]
    fn whatever_is_in_the_fields_that_earlier_versions_ignore_the_record_is_held() {
        let read = |speaks: &str, relays: &str| {
            let fields = format!(
                r#"{{"speaks":{speaks},"relays":{relays},"observed":{relays},"mapped":{relays},"#
            );
            let node = Record::Node(build::node(&build::id(3), build::block(1)));
            let payload = node.payload().replacen('{', &fields, 1);
            match Record::parse(&payload) {
                Ok((_, Record::Node(node))) => (node.speaks, node.relays),
                other => panic!("{other:?}"),
            }
        };
        for odd in ["5", "null", r#""paths-1""#, r#"{"a":1}"#, r#"[1,null,[]]"#] {
            assert_eq!(read(odd, odd), (vec![], vec![]), "{odd}");
        }
        let long = "x".repeat(33);
        let (speaks, _) = read(&format!(r#"[7,"{long}","paths-1"]"#), "[]");
        assert_eq!(speaks, ["paths-1"]);
        let many = serde_json::to_string(&vec!["word"; 1000]).expect("plain data");
        assert_eq!(read(&many, "[]").0.len(), 16);
        let ids: Vec<_> = (1..9).map(build::id).collect();
        let many = serde_json::to_string(&ids).expect("plain data");
        assert_eq!(read("[]", &many).1, ids[..MAX_RELAYS]);
    }

    #[test]
    fn an_offer_of_a_stream_is_read_and_one_that_no_version_writes_is_ignored() {
        let read = |stream: &str| {
            let node = Record::Node(build::node(&build::id(3), build::block(1)));
            let fields = format!(r#"{{"stream":{stream},"#);
            let payload = node.payload().replacen('{', &fields, 1);
            match Record::parse(&payload) {
                Ok((_, Record::Node(node))) => node.stream,
                other => panic!("{other:?}"),
            }
        };
        let offer = |pin: Option<&str>| StreamOffer {
            url: "wss://a.example".to_owned(),
            pin: pin.map(str::to_owned),
        };
        let written = read(r#"{"url":"wss://a.example","pin":"ab","later":[1]}"#);
        assert_eq!(written, Some(offer(Some("ab"))));
        assert_eq!(read(r#"{"url":"wss://a.example"}"#), Some(offer(None)));
        let long = format!(r#"{{"url":"wss://{}"}}"#, "a".repeat(MAX_STREAM_URL));
        for odd in ["5", "null", "[]", r#"{"url":7}"#, r#"{"pin":"ab"}"#, &long] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }

    #[test]
    fn who_may_reach_an_instance_is_read_and_what_is_no_text_admits_nobody() {
        let read = |allow: &str| {
            let payload = Record::Service(service()).payload();
            // Versions that do not have the field read and write the same text.
            assert!(!payload.contains("allow"), "{payload}");
            let fields = format!(r#""allow":{allow},"source""#);
            match Record::parse(&payload.replacen(r#""source""#, &fields, 1)) {
                Ok((_, Record::Service(service))) => service.instances[0].allow.clone(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(read(r#"["shop/api","tag:ops"]"#), ["shop/api", "tag:ops"]);
        assert_eq!(read("[]"), [""; 0]);
        for odd in ["5", "null", "{}", r#""tag:ops""#, "[null]", "[[]]"] {
            assert_eq!(read(odd), [""], "{odd}");
        }
        let long = "x".repeat(MAX_SELECTOR + 1);
        assert_eq!(read(&format!(r#"["{long}","db"]"#)), ["", "db"]);
        let many = serde_json::to_string(&vec!["db"; 1000]).expect("plain data");
        assert_eq!(read(&many), ["db"; MAX_ALLOWED]);
    }

    #[test]
    fn the_host_names_of_an_instance_are_read_and_what_is_none_is_left_out() {
        let read = |public: &str| {
            let payload = Record::Service(service()).payload();
            // Versions that do not have the field read and write the same text.
            assert!(!payload.contains("public"), "{payload}");
            let fields = format!(r#""public":{public},"source""#);
            match Record::parse(&payload.replacen(r#""source""#, &fields, 1)) {
                Ok((_, Record::Service(service))) => {
                    let hosts = service.instances[0].public.iter();
                    hosts.map(ToString::to_string).collect::<Vec<_>>()
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            read(r#"["shop.example.com","*.Example.com"]"#),
            ["shop.example.com", "*.example.com"]
        );
        let none: [&str; 0] = [];
        for odd in [
            "5",
            "null",
            "{}",
            r#""shop.example.com""#,
            "[null,[],{}]",
            r#"["a.example`) || Host(`b.example","*.com","10.0.0.1",""]"#,
        ] {
            assert_eq!(read(odd), none, "{odd}");
        }
        let hosts: Vec<String> = (0..1000).map(|n| format!("h{n}.example.com")).collect();
        let many = serde_json::to_string(&hosts).expect("plain data");
        assert_eq!(read(&many), hosts[..MAX_PUBLIC]);
        let mut offered = service();
        offered.instances[0].public = vec![PublicHost::parse("a.example").expect("a literal")];
        let record = Record::Service(offered);
        assert_eq!(Record::parse(&record.payload()).map(|(_, r)| r), Ok(record));
    }

    #[test]
    fn what_a_node_is_without_is_written_only_where_it_is_without_it() {
        let node = |without_ipv6| Node {
            without_ipv6,
            ..build::node(&build::id(3), build::block(1))
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
    fn the_key_of_a_node_towards_guests_is_read_and_what_is_none_is_ignored() {
        let node = |guest_key| {
            Record::Node(Node {
                guest_key,
                ..build::node(&build::id(3), build::block(1))
            })
        };
        let read = |payload: &str| Record::parse(payload).map(|(_, record)| record);
        let with_key = node(Some(WireGuardKey([7; 32])));
        assert_eq!(read(&with_key.payload()), Ok(with_key));
        for odd in ["5", "null", "[]", r#""x""#] {
            let fields = format!(r#"{{"guest_key":{odd},"#);
            let payload = node(None).payload().replacen('{', &fields, 1);
            assert_eq!(read(&payload), Ok(node(None)), "{odd}");
        }
    }

    #[test]
    fn an_instance_without_a_weight_has_that_of_one_for_which_none_was_configured() {
        let payload = Record::Service(service()).payload();
        let without = payload.replacen(r#""weight":10,"#, "", 1);
        assert_ne!(without, payload);
        let read = Record::parse(&without).map(|(_, record)| record);
        assert_eq!(read, Ok(Record::Service(service())));
    }

    #[test]
    fn the_proof_of_a_membership_covers_all_that_it_says() {
        let key = build::key(3);
        let membership = Membership {
            tags: vec![build::label("db"), build::label("eu")],
            ..build::membership(&key.public(), &build::id(2), "n3")
        };
        // A membership without a proof has the same text as in earlier versions.
        let payload = Record::Membership(membership.clone()).payload();
        assert!(!payload.contains("proof"), "{payload}");
        assert!(!membership.is_proven());
        let proven = membership.clone().proven_by(&key);
        assert!(proven.is_proven() && !membership.proven_by(&build::key(4)).is_proven());
        let record = Record::Membership(proven.clone());
        assert_eq!(Record::parse(&record.payload()).map(|(_, r)| r), Ok(record));
        let changes: [fn(&mut Membership); 8] = [
            |m| m.id = build::id(5),
            |m| m.version += 1,
            |m| m.token = build::id(5),
            |m| m.name = build::label("n4"),
            |m| m.wireguard_key.0[0] ^= 1,
            |m| drop(m.tags.pop()),
            |m| m.tags = vec![build::label("dbeu")],
            |m| m.issued_at.0 += 1,
        ];
        for (n, change) in changes.into_iter().enumerate() {
            let mut changed = proven.clone();
            change(&mut changed);
            assert!(!changed.is_proven(), "{n}");
        }
    }

    #[test]
    fn each_list_of_a_record_may_reach_its_bound_and_not_exceed_it() {
        type Make = fn(usize) -> Record;
        let bounds: [(&str, usize, Make); 7] = [
            ("coordinators", MAX_COORDINATORS, |count| {
                Record::Mesh(Mesh {
                    coordinators: vec!["https://a.example".to_owned(); count],
                    ..build::mesh()
                })
            }),
            ("tags", MAX_TAGS, |count| {
                Record::Token(Token {
                    tags: vec![build::label("db"); count],
                    ..build::token(&build::id(2))
                })
            }),
            ("tags", MAX_TAGS, |count| {
                Record::Membership(Membership {
                    tags: vec![build::label("db"); count],
                    ..build::membership(&build::id(3), &build::id(2), "n3")
                })
            }),
            ("endpoints", MAX_ENDPOINTS, |count| {
                Record::Node(Node {
                    endpoints: vec!["192.0.2.7:51820".parse().expect("a literal"); count],
                    ..build::node(&build::id(3), build::block(1))
                })
            }),
            ("instances", MAX_INSTANCES, |count| {
                let mut service = service();
                service.instances = vec![service.instances[0].clone(); count];
                Record::Service(service)
            }),
            ("ports", MAX_PORTS, |count| {
                let mut service = service();
                service.instances[0].ports = vec![build::port(80, None); count];
                Record::Service(service)
            }),
            ("addresses", MAX_ADDRESSES, |count| {
                let mut service = service();
                let address = service.instances[0].addresses[0];
                service.instances[0].addresses = vec![address; count];
                Record::Service(service)
            }),
        ];
        for (what, most, make) in bounds {
            let check = |count| Record::parse(&make(count).payload()).map(drop);
            assert_eq!(check(most), Ok(()), "{what}");
            let found = most + 1;
            let too_many = RecordError::TooMany { what, found, most };
            assert_eq!(check(found), Err(too_many));
        }
    }

    #[test]
    fn a_kind_that_is_not_known_and_its_ids_have_bounds() {
        let parse = |kind: usize, id: usize| {
            let (kind, id) = ("k".repeat(kind), "i".repeat(id));
            let payload = format!(r#"{{"kind":"{kind}","id":"{id}","version":1}}"#);
            Record::parse(&payload).map(drop)
        };
        assert_eq!(parse(MAX_KIND, MAX_ID), Ok(()));
        for (kind, id) in [(MAX_KIND + 1, 1), (1, MAX_ID + 1), (1, 0)] {
            assert_eq!(parse(kind, id), Err(RecordError::WrongId), "{kind} {id}");
        }
    }

    #[test]
    fn a_record_that_lacks_a_field_of_its_kind_is_refused() {
        let id = build::id(3);
        let payload = format!(r#"{{"kind":"node","id":"{id}","version":1}}"#);
        let parsed = Record::parse(&payload);
        assert!(
            matches!(parsed, Err(RecordError::Malformed(_))),
            "{parsed:?}"
        );
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
