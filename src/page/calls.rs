//! The views, each with the scope that it needs. A view that is not listed here does not exist for a caller with a token.

use crate::protocol::api_token::Scope;
use crate::protocol::web::calls::{Answer, ApiCall};

/// The path of the page. All other paths of it begin with this one.
pub const PATH: &str = "/page";
/// The path of the stream of the changes, which the script follows.
pub const CHANGES: &str = "/page/view/changes";
/// It has the scope of the stream of events of the API.
const FOLLOW: ApiCall = view(
    CHANGES,
    Scope::StatusRead,
    "Sends an event for each change of what the page shows, as a stream.",
);

/// The views of a node.
pub const OF_NODE: &[ApiCall] = &[
    FOLLOW,
    view(
        "/page/view/nodes",
        Scope::NodesRead,
        "Shows the other nodes and the paths to them.",
    ),
    view(
        "/page/view/nodes/{filter}",
        Scope::NodesRead,
        "Shows some of the other nodes.",
    ),
    view(
        "/page/view/paths",
        Scope::NodesRead,
        "Shows the paths between all nodes.",
    ),
    view(
        "/page/view/paths/{filter}",
        Scope::NodesRead,
        "Shows some of the paths between all nodes.",
    ),
    view(
        "/page/view/why/{node}",
        Scope::NodesRead,
        "Explains which path leads to a node.",
    ),
    view(
        "/page/view/services",
        Scope::ServicesRead,
        "Shows the instances of all services.",
    ),
    view(
        "/page/view/services/{filter}",
        Scope::ServicesRead,
        "Shows some of the instances.",
    ),
    view(
        "/page/view/problems",
        Scope::StatusRead,
        "Shows the problems with their remedies.",
    ),
    view(
        "/page/view/policy",
        Scope::PolicyRead,
        "Shows the policy, its tests, and what it denied.",
    ),
    view(
        "/page/view/audit",
        Scope::AuditRead,
        "Shows the last events of the audit log.",
    ),
    view(
        "/page/view/history",
        Scope::MetricsRead,
        "Shows graphs of the last hour.",
    ),
];

/// The views of a coordinator.
pub const OF_COORDINATOR: &[ApiCall] = &[
    FOLLOW,
    view(
        "/page/view/nodes",
        Scope::NodesRead,
        "Shows the nodes of the mesh.",
    ),
    view(
        "/page/view/nodes/{filter}",
        Scope::NodesRead,
        "Shows some of the nodes.",
    ),
    view(
        "/page/view/services",
        Scope::ServicesRead,
        "Shows the instances of all services.",
    ),
    view(
        "/page/view/services/{filter}",
        Scope::ServicesRead,
        "Shows some of the instances.",
    ),
    view(
        "/page/view/problems",
        Scope::StatusRead,
        "Shows the problems with their remedies.",
    ),
    view(
        "/page/view/tokens",
        Scope::NodesRead,
        "Shows the join tokens and the revoked API tokens.",
    ),
    view(
        "/page/view/policy",
        Scope::PolicyRead,
        "Shows the policy and its tests.",
    ),
    view(
        "/page/view/audit",
        Scope::AuditRead,
        "Shows the last events of the audit log.",
    ),
    view(
        "/page/view/history",
        Scope::MetricsRead,
        "Shows graphs of the last hour.",
    ),
];

/// Whether a path is one of the page.
#[must_use]
pub fn is_at(path: &str) -> bool {
    path.strip_prefix(PATH)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

const fn view(path: &'static str, scope: Scope, about: &'static str) -> ApiCall {
    ApiCall {
        method: "GET",
        path,
        scope,
        about,
        body: None,
        answer: Answer::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_view_is_below_the_path_of_the_page_and_only_reads() {
        for call in OF_NODE.iter().chain(OF_COORDINATOR) {
            assert!(call.path.starts_with("/page/view/"), "{}", call.path);
            assert_eq!(call.method, "GET", "{}", call.path);
            assert!(call.scope.to_string().ends_with(":read"), "{}", call.path);
        }
    }

    #[test]
    fn the_paths_of_the_page_are_told_from_others_that_begin_like_it() {
        for own in ["/page", "/page/", "/page/style.css", "/page/view/nodes"] {
            assert!(is_at(own), "{own}");
        }
        for other in ["", "/", "/pages", "/page.html", "/v1/page", "page"] {
            assert!(!is_at(other), "{other}");
        }
    }
}
