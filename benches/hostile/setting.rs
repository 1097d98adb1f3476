//! The mesh that is attacked, and the steps of a measurement.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use meshd::protocol::JoinToken;
use meshd::protocol::token::SpkiPin;
use meshd::testbed::Host;

use crate::kit::{Member, Stolen};
use crate::mesh::Mesh;
use crate::others::{Observed, observe};
use crate::report::{Row, Times};
use crate::usage::{Watch, give_way};
use crate::{ATTACK, GRACE, QUIET, container};

/// The node that is attacked.
const NODE: usize = 0;
/// The host of honest members, or a container of the node.
const OTHERS: usize = 1;
const ATTACKER: usize = 2;

/// The mesh of one attack.
pub(crate) struct Setting {
    pub(crate) mesh: Mesh,
    /// The address of the coordinator, and the pin of its TLS key.
    pub(crate) target: (SocketAddr, SpkiPin),
    /// A token that admits more members than a measurement needs.
    pub(crate) token: JoinToken,
}

/// The input of an attack: the mesh, and the time at which the attack ends.
pub(crate) struct Ground<'a> {
    pub(crate) setting: &'a Setting,
    pub(crate) until: Instant,
}

impl Setting {
    /// Starts a coordinator and a node that joins, and makes two more hosts.
    fn new() -> Self {
        let mut mesh = Mesh::start(3).expect("root has a world");
        // The clients on these hosts run in this process.
        mesh.kill_node(OTHERS);
        mesh.kill_node(ATTACKER);
        let token = mesh.token(&["--uses", "100000"]);
        let ended = mesh.on(NODE, &["join", &token]);
        assert_eq!(ended.code, 0, "{ended:?}");
        let token = JoinToken::parse(&token).expect("just made");
        let address = token.urls[0].authority().parse().expect("an address");
        Self {
            mesh,
            target: (address, token.pin),
            token,
        }
    }

    pub(crate) fn node(&self) -> &Host {
        &self.mesh.nodes[NODE].host
    }

    pub(crate) fn others(&self) -> &Host {
        &self.mesh.nodes[OTHERS].host
    }

    fn attacker(&self) -> &Host {
        &self.mesh.nodes[ATTACKER].host
    }

    /// Runs an attacker's code to its end, on a thread with the lowest priority.
    pub(crate) fn run<T: Send>(&self, host: &Host, work: impl AsyncFnOnce() -> T + Send) -> T {
        let run = || {
            give_way();
            runtime().block_on(work())
        };
        host.inside(run).expect("a namespace")
    }

    fn watch_node(&self) -> Watch {
        let pid = self.mesh.nodes[NODE]
            .daemon
            .as_ref()
            .expect("it runs")
            .pid();
        Watch::begin(pid, &self.node().path("/run/state"))
    }

    fn watch_coordinator(&self) -> Watch {
        let pid = self.mesh.coordinator.as_ref().expect("it runs").pid();
        Watch::begin(pid, &self.mesh.coordinator_host.path("/run/coordinator"))
    }
}

impl Ground<'_> {
    /// Joins a member that the attacker controls.
    pub(crate) async fn member(&self, name: &str) -> Member {
        let joined = Member::join(&self.setting.token, name).await;
        joined.expect("a token with uses left")
    }

    /// Runs `work` in the network namespace of the attacker's host.
    pub(crate) fn run<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.setting.run(self.setting.attacker(), work)
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    pub(crate) fn deadline(&self) -> tokio::time::Instant {
        self.until.into()
    }
}

/// Stops the honest members when it is dropped, so that they end when an attack panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Measures how others publish and join, first undisturbed, and then while `attack` runs.
pub(crate) fn measure(name: &'static str, attack: fn(&Ground) -> String) -> Row {
    let setting = Setting::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let observer = scope.spawn(|| {
            let observe = || runtime().block_on(observe(&setting, &stop));
            setting.others().inside(observe).expect("a namespace")
        });
        let _stop = Stop(&stop);
        // The first changes are slower, since the coordinator creates the files of its store.
        std::thread::sleep(GRACE);
        let before = (setting.watch_coordinator(), setting.watch_node());
        let quiet = (Instant::now(), Instant::now() + QUIET);
        std::thread::sleep(QUIET);
        let before = (before.0.end(), before.1.end());
        let (coordinator, node) = (setting.watch_coordinator(), setting.watch_node());
        let ground = Ground {
            setting: &setting,
            until: Instant::now() + ATTACK,
        };
        let attacked = (Instant::now(), ground.until);
        let came_through = attack(&ground);
        std::thread::sleep(ground.until.saturating_duration_since(Instant::now()));
        let coordinator = coordinator.end().over(before.0);
        let node = node.end().over(before.1);
        std::thread::sleep(GRACE);
        stop.store(true, Ordering::Relaxed);
        let observed: Observed = observer.join().expect("an observer does not panic");
        Row {
            name,
            came_through,
            coordinator: Some(coordinator),
            node,
            quiet: observed.changes_in(quiet),
            attacked: observed.changes_in(attacked),
            joins: observed.joins_in(attacked),
            failed_joins: observed.failed_joins_in(attacked),
            lost_queries: None,
        }
    })
}

/// Measures what it costs the node when a thief in the coordinator's place sends to it.
pub(crate) fn measure_stolen(name: &'static str, attack: fn(&Stolen)) -> Row {
    let mut setting = Setting::new();
    // Others publish once, so that the node holds their records.
    let stop = AtomicBool::new(true);
    let observe = || runtime().block_on(observe(&setting, &stop));
    let _: Observed = setting.others().inside(observe).expect("a namespace");
    let stolen = Stolen::coordinator_of(&mut setting.mesh);
    stolen.await_streams(1);
    std::thread::sleep(GRACE);
    let node = setting.watch_node();
    attack(&stolen);
    std::thread::sleep(ATTACK);
    let node = node.end();
    Row {
        name,
        came_through: format!(
            "{:.0} MiB on {} streams",
            stolen.flooded() as f64 / (1024.0 * 1024.0),
            stolen.streams()
        ),
        node,
        ..Row::default()
    }
}

/// Measures how the node's host resolves names, first undisturbed, and then while one of its containers runs `attack`.
pub(crate) fn measure_queries(name: &'static str, attack: fn(&Ground) -> String) -> Row {
    let setting = Setting::new();
    container::attach(&setting);
    measure_node(name, &setting, attack)
}

/// Measures the same while a peer of the node runs `attack` through the tunnel.
pub(crate) fn measure_neighbour(name: &'static str, attack: fn(&Ground) -> String) -> Row {
    let mut setting = Setting::new();
    setting.mesh.start_node(OTHERS);
    let token = setting.token.to_string();
    let ended = setting.mesh.on(OTHERS, &["join", &token]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let mesh = &setting.mesh;
    mesh.wait_until("the tunnel is there", || mesh.reaches(OTHERS) == 1);
    measure_node(name, &setting, attack)
}

fn measure_node(name: &'static str, setting: &Setting, attack: fn(&Ground) -> String) -> Row {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let prober = scope.spawn(|| {
            let probe = || container::probe(&stop);
            setting.node().inside(probe).expect("a namespace")
        });
        let _stop = Stop(&stop);
        std::thread::sleep(GRACE);
        let before = setting.watch_node();
        let quiet = (Instant::now(), Instant::now() + QUIET);
        std::thread::sleep(QUIET);
        let before = before.end();
        let node = setting.watch_node();
        let ground = Ground {
            setting,
            until: Instant::now() + ATTACK,
        };
        let attacked = (Instant::now(), ground.until);
        let came_through = attack(&ground);
        std::thread::sleep(ground.until.saturating_duration_since(Instant::now()));
        let node = node.end().over(before);
        stop.store(true, Ordering::Relaxed);
        let probes = prober.join().expect("a prober does not panic");
        let times = |(from, to): (Instant, Instant)| {
            let within = probes.iter().filter(move |p| p.0 >= from && p.0 < to);
            Times::new(within.filter_map(|p| p.1).collect())
        };
        let is_lost = |p: &&(Instant, Option<std::time::Duration>)| {
            p.0 >= attacked.0 && p.0 < attacked.1 && p.1.is_none()
        };
        Row {
            name,
            came_through,
            node,
            quiet: times(quiet),
            attacked: times(attacked),
            lost_queries: Some(probes.iter().filter(is_lost).count()),
            ..Row::default()
        }
    })
}
