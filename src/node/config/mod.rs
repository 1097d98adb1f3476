//! meshd.toml and the command line: as they are written ([`file`]), and as meshd uses them ([`Config`]).

mod file;
mod reach;
mod service;
mod spawn;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Parser, Subcommand};

use self::file::{
    Addressing, DnsSection, DockerSection, Enabled, ExposeWord, File, MetricsSection, NoneUsable,
    PortsWord, ServiceSection, SplitDns, WebSection,
};
pub use self::reach::{NamedAddress, PathSettings, RelaySettings, StreamListen};
use crate::containers::{Expose, OpenPorts, Rules};
use crate::dns::WhenNoneUsable;
use crate::dns::forward::Server;
use crate::dns::zone::MAX_ADDRESSES;
use crate::model::Label;
use crate::model::interface::check_interface;
use crate::model::text::printable;
use crate::os::arguments;
use crate::os::config_file::{ConfigError, ConfigFile, Findings};
use crate::os::log::LogSettings;
use crate::os::metrics::MetricsListen;
use crate::services::registry::RegisteredInstance;
use crate::spawn::Template;

/// The sockets of Docker and of Podman.
const DOCKER_SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];
const DEFAULT_FILE: &str = "/etc/meshd/meshd.toml";
const METRICS_PORT: u16 = 9560;

/// The daemon of a WireGuard overlay network with service discovery.
#[derive(Debug, Parser)]
#[command(
    name = "meshd",
    version,
    after_help = "\
Examples:
  meshd --check-config            whether /etc/meshd/meshd.toml is right
  meshd --config /tmp/meshd.toml"
)]
pub struct Arguments {
    /// Configuration file [default: /etc/meshd/meshd.toml, if it exists]
    #[arg(long, value_name = "FILE", value_parser = arguments::path)]
    config: Option<PathBuf>,
    /// Keys and records [default: /var/lib/meshd]
    #[arg(long, value_name = "DIR", value_parser = arguments::path)]
    state_dir: Option<PathBuf>,
    /// Where meshctl connects [default: /run/meshd/meshd.sock]
    #[arg(long, value_name = "PATH", value_parser = arguments::path)]
    socket: Option<PathBuf>,
    /// Put /etc/resolv.conf back as it was before meshd (`[dns] manage_resolv_conf`), and exit
    #[arg(long)]
    pub restore_resolv_conf: bool,
    /// Say whether the configuration is right, and exit
    #[arg(long)]
    pub check_config: bool,
    /// A job other than the daemon's.
    #[command(subcommand)]
    pub job: Option<Job>,
}

/// A job other than the daemon's.
#[derive(Debug, Clone, Subcommand)]
pub enum Job {
    /// The data plane alone: an ordinary WireGuard interface that `wg` configures
    #[command(after_help = "\
Examples:
  meshd wireguard wg0    then: wg setconf wg0 FILE")]
    Wireguard {
        /// Name of the interface to make
        #[arg(value_name = "INTERFACE", value_parser = arguments::interface)]
        interface: String,
        /// How many threads move packets (default: as many as the cores warrant)
        #[arg(long, env = "MESHD_WORKERS", value_name = "N", value_parser = arguments::number(1u16, 64, 4), allow_hyphen_values = true)]
        workers: Option<u16>,
    },
    /// Write /etc/resolv.conf for a meshd that may not write there itself
    ResolvConf {
        /// Whether to write the file or to restore it
        #[command(subcommand)]
        what: ResolvConfJob,
    },
}

/// The ways in which `meshd resolv-conf` changes /etc/resolv.conf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum ResolvConfJob {
    #[command(after_help = "\
Examples:
  meshd resolv-conf apply")]
    /// Write what the running meshd requests in its runtime directory (`[dns] manage_resolv_conf`)
    Apply,
    #[command(after_help = "\
Examples:
  meshd resolv-conf restore")]
    /// Put it back as it was before meshd
    Restore,
}

/// What meshd runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory of keys and records.
    pub state_dir: PathBuf,
    /// Where this node is administered.
    pub api: ApiSettings,
    /// The node's name; absent: the name of the host.
    pub name: Option<Label>,
    /// The file with a token to join with at the first start.
    pub token_file: Option<PathBuf>,
    pub tunnel: TunnelSettings,
    pub dns: DnsSettings,
    /// How containers are adopted; absent: they are not.
    pub docker: Option<DockerSettings>,
    pub metrics: MetricsSettings,
    /// Which addresses this node offers to its peers.
    pub path: PathSettings,
    /// Whether and how much this node relays.
    pub relay: RelaySettings,
    pub log: LogSettings,
    /// The services of the configuration.
    pub services: Vec<RegisteredInstance>,
}

/// Where this node is administered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiSettings {
    /// The Unix socket of the local API.
    pub socket: PathBuf,
    /// Whether the API is served over the network too, at the mesh addresses, to callers with API tokens.
    pub is_on_network: bool,
    pub page: PagePlace,
    /// The templates from which callers spawn containers.
    pub templates: Vec<Arc<Template>>,
}

/// Where the page is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PagePlace {
    Nowhere,
    /// With the API, at the mesh addresses.
    WithApi,
    /// At this address, and with the API if that is on.
    At(SocketAddr),
}

impl ApiSettings {
    /// Whether anything is served to callers with API tokens.
    #[must_use]
    pub fn needs_tokens(&self) -> bool {
        self.is_on_network || self.page != PagePlace::Nowhere
    }
}

/// What is measured for monitoring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsSettings {
    /// The address at which metrics are served; absent: they are not.
    pub listen: Option<SocketAddr>,
    /// Whether there are metrics for each peer.
    pub per_peer: bool,
    /// Whether there are metrics for each service.
    pub per_service: bool,
    /// Whether the services of the mesh are served at the same address, for Prometheus and for an ingress.
    pub discovery: bool,
}

/// The tunnel device and its UDP socket.
#[derive(Debug, Clone)]
pub struct TunnelSettings {
    /// The name of the device.
    pub interface: String,
    /// The UDP port; 0 for any.
    pub listen_port: u16,
    /// The MTU of the device in bytes; absent: computed from the host's interfaces.
    pub mtu: Option<u16>,
    /// The number of threads that move packets; absent: computed from the number of cores.
    pub workers: Option<usize>,
}

/// The resolver.
#[derive(Debug, Clone)]
pub struct DnsSettings {
    /// Whether names are answered.
    pub enabled: bool,
    /// Addresses at which it listens besides those of the node.
    pub listen: Vec<IpAddr>,
    /// Whether systemd-resolved is configured, where there is one.
    pub split_dns: bool,
    /// Whether it is a problem if there is no systemd-resolved.
    pub require_resolved: bool,
    /// Whether meshd keeps /etc/resolv.conf.
    pub manage_resolv_conf: bool,
    /// The resolvers for other names; empty: those of the host.
    pub upstreams: Vec<Server>,
    pub when_none_usable: WhenNoneUsable,
    /// The maximum number of addresses in an answer.
    pub max_addresses: usize,
}

/// How containers are adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerSettings {
    /// The engine's sockets. The first that exists is used.
    pub sockets: Vec<PathBuf>,
    /// Whether it is a problem that there is no engine.
    pub required: bool,
    /// Which labels count.
    pub rules: Rules,
    /// Whether there is to be a network whose containers have mesh addresses of their own.
    pub network: bool,
}

impl Config {
    /// The directory of the socket. In it meshd leaves its requests for the helper that writes /etc/resolv.conf.
    #[must_use]
    pub fn runtime_dir(&self) -> &Path {
        let parent = self.api.socket.parent();
        parent.unwrap_or(Path::new("/"))
    }

    /// Reads the configuration from the command line and the file that it names. The command line takes precedence.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong. The error names everything that is wrong, in one line.
    pub fn load(arguments: &Arguments) -> Result<Self, ConfigError> {
        let path = arguments
            .config
            .as_deref()
            .unwrap_or(Path::new(DEFAULT_FILE));
        let text = ConfigFile::open(path, arguments.config.is_some())?;
        let mut wrong = Findings::new(&text);
        let config = Self::validate(text.parse()?, arguments, &mut wrong);
        wrong.into_result().map(|()| config)
    }

    /// Makes the configuration of what is written, and adds everything that is wrong to `wrong`.
    fn validate(file: File, arguments: &Arguments, wrong: &mut Findings<'_>) -> Self {
        let name = file
            .name
            .and_then(|name| Label::parse(&name).map_err(|e| wrong.add("name", e)).ok());
        let interface = file.interface.unwrap_or_else(|| "mesh0".into());
        if let Err(error) = check_interface(&interface) {
            wrong.add("interface", error);
        }
        if file.mtu.is_some_and(|mtu| !(1280..=9000).contains(&mtu)) {
            wrong.add("mtu", "1280 to 9000 bytes are possible");
        }
        if file.tunnel.workers.is_some_and(|n| !(1..=64).contains(&n)) {
            wrong.add("tunnel.workers", "1 to 64 threads are possible");
        }
        let state_dir = arguments.state_dir.clone().or(file.state_dir);
        let socket = arguments.socket.clone().or(file.socket);
        let has_engine = file.docker.enabled != Enabled::No;
        Self {
            state_dir: state_dir.unwrap_or_else(|| "/var/lib/meshd".into()),
            api: ApiSettings {
                socket: socket.unwrap_or_else(|| "/run/meshd/meshd.sock".into()),
                is_on_network: file.api.enabled,
                page: page(&file.web, file.api.enabled, wrong),
                templates: spawn::templates(file.spawn, has_engine, wrong),
            },
            name,
            token_file: file.join.token_file,
            tunnel: TunnelSettings {
                interface,
                listen_port: file.listen_port.unwrap_or(51820),
                mtu: file.mtu,
                workers: file.tunnel.workers.map(usize::from),
            },
            services: services(file.service, wrong),
            dns: dns(file.dns, wrong),
            docker: docker(file.docker),
            metrics: metrics(&file.metrics),
            path: reach::path(file.path, &file.route, wrong),
            relay: reach::relay(&file.relay, wrong),
            log: file.log,
        }
    }
}

fn page(section: &WebSection, has_api: bool, wrong: &mut Findings<'_>) -> PagePlace {
    match (section.enabled, section.listen.0) {
        (false, _) => PagePlace::Nowhere,
        (true, Some(address)) => {
            if !address.ip().is_loopback() {
                wrong.add(
                    "web.listen",
                    "nothing encrypts API tokens on the way to this address; set one of this machine alone, such as 127.0.0.1:7448, and reach it with `ssh -L` or through a proxy that ends TLS",
                );
            }
            PagePlace::At(address)
        }
        (true, None) => {
            if !has_api {
                let text = "[web] enabled = true serves the page with the API; set [api] enabled = true, or [web] listen = \"127.0.0.1:7448\"";
                wrong.add_at("web.enabled", text.to_owned());
            }
            PagePlace::WithApi
        }
    }
}

fn services(sections: Vec<ServiceSection>, wrong: &mut Findings<'_>) -> Vec<RegisteredInstance> {
    let mut services: Vec<RegisteredInstance> = Vec::new();
    for (number, section) in sections.into_iter().enumerate() {
        let shown = printable(&section.name, 70);
        let found = service::service(section).and_then(|registered| {
            match services.iter().any(|other| other.key == registered.key) {
                true => Err("the same name, port and protocol stand there twice".to_owned()),
                false => Ok(registered),
            }
        });
        match found {
            Ok(registered) => services.push(registered),
            Err(error) => {
                let key = error.split(':').next().unwrap_or_default();
                let place = format!("service.{number}.{key}");
                wrong.add_at(&place, format!("[[service]] {shown}: {error}"));
            }
        }
    }
    services
}

fn dns(section: DnsSection, wrong: &mut Findings<'_>) -> DnsSettings {
    let needs_dns = [
        (
            section.split_dns == SplitDns::Resolved,
            "split_dns",
            "\"systemd-resolved\"",
        ),
        (section.manage_resolv_conf, "manage_resolv_conf", "true"),
    ];
    for (is_set, key, value) in needs_dns {
        if is_set && !section.enabled {
            wrong.add_at(&format!("dns.{key}"), format!(
                "[dns] {key} = {value} sends names to meshd, which does not answer with enabled = false"
            ));
        }
    }
    DnsSettings {
        enabled: section.enabled,
        listen: section.listen,
        split_dns: section.split_dns != SplitDns::None,
        require_resolved: section.split_dns == SplitDns::Resolved,
        manage_resolv_conf: section.manage_resolv_conf,
        upstreams: section.upstreams.into_iter().map(|u| u.0).collect(),
        when_none_usable: match section.when_none_usable {
            NoneUsable::All => WhenNoneUsable::All,
            NoneUsable::None => WhenNoneUsable::None,
        },
        max_addresses: section
            .max_addresses
            .map_or(MAX_ADDRESSES, |max| max.get().into()),
    }
}

fn metrics(section: &MetricsSection) -> MetricsSettings {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
    MetricsSettings {
        listen: section.listen.map_or(Some(default), MetricsListen::address),
        per_peer: section.per_peer,
        per_service: section.per_service,
        discovery: section.discovery,
    }
}

fn docker(section: DockerSection) -> Option<DockerSettings> {
    let sockets = match section.socket {
        Some(socket) => vec![socket],
        None => DOCKER_SOCKETS.map(PathBuf::from).to_vec(),
    };
    (section.enabled != Enabled::No).then(|| DockerSettings {
        sockets,
        required: section.enabled == Enabled::Yes,
        rules: Rules {
            expose: match section.expose {
                ExposeWord::Labelled => Expose::Labelled,
                ExposeWord::All => Expose::All,
            },
            trust_image_labels: section.trust_image_labels,
            ports: match section.ports {
                PortsWord::Declared => OpenPorts::Declared,
                PortsWord::All => OpenPorts::All,
            },
        },
        network: section.addressing == Addressing::Network,
    })
}

#[cfg(test)]
mod tests;
