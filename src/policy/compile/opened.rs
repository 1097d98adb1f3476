//! The ports that one target of a rule opens at one subject.

use crate::policy::ports::{Asked, PortSet};
use crate::policy::rules::Ports;
use crate::policy::selector::Selector;
use crate::policy::subject::{Offered, OfferedPort, Subject};

/// The ports that `ports` behind `selector` opens at `subject`, which the selector selects.
pub(in crate::policy) fn opened(selector: &Selector, ports: &Ports, subject: &Subject) -> PortSet {
    match ports {
        Ports::Fixed(set) => set.clone(),
        Ports::Named(name) => {
            let ports = selected(selector, subject).flat_map(|offered| &offered.ports);
            let named = ports.filter(|port| port.name.as_ref() == Some(name));
            named.map(OfferedPort::asked).collect()
        }
        Ports::Declared if subject.is_node && !is_about_services(selector) => PortSet::everything(),
        Ports::Declared if subject.network.is_some() => PortSet::everything(),
        Ports::Declared => {
            let ports = selected(selector, subject).flat_map(|offered| &offered.ports);
            let ports = ports.map(OfferedPort::asked);
            let mut open: PortSet = ports.chain([Asked::Icmp]).collect();
            // A fragment may be for any port: it passes only if all ports that an instance has are open.
            let mut all = subject.services.iter().flat_map(|offered| &offered.ports);
            if !subject.is_node && all.all(|own| open.contains(own.asked())) {
                open.extend([Asked::Other]);
            }
            open
        }
    }
}

/// The services that a selector selects at a subject that it selects.
fn selected<'s>(selector: &Selector, subject: &'s Subject) -> impl Iterator<Item = &'s Offered> {
    let all = !is_about_services(selector);
    let services = subject.services.iter();
    services.filter(move |offered| all || selector.names(&offered.service))
}

fn is_about_services(selector: &Selector) -> bool {
    match selector {
        Selector::Service(_) | Selector::InProject(..) | Selector::Project(_) => true,
        Selector::Any
        | Selector::Tag(_)
        | Selector::Node(_)
        | Selector::Guest(_)
        | Selector::Route(_)
        | Selector::SameProject
        | Selector::Unknown => false,
    }
}
