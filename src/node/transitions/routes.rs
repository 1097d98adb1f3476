//! The ways to networks outside the mesh.

use ipnet::Ipv4Net;

use crate::model::Label;
use crate::os::audit::{Event, Text, Transition, What, Who};
use crate::os::log::TRANSITION;

/// A network is reached by another member from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) struct RouteChange {
    pub(in crate::node) network: Ipv4Net,
    /// The name of the member. None if the network is not reached through the mesh any more.
    pub(in crate::node) by: Option<Label>,
}

impl Transition for RouteChange {
    fn log(&self) {
        let network = self.network;
        match &self.by {
            Some(by) => {
                tracing::info!(target: TRANSITION, %network, node = %by, "network routed");
            }
            None => {
                tracing::info!(target: TRANSITION, %network, "network not routed any more");
            }
        }
    }

    fn event(&self) -> Option<Event> {
        let what = What::RouteChanged {
            network: Text::of(&self.network),
            by: self.by.clone(),
        };
        Some(Event::done(Who::Daemon, what))
    }
}
