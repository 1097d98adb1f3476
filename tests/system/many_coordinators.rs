//! Three coordinators on three members of an etcd cluster, each pair on a host of its own: any of them may die or be cut
//! off, and joins and changes go on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use meshd::model::time::{UnixSeconds, next_version};
use meshd::model::{PublicKey, SigningKey, WireGuardKey};
use meshd::node::control::join::{JoinError, join};
use meshd::node::control::stream::{Event, Position, Stream, StreamConfig};
use meshd::protocol::JoinToken;
use meshd::protocol::join::JoinRequest;
use meshd::records::Envelope;
use meshd::records::kinds::{Membership, Record, RecordKey, Service};
use meshd::testbed::records as build;
use meshd::testbed::{Host, Running, World};
use tokio::sync::mpsc;

use crate::mesh::{run, world};

/// Coordinators, and members of the cluster.
const COUNT: usize = 3;
/// How long joins and changes may stand still.
const STANDSTILL: Duration = Duration::from_secs(10);
/// Only a hang takes that long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Joins that compete for one use of a token.
const JOINS: usize = 1000;
/// Of those so many at once.
const AT_ONCE: usize = 64;

/// Where a coordinator and a member of the cluster run.
struct Site {
    host: Host,
    etcd: Option<Running>,
    coordinator: Option<Running>,
}

struct Sites {
    sites: Vec<Site>,
    client: Host,
    world: World,
    directory: tempfile::TempDir,
}

impl Sites {
    fn start(world: World) -> Self {
        let host = |name: &str| world.host(name).expect("a namespace");
        let sites: Vec<Site> = (1..=COUNT)
            .map(|n| Site {
                host: host(&format!("c{n}")),
                etcd: None,
                coordinator: None,
            })
            .collect();
        let client = host("client");
        let mut sites = Self {
            sites,
            client,
            world,
            directory: tempfile::tempdir().expect("a temporary directory"),
        };
        for n in 0..COUNT {
            sites.start_etcd(n);
        }
        for n in 0..COUNT {
            sites.await_etcd(n);
        }
        for n in 0..COUNT {
            sites.configure(n);
            sites.start_coordinator(n);
        }
        assert_eq!(sites.admin(&["init"]).code, 0);
        sites
    }

    fn log(&self, name: &str, n: usize) -> std::path::PathBuf {
        self.directory.path().join(format!("{name}{n}"))
    }

    fn start_etcd(&mut self, n: usize) {
        let cluster: Vec<String> = self
            .sites
            .iter()
            .enumerate()
            .map(|(n, site)| format!("m{n}=http://{}:2380", site.host.v4()))
            .collect();
        let host = &self.sites[n].host;
        let at = |port: u16| format!("http://{}:{port}", host.v4());
        let mut command = host.command("etcd").expect("a namespace");
        command
            .args(["--name", &format!("m{n}"), "--data-dir", "/run/etcd"])
            .args([
                "--listen-peer-urls",
                &at(2380),
                "--initial-advertise-peer-urls",
                &at(2380),
            ])
            .args([
                "--listen-client-urls",
                &at(2379),
                "--advertise-client-urls",
                &at(2379),
            ])
            .args(["--initial-cluster", &cluster.join(",")]);
        let running = host
            .start(&mut command, &self.log("etcd", n))
            .expect("a program");
        self.sites[n].etcd = Some(running);
    }

    /// Waits until a member takes part in the cluster.
    fn await_etcd(&self, n: usize) {
        let host = &self.sites[n].host;
        let healthy = || -> std::io::Result<bool> {
            let mut stream = std::net::TcpStream::connect((host.v4(), 2379))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text.contains("\"true\""))
        };
        self.wait_until("the etcd member is healthy", || {
            matches!(host.inside(healthy), Ok(Ok(true)))
        });
    }

    /// Writes a coordinator's configuration, and the TLS key of the first one.
    fn configure(&self, n: usize) {
        let list = |format: &dyn Fn(&Host) -> String| -> String {
            let all: Vec<String> = self.sites.iter().map(|s| format(&s.host)).collect();
            format!("[{}]", all.join(", "))
        };
        let urls = list(&|host| format!("\"https://{}:7443\"", host.v4()));
        let endpoints = list(&|host| format!("\"http://{}:2379\"", host.v4()));
        let text = format!(
            "public_urls = {urls}\nadmin_socket = \"/run/admin.sock\"\nstate_dir = \"/run/coordinator\"\n\
             [mesh]\nprefix_v4 = \"10.0.0.0/8\"\n[store]\nkind = \"etcd\"\nendpoints = {endpoints}\n"
        );
        let host = &self.sites[n].host;
        std::fs::write(host.path("/run/coordinator.toml"), text).expect("writable");
        if n == 0 {
            return;
        }
        let state = host.path("/run/coordinator");
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
        };
        std::fs::create_dir_all(&state).expect("writable");
        mode(&state, 0o700);
        for name in ["tls.key", "tls.crt"] {
            let from = self.sites[0].host.path("/run/coordinator").join(name);
            let to = state.join(name);
            std::fs::write(&to, std::fs::read(from).expect("the first has one")).expect("writable");
            mode(&to, 0o600);
        }
    }

    fn start_coordinator(&mut self, n: usize) {
        let host = &self.sites[n].host;
        let mut command = host
            .command(env!("CARGO_BIN_EXE_mesh-coordinator"))
            .expect("a namespace");
        command.args(["--config", "/run/coordinator.toml"]);
        let running = host
            .start(&mut command, &self.log("coordinator", n))
            .expect("a program");
        let _ = std::fs::remove_file(host.path("/run/admin.sock"));
        let socket = host.path("/run/admin.sock");
        self.sites[n].coordinator = Some(running);
        self.wait_until("the coordinator answers", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// Runs an administrator's command on the first host.
    fn admin(&self, words: &[&str]) -> crate::mesh::Ended {
        let mut command = self.sites[0]
            .host
            .command(env!("CARGO_BIN_EXE_meshctl"))
            .expect("a namespace");
        run(command
            .args(words)
            .env("MESH_ADMIN_SOCKET", "/run/admin.sock")
            .env("MESH_KEY", "/run/mesh.key"))
    }

    fn token(&self, uses: usize) -> JoinToken {
        let uses = uses.to_string();
        let ended = self.admin(&["token", "create", "--uses", &uses]);
        assert_eq!(ended.code, 0, "{ended:?}");
        JoinToken::parse(ended.stdout.trim()).expect("a token")
    }

    /// Runs something on the client's host.
    fn on_client<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.client
            .inside(|| {
                tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .expect("threads")
                    .block_on(work())
            })
            .expect("a namespace")
    }

    fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + WAIT_TIMEOUT;
        while !condition() {
            if Instant::now() > end {
                for entry in std::fs::read_dir(self.directory.path())
                    .expect("ours")
                    .flatten()
                {
                    let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    let last: Vec<&str> = text.lines().rev().take(40).collect();
                    eprintln!("== {}", entry.file_name().to_string_lossy());
                    last.iter().rev().for_each(|line| eprintln!("{line}"));
                }
                panic!("waited in vain until {what}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A node that asks, or has asked, to be let in.
struct Member {
    identity: SigningKey,
    request: JoinRequest,
}

impl Member {
    fn new(token: &JoinToken, name: &str) -> Self {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("the system has randomness");
        let identity = SigningKey::from_seed(&seed);
        let now = SystemTime::now();
        let membership = Membership {
            version: next_version(0, now),
            wireguard_key: WireGuardKey(seed),
            issued_at: UnixSeconds::from_system(now),
            ..build::membership(&identity.public(), &token.key.public(), name)
        };
        let membership = Envelope::seal(&Record::Membership(membership), &token.key);
        let request = JoinRequest::make(membership, &identity);
        Self { identity, request }
    }

    fn stream(&self, token: &JoinToken, urls: &[usize]) -> (Stream, mpsc::Receiver<Event>) {
        let (sender, events) = mpsc::channel(64);
        let config = StreamConfig {
            urls: urls.iter().map(|n| token.urls[*n].clone()).collect(),
            pin: token.pin,
            identity: self.identity.clone(),
        };
        let stream = Stream::start(config, Position::default(), sender);
        (stream, events)
    }

    /// A new version of a service that says nothing else.
    fn mark(&self, version: u64) -> Envelope {
        let service = Service {
            version,
            ..build::service(&self.identity.public(), "mark", Vec::new())
        };
        Envelope::seal(&Record::Service(service), &self.identity)
    }
}

/// The version that a mark has.
fn mark_in(records: &[Envelope]) -> Option<u64> {
    records
        .iter()
        .filter_map(|envelope| match Record::parse(&envelope.payload) {
            Ok((header, Record::Service(_))) => Some(header.version),
            _ => None,
        })
        .max()
}

/// The traffic and the changes that continue while coordinators die.
#[derive(Default)]
struct Journal {
    /// When the last join began that was granted, and all that were.
    last_join: Option<Instant>,
    joined: HashMap<PublicKey, String>,
    /// When each version of the mark was published first.
    published: BTreeMap<u64, Instant>,
    /// The last version that a coordinator acknowledged.
    acknowledged: u64,
    /// The last version each listener has heard.
    heard: [u64; COUNT],
}

impl Journal {
    /// Whether a join that began after `moment` was granted, and all have heard a change made after it.
    fn goes_on_after(&self, moment: Instant) -> bool {
        let joined = self.last_join.is_some_and(|at| at > moment);
        joined
            && self.heard.iter().all(|heard| {
                self.published
                    .get(heard)
                    .is_some_and(|published| *published > moment)
            })
    }
}

fn lock(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    journal.lock().expect("no panic")
}

fn note_join(journal: &Mutex<Journal>, member: &Member, began: Instant, block: String) {
    let mut journal = lock(journal);
    journal.last_join = Some(began);
    journal.joined.insert(member.identity.public(), block);
}

async fn keep_joining(token: JoinToken, journal: Arc<Mutex<Journal>>, stop: Arc<AtomicBool>) {
    for n in 0.. {
        let member = Member::new(&token, &format!("j{n}"));
        let granted = loop {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let began = Instant::now();
            match join(&token.urls, token.pin, &member.request).await {
                Ok(response) => break (began, response),
                Err(JoinError::Refused(refusal)) => {
                    let passing = ["internal", "busy"];
                    let code = serde_json::to_string(&refusal.code).expect("a word");
                    assert!(passing.iter().any(|p| code.contains(p)), "{refusal}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        note_join(&journal, &member, granted.0, granted.1.block.v4.to_string());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn keep_changing(
    token: JoinToken,
    member: Member,
    journal: Arc<Mutex<Journal>>,
    stop: Arc<AtomicBool>,
) {
    let (stream, mut events) = member.stream(&token, &[0, 1, 2]);
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let mut version = 0;
    while !stop.load(Ordering::Relaxed) {
        tokio::select! {
            _ = ticks.tick() => {
                version += 1;
                lock(&journal).published.insert(version, Instant::now());
                stream.publish(version, vec![member.mark(version)]);
            }
            event = events.recv() => match event.expect("the stream goes on") {
                // As a node does: it offers what it has.
                Event::Opened { .. } => {
                    stream.publish(version, vec![member.mark(version)]);
                }
                Event::Changes { position, .. } => stream.set_position(position),
                Event::Published { sequence, refused, .. } if refused.is_empty() => {
                    let mut journal = lock(&journal);
                    journal.acknowledged = journal.acknowledged.max(sequence);
                }
                _ => {}
            }
        }
    }
}

async fn keep_listening(
    token: JoinToken,
    member: Member,
    n: usize,
    journal: Arc<Mutex<Journal>>,
    stop: Arc<AtomicBool>,
) {
    let (stream, mut events) = member.stream(&token, &[0, 1, 2]);
    while !stop.load(Ordering::Relaxed) {
        let event = tokio::time::timeout(Duration::from_millis(200), events.recv()).await;
        if let Ok(Some(Event::Changes { records, position })) = event {
            stream.set_position(position);
            if let Some(version) = mark_in(&records) {
                let mut journal = lock(&journal);
                journal.heard[n] = journal.heard[n].max(version);
            }
        }
    }
}

/// All that one coordinator holds, by key.
async fn held(
    token: &JoinToken,
    member: &Member,
    n: usize,
) -> (u64, BTreeMap<RecordKey, Envelope>) {
    let (_stream, mut events) = member.stream(token, &[n]);
    let mut held = BTreeMap::new();
    loop {
        let event = tokio::time::timeout(WAIT_TIMEOUT, events.recv()).await;
        match event.expect("it answers").expect("the stream goes on") {
            Event::Changes { records, position } => {
                for envelope in records {
                    let (header, _) = Record::parse(&envelope.payload).expect("verified");
                    held.insert(header.key, envelope);
                }
                if position.revision > 0 {
                    return (position.revision, held);
                }
            }
            Event::Closed { why, .. } => eprintln!("asked again: {why}"),
            _ => {}
        }
    }
}

/// Competes for one use of a token at all coordinators; gives how many got it.
async fn compete(token: &JoinToken) -> usize {
    let mut running = tokio::task::JoinSet::new();
    let mut granted = 0;
    let mut take = |end: Result<(), JoinError>| match end {
        Ok(()) => granted += 1,
        Err(JoinError::Refused(refusal)) => {
            assert!(refusal.message.contains("spent"), "{refusal}");
        }
        Err(other) => panic!("no refusal: {other}"),
    };
    for n in 0..JOINS {
        if running.len() >= AT_ONCE {
            running
                .join_next()
                .await
                .into_iter()
                .for_each(|end| take(end.expect("no panic")));
        }
        let member = Member::new(token, &format!("one-{n}"));
        let (url, pin) = (token.urls[n % COUNT].clone(), token.pin);
        running.spawn(async move { join(&[url], pin, &member.request).await.map(drop) });
    }
    while let Some(end) = running.join_next().await {
        take(end.expect("no panic"));
    }
    granted
}

#[test]
fn any_of_three_coordinators_and_etcd_members_may_die_or_be_cut_off() {
    let Some(world) = world() else { return };
    if !std::process::Command::new("etcd")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        meshd::testbed::skip_test("etcd is not installed");
        return;
    }
    let mut sites = Sites::start(world);
    let single = sites.token(1);
    assert_eq!(single.urls.len(), COUNT);
    let began = Instant::now();
    let granted = sites.on_client(async || compete(&single).await);
    assert_eq!(granted, 1, "of {JOINS} joins with one use of a token");
    eprintln!(
        "{JOINS} joins with one use of a token at three coordinators: one was let in; {:.1} s",
        began.elapsed().as_secs_f64()
    );

    let token = sites.token(100_000);
    let members: Vec<Member> = (0..=COUNT)
        .map(|n| Member::new(&token, &format!("m{n}")))
        .collect();
    sites.on_client(async || {
        for member in &members {
            let joined = join(&token.urls, token.pin, &member.request).await;
            joined.expect("a use left");
        }
    });
    let journal = Arc::new(Mutex::new(Journal::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let reader = Member::new(&token, "reader");
    std::thread::scope(|scope| {
        let client = &sites.client;
        // It holds what runs on the client's host until all is over.
        let busy = {
            let (token, journal, stop) = (token.clone(), Arc::clone(&journal), Arc::clone(&stop));
            let pid = client.pid();
            scope.spawn(move || on_host(pid, churn(token, members, journal, stop)))
        };
        let faults = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            faults(&mut sites, &journal);
        }));
        stop.store(true, Ordering::Relaxed);
        busy.join().expect("no panic");
        if let Err(panic) = faults {
            std::panic::resume_unwind(panic);
        }
    });

    let journal = lock(&journal);
    eprintln!(
        "{} joins and version {} of a service were acknowledged meanwhile",
        journal.joined.len(),
        journal.acknowledged
    );
    let blocks: BTreeSet<&String> = journal.joined.values().collect();
    assert_eq!(
        blocks.len(),
        journal.joined.len(),
        "a block was given twice"
    );
    let contents = sites.on_client(async || {
        let joined = join(&token.urls, token.pin, &reader.request).await;
        joined.expect("a use left");
        let mut contents = Vec::new();
        for n in 0..COUNT {
            contents.push(held(&token, &reader, n).await);
        }
        contents
    });
    for (revision, records) in &contents {
        assert_eq!(*revision, contents[0].0);
        let first = &contents[0].1;
        let differs = |key: &&RecordKey| records.get(*key) != first.get(*key);
        let keys = records.keys().chain(first.keys());
        assert_eq!(
            keys.filter(differs).collect::<BTreeSet<_>>(),
            BTreeSet::new()
        );
        for id in journal.joined.keys() {
            let key = RecordKey::Membership(*id);
            assert!(records.contains_key(&key), "{id:?} was let in and is gone");
        }
        let envelopes: Vec<Envelope> = records.values().cloned().collect();
        assert!(mark_in(&envelopes) >= Some(journal.acknowledged));
    }
}

/// Runs something in the network of the process `pid`.
fn on_host(pid: u32, work: impl Future<Output = ()>) {
    let network = std::fs::File::open(format!("/proc/{pid}/ns/net")).expect("it runs");
    nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads")
        .block_on(work);
}

async fn churn(
    token: JoinToken,
    members: Vec<Member>,
    journal: Arc<Mutex<Journal>>,
    stop: Arc<AtomicBool>,
) {
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(keep_joining(
        token.clone(),
        Arc::clone(&journal),
        Arc::clone(&stop),
    ));
    for (n, member) in members.into_iter().enumerate() {
        let (token, journal, stop) = (token.clone(), Arc::clone(&journal), Arc::clone(&stop));
        if n < COUNT {
            tasks.spawn(keep_listening(token, member, n, journal, stop));
        } else {
            tasks.spawn(keep_changing(token, member, journal, stop));
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic");
    }
}

/// Lets each part fail in turn, and looks how long joins and changes stand still.
fn faults(sites: &mut Sites, journal: &Mutex<Journal>) {
    let begun = Instant::now();
    sites.wait_until("all is well", || lock(journal).goes_on_after(begun));
    for n in 0..COUNT {
        sites.sites[n].coordinator.take().expect("it runs").kill();
        await_going_on(sites, journal, &format!("coordinator {n} was killed"));
        sites.start_coordinator(n);
    }
    for n in 0..COUNT {
        sites.sites[n].etcd.take().expect("it runs").kill();
        await_going_on(sites, journal, &format!("etcd member {n} was killed"));
        sites.start_etcd(n);
        sites.await_etcd(n);
    }
    let set_cable = |sites: &Sites, plugged| {
        let host = &sites.sites[1].host;
        sites.world.set_cable(host, plugged).expect("a bridge");
    };
    set_cable(sites, false);
    await_going_on(sites, journal, "a host with both was cut off");
    set_cable(sites, true);
    sites.await_etcd(1);
    await_going_on(sites, journal, "it was connected again");
}

fn await_going_on(sites: &Sites, journal: &Mutex<Journal>, what: &str) {
    let moment = Instant::now();
    sites.wait_until(&format!("all goes on after {what}"), || {
        lock(journal).goes_on_after(moment)
    });
    let took = moment.elapsed();
    eprintln!(
        "{what}: joins and changes go on after {:.2} s",
        took.as_secs_f64()
    );
    assert!(took < STANDSTILL, "{what}: {took:?}");
}
