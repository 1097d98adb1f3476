//! Docker's API for callers of the mesh, at the addresses of meshd's own API: the docker command line and the libraries for Docker create
//! containers by the templates of `[[spawn]]`, and follow, enter and remove those that they created.
//!
//! A request goes this way:
//!
//! | file | what it does |
//! |---|---|
//! | `routes` | finds the call by method and path; other paths of Docker are refused with their name |
//! | `query` | reads the parameters and filters |
//! | `calls` | the calls about containers |
//! | `commands` | the calls about commands in containers |
//! | `prepared` | how many commands wait to be started |
//! | `images` | the calls about images |
//! | `events` | the events of the caller's containers |
//! | `streams` | output and attached containers: buffers of a fixed size, and how many a caller may have |
//! | `permission` | ends streams whose caller may not have them any more |
//! | `documents` | writes what the caller gets to see |
//! | `answer` | the answers, and failures in Docker's form |
//!
//! Nothing of a request reaches the engine unread: paths, queries and bodies are written anew from parsed values. Of the engine's answers,
//! only listed fields reach the caller. A container of anybody else does not exist for the caller.
//!
//! The docker command line cannot be given a path, so the calls are also found without the prefix `/docker`. Their paths are none of
//! meshd's own API.

mod answer;
mod calls;
mod commands;
mod documents;
mod events;
mod images;
mod permission;
mod prepared;
mod query;
mod routes;
mod streams;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::UPGRADE;
use axum::http::request::Parts;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Extension, Router};
use hyper::upgrade::OnUpgrade;

use self::answer::Failure;
use self::documents::{Program, Shown};
use self::permission::Lost;
use self::prepared::Prepared;
use self::query::Query;
use self::routes::{Route, is_docker, route};
pub(super) use self::streams::LIFETIME;
use self::streams::{MAX_OF_CALLER, StreamPlace, Streams, body_of_switched, connect};
use super::spawn::{Call, Spawner};
use crate::containers::control::{EngineControl, SwitchedStream};
use crate::model::ContainerId;
use crate::os::tasks::Tasks;
use crate::os::web::{Guard, Knowledge, LongAnswer, Source};
use crate::protocol::web::MAX_BODY;
use crate::spawn::Entry;

/// The program that answers.
const PROGRAM: Program = Program {
    version: env!("CARGO_PKG_VERSION"),
    architecture: std::env::consts::ARCH,
};

/// The face of Docker's API. A clone shares the limits.
#[derive(Clone)]
pub(super) struct Face<K> {
    guard: Guard<K>,
    spawner: Spawner,
    streams: Streams,
    prepared: Prepared,
}

impl<K: Knowledge> Face<K> {
    /// A face before the containers of `spawner`. `guard` checks each call.
    pub(super) fn new(guard: Guard<K>, spawner: Spawner) -> Self {
        Self {
            guard,
            spawner,
            streams: Streams::default(),
            prepared: Prepared::default(),
        }
    }
}

/// Returns `router` with the face, if there is one, for the paths of Docker.
pub(super) fn beside<K: Knowledge>(router: Router, face: Option<Face<K>>) -> Router {
    match face {
        Some(face) => router.layer(middleware::from_fn_with_state(face, divert::<K>)),
        None => router,
    }
}

async fn divert<K: Knowledge>(
    State(face): State<Face<K>>,
    Extension(Source(source)): Extension<Source>,
    Extension(long): Extension<LongAnswer>,
    request: Request,
    next: Next,
) -> Response {
    if !is_docker(request.uri().path()) {
        return next.run(request).await;
    }
    let is_head = request.method() == "HEAD";
    let answered = respond(&face, source, long, request).await;
    let mut response = answered.unwrap_or_else(Failure::into_response);
    if is_head {
        *response.body_mut() = Body::empty();
    }
    response
}

async fn respond<K: Knowledge>(
    face: &Face<K>,
    source: IpAddr,
    long: LongAnswer,
    request: Request,
) -> Result<Response, Failure> {
    let (mut parts, body) = request.into_parts();
    let asked = format!("{} {}", parts.method, parts.uri.path());
    let checked = face.guard.check_spawn(&asked, source, &parts.headers);
    let (by, caller) = checked.await?;
    let call = Call { by, caller };
    face.spawner.granted(&call)?;
    let route = route(parts.method.as_str(), parts.uri.path())?;
    let upgrade = upgrade_of(&mut parts);
    let lost = lost_of(face, &call, source, &parts.headers);
    let body = to_bytes(body, MAX_BODY).await;
    let too_long = |_| {
        Failure::bad_request("the body of the request is too long or broken; 64 KiB are the most")
    };
    let asked = Asked {
        spawner: face.spawner.clone(),
        prepared: face.prepared.clone(),
        call,
        query: parts.uri.query().map(str::to_owned),
        body: body.map_err(too_long)?,
        connection: Connection {
            streams: face.streams.clone(),
            source,
            long,
            lost,
            upgrade,
        },
    };
    dispatch(asked, route).await
}

/// What makes the check of a stream of the caller.
fn lost_of<K: Knowledge>(
    face: &Face<K>,
    call: &Call,
    source: IpAddr,
    headers: &HeaderMap,
) -> Arc<dyn Fn() -> Lost + Send + Sync> {
    let (face, call) = (face.clone(), call.clone());
    let proof = permission::proof_of(headers);
    Arc::new(move || -> Lost {
        let lost = permission::lost(face.clone(), call.clone(), source, proof.clone());
        Box::pin(lost)
    })
}

async fn dispatch(asked: Asked, route: Route) -> Result<Response, Failure> {
    match route {
        Route::Ping => Ok(answer::pong()),
        Route::Version => Ok(answer::json(&documents::version(PROGRAM))),
        Route::Info => calls::info(&asked).await,
        Route::Events => events::follow(asked).await,
        Route::Containers => calls::list(&asked).await,
        Route::Create => calls::create(&asked).await,
        Route::Container(action, name) => calls::container(asked, action, &name).await,
        Route::ExecStart(id) => commands::start(asked, &id).await,
        Route::ExecInspect(id) => commands::inspect(&asked, &id).await,
        Route::Images => images::list(&asked).await,
        Route::Image(name) => images::inspect(&asked, &name).await,
        Route::Pull => images::pull(asked).await,
    }
}

/// A request whose caller may make it.
struct Asked {
    spawner: Spawner,
    prepared: Prepared,
    call: Call,
    query: Option<String>,
    body: Bytes,
    connection: Connection,
}

/// The connection of a request.
struct Connection {
    streams: Streams,
    source: IpAddr,
    long: LongAnswer,
    /// Returns what ends when the caller may not make this call any more.
    lost: Arc<dyn Fn() -> Lost + Send + Sync>,
    /// The connection after the answer, if the caller asked for one that carries bytes in both directions.
    upgrade: Option<OnUpgrade>,
}

impl Asked {
    fn engine(&self) -> &EngineControl {
        self.spawner.engine()
    }

    fn query(&self, known: &[&'static str]) -> Result<Query, Failure> {
        Ok(Query::parse(self.query.as_deref(), known)?)
    }

    /// The container of the caller with this name or id.
    fn own(&self, name: &str) -> Result<(Entry, ContainerId), Failure> {
        let entry = self.spawner.find(&self.call, name)?;
        let id = entry.container.clone();
        // A container that is being created cannot be used yet.
        let missing = || {
            Failure::not_found(format!(
                "the container {} is not created yet; try again",
                entry.id
            ))
        };
        let id = id.ok_or_else(missing)?;
        Ok((entry, id))
    }

    /// The container of the caller with this id. A name does not count: a caller may give its container the id of another one as its name.
    fn holds(&self, id: &ContainerId) -> Option<Entry> {
        holds(&self.spawner, &self.call, id)
    }

    /// A place for a stream of the caller's container `entry`, whose answer may take long.
    fn stream_of(&self, entry: &Entry) -> Result<StreamPlace, Failure> {
        self.stream_within(Some(permission::left_of(entry)))
    }

    /// A place for a stream of no container, whose answer may take long.
    fn stream(&self) -> Result<StreamPlace, Failure> {
        self.stream_within(None)
    }

    fn stream_within(&self, left: Option<Duration>) -> Result<StreamPlace, Failure> {
        let Connection {
            streams,
            source,
            long,
            lost,
            ..
        } = &self.connection;
        let place = streams.take(*source);
        let place = place.ok_or_else(|| Failure::too_many_streams(MAX_OF_CALLER))?;
        long.set();
        let watch = permission::watch(lost(), left, long.clone());
        let watch = Tasks::current().spawn_child("permission of a stream", watch);
        Ok(place.watched(watch.abort_on_drop()))
    }
}

impl Connection {
    /// Passes on what the engine sends on an attached stream, and what the caller sends if its connection carries bytes in both directions.
    fn attach(self, engine: SwitchedStream, place: StreamPlace) -> Response {
        let kind = engine.content_type.clone();
        match self.upgrade {
            Some(caller) => {
                connect(caller, engine, place, self.long);
                answer::upgraded(kind.as_deref())
            }
            // Such a caller only reads.
            None => answer::output(kind.as_deref(), body_of_switched(engine, place)),
        }
    }
}

/// The container with this id, if it is one of the caller.
fn holds(spawner: &Spawner, call: &Call, id: &ContainerId) -> Option<Entry> {
    let found = spawner.find(call, id.as_str()).ok();
    found.filter(|entry| entry.container.as_ref() == Some(id))
}

/// A container as its caller knows it.
fn shown(entry: &Entry) -> Shown {
    Shown {
        name: entry.shown().to_owned(),
        image: entry.image.clone(),
    }
}

/// The connection after the answer, if the request asks for one.
fn upgrade_of(parts: &mut Parts) -> Option<OnUpgrade> {
    let on_upgrade = parts.extensions.remove::<OnUpgrade>();
    on_upgrade.filter(|_| asks_for_tcp(&parts.headers))
}

fn asks_for_tcp(headers: &HeaderMap) -> bool {
    let protocol = headers.get(UPGRADE).map(|value| value.as_bytes());
    protocol.is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"tcp"))
}

#[cfg(test)]
mod tests;
