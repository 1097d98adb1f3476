//! The door of a new guest: a node at which devices anywhere can knock. Pure.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::cli::exit::CliError;
use crate::model::address::is_public;
use crate::model::text::listed;
use crate::model::{Label, WireGuardKey};
use crate::protocol::api::ErrorCode;
use crate::records::Ledger;
use crate::records::kinds::{MAX_DOORS, MAX_GUESTS};
use crate::records::netmap::{Member, Netmap};

/// The maximum number of addresses that a message names.
const MAX_NAMED: usize = 4;

/// A node that is to be a door of a new guest.
pub(super) struct Chosen<'a> {
    pub(super) member: &'a Member,
    /// The key of its tunnel towards guests.
    pub(super) key: WireGuardKey,
    /// Where guests reach it.
    pub(super) endpoint: SocketAddr,
}

/// The doors with these names. With `given`, guests reach the only one there.
///
/// # Errors
/// A name is there twice, or one of the nodes can be no door.
pub(super) fn choose<'a>(
    names: &[Label],
    given: Option<SocketAddr>,
    netmap: &'a Netmap,
    ledger: &Ledger,
) -> Result<Vec<Chosen<'a>>, CliError> {
    let refuse = |text: String| Err(CliError::new(ErrorCode::BadRequest, text));
    if names.len() > MAX_DOORS {
        return refuse(format!(
            "guest add: a guest has at most {MAX_DOORS} doors; give fewer of --door"
        ));
    }
    if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
        return refuse("guest add: a node is named twice; name each door once".to_owned());
    }
    if given.is_some() && names.len() > 1 {
        return refuse(
            "guest add: --endpoint is the address of one door, and there are several; set `advertise` in [path] of the meshd.toml of each instead".to_owned(),
        );
    }
    let door_of = |name: &Label| {
        let (member, key) = find(name, netmap, ledger)?;
        let endpoint = match given {
            Some(endpoint) => endpoint,
            None => endpoint(member)?,
        };
        Ok::<_, CliError>(Chosen {
            member,
            key,
            endpoint,
        })
    };
    names.iter().map(door_of).collect()
}

/// The node with this name, with the key of its tunnel towards guests, if it can be the door of one more guest.
///
/// # Errors
/// There is no such node, its version knows no guests, or it has as many as it may have.
fn find<'a>(
    name: &Label,
    netmap: &'a Netmap,
    ledger: &Ledger,
) -> Result<(&'a Member, WireGuardKey), CliError> {
    let refuse = |code, text: String| Err(CliError::new(code, text));
    let Some(member) = netmap.by_name(name) else {
        return refuse(
            ErrorCode::NotFound,
            format!("guest add: there is no node {name}; `meshctl node list` shows all"),
        );
    };
    let record = ledger.node(&member.id);
    let Some(key) = record.and_then(|record| record.guest_key) else {
        return refuse(
            ErrorCode::Version,
            format!(
                "guest add: the version of meshd on {name} knows no guests; upgrade it, or name another node with --door"
            ),
        );
    };
    if record.is_some_and(|record| record.guests.len() >= MAX_GUESTS) {
        return refuse(
            ErrorCode::Conflict,
            format!(
                "guest add: {name} has {MAX_GUESTS} guests, which is the most; name another node with --door, or remove a guest"
            ),
        );
    }
    Ok((member, key))
}

/// The address at which a guest reaches the door from anywhere: one that its router maps to it, or a public one of its own. IPv4 comes first,
/// since not every network has IPv6.
///
/// # Errors
/// The door has no such address.
fn endpoint(door: &Member) -> Result<SocketAddr, CliError> {
    let all = door.at_router.mapped.iter().chain(&door.endpoints);
    let public = all.filter(|endpoint| is_public(endpoint.ip()));
    // The first one of those that are equally good stays the first.
    if let Some(endpoint) = public.min_by_key(|endpoint| endpoint.is_ipv6()) {
        return Ok(*endpoint);
    }
    let offered = if door.endpoints.is_empty() {
        "it offers none".to_owned()
    } else {
        format!("it offers {}", listed(&door.endpoints, MAX_NAMED))
    };
    let text = format!(
        "guest add: no device outside its network reaches {}: it has no public address, and its router maps none to it ({offered}); let the router map a UDP port to it, set `advertise` in [path] of its meshd.toml, or give the address at which guests reach it with --endpoint",
        door.name
    );
    Err(CliError::new(ErrorCode::Configuration, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::netmap::AtRouter;
    use crate::testbed::records as build;

    fn member(endpoints: &[&str], mapped: &[&str]) -> Member {
        let parsed = |all: &[&str]| -> Vec<SocketAddr> {
            let all = all.iter();
            all.map(|text| text.parse().expect("a literal")).collect()
        };
        Member {
            endpoints: parsed(endpoints),
            at_router: AtRouter {
                mapped: parsed(mapped),
                ..AtRouter::default()
            },
            ..build::member(&build::id(1), "web-1", build::block(1))
        }
    }

    #[test]
    fn a_guest_is_sent_to_an_address_that_is_reached_from_anywhere() {
        let of = |endpoints: &[&str], mapped: &[&str]| {
            endpoint(&member(endpoints, mapped))
                .map(|e| e.to_string())
                .ok()
        };
        let (private, v4, v6) = ("10.0.0.5:51820", "203.0.113.7:51820", "[2001:db8::7]:51820");
        assert_eq!(of(&[private, v4], &[]).as_deref(), Some(v4));
        assert_eq!(of(&[v6, v4], &[]).as_deref(), Some(v4));
        assert_eq!(of(&[v6, private], &[]).as_deref(), Some(v6));
        assert_eq!(
            of(&[private], &["198.51.100.1:4000"]).as_deref(),
            Some("198.51.100.1:4000")
        );
        // A router whose own address is private is behind another one.
        assert_eq!(of(&[private], &["100.64.0.1:4000"]), None);
        assert_eq!(of(&[private], &[]), None);
        assert_eq!(of(&[], &[]), None);
    }

    #[test]
    fn a_door_that_nobody_outside_reaches_is_refused_with_what_to_do() {
        let error = endpoint(&member(&["10.0.0.5:51820"], &[])).expect_err("it is private");
        for part in ["web-1", "10.0.0.5:51820", "--endpoint", "advertise"] {
            assert!(error.message.contains(part), "{}", error.message);
        }
    }

    #[test]
    fn a_door_is_named_once_and_an_address_is_that_of_one_door() {
        let (netmap, ledger) = (Netmap::default(), Ledger::new(build::id(9)));
        let said = |names: &[&str], given: Option<&str>| {
            let names: Vec<Label> = names.iter().map(|name| build::label(name)).collect();
            let given = given.and_then(|text| text.parse().ok());
            let chosen = choose(&names, given, &netmap, &ledger);
            chosen.map_or_else(|error| error.message, |_| String::new())
        };
        assert!(said(&["a", "a"], None).contains("named twice"));
        let given = Some("203.0.113.7:51820");
        assert!(said(&["a", "b"], given).contains("there are several"));
        assert!(said(&["a"], given).contains("there is no node a"));
        let many = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        assert!(said(&many, None).contains("at most 8 doors"));
    }

    #[test]
    fn a_node_that_is_unknown_or_of_an_earlier_version_is_no_door() {
        let mut netmap = Netmap::default();
        let door = member(&[], &[]);
        netmap.members.insert(door.id, door);
        let ledger = Ledger::new(build::id(9));
        let said = |name: &str| match find(&build::label(name), &netmap, &ledger) {
            Ok((member, _)) => member.name.to_string(),
            Err(error) => error.message,
        };
        assert!(said("web-2").contains("there is no node web-2"));
        assert!(said("web-1").contains("knows no guests"));
    }
}
