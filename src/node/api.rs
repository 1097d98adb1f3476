//! The local API: HTTP over a Unix socket, for root, meshd's own user and the members of the socket's group.
//!
//! The handlers serve the API over the network too ([`super::web`]). This is a thin shell: it parses a request, sends a [`Command`] to
//! the agent, and writes the answer. A call that changes something is answered after its event is on disk.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::join_problem::JoinProblem;
use super::spawn::{self, Spawner};
use super::transitions::local::LocalChange;
use crate::discovery::sites::Site;
use crate::discovery::targets::Target;
use crate::model::PublicKey;
use crate::os::audit::{Audit, LocalCall, Who};
use crate::os::tasks::Tasks;
use crate::os::unix_server::failure;
use crate::os::web::Facts;
use crate::os::{unix_server, web};
use crate::page::paths::PathsBetween;
use crate::page::policy::PolicyFacts;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{
    AddService, Checkup, ContainerList, DeniedList, GuestKeys, GuestRemoved, Join, Joined,
    KeyRotated, Left, Netcheck, OwnInstances, Ping, Pong, Problem, RemoveGuest, RemoveService,
    Rename, Renamed, Reserve, Reserved, Resolve, Resolved, ServiceChanged, ServiceList, Status,
    SystemList, Why, WhyRequest,
};
use crate::protocol::web::openapi;
use crate::records::fingerprint::Fingerprint;
use crate::records::kinds::Guest;

/// The channel for an answer.
pub type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// A request of a caller to the agent.
#[derive(Debug)]
pub enum Command {
    /// Return the status.
    Status(Reply<Status>),
    /// Return all changes to the machine.
    System(Reply<SystemList>),
    /// Join a mesh.
    Join(Join, Reply<Joined>),
    /// Leave the mesh.
    Leave(Reply<Left>),
    /// Store the problem that prevents this node from joining with its token file.
    Unattended(JoinProblem),
    /// Store the addresses at which the API over the network is not served, as problems.
    ApiProblems(Vec<Problem>),
    /// Replace the key of the tunnel.
    RotateKey(Reply<KeyRotated>),
    /// Change the name of the node.
    Rename(Rename, Reply<Renamed>),
    /// Return all services of the mesh.
    Services(Reply<ServiceList>),
    /// Return the ports of all instances of the mesh as targets for Prometheus.
    Targets(Reply<Vec<Target>>),
    /// Return the host names of the mesh, with the servers behind them.
    Sites(Reply<Vec<Site>>),
    /// Return the exposed containers of this node.
    Containers(Reply<ContainerList>),
    /// Add a service of this node.
    AddService(AddService, Reply<ServiceChanged>),
    /// Remove a service of this node.
    RemoveService(RemoveService, Reply<ServiceChanged>),
    /// Return the instances of one service on this node.
    Instances(String, Reply<OwnInstances>),
    /// Drain or undrain a service.
    Drain(String, bool, Reply<ServiceChanged>),
    /// Reserve a service for a rollout.
    Reserve(String, Reserve, Reply<Reserved>),
    /// Measure one round trip to a peer.
    Ping(Ping, Reply<Pong>),
    /// Return what DNS answers.
    Resolve(Resolve, Reply<Resolved>),
    /// Return the facts for `meshctl doctor`.
    Checkup(Reply<Checkup>),
    /// Explain the path between two nodes.
    Why(WhyRequest, Reply<Why>),
    /// Return what is known of this node's connection to the network.
    Netcheck(Reply<Netcheck>),
    /// Ask the kernel which packets between addresses of this node it refused. The answer ends when they are among those to return.
    ReadDenials(Reply<oneshot::Receiver<()>>),
    /// Return what this node refused because of the policy.
    Denied(Reply<DeniedList>),
    /// Return the guests of the mesh.
    Guests(Reply<GuestKeys>),
    /// Remove a guest, as the administrator signed it.
    RemoveGuest(RemoveGuest, Reply<GuestRemoved>),
    /// Return why this node is not ready, if it is not.
    Ready(Reply<Option<String>>),
    /// Return the metrics as text.
    Metrics(Reply<String>),
    /// Return what is needed to serve the API over the network.
    Api(ApiQuery),
}

/// What the server of the API over the network asks the agent.
#[derive(Debug)]
pub enum ApiQuery {
    /// Return the addresses at which to listen.
    Addresses(Reply<Vec<IpAddr>>),
    /// Return the facts about a token with this id, if the caller shows one, and about a caller at this address.
    Facts(Option<PublicKey>, IpAddr, Reply<Facts>),
    /// Return the revision of the mesh that this node has received.
    Revision(Reply<u64>),
    /// Return the fingerprint of all records that this node has.
    Records(Reply<Fingerprint>),
    /// Return the paths between all nodes, and ask the nodes for theirs.
    Paths(Reply<PathsBetween>),
    /// Return what the page shows of the policy.
    Policy(Reply<PolicyFacts>),
}

/// What the calls need.
#[derive(Debug, Clone)]
pub struct LocalApi {
    /// The agent.
    pub commands: mpsc::Sender<Command>,
    /// The log of events.
    pub audit: Audit,
    /// The tasks that finish a call whose caller hangs up.
    pub tasks: Tasks,
    /// The containers that callers spawn over the network, if there are templates.
    pub(super) spawner: Option<Spawner>,
}

/// Serves requests until the listener fails or the agent ends. `discovery` has the handlers of the calls with which other programs
/// follow the services.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: UnixListener,
    path: &Path,
    api: LocalApi,
    discovery: Router,
) -> std::io::Result<()> {
    let router = shared()
        .route("/v1/join", post(join))
        .route("/v1/leave", post(leave))
        .route("/v1/rename", post(rename))
        .route("/v1/rotate-key", post(rotate_key))
        .route("/v1/containers", get(containers))
        .route("/v1/guests", get(guests))
        .route("/v1/guests/remove", post(remove_guest))
        .route("/v1/ping", post(ping))
        .route("/v1/checkup", get(checkup))
        .with_state(api);
    unix_server::serve(listener, path, router.merge(discovery)).await
}

/// The handlers of the calls over the network. They check no caller, so that has to be done before a request reaches them.
pub(super) fn over_network(api: LocalApi) -> Router {
    let spawning = spawn::router(api.spawner.clone());
    shared()
        .route("/v1/events", get(events))
        .route(
            openapi::PATH_OF_NODE,
            get(|| async { web::json(&openapi::of_node()) }),
        )
        .with_state(api)
        .merge(spawning)
}

/// The handlers of the calls that exist both on the socket and over the network.
fn shared() -> Router<LocalApi> {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/system", get(system))
        .route("/v1/services", get(services).post(add_service))
        .route("/v1/services/{name}", delete(remove_service))
        .route("/v1/services/{name}/{port}", delete(remove_port))
        .route(
            "/v1/services/{name}/{port}/{protocol}",
            delete(remove_protocol),
        )
        .route("/v1/services/{name}/drain", post(drain))
        .route("/v1/services/{name}/undrain", post(undrain))
        .route("/v1/services/{name}/instances", get(instances))
        .route("/v1/services/{name}/reserve", post(reserve))
        .route("/v1/resolve", post(resolve))
        .route("/v1/why", post(why))
        .route("/v1/netcheck", get(netcheck))
        .route("/v1/policy/denied", get(denied))
        .route("/v1/metrics", get(metrics))
}

type Agent = State<LocalApi>;
type By = Extension<Who>;

async fn status(agent: Agent) -> Response {
    call(agent, Command::Status).await
}

async fn system(agent: Agent) -> Response {
    call(agent, Command::System).await
}

async fn join(agent: Agent, by: By, body: axum::body::Bytes) -> Response {
    let call = |join: &Join| (LocalCall::Join, join.name.clone());
    change_with(agent, by, &body, call, Command::Join).await
}

async fn leave(agent: Agent, by: By) -> Response {
    change(agent, by, (LocalCall::Leave, None), Command::Leave).await
}

async fn rotate_key(agent: Agent, by: By) -> Response {
    change(agent, by, (LocalCall::RotateKey, None), Command::RotateKey).await
}

async fn rename(agent: Agent, by: By, body: axum::body::Bytes) -> Response {
    let call = |rename: &Rename| (LocalCall::Rename, Some(rename.name.clone()));
    change_with(agent, by, &body, call, Command::Rename).await
}

async fn services(agent: Agent) -> Response {
    call(agent, Command::Services).await
}

async fn add_service(agent: Agent, by: By, body: axum::body::Bytes) -> Response {
    let call = |add: &AddService| (LocalCall::AddService, Some(add.name.clone()));
    change_with(agent, by, &body, call, Command::AddService).await
}

async fn remove_service(agent: Agent, by: By, UrlPath(name): UrlPath<String>) -> Response {
    remove(agent, by, name, None, None).await
}

async fn remove_port(
    agent: Agent,
    by: By,
    UrlPath((name, port)): UrlPath<(String, String)>,
) -> Response {
    remove(agent, by, name, Some(port), None).await
}

async fn remove_protocol(
    agent: Agent,
    by: By,
    UrlPath((name, port, protocol)): UrlPath<(String, String, String)>,
) -> Response {
    remove(agent, by, name, Some(port), Some(protocol)).await
}

async fn remove(
    agent: Agent,
    by: By,
    name: String,
    port: Option<String>,
    protocol: Option<String>,
) -> Response {
    let call = (LocalCall::RemoveService, Some(name.clone()));
    let remove = RemoveService {
        name,
        port,
        protocol,
    };
    let command = |reply| Command::RemoveService(remove, reply);
    change(agent, by, call, command).await
}

async fn drain(agent: Agent, by: By, UrlPath(name): UrlPath<String>) -> Response {
    let call = (LocalCall::DrainService, Some(name.clone()));
    change(agent, by, call, |reply| Command::Drain(name, true, reply)).await
}

async fn undrain(agent: Agent, by: By, UrlPath(name): UrlPath<String>) -> Response {
    let call = (LocalCall::UndrainService, Some(name.clone()));
    change(agent, by, call, |reply| Command::Drain(name, false, reply)).await
}

async fn instances(agent: Agent, UrlPath(name): UrlPath<String>) -> Response {
    call(agent, |reply| Command::Instances(name, reply)).await
}

async fn reserve(
    agent: Agent,
    UrlPath(name): UrlPath<String>,
    body: axum::body::Bytes,
) -> Response {
    call_with(agent, &body, |request, reply| {
        Command::Reserve(name, request, reply)
    })
    .await
}

async fn containers(agent: Agent) -> Response {
    call(agent, Command::Containers).await
}

async fn guests(agent: Agent) -> Response {
    call(agent, Command::Guests).await
}

async fn remove_guest(agent: Agent, by: By, body: axum::body::Bytes) -> Response {
    let call = |remove: &RemoveGuest| {
        let key = remove.record.key();
        let guest = key.as_ref().and_then(Guest::removed_by);
        (LocalCall::RemoveGuest, guest.map(|guest| guest.to_string()))
    };
    change_with(agent, by, &body, call, Command::RemoveGuest).await
}

async fn ping(agent: Agent, body: axum::body::Bytes) -> Response {
    call_with(agent, &body, Command::Ping).await
}

async fn resolve(agent: Agent, body: axum::body::Bytes) -> Response {
    call_with(agent, &body, Command::Resolve).await
}

async fn checkup(agent: Agent) -> Response {
    call(agent, Command::Checkup).await
}

async fn why(agent: Agent, body: axum::body::Bytes) -> Response {
    call_with(agent, &body, Command::Why).await
}

async fn netcheck(agent: Agent) -> Response {
    call(agent, Command::Netcheck).await
}

async fn denied(State(agent): Agent) -> Response {
    if let Ok(read) = send(&agent.commands, Command::ReadDenials).await {
        // If the kernel does not answer in time, the list has what was read before.
        let _ = tokio::time::timeout(READ_TIMEOUT, read).await;
    }
    call(State(agent), Command::Denied).await
}

/// How long the kernel may take to return the packets that it refused.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

async fn metrics(State(agent): Agent) -> Response {
    match send(&agent.commands, Command::Metrics).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => failure(error),
    }
}

/// How long one stream of events lasts. It ends before its connection does.
pub(super) const EVENTS_LIFETIME: Duration = Duration::from_secs(50);

async fn events(State(agent): Agent, headers: HeaderMap) -> Response {
    // A node without a mesh says so, and opens no stream.
    if let Err(error) = revision(&agent.commands).await {
        return failure(error);
    }
    let commands = agent.commands;
    web::events(&headers, EVENTS_LIFETIME, move || {
        let commands = commands.clone();
        async move { revision(&commands).await.ok() }
    })
}

async fn revision(commands: &mpsc::Sender<Command>) -> Result<u64, ApiError> {
    send(commands, |reply| Command::Api(ApiQuery::Revision(reply))).await
}

/// The time limit of all commands. A join has its own limit, which is not longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) async fn send<T>(
    agent: &mpsc::Sender<Command>,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Result<T, ApiError> {
    let (reply, answer) = oneshot::channel();
    agent.send(command(reply)).await.map_err(|_| stopping())?;
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(stopping()),
        Err(_) => Err(ApiError::new(
            ErrorCode::Internal,
            "meshd did not answer in time; look at its log",
        )),
    }
}

fn stopping() -> ApiError {
    let text = "meshd is stopping; try again once it runs";
    ApiError::new(ErrorCode::Unreachable, text)
}

async fn call<T: Serialize>(
    State(agent): Agent,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Response {
    answer(send(&agent.commands, command).await)
}

pub(super) fn answer<T: Serialize>(result: Result<T, ApiError>) -> Response {
    match result {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => failure(error),
    }
}

/// A call that changes something, which is not answered before its event is on disk.
async fn change<T: Serialize + Send + 'static>(
    State(agent): Agent,
    Extension(by): By,
    (call, name): (LocalCall, Option<String>),
    command: impl FnOnce(Reply<T>) -> Command + Send + 'static,
) -> Response {
    let (done, ended) = oneshot::channel();
    let LocalApi {
        commands,
        audit,
        tasks,
        ..
    } = agent;
    // If the caller hangs up, this future is dropped, but the agent still carries out the change. So a task notes the event.
    tasks.spawn_child("a change by a caller", async move {
        let result = send(&commands, command).await;
        audit.note(&LocalChange {
            by: &by,
            call,
            of: name.as_deref(),
            result: result.as_ref().map(drop),
        });
        audit.flushed().await;
        // The caller may have hung up.
        let _ = done.send(result);
    });
    answer(ended.await.unwrap_or_else(|_| Err(stopping())))
}

async fn change_with<B: DeserializeOwned + Send + 'static, T: Serialize + Send + 'static>(
    agent: Agent,
    by: By,
    body: &[u8],
    call: impl FnOnce(&B) -> (LocalCall, Option<String>),
    command: impl FnOnce(B, Reply<T>) -> Command + Send + 'static,
) -> Response {
    match serde_json::from_slice(body) {
        Ok(body) => {
            let call = call(&body);
            change(agent, by, call, |reply| command(body, reply)).await
        }
        Err(error) => failure(ApiError::unreadable(&error)),
    }
}

async fn call_with<B: DeserializeOwned, T: Serialize>(
    agent: Agent,
    body: &[u8],
    command: impl FnOnce(B, Reply<T>) -> Command,
) -> Response {
    match serde_json::from_slice(body) {
        Ok(body) => call(agent, |reply| command(body, reply)).await,
        Err(error) => failure(ApiError::unreadable(&error)),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::protocol::api_token::{ApiCaller, Scope};
    use crate::protocol::web::calls::OF_NODE;

    #[tokio::test]
    async fn each_call_over_the_network_has_a_handler() {
        // Nobody receives the commands, so a handler that sends one answers that meshd is stopping.
        let (commands, _) = mpsc::channel(1);
        let api = LocalApi {
            commands,
            audit: Audit::none(),
            tasks: Tasks::new("test"),
            spawner: None,
        };
        let router = TowerToHyperService::new(over_network(api));
        for call in OF_NODE {
            let body = match call.body.map(|body| body.name) {
                Some("AddService") => r#"{"name":"web","port":80,"protocol":"tcp"}"#,
                Some("Resolve") => r#"{"name":"db.svc.mesh","type":"A"}"#,
                Some("WhyRequest") => r#"{"to":"web-1"}"#,
                Some("Reserve") => r#"{"holder":"one","seconds":60}"#,
                Some("SpawnRequest") => r#"{"template":"job","image":"alpine:3.20"}"#,
                Some(other) => panic!("{other} needs an example"),
                None => "",
            };
            let request = axum::http::Request::builder()
                .method(call.method)
                .uri(call.path.replace(['{', '}'], ""))
                .extension(Who::Daemon)
                .extension(ApiCaller {
                    token: None,
                    subject: None,
                })
                .body(Body::from(body));
            let answer = router.call(request.expect("a valid request")).await;
            let status = answer.expect("it never fails").status().as_u16();
            // A node without templates refuses calls about spawned containers.
            let expected = if call.scope == Scope::AnyTemplate {
                403
            } else {
                503
            };
            assert_eq!(status, expected, "{} {}", call.method, call.path);
        }
    }

    #[tokio::test]
    async fn a_change_of_a_caller_that_hangs_up_has_an_event() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (commands, mut received) = mpsc::channel(1);
        let api = LocalApi {
            commands,
            audit: Audit::open(directory.path()),
            tasks: Tasks::new("test"),
            spawner: None,
        };
        let by = Extension(Who::Daemon);
        let leave = (LocalCall::Leave, None);
        let answered = change(State(api), by, leave, Command::Leave);
        let hung_up = tokio::time::timeout(Duration::from_millis(50), answered).await;
        assert!(hung_up.is_err(), "the agent has not answered");
        let Some(Command::Leave(reply)) = received.recv().await else {
            panic!("it is another command");
        };
        let refused = ApiError::new(ErrorCode::Conflict, "not now");
        assert!(reply.send(Err(refused)).is_ok(), "a task waits for it");
        let path = directory.path().join("audit.jsonl");
        let has_event = || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            text.contains(
                r#""what":"local_call","object":{"call":"leave"},"result":"failed: not now""#,
            )
        };
        let noted = async {
            while !has_event() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let noted = tokio::time::timeout(Duration::from_secs(10), noted).await;
        noted.expect("the call has an event");
    }
}
