//! The bridge to which all hosts are connected.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::docker::DockerHost;
use super::host::{Host, Namespace};
use super::router::{self, Delay, Nat, Router, Way};
use super::{TestbedError, link};

const BRIDGE: &str = "wan";

/// An isolated network with hosts. Dropping it ends everything in it.
#[derive(Debug)]
pub struct World {
    wan: Namespace,
    next: AtomicU8,
    /// The number of the next router, if the world has routes.
    next_router: Option<AtomicU8>,
}

impl World {
    /// Creates the bridge.
    ///
    /// # Errors
    /// The rights are missing, or the kernel returns an error.
    pub fn new() -> Result<Self, TestbedError> {
        let wan = Namespace::new("wan")?;
        wan.inside(|| link::create_bridge(BRIDGE))??;
        Ok(Self {
            wan,
            next: AtomicU8::new(10),
            next_router: None,
        })
    }

    /// Creates a bridge that also forwards packets between its hosts and routers. Programs `ip` and `nft` are needed.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn routed() -> Result<Self, TestbedError> {
        let world = Self::new()?;
        router::become_core(&world.wan, BRIDGE)?;
        Ok(Self {
            next_router: Some(AtomicU8::new(0)),
            ..world
        })
    }

    /// Drops UDP in these directions from now on, and in no other ones.
    ///
    /// # Errors
    /// The program `nft` returns an error.
    pub fn set_cuts(&self, ways: &[Way]) -> Result<(), TestbedError> {
        router::set_cuts(&self.wan, ways)
    }

    /// Counts UDP in these directions from now on. [`World::counted`] returns how much it is.
    ///
    /// # Errors
    /// The program `nft` returns an error.
    pub fn count(&self, ways: &[Way]) -> Result<(), TestbedError> {
        router::count(&self.wan, ways)
    }

    /// The number of packets and bytes since [`World::count`].
    ///
    /// # Errors
    /// The program `nft` returns an error.
    pub fn counted(&self) -> Result<(u64, u64), TestbedError> {
        router::counted(&self.wan)
    }

    /// Delays what passes between two routers by this time in each direction, until the result is dropped.
    ///
    /// # Errors
    /// The kernel or a program returns an error.
    pub fn delay(
        &self,
        one: &Router,
        other: &Router,
        by: Duration,
    ) -> Result<Delay<'_>, TestbedError> {
        router::delay(&self.wan, [one, other], by)
    }

    /// Creates a router that does this with packets. The world has to be a routed one, with room for 60 routers.
    ///
    /// # Errors
    /// The world has no routes, or the kernel or a program returns an error.
    pub fn router(&self, nat: Nat) -> Result<Router, TestbedError> {
        let none = || TestbedError::Program("router".into(), "this world has no routes".into());
        let next = self.next_router.as_ref().ok_or_else(none)?;
        Router::new(&self.wan, next.fetch_add(1, Ordering::Relaxed), nat)
    }

    /// Creates a host called `name`, with the next free address (RFC 5737, RFC 3849).
    ///
    /// # Errors
    /// The kernel returns an error.
    pub fn host(&self, name: &str) -> Result<Host, TestbedError> {
        self.connect(name, Namespace::new(name)?)
    }

    /// Creates a host with a container engine. `shared` are directories that the host shares with this machine.
    ///
    /// # Errors
    /// The kernel returns an error, or the engine does not start.
    pub fn docker_host(&self, name: &str, shared: &[PathBuf]) -> Result<DockerHost, TestbedError> {
        let host = self.connect(name, Namespace::with_root(name, shared)?)?;
        DockerHost::start(host)
    }

    fn connect(&self, name: &str, namespace: Namespace) -> Result<Host, TestbedError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (v4, v6) = (
            Ipv4Addr::new(198, 51, 100, number),
            Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, u16::from(number)),
        );
        let (port, pid) = (format!("p{number}"), namespace.pid());
        self.wan.inside(|| link::plug(BRIDGE, &port, pid))??;
        namespace.inside(|| link::bring_up(&[(v4.into(), 24), (v6.into(), 64)]))??;
        if self.next_router.is_some() {
            router::use_core(&namespace)?;
        }
        Ok(Host::new(namespace, name, v4, v6, port))
    }

    /// Disconnects `host` from the bridge, or connects it again.
    ///
    /// # Errors
    /// The kernel returns an error.
    pub fn set_cable(&self, host: &Host, plugged: bool) -> Result<(), TestbedError> {
        self.wan.inside(|| link::set_up(host.port(), plugged))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_ipv6_is_brought_up_with_ipv4_alone() {
        if !nix::unistd::geteuid().is_root() {
            return crate::testbed::skip_test("network namespaces need root");
        }
        let wan = Namespace::new("wan").expect("root may make namespaces");
        wan.inside(|| link::create_bridge(BRIDGE))
            .expect("a namespace")
            .expect("a bridge");
        let host = Namespace::new("host").expect("root may make namespaces");
        host.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))
            .expect("a namespace")
            .expect("root");
        wan.inside(|| link::plug(BRIDGE, "p1", host.pid()))
            .expect("a namespace")
            .expect("a cable");
        let addresses = [
            (Ipv4Addr::new(198, 51, 100, 9).into(), 24),
            (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9).into(), 64),
        ];
        host.inside(|| link::bring_up(&addresses))
            .expect("a namespace")
            .expect("IPv4 is there");
        let shown = host.inside(|| {
            let found = nix::ifaddrs::getifaddrs().expect("a list");
            let addresses = found.filter_map(|entry| entry.address);
            addresses.map(|a| a.to_string()).collect::<Vec<_>>()
        });
        let shown = shown.expect("a namespace").join(" ");
        assert!(shown.contains("198.51.100.9"), "{shown}");
        assert!(!shown.contains("2001:db8::9"), "{shown}");
    }
}
