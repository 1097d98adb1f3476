//! The port that this network's router maps to the node, and the hole in its firewall for IPv6: joins the state machine
//! ([`crate::path::mapping`]) with the task that asks the router.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use self::router::Command;
use super::host::{DefaultGateway, Interface};
use crate::model::address::is_public;
use crate::model::{MeshAddresses, Path, PublicKey};
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::path::budget::Budget;
use crate::path::mapping::{Action, Answer, Mapping, Prover, Site};

mod pinhole;
mod router;
mod upnp;

/// The number of commands that wait for the task. The state machine has one request at a time, so more are there only while the
/// network changes again and again; it repeats a request that was left out.
const MAX_COMMANDS: usize = 8;
/// How long the deletion of the mapping may hold up the end of the program.
const STOP_TIMEOUT: Duration = Duration::from_millis(800);
/// The least time between two attempts that one peer may ask for.
const TRY_INTERVAL: Duration = Duration::from_millis(500);

/// The mapping of this node, and the mappings of peers that this node tries.
pub(super) struct PortMapping {
    /// The state machine.
    pub(super) state: Mapping<PublicKey>,
    commands: mpsc::Sender<Command>,
    answers: Option<mpsc::Receiver<Answer>>,
    tried: BTreeMap<PublicKey, Instant>,
    budget: Budget<PublicKey>,
    _task: Option<AbortOnDrop>,
}

impl PortMapping {
    /// Starts the task that asks for a port, if the mapping `is_on`.
    pub(super) fn start(is_on: bool, seed: u16) -> Self {
        Self::start_task(is_on, seed, "port mapping", router::run)
    }

    /// Starts the task that asks for a hole in the firewall for IPv6, if the mapping `is_on`.
    pub(super) fn start_pinhole(is_on: bool) -> Self {
        // Nothing is translated, so there is no port to choose.
        Self::start_task(is_on, 0, "IPv6 pinhole", pinhole::run)
    }

    fn start_task<F>(
        is_on: bool,
        seed: u16,
        name: &'static str,
        run: impl FnOnce(mpsc::Receiver<Command>, mpsc::Sender<Answer>) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (commands, received) = mpsc::channel(MAX_COMMANDS);
        let (answer, answers) = mpsc::channel(MAX_COMMANDS);
        let task = is_on.then(|| {
            // The task ends when the sender of commands is dropped.
            let task = Tasks::current().spawn_finite(name, run(received, answer));
            task.abort_on_drop()
        });
        let now = Instant::now();
        Self {
            state: Mapping::new(is_on, seed, now),
            commands,
            answers: Some(answers),
            tried: BTreeMap::new(),
            budget: Budget::new(now),
            _task: task,
        }
    }

    /// The answers of the router, at the first call.
    pub(super) fn take_answers(&mut self) -> mpsc::Receiver<Answer> {
        let closed = || mpsc::channel(1).1;
        self.answers.take().unwrap_or_else(closed)
    }

    /// The default gateway and the addresses of this machine, as they are now. The tunnel has this `port`.
    pub(super) fn set_site(
        &mut self,
        gateway: Option<&DefaultGateway>,
        interfaces: &[Interface],
        port: u16,
        now: Instant,
    ) {
        let site = gateway.and_then(|gateway| {
            let own = own_address(gateway, interfaces)?;
            Some(Site {
                gateway: gateway.address,
                interface: gateway.index,
                own,
                port,
            })
        });
        if self.state.set_site(site, now) {
            self.delete();
        }
    }

    /// The task has asked the router.
    pub(super) fn handle_answer(&mut self, answer: Answer, mesh: &MeshAddresses, now: Instant) {
        tracing::debug!(?answer, "the router was asked for a port");
        if self.state.handle_answer(answer, mesh, now) {
            self.delete();
        }
    }

    /// Carries out what is due, and returns the peer that is to be asked to try the mapping.
    pub(super) fn poll(
        &mut self,
        provers: &[Prover<PublicKey>],
        mesh: &MeshAddresses,
        now: Instant,
    ) -> Option<PublicKey> {
        let mut asked = None;
        for action in self.state.poll(provers, now) {
            match action {
                Action::Ask(request) => self.command(Command::Ask(request, *mesh)),
                Action::Renew(number) => self.command(Command::Renew(number)),
                Action::Delete => self.delete(),
                Action::Try(peer) => asked = Some(peer),
            }
        }
        asked
    }

    /// Whether this node may try the mapping of `peer`, which asks for that, at `address`.
    pub(super) fn may_try(&mut self, peer: PublicKey, address: IpAddr, now: Instant) -> bool {
        let is_young = |at: &Instant| now.saturating_duration_since(*at) < TRY_INTERVAL;
        self.tried.retain(|_, at| is_young(at));
        let path = Path::Direct((address, 1).into());
        let may = !self.tried.contains_key(&peer) && self.budget.take(peer, &path, now);
        if may {
            self.tried.insert(peer, now);
        }
        may
    }

    fn delete(&self) {
        self.command(Command::Delete(oneshot::channel().0));
    }

    fn command(&self, command: Command) {
        // A request that is left out is not answered, and is repeated for that.
        let _ = self.commands.try_send(command);
    }

    /// Deletes the mapping at the router.
    pub(super) async fn stop(&mut self) {
        if self.state.report().is_none() {
            return;
        }
        let (done, deleted) = oneshot::channel();
        self.command(Command::Delete(done));
        let _ = timeout(STOP_TIMEOUT, deleted).await;
    }
}

/// The address of this machine in the network of its gateway. With IPv6 it is the first public one on the interface, since the gateway's
/// own address is most often of the link alone.
fn own_address(gateway: &DefaultGateway, interfaces: &[Interface]) -> Option<IpAddr> {
    let is_there = |interface: &&Interface| {
        let fits = match gateway.address {
            IpAddr::V4(_) => interface
                .net
                .is_some_and(|net| net.contains(&gateway.address)),
            IpAddr::V6(_) => interface.address.is_ipv6() && is_public(interface.address),
        };
        interface.name == gateway.interface && fits
    };
    interfaces
        .iter()
        .find(is_there)
        .map(|interface| interface.address)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn interface(name: &str, net: &str) -> Interface {
        let net: ipnet::IpNet = net.parse().expect("a literal");
        Interface {
            name: name.to_owned(),
            address: net.addr(),
            net: Some(net),
            is_tunnel: false,
        }
    }

    #[test]
    fn the_router_is_asked_from_the_address_in_its_network() {
        let gateway = DefaultGateway {
            address: Ipv4Addr::new(192, 168, 1, 1).into(),
            interface: "eth0".into(),
            index: 2,
        };
        let interfaces = [
            interface("eth1", "192.168.1.7/24"),
            interface("eth0", "fd00::1/64"),
            interface("eth0", "10.0.0.5/24"),
            interface("eth0", "192.168.1.10/24"),
        ];
        let own = own_address(&gateway, &interfaces);
        assert_eq!(own, Some(Ipv4Addr::new(192, 168, 1, 10).into()));
        assert_eq!(own_address(&gateway, &interfaces[..3]), None);
    }

    #[test]
    fn a_hole_is_asked_for_at_a_public_address_of_the_interface_that_leads_to_the_gateway() {
        let gateway = DefaultGateway {
            address: "fe80::1".parse().expect("a literal"),
            interface: "eth0".into(),
            index: 2,
        };
        let interfaces = [
            interface("eth1", "2001:db8:1::7/64"),
            interface("eth0", "fe80::7/64"),
            interface("eth0", "fd00::1/64"),
            interface("eth0", "192.168.1.10/24"),
            interface("eth0", "2001:db8:2::7/64"),
        ];
        let own = own_address(&gateway, &interfaces);
        assert_eq!(own, "2001:db8:2::7".parse().ok());
        assert_eq!(own_address(&gateway, &interfaces[..4]), None);
    }

    #[tokio::test]
    async fn a_peer_that_asks_without_end_is_served_seldom_and_no_address_is_flooded() {
        let mut mapping = PortMapping::start(false, 0);
        let start = Instant::now();
        let victim = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
        let tried = (0..10_000).filter(|ms| {
            let now = start + Duration::from_millis(*ms);
            mapping.may_try(PublicKey([1; 32]), victim, now)
        });
        assert_eq!(tried.count(), 20);
        let mut flood = 0;
        for n in 0..250 {
            let now = start + Duration::from_secs(20);
            flood += u32::from(mapping.may_try(PublicKey([n; 32]), victim, now));
        }
        assert!((1..=20).contains(&flood), "{flood}");
    }
}
