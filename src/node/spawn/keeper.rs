//! The task that removes spawned containers: those whose time is over, and those that no entry of the ledger has. It also forgets the
//! entries whose container was removed otherwise, for example by the engine when a container with `AutoRemove` ends.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::failed::Failed;
use super::spawner::{Spawner, compare};
use crate::node::transitions::spawn::{OrphanRemoved, SpawnTurn};
use crate::os::audit::{Audit, Who};
use crate::spawn::body::{ID_LABEL, OF_NETWORK};

/// How often the ledger is compared with what the engine has.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);
/// The pause after the engine did not do something.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Keeps the containers until the program ends.
pub(in crate::node) async fn keep(spawner: Spawner, audit: Audit) {
    let mut fault: Option<String> = None;
    loop {
        let looked = Instant::now();
        let swept = sweep(&spawner, &audit).await;
        let why = swept.err().map(|failed| failed.to_string());
        if let Some(why) = why.as_ref().filter(|why| fault.as_ref() != Some(*why)) {
            tracing::warn!(%why, "spawned containers cannot be kept in order for now; meshd tries again");
        }
        fault = why;
        match &fault {
            // What has expired stays so until the engine removes it.
            Some(_) => sleep(RETRY_PAUSE).await,
            None => wait(&spawner, looked + LOOK_INTERVAL).await,
        }
    }
}

/// Waits until `look`, or until the next entry expires. A new entry may expire before all others.
async fn wait(spawner: &Spawner, look: Instant) {
    loop {
        let next = spawner.ledger().poll_timeout();
        let until = next.map_or(look, |next| next.min(look));
        let left = until.saturating_duration_since(Instant::now());
        if timeout(left, spawner.added()).await.is_err() {
            return;
        }
    }
}

/// Brings the ledger, the containers and the networks into agreement.
///
/// # Errors
/// The engine did not do all of it.
async fn sweep(spawner: &Spawner, audit: &Audit) -> Result<(), Failed> {
    let mut result = Ok(());
    let expired = spawner.ledger().expired(Instant::now());
    for entry in expired {
        let removed = match &entry.container {
            Some(container) => spawner.engine().remove(container).await,
            None => Ok(()),
        };
        match removed {
            Ok(()) => {
                let turn = SpawnTurn::Expired;
                spawner.forget(&entry, &Who::Daemon, turn).await;
            }
            Err(fault) => result = Err(fault.into()),
        }
    }
    for container in compare(spawner).await? {
        // One that the engine cannot remove keeps none of the others.
        match spawner.engine().remove(&container).await {
            Ok(()) => audit.note(&OrphanRemoved {
                container: &container,
            }),
            Err(fault) => result = Err(fault.into()),
        }
    }
    let label = format!("{ID_LABEL}={OF_NETWORK}");
    let networks = spawner.engine().networks_labelled(&label).await?;
    let networks: BTreeSet<String> = networks.into_iter().collect();
    spawner.remove_unused(networks).await;
    result
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::containers::fixture::Standin;
    use crate::node::config::{Arguments, Config};
    use crate::node::state::StateDir;
    use crate::os::tasks::Tasks;

    fn spawner(engine: &Standin, directory: &std::path::Path) -> Spawner {
        let text = format!(
            "[docker]\nsocket = {:?}\n[api]\nenabled = true\n[[spawn]]\nname = \"job\"\nimages = [\"box:latest\"]\n",
            engine.socket()
        );
        let file = directory.join("meshd.toml");
        std::fs::write(&file, text).expect("writable");
        let file = file.to_str().expect("a plain path");
        let arguments = Arguments::try_parse_from(["meshd", "--config", file]);
        let config = Config::load(&arguments.expect("valid arguments")).expect("it is valid");
        let dir = StateDir::open(&directory.join("state")).expect("a new directory");
        Spawner::open(&config, &dir, &Tasks::new("test")).expect("a template")
    }

    #[tokio::test]
    async fn a_leftover_that_the_engine_cannot_remove_keeps_none_of_the_others() {
        let (stuck, other) = ("a".repeat(64), "b".repeat(64));
        let row = |id: &str| format!(r#"{{"Id":"{id}","Labels":{{"meshd.spawn":"x"}}}}"#);
        let list = format!("[{},{}]", row(&stuck), row(&other));
        let of = |id: &str| format!("/containers/{id}?force");
        let (of_stuck, of_other) = (of(&stuck), of(&other));
        let engine = Standin::new(&[
            ("/containers/json", 200, list.as_str()),
            (of_stuck.as_str(), 500, "{}"),
            (of_other.as_str(), 204, ""),
            ("/networks", 200, "[]"),
        ]);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let spawner = spawner(&engine, directory.path());
        assert!(sweep(&spawner, &Audit::none()).await.is_err());
        let asked = engine.received();
        for start in [
            format!("DELETE {of_stuck}"),
            format!("DELETE {of_other}"),
            "GET /networks?".to_owned(),
        ] {
            let is_asked = asked.iter().any(|(asked, _)| asked.starts_with(&start));
            assert!(is_asked, "{start}: {asked:?}");
        }
    }
}
