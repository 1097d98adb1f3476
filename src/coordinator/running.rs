//! A running coordinator. It binds all addresses before it answers the first request, and one call stops all of it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::hub::{Hub, Setup};
use super::{
    Config, Failure, MarkKey, admin, limits, metrics, own_urls, public_url, server, store, stun,
    tls, without_rights,
};
use crate::os::audit::Audit;
use crate::os::random;
use crate::os::tasks::{self, TaskHandle, Tasks};
use crate::os::watchdog::{Progress, ServiceWatchdog};
use crate::os::{clock, file};
use crate::protocol::api::ErrorCode;
use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;

/// How long streams may take to end when the coordinator stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);
/// The time between two searches for ephemeral nodes that stay away.
const DISMISSAL: Duration = Duration::from_secs(30);
/// The number of searches between two announcements of the connected nodes to the other coordinators. They take less time than
/// a node may stay away.
const PRESENCE: u64 = 8;
/// The file in the state directory with the last revision of etcd that this coordinator has read.
#[cfg(feature = "etcd")]
const SEEN: &str = "etcd.seen";
/// The file descriptors that are reserved for all uses other than connections of nodes.
const RESERVED_FILES: u64 = 128;

/// A running coordinator. [`Coordinator::stop`] ends its tasks. If it is dropped, they run on until the runtime ends.
#[derive(Debug)]
pub struct Coordinator {
    listen: SocketAddr,
    metrics: Option<SocketAddr>,
    urls: Vec<CoordinatorUrl>,
    pin: SpkiPin,
    admin_socket: PathBuf,
    stop: watch::Sender<bool>,
    serve: TaskHandle,
    tasks: Tasks,
    audit: Audit,
    /// Keeps other coordinators out of the state directory.
    _lock: Flock<File>,
}

impl Coordinator {
    /// Opens the state, binds all addresses, and serves.
    ///
    /// # Errors
    /// The reason and the remedy, as one line for the administrator.
    pub async fn start(config: &Config) -> Result<Self, Failure> {
        file::private_dir(&config.state_dir).map_err(|error| match error.is_permission() {
            true => without_rights(&error.reason(), "--state-dir"),
            false => error.into(),
        })?;
        let lock = lock(&config.state_dir)?;
        let audit = Audit::open(&config.state_dir);
        let listener = server::bind(config.listen).await?;
        // The address may differ from the configured one, because port 0 selects any free port.
        let listen = listener
            .local_addr()
            .map_err(|e| Failure::new(ErrorCode::Internal, e))?;
        let urls = urls_of(config, listen);
        let subject = tls::Subject::new(&urls, &config.domain);
        let identity = tls::load_or_make(&config.state_dir, &subject, clock::wall())?;
        let hub = {
            let (config, urls) = (config.clone(), urls.clone());
            let (pin, marks, audit) = (identity.pin, identity.marks, audit.clone());
            let setup = setup_of(&config, urls, pin, marks, audit);
            let open = move || open_hub(&config, setup);
            let opened = tokio::task::spawn_blocking(open).await;
            Arc::new(opened.map_err(|e| Failure::new(ErrorCode::Internal, e))??)
        };
        let admin = admin::bind(&config.admin_socket).await?;
        let metrics = metrics::bind(config.metrics_listen).await;
        let metrics_address = metrics.as_ref().and_then(|m| m.local_addr().ok());

        let (stop, stopped) = watch::channel(false);
        let files = limits::raise_open_files(server::MAX_CONNECTIONS as u64 + RESERVED_FILES);
        let slots = usize::try_from(files.saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX);
        let tasks = Tasks::new("mesh-coordinator");
        // This task ends when the coordinator is stopped.
        let serve = tasks.spawn_finite(
            "server",
            server::serve(
                listener,
                identity.config,
                Arc::clone(&hub),
                slots.clamp(16, server::MAX_CONNECTIONS),
                stopped,
            ),
        );
        let admin = admin::serve(admin, config.admin_socket.clone(), Arc::clone(&hub));
        tasks.spawn("administration API", admin);
        if let Some(listener) = metrics {
            tasks.spawn("metrics", metrics::serve(listener, Arc::clone(&hub)));
        }
        let urls_watch = own_urls::watch(urls.clone(), identity.pin, Arc::clone(&hub));
        tasks.spawn("public URLs", urls_watch);
        if let Some(socket) = stun::bind(listen) {
            tasks.spawn("STUN", stun::serve(socket));
        }
        spawn_upkeep(&tasks, hub);
        Ok(Self {
            listen,
            metrics: metrics_address,
            urls,
            pin: identity.pin,
            admin_socket: config.admin_socket.clone(),
            stop,
            serve,
            tasks,
            audit,
            _lock: lock,
        })
    }

    /// The address at which nodes connect.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The address at which metrics are served, if there is one.
    #[must_use]
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// The URLs in join tokens. There are none if they are neither configured nor found out.
    #[must_use]
    pub fn urls(&self) -> &[CoordinatorUrl] {
        &self.urls
    }

    /// The hash of the TLS key, which nodes pin.
    #[must_use]
    pub fn pin(&self) -> SpkiPin {
        self.pin
    }

    /// Waits until a task has failed that the coordinator depends on. The coordinator then has to be stopped.
    pub async fn failed(&self) -> tasks::Failure {
        self.tasks.failed().await
    }

    /// Accepts no new connection, tells the connected nodes, and ends.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        // The other tasks end below, and so does this one if it takes too long.
        let _ = tokio::time::timeout(DRAIN_LIMIT, self.serve.ended()).await;
        self.tasks.stop().await;
        self.audit.stop().await;
        let _ = std::fs::remove_file(&self.admin_socket);
    }
}

/// The URLs at which nodes reach the coordinator.
fn urls_of(config: &Config, listen: SocketAddr) -> Vec<CoordinatorUrl> {
    let urls = if config.public_urls.is_empty() {
        public_url::guess(listen).into_iter().collect::<Vec<_>>()
    } else {
        config.public_urls.clone()
    };
    if urls.is_empty() {
        tracing::warn!(
            "it is not known how nodes reach this coordinator; set public_urls, or no join token can be made"
        );
    }
    urls
}

/// Starts the tasks that need no listener.
fn spawn_upkeep(tasks: &Tasks, hub: Arc<Hub>) {
    tasks.spawn("absent nodes", dismiss_absent(Arc::clone(&hub)));
    if let Some(news) = hub.follow_others() {
        tasks.spawn("other coordinators", follow_others(Arc::clone(&hub), news));
    }
    tasks.spawn("watchdog", feed_watchdog(hub));
}

/// Notifies the service manager's watchdog while the hub's state can be read. Every request of a node reads this state. If its
/// lock is never released, the coordinator serves no node any more.
async fn feed_watchdog(hub: Arc<Hub>) {
    let mut watchdog = ServiceWatchdog::from_environment(Instant::now());
    let Some(pause) = watchdog.pause() else {
        return std::future::pending().await;
    };
    let progress = Arc::new(Progress::new("hub"));
    let mut reading: Option<JoinHandle<u64>> = None;
    loop {
        let ended = reading.take_if(|reading| reading.is_finished());
        if let Some(ended) = ended
            && ended.await.is_ok()
        {
            progress.raise();
        }
        if reading.is_none() {
            let hub = Arc::clone(&hub);
            // The call waits for the lock, so it must not block a worker thread of the runtime.
            reading = Some(tokio::task::spawn_blocking(move || hub.revision()));
        }
        watchdog.feed([&progress], Instant::now());
        tokio::time::sleep(pause).await;
    }
}

/// Records which nodes are away, and removes ephemeral nodes that stay away, until the coordinator ends.
async fn dismiss_absent(hub: Arc<Hub>) {
    for look in 0u64.. {
        tokio::time::sleep(DISMISSAL).await;
        let hub = Arc::clone(&hub);
        let dismissed = tokio::task::spawn_blocking(move || {
            hub.note_away(clock::now());
            if look.is_multiple_of(PRESENCE) {
                hub.announce_present()?;
            }
            hub.dismiss_absent(clock::now())
        });
        if let Ok(Err(error)) = dismissed.await {
            tracing::warn!(%error, "nodes that stay away are not removed");
        }
    }
}

/// Applies what other coordinators write, until the coordinator ends.
async fn follow_others(hub: Arc<Hub>, mut news: watch::Receiver<u64>) {
    while news.changed().await.is_ok() {
        let hub = Arc::clone(&hub);
        // A panic is already in the log.
        let _ = tokio::task::spawn_blocking(move || hub.handle_news(clock::now())).await;
    }
}

/// Locks the state directory. Two coordinators with the same directory would each know only a part of the records.
pub(super) fn lock(state_dir: &Path) -> Result<Flock<File>, Failure> {
    let path = state_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| file::FileError::io("open", &path, e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        let text = match error {
            nix::errno::Errno::EWOULDBLOCK => format!(
                "another mesh-coordinator uses {}; stop it, or name another --state-dir",
                state_dir.display()
            ),
            error => format!("cannot lock {}: {error}", path.display()),
        };
        Failure::new(ErrorCode::Configuration, text)
    })
}

fn setup_of(
    config: &Config,
    urls: Vec<CoordinatorUrl>,
    pin: SpkiPin,
    marks: MarkKey,
    audit: Audit,
) -> Setup {
    Setup {
        urls,
        pin,
        marks,
        domain: config.domain.clone(),
        prefix_v4: config.prefix_v4,
        node_block_v4: config.node_block_v4,
        prefix_v6: random_unique_local(),
        audit,
    }
}

fn open_hub(config: &Config, setup: Setup) -> Result<Hub, Failure> {
    let pin = format!("{:?}", setup.pin);
    let opened = open_store(config).and_then(|mut store| {
        if store.note_pin(&pin)? == pin {
            Hub::open(store, setup, clock::now())
        } else {
            Err(store::StoreError::Failed(format!(
                "the coordinators that share this store have another TLS key; copy tls.key and tls.crt from the state directory of one of them into {}",
                config.state_dir.display()
            )))
        }
    });
    opened.map_err(|error| {
        let place = match &config.etcd {
            Some(_) => "etcd".to_owned(),
            None => config.state_dir.join(store::FILE).display().to_string(),
        };
        Failure::new(ErrorCode::Configuration, format!("{place}: {error}"))
    })
}

fn open_store(config: &Config) -> Result<Box<dyn store::Store>, store::StoreError> {
    match &config.etcd {
        None => Ok(Box::new(store::Sqlite::open(
            &config.state_dir.join(store::FILE),
        )?)),
        #[cfg(feature = "etcd")]
        Some(settings) => {
            let seen = config.state_dir.join(SEEN);
            Ok(Box::new(store::Etcd::open(settings, Some(seen))?))
        }
        // The configuration check has refused these settings.
        #[cfg(not(feature = "etcd"))]
        Some(_) => Err(store::StoreError::Failed(
            super::config::WITHOUT_ETCD.into(),
        )),
    }
}

/// A random unique local prefix (RFC 4193 section 3.2.1).
fn random_unique_local() -> ipnet::Ipv6Net {
    let mut random = [0u8; 5];
    // Without randomness the prefix is still valid, and nobody but the administrator's `init` reads it.
    let _ = random::fill(&mut random);
    let [a, b, c, d, e] = random;
    let address = std::net::Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    ipnet::Ipv6Net::new(address, 48).expect("48 is a prefix length")
}
