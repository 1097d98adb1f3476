//! Which request is which call of Docker's API. Pure.
//!
//! The table has the calls that exist. Every other path of Docker is refused with its name, so that nothing of a later engine is
//! reachable by accident. Where a path names a container, any text may stand there: it is looked up among the containers of the
//! caller, and never sent to the engine.

use crate::containers::control::ExecId;
use crate::model::percent::decoded;

/// The oldest and the newest minor version of the API 1.x that a path may name.
pub(super) const OLDEST_MINOR: u16 = 24;
pub(super) const NEWEST_MINOR: u16 = 51;
/// The first segment of all paths for clients that can be given a path, and need no other.
const PREFIX: &str = "docker";
/// The first segments of paths without a version. None of them is the first segment of a path of meshd's own API.
const UNVERSIONED: [&str; 7] = [
    "_ping",
    "containers",
    "events",
    "exec",
    "images",
    "info",
    "version",
];
/// The maximum length of the name of a container or an image, in bytes.
const MAX_NAME: usize = 512;

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Ping,
    Version,
    Info,
    Events,
    Containers,
    Create,
    /// What to do with the container of this name or id.
    Container(Action, String),
    ExecStart(ExecId),
    ExecInspect(ExecId),
    Images,
    Image(String),
    Pull,
}

/// What to do with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Inspect,
    Start,
    Stop,
    Kill,
    Wait,
    Logs,
    Attach,
    Archive,
    Exec,
    Remove,
}

/// Why a request is no call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoRoute {
    /// The client speaks another version.
    #[error(
        "meshd speaks the versions 1.{OLDEST_MINOR} to 1.{NEWEST_MINOR} of Docker's API, and not {0}; set DOCKER_API_VERSION=1.{NEWEST_MINOR}"
    )]
    Version(String),
    /// The call is none of the table.
    #[error(
        "meshd does not permit {0}; it permits to create, start, stop, kill, remove, list, inspect, follow and attach to the containers that the caller created, to run commands in them and to copy from them"
    )]
    NotPermitted(String),
}

impl NoRoute {
    /// The HTTP status of the answer.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Version(_) => 400,
            Self::NotPermitted(_) => 403,
        }
    }
}

/// Whether a path is one of Docker's API, and not of meshd's own.
pub(super) fn is_docker(path: &str) -> bool {
    let first = first_segment(path).0;
    first == PREFIX || minor_of(first).is_some() || UNVERSIONED.contains(&first)
}

/// The call of a request.
pub(super) fn route(method: &str, path: &str) -> Result<Route, NoRoute> {
    let (first, rest) = first_segment(path);
    let path = if first == PREFIX { rest } else { path };
    let (first, rest) = first_segment(path);
    let below = match minor_of(first) {
        None => path,
        Some(minor) if is_known(minor) => rest,
        Some(_) => return Err(NoRoute::Version(first.chars().take(16).collect())),
    };
    let not_permitted = || {
        let below: String = below.chars().take(MAX_NAME).collect();
        NoRoute::NotPermitted(format!("{method} {below}"))
    };
    // Only reading is safe to ask for without the body.
    let method = if method == "HEAD" && below == "/_ping" {
        "GET"
    } else {
        method
    };
    find(method, below).ok_or_else(not_permitted)
}

fn find(method: &str, path: &str) -> Option<Route> {
    let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    let route = match (method, segments.as_slice()) {
        ("GET", ["_ping"]) => Route::Ping,
        ("GET", ["version"]) => Route::Version,
        ("GET", ["info"]) => Route::Info,
        ("GET", ["events"]) => Route::Events,
        ("GET", ["containers", "json"]) => Route::Containers,
        ("POST", ["containers", "create"]) => Route::Create,
        ("DELETE", ["containers", name]) => Route::Container(Action::Remove, named(name)?),
        (_, ["containers", name, action]) => {
            Route::Container(action_of(method, action)?, named(name)?)
        }
        ("POST", ["exec", id, "start"]) => Route::ExecStart(ExecId::parse(id)?),
        ("GET", ["exec", id, "json"]) => Route::ExecInspect(ExecId::parse(id)?),
        ("GET", ["images", "json"]) => Route::Images,
        ("POST", ["images", "create"]) => Route::Pull,
        // The name of an image may have slashes.
        ("GET", ["images", name @ .., "json"]) => Route::Image(named(&name.join("/"))?),
        _ => return None,
    };
    Some(route)
}

fn action_of(method: &str, action: &str) -> Option<Action> {
    Some(match (method, action) {
        ("GET", "json") => Action::Inspect,
        ("GET", "logs") => Action::Logs,
        ("GET", "archive") => Action::Archive,
        ("POST", "start") => Action::Start,
        ("POST", "stop") => Action::Stop,
        ("POST", "kill") => Action::Kill,
        ("POST", "wait") => Action::Wait,
        ("POST", "attach") => Action::Attach,
        ("POST", "exec") => Action::Exec,
        _ => return None,
    })
}

/// The name in a path.
fn named(segment: &str) -> Option<String> {
    let is_short = (1..=MAX_NAME).contains(&segment.len());
    is_short.then(|| decoded(segment)).flatten()
}

/// Splits a path into its first segment and the rest, which begins with a slash or is empty.
fn first_segment(path: &str) -> (&str, &str) {
    let below = path.strip_prefix('/').unwrap_or(path);
    let end = below.find('/').unwrap_or(below.len());
    below.split_at(end)
}

/// The minor version that a segment such as `v1.43` names.
fn minor_of(segment: &str) -> Option<u16> {
    let minor = segment.strip_prefix("v1.")?;
    let is_number = minor.bytes().all(|c| c.is_ascii_digit());
    is_number.then(|| minor.parse().ok()).flatten()
}

fn is_known(minor: u16) -> bool {
    (OLDEST_MINOR..=NEWEST_MINOR).contains(&minor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXEC: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn each_call_is_found_with_a_version_without_one_and_below_the_prefix() {
        let of = |action| Route::Container(action, "x".to_owned());
        let exec = || ExecId::parse(EXEC).expect("hexadecimal digits");
        let start = format!("/exec/{EXEC}/start");
        let inspect = format!("/exec/{EXEC}/json");
        let calls = [
            ("GET", "/_ping", Route::Ping),
            ("HEAD", "/_ping", Route::Ping),
            ("GET", "/version", Route::Version),
            ("GET", "/info", Route::Info),
            ("GET", "/events", Route::Events),
            ("GET", "/containers/json", Route::Containers),
            ("POST", "/containers/create", Route::Create),
            ("DELETE", "/containers/x", of(Action::Remove)),
            ("GET", "/containers/x/json", of(Action::Inspect)),
            ("GET", "/containers/x/logs", of(Action::Logs)),
            ("GET", "/containers/x/archive", of(Action::Archive)),
            ("POST", "/containers/x/start", of(Action::Start)),
            ("POST", "/containers/x/stop", of(Action::Stop)),
            ("POST", "/containers/x/kill", of(Action::Kill)),
            ("POST", "/containers/x/wait", of(Action::Wait)),
            ("POST", "/containers/x/attach", of(Action::Attach)),
            ("POST", "/containers/x/exec", of(Action::Exec)),
            ("POST", start.as_str(), Route::ExecStart(exec())),
            ("GET", inspect.as_str(), Route::ExecInspect(exec())),
            ("GET", "/images/json", Route::Images),
            ("POST", "/images/create", Route::Pull),
            (
                "GET",
                "/images/r.example:5000/a/b:1/json",
                image("r.example:5000/a/b:1"),
            ),
            ("GET", "/images/a%2Fb/json", image("a/b")),
        ];
        for (method, path, expected) in calls {
            for before in ["", "/v1.24", "/v1.43", "/v1.51", "/docker", "/docker/v1.43"] {
                let path = format!("{before}{path}");
                assert!(is_docker(&path), "{path}");
                assert_eq!(
                    route(method, &path),
                    Ok(expected.clone()),
                    "{method} {path}"
                );
            }
        }
    }

    fn image(name: &str) -> Route {
        Route::Image(name.to_owned())
    }

    #[test]
    fn every_other_call_of_docker_is_refused_with_its_path() {
        for (method, path) in [
            ("POST", "/build"),
            ("POST", "/commit"),
            ("POST", "/auth"),
            ("POST", "/session"),
            ("GET", "/networks"),
            ("POST", "/networks/create"),
            ("POST", "/volumes/create"),
            ("GET", "/plugins"),
            ("POST", "/swarm/init"),
            ("POST", "/services/create"),
            ("GET", "/secrets"),
            ("GET", "/system/df"),
            ("POST", "/containers/prune"),
            ("PUT", "/containers/x/archive"),
            ("HEAD", "/containers/x/archive"),
            ("GET", "/containers/x/attach/ws"),
            ("GET", "/containers/x/export"),
            ("GET", "/containers/x/top"),
            ("GET", "/containers/x/changes"),
            ("POST", "/containers/x/update"),
            ("POST", "/containers/x/rename"),
            ("POST", "/containers/x/pause"),
            ("POST", "/containers/x/restart"),
            ("POST", "/containers/x/copy"),
            ("POST", "/containers//start"),
            ("GET", "/containers/x"),
            ("POST", "/exec/x/start"),
            ("POST", "/images/load"),
            ("POST", "/images/x/push"),
            ("DELETE", "/images/x"),
            ("GET", "/images/x/get"),
            ("GET", "/images//json"),
            ("POST", "/_ping"),
            ("GET", "/v1.43/version"),
            ("GET", "/docker/version"),
        ] {
            let path_below = format!("/v1.43{path}");
            let refused = route(method, &path_below).expect_err(path);
            assert_eq!(refused.status(), 403, "{method} {path}");
            let text = refused.to_string();
            let start = format!("meshd does not permit {method} {path}; ");
            assert!(text.starts_with(&start), "{text}");
        }
    }

    #[test]
    fn a_version_that_is_too_old_or_too_new_is_named() {
        for version in ["v1.23", "v1.52", "v1.0"] {
            let path = format!("/{version}/version");
            assert!(is_docker(&path));
            let refused = route("GET", &path);
            assert_eq!(refused, Err(NoRoute::Version(version.to_owned())));
        }
    }

    #[test]
    fn paths_of_the_own_api_are_none_of_docker() {
        for path in [
            "/",
            "",
            "/v1",
            "/v1/",
            "/v1/status",
            "/v1/spawn",
            "/v1./x",
            "/v2.0/x",
            "/v1.x/x",
            "/v1.99999/x",
            "/dockers",
            "/networks",
            "/index.html",
        ] {
            assert!(!is_docker(path), "{path}");
        }
        for call in crate::protocol::web::calls::OF_NODE {
            assert!(!is_docker(call.path), "{}", call.path);
        }
    }

    proptest! {
        #[test]
        fn no_path_ends_in_a_panic_and_a_name_is_what_the_path_has(path in "(/|docker|v1\\.43|containers|images|json|%2e|%|\\.\\.|[a-z]){0,12}") {
            let _ = is_docker(&path);
            for method in ["GET", "POST", "DELETE", "HEAD", "PUT"] {
                if let Ok(Route::Container(_, name) | Route::Image(name)) = route(method, &path) {
                    prop_assert!(!name.is_empty());
                }
            }
        }
    }
}
