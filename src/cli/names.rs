//! The names that complete a command line. They come from the daemons, if this user may use their sockets. A shell waits for
//! them, so there is a short limit, and no message if there are none.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clap_complete::CompletionCandidate;
use serde::de::DeserializeOwned;

use super::client::{Client, Daemon};
use super::{DEFAULT_ADMIN_SOCKET, DEFAULT_SOCKET};
use crate::model::Label;
use crate::protocol::admin::{NodeList, TokenList};
use crate::protocol::local::{ServiceList, ServiceRow, Status};

/// How long a shell waits for names.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The other nodes, as this node knows them.
pub(super) fn peers() -> Vec<CompletionCandidate> {
    let status: Option<Status> = ask_meshd("/v1/status");
    let peers = status.into_iter().flat_map(|status| status.peers);
    peers
        .map(|peer| candidate(peer.name.to_string(), peer.address_v4.to_string()))
        .collect()
}

/// The names of services and nodes in DNS.
pub(super) fn domains() -> Vec<CompletionCandidate> {
    let Some(status) = ask_meshd::<Status>("/v1/status") else {
        return Vec::new();
    };
    let Some(node) = &status.node else {
        return Vec::new();
    };
    let domain = &node.domain;
    let services: Option<ServiceList> = ask_meshd("/v1/services");
    let services = services.into_iter().flat_map(|list| list.services);
    let services = services.map(|service| {
        let name = format!("{}.svc.{domain}", name_of(&service));
        candidate(
            name,
            format!("service, {} instances", service.instances.len()),
        )
    });
    let nodes = status.peers.iter().map(|peer| &peer.name);
    let nodes = nodes.chain([&node.name]);
    let nodes = nodes.map(|name| candidate(format!("{name}.node.{domain}"), "node".into()));
    services.chain(nodes).collect()
}

/// The services with an instance on this node.
pub(super) fn own_services() -> Vec<CompletionCandidate> {
    let status: Option<Status> = ask_meshd("/v1/status");
    let Some(own) = status.and_then(|status| status.node).map(|node| node.name) else {
        return Vec::new();
    };
    let list: Option<ServiceList> = ask_meshd("/v1/services");
    let services = list.into_iter().flat_map(|list| list.services);
    services
        .filter(|service| service.instances.iter().any(|i| i.node == own))
        .map(|service| candidate(name_of(&service), "service of this node".into()))
        .collect()
}

/// All nodes, as the coordinator knows them.
pub(super) fn members() -> Vec<CompletionCandidate> {
    let list: Option<NodeList> = ask(Daemon::Coordinator, "/v1/nodes");
    let nodes = list.into_iter().flat_map(|list| list.nodes);
    nodes
        .map(|node| {
            let state = if node.connected { "connected" } else { "away" };
            candidate(node.name.to_string(), state.into())
        })
        .collect()
}

/// The ids of tokens.
pub(super) fn tokens() -> Vec<CompletionCandidate> {
    let list: Option<TokenList> = ask(Daemon::Coordinator, "/v1/tokens");
    let tokens = list.into_iter().flat_map(|list| list.tokens);
    tokens
        .map(|token| {
            let tags: Vec<&str> = token.tags.iter().map(Label::as_str).collect();
            let uses = format!("used {} of {} {}", token.used, token.uses, tags.join(","));
            candidate(token.id.short(), uses)
        })
        .collect()
}

fn name_of(service: &ServiceRow) -> String {
    match &service.project {
        Some(project) => format!("{}.{project}", service.name),
        None => service.name.to_string(),
    }
}

fn candidate(name: String, help: String) -> CompletionCandidate {
    CompletionCandidate::new(name).help(Some(help.trim_end().to_owned().into()))
}

fn ask_meshd<T: DeserializeOwned>(path: &str) -> Option<T> {
    ask(Daemon::Meshd, path)
}

/// The answer of a daemon on its usual socket, or on the one of the environment. Options of the command line are not known here.
fn ask<T: DeserializeOwned>(daemon: Daemon, path: &str) -> Option<T> {
    let (variable, usual) = match daemon {
        Daemon::Meshd => ("MESHD_SOCKET", DEFAULT_SOCKET),
        Daemon::Coordinator => ("MESH_ADMIN_SOCKET", DEFAULT_ADMIN_SOCKET),
    };
    let socket = std::env::var_os(variable).unwrap_or_else(|| OsString::from(usual));
    let client = Client::new(Path::new(&socket), daemon).within(TIMEOUT);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    runtime.block_on(client.get(path)).ok()
}
