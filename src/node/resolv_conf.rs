//! Keeps /etc/resolv.conf in meshd's hands while it runs, and gives it back.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::host::{ResolvConf, ResolvConfError};
use crate::wire::local::Problem;

/// How often the file is looked at in any case.
const LOOK: Duration = Duration::from_secs(15);
/// How long a program that writes it is left to finish: also bounds how fast two can take turns.
const PAUSE: Duration = Duration::from_millis(300);

/// The task that keeps it. Dropping it puts back what stood there before.
pub(super) struct Keeper {
    conf: ResolvConf,
    problem: Arc<Mutex<Option<Problem>>>,
    /// Whether the file may still be taken: held while it is written.
    open: Arc<Mutex<bool>>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Makes `server` the machine's resolver from now on.
    pub(super) fn start(state_dir: &Path, server: IpAddr) -> Self {
        let conf = ResolvConf::new(state_dir);
        let problem = Arc::new(Mutex::new(None));
        let open = Arc::new(Mutex::new(true));
        let task = tokio::spawn(keep(
            conf.clone(),
            server,
            Arc::clone(&problem),
            Arc::clone(&open),
        ));
        Self {
            conf,
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
    loop {
        let taken = {
            let open = lock(&open);
            if !*open {
                return;
            }
            conf.take(server)
        };
        match taken {
            Ok(false) => *lock(&problem) = None,
            Ok(true) => {
                tracing::info!(%server, "is the only resolver in /etc/resolv.conf now");
                *lock(&problem) = None;
            }
            Err(error) => *lock(&problem) = Some(explain(&error, server)),
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
        tokio::time::sleep(PAUSE).await;
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
        ResolvConfError::File(error) if error.is_permission() => {
            "let meshd write there: install systemd/meshd-resolv-conf.conf as /etc/systemd/system/meshd.service.d/resolv-conf.conf".to_owned()
        }
        ResolvConfError::File(_) => format!("write `nameserver {server}` into it by hand, and take `manage_resolv_conf` out of meshd.toml"),
    };
    Problem {
        what: "/etc/resolv.conf is not kept by meshd".into(),
        why: error.to_string(),
        fix,
    }
}
