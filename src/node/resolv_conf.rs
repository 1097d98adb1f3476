//! Manages /etc/resolv.conf while meshd runs, and restores it afterwards.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::host::{ResolvConf, ResolvConfError, resolv_request};
use crate::os::tasks::{TaskHandle, Tasks};
use crate::protocol::local::Problem;

/// The interval at which the file is compared, with or without notifications.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);
/// How long a program that writes the file may take to finish. This also limits how fast two programs can overwrite
/// each other's file.
const WRITE_PAUSE: Duration = Duration::from_millis(300);

/// The shortest time between two requests to the helper. Without it, two programs that both write the file could start the
/// helper without end.
const REQUEST_INTERVAL: Duration = Duration::from_secs(3);

/// The handle of the task that manages the file. Dropping it restores the original.
pub(super) struct Keeper {
    conf: ResolvConf,
    /// The directory in which the helper finds the request.
    runtime_dir: PathBuf,
    problem: Arc<Mutex<Option<Problem>>>,
    /// Whether the file may still be written. The lock is held during a write.
    active: Arc<Mutex<bool>>,
    task: TaskHandle,
}

impl Keeper {
    /// Makes `server` the machine's only DNS server. If this process may not write the file, it requests that from the
    /// helper by a file in `runtime_dir`.
    pub(super) fn start(state_dir: &Path, runtime_dir: &Path, server: IpAddr) -> Self {
        let conf = ResolvConf::new(state_dir);
        let problem = Arc::new(Mutex::new(None));
        let active = Arc::new(Mutex::new(true));
        // The task ends when the original is restored.
        let task = run(
            conf.clone(),
            runtime_dir.to_owned(),
            server,
            Arc::clone(&problem),
            Arc::clone(&active),
        );
        let task = Tasks::current().spawn_finite("resolv.conf", task);
        Self {
            conf,
            runtime_dir: runtime_dir.to_owned(),
            problem,
            active,
            task,
        }
    }

    /// The problem and its remedy, if there is one.
    pub(super) fn problem(&self) -> Option<Problem> {
        lock(&self.problem).clone()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
        let mut active = lock(&self.active);
        *active = false;
        match self.conf.restore() {
            Ok(true) => tracing::info!("restored /etc/resolv.conf"),
            Ok(false) => {}
            Err(error)
                if error.is_permission()
                    && resolv_request::write(&self.runtime_dir, None).is_ok() =>
            {
                tracing::info!("requested the helper to restore /etc/resolv.conf");
            }
            // Another attempt would find no copy either.
            Err(error @ ResolvConfError::NoOriginal(_)) => {
                tracing::error!(%error, "cannot restore /etc/resolv.conf");
            }
            Err(error) => {
                tracing::error!(%error, "cannot restore /etc/resolv.conf; run `meshd --restore-resolv-conf` as root")
            }
        }
    }
}

fn lock<T>(held: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    held.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn run(
    conf: ResolvConf,
    runtime_dir: PathBuf,
    server: IpAddr,
    problem: Arc<Mutex<Option<Problem>>>,
    active: Arc<Mutex<bool>>,
) {
    let mut changes = conf
        .watch()
        .inspect_err(
            |error| tracing::warn!(%error, "there are no notifications of changes to /etc/resolv.conf; it is compared every 15 s"),
        )
        .ok();
    let mut requested = false;
    loop {
        let mut pause = WRITE_PAUSE;
        let result = {
            let active = lock(&active);
            if !*active {
                return;
            }
            conf.set_server(server)
        };
        match result {
            Ok(changed) => {
                if changed || requested {
                    tracing::info!(%server, "/etc/resolv.conf has only this DNS server now");
                }
                requested = false;
                *lock(&problem) = None;
            }
            Err(error) => {
                // The helper has time until the next comparison. Its absence is a problem only after that.
                if requested || !error.is_permission() {
                    *lock(&problem) = Some(explain(&error, server));
                }
                if error.is_permission() {
                    requested = resolv_request::write(&runtime_dir, Some(server))
                        .inspect_err(|error| tracing::warn!(%error, "cannot request the helper to write /etc/resolv.conf"))
                        .is_ok();
                    pause = REQUEST_INTERVAL;
                }
            }
        }
        let change = async {
            match &mut changes {
                Some(changes) => changes.next().await,
                None => std::future::pending().await,
            }
        };
        if let Ok(Err(error)) = tokio::time::timeout(CHECK_INTERVAL, change).await {
            tracing::warn!(%error, "there are no more notifications of changes to /etc/resolv.conf; it is compared every 15 s");
            changes = None;
        }
        tokio::time::sleep(pause).await;
    }
}

fn explain(error: &ResolvConfError, server: IpAddr) -> Problem {
    let fix = match error {
        ResolvConfError::Link(_, target) if target.to_string_lossy().contains("systemd/resolve") => {
            "remove `manage_resolv_conf` from meshd.toml: systemd-resolved is configured over D-Bus (`[dns] split_dns`)".to_owned()
        }
        ResolvConfError::Link(..) => format!(
            "make {server} the first server in the configuration of that program, or replace the link by a file"
        ),
        error if error.is_permission() => {
            "let the helper write it: `sudo systemctl enable --now meshd-resolv-conf.path`; the package of meshd brings this unit, and the sources have it in systemd/".to_owned()
        }
        ResolvConfError::NoOriginal(_)
        | ResolvConfError::Request(_)
        | ResolvConfError::File(_) => format!("write `nameserver {server}` into it by hand, and remove `manage_resolv_conf` from meshd.toml"),
    };
    Problem {
        what: "meshd does not manage /etc/resolv.conf".into(),
        why: error.to_string(),
        fix,
    }
}
