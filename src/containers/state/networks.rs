//! The networks of the engine, and the address of a container in them. Pure.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::containers::inspect::{Endpoint, EngineNetwork, Inspected, Network};
use crate::containers::labels::printable;
use crate::containers::network;
use crate::containers::refusal::Refusal;

/// The addresses of a container, of one family at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OwnAddresses {
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
}

/// The networks of the engine.
#[derive(Debug)]
pub(super) struct Networks {
    pub(super) by_id: BTreeMap<String, EngineNetwork>,
    /// The id of the network whose containers have mesh addresses of their own.
    pub(super) native: Option<String>,
    /// The wanted properties of that network.
    plan: Option<network::NativePlan>,
}

impl Networks {
    pub(super) fn new(plan: Option<network::NativePlan>) -> Self {
        Self {
            by_id: BTreeMap::new(),
            native: None,
            plan,
        }
    }

    /// The addresses of the container in the network that its label names, or else for each family that in the first usable network
    /// that has it.
    pub(super) fn own_addresses(
        &self,
        inspected: &Inspected,
        wanted: Option<&str>,
    ) -> Result<OwnAddresses, Refusal> {
        let Network::Attached(endpoints) = &inspected.network else {
            return Err(Refusal::NoAddress);
        };
        if let Some(wanted) = wanted {
            let endpoint = endpoints
                .get(wanted)
                .ok_or_else(|| Refusal::NotAttached(printable(wanted)))?;
            self.usable(wanted, &endpoint.network)?;
            return Ok(OwnAddresses {
                v4: endpoint.v4,
                v6: endpoint.v6,
            });
        }
        let is_native = |endpoint: &&Endpoint| Some(&endpoint.network) == self.native.as_ref();
        let native = endpoints.values().find(is_native);
        let mut refusal = Refusal::NoAddress;
        let mut usable: Vec<&Endpoint> = native.into_iter().collect();
        for (name, endpoint) in endpoints {
            match self.usable(name, &endpoint.network) {
                Ok(()) => usable.push(endpoint),
                Err(why) => refusal = why,
            }
        }
        let own = OwnAddresses {
            v4: usable.iter().find_map(|endpoint| endpoint.v4),
            v6: usable.iter().find_map(|endpoint| endpoint.v6),
        };
        match own {
            OwnAddresses { v4: None, v6: None } => Err(refusal),
            own => Ok(own),
        }
    }

    /// Whether `address` is the address of the container in the network whose addresses are mesh addresses.
    pub(super) fn is_native(
        &self,
        inspected: &Inspected,
        address: Ipv4Addr,
    ) -> Result<bool, Refusal> {
        let (Network::Attached(endpoints), Some(native), Some(plan)) =
            (&inspected.network, &self.native, &self.plan)
        else {
            return Ok(false);
        };
        let on_it = endpoints
            .values()
            .any(|endpoint| endpoint.network == *native && endpoint.v4 == Some(address));
        match on_it {
            true if !plan.is_own(address) => Err(Refusal::UnleasedAddress(address, plan.range())),
            on_it => Ok(on_it),
        }
    }

    fn usable(&self, name: &str, id: &str) -> Result<(), Refusal> {
        match self.by_id.get(id) {
            Some(network) if network.internal => Err(Refusal::Internal(printable(name))),
            Some(network) if network.driver != "bridge" => {
                Err(Refusal::Driver(printable(name), printable(&network.driver)))
            }
            _ => Ok(()),
        }
    }

    /// The bridges of the engine's networks, with their subnets.
    pub(super) fn bridges(&self) -> BTreeMap<String, Vec<Ipv4Net>> {
        self.by_id
            .values()
            .filter_map(|network| Some((network.bridge.clone()?, network.subnets.clone())))
            .collect()
    }

    /// The same bridges, with their subnets of IPv6.
    pub(super) fn bridges_v6(&self) -> BTreeMap<String, Vec<Ipv6Net>> {
        let networks = self.by_id.values();
        networks
            .filter_map(|network| Some((network.bridge.clone()?, network.subnets_v6.clone())))
            .collect()
    }
}
