//! The packets that this node refused because of the policy.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tokio::sync::oneshot;

use crate::model::ServiceName;
use crate::model::time::UnixSeconds;
use crate::node::joined::JoinedNode;
use crate::protocol::local::{DeniedDirection, DeniedEnd, DeniedList, DeniedRow, SCHEMA};
use crate::records::netmap::Netmap;
use crate::tunnel::{Denied, Direction};

pub(in crate::node) fn denied(node: &JoinedNode) -> DeniedList {
    node.note_local_denials();
    let denied = node.device.tunnel.filter().denied();
    DeniedList {
        schema: SCHEMA,
        policy: node.device.policy.version(),
        denied: denied.iter().map(|d| row(&node.netmap, d)).collect(),
    }
}

/// Asks the kernel which packets between addresses of this node it refused. The receiver ends when the list has them.
pub(in crate::node) fn read_denials(node: &JoinedNode) -> oneshot::Receiver<()> {
    node.workloads.firewall.read_denials()
}

fn row(netmap: &Netmap, denied: &Denied) -> DeniedRow {
    let denial = &denied.denial;
    DeniedRow {
        from: end(netmap, denial.from),
        to: end(netmap, denial.to),
        asked: denial.asked.to_string(),
        direction: match denial.direction {
            Direction::Outgoing => DeniedDirection::Outgoing,
            Direction::Incoming => DeniedDirection::Incoming,
        },
        passed: denial.is_tried,
        count: denied.count,
        first_at: UnixSeconds::from_system(denied.first),
        last_at: UnixSeconds::from_system(denied.last),
    }
}

/// The node and the services that have an address, or the guest.
fn end(netmap: &Netmap, address: IpAddr) -> DeniedEnd {
    let member = netmap.owner_of(address);
    let services = netmap.services.values().filter(|service| {
        let mut instances = service.instances.iter();
        instances.any(|instance| instance.addresses.contains(&address))
    });
    let services: BTreeSet<ServiceName> = services.map(|s| s.service_name()).collect();
    let mut guests = netmap.guests.iter();
    let guest = guests.find(|guest| guest.addresses().contains(&address));
    DeniedEnd {
        address,
        node: member.map(|member| member.name.clone()),
        services: services.into_iter().collect(),
        guest: guest.map(|guest| guest.name.clone()),
    }
}
