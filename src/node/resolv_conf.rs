//! Keeps /etc/resolv.conf in meshd's hands while it runs, and gives it back.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::host::{ResolvConf, ResolvConfError, resolv_request};
use crate::protocol::local::Problem;

/// How often the file is looked at in any case.
const LOOK: Duration = Duration::from_secs(15);
/// How long a program that writes it is left to finish: also bounds how fast two can take turns.
const PAUSE: Duration = Duration::from_millis(300);

/// The shortest time between two requests to the helper. Without it, two programs that both write the file could start the
/// helper without end.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// The task that keeps it. Dropping it puts back what stood there before.
pub(super) struct Keeper {
    conf: ResolvConf,
    /// The directory in which the helper finds the request.
    runtime_dir: PathBuf,
    problem: Arc<Mutex<Option<Problem>>>,
    /// Whether the file may still be taken: held while it is written.
    open: Arc<Mutex<bool>>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Makes `server` the machine's resolver from now on. If this process may not write the file, it asks the helper by a request
    /// in `runtime_dir`.
    pub(super) fn start(state_dir: &Path, runtime_dir: &Path, server: IpAddr) -> Self {
        let conf = ResolvConf::new(state_dir);
        let problem = Arc::new(Mutex::new(None));
        let open = Arc::new(Mutex::new(true));
        let task = tokio::spawn(keep(
            conf.clone(),
            runtime_dir.to_owned(),
            server,
            Arc::clone(&problem),
            Arc::clone(&open),
        ));
        Self {
            conf,
            runtime_dir: runtime_dir.to_owned(),
            problem,
            open,
            task,
        }
    }

    /// What is wrong, if anything is.
    pub(super) fn problem(&self) -> Option<Problem> {
        lock(&self.problem).clone()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
        let mut open = lock(&self.open);
        *open = false;
        match self.conf.restore() {
            Ok(true) => tracing::info!("put /etc/resolv.conf back as it was"),
            Ok(false) => {}
            Err(error)
                if error.is_permission()
                    && resolv_request::ask(&self.runtime_dir, None).is_ok() =>
            {
                tracing::info!("asked the helper to put /etc/resolv.conf back as it was");
            }
            Err(error) => {
                tracing::error!(%error, "cannot put /etc/resolv.conf back; run `meshd --restore-resolv-conf` as root")
            }
        }
    }
}

fn lock<T>(held: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    held.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn keep(
    conf: ResolvConf,
    runtime_dir: PathBuf,
    server: IpAddr,
    problem: Arc<Mutex<Option<Problem>>>,
    open: Arc<Mutex<bool>>,
) {
    let mut changes = conf
        .watch()
        .inspect_err(
            |error| tracing::warn!(%error, "/etc/resolv.conf is not watched, only looked at"),
        )
        .ok();
    let mut asked = false;
    loop {
        let mut pause = PAUSE;
        let taken = {
            let open = lock(&open);
            if !*open {
                return;
            }
            conf.take(server)
        };
        match taken {
            Ok(changed) => {
                if changed || asked {
                    tracing::info!(%server, "is the only resolver in /etc/resolv.conf now");
                }
                asked = false;
                *lock(&problem) = None;
            }
            Err(error) => {
                // The helper has time until the next look. Only then its absence is a problem.
                if asked || !error.is_permission() {
                    *lock(&problem) = Some(explain(&error, server));
                }
                if error.is_permission() {
                    asked = resolv_request::ask(&runtime_dir, Some(server))
                        .inspect_err(|error| tracing::warn!(%error, "cannot ask the helper to write /etc/resolv.conf"))
                        .is_ok();
                    pause = ASK_AGAIN;
                }
            }
        }
        let told = async {
            match &mut changes {
                Some(changes) => changes.next().await,
                None => std::future::pending().await,
            }
        };
        if let Ok(Err(error)) = tokio::time::timeout(LOOK, told).await {
            tracing::warn!(%error, "/etc/resolv.conf is not watched any more, only looked at");
            changes = None;
        }
        tokio::time::sleep(pause).await;
    }
}

fn explain(error: &ResolvConfError, server: IpAddr) -> Problem {
    let fix = match error {
        ResolvConfError::Link(_, target) if target.to_string_lossy().contains("systemd/resolve") => {
            "take `manage_resolv_conf` out of meshd.toml: systemd-resolved is told over D-Bus (`[dns] split_dns`)".to_owned()
        }
        ResolvConfError::Link(..) => format!(
            "make {server} the first server in the configuration of that program, or replace the link by a file"
        ),
        error if error.is_permission() => {
            "let the helper write it for meshd: install systemd/meshd-resolv-conf.path and systemd/meshd-resolv-conf.service in /etc/systemd/system, then `systemctl enable --now meshd-resolv-conf.path`".to_owned()
        }
        ResolvConfError::Request(_) | ResolvConfError::File(_) => format!("write `nameserver {server}` into it by hand, and take `manage_resolv_conf` out of meshd.toml"),
    };
    Problem {
        what: "/etc/resolv.conf is not kept by meshd".into(),
        why: error.to_string(),
        fix,
    }
}
