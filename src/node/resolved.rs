//! Configures systemd-resolved to resolve names of the mesh with the DNS address, for as long as meshd runs.
//!
//! The settings belong to the tunnel's link. systemd-resolved drops them when it restarts, and when the link is
//! deleted. So they are set again whenever systemd-resolved appears on the bus, and reverted when meshd stops. Settings
//! that systemd-resolved refuses are set again at an interval.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::oneshot;
use zbus::Connection;
use zbus::fdo::DBusProxy;

use super::host::SplitDns;
use crate::os::tasks::{TaskHandle, Tasks};
use crate::protocol::local::Problem;

const NAME: &str = "org.freedesktop.resolve1";
const PATH: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";

/// The interval at which a missing bus is tried again, and settings that were refused.
const RETRY_INTERVAL: Duration = Duration::from_secs(15);
/// The time limit for reverting the settings.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of systemd-resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// There is no systemd-resolved on the system bus.
    Absent,
    /// It sends queries for names of the mesh to this node.
    Configured,
    /// It refuses the settings, for this reason.
    Refused(String),
}

/// The handle of the task that configures systemd-resolved.
pub(super) struct ResolvedLink {
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    task: TaskHandle,
}

impl ResolvedLink {
    /// Starts the task for the link with index `link`. The settings of a deleted link need not be reverted, since
    /// systemd-resolved has dropped them: dropping the value is enough.
    pub(super) fn start(link: u32, split: SplitDns) -> Self {
        let state = Arc::new(Mutex::new(State::Absent));
        let (stop, stopped) = oneshot::channel();
        // The task ends when it is stopped, after it has reverted the settings.
        let task = keep(link, split, Arc::clone(&state), stopped);
        let task = Tasks::current().spawn_finite("systemd-resolved", task);
        Self {
            state,
            stop: Some(stop),
            task,
        }
    }

    pub(super) fn state(&self) -> State {
        lock(&self.state).clone()
    }

    /// The problem and its remedy, if there is one.
    pub(super) fn problem(&self) -> Option<Problem> {
        let State::Refused(why) = self.state() else {
            return None;
        };
        let is_permission =
            why.contains("AccessDenied") || why.contains("InteractiveAuthorization");
        Some(Problem {
            what: "systemd-resolved does not send queries for names of the mesh to this node"
                .into(),
            why,
            fix: if is_permission {
                "allow the user meshd to configure it: install polkit (`sudo apt install polkitd`) and the rule for it, which the package of meshd brings and the sources have as systemd/meshd.rules".into()
            } else {
                "look at `journalctl -u systemd-resolved`, or set `[dns] split_dns = \"none\"`"
                    .into()
            },
        })
    }

    /// Reverts the settings.
    pub(super) async fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
            let _ = tokio::time::timeout(STOP_TIMEOUT, self.task.ended()).await;
        }
    }
}

impl Drop for ResolvedLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn keep(
    link: u32,
    split: SplitDns,
    state: Arc<Mutex<State>>,
    mut stopped: oneshot::Receiver<()>,
) {
    loop {
        tokio::select! {
            _ = &mut stopped => return revert(link, &state).await,
            ended = follow(link, &split, &state) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "no system bus");
                }
                *lock(&state) = State::Absent;
            }
        }
        tokio::select! {
            _ = &mut stopped => return,
            () = tokio::time::sleep(RETRY_INTERVAL) => {}
        }
    }
}

/// Configures systemd-resolved whenever it appears, and again while it refuses, until the bus connection ends.
async fn follow(link: u32, split: &SplitDns, state: &Mutex<State>) -> zbus::Result<()> {
    let connection = Connection::system().await?;
    let bus = DBusProxy::new(&connection).await?;
    // The subscription precedes the first query, so that no change is missed.
    let mut changes = bus
        .receive_name_owner_changed_with_args(&[(0, NAME)])
        .await?;
    let mut present = bus.name_has_owner(NAME.try_into()?).await?;
    loop {
        let new = match present {
            false => State::Absent,
            true => match configure(&connection, link, split).await {
                Ok(()) => State::Configured,
                Err(error) => State::Refused(error.to_string()),
            },
        };
        if *lock(state) != new {
            tracing::info!(?new, "split DNS with systemd-resolved");
        }
        let is_refused = matches!(new, State::Refused(_));
        *lock(state) = new;
        let change = if is_refused {
            // There is no notification when the settings are permitted in the meantime.
            match tokio::time::timeout(RETRY_INTERVAL, changes.next()).await {
                Ok(change) => change,
                Err(_) => continue,
            }
        } else {
            changes.next().await
        };
        let Some(change) = change else {
            return Ok(());
        };
        present = change.args()?.new_owner.is_some();
    }
}

async fn configure(connection: &Connection, link: u32, split: &SplitDns) -> zbus::Result<()> {
    let index = i32::try_from(link).unwrap_or_default();
    let server: (i32, Vec<u8>) = match split.server {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let domains: Vec<(&str, bool)> = split.domains.iter().map(|d| (d.as_str(), true)).collect();
    call(connection, "SetLinkDNS", &(index, vec![server])).await?;
    call(connection, "SetLinkDomains", &(index, domains)).await?;
    // Old versions do not have all of these methods. The settings are not necessary.
    let _ = call(connection, "SetLinkDefaultRoute", &(index, false)).await;
    for method in [
        "SetLinkLLMNR",
        "SetLinkMulticastDNS",
        "SetLinkDNSSEC",
        "SetLinkDNSOverTLS",
    ] {
        let _ = call(connection, method, &(index, "no")).await;
    }
    let _ = call(connection, "FlushCaches", &()).await;
    Ok(())
}

async fn revert(link: u32, state: &Mutex<State>) {
    if *lock(state) != State::Configured {
        return;
    }
    let reverted = async {
        let connection = Connection::system().await?;
        let index = i32::try_from(link).unwrap_or_default();
        call(&connection, "RevertLink", &(index,)).await?;
        call(&connection, "FlushCaches", &()).await
    };
    // The settings are dropped with the link in any case.
    if let Err(error) = reverted.await {
        tracing::debug!(%error, "cannot revert the settings of systemd-resolved");
    }
}

async fn call<B>(connection: &Connection, method: &str, body: &B) -> zbus::Result<()>
where
    B: serde::Serialize + zbus::zvariant::DynamicType,
{
    connection
        .call_method(Some(NAME), PATH, Some(MANAGER), method, body)
        .await
        .map(drop)
}
