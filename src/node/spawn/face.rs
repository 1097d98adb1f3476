//! The calls `/v1/spawn` of the API over the network. A thin shell: each call is one of [`Spawner`].

use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde::Serialize;

use super::failed::Failed;
use super::spawner::{Call, Spawner};
use crate::os::audit::Who;
use crate::os::unix_server;
use crate::os::web::LongAnswer;
use crate::protocol::api_token::ApiCaller;
use crate::protocol::spawn::{Spawned, SpawnedContainer, SpawnedList};
use crate::spawn::{Entry, Refused};

type Api = State<Option<Spawner>>;
type By = Extension<Who>;
type Caller = Extension<ApiCaller>;

/// The handlers of the calls. The check of the API found out who calls. A node without templates refuses each of them.
pub(in crate::node) fn router(spawner: Option<Spawner>) -> Router {
    Router::new()
        .route("/v1/spawn", get(list).post(spawn))
        .route("/v1/spawn/{id}", get(show).delete(remove))
        .with_state(spawner)
}

async fn spawn(
    api: Api,
    by: By,
    caller: Caller,
    long: Option<Extension<LongAnswer>>,
    body: Bytes,
) -> Response {
    // The image may have to be downloaded.
    if let Some(Extension(long)) = long {
        long.set();
    }
    let (spawner, call) = match opened(api, by, caller) {
        Ok(opened) => opened,
        Err(failed) => return failure(failed),
    };
    let spawned = async {
        let entry = spawner.spawn(&call, &body).await?;
        described(&spawner, entry).await
    };
    answer(spawned.await)
}

async fn list(api: Api, by: By, caller: Caller) -> Response {
    let owned = opened(api, by, caller).and_then(|(spawner, call)| spawner.owned(&call));
    let list = owned.map(|entries| SpawnedList {
        schema: 1,
        containers: entries.into_iter().map(container).collect(),
    });
    answer(list)
}

async fn show(api: Api, by: By, caller: Caller, UrlPath(id): UrlPath<String>) -> Response {
    let (spawner, call) = match opened(api, by, caller) {
        Ok(opened) => opened,
        Err(failed) => return failure(failed),
    };
    let shown = async { described(&spawner, spawner.find(&call, &id)?).await };
    answer(shown.await)
}

async fn remove(api: Api, by: By, caller: Caller, UrlPath(id): UrlPath<String>) -> Response {
    let (spawner, call) = match opened(api, by, caller) {
        Ok(opened) => opened,
        Err(failed) => return failure(failed),
    };
    let removed = spawner.remove(&call, &id).await;
    let removed = removed.map(|entry| spawned(entry, "removed", None));
    answer(removed)
}

fn answer<T: Serialize>(result: Result<T, Failed>) -> Response {
    match result {
        Ok(document) => Json(document).into_response(),
        Err(failed) => failure(failed),
    }
}

fn failure(failed: Failed) -> Response {
    unix_server::failure(failed.into())
}

/// The spawned containers of this node, for a caller that may use a template.
fn opened(
    State(spawner): Api,
    Extension(by): By,
    Extension(caller): Caller,
) -> Result<(Spawner, Call), Failed> {
    let call = Call { by, caller };
    let spawner = spawner.ok_or_else(|| {
        let subject = call.caller.subject.as_ref();
        Refused::NoTemplate(subject.map(ToString::to_string))
    })?;
    spawner.granted(&call)?;
    Ok((spawner, call))
}

/// A container with its state, as the engine has it.
async fn described(spawner: &Spawner, entry: Entry) -> Result<Spawned, Failed> {
    let described = match &entry.container {
        Some(container) => spawner.engine().inspect(container).await?,
        None => None,
    };
    // A container that was to be removed at its end may be gone already.
    Ok(match described {
        Some(described) => {
            let state = &described.state;
            let has_ended = !state.running && state.status != "created";
            let code = has_ended.then_some(state.exit_code);
            spawned(entry, &state.status, code)
        }
        None => spawned(entry, "removed", None),
    })
}

fn spawned(entry: Entry, state: &str, exit_code: Option<i64>) -> Spawned {
    Spawned {
        schema: 1,
        container: container(entry),
        state: state.to_owned(),
        exit_code,
    }
}

fn container(entry: Entry) -> SpawnedContainer {
    SpawnedContainer {
        id: entry.id.to_string(),
        name: entry.name,
        template: entry.template,
        image: entry.image,
        container: entry.container,
        created_at: entry.created_at,
        expires_at: entry.expires_at,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;

    use super::*;

    #[tokio::test]
    async fn the_answer_to_a_new_container_may_take_as_long_as_the_download_of_its_image() {
        let mark = LongAnswer::default();
        let router = TowerToHyperService::new(router(None));
        for (method, is_long) in [("GET", false), ("POST", true)] {
            let request = axum::http::Request::builder()
                .method(method)
                .uri("/v1/spawn")
                .extension(Who::Daemon)
                .extension(ApiCaller {
                    token: None,
                    subject: None,
                })
                .extension(mark.clone())
                .body(Body::empty());
            let answer = router.call(request.expect("a valid request")).await;
            let status = answer.expect("it never fails").status().as_u16();
            assert_eq!((status, mark.is_set()), (403, is_long), "{method}");
        }
    }
}
