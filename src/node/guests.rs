//! The guests for which this node is the door. Pure.
//!
//! The records of guests decide which devices are let in. This part leases an address of the node's block to each of them, opens their preshared
//! keys, and notes whether they are heard. Leases are taken from the end of the block, since containers have those from the beginning. They
//! are in the node record, from which they are taken again after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use zeroize::Zeroizing;

use self::places::Places;
use super::transitions::guests::{GuestChange, GuestTurn};
use crate::model::address::Block;
use crate::model::time::{Now, UnixSeconds};
use crate::model::{Label, PublicKey, SigningKey, WireGuardKey};
use crate::protocol::local::Problem;
use crate::records::Ledger;
use crate::records::kinds::{Guest, GuestLease, MAX_GUESTS};
use crate::records::ledger::guests;
use crate::tunnel::PeerConfig;

mod places;

/// How long a guest counts as heard after its last datagram: WireGuard rejects a session after three minutes without a new one.
pub(super) const HEARD: Duration = Duration::from_secs(180);
/// The interval at which the guests are looked at: an expired one is out within a second.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long an address is not leased again, so that nothing that is meant for one guest reaches another one.
const REUSE_DELAY: Duration = Duration::from_secs(60);

/// What the guests of a node depend on.
pub(super) struct DoorFacts<'a> {
    /// The identity key of this node.
    pub own: &'a SigningKey,
    pub block: &'a Block,
    pub ledger: &'a Ledger,
    /// The addresses that containers and services outside the mesh have.
    pub taken: &'a BTreeSet<Ipv4Addr>,
    /// The range from which the container engine assigns addresses by itself.
    pub native: Option<Ipv4Net>,
}

impl DoorFacts<'_> {
    /// The leases in the record of this node.
    fn leases(&self) -> &[GuestLease] {
        let record = self.ledger.node(&self.own.public());
        record.map_or(&[], |record| &record.guests)
    }
}

/// The last datagram of a guest: when it came, and where from.
pub(super) type LastHeard = (Instant, Option<SocketAddr>);

/// The guests of this node.
#[derive(Default)]
pub(super) struct Guests {
    admitted: BTreeMap<WireGuardKey, Admitted>,
    /// The guests that are not let in although their records name this node, and why.
    refused: BTreeMap<Label, &'static str>,
    /// The numbers of hosts that were leased until then.
    released: BTreeMap<u16, Instant>,
    looked: Option<Instant>,
}

struct Admitted {
    name: Label,
    host: u16,
    preshared_key: Zeroizing<[u8; 32]>,
    preshared_hash: PublicKey,
    expires_at: Option<UnixSeconds>,
    last: Option<LastHeard>,
    is_heard: bool,
    places: Places,
    /// The two places from which it sends in turns.
    shared: Option<(SocketAddr, SocketAddr)>,
}

/// A guest as the status has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GuestView<'a> {
    pub name: &'a Label,
    pub lease: GuestLease,
    pub last: Option<LastHeard>,
}

impl Guests {
    /// Follows the records. Returns the transitions.
    pub(super) fn follow(&mut self, door: &DoorFacts<'_>, now: Now) -> Vec<GuestChange> {
        let wall = UnixSeconds::from_system(now.wall);
        let id = door.own.public();
        let mut wanted: Vec<Guest> = guests::guests(door.ledger).into_values().collect();
        wanted.retain(|guest| guest.door(&id).is_some() && !guest.is_expired(wall));
        wanted.sort_by_key(|guest| (guest.version, guest.id));
        // One with another preshared key than before is let in anew, at the same addresses.
        let is_same = |key: &WireGuardKey, held: &Admitted| {
            let guest = wanted.iter().find(|guest| guest.id == *key);
            guest.is_none_or(|guest| guest.preshared_hash == held.preshared_hash)
        };
        self.admitted.retain(|key, held| is_same(key, held));
        let mut changes = self.let_go(&wanted, door.ledger, now);
        self.released
            .retain(|_, since| now.monotonic.saturating_duration_since(*since) < REUSE_DELAY);
        self.refused.clear();
        for guest in wanted {
            if let Some(held) = self.admitted.get_mut(&guest.id) {
                held.name = guest.name;
                held.expires_at = guest.expires_at;
                continue;
            }
            match self.admit(&guest, door) {
                Ok(admitted) => {
                    self.admitted.insert(guest.id, admitted);
                    // After a restart, its lease is in the record of this node already.
                    if !door.leases().iter().any(|lease| lease.key == guest.id) {
                        let turn = GuestTurn::Added(guest.expires_at);
                        changes.push(GuestChange::new(&guest.name, guest.id, turn));
                    }
                }
                Err(why) => drop(self.refused.insert(guest.name, why)),
            }
        }
        changes
    }

    /// Lets those go that are not among the wanted ones.
    fn let_go(&mut self, wanted: &[Guest], ledger: &Ledger, now: Now) -> Vec<GuestChange> {
        let keys: BTreeSet<WireGuardKey> = wanted.iter().map(|guest| guest.id).collect();
        let gone = self.admitted.extract_if(.., |key, _| !keys.contains(key));
        let gone: Vec<(WireGuardKey, Admitted)> = gone.collect();
        let change = |(key, guest): (WireGuardKey, Admitted)| {
            self.released.insert(guest.host, now.monotonic);
            let wall = UnixSeconds::from_system(now.wall);
            let is_expired = guest.expires_at.is_some_and(|at| at <= wall);
            let turn = if guests::is_removed(ledger, &key) || !is_expired {
                GuestTurn::Removed
            } else {
                GuestTurn::Expired
            };
            GuestChange::new(&guest.name, key, turn)
        };
        gone.into_iter().map(change).collect()
    }

    fn admit(&self, guest: &Guest, door: &DoorFacts<'_>) -> Result<Admitted, &'static str> {
        if self.admitted.len() >= MAX_GUESTS {
            return Err("this node has 64 guests, which is the most");
        }
        let preshared_key = guest.preshared(door.own);
        let preshared_key =
            preshared_key.ok_or("its preshared key is not sealed to this node in the right way")?;
        let host = self.host_for(guest, door);
        Ok(Admitted {
            name: guest.name.clone(),
            host: host.ok_or("all addresses of this node's block are in use")?,
            preshared_key,
            preshared_hash: guest.preshared_hash,
            expires_at: guest.expires_at,
            last: None,
            is_heard: false,
            places: Places::default(),
            shared: None,
        })
    }

    /// The number that the guest had before, or the highest one that is free.
    fn host_for(&self, guest: &Guest, door: &DoorFacts<'_>) -> Option<u16> {
        let leases = door.leases();
        let held: BTreeSet<u16> = self.admitted.values().map(|guest| guest.host).collect();
        let is_free = |host: &u16| {
            let address = door.block.instance(*host);
            let is_own = |v4: Ipv4Addr| door.native.is_some_and(|range| range.contains(&v4));
            address.is_some_and(|(v4, _)| {
                !held.contains(host) && !door.taken.contains(&v4) && !is_own(v4)
            })
        };
        let before = leases.iter().find(|lease| lease.key == guest.id);
        let before = before.map(|lease| lease.host).filter(is_free);
        // A guest that was let in before and is not yet admitted again keeps its address.
        let is_leased = |host: &u16| leases.iter().any(|lease| lease.host == *host);
        before.or_else(|| {
            let mut hosts = (2..=door.block.last_instance()).rev();
            hosts
                .find(|host| is_free(host) && !is_leased(host) && !self.released.contains_key(host))
        })
    }

    /// Notes when each guest was last heard, which `last` returns. Returns the guests that are heard after three minutes or more, and whether
    /// the record of this node has to be published for that.
    pub(super) fn handle_heard(
        &mut self,
        last: impl Fn(&WireGuardKey) -> Option<LastHeard>,
        now: Instant,
    ) -> (Vec<GuestChange>, bool) {
        self.looked = Some(now);
        let (mut changes, mut is_changed) = (Vec::new(), false);
        for (key, guest) in &mut self.admitted {
            guest.last = last(key);
            let heard = guest
                .last
                .filter(|(at, _)| now.saturating_duration_since(*at) < HEARD);
            if let Some((_, endpoint)) = heard.filter(|_| !guest.is_heard) {
                let turn = GuestTurn::Seen(endpoint);
                changes.push(GuestChange::new(&guest.name, *key, turn));
            }
            is_changed |= guest.is_heard != heard.is_some();
            guest.is_heard = heard.is_some();
            if let Some(place) = heard.and_then(|(_, endpoint)| endpoint) {
                guest.places.handle(place, now);
            }
            guest.shared = guest.places.shared(now);
        }
        (changes, is_changed)
    }

    /// Whether this is the key of a guest that is let in.
    pub(super) fn lets_in(&self, key: &WireGuardKey) -> bool {
        self.admitted.contains_key(key)
    }

    /// Whether a guest has expired and is still let in.
    pub(super) fn has_expired(&self, wall: UnixSeconds) -> bool {
        let mut ends = self.admitted.values().filter_map(|guest| guest.expires_at);
        ends.any(|at| at <= wall)
    }

    /// When the guests are to be looked at next.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let next = self.looked.map_or(now, |looked| looked + INTERVAL);
        (!self.admitted.is_empty()).then_some(next)
    }

    /// The leases for the record of this node.
    pub(super) fn leases(&self) -> Vec<GuestLease> {
        self.views().map(|view| view.lease).collect()
    }

    /// The guests for the status.
    pub(super) fn views(&self) -> impl Iterator<Item = GuestView<'_>> {
        self.admitted.iter().map(|(key, guest)| GuestView {
            name: &guest.name,
            lease: GuestLease {
                key: *key,
                host: guest.host,
                heard: guest.is_heard,
            },
            last: guest.last,
        })
    }

    /// The guests as peers of the tunnel.
    pub(super) fn peers(&self, block: &Block) -> Vec<PeerConfig> {
        let peers = self.admitted.iter().filter_map(|(key, guest)| {
            let (v4, v6) = block.instance(guest.host)?;
            Some(PeerConfig {
                public_key: key.0,
                preshared_key: Some(*guest.preshared_key),
                endpoint: None,
                allowed_ips: vec![IpAddr::V4(v4).into(), IpAddr::V6(v6).into()],
                persistent_keepalive: None,
            })
        });
        peers.collect()
    }

    /// The IPv4 addresses of the guests.
    pub(super) fn addresses(&self, block: &Block) -> BTreeSet<Ipv4Addr> {
        let hosts = self.admitted.values().map(|guest| guest.host);
        hosts
            .filter_map(|host| block.instance(host).map(|(v4, _)| v4))
            .collect()
    }

    /// The guests that this node does not let in, and those that two devices seem to be, with remedies.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let refused = |(name, why): (&Label, &&'static str)| Problem {
            what: format!("the guest {name} is not let in"),
            why: (*why).to_owned(),
            fix: format!(
                "remove it with `meshctl guest remove {name}`, and add it again with another --door"
            ),
        };
        let shared = |guest: &Admitted| {
            let (name, (one, other)) = (&guest.name, guest.shared?);
            Some(Problem {
                what: format!("the guest {name} sends from two places in turns"),
                why: format!(
                    "{one} and {other} use its key at the same time, so both lose packets"
                ),
                fix: format!(
                    "use its configuration on one device only, and add another guest for the other one; if you do not know both, somebody has its key: `meshctl guest remove {name}`"
                ),
            })
        };
        let refused = self.refused.iter().map(refused);
        refused
            .chain(self.admitted.values().filter_map(shared))
            .collect()
    }
}

#[cfg(test)]
mod tests;
