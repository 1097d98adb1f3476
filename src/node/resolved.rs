//! Tells systemd-resolved which names to ask of the DNS address, for as long as meshd runs.
//!
//! The settings belong to the tunnel's link: resolved forgets them when it restarts, and when the link goes. So they are
//! said again whenever the name on the bus changes hands, and taken back on stop.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use zbus::Connection;
use zbus::fdo::DBusProxy;

use super::host::SplitDns;
use crate::protocol::local::Problem;

const NAME: &str = "org.freedesktop.resolve1";
const PATH: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";

/// How long until a bus that is not there is looked for again.
const AGAIN: Duration = Duration::from_secs(15);
/// How long the last word may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Whether resolved knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// There is no resolved on the system bus.
    Absent,
    /// It sends names of the mesh here.
    Configured,
    /// It is there, and refuses.
    Refused(String),
}

/// The task that keeps resolved told.
pub(super) struct ResolvedLink {
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl ResolvedLink {
    /// Begins, for the link of index `link`. Of a link that is gone there is nothing to take back: resolved has forgotten
    /// it, and it is enough to drop the value.
    pub(super) fn start(link: u32, split: SplitDns) -> Self {
        let state = Arc::new(Mutex::new(State::Absent));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(keep(link, split, Arc::clone(&state), stopped));
        Self {
            state,
            stop: Some(stop),
            task,
        }
    }

    /// How it stands.
    pub(super) fn state(&self) -> State {
        lock(&self.state).clone()
    }

    /// What is wrong, if anything is.
    pub(super) fn problem(&self) -> Option<Problem> {
        let State::Refused(why) = self.state() else {
            return None;
        };
        let right = why.contains("AccessDenied") || why.contains("InteractiveAuthorization");
        Some(Problem {
            what: "systemd-resolved does not send names of the mesh here".into(),
            why,
            fix: if right {
                "let user meshd configure it: install systemd/meshd.rules as /etc/polkit-1/rules.d/50-meshd.rules".into()
            } else {
                "look at `journalctl -u systemd-resolved`, or set `[dns] split_dns = \"none\"`"
                    .into()
            },
        })
    }

    /// Takes everything back.
    pub(super) async fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
            let _ = tokio::time::timeout(FAREWELL, &mut self.task).await;
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
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Tells resolved whenever it appears, until the bus goes.
async fn follow(link: u32, split: &SplitDns, state: &Mutex<State>) -> zbus::Result<()> {
    let connection = Connection::system().await?;
    let bus = DBusProxy::new(&connection).await?;
    // Before the first look, so that nothing falls between.
    let mut changes = bus
        .receive_name_owner_changed_with_args(&[(0, NAME)])
        .await?;
    let mut present = bus.name_has_owner(NAME.try_into()?).await?;
    loop {
        let new = match present {
            false => State::Absent,
            true => match tell(&connection, link, split).await {
                Ok(()) => State::Configured,
                Err(error) => State::Refused(error.to_string()),
            },
        };
        if *lock(state) != new {
            tracing::info!(?new, "split DNS with systemd-resolved");
        }
        *lock(state) = new;
        let Some(change) = changes.next().await else {
            return Ok(());
        };
        present = change.args()?.new_owner.is_some();
    }
}

async fn tell(connection: &Connection, link: u32, split: &SplitDns) -> zbus::Result<()> {
    let index = i32::try_from(link).unwrap_or_default();
    let server: (i32, Vec<u8>) = match split.server {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let domains: Vec<(&str, bool)> = split.domains.iter().map(|d| (d.as_str(), true)).collect();
    call(connection, "SetLinkDNS", &(index, vec![server])).await?;
    call(connection, "SetLinkDomains", &(index, domains)).await?;
    // Old versions know some of these not; without them it works all the same.
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
    // With the link everything that was said of it goes anyway.
    if let Err(error) = reverted.await {
        tracing::debug!(%error, "systemd-resolved was not told that meshd stops");
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
