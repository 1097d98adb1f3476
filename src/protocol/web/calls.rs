//! The calls of the API over the network. A call that is not listed here does not exist for a caller with a token.

use crate::protocol::api_token::Scope;

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiCall {
    pub method: &'static str,
    /// The path. A segment in braces stands for any text without a slash.
    pub path: &'static str,
    /// The scope that a token needs.
    pub scope: Scope,
    /// What the call does, in one sentence.
    pub about: &'static str,
    /// The document in the request, if it has one.
    pub body: Option<Document>,
    pub answer: Answer,
}

/// The content of the answer to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A JSON document.
    Document(Document),
    /// Text.
    Text,
    /// A stream of events.
    Events,
}

/// A JSON document in a request or an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document {
    /// The name of its type.
    pub name: &'static str,
    /// Its JSON Schema, which a test holds to the type.
    pub schema: &'static str,
}

/// Declares a document with the schema in a file of the reference.
macro_rules! document {
    ($name:literal, $file:literal) => {
        Document {
            name: $name,
            schema: include_str!(concat!("../../../docs/reference/schemas/", $file, ".json")),
        }
    };
}

const ADD_SERVICE: Document = document!("AddService", "add-service");
const DENIED: Document = document!("DeniedList", "policy-denied");
const NETCHECK: Document = document!("Netcheck", "netcheck");
const NODES: Document = document!("NodeList", "nodes");
const OWN_INSTANCES: Document = document!("OwnInstances", "own-instances");
const POLICY_CHECK: Document = document!("PolicyCheck", "policy-check");
const POLICY_CHECK_REQUEST: Document = document!("PolicyCheckRequest", "policy-check-request");
const RESERVE: Document = document!("Reserve", "reserve");
const RESERVED: Document = document!("Reserved", "reserved");
const RESOLVE: Document = document!("Resolve", "resolve");
const RESOLVED: Document = document!("Resolved", "resolved");
const SERVICE_CHANGED: Document = document!("ServiceChanged", "service-changed");
const SERVICES: Document = document!("ServiceList", "services");
const SPAWN: Document = document!("SpawnRequest", "spawn-request");
const SPAWNED: Document = document!("Spawned", "spawned");
const SPAWNED_LIST: Document = document!("SpawnedList", "spawned-list");
const STATUS: Document = document!("Status", "status");
const SYSTEM: Document = document!("SystemList", "system");
const WHY: Document = document!("Why", "why");
const WHY_REQUEST: Document = document!("WhyRequest", "why-request");

/// The calls of a node.
pub const OF_NODE: &[ApiCall] = &[
    read(
        "/v1/status",
        Scope::StatusRead,
        STATUS,
        "Returns the state of the node, its peers and its problems.",
    ),
    read(
        "/v1/system",
        Scope::StatusRead,
        SYSTEM,
        "Lists all changes that meshd made to the machine.",
    ),
    read(
        "/v1/services",
        Scope::ServicesRead,
        SERVICES,
        "Lists the services of the mesh, with their instances.",
    ),
    ask(
        "/v1/resolve",
        Scope::ServicesRead,
        RESOLVE,
        RESOLVED,
        "Returns what DNS on this node answers, and why.",
    ),
    read(
        "/v1/netcheck",
        Scope::NodesRead,
        NETCHECK,
        "Returns what the node knows of its connection to the network.",
    ),
    ask(
        "/v1/why",
        Scope::NodesRead,
        WHY_REQUEST,
        WHY,
        "Explains which path leads to a node.",
    ),
    read(
        "/v1/policy/denied",
        Scope::PolicyRead,
        DENIED,
        "Lists what the node refused lately because of the policy.",
    ),
    text(
        "/v1/metrics",
        Scope::MetricsRead,
        "Returns the metrics in the text format of Prometheus.",
    ),
    events(
        "/v1/events",
        "Sends an event for each new revision of the mesh, as a stream.",
    ),
    ask(
        "/v1/services",
        Scope::ServicesWrite,
        ADD_SERVICE,
        SERVICE_CHANGED,
        "Adds a service of the node, or changes one.",
    ),
    remove("/v1/services/{name}", "Removes a service of the node."),
    remove(
        "/v1/services/{name}/{port}",
        "Removes one port of a service of the node.",
    ),
    remove(
        "/v1/services/{name}/{port}/{protocol}",
        "Removes one port and protocol of a service of the node.",
    ),
    drain(
        "/v1/services/{name}/drain",
        "Stops sending new clients to a service of the node.",
    ),
    drain(
        "/v1/services/{name}/undrain",
        "Sends clients to a service of the node again.",
    ),
    read(
        "/v1/services/{name}/instances",
        Scope::Drain,
        OWN_INSTANCES,
        "Lists the instances of a service on the node, with their health also while the service is drained.",
    ),
    ask(
        "/v1/services/{name}/reserve",
        Scope::Drain,
        RESERVE,
        RESERVED,
        "Reserves a service of the node for one rollout, so that another one is refused.",
    ),
    ask(
        "/v1/spawn",
        Scope::AnyTemplate,
        SPAWN,
        SPAWNED,
        "Creates a container from a template, and starts it.",
    ),
    read(
        "/v1/spawn",
        Scope::AnyTemplate,
        SPAWNED_LIST,
        "Lists the containers that the caller spawned.",
    ),
    read(
        "/v1/spawn/{id}",
        Scope::AnyTemplate,
        SPAWNED,
        "Returns a container that the caller spawned, with its state.",
    ),
    ApiCall {
        method: "DELETE",
        path: "/v1/spawn/{id}",
        scope: Scope::AnyTemplate,
        about: "Ends and removes a container that the caller spawned.",
        body: None,
        answer: Answer::Document(SPAWNED),
    },
];

/// The calls of a coordinator.
pub const OF_COORDINATOR: &[ApiCall] = &[
    read(
        "/v1/api/nodes",
        Scope::NodesRead,
        NODES,
        "Lists the nodes of the mesh, with when they were last seen.",
    ),
    read(
        "/v1/api/services",
        Scope::ServicesRead,
        SERVICES,
        "Lists the services of the mesh. An instance is reachable if its node is connected.",
    ),
    ask(
        "/v1/api/policy/check",
        Scope::PolicyCheck,
        POLICY_CHECK_REQUEST,
        POLICY_CHECK,
        "Checks a policy against the present mesh, and runs its tests. It does not come into force.",
    ),
    text(
        "/v1/api/metrics",
        Scope::MetricsRead,
        "Returns the metrics in the text format of Prometheus.",
    ),
    events(
        "/v1/api/events",
        "Sends an event for each new revision of the mesh, as a stream.",
    ),
];

const fn read(path: &'static str, scope: Scope, answer: Document, about: &'static str) -> ApiCall {
    ApiCall {
        method: "GET",
        path,
        scope,
        about,
        body: None,
        answer: Answer::Document(answer),
    }
}

const fn text(path: &'static str, scope: Scope, about: &'static str) -> ApiCall {
    ApiCall {
        method: "GET",
        path,
        scope,
        about,
        body: None,
        answer: Answer::Text,
    }
}

const fn events(path: &'static str, about: &'static str) -> ApiCall {
    ApiCall {
        method: "GET",
        path,
        scope: Scope::StatusRead,
        about,
        body: None,
        answer: Answer::Events,
    }
}

const fn ask(
    path: &'static str,
    scope: Scope,
    body: Document,
    answer: Document,
    about: &'static str,
) -> ApiCall {
    ApiCall {
        method: "POST",
        path,
        scope,
        about,
        body: Some(body),
        answer: Answer::Document(answer),
    }
}

const fn remove(path: &'static str, about: &'static str) -> ApiCall {
    ApiCall {
        method: "DELETE",
        path,
        scope: Scope::ServicesWrite,
        about,
        body: None,
        answer: Answer::Document(SERVICE_CHANGED),
    }
}

const fn drain(path: &'static str, about: &'static str) -> ApiCall {
    ApiCall {
        method: "POST",
        path,
        scope: Scope::Drain,
        about,
        body: None,
        answer: Answer::Document(SERVICE_CHANGED),
    }
}

/// The call that a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Call(&'static ApiCall),
    /// The path has other methods.
    OtherMethods(Vec<&'static str>),
    Nothing,
}

/// Returns the call among `calls` with this method and path.
#[must_use]
pub fn find(calls: &'static [ApiCall], method: &str, path: &str) -> Found {
    let mut at_path: Vec<&ApiCall> = calls.iter().filter(|call| call.is_at(path)).collect();
    // A path with fewer parameters comes first, as OpenAPI says and as the router does it.
    let fewest = at_path.iter().map(|call| call.parameters().count()).min();
    at_path.retain(|call| Some(call.parameters().count()) == fewest);
    if let Some(call) = at_path.iter().copied().find(|call| call.method == method) {
        return Found::Call(call);
    }
    if at_path.is_empty() {
        return Found::Nothing;
    }
    Found::OtherMethods(at_path.iter().map(|call| call.method).collect())
}

impl ApiCall {
    /// Whether `path` is a path of the call.
    fn is_at(&self, path: &str) -> bool {
        let mut own = self.path.split('/');
        let mut segments = path.split('/');
        loop {
            match (own.next(), segments.next()) {
                (None, None) => return true,
                (Some(own), Some(segment)) if matches(own, segment) => {}
                _ => return false,
            }
        }
    }

    /// The documents in the request and in the answer.
    pub fn documents(&self) -> impl Iterator<Item = Document> {
        let answer = match self.answer {
            Answer::Document(document) => Some(document),
            Answer::Text | Answer::Events => None,
        };
        self.body.into_iter().chain(answer)
    }

    /// The names of the segments in braces.
    pub fn parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(parameter)
    }
}

fn matches(own: &str, segment: &str) -> bool {
    own == segment || (parameter(own).is_some() && !segment.is_empty())
}

fn parameter(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope_of(method: &str, path: &str) -> Option<Scope> {
        match find(OF_NODE, method, path) {
            Found::Call(call) => Some(call.scope.clone()),
            _ => None,
        }
    }

    #[test]
    fn a_request_is_for_the_call_with_its_method_and_path() {
        assert_eq!(scope_of("GET", "/v1/services"), Some(Scope::ServicesRead));
        assert_eq!(scope_of("POST", "/v1/services"), Some(Scope::ServicesWrite));
        let name = "/v1/services/web.shop";
        assert_eq!(scope_of("DELETE", name), Some(Scope::ServicesWrite));
        let drain = format!("{name}/drain");
        assert_eq!(scope_of("POST", &drain), Some(Scope::Drain));
        let instances = format!("{name}/instances");
        assert_eq!(scope_of("GET", &instances), Some(Scope::Drain));
        let reserve = format!("{name}/reserve");
        assert_eq!(scope_of("POST", &reserve), Some(Scope::Drain));
        let port = format!("{name}/80");
        assert_eq!(scope_of("DELETE", &port), Some(Scope::ServicesWrite));
    }

    #[test]
    fn another_path_or_method_is_no_call() {
        for path in [
            "",
            "/",
            "/v1",
            "/v1/",
            "/v1/status/",
            "//v1/status",
            "/v1/services/",
            "/v1/services//drain",
            "/v1/join",
            "/v1/leave",
            "/v1/rotate-key",
            "/v1/rename",
            "/v1/records",
            "/v1/Status",
            "/v1/services/a/b/c/d",
            "/v1/status?x",
            "/v1/./status",
            "/v1/api/nodes",
        ] {
            for method in ["GET", "POST", "DELETE"] {
                assert_eq!(
                    find(OF_NODE, method, path),
                    Found::Nothing,
                    "{method} {path}"
                );
            }
        }
        let others = Found::OtherMethods(vec!["GET", "POST"]);
        assert_eq!(find(OF_NODE, "PUT", "/v1/services"), others);
        assert_eq!(find(OF_NODE, "get", "/v1/services"), others);
        // No service has a port `drain`.
        let drain = "/v1/services/web/drain";
        let others = Found::OtherMethods(vec!["POST"]);
        assert_eq!(find(OF_NODE, "DELETE", drain), others);
    }

    #[test]
    fn calls_of_a_coordinator_are_below_one_path_and_only_read() {
        for call in OF_COORDINATOR {
            assert!(
                call.path
                    .starts_with(crate::protocol::web::COORDINATOR_PREFIX)
            );
            let is_question = call.method == "POST" && call.scope == Scope::PolicyCheck;
            assert!(call.method == "GET" || is_question, "{}", call.path);
        }
    }

    #[test]
    fn a_call_that_changes_something_needs_a_scope_that_only_reads_nothing() {
        for call in OF_NODE {
            let writes = matches!(
                call.scope,
                Scope::ServicesWrite | Scope::Drain | Scope::AnyTemplate
            );
            let is_question = call.method == "POST" && call.body.is_some() && !writes;
            assert!(
                writes || call.method == "GET" || is_question,
                "{}",
                call.path
            );
        }
    }
}
