//! The configuration: coordinator.toml and the command line as they are written, and the values that the coordinator uses.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use ipnet::Ipv4Net;
use serde::Deserialize;

use super::store::EtcdSettings;
use crate::model::Label;
use crate::model::domain::check_domain;
use crate::os::arguments;
use crate::os::config_file::{ConfigError, ConfigFile, Findings};
use crate::os::log::LogSettings;
use crate::os::metrics::MetricsListen;
use crate::protocol::token::MAX_URLS;
use crate::protocol::url::CoordinatorUrl;

/// The configuration file, which may be absent.
const DEFAULT_FILE: &str = "/etc/meshd/coordinator.toml";
/// The prefix of the keys in etcd.
const DEFAULT_PREFIX: &str = "/meshd/";
/// The message of a build without etcd.
#[cfg(not(feature = "etcd"))]
pub(super) const WITHOUT_ETCD: &str = "store.kind = \"etcd\" is not in this build; take a released package, or build with `cargo build --release --features etcd` (which needs protoc)";

/// Admits nodes to a mesh, leases their addresses, and stores and forwards their signed records.
#[derive(Debug, Parser)]
#[command(
    name = "mesh-coordinator",
    version,
    after_help = "\
Examples:
  mesh-coordinator --check-config
  mesh-coordinator --public-url https://coord.example.com:7443"
)]
pub struct Arguments {
    /// Configuration file [default: /etc/meshd/coordinator.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE", value_parser = arguments::path)]
    config: Option<PathBuf>,
    /// Where nodes connect (TCP, TLS) [default: [::]:7443]
    #[arg(long, value_name = "ADDR:PORT", value_parser = arguments::socket_address)]
    listen: Option<SocketAddr>,
    /// How nodes reach this coordinator; goes into join tokens
    #[arg(long, value_name = "URL", value_parser = arguments::coordinator_url)]
    public_url: Vec<CoordinatorUrl>,
    /// Keys and records [default: /var/lib/mesh-coordinator]
    #[arg(long, global = true, value_name = "DIR", value_parser = arguments::path)]
    state_dir: Option<PathBuf>,
    /// Where meshctl connects [default: /run/mesh-coordinator/admin.sock]
    #[arg(long, value_name = "PATH", value_parser = arguments::path)]
    admin_socket: Option<PathBuf>,
    /// Say whether the configuration is right, and exit
    #[arg(long)]
    pub check_config: bool,
    /// A command that runs instead of the coordinator.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands of `mesh-coordinator`.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Write records, leases, spent tokens and the TLS key into one new file, also while the coordinator runs
    #[command(after_help = "\
Examples:
  mesh-coordinator backup /root/mesh.backup")]
    Backup {
        /// The file to be made
        #[arg(value_name = "FILE", value_parser = arguments::path)]
        file: PathBuf,
    },
    /// Put a backup in the place of the state of a coordinator that does not run
    #[command(after_help = "\
Examples:
  mesh-coordinator restore /root/mesh.backup")]
    Restore {
        /// A file made by `backup`
        #[arg(value_name = "FILE", value_parser = arguments::path)]
        file: PathBuf,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    listen: Option<SocketAddr>,
    public_urls: Vec<CoordinatorUrl>,
    state_dir: Option<PathBuf>,
    admin_socket: Option<PathBuf>,
    mesh: Mesh,
    store: Store,
    metrics: Metrics,
    log: LogSettings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mesh {
    domain: Option<Label>,
    prefix_v4: Option<Ipv4Net>,
    node_block_v4: Option<u8>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Store {
    kind: StoreKind,
    endpoints: Vec<String>,
    prefix: Option<String>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoreKind {
    #[default]
    Sqlite,
    Etcd,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Metrics {
    listen: Option<MetricsListen>,
}

/// The configuration that the coordinator uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The address at which nodes connect.
    pub listen: SocketAddr,
    /// The URLs at which nodes reach it. If there are none, the coordinator finds one out.
    pub public_urls: Vec<CoordinatorUrl>,
    /// The directory with keys and records.
    pub state_dir: PathBuf,
    /// The socket at which meshctl connects.
    pub admin_socket: PathBuf,
    /// The domain of a new mesh.
    pub domain: Label,
    /// The IPv4 prefix of a new mesh.
    pub prefix_v4: Ipv4Net,
    /// The prefix length of its node blocks.
    pub node_block_v4: u8,
    /// The address at which metrics are served; absent: they are not.
    pub metrics_listen: Option<SocketAddr>,
    pub log: LogSettings,
    /// The store that the coordinator shares with others, instead of SQLite.
    pub etcd: Option<EtcdSettings>,
}

impl Config {
    /// Reads the command line and the file that it names. The command line takes precedence.
    ///
    /// # Errors
    /// All errors, in one line.
    pub fn load(arguments: &Arguments) -> Result<Self, ConfigError> {
        let path = arguments
            .config
            .as_deref()
            .unwrap_or(Path::new(DEFAULT_FILE));
        let text = ConfigFile::open(path, arguments.config.is_some())?;
        let file: File = text.parse()?;
        let mut wrong = Findings::new(&text);
        file.store.check(&mut wrong);
        let mut config = Self::merged(file, arguments);
        if let Err(error) = check_domain(&config.domain) {
            wrong.add("mesh.domain", error);
        }
        let plan = crate::model::MeshAddresses {
            prefix_v4: config.prefix_v4,
            prefix_v6: "fd00::/48".parse().expect("a literal"),
            node_block_v4: config.node_block_v4,
            node_block_v6: 64,
        };
        if let Err(error) = plan.check() {
            wrong.add_at("mesh.prefix_v4", format!("[mesh] {error}"));
        }
        if !arguments.public_url.is_empty() {
            config.public_urls.clone_from(&arguments.public_url);
        }
        if config.public_urls.len() > MAX_URLS {
            let error = format!(
                "{} URLs are given; at most {MAX_URLS} fit into a token",
                config.public_urls.len()
            );
            wrong.add("public_urls", error);
        }
        wrong.into_result().map(|()| config)
    }

    fn merged(file: File, arguments: &Arguments) -> Self {
        let default = |text: &str| text.parse().expect("a literal");
        Self {
            listen: arguments
                .listen
                .or(file.listen)
                .unwrap_or_else(|| default("[::]:7443")),
            public_urls: file.public_urls,
            state_dir: arguments
                .state_dir
                .clone()
                .or(file.state_dir)
                .unwrap_or_else(|| "/var/lib/mesh-coordinator".into()),
            admin_socket: arguments
                .admin_socket
                .clone()
                .or(file.admin_socket)
                .unwrap_or_else(|| "/run/mesh-coordinator/admin.sock".into()),
            domain: file
                .mesh
                .domain
                .unwrap_or_else(|| Label::parse("mesh").expect("a literal")),
            prefix_v4: file
                .mesh
                .prefix_v4
                .unwrap_or_else(|| "10.210.0.0/16".parse().expect("a literal")),
            node_block_v4: file.mesh.node_block_v4.unwrap_or(24),
            metrics_listen: file
                .metrics
                .listen
                .map_or_else(|| Some(default("127.0.0.1:9561")), MetricsListen::address),
            log: file.log,
            etcd: file.store.into_etcd(),
        }
    }
}

impl Store {
    /// Adds the errors of this section to `wrong`.
    fn check(&self, wrong: &mut Findings<'_>) {
        if self.kind == StoreKind::Sqlite {
            let given = [
                ("endpoints", !self.endpoints.is_empty()),
                ("prefix", self.prefix.is_some()),
                ("user", self.user.is_some()),
                ("password_file", self.password_file.is_some()),
                ("ca_file", self.ca_file.is_some()),
                ("certificate_file", self.certificate_file.is_some()),
                ("key_file", self.key_file.is_some()),
            ];
            for (key, _) in given.into_iter().filter(|(_, given)| *given) {
                let key = format!("store.{key}");
                wrong.add_at(&key, format!("{key} goes with store.kind = \"etcd\" only"));
            }
            return;
        }
        #[cfg(not(feature = "etcd"))]
        wrong.add_at("store.kind", WITHOUT_ETCD.to_owned());
        let scheme = |wanted| move |endpoint: &String| endpoint.starts_with(wanted);
        let (plain, secure) = (scheme("http://"), scheme("https://"));
        let endpoints_valid =
            !self.endpoints.is_empty() && self.endpoints.iter().all(|e| plain(e) || secure(e));
        let has_certificate = self.certificate_file.is_some();
        let rules = [
            (
                endpoints_valid,
                "endpoints",
                "store.endpoints must name each member of the etcd cluster, such as [\"http://127.0.0.1:2379\"]",
            ),
            (
                !endpoints_valid || self.ca_file.is_some() != self.endpoints.iter().any(plain),
                "ca_file",
                "store.ca_file goes with https:// in all of store.endpoints, and they with it",
            ),
            (
                self.user.is_some() == self.password_file.is_some(),
                "user",
                "store.user and store.password_file go together",
            ),
            (
                has_certificate == self.key_file.is_some()
                    && (!has_certificate || self.ca_file.is_some()),
                "certificate_file",
                "store.certificate_file and store.key_file go together, and with store.ca_file",
            ),
            (
                self.prefix.as_deref().is_none_or(|p| p.ends_with('/')),
                "prefix",
                "store.prefix must end in /",
            ),
        ];
        for (_, key, message) in rules.into_iter().filter(|(holds, ..)| !holds) {
            wrong.add_at(&format!("store.{key}"), message.to_owned());
        }
    }

    fn into_etcd(self) -> Option<EtcdSettings> {
        (self.kind == StoreKind::Etcd).then(|| EtcdSettings {
            endpoints: self.endpoints,
            prefix: self.prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
            user: self.user,
            password_file: self.password_file,
            ca_file: self.ca_file,
            certificate_file: self.certificate_file,
            key_file: self.key_file,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, extra: &[&str]) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("writable");
        let path = file.path().to_str().expect("a plain path").to_owned();
        let arguments = ["mesh-coordinator", "--config", &path]
            .into_iter()
            .chain(extra.iter().copied());
        Config::load(&Arguments::try_parse_from(arguments).expect("valid arguments"))
    }

    const EXAMPLE: &str = include_str!("../../config/coordinator.toml");

    #[test]
    fn the_example_copied_as_it_is_changes_nothing() {
        let example = load(EXAMPLE, &[]).expect("the example is valid");
        assert_eq!(example, load("", &[]).expect("no key is required"));
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn the_keys_of_the_example_are_valid_and_have_their_defaults_but_for_examples() {
        let mut example =
            load(&crate::os::config_file::uncommented(EXAMPLE), &[]).expect("every key is valid");
        assert_eq!(example.public_urls.drain(..).count(), 1);
        let etcd = example.etcd.take().expect("the example has a cluster");
        assert_eq!(etcd.endpoints.len(), 3);
        assert_eq!(etcd.prefix, DEFAULT_PREFIX);
        assert_eq!(example, load("", &[]).expect("no key is required"));
    }

    #[test]
    fn the_command_line_comes_before_the_file() {
        let config = load("listen = \"127.0.0.1:1\"", &["--listen", "127.0.0.1:2"]).expect("valid");
        assert_eq!(config.listen, SocketAddr::from(([127, 0, 0, 1], 2)));
    }

    #[test]
    fn a_domain_with_another_meaning_is_refused_with_its_line() {
        let domain = |text: &str| load(&format!("# x\n[mesh]\ndomain = \"{text}\"\n"), &[]);
        for refused in ["com", "local", "localhost", "arpa", "test"] {
            let error = domain(refused).expect_err("refused").to_string();
            let named = format!("line 3: `mesh.domain`: `{refused}` ");
            assert!(error.contains(&named), "{error}");
        }
        for taken in ["mesh", "internal"] {
            assert_eq!(domain(taken).expect("free").domain.as_str(), taken);
        }
    }

    #[test]
    fn a_cluster_without_endpoints_is_no_matter_of_certificates() {
        let error = load("[store]\nkind = \"etcd\"", &[]).expect_err("it has none");
        let error = error.to_string();
        assert!(error.contains("store.endpoints must name each"), "{error}");
        assert!(!error.contains("ca_file"), "{error}");
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let error = load(
            "[mesh]\nprefix_v4 = \"10.210.1.0/16\"\n[store]\nkind = \"etcd\"",
            &[],
        )
        .expect_err("wrong twice")
        .to_string();
        assert!(
            error.contains("etcd") && error.contains("10.210.0.0/16"),
            "{error}"
        );
    }
}
