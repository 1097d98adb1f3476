//! Computes the map of the mesh from a ledger: the members, their names, and their services.

use std::collections::{HashMap, HashSet};

use super::{Ledger, guests};
use crate::model::{Label, PublicKey};
use crate::records::RecordKey;
use crate::records::kinds::{Membership, MeshPolicy, PATHS_1, Record, Service};
use crate::records::netmap::{AtRouter, GuestAt, Member, Netmap, Rules};

impl Ledger {
    /// Returns the policy record, whether this version understands its text or not.
    #[must_use]
    pub fn policy(&self) -> Option<&MeshPolicy> {
        match &self.entry(&RecordKey::Policy)?.record {
            Record::Policy(policy) => Some(policy),
            _ => None,
        }
    }

    /// Returns the map of the mesh under the policy that the ledger holds.
    #[must_use]
    pub fn netmap(&self) -> Netmap {
        let policy = self.entry(&RecordKey::Policy);
        self.netmap_under(policy.map_or(Rules::Open, |entry| Rules::of(&entry.record)))
    }

    /// Returns the members that have published a node record, and those of their services that they may serve by `rules`.
    #[must_use]
    pub fn netmap_under(&self, rules: Rules) -> Netmap {
        let mut netmap = Netmap {
            mesh: self.mesh().cloned(),
            rules,
            ..Netmap::default()
        };
        let mut names = self.names();
        for membership in self.memberships() {
            let (Some(name), Some(node)) =
                (names.remove(&membership.id), self.node(&membership.id))
            else {
                continue;
            };
            netmap.add_routes(&membership.id, &name, &node.routes);
            netmap.members.insert(
                membership.id,
                Member {
                    id: membership.id,
                    name,
                    issued_at: membership.issued_at,
                    tags: self.tags_of(membership),
                    wireguard_key: node.wireguard_key,
                    block: node.block,
                    endpoints: node.routable_endpoints(),
                    without_ipv6: node.without_ipv6,
                    speaks_paths: node.speaks(PATHS_1),
                    relays: node.relays.clone(),
                    at_router: AtRouter {
                        mapped: node.mapped.clone(),
                        observed: node.routable_observed(),
                    },
                    stream: node.stream.clone(),
                },
            );
        }
        netmap.leave_out_relays();
        netmap.guests = guests_at(self, &netmap);
        for service in self.services() {
            netmap.replace(&service.id, Some(service));
        }
        netmap
    }

    /// Updates one service in `netmap` from its record. Returns the service that `netmap` had before. Use this only if no other
    /// record changed.
    pub fn renew(&self, netmap: &mut Netmap, id: &str) -> Option<Service> {
        netmap.replace(id, self.service(id))
    }

    /// Returns the names of all members. If two members joined with one name, the member that joined first has it. A member that
    /// wants another name has that name, unless another member joined with it or an earlier member wants it too.
    #[must_use]
    pub fn names(&self) -> HashMap<PublicKey, Label> {
        let mut by_age: Vec<&Membership> = self
            .memberships()
            .filter(|m| !self.is_revoked(&m.id))
            .collect();
        by_age.sort_by_key(|m| (m.issued_at, m.id));
        let mut taken = HashSet::new();
        let mut names = HashMap::new();
        for membership in &by_age {
            let name = if taken.insert(membership.name.clone()) {
                membership.name.clone()
            } else {
                membership.name.with_suffix(&membership.id.short())
            };
            names.insert(membership.id, name);
        }
        for membership in by_age {
            if let Some(wanted) = self.wanted_name(&membership.id)
                && taken.insert(wanted.name.clone())
            {
                names.insert(membership.id, wanted.name.clone());
            }
        }
        names
    }
}

/// Returns the guests to which a door among the members of `netmap` has leased addresses of its block. If a door leased an address
/// twice, one guest has it.
fn guests_at(ledger: &Ledger, netmap: &Netmap) -> Vec<GuestAt> {
    let mut found = Vec::new();
    let mut taken = HashSet::new();
    for guest in guests::guests(ledger).into_values() {
        for door in &guest.doors {
            let member = netmap.members.get(&door.node);
            let leases = ledger.node(&door.node).map_or(&[][..], |node| &node.guests);
            let lease = leases.iter().find(|lease| lease.key == guest.id);
            let (Some(member), Some(lease)) = (member, lease) else {
                continue;
            };
            let Some((v4, v6)) = lease.addresses(&member.block) else {
                continue;
            };
            if taken.insert(v4) {
                found.push(GuestAt {
                    name: guest.name.clone(),
                    key: guest.id,
                    tags: guest.tags.clone(),
                    door: door.node,
                    v4,
                    v6,
                    heard: lease.heard,
                });
            }
        }
    }
    found
}
