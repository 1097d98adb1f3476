//! Lists the running containers of this host, exposed or not, each with the network that decides which DNS server it
//! uses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::api;
use super::client::{EngineFault, MAX_DESCRIPTION, MAX_LIST, get, get_required, networks};
use super::inspect::{EngineNetwork, Inspected, Network};
use super::labels::printable;
use crate::protocol::local::{ContainerResolver, NetworkKind};

/// The maximum number of containers in the list.
const MAX_CONTAINERS: usize = 256;

/// Returns the running containers of the engine behind the first of `sockets` that answers.
pub async fn running_containers(sockets: &[PathBuf]) -> Vec<ContainerResolver> {
    for socket in sockets {
        match running_on(socket).await {
            Ok(running_containers) => return running_containers,
            Err(fault) => tracing::debug!(%fault, "cannot list the containers"),
        }
    }
    Vec::new()
}

async fn running_on(socket: &Path) -> Result<Vec<ContainerResolver>, EngineFault> {
    let malformed = |path: &str, error: serde_json::Error| {
        EngineFault::Malformed(path.to_owned(), error.to_string())
    };
    let version = get_required(socket, "/version", 1 << 20).await?;
    let engine = api::engine(&version, None).map_err(|e| malformed("/version", e))?;
    let networks: BTreeMap<String, EngineNetwork> = networks(socket, engine.podman)
        .await?
        .into_iter()
        .map(|network| (network.id.clone(), network))
        .collect();
    let path = "/containers/json";
    let list = get_required(socket, path, MAX_LIST).await?;
    let listed = api::list(&list).map_err(|e| malformed(path, e))?;
    let mut running_containers = Vec::new();
    for (id, _) in listed.into_iter().take(MAX_CONTAINERS) {
        // A container that has ended in the meantime, or that cannot be read, is left out.
        let path = format!("/containers/{id}/json");
        if let Ok(Some(text)) = get(socket, &path, MAX_DESCRIPTION).await
            && let Ok(inspected) = api::container(&text)
        {
            running_containers.extend(resolver_of(&inspected, &networks));
        }
    }
    Ok(running_containers)
}

/// A container and the network that decides how it resolves names. None if it has no network or shares
/// that of another container.
fn resolver_of(
    inspected: &Inspected,
    networks: &BTreeMap<String, EngineNetwork>,
) -> Option<ContainerResolver> {
    let (network, kind) = match &inspected.network {
        Network::Host => ("host".to_owned(), NetworkKind::Host),
        Network::Isolated | Network::Shared => return None,
        Network::Attached(endpoints) => {
            let kinds = endpoints.iter().map(|(name, endpoint)| {
                let internal = networks.get(&endpoint.network).is_some_and(|n| n.internal);
                let kind = match name.as_str() {
                    _ if internal => NetworkKind::Internal,
                    "bridge" | "podman" => NetworkKind::Default,
                    _ => NetworkKind::User,
                };
                (name.clone(), kind)
            });
            // One user-defined network is enough for the engine to use its own DNS server.
            let rank = |kind: NetworkKind| match kind {
                NetworkKind::User => 0,
                NetworkKind::Default => 1,
                NetworkKind::Internal => 2,
                NetworkKind::Host => 3,
            };
            kinds.min_by_key(|(_, kind)| rank(*kind))?
        }
    };
    Some(ContainerResolver {
        name: printable(&inspected.name),
        network: printable(&network),
        kind,
        pid: inspected.pid?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(networks: &[(&str, bool)], mode: &str) -> Option<(String, NetworkKind)> {
        let attached: Vec<String> = networks
            .iter()
            .map(|(name, _)| {
                format!(r#""{name}":{{"IPAddress":"172.18.0.2","NetworkID":"{name}"}}"#)
            })
            .collect();
        let text = format!(
            r#"{{"Id":"aa","Name":"/web","State":{{"Running":true,"Pid":7}},"HostConfig":{{"NetworkMode":"{mode}"}},
               "NetworkSettings":{{"Networks":{{{}}}}}}}"#,
            attached.join(",")
        );
        let known = networks
            .iter()
            .map(|(name, internal)| {
                let network = EngineNetwork {
                    id: (*name).into(),
                    name: (*name).into(),
                    driver: "bridge".into(),
                    internal: *internal,
                    bridge: None,
                    ..EngineNetwork::default()
                };
                ((*name).to_owned(), network)
            })
            .collect();
        let inspected = api::container(text.as_bytes()).expect("a description");
        resolver_of(&inspected, &known).map(|resolver| (resolver.network, resolver.kind))
    }

    #[test]
    fn the_network_that_decides_how_names_are_resolved_is_returned() {
        let user = |name: &str| Some((name.to_owned(), NetworkKind::User));
        assert_eq!(
            kind_of(&[("shop_default", false)], "shop_default"),
            user("shop_default")
        );
        assert_eq!(
            kind_of(&[("bridge", false), ("zoo", false)], "bridge"),
            user("zoo")
        );
        let default = Some(("bridge".to_owned(), NetworkKind::Default));
        assert_eq!(kind_of(&[("bridge", false)], "default"), default);
        assert_eq!(
            kind_of(&[("back", true), ("bridge", false)], "bridge"),
            default
        );
        let internal = Some(("back".to_owned(), NetworkKind::Internal));
        assert_eq!(kind_of(&[("back", true)], "back"), internal);
        let host = Some(("host".to_owned(), NetworkKind::Host));
        assert_eq!(kind_of(&[], "host"), host);
        assert_eq!(kind_of(&[], "none"), None);
    }
}
