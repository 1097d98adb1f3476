//! Runs the blocks of a page from top to bottom, each command on the host that its prompt names, and compares the outputs.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use meshd::protocol::local::Status;
use meshd::testbed::{DockerHost, Host, Image, Running, World};

use crate::compare::{masked, shown};
use crate::page::{Block, Marker, Page, Part};
use crate::setup::{Setup, is_host};
use crate::tool::find_program;
use crate::traffic::{Traffic, answer_connections};
use crate::{UPDATE, is_update, program_path, repository};

/// How long anything that is waited for may take: only a hang takes that long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the output of a command that only reads may differ from that of the page.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// When pages are updated: how long a mesh is given to come to rest before a command that only reads.
const REST: Duration = Duration::from_secs(4);
/// How many exchanges the clients of a page must have made.
const MIN_EXCHANGES: usize = 50;
const PROGRAMS: [&str; 3] = ["meshctl", "mesh-coordinator", "meshd"];
/// Commands that change nothing, so they may run until their output is that of the page.
const READS: [&str; 13] = [
    "meshctl status",
    "meshctl resolve",
    "meshctl service list",
    "meshctl node list",
    "meshctl token list",
    "meshctl ping",
    "meshctl doctor",
    "meshctl policy check",
    "meshctl policy diff",
    "meshctl policy explain",
    "curl",
    "getent",
    "until",
];
/// Makes `/etc` the host's own, with an empty directory for our configuration, and a resolver that nobody else has.
const OWN_FILES: &str = "rm -rf /run/etc && cp -a /etc /run/etc && mount --bind /run/etc /etc && mount -t tmpfs tmpfs /mnt
rm -rf /etc/meshd /etc/resolv.conf && mkdir -p /etc/meshd && echo 'nameserver 192.0.2.53' >/etc/resolv.conf";
const MANAGED_NAMES: &str = "[dns]\nmanage_resolv_conf = true\n";
/// Compose's second version is a part of the client; the first is a program of its own.
const COMPOSE: &str = "#!/bin/sh\nif [ \"$1\" = compose ]; then shift; exec docker-compose \"$@\"; fi\nPATH=${PATH#*:} exec docker \"$@\"\n";

#[test]
fn the_tutorial_leads_from_two_servers_to_a_name_and_to_a_third_at_home() {
    walk("docs/tutorial.md", &["getent"]);
}

#[test]
fn the_tutorial_for_containers_leads_from_a_label_to_a_name() {
    if let Err(why) = DockerHost::is_possible() {
        return meshd::testbed::skip_test(&why);
    }
    if find_program("docker-compose").is_none() && !has_compose() {
        return meshd::testbed::skip_test("docker-compose is not installed");
    }
    walk("docs/tutorial-containers.md", &[]);
}

#[test]
fn a_server_joins_without_a_person_as_the_page_says() {
    walk("docs/howto/join-unattended.md", &[]);
}

#[test]
fn health_and_metrics_answer_as_the_page_says() {
    walk("docs/howto/monitoring.md", &["curl"]);
}

#[test]
fn an_ingress_gets_its_sites_as_the_page_says() {
    walk("docs/howto/ingress.md", &["curl"]);
}

#[test]
fn a_backup_is_made_and_restored_as_the_page_says() {
    walk("docs/howto/backup.md", &[]);
}

#[test]
fn nodes_leave_and_are_removed_as_the_page_says() {
    walk("docs/howto/remove-node.md", &[]);
}

#[test]
fn events_are_shown_and_a_line_that_is_deleted_is_named_as_the_page_says() {
    walk("docs/howto/audit.md", &[]);
}

#[test]
fn a_program_calls_the_api_as_the_page_says() {
    walk("docs/howto/api.md", &["curl"]);
}

#[test]
fn a_browser_finds_the_views_where_the_page_says() {
    walk("docs/howto/page.md", &["curl"]);
}

#[test]
#[cfg(feature = "etcd")]
fn three_coordinators_share_an_etcd_as_the_page_says() {
    walk("docs/howto/etcd.md", &["etcd"]);
}

#[test]
fn a_flat_mesh_becomes_default_deny_as_the_page_says() {
    walk("docs/howto/policy.md", &[]);
}

#[test]
fn completions_are_printed_as_the_page_says() {
    walk("docs/install.md", &[]);
}

#[test]
fn every_page_with_blocks_that_run_has_a_test_here() {
    let source = std::fs::read_to_string(repository("tests/docs/walk.rs")).expect("this file");
    for page in crate::pages() {
        let runs = page.blocks().any(|block| {
            block.language == "console" && !matches!(block.marker, Some(Marker::NotRun(_)))
                || matches!(&block.marker, Some(Marker::On(_) | Marker::FileOn(_)))
        });
        let is_walked = source.contains(&format!("walk(\"{}\"", page.path));
        assert_eq!(runs, is_walked, "{}", page.path);
    }
}

fn has_compose() -> bool {
    let version = std::process::Command::new("docker")
        .args(["compose", "version"])
        .output();
    version.is_ok_and(|output| output.status.success())
}

/// What the programs of a small mesh print and serve.
pub(crate) struct RunningMesh {
    /// The metrics of meshd.
    pub(crate) meshd: String,
    /// The metrics of mesh-coordinator.
    pub(crate) coordinator: String,
    /// The JSON documents, by the commands that print them.
    pub(crate) documents: BTreeMap<&'static str, String>,
}

/// Runs a mesh of two servers with one service for a moment; nothing where this machine cannot.
pub(crate) fn running_mesh() -> Option<RunningMesh> {
    if !nix::unistd::geteuid().is_root() {
        meshd::testbed::skip_test("network namespaces need root");
        return None;
    }
    let text = "<!-- setup: a mesh of db-1 and web-1 -->\n";
    let page = Page::new("a mesh", text.to_owned());
    let mut walk = Walk::new(&page);
    walk.join(&["db-1".to_owned(), "web-1".to_owned()]);
    walk.must("db-1", "meshctl service add db --port 5432");
    let ready = "until meshctl status --check ready; do sleep 0.2; done";
    walk.must("db-1", ready);
    // Metrics without a value have no labels.
    let measured = "until curl -s 127.0.0.1:9560/metrics | grep -q '^meshd_peer_round_trip_seconds{'; do sleep 0.2; done";
    walk.must("db-1", measured);
    let policy = "printf 'language = 1\\ndefault = \"allow\"\\n' >/run/shop.toml";
    walk.must("db-1", policy);
    // A command may exit with 2, and prints its document nevertheless.
    let documents = crate::schema::commands().map(|command| {
        let said = walk.enter("db-1", &format!("{command} 2>/dev/null"));
        (command, said.text)
    });
    let documents = documents.collect();
    Some(RunningMesh {
        documents,
        meshd: walk.fetch("db-1", 9560, "/metrics"),
        coordinator: walk.fetch("db-1", 9561, "/metrics"),
    })
}

/// Walks through a page, if this machine has `needed` and may make namespaces.
fn walk(path: &str, needed: &[&str]) {
    if !nix::unistd::geteuid().is_root() {
        return meshd::testbed::skip_test("network namespaces need root");
    }
    if let Some(program) = needed
        .iter()
        .find(|program| find_program(program).is_none())
    {
        return meshd::testbed::skip_test(&format!("{program} is not installed"));
    }
    let page = Page::read(path);
    let mut walk = Walk::new(&page);
    for part in &page.parts {
        match part {
            Part::Setup(sentence) => walk.set_up(&parsed(&page, sentence)),
            Part::Block(block) => {
                walk.run(block);
                walk.traffic.iter().for_each(Traffic::await_more);
            }
        }
    }
    walk.end(&page);
}

fn parsed(page: &Page, sentence: &str) -> Setup {
    Setup::parse(sentence).unwrap_or_else(|| panic!("{}: no setup: {sentence}", page.path))
}

enum Machine {
    Plain(Host),
    Engine(DockerHost),
}

impl Machine {
    fn host(&self) -> &Host {
        match self {
            Self::Plain(host) => host,
            Self::Engine(engine) => engine.host(),
        }
    }
}

/// A host with the programs that run on it. The programs end before the host.
struct Place {
    units: BTreeMap<String, Running>,
    machine: Machine,
}

/// What a command printed.
struct Said {
    text: String,
    success: bool,
}

struct Walk {
    path: String,
    places: BTreeMap<String, Place>,
    world: World,
    directory: tempfile::TempDir,
    /// The last token that a command printed. Each command has it as its standard input.
    token: String,
    edits: Vec<(Range<usize>, String)>,
    faults: Vec<String>,
    /// When a command last changed something.
    changed: Instant,
    /// Clients of which no exchange may fail.
    traffic: Vec<Traffic>,
}

impl Walk {
    /// Makes the hosts of the page in the order in which the page names them.
    fn new(page: &Page) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let world = World::new().expect("root may make namespaces");
        let mut walk = Self {
            path: page.path.clone(),
            places: BTreeMap::new(),
            world,
            directory,
            token: String::new(),
            edits: Vec::new(),
            faults: Vec::new(),
            changed: Instant::now(),
            traffic: Vec::new(),
        };
        walk.install_programs();
        for part in &page.parts {
            let (names, engine) = match part {
                Part::Setup(sentence) => {
                    let setup = parsed(page, sentence);
                    let names = setup.hosts().into_iter().map(str::to_owned).collect();
                    (names, matches!(setup, Setup::Containers(_)))
                }
                Part::Block(block) => (hosts_of(block), false),
            };
            for name in names {
                if !walk.places.contains_key(&name) {
                    let place = walk.place(&name, engine);
                    walk.places.insert(name, place);
                }
            }
        }
        walk
    }

    /// A directory with our programs under their names, and with Compose as a part of Docker's client.
    fn install_programs(&self) {
        let folder = self.programs();
        std::fs::create_dir(&folder).expect("a new directory");
        for name in PROGRAMS {
            let link = folder.join(name);
            std::os::unix::fs::symlink(program_path(name), link).expect("our directory");
        }
        if !has_compose() {
            let shim = folder.join("docker");
            std::fs::write(&shim, COMPOSE).expect("our directory");
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&shim, mode).expect("our file");
        }
    }

    fn programs(&self) -> PathBuf {
        self.directory.path().join("bin")
    }

    fn place(&self, name: &str, engine: bool) -> Place {
        let machine = if engine {
            let built = Path::new(program_path("meshd")).parent().expect("a folder");
            let shared = [self.directory.path().to_owned(), built.to_owned()];
            let host = self.world.docker_host(name, &shared);
            Machine::Engine(host.expect("an engine that starts"))
        } else {
            Machine::Plain(self.world.host(name).expect("a namespace"))
        };
        let place = Place {
            units: BTreeMap::new(),
            machine,
        };
        if engine {
            place.write("/etc/meshd/meshd.toml", MANAGED_NAMES);
        } else {
            let output = place.command("sh", self).args(["-c", OWN_FILES]).output();
            let output = output.expect("a shell");
            assert!(output.status.success(), "{output:?}");
        }
        place
    }

    fn at(&mut self, host: &str) -> &mut Place {
        self.places
            .get_mut(host)
            .unwrap_or_else(|| panic!("there is no host {host}"))
    }

    fn run(&mut self, block: &Block) {
        match (&block.marker, block.language.as_str()) {
            (Some(Marker::NotRun(_)), _) => {}
            (Some(Marker::FileOn(hosts)), _) => {
                let path = file_of(block);
                for host in hosts {
                    let text = block.text.clone();
                    self.at(host).write(&path, &text);
                }
            }
            (Some(Marker::On(host)), _) => {
                for line in block.text.lines() {
                    let said = self.enter(host, line);
                    if !said.success {
                        let text = &said.text;
                        self.fault(block, format!("`{line}` on {host} failed: {text}"));
                    }
                }
            }
            (marker, "console") => self.converse(block, marker.is_none()),
            _ => {}
        }
    }

    /// Runs the commands of a block with prompts.
    fn converse(&mut self, block: &Block, compares: bool) {
        let mut page = String::new();
        for (host, command, expected) in conversation(&block.text) {
            let said = if compares {
                self.enter_until(&host, &command, &expected)
            } else {
                self.enter(&host, &command)
            };
            page.push_str(&format!("{host}# {command}\n"));
            // Numbers that differ from run to run stay as they are.
            let is_other = compares && masked(&said.text) != masked(&expected);
            let text = if is_other { &said.text } else { &expected };
            let text = shown(text);
            if !text.is_empty() {
                page.push_str(&text);
                page.push('\n');
            }
            if !compares && !said.success {
                self.fault(
                    block,
                    format!("`{command}` on {host} failed: {}", said.text),
                );
            }
            if is_other && !is_update() {
                self.fault(
                    block,
                    format!(
                        "`{command}` on {host} printed\n{}\nand the page has\n{expected}",
                        shown(&said.text)
                    ),
                );
            }
        }
        self.edits.push((block.range.clone(), page));
    }

    /// Runs a command. If it only reads, it runs again until its output is the expected one.
    fn enter_until(&mut self, host: &str, command: &str, expected: &str) -> Said {
        if !is_read(command) {
            return self.enter(host, command);
        }
        if is_update() {
            std::thread::sleep(REST.saturating_sub(self.changed.elapsed()));
            return self.enter(host, command);
        }
        let end = Instant::now() + READ_TIMEOUT;
        loop {
            let said = self.enter(host, command);
            if masked(&said.text) == masked(expected) || Instant::now() > end {
                return said;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Runs a command as root of a host types it.
    fn enter(&mut self, host: &str, command: &str) -> Said {
        if !is_read(command) {
            self.changed = Instant::now();
        }
        if let Some(rest) = command.strip_prefix("systemctl ") {
            return self.systemctl(host, rest);
        }
        let stdin = self.directory.path().join("stdin");
        std::fs::write(&stdin, format!("{}\n", self.token)).expect("our directory");
        let place = self.places.get(host).expect("the page names it");
        let output = place
            .command("bash", self)
            .args(["-c", &format!("exec 2>&1; set -o pipefail; {command}")])
            .stdin(File::open(&stdin).expect("our file"))
            .output()
            .expect("a shell");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let token = text
            .split(|c: char| c.is_whitespace() || c == '"')
            .find(|word| word.starts_with("mesh1_"));
        if let Some(token) = token {
            self.token = token.to_owned();
        }
        Said {
            text,
            success: output.status.success(),
        }
    }

    /// Does what a service manager would do with our units.
    fn systemctl(&mut self, host: &str, words: &str) -> Said {
        let silent = |success| Said {
            text: String::new(),
            success,
        };
        let Some((verb, unit)) = words.trim_start_matches("enable --now ").split_once(' ') else {
            let unit = words.trim_start_matches("enable --now ").to_owned();
            // meshd runs as root here, and writes /etc/resolv.conf itself.
            if unit != "meshd-resolv-conf.path" {
                self.start(host, &unit);
            }
            return silent(true);
        };
        let stopped = self.at(host).units.remove(unit);
        let ended = stopped.is_none_or(|mut unit| unit.stop().is_some());
        if verb != "stop" {
            self.start(host, unit);
        }
        silent(ended)
    }

    /// Starts a daemon, and waits until it answers.
    fn start(&mut self, host: &str, unit: &str) {
        let socket = match unit {
            "meshd" => "/run/meshd/meshd.sock",
            "mesh-coordinator" => "/run/mesh-coordinator/admin.sock",
            other => panic!("the test has no unit {other}"),
        };
        let place = self.places.get(host).expect("the page names it");
        let inside = place.machine.host();
        let folder = inside.path(socket);
        let folder = folder.parent().expect("it is in a directory");
        std::fs::create_dir_all(folder).expect("the host's own");
        let mut command = place.command(unit, self);
        let log = self.directory.path().join(format!("{host}.{unit}.log"));
        let running = inside.start(&mut command, &log).expect("a program");
        let path = inside.path(socket);
        self.wait_until(&format!("{unit} on {host} answers"), || {
            UnixStream::connect(&path).is_ok()
        });
        self.at(host).units.insert(unit.to_owned(), running);
    }

    /// Runs a command that has to succeed.
    fn must(&mut self, host: &str, command: &str) -> String {
        let said = self.enter(host, command);
        assert!(said.success, "`{command}` on {host}: {}", said.text);
        said.text
    }

    /// The body of a document that a program of a host serves on its loopback address.
    fn fetch(&self, host: &str, port: u16, path: &str) -> String {
        use std::io::{Read as _, Write as _};
        let place = self.places.get(host).expect("the test names it");
        let exchange = || -> std::io::Result<String> {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(WAIT_TIMEOUT))?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = place.machine.host().inside(exchange);
        let text = text.expect("a namespace").expect("an answer");
        let (_, body) = text.split_once("\r\n\r\n").expect("an answer of HTTP");
        body.to_owned()
    }

    fn set_up(&mut self, setup: &Setup) {
        match setup {
            Setup::Coordinator(host) => {
                // A host with an engine has several addresses, of which only this one is reached by others.
                let place = self.at(host);
                let address = place.machine.host().v4();
                let text = format!("public_urls = [\"https://{address}:7443\"]\n");
                place.write("/etc/meshd/coordinator.toml", text);
                self.must(host, "systemctl start mesh-coordinator");
                self.must(host, "meshctl init");
            }
            Setup::Mesh(hosts) => self.join(hosts),
            Setup::Containers(hosts) => {
                self.import_images(hosts);
                self.join(hosts);
            }
            Setup::Etcd(host) => self.start_etcd(host),
            Setup::Listener { host, port } => {
                let place = self.places.get(host).expect("the page names it");
                answer_connections(place.machine.host(), *port);
            }
            Setup::Traffic {
                from,
                to,
                ports: (tcp, udp),
            } => self.start_traffic(from, to, *tcp, *udp),
            Setup::AnswersOnly(host) => {
                let rules = "add table inet router; add chain inet router input { type filter hook input priority 0; policy accept; }; \
                    add rule inet router input ct state established,related accept; \
                    add rule inet router input iifname != { lo, mesh0 } meta l4proto { tcp, udp } drop";
                self.must(host, &format!("nft '{rules}'"));
            }
            Setup::TlsFiles { from, to } => {
                for host in to {
                    self.must(host, "install -d -m 700 /var/lib/mesh-coordinator");
                }
                for file in ["tls.key", "tls.crt"] {
                    let path = format!("/var/lib/mesh-coordinator/{file}");
                    let text = std::fs::read(self.at(from).machine.host().path(&path));
                    let text = text.expect("the coordinator made it");
                    for host in to {
                        self.at(host).write(&path, &text);
                        self.must(host, &format!("chmod 600 {path}"));
                    }
                }
            }
            Setup::Joined { host, by } => {
                self.must(by, "meshctl token create");
                self.must(host, "systemctl start meshd");
                self.must(host, "meshctl join -");
            }
        }
    }

    /// Starts clients on a host that use ports of another one at its mesh address.
    fn start_traffic(&mut self, from: &str, to: &str, tcp: u16, udp: u16) {
        let status = self.must(to, "meshctl status --json");
        let status: Status = serde_json::from_str(&status).expect("a status");
        let at = status.node.expect("it has joined").address_v4;
        let host = |name: &str| {
            let place = self.places.get(name).expect("the page names it");
            place.machine.host()
        };
        let traffic = Traffic::start(host(from), host(to), at, tcp, udp);
        self.traffic.push(traffic);
    }

    /// Ends the clients, and notes those of which an exchange failed.
    fn end_traffic(&mut self) {
        for exchanges in std::mem::take(&mut self.traffic)
            .into_iter()
            .flat_map(Traffic::end)
        {
            let (what, made, failed) = (exchanges.what, exchanges.made, exchanges.failed);
            println!("{}: {made} {what}, {} failed", self.path, failed.len());
            assert!(made >= MIN_EXCHANGES, "{made} {what} show nothing");
            let lines = failed.iter().map(|error| format!("{what}: {error}"));
            self.faults.extend(lines);
        }
    }

    fn join(&mut self, hosts: &[String]) {
        let [first, ..] = hosts else {
            panic!("a mesh has a host");
        };
        self.set_up(&Setup::Coordinator(first.clone()));
        for host in hosts {
            let (host, by) = (host.clone(), first.clone());
            self.set_up(&Setup::Joined { host, by });
        }
    }

    /// Gives each engine an image called `busybox`, and one called as that of PostgreSQL, which listens on the same port.
    fn import_images(&mut self, hosts: &[String]) {
        let image = Image::pack(&self.directory.path().join("box.tar"), &[]).expect("an image");
        for host in hosts {
            let Machine::Engine(engine) = &self.at(host).machine else {
                panic!("{host} has no engine");
            };
            engine.import(&image, "busybox").expect("an image");
            let command = "CMD [\"httpd\", \"-f\", \"-p\", \"5432\"]";
            for words in [
                vec!["create", "--name", "maker", "busybox", "true"],
                vec!["commit", "--change", command, "maker", "postgres:16"],
                vec!["rm", "maker"],
            ] {
                engine.docker(&words).expect("the engine answers");
            }
        }
    }

    fn start_etcd(&mut self, host: &str) {
        let place = self.places.get(host).expect("the page names it");
        let inside = place.machine.host();
        let client = format!("http://{}:2379", inside.v4());
        let mut command = place.command("etcd", self);
        command.args(["--data-dir", "/run/etcd", "--listen-client-urls", &client]);
        command.args(["--advertise-client-urls", &client]);
        let log = self.directory.path().join("etcd.log");
        let running = inside.start(&mut command, &log).expect("a program");
        let address = (inside.v4(), 2379);
        self.wait_until("etcd answers", || {
            let connect = || std::net::TcpStream::connect(address).is_ok();
            place.machine.host().inside(connect).is_ok_and(|is| is)
        });
        self.at(host).units.insert("etcd".into(), running);
    }

    fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + WAIT_TIMEOUT;
        while !condition() {
            assert!(
                Instant::now() < end,
                "waited in vain until {what}\n{}",
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn fault(&mut self, block: &Block, what: String) {
        self.faults
            .push(format!("{}:{}: {what}", self.path, block.line));
    }

    fn logs(&self) -> String {
        let entries = std::fs::read_dir(self.directory.path()).expect("our directory");
        let logs = entries.flatten().map(|entry| entry.path());
        logs.filter(|path| path.extension().is_some_and(|e| e == "log"))
            .map(|path| {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                format!("== {}\n{text}", path.display())
            })
            .collect()
    }

    /// Changes the page if that is wanted, and fails if something was not as the page says.
    fn end(mut self, page: &Page) {
        self.end_traffic();
        if !self.faults.is_empty() {
            panic!(
                "{}\n\nif the page is to be changed: {UPDATE}\n{}",
                self.faults.join("\n\n"),
                self.logs()
            );
        }
        if is_update() {
            let mut text = page.text.clone();
            self.edits.sort_by_key(|(range, _)| range.start);
            for (range, new) in self.edits.iter().rev() {
                text.replace_range(range.clone(), new);
            }
            std::fs::write(repository(&page.path), text).expect("the repository");
        }
    }
}

impl Place {
    /// A command in the host, with our programs before all others.
    fn command(&self, program: &str, walk: &Walk) -> std::process::Command {
        let folder = walk.programs();
        let program = if PROGRAMS.contains(&program) {
            folder.join(program)
        } else {
            PathBuf::from(program)
        };
        let program = program.to_str().expect("a plain path");
        let mut command = self.machine.host().command(program).expect("a host");
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", folder.display()))
            .env("HOME", "/root")
            .stdin(Stdio::null());
        for name in [
            "NOTIFY_SOCKET",
            "JOURNAL_STREAM",
            "MESHD_SOCKET",
            "MESH_ADMIN_SOCKET",
            "MESH_KEY",
            "RUST_LOG",
        ] {
            command.env_remove(name);
        }
        command
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.machine.host().path(path);
        std::fs::create_dir_all(path.parent().expect("a file")).expect("the host's own");
        std::fs::write(path, text).expect("the host's own");
    }
}

/// The file that the first line of a block names.
pub(crate) fn file_of(block: &Block) -> String {
    let first = block.text.lines().next().unwrap_or_default();
    let path = first.strip_prefix("# ").unwrap_or_default();
    assert!(Path::new(path).is_absolute(), "no file in {first:?}");
    path.to_owned()
}

/// The hosts that a block names, in their order.
fn hosts_of(block: &Block) -> Vec<String> {
    match (&block.marker, block.language.as_str()) {
        (Some(Marker::NotRun(_)), _) => Vec::new(),
        (Some(Marker::On(host)), _) => vec![host.clone()],
        (Some(Marker::FileOn(hosts)), _) => hosts.clone(),
        (_, "console") => conversation(&block.text)
            .into_iter()
            .map(|(host, ..)| host)
            .collect(),
        _ => Vec::new(),
    }
}

/// The commands of a block with prompts: host, command and output.
fn conversation(text: &str) -> Vec<(String, String, String)> {
    let mut said: Vec<(String, String, String)> = Vec::new();
    for line in text.lines() {
        match line.split_once("# ").filter(|(host, _)| is_host(host)) {
            Some((host, command)) => said.push((host.into(), command.into(), String::new())),
            None => {
                let (_, _, output) = said.last_mut().expect("a block begins with a prompt");
                output.push_str(line);
                output.push('\n');
            }
        }
    }
    said
}

fn is_read(command: &str) -> bool {
    READS.iter().any(|read| command.starts_with(read))
}

#[test]
fn a_block_with_prompts_is_read() {
    let text = "db-1# meshctl init\ndone # really\nweb-1# ls\n";
    let row = |h: &str, c: &str, o: &str| (h.to_owned(), c.to_owned(), o.to_owned());
    assert_eq!(
        conversation(text),
        [
            row("db-1", "meshctl init", "done # really\n"),
            row("web-1", "ls", "")
        ]
    );
}
