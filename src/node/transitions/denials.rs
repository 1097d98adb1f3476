//! Packets that the policy denies.

use std::net::IpAddr;

use crate::model::Label;
use crate::os::audit::{Event, Text, Transition, What, Who};
use crate::os::log::TRANSITION;
use crate::records::netmap::Netmap;
use crate::tunnel::{Denial, Direction};

/// The first denied packet between two addresses.
#[derive(Debug)]
pub(in crate::node) struct FirstDenial<'a> {
    pub denial: &'a Denial,
    /// The nodes that have the two addresses.
    pub from_node: Option<&'a Label>,
    pub to_node: Option<&'a Label>,
    /// The guests that have them. Their doors are the nodes.
    pub from_guest: Option<&'a Label>,
    pub to_guest: Option<&'a Label>,
}

impl<'a> FirstDenial<'a> {
    /// The denial, with the nodes and the guests of its addresses.
    pub(in crate::node) fn of(denial: &'a Denial, netmap: &'a Netmap) -> Self {
        let node_of = |address| netmap.owner_of(address).map(|member| &member.name);
        let guest_of = |address: IpAddr| {
            let mut guests = netmap.guests.iter();
            let guest = guests.find(|guest| guest.addresses().contains(&address));
            guest.map(|guest| &guest.name)
        };
        Self {
            denial,
            from_node: node_of(denial.from),
            to_node: node_of(denial.to),
            from_guest: guest_of(denial.from),
            to_guest: guest_of(denial.to),
        }
    }

    fn direction(&self) -> &'static str {
        match self.denial.direction {
            Direction::Outgoing => "out",
            Direction::Incoming => "in",
        }
    }
}

impl Transition for FirstDenial<'_> {
    fn log(&self) {
        let Denial {
            from, to, asked, ..
        } = self.denial;
        let from_node = self.from_node.map(tracing::field::display);
        let to_node = self.to_node.map(tracing::field::display);
        let direction = self.direction();
        tracing::warn!(target: TRANSITION, %from, from_node, %to, to_node, port = %asked, direction, "denied by the policy");
    }

    fn event(&self) -> Option<Event> {
        let end = |address: IpAddr, node: Option<&Label>, guest: Option<&Label>| {
            if let Some(guest) = guest {
                return Text::of(&format_args!("{address} of the guest {guest}"));
            }
            match node {
                Some(node) => Text::of(&format_args!("{address} of {node}")),
                None => Text::of(&address),
            }
        };
        let what = What::PairDenied {
            from: end(self.denial.from, self.from_node, self.from_guest),
            to: end(self.denial.to, self.to_node, self.to_guest),
            port: Text::of(&self.denial.asked),
            direction: self.direction(),
        };
        Some(Event::done(Who::Daemon, what))
    }
}
