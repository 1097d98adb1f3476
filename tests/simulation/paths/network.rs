//! The way of datagrams between hosts: local networks, translators, the number of routers on the way, delays and losses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use meshd::tunnel::relay::Header;

use super::nat::{Inward, Kind, Nat};
use super::plan::Site;
use super::wireguard::Message;
use crate::network::At;
use crate::random::Random;

/// The port of the tunnel of each node.
pub(crate) const PORT: u16 = 51820;
/// The number of routers that most datagrams may pass.
pub(crate) const TTL: u8 = 64;

/// A UDP datagram.
#[derive(Debug, Clone)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) ttl: u8,
    /// The header of the frame, if a relay forwards it or did.
    pub(crate) header: Option<Header>,
    /// None if it is empty.
    pub(crate) message: Option<Rc<Message>>,
}

/// What becomes of a datagram that a host sends.
#[derive(Debug)]
pub(crate) enum Sent {
    /// It arrives at the site with this number after this time.
    ToSite(usize, Duration, Datagram),
    /// It arrives at the node with this number after this time.
    ToNode(usize, Duration, Datagram),
    Lost,
}

/// The network behind one router, or a host with a public address.
#[derive(Debug)]
struct Place {
    site: Site,
    nat: Option<Nat>,
    /// The translator of the provider.
    carrier: Option<Nat>,
    /// The nodes and their addresses.
    hosts: Vec<(usize, SocketAddr)>,
}

#[derive(Debug)]
pub(crate) struct Network {
    places: Vec<Place>,
    /// The sites from which nothing arrives at other sites.
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    /// The percentage of datagrams that are lost between sites.
    pub(crate) loss: u64,
}

/// The address of a host of a member that lies about its addresses.
pub(crate) const VICTIM: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 250);
/// The delay within a local network.
const LOCAL: Duration = Duration::from_micros(300);

impl Network {
    /// `homes` has the number of the site of each node.
    pub(crate) fn new(sites: &[Site], homes: &[usize], loss: u64) -> Self {
        let places = sites.iter().enumerate().map(|(number, site)| {
            let last = number as u8 + 1;
            let (public, shared) = (
                Ipv4Addr::new(203, 0, 113, last),
                Ipv4Addr::new(100, 64, 0, last),
            );
            let own = Ipv4Addr::new(198, 51, 100, last);
            let outer = match (site.kind.is_public(), site.has_carrier) {
                (true, _) => own,
                (false, true) => shared,
                (false, false) => public,
            };
            let nat = Nat::new(site.kind, outer, site.is_hairpin, site.timeout);
            let carrier = Nat::new(Kind::PortRestricted, public, false, site.timeout);
            let at_home = homes
                .iter()
                .enumerate()
                .filter(|(_, home)| **home == number);
            let hosts = at_home.enumerate().map(|(place, (node, _))| {
                let private = Ipv4Addr::new(192, 168, 1, 10 + place as u8);
                let address = if site.kind.is_public() { own } else { private };
                (node, SocketAddr::from((address, PORT)))
            });
            Place {
                site: site.clone(),
                nat: (site.kind != Kind::Public).then_some(nat),
                carrier: site.has_carrier.then_some(carrier),
                hosts: hosts.collect(),
            }
        });
        Self {
            places: places.collect(),
            cuts: BTreeSet::new(),
            loss,
        }
    }

    /// The address of a node's own interface.
    pub(crate) fn address_of(&self, node: usize) -> SocketAddr {
        let hosts = self.places.iter().flat_map(|place| &place.hosts);
        let mut hosts = hosts.filter(|(number, _)| *number == node);
        hosts.next().expect("each node has a site").1
    }

    pub(crate) fn rebind(&mut self, site: usize) {
        let place = &mut self.places[site];
        for nat in place.nat.iter_mut().chain(&mut place.carrier) {
            nat.rebind();
        }
    }

    /// A host in the site with number `home` sends a datagram from its own address.
    pub(crate) fn send(
        &mut self,
        home: usize,
        mut datagram: Datagram,
        now: At,
        random: &mut Random,
    ) -> Sent {
        let IpAddr::V4(to) = datagram.to.ip() else {
            return Sent::Lost;
        };
        let place = &mut self.places[home];
        if to.is_private() {
            let local = place.hosts.iter().find(|(_, own)| *own == datagram.to);
            let other = local.filter(|(_, own)| *own != datagram.from);
            let is_local = !place.site.kind.is_public();
            return match other.filter(|_| is_local) {
                Some((node, _)) => Sent::ToNode(*node, LOCAL, datagram),
                None => Sent::Lost,
            };
        }
        let depth = place.site.depth();
        if let Some(nat) = &mut place.nat {
            if datagram.to.ip() == nat.address() {
                let port = datagram.to.port();
                return match nat.hairpin(datagram.from, port, now, random) {
                    Some((seen, inner)) => {
                        let node = place.hosts.iter().find(|(_, own)| *own == inner);
                        (datagram.from, datagram.to) = (seen, inner);
                        node.map_or(Sent::Lost, |(node, _)| Sent::ToNode(*node, LOCAL, datagram))
                    }
                    None => Sent::Lost,
                };
            }
            // A router forgets a datagram that ends there before it translates it.
            if datagram.ttl <= 1 && !place.site.kind.is_public() {
                return Sent::Lost;
            }
            match nat.outward(datagram.from, datagram.to, now, random) {
                Some(seen) => datagram.from = seen,
                None => return Sent::Lost,
            }
        }
        if let Some(carrier) = &mut place.carrier {
            if datagram.ttl <= 2 {
                return Sent::Lost;
            }
            match carrier.outward(datagram.from, datagram.to, now, random) {
                Some(seen) => datagram.from = seen,
                None => return Sent::Lost,
            }
        }
        datagram.ttl = datagram.ttl.saturating_sub(depth + 1);
        let target = self.places.iter().position(|place| place.is_at(to));
        let Some(target) = target.filter(|_| datagram.ttl > 0) else {
            return Sent::Lost;
        };
        let is_cut = self.cuts.contains(&(home, target));
        if is_cut || target == home || random.percent(self.loss) {
            return Sent::Lost;
        }
        let base = self.places[home].site.delay + self.places[target].site.delay;
        // The delay varies by a tenth.
        let delay = base + base.mul_f64(random.below(1000) as f64 / 10_000.0);
        Sent::ToSite(target, delay, datagram)
    }

    /// A datagram arrives at a site. Returns the node that receives it.
    pub(crate) fn arrive(
        &mut self,
        site: usize,
        mut datagram: Datagram,
        now: At,
    ) -> Option<(usize, Datagram)> {
        let place = &mut self.places[site];
        let mut left = datagram.ttl;
        let routers = place.site.depth();
        if let Some(carrier) = &mut place.carrier {
            left = left
                .checked_sub(routers.saturating_sub(2))
                .filter(|left| *left > 0)?;
            match carrier.inward(datagram.from, datagram.to.port(), now) {
                Inward::To(inner) => datagram.to = inner,
                Inward::Dropped => return None,
            }
            left = left.saturating_sub(1);
        } else {
            left = left.saturating_sub(routers.saturating_sub(1));
        }
        if left == 0 {
            return None;
        }
        if let Some(nat) = &mut place.nat {
            match nat.inward(datagram.from, datagram.to.port(), now) {
                Inward::To(inner) => datagram.to = inner,
                Inward::Dropped => return None,
            }
            left = left.saturating_sub(u8::from(routers > 0));
        }
        let node = place.hosts.iter().find(|(_, own)| *own == datagram.to);
        node.filter(|_| left > 0).map(|(node, _)| (*node, datagram))
    }
}

impl Place {
    /// Whether datagrams to this address arrive here.
    fn is_at(&self, address: Ipv4Addr) -> bool {
        let address = IpAddr::V4(address);
        match (&self.carrier, &self.nat) {
            (Some(carrier), _) => carrier.address() == address,
            (None, Some(nat)) => nat.address() == address,
            (None, None) => self.hosts.iter().any(|(_, own)| own.ip() == address),
        }
    }
}
