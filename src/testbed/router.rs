//! Routers between the hosts of a world: the kinds of address translation and of firewalls that servers stand behind.
//!
//! ```text
//! host 192.168.1.10 --- lan [router] wan --- home [provider] core --- [bridge of the world] --- hosts with public addresses
//! ```
//!
//! The networks of all routers have the same addresses, as those of most homes do. The provider is one more hop, so that a
//! datagram with a TTL of 4 opens the translation of its own router and ends before it arrives at another one. The rules
//! are written for nft 1.0.6, which wants each statement on a line of its own.

mod core;
mod rules;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use super::docker::DockerHost;
use super::host::{Host, Namespace, Running};
use super::{TestbedError, link};

pub use self::core::Delay;
pub(super) use self::core::{count, counted, delay, set_cuts};

/// A direction between two public addresses: from the first to the second.
pub type Way = (Ipv4Addr, Ipv4Addr);

/// What a router does with packets between its network and the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Nat {
    /// Translates to its own address, keeps the port where it can, and drops what nobody asked for.
    Plain,
    /// The same, but it accepts datagrams to itself that nobody asked for, as a plain Linux machine does. Such a datagram
    /// takes the port that the host behind it would get for the same peer.
    PlainOpen,
    /// One port for all peers, and everybody may send to it.
    Cone,
    /// One port for all peers. Only an address and port to which the host sent may send to it.
    Restricted,
    /// Another port for each peer.
    Symmetric,
    /// Two translations in a row: a plain router behind a provider that shares its addresses (RFC 6598).
    Cgnat,
    /// As restricted, and hosts of its network reach each other at its public address.
    Hairpin,
    /// As plain, and it drops all UDP.
    UdpBlocked,
    /// As plain for IPv4. The hosts have public IPv6 addresses, at which only what they asked for arrives.
    Firewall6,
}

impl Nat {
    pub const ALL: [Self; 9] = [
        Self::Plain,
        Self::PlainOpen,
        Self::Cone,
        Self::Restricted,
        Self::Symmetric,
        Self::Cgnat,
        Self::Hairpin,
        Self::UdpBlocked,
        Self::Firewall6,
    ];

    /// Its name in tables and in names of hosts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::PlainOpen => "plain-open",
            Self::Cone => "cone",
            Self::Restricted => "restricted",
            Self::Symmetric => "symmetric",
            Self::Cgnat => "cgnat",
            Self::Hairpin => "hairpin",
            Self::UdpBlocked => "udp-blocked",
            Self::Firewall6 => "firewall6",
        }
    }
}

/// Something that goes wrong at a router, besides what its kind does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No UDP passes.
    DropUdp,
    /// Of 100 UDP packets from the outside, this many are lost at random.
    LoseInward(u8),
    /// Of 100 UDP packets to the outside, this many are lost at random.
    LoseOutward(u8),
}

/// A router with a network behind it. Dropping it ends its namespaces, and so disconnects the hosts behind it.
#[derive(Debug)]
pub struct Router {
    nat: Nat,
    links: Links,
    home: Namespace,
    provider: Namespace,
    next_host: AtomicU8,
    next_ports: AtomicU8,
}

impl Router {
    pub(super) fn new(core: &Namespace, number: u8, nat: Nat) -> Result<Self, TestbedError> {
        let home = Namespace::new("router")?;
        let provider = Namespace::new("provider")?;
        let links = Links::new(number, nat)?;
        core.run("ip", BATCH, &links.of_core(provider.pid()))?;
        provider.run("ip", BATCH, &links.of_provider(home.pid()))?;
        home.run("ip", BATCH, &links.of_home())?;
        for namespace in [&home, &provider] {
            forward(namespace)?;
        }
        home.run("nft", RULES, &rules::of(nat, links.wan_v4()))?;
        if nat == Nat::Cgnat {
            provider.run("nft", RULES, &rules::of_carrier())?;
        }
        Ok(Self {
            nat,
            links,
            home,
            provider,
            next_host: AtomicU8::new(10),
            next_ports: AtomicU8::new(0),
        })
    }

    #[must_use]
    pub fn nat(&self) -> Nat {
        self.nat
    }

    /// The address from which the outside sees packets of the hosts.
    #[must_use]
    pub fn public_v4(&self) -> Ipv4Addr {
        match self.nat {
            Nat::Cgnat => self.links.provider_v4(),
            _ => self.links.wan_v4(),
        }
    }

    /// The outer address at which the router maps ports on request. miniupnpd maps none at addresses for documentation.
    #[must_use]
    pub fn mapping_v4(&self) -> Ipv4Addr {
        self.links.mapping_v4()
    }

    /// Starts the program miniupnpd, which maps ports for the hosts behind the router by PCP and NAT-PMP, by UPnP, or by all of
    /// them. Not behind a provider that translates.
    ///
    /// # Errors
    /// A program returns an error.
    pub fn serve_mappings(
        &self,
        program: &Path,
        (datagrams, upnp): (bool, bool),
        log: &Path,
    ) -> Result<Running, TestbedError> {
        self.home.run("nft", RULES, rules::MAPPINGS)?;
        let word = |is_on| if is_on { "yes" } else { "no" };
        let config = format!(
            "ext_ifname=wan\n\
             ext_ip={}\n\
             listening_ip=lan\n\
             enable_natpmp={}\n\
             enable_upnp={}\n\
             upnp_table_name=mappings\n\
             upnp_nat_table_name=mappings\n\
             upnp_forward_chain=forwarded\n\
             upnp_nat_chain=before\n\
             upnp_nat_postrouting_chain=after\n\
             uuid=00000000-0000-4000-8000-000000000000\n\
             allow 1024-65535 192.168.1.0/24 1024-65535\n",
            self.mapping_v4(),
            word(datagrams),
            word(upnp),
        );
        let file = log.with_extension("conf");
        std::fs::write(&file, config).map_err(|e| TestbedError::Io("write a configuration", e))?;
        let mut command = self.home.command(&program.to_string_lossy())?;
        command.args(["-d", "-P"]).arg(log.with_extension("pid"));
        command.arg("-f").arg(file);
        Running::start(&mut command, log, false)
    }

    /// The rules of the mappings that the router has.
    ///
    /// # Errors
    /// The program `nft` returns an error.
    pub fn mappings(&self) -> Result<String, TestbedError> {
        let listed = (self.home).output("nft", &["list", "chain", "inet", "mappings", "before"])?;
        let rules = listed.lines().filter(|line| line.contains("dnat"));
        Ok(rules.collect::<Vec<_>>().join("\n"))
    }

    /// Runs `work` on a thread in the router's network: the sockets that it opens belong to the router.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, TestbedError> {
        self.home.inside(work)
    }

    /// Creates a host in the router's network. The first one is 192.168.1.10.
    ///
    /// # Errors
    /// The kernel or a program returns an error.
    pub fn host(&self, name: &str) -> Result<Host, TestbedError> {
        self.connect(name, Namespace::new(name)?)
    }

    /// Creates a host with a container engine in the router's network. `shared` are directories that the host shares with
    /// this machine.
    ///
    /// # Errors
    /// As [`Router::host`], or the engine does not start.
    pub fn docker_host(&self, name: &str, shared: &[PathBuf]) -> Result<DockerHost, TestbedError> {
        DockerHost::start(self.connect(name, Namespace::with_root(name, shared)?)?)
    }

    fn connect(&self, name: &str, namespace: Namespace) -> Result<Host, TestbedError> {
        let number = self.next_host.fetch_add(1, Ordering::Relaxed);
        let (port, pid) = (format!("h{number}"), namespace.pid());
        let v4 = Ipv4Addr::new(192, 168, 1, number);
        let v6 = match self.nat {
            Nat::Firewall6 => self.links.lan_v6(number),
            _ => Ipv6Addr::UNSPECIFIED,
        };
        self.home.inside(|| link::plug("lan", &port, pid))??;
        let mut addresses = vec![(v4.into(), 24)];
        let mut routes = "route add default via 192.168.1.1\n".to_owned();
        if !v6.is_unspecified() {
            addresses.push((v6.into(), 64));
            routes += &format!("route add default via {}\n", self.links.lan_v6(1));
        }
        namespace.inside(|| link::bring_up(&addresses))??;
        namespace.run("ip", BATCH, &routes)?;
        let core: &[IpAddr] = match self.nat {
            Nat::Firewall6 => &[IpAddr::V4(CORE_V4), IpAddr::V6(CORE_V6)],
            _ => &[IpAddr::V4(CORE_V4)],
        };
        wait_for_core(&namespace, core)?;
        Ok(Host::new(namespace, name, v4, v6, port))
    }

    /// Sets what goes wrong from now on.
    ///
    /// # Errors
    /// The program `nft` returns an error.
    pub fn set_fault(&self, fault: Option<Fault>) -> Result<(), TestbedError> {
        self.home.run("nft", RULES, &rules::of_fault(fault))
    }

    /// Lets packets of the hosts behind it go to this address alone.
    ///
    /// # Errors
    /// The program `nft` returns an error.
    pub fn let_out_only_to(&self, address: Ipv4Addr) -> Result<(), TestbedError> {
        self.home
            .run("nft", RULES, &rules::of_only_way_out(address))
    }

    /// Forgets all translations, and uses other ports than before from now on, as a router does that was restarted. Not for
    /// kinds that have one port for all peers.
    ///
    /// # Errors
    /// A program returns an error.
    pub fn rebind(&self) -> Result<(), TestbedError> {
        let turn = self.next_ports.fetch_add(1, Ordering::Relaxed);
        let (namespace, outside, gateway) = match self.nat {
            Nat::Cgnat => (&self.provider, "core", self.links.core_v4()),
            _ => (&self.home, "wan", self.links.home_gateway_v4()),
        };
        namespace.run("nft", RULES, &rules::of_rebinding(outside, turn))?;
        // The kernel removes the routes of an interface that goes down, and in the background its translations.
        namespace.run("ip", BATCH, &format!("link set {outside} down\n"))?;
        std::thread::sleep(Duration::from_millis(100));
        let again = format!("link set {outside} up\nroute add default via {gateway}\n");
        namespace.run("ip", BATCH, &again)
    }
}

/// The arguments with which `ip` and `nft` read their statements from stdin.
const BATCH: &[&str] = &["-batch", "-"];
const RULES: &[&str] = &["-f", "-"];

/// Makes the bridge of a world forward packets.
pub(super) fn become_core(wan: &Namespace, bridge: &str) -> Result<(), TestbedError> {
    forward(wan)?;
    let addresses = format!(
        "address add {CORE_V4}/24 dev {bridge}\naddress add {CORE_V6}/64 dev {bridge} nodad\n"
    );
    wan.run("ip", BATCH, &addresses)
}

/// Sends what a host on the bridge has for others to the bridge.
pub(super) fn use_core(host: &Namespace) -> Result<(), TestbedError> {
    let routes = format!("route add default via {CORE_V4}\nroute add default via {CORE_V6}\n");
    host.run("ip", BATCH, &routes)?;
    wait_for_core(host, &[CORE_V4.into(), CORE_V6.into()])
}

/// Waits until the core answers a host at these addresses. The kernel takes up to a second to use a new port of a bridge.
fn wait_for_core(host: &Namespace, addresses: &[IpAddr]) -> Result<(), TestbedError> {
    let end = Instant::now() + Duration::from_secs(10);
    let answers = |address: &IpAddr| {
        // Nothing listens there, so an answer is a refusal.
        let port = SocketAddr::new(*address, 9);
        let connected = TcpStream::connect_timeout(&port, Duration::from_millis(100));
        connected.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    };
    host.inside(|| {
        while !addresses.iter().all(answers) {
            if Instant::now() > end {
                let late = io::ErrorKind::TimedOut.into();
                return Err(TestbedError::Io("reach the core from a host", late));
            }
            // An error that comes at once is none to repeat at once.
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    })?
}

/// Lets a namespace forward packets, and advise nobody of shorter ways.
fn forward(namespace: &Namespace) -> Result<(), TestbedError> {
    let settings = [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv6/conf/all/forwarding", "1"),
    ];
    let write = || {
        settings
            .iter()
            .try_for_each(|(name, value)| std::fs::write(format!("/proc/sys/net/{name}"), value))
    };
    namespace
        .inside(write)?
        .map_err(|e| TestbedError::Io("let a namespace forward packets", e))
}

const CORE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const CORE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1);
/// Each router uses four addresses of two networks with 256 of them.
const MAX_ROUTERS: u8 = 60;

/// The links of a router and its provider.
#[derive(Debug, Clone, Copy)]
struct Links {
    nat: Nat,
    number: u8,
}

impl Links {
    fn new(number: u8, nat: Nat) -> Result<Self, TestbedError> {
        if number >= MAX_ROUTERS {
            let text = format!("there are {MAX_ROUTERS} routers already");
            return Err(TestbedError::Program("router".into(), text));
        }
        Ok(Self { nat, number })
    }

    /// The core's address on the link to the provider (RFC 5737).
    fn core_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self.number * 4 + 1)
    }

    fn provider_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self.number * 4 + 2)
    }

    /// An address on the link between the provider and the router.
    fn subscriber(self, last: u8) -> Ipv4Addr {
        let last = self.number * 4 + last;
        match self.nat {
            Nat::Cgnat => Ipv4Addr::new(100, 64, 0, last),
            _ => Ipv4Addr::new(203, 0, 113, last),
        }
    }

    /// An address that no list of special addresses has.
    fn mapping_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(11, 20, 30, self.number)
    }

    fn home_gateway_v4(self) -> Ipv4Addr {
        self.subscriber(1)
    }

    fn wan_v4(self) -> Ipv4Addr {
        self.subscriber(2)
    }

    /// An address of the IPv6 networks between core and provider (1), provider and router (2), and behind the router (3).
    fn v6(self, network: u16, last: u8) -> Ipv6Addr {
        let (number, last) = (u16::from(self.number), u16::from(last));
        Ipv6Addr::new(0x2001, 0xdb8, network, number, 0, 0, 0, last)
    }

    fn lan_v6(self, last: u8) -> Ipv6Addr {
        self.v6(3, last)
    }

    fn has_v6(self) -> bool {
        self.nat == Nat::Firewall6
    }

    /// The statements for `ip` in the core. `provider` is the process that holds the provider's namespaces.
    fn of_core(self, provider: u32) -> String {
        let (link, own, next) = (
            format!("i{}", self.number),
            self.core_v4(),
            self.provider_v4(),
        );
        let mut text = format!(
            "link add {link} type veth peer name core netns {provider}\n\
             address add {own}/30 dev {link}\n\
             link set {link} up\n"
        );
        if self.nat != Nat::Cgnat {
            text += &format!(
                "route add {}/30 via {next}\n\
                 route add {}/32 via {next}\n",
                self.subscriber(0),
                self.mapping_v4()
            );
        }
        if self.has_v6() {
            text += &format!(
                "address add {}/64 dev {link} nodad\n\
                 route add {}/64 via {next6}\n\
                 route add {}/64 via {next6}\n",
                self.v6(1, 1),
                self.v6(2, 0),
                self.v6(3, 0),
                next6 = self.v6(1, 2),
            );
        }
        text
    }

    fn of_provider(self, home: u32) -> String {
        let mut text = format!(
            "link set lo up\n\
             link add home type veth peer name wan netns {home}\n\
             address add {}/30 dev core\n\
             address add {}/30 dev home\n\
             link set core up\n\
             link set home up\n\
             route add default via {}\n\
             route add {}/32 via {}\n",
            self.provider_v4(),
            self.home_gateway_v4(),
            self.core_v4(),
            self.mapping_v4(),
            self.wan_v4(),
        );
        if self.has_v6() {
            let addresses = [("core", self.v6(1, 2)), ("home", self.v6(2, 1))];
            text += &v6_statements(addresses, self.v6(1, 1));
            text += &format!("route add {}/64 via {}\n", self.v6(3, 0), self.v6(2, 2));
        }
        text
    }

    fn of_home(self) -> String {
        let mut text = format!(
            "link set lo up\n\
             link add lan type bridge\n\
             address add 192.168.1.1/24 dev lan\n\
             address add {}/30 dev wan\n\
             address add {}/32 dev wan\n\
             link set lan up\n\
             link set wan up\n\
             route add default via {}\n",
            self.wan_v4(),
            self.mapping_v4(),
            self.home_gateway_v4(),
        );
        if self.has_v6() {
            let addresses = [("lan", self.lan_v6(1)), ("wan", self.v6(2, 2))];
            text += &v6_statements(addresses, self.v6(2, 1));
        }
        text
    }
}

/// The statements for `ip` that give two interfaces their addresses and set the default gateway.
fn v6_statements(addresses: [(&str, Ipv6Addr); 2], gateway: Ipv6Addr) -> String {
    let addresses =
        addresses.map(|(device, address)| format!("address add {address}/64 dev {device} nodad\n"));
    format!("{}route add default via {gateway}\n", addresses.concat())
}

#[cfg(test)]
mod tests;
