//! Zones in the test's process, and queries to them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use hickory_proto::rr::{Name, RData, RecordType};
use meshd::dns::answer::{Verdict, answer};
use meshd::dns::{Zone, ZoneInput};
use meshd::records::netmap::Netmap;
use meshd::records::service_address::ServiceAddresses;

use crate::kit::Identity;

/// The zone of a node that serves nothing and has given out the service addresses in `held` before. The kernel balances connections
/// to the service addresses in `balanced`.
pub(crate) fn zone(
    netmap: &Netmap,
    balanced: &BTreeSet<Ipv4Addr>,
    held: &ServiceAddresses,
) -> Zone {
    Zone::build(&ZoneInput {
        netmap,
        own: Identity::of(250).id(),
        unreachable: &BTreeSet::new(),
        groups: &BTreeMap::new(),
        when_none_usable: Default::default(),
        lingering: &BTreeSet::new(),
        balanced,
        held,
        serial: 1,
        most_addresses: 8,
    })
}

/// The records in the answer for a name of the mesh.
pub(crate) fn ask(zone: &Zone, name: &str, record_type: RecordType, turn: u64) -> Vec<RData> {
    let name = Name::from_ascii(name).expect("a name");
    let entropy = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    match answer(zone, &name, record_type, entropy) {
        Verdict::Answer(answer) => answer.answers.into_iter().map(|r| r.data).collect(),
        Verdict::Forward => panic!("{name} is a name of the mesh"),
    }
}

/// The IPv4 addresses in the answer for a name of the mesh.
pub(crate) fn addresses(zone: &Zone, name: &str, turn: u64) -> Vec<Ipv4Addr> {
    let answered = ask(zone, name, RecordType::A, turn).into_iter();
    answered
        .filter_map(|data| match data {
            RData::A(address) => Some(address.0),
            _ => None,
        })
        .collect()
}
