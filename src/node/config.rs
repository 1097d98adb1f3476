//! meshd.toml and the command line: as written, and as meant.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU16};
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use serde::Deserialize;

use crate::containers::{Expose, Rules};
use crate::dns::WhenNoneUsable;
use crate::dns::forward::{Server, ServerError};
use crate::dns::zone::MOST_ADDRESSES;
use crate::model::Label;
use crate::model::address::is_never_remote;
use crate::model::time::milliseconds;
use crate::os::config_file;
use crate::os::config_file::ConfigError;
use crate::protocol::local::{Check, CheckProbe};
use crate::records::kinds::Protocol;
use crate::records::kinds::default_weight;
use crate::services::registry::{Key, Registered};

/// Where Docker listens, and where Podman does.
const DOCKER_SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];
const DEFAULT_FILE: &str = "/etc/meshd/meshd.toml";

/// The daemon of a WireGuard overlay network with service discovery.
#[derive(Debug, Parser)]
#[command(name = "meshd", version)]
pub struct Arguments {
    /// Configuration file [default: /etc/meshd/meshd.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keys and records [default: /var/lib/meshd]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where meshctl connects [default: /run/meshd/meshd.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Put /etc/resolv.conf back as it was before meshd (`[dns] manage_resolv_conf`), and exit
    #[arg(long)]
    pub restore_resolv_conf: bool,
    /// Say whether the configuration is right, and exit
    #[arg(long)]
    pub check_config: bool,
    /// Another job than the daemon's.
    #[command(subcommand)]
    pub job: Option<Job>,
}

/// Another job than the daemon's.
#[derive(Debug, Clone, Subcommand)]
pub enum Job {
    /// The data plane alone: an ordinary WireGuard interface that `wg` configures
    Wireguard {
        /// Name of the interface to make
        interface: String,
        /// How many threads move packets (default: as many as the cores warrant)
        #[arg(long, env = "MESHD_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
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
    /// Write what the running meshd requests in its runtime directory (`[dns] manage_resolv_conf`)
    Apply,
    /// Put it back as it was before meshd
    Restore,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    name: Option<String>,
    interface: Option<String>,
    listen_port: Option<u16>,
    mtu: Option<u16>,
    tunnel: TunnelSection,
    join: JoinSection,
    dns: DnsSection,
    docker: DockerSection,
    metrics: MetricsSection,
    service: Vec<ServiceSection>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TunnelSection {
    workers: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct JoinSection {
    token_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DnsSection {
    enabled: bool,
    listen: Vec<IpAddr>,
    upstreams: Vec<Upstream>,
    split_dns: SplitDns,
    when_none_usable: NoneUsable,
    max_addresses: Option<NonZeroU16>,
    manage_resolv_conf: bool,
}

impl Default for DnsSection {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: Vec::new(),
            upstreams: Vec::new(),
            split_dns: SplitDns::Auto,
            when_none_usable: NoneUsable::All,
            max_addresses: None,
            manage_resolv_conf: false,
        }
    }
}

/// An upstream, as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
struct Upstream(Server);

impl TryFrom<String> for Upstream {
    type Error = ServerError;

    fn try_from(text: String) -> Result<Self, ServerError> {
        text.parse().map(Self)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum SplitDns {
    #[serde(rename = "auto")]
    Auto,
    #[serde(rename = "systemd-resolved")]
    Resolved,
    #[serde(rename = "none")]
    None,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NoneUsable {
    All,
    None,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DockerSection {
    enabled: Enabled,
    socket: Option<PathBuf>,
    expose: ExposeWord,
    addressing: Addressing,
    trust_image_labels: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "EnabledValue")]
enum Enabled {
    #[default]
    Auto,
    Yes,
    No,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum EnabledValue {
    Word(AutoWord),
    Flag(bool),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum AutoWord {
    Auto,
}

impl From<EnabledValue> for Enabled {
    fn from(value: EnabledValue) -> Self {
        match value {
            EnabledValue::Word(AutoWord::Auto) => Self::Auto,
            EnabledValue::Flag(true) => Self::Yes,
            EnabledValue::Flag(false) => Self::No,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ExposeWord {
    #[default]
    Labelled,
    All,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Addressing {
    #[default]
    Nat,
    Network,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MetricsSection {
    listen: Option<SocketAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceSection {
    name: String,
    port: u16,
    #[serde(default)]
    protocol: Option<Protocol>,
    #[serde(default)]
    address: Option<IpAddr>,
    #[serde(default)]
    check: Option<CheckSection>,
    #[serde(default = "default_weight")]
    weight: u16,
    #[serde(default)]
    priority: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CheckSection {
    tcp: bool,
    http: Option<String>,
    interval: Option<String>,
    timeout: Option<String>,
    rise: Option<NonZeroU8>,
    fall: Option<NonZeroU8>,
    status: Option<String>,
}

/// What meshd runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Keys and records.
    pub state_dir: PathBuf,
    /// Where meshctl connects.
    pub socket: PathBuf,
    /// The node's name, if it is not to be the host's.
    pub name: Option<Label>,
    /// The tunnel device.
    pub interface: String,
    /// UDP port; 0 for any.
    pub listen_port: u16,
    /// Octets; absent: from the path.
    pub mtu: Option<u16>,
    /// How many threads move packets; absent: as many as the machine's cores warrant.
    pub workers: Option<usize>,
    /// A token to join with at the first start.
    pub token_file: Option<PathBuf>,
    /// Whether names are answered.
    pub dns: bool,
    /// More addresses to answer at.
    pub dns_listen: Vec<IpAddr>,
    /// Whether systemd-resolved is told of the mesh, where there is one.
    pub split_dns: bool,
    /// Whether it is a problem if there is none.
    pub require_resolved: bool,
    /// Whether /etc/resolv.conf is kept by meshd.
    pub manage_resolv_conf: bool,
    /// Resolvers for other names; empty: the host's.
    pub upstreams: Vec<Server>,
    /// What is answered when nothing is usable.
    pub when_none_usable: WhenNoneUsable,
    /// Addresses in an answer at most.
    pub most_addresses: usize,
    /// How containers are adopted; absent: they are not.
    pub docker: Option<Docker>,
    /// Where metrics are served.
    pub metrics_listen: SocketAddr,
    /// The services of the configuration.
    pub services: Vec<Registered>,
}

impl Config {
    /// The directory of the socket. In it meshd leaves its requests for the helper that writes /etc/resolv.conf.
    #[must_use]
    pub fn runtime_dir(&self) -> &Path {
        let parent = self.socket.parent();
        parent.unwrap_or(Path::new("/"))
    }

    /// From the command line and the file it names, the former first.
    ///
    /// # Errors
    /// All that is wrong, in one line.
    pub fn load(arguments: &Arguments) -> Result<Self, ConfigError> {
        let path = arguments
            .config
            .as_deref()
            .unwrap_or(Path::new(DEFAULT_FILE));
        let file: File = config_file::read(path, arguments.config.is_some())?;
        let mut wrong = Vec::new();
        let config = Self::meant(file, arguments, &mut wrong);
        if wrong.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError(format!(
                "{}: {}",
                path.display(),
                wrong.join("; ")
            )))
        }
    }

    fn meant(file: File, arguments: &Arguments, wrong: &mut Vec<String>) -> Self {
        let name = file.name.and_then(|name| {
            Label::parse(&name)
                .map_err(|e| wrong.push(format!("name: {e}")))
                .ok()
        });
        if file.mtu.is_some_and(|mtu| !(1280..=9000).contains(&mtu)) {
            wrong.push("mtu: 1280 to 9000 octets are possible".into());
        }
        if file.tunnel.workers.is_some_and(|n| !(1..=64).contains(&n)) {
            wrong.push("[tunnel] workers: 1 to 64 threads are possible".into());
        }
        let mut services: Vec<Registered> = Vec::new();
        for section in file.service {
            let shown = section.name.chars().take(70).collect::<String>();
            match service(section) {
                Ok(registered) if services.iter().any(|other| other.key == registered.key) => {
                    wrong.push(format!(
                        "[[service]] {shown}: the same name, port and protocol stand there twice"
                    ));
                }
                Ok(registered) => services.push(registered),
                Err(error) => wrong.push(format!("[[service]] {shown}: {error}")),
            }
        }
        let needs_dns = [
            (
                file.dns.split_dns == SplitDns::Resolved,
                "split_dns = \"systemd-resolved\"",
            ),
            (file.dns.manage_resolv_conf, "manage_resolv_conf = true"),
        ];
        for (_, key) in needs_dns
            .iter()
            .filter(|(set, _)| *set && !file.dns.enabled)
        {
            wrong.push(format!(
                "[dns] {key} sends names to meshd, which does not answer with enabled = false"
            ));
        }
        Self {
            state_dir: arguments
                .state_dir
                .clone()
                .or(file.state_dir)
                .unwrap_or_else(|| "/var/lib/meshd".into()),
            socket: arguments
                .socket
                .clone()
                .or(file.socket)
                .unwrap_or_else(|| "/run/meshd/meshd.sock".into()),
            name,
            interface: file.interface.unwrap_or_else(|| "mesh0".into()),
            listen_port: file.listen_port.unwrap_or(51820),
            mtu: file.mtu,
            workers: file.tunnel.workers.map(usize::from),
            token_file: file.join.token_file,
            dns: file.dns.enabled,
            dns_listen: file.dns.listen,
            split_dns: file.dns.split_dns != SplitDns::None,
            require_resolved: file.dns.split_dns == SplitDns::Resolved,
            manage_resolv_conf: file.dns.manage_resolv_conf,
            upstreams: file
                .dns
                .upstreams
                .into_iter()
                .map(|upstream| upstream.0)
                .collect(),
            when_none_usable: match file.dns.when_none_usable {
                NoneUsable::All => WhenNoneUsable::All,
                NoneUsable::None => WhenNoneUsable::None,
            },
            most_addresses: file
                .dns
                .max_addresses
                .map_or(MOST_ADDRESSES, |most| most.get().into()),
            docker: docker(file.docker),
            metrics_listen: file
                .metrics
                .listen
                .unwrap_or_else(|| "127.0.0.1:9560".parse().expect("a literal")),
            services,
        }
    }
}

/// How containers are adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Docker {
    /// The engine's sockets; the first that is there counts.
    pub sockets: Vec<PathBuf>,
    /// Whether it is a problem that there is none.
    pub required: bool,
    /// What of labels counts.
    pub rules: Rules,
    /// Whether there is to be a network whose containers have mesh addresses of their own.
    pub network: bool,
}

fn docker(section: DockerSection) -> Option<Docker> {
    let sockets = match section.socket {
        Some(socket) => vec![socket],
        None => DOCKER_SOCKETS.map(PathBuf::from).to_vec(),
    };
    (section.enabled != Enabled::No).then(|| Docker {
        sockets,
        required: section.enabled == Enabled::Yes,
        rules: Rules {
            expose: match section.expose {
                ExposeWord::Labelled => Expose::Labelled,
                ExposeWord::All => Expose::All,
            },
            trust_image_labels: section.trust_image_labels,
        },
        network: section.addressing == Addressing::Network,
    })
}

fn service(section: ServiceSection) -> Result<Registered, String> {
    let key = Key {
        name: Label::parse(&section.name).map_err(|e| e.to_string())?,
        port: section
            .port
            .try_into()
            .map_err(|_| "port: 1 to 65535 are possible".to_owned())?,
        protocol: section.protocol.unwrap_or(Protocol::Tcp),
    };
    let address = section.address.map(|address| address.to_canonical());
    if address.is_some_and(is_never_remote) {
        return Err("address: give one that other nodes can reach".into());
    }
    let check = section.check.map(check).transpose()?;
    if check.is_some() && key.protocol == Protocol::Udp {
        return Err("check: checks are for TCP services".into());
    }
    Ok(Registered {
        key,
        address,
        check,
        weight: section.weight,
        priority: section.priority,
    })
}

fn check(section: CheckSection) -> Result<Check, String> {
    let probe = match (section.tcp, section.http) {
        (true, None) => CheckProbe::Tcp,
        (false, Some(path))
            if path.starts_with('/') && path.is_ascii() && !path.contains(char::is_whitespace) =>
        {
            CheckProbe::Http(path)
        }
        (false, Some(_)) => return Err("check.http: write a path that begins with `/`".into()),
        _ => return Err("check: write { tcp = true } or { http = \"/path\" }".into()),
    };
    let mut check = Check::new(probe);
    check.rise = section.rise.map_or(check.rise, |n| n.get().into());
    check.fall = section.fall.map_or(check.fall, |n| n.get().into());
    if let Some(text) = section.status {
        if check.probe == CheckProbe::Tcp {
            return Err("check.status: only { http = \"/path\" } has one".into());
        }
        check.status = status(&text).ok_or_else(|| {
            format!("check.status: `{text}` is no status from 100 to 599, nor a range such as \"200-299\"")
        })?;
    }
    for (name, text, most, target) in [
        (
            "interval",
            section.interval,
            3_600_000,
            &mut check.interval_ms,
        ),
        ("timeout", section.timeout, 60_000, &mut check.timeout_ms),
    ] {
        if let Some(text) = text {
            let wrong = || {
                format!(
                    "check.{name}: `{text}` is no duration from 100ms to {}s, such as \"5s\"",
                    most / 1000
                )
            };
            *target = milliseconds(&text)
                .filter(|ms| (100..=most).contains(ms))
                .ok_or_else(wrong)?;
        }
    }
    Ok(check)
}

/// `204`, `200-299`.
fn status(text: &str) -> Option<(u16, u16)> {
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    let (least, most) = (least.trim().parse().ok()?, most.trim().parse().ok()?);
    (100 <= least && least <= most && most <= 599).then_some((least, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("writable");
        let path = file.path().to_str().expect("a plain path").to_owned();
        Config::load(
            &Arguments::try_parse_from(["meshd", "--config", &path]).expect("valid arguments"),
        )
    }

    #[test]
    fn the_example_is_what_it_says() {
        let config = load(include_str!("../../config/meshd.toml")).expect("the example is valid");
        assert_eq!(
            (config.interface.as_str(), config.listen_port),
            ("mesh0", 51820)
        );
        assert_eq!(config.services.len(), 1);
    }

    #[test]
    fn the_address_of_a_service_is_one_that_others_can_have_in_whatever_form() {
        let service = |address: &str| {
            load(&format!(
                "[[service]]\nname = \"web\"\nport = 80\naddress = \"{address}\"\n"
            ))
        };
        for refused in ["127.0.0.1", "::ffff:127.0.0.1", "::ffff:0.0.0.0"] {
            assert!(service(refused).is_err(), "{refused}");
        }
        let mapped = service("::ffff:10.210.1.1").expect("an address of the mesh");
        let expected = "10.210.1.1".parse().ok();
        assert_eq!(mapped.services.first().and_then(|s| s.address), expected);
    }

    #[test]
    fn containers_get_mesh_addresses_of_their_own_only_where_asked_for() {
        let network = |text: &str| {
            let config = load(text).expect("it is valid");
            config.docker.expect("it is on").network
        };
        assert!(!network(""));
        assert!(!network("[docker]\naddressing = \"nat\"\n"));
        assert!(network("[docker]\naddressing = \"network\"\n"));
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let error = load(
            "name = \"a.b\"\nmtu = 3\n[[service]]\nname = \"web\"\nport = 0\n[[service]]\nname = \"x\"\nport = 1\ncheck = { http = \"no\" }\n",
        )
        .expect_err("wrong four times")
        .to_string();
        for part in ["a.b", "mtu", "web: port", "x: check.http"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn an_unknown_key_in_a_section_is_named() {
        let error = load("[dns]\nenabled = true\nlisen = []\n")
            .expect_err("unknown")
            .to_string();
        assert!(
            error.contains("line 3: unknown key `dns.lisen`; the nearest known key is `listen`"),
            "{error}"
        );
    }

    #[test]
    fn names_are_not_sent_to_a_resolver_that_is_off() {
        for key in [
            "manage_resolv_conf = true",
            "split_dns = \"systemd-resolved\"",
        ] {
            let error = load(&format!("[dns]\nenabled = false\n{key}\n"))
                .expect_err("a contradiction")
                .to_string();
            assert!(error.contains(key), "{error}");
            load(&format!("[dns]\n{key}\n")).expect("with the resolver it is fine");
        }
    }

    #[test]
    fn the_same_service_twice_is_refused() {
        let twice = "[[service]]\nname = \"web\"\nport = 80\n".repeat(2);
        assert!(
            load(&twice)
                .expect_err("twice")
                .to_string()
                .contains("twice")
        );
    }
}
