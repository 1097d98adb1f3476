//! Makes the network through the engine, and takes it away when it is not wanted any more.

use std::path::{Path, PathBuf};

use super::{NAME, Plan, Step, Unusable};
use crate::containers::api;
use crate::containers::client::{EngineFault, MAX_LIST, Verb, get, networks, send, whole};
use crate::containers::inspect::{Engine, EngineNetwork};

/// Containers on it, whether they run or not.
const ON_IT: &str = "/containers/json?all=true&filters=%7B%22network%22%3A%5B%22mesh%22%5D%7D";

/// Brings the network about; gives its id and all networks there are then.
///
/// # Errors
/// The engine is away.
pub(in crate::containers) async fn keep(
    socket: &Path,
    engine: &Engine,
    plan: &Plan,
    there: Vec<EngineNetwork>,
) -> Result<(Result<String, Unusable>, Vec<EngineNetwork>), EngineFault> {
    let text = match plan.step(engine, &there) {
        Step::Keep(id) => return Ok((Ok(id), there)),
        Step::Refuse(unusable) => return Ok((Err(unusable), there)),
        Step::Make(text) => text,
        Step::Replace(unusable) => {
            if !remove_unused(socket, &there).await? {
                return Ok((Err(unusable), there));
            }
            let rest: Vec<EngineNetwork> =
                there.iter().filter(|n| n.name != NAME).cloned().collect();
            match plan.step(engine, &rest) {
                Step::Make(text) => text,
                _ => return Ok((Err(unusable), there)),
            }
        }
    };
    let refused = match send(socket, Verb::Post, "/networks/create", text).await {
        Ok(()) => None,
        Err(EngineFault::Said(_, why)) => Some(why),
        Err(fault) => return Err(fault),
    };
    let there = networks(socket, engine.podman).await?;
    // Somebody else may have made it at the same time.
    let kept = match plan.step(engine, &there) {
        Step::Keep(id) => {
            tracing::info!(network = NAME, "made the containers' network");
            Ok(id)
        }
        Step::Replace(unusable) | Step::Refuse(unusable) => Err(unusable),
        Step::Make(_) => Err(Unusable {
            why: format!(
                "the engine does not make the network {NAME}: {}",
                refused.unwrap_or_else(|| "it does not say why".into())
            ),
            fix: "put that right, and restart meshd".into(),
        }),
    };
    Ok((kept, there))
}

/// Takes the network away, if it is ours and no container refers to it: one that does could never be started again.
pub(crate) async fn take_away(sockets: &[PathBuf]) {
    for socket in sockets {
        let gone = async {
            let there = networks(socket, false).await?;
            remove_unused(socket, &there).await
        };
        match gone.await {
            Err(EngineFault::Absent(_)) => {}
            Err(fault) => {
                tracing::warn!(%fault, network = NAME, "the containers' network stays");
                return;
            }
            Ok(_) => return,
        }
    }
}

async fn remove_unused(socket: &Path, there: &[EngineNetwork]) -> Result<bool, EngineFault> {
    let Some(ours) = there.iter().find(|n| n.name == NAME && n.ours) else {
        return Ok(false);
    };
    let list = whole(socket, ON_IT, MAX_LIST).await?;
    let on_it = api::list(&list)
        .map_err(|e| EngineFault::NotUnderstood("/containers/json".into(), e.to_string()))?;
    if !on_it.is_empty() {
        return Ok(false);
    }
    match send(
        socket,
        Verb::Delete,
        &format!("/networks/{}", ours.id),
        String::new(),
    )
    .await
    {
        Ok(()) => Ok(true),
        // One that came on it meanwhile.
        Err(EngineFault::Said(..)) => Ok(get(socket, &format!("/networks/{}", ours.id), MAX_LIST)
            .await?
            .is_none()),
        Err(fault) => Err(fault),
    }
}
