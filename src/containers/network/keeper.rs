//! Creates the network through the engine, and removes it when it is not needed any more.

use std::path::{Path, PathBuf};

use super::{NAME, NativePlan, Step, Unusable};
use crate::containers::api;
use crate::containers::client::{EngineFault, MAX_LIST, Verb, get, get_required, networks, send};
use crate::containers::inspect::{Engine, EngineNetwork};

/// The query for all containers attached to the network, running or not.
const ATTACHED: &str = "/containers/json?all=true&filters=%7B%22network%22%3A%5B%22mesh%22%5D%7D";

/// Creates the network if necessary. Returns its id and all networks that exist afterwards.
///
/// # Errors
/// The engine is not reachable.
pub(in crate::containers) async fn keep(
    socket: &Path,
    engine: &Engine,
    plan: &NativePlan,
    there: Vec<EngineNetwork>,
) -> Result<(Result<String, Unusable>, Vec<EngineNetwork>), EngineFault> {
    let text = match plan.step(engine, &there) {
        Step::Keep(id) => return Ok((Ok(id), there)),
        Step::Refuse(unusable) => return Ok((Err(unusable), there)),
        Step::Create(text) => text,
        Step::Replace(unusable) => {
            if !remove_unused(socket, &there).await? {
                return Ok((Err(unusable), there));
            }
            let rest: Vec<EngineNetwork> =
                there.iter().filter(|n| n.name != NAME).cloned().collect();
            match plan.step(engine, &rest) {
                Step::Create(text) => text,
                _ => return Ok((Err(unusable), there)),
            }
        }
    };
    let refused = match send(socket, Verb::Post, "/networks/create", text).await {
        Ok(()) => None,
        Err(EngineFault::Rejected(_, why)) => Some(why),
        // A filtering proxy refuses without a reason. Containers are mapped then.
        Err(fault @ EngineFault::Status(..)) => Some(fault.to_string()),
        Err(fault) => return Err(fault),
    };
    let there = networks(socket, engine.podman).await?;
    // Another program may have created it at the same time.
    let kept = match plan.step(engine, &there) {
        Step::Keep(id) => {
            tracing::info!(network = NAME, "created the containers' network");
            Ok(id)
        }
        Step::Replace(unusable) | Step::Refuse(unusable) => Err(unusable),
        Step::Create(_) => Err(Unusable {
            why: format!(
                "the engine does not create the network {NAME}: {}",
                refused.unwrap_or_else(|| "it gives no reason".into())
            ),
            fix: "remove the cause; meshd tries it again within 30 s".into(),
        }),
    };
    Ok((kept, there))
}

/// Removes the network if meshd created it and no container refers to it. A container that refers to a removed network
/// cannot be started again.
pub(crate) async fn remove_network(sockets: &[PathBuf]) {
    for socket in sockets {
        let gone = async {
            let there = networks(socket, false).await?;
            remove_unused(socket, &there).await
        };
        match gone.await {
            Err(EngineFault::Absent(_)) => {}
            Err(fault) => {
                tracing::warn!(%fault, network = NAME, "could not remove the containers' network");
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
    let list = get_required(socket, ATTACHED, MAX_LIST).await?;
    let attached = api::list(&list)
        .map_err(|e| EngineFault::Malformed("/containers/json".into(), e.to_string()))?;
    if !attached.is_empty() {
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
        // A container may have been attached in the meantime.
        Err(EngineFault::Rejected(..) | EngineFault::Status(..)) => {
            Ok(get(socket, &format!("/networks/{}", ours.id), MAX_LIST)
                .await?
                .is_none())
        }
        Err(fault) => Err(fault),
    }
}
