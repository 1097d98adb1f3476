//! The networks of the engine, and the address of a container in them. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::containers::inspect::{EngineNetwork, Inspected, Network};
use crate::containers::labels::printable;
use crate::containers::network;
use crate::containers::refusal::Refusal;

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

    /// The address of the container in the network that its label names, or else in the first usable network.
    pub(super) fn own_address(
        &self,
        inspected: &Inspected,
        wanted: Option<&str>,
    ) -> Result<Ipv4Addr, Refusal> {
        let Network::Attached(endpoints) = &inspected.network else {
            return Err(Refusal::NoAddress);
        };
        if let Some(wanted) = wanted {
            let endpoint = endpoints
                .get(wanted)
                .ok_or_else(|| Refusal::NotAttached(printable(wanted)))?;
            self.usable(wanted, &endpoint.network)?;
            return Ok(endpoint.address);
        }
        if let Some(native) = &self.native
            && let Some(endpoint) = endpoints.values().find(|e| e.network == *native)
        {
            return Ok(endpoint.address);
        }
        let mut refusal = Refusal::NoAddress;
        for (name, endpoint) in endpoints {
            match self.usable(name, &endpoint.network) {
                Ok(()) => return Ok(endpoint.address),
                Err(why) => refusal = why,
            }
        }
        Err(refusal)
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
            .any(|endpoint| endpoint.network == *native && endpoint.address == address);
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
}
