//! Calls the nodes of a rollout: this one over its socket, the others over their API in the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use super::super::resolvers::{Expect, Resolver, query_node};
use super::machine::{Drain, Look, Results};
use super::view::{Own, View};
use crate::cli::exit::CliError;
use crate::cli::remote::{ApiUrl, Remote};
use crate::cli::{Client, Globals};
use crate::model::{Label, ServiceName};
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{
    NodeStatus, OwnInstances, PeerState, Reserve, Reserved, ServiceChange, ServiceChanged,
    ServiceList, ServiceRow, Status,
};
use crate::protocol::web::PORT;

/// The time limit of a call to a node.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long this node's meshd may not answer. Its own command may restart it.
const RESTART_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a call that changes a node is repeated while it does not arrive.
const REPEAT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a node is reserved for the rollout. If the rollout dies, another one has to wait that long.
const RESERVE_TIME: Duration = Duration::from_secs(60);
const RENEW_INTERVAL: Duration = Duration::from_secs(20);
/// How long the end of a rollout waits until the nodes are no longer reserved.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The nodes of a rollout.
#[derive(Debug)]
pub(super) struct Fleet {
    local: Client,
    service: ServiceName,
    domain: String,
    nodes: BTreeMap<Label, Client>,
}

/// The mesh as this node sees it.
pub(super) struct Mesh {
    pub(super) node: NodeStatus,
    pub(super) status: Status,
    pub(super) services: Vec<ServiceRow>,
}

/// Asks this node's meshd for the mesh.
///
/// # Errors
/// It does not answer, or has not joined a mesh.
pub(super) async fn mesh(local: &Client) -> Result<Mesh, CliError> {
    let status: Status = local.get("/v1/status").await?;
    let list: ServiceList = local.get("/v1/services").await?;
    let Some(node) = status.node.clone() else {
        return Err(CliError::new(
            ErrorCode::Conflict,
            "this node is not in a mesh; run `meshctl join -` with a token first",
        ));
    };
    Ok(Mesh {
        node,
        status,
        services: list.services,
    })
}

impl Fleet {
    /// Prepares calls to `nodes`, and sends none. A node that is no longer in the mesh counts as one that does not answer.
    ///
    /// # Errors
    /// There is no token.
    pub(super) fn open(
        globals: &Globals,
        mesh: &Mesh,
        service: &ServiceName,
        nodes: &[Label],
    ) -> Result<Self, CliError> {
        let mut clients = BTreeMap::new();
        let mut opened: Option<Remote> = None;
        for node in nodes {
            let mut client = globals.daemon();
            if *node != mesh.node.name {
                let token = token_file(globals, node)?;
                let Some(url) = url_of(mesh, node) else {
                    continue;
                };
                let remote = match &opened {
                    Some(opened) => opened.at(url),
                    None => Remote::open(url, token)?,
                };
                client = client.over(Some(remote.clone()));
                opened = Some(remote);
            }
            clients.insert(node.clone(), client.within(CALL_TIMEOUT));
        }
        Ok(Self {
            local: globals.daemon().within(CALL_TIMEOUT),
            service: service.clone(),
            domain: mesh.node.domain.to_string(),
            nodes: clients,
        })
    }

    /// Checks that each of `nodes` answers, and permits the calls. A rollout that is resumed goes on if a node does not answer, which
    /// is a failure of this node; a wrong token is no reason to give up all nodes.
    ///
    /// # Errors
    /// A node does not.
    pub(super) async fn check(&self, nodes: &[Label], is_resumed: bool) -> Result<(), CliError> {
        let answers = join_all(nodes.iter().map(|node| self.instances(node))).await;
        for (node, answer) in nodes.iter().zip(answers) {
            match answer {
                Ok(_) => {}
                Err(error) if is_resumed && is_unreachable(&error) => {}
                Err(error) => {
                    return Err(CliError {
                        message: format!("{node}: {}", error.message),
                        ..error
                    });
                }
            }
        }
        Ok(())
    }

    /// Looks at the mesh. A meshd that restarts is waited for.
    ///
    /// # Errors
    /// This node's meshd does not answer.
    pub(super) async fn look(&self, look: &Look) -> Result<View, CliError> {
        let end = Instant::now() + RESTART_TIMEOUT;
        let mesh = loop {
            match mesh(&self.local).await {
                Ok(mesh) => break mesh,
                Err(error) if Instant::now() >= end => return Err(error),
                Err(_) => sleep(RETRY_INTERVAL).await,
            }
        };
        let answers = join_all(look.nodes.iter().map(|node| self.instances(node))).await;
        let answers: BTreeMap<&Label, Result<OwnInstances, CliError>> =
            look.nodes.iter().zip(answers).collect();
        let resolvers = match look.expect {
            None => BTreeMap::new(),
            Some(expect) => {
                let instances = self.instances_of(&mesh, &answers, expect);
                self.resolvers(&mesh, &instances, expect).await
            }
        };
        let own = answers.into_iter().map(|(node, answer)| {
            let own = match answer {
                Ok(own) => Own::of(&own),
                Err(error) => Own::Away(error.message),
            };
            (node.clone(), own)
        });
        Ok(View {
            usable: self.usable(&mesh),
            own: own.collect(),
            resolvers,
        })
    }

    /// Drains the service on `nodes`.
    pub(super) async fn drain(&self, nodes: &[Label]) -> BTreeMap<Label, Drain> {
        let results = join_all(nodes.iter().map(|node| self.drain_one(node))).await;
        nodes.iter().cloned().zip(results).collect()
    }

    async fn drain_one(&self, node: &Label) -> Drain {
        let (changed, is_repeated) = match self.change(node, "drain").await {
            Ok(changed) => changed,
            Err(error) => return Drain::Failed(error.message),
        };
        // If the call was repeated, the one before may have drained the node.
        if changed.change == Some(ServiceChange::Unchanged) && !is_repeated {
            return Drain::Before;
        }
        if changed.published {
            return Drain::Done;
        }
        let why = "the coordinator is not reachable from there, so the other nodes would not know";
        Drain::Failed(why.to_owned())
    }

    /// Publishes the service on `nodes`.
    pub(super) async fn publish(&self, nodes: &[Label]) -> Results {
        let results = join_all(nodes.iter().map(|node| self.publish_one(node))).await;
        nodes.iter().cloned().zip(results).collect()
    }

    async fn publish_one(&self, node: &Label) -> Result<(), String> {
        match self.change(node, "undrain").await {
            Ok(_) => Ok(()),
            // Nothing of the service is left on the node, not even the mark that it is drained.
            Err(error) if error.code == ErrorCode::NotFound.exit_code() => Ok(()),
            Err(error) => Err(error.message),
        }
    }

    /// Drains or undrains a node. Also returns whether the call had to be repeated: meshd may restart there, or the path to it may
    /// be replaced.
    async fn change(&self, node: &Label, verb: &str) -> Result<(ServiceChanged, bool), CliError> {
        let client = self.client(node)?;
        let path = format!("/v1/services/{}/{verb}", self.service);
        let end = Instant::now() + REPEAT_TIMEOUT;
        let mut is_repeated = false;
        loop {
            let changed: Result<ServiceChanged, CliError> =
                client.post(&path, &serde_json::json!({})).await;
            match changed {
                Ok(changed) => return Ok((changed, is_repeated)),
                Err(error) if !is_unreachable(&error) || Instant::now() >= end => {
                    return Err(error);
                }
                Err(_) => is_repeated = true,
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    /// Reserves the service on `nodes` for the rollout `holder`. Of two rollouts that begin at the same moment, the one that is the first
    /// at the first node has all of them. A node that does not answer is left out.
    ///
    /// # Errors
    /// Another rollout has reserved it, or a node does not permit the call. Nothing is reserved then.
    pub(super) async fn reserve(&self, nodes: &[Label], holder: &str) -> Result<(), CliError> {
        let (first, others) = nodes.split_at(nodes.len().min(1));
        for group in [first, others] {
            let calls = group
                .iter()
                .map(|node| self.reserve_for(node, holder, RESERVE_TIME));
            let answers = join_all(calls).await;
            for (node, answer) in group.iter().zip(answers) {
                match answer {
                    Ok(_) => {}
                    Err(error) if is_unreachable(&error) => {}
                    Err(error) => {
                        self.release(nodes, holder).await;
                        return Err(CliError {
                            message: format!("{node}: {}", error.message),
                            ..error
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Renews the reservations until the future is dropped.
    pub(super) async fn keep_reserved(&self, nodes: &[Label], holder: &str) -> Infallible {
        loop {
            sleep(RENEW_INTERVAL).await;
            // A node that cannot be asked now is asked again, and one that another rollout took after its meshd had restarted refuses
            // to be drained twice.
            let calls = nodes
                .iter()
                .map(|node| self.reserve_for(node, holder, RESERVE_TIME));
            join_all(calls).await;
        }
    }

    /// Ends the reservations. Those of nodes that do not answer end by themselves.
    pub(super) async fn release(&self, nodes: &[Label], holder: &str) {
        let calls = nodes
            .iter()
            .map(|node| self.reserve_for(node, holder, Duration::ZERO));
        let _ = timeout(RELEASE_TIMEOUT, join_all(calls)).await;
    }

    async fn reserve_for(
        &self,
        node: &Label,
        holder: &str,
        time: Duration,
    ) -> Result<Reserved, CliError> {
        let path = format!("/v1/services/{}/reserve", self.service);
        let request = Reserve {
            holder: holder.to_owned(),
            seconds: time.as_secs(),
        };
        self.client(node)?.post(&path, &request).await
    }

    async fn instances(&self, node: &Label) -> Result<OwnInstances, CliError> {
        let path = format!("/v1/services/{}/instances", self.service);
        self.client(node)?.get(&path).await
    }

    fn client(&self, node: &Label) -> Result<&Client, CliError> {
        let client = self.nodes.get(node);
        client.ok_or_else(|| {
            let text = "it is not a node of this mesh any more; `meshctl status` shows the nodes";
            CliError::new(ErrorCode::Unreachable, text)
        })
    }

    fn rows<'a>(&self, mesh: &'a Mesh) -> impl Iterator<Item = &'a ServiceRow> {
        let service = self.service.clone();
        let rows = mesh.services.iter();
        rows.filter(move |row| row.name == service.name && row.project == service.project)
    }

    fn usable(&self, mesh: &Mesh) -> BTreeSet<Label> {
        let instances = self.rows(mesh).flat_map(|row| &row.instances);
        instances
            .filter(|instance| instance.reachable && instance.health.is_usable())
            .map(|instance| instance.node.clone())
            .collect()
    }

    /// The instances for which the DNS of all nodes is queried.
    fn instances_of(
        &self,
        mesh: &Mesh,
        answers: &BTreeMap<&Label, Result<OwnInstances, CliError>>,
        expect: Expect,
    ) -> BTreeSet<(Label, ServiceName)> {
        let own = answers.values().flatten().flat_map(|own| &own.instances);
        let own = own
            .filter(|instance| expect == Expect::Drained || instance.health.is_usable())
            .map(|instance| instance.id.clone());
        // A drained instance may be gone on its node, and not yet elsewhere.
        let rows = self.rows(mesh).flat_map(|row| &row.instances);
        let known = rows
            .filter(|row| expect == Expect::Drained && answers.contains_key(&row.node))
            .map(|row| row.id.clone());
        own.chain(known)
            .map(|id| (id, self.service.clone()))
            .collect()
    }

    async fn resolvers(
        &self,
        mesh: &Mesh,
        instances: &BTreeSet<(Label, ServiceName)>,
        expect: Expect,
    ) -> BTreeMap<Label, Resolver> {
        let reached = mesh.status.peers.iter();
        let reached = reached
            .filter(|peer| peer.state != PeerState::Unreachable)
            .map(|peer| (&peer.name, peer.address_v4));
        let all: Vec<(&Label, Ipv4Addr)> = reached
            .chain([(&mesh.node.name, mesh.node.address_v4)])
            .collect();
        let queries = all
            .iter()
            .map(|(_, address)| query_node(*address, instances, &self.domain, expect));
        let states = join_all(queries).await;
        let names = all.iter().map(|(name, _)| (*name).clone());
        names.zip(states).collect()
    }
}

fn token_file<'a>(globals: &'a Globals, node: &Label) -> Result<&'a Path, CliError> {
    globals.api_token_file.as_deref().ok_or_else(|| {
        let text = format!(
            "the API of {node} needs a token; make one with `meshctl api-token create --name rollout --scope drain`, and name its file with --api-token-file"
        );
        CliError::new(ErrorCode::BadRequest, text)
    })
}

/// The API of a node, at its address in the mesh. None if it is not in the mesh.
fn url_of(mesh: &Mesh, node: &Label) -> Option<ApiUrl> {
    let peers = &mesh.status.peers;
    let peer = peers.iter().find(|peer| peer.name == *node)?;
    Some(ApiUrl::Node {
        host: peer.address_v4.to_string(),
        port: PORT,
    })
}

/// Whether a call did not arrive, or its answer was lost.
fn is_unreachable(error: &CliError) -> bool {
    error.code == ErrorCode::Unreachable.exit_code()
}
