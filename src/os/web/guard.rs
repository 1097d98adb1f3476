//! Checks each call over the network before its handler runs.
//!
//! A call passes if it is in the table of calls, its `Host` is one of this server, and it shows an API token (RFC 6750) that permits the
//! call at this server, at this time and for this caller. A handler finds the caller as [`Who`] in the extensions of the request. Cookies
//! and other credentials are ignored, so a page in a browser has no rights without a token of its own.
//!
//! A call about spawned containers ([`Scope::AnyTemplate`]) needs no token if the caller has a mesh address. Its handler finds the caller
//! as [`ApiCaller`] in the extensions too, and looks which templates are for it.

use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::Extension;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN};
use axum::middleware::{self, Next};
use axum::response::Response;

use super::answer::{failure, normalized, other_methods};
use super::limits::CallLimits;
use super::refused::CallRefused;
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey};
use crate::os::audit::{Audit, Who};
use crate::os::clock;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::api_token::{
    ApiCaller, ApiToken, Place, Scope, ShownToken, TokenRefused, permit,
};
use crate::protocol::web::calls::{ApiCall, Found, find};
use crate::protocol::web::{MAX_BODY, host};

/// The address of the caller. The listener puts it into the extensions of each request.
#[derive(Debug, Clone, Copy)]
pub struct Source(pub IpAddr);

/// The facts by which a server checks a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Where the call arrived, and from whom.
    pub place: Place,
    /// The domain of the mesh.
    pub domain: Label,
    /// The names of this server outside of the mesh.
    pub names: Vec<String>,
}

/// The part of a server that knows the facts.
pub trait Knowledge: Clone + Send + Sync + 'static {
    /// The facts about the token with the id `token`, if the caller shows one, and about a caller at `address`.
    fn facts(
        &self,
        token: Option<PublicKey>,
        address: IpAddr,
    ) -> impl Future<Output = Result<Facts, ApiError>> + Send;
}

/// The check before the handlers of a server. A clone shares the limits.
#[derive(Debug, Clone)]
pub struct Guard<K> {
    knowledge: K,
    calls: &'static [ApiCall],
    /// The path of the description of the API, which needs no token.
    description: &'static str,
    audit: Audit,
    limits: Arc<Mutex<CallLimits>>,
}

impl<K: Knowledge> Guard<K> {
    /// A guard for the handlers of `calls`.
    #[must_use]
    pub fn new(
        knowledge: K,
        calls: &'static [ApiCall],
        description: &'static str,
        audit: Audit,
    ) -> Self {
        Self {
            knowledge,
            calls,
            description,
            audit,
            limits: Arc::new(Mutex::new(CallLimits::new(Instant::now()))),
        }
    }

    /// The same guard, with the same limits, for the handlers of other calls.
    #[must_use]
    pub fn of_calls(&self, calls: &'static [ApiCall]) -> Self {
        Self {
            calls,
            ..self.clone()
        }
    }

    fn limits(&self) -> MutexGuard<'_, CallLimits> {
        // A panic under the lock leaves at most a wrong count.
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a call about spawned containers that is not in the table of calls. `asked` is its method and its path. Returns the caller.
    ///
    /// # Errors
    /// The call is not permitted. The refusal is noted.
    pub async fn check_spawn(
        &self,
        asked: &str,
        source: IpAddr,
        headers: &HeaderMap,
    ) -> Result<(Who, ApiCaller), ApiError> {
        let checked = self.check(&Scope::AnyTemplate, source, headers).await;
        checked.map_err(|refusal| self.note(asked, source, refusal))
    }

    /// Checks whether the caller of a call about spawned containers, which goes on, may still make it. Returns the caller as it is now. No
    /// limit counts this, and a refusal is not noted.
    ///
    /// # Errors
    /// The call is not permitted any more, or the facts are not known.
    pub async fn check_again(
        &self,
        source: IpAddr,
        headers: &HeaderMap,
    ) -> Result<ApiCaller, ApiError> {
        if !headers.contains_key(AUTHORIZATION) {
            let facts = self.knowledge.facts(None, source).await?;
            let subject = facts.place.caller.ok_or_else(no_proof)?;
            return Ok(ApiCaller {
                token: None,
                subject: Some(subject),
            });
        }
        let token = token_of(headers)?;
        let certificate = token.certificate();
        let facts = self.knowledge.facts(Some(certificate.id), source).await?;
        let wall = UnixSeconds::from_system(clock::now().wall);
        let permitted = permit(&token, &Scope::AnyTemplate, &facts.place, wall);
        permitted.map_err(|refused| ApiError::new(refused.code(), refused.to_string()))?;
        let shown = ShownToken {
            id: certificate.id,
            scopes: certificate.scopes.clone(),
        };
        Ok(ApiCaller {
            token: Some(shown),
            subject: facts.place.caller,
        })
    }

    /// Checks a request for a call that needs a scope. Returns the caller for the handler.
    async fn check(
        &self,
        needed: &Scope,
        source: IpAddr,
        headers: &HeaderMap,
    ) -> Result<(Who, ApiCaller), Refusal> {
        let now = clock::now();
        if !self.limits().may_try(source, now.monotonic) {
            return Err(Refusal::unnoted(busy("too many calls were refused")));
        }
        if *needed == Scope::AnyTemplate && !headers.contains_key(AUTHORIZATION) {
            return self.check_address(source, headers, now.monotonic).await;
        }
        let token = token_of(headers).map_err(|error| Refusal::of(unproven(source), error))?;
        let certificate = token.certificate();
        let facts = self.knowledge.facts(Some(certificate.id), source).await;
        let facts = facts.map_err(Refusal::unnoted)?;
        check_host(headers, &facts).map_err(|error| Refusal::of(unproven(source), error))?;
        let wall = UnixSeconds::from_system(now.wall);
        let permitted = permit(&token, needed, &facts.place, wall);
        let by = match &permitted {
            // The mesh key did not sign the id and the name in such a token.
            Err(TokenRefused::OtherMesh) => unproven(source),
            _ => Who::ApiCaller {
                address: source,
                token: Some(certificate.id),
                name: Some(certificate.name.clone()),
            },
        };
        if let Err(refused) = permitted {
            let error = ApiError::new(refused.code(), refused.to_string());
            return Err(Refusal::of(by, error));
        }
        if !self.limits().take(certificate.id, now.monotonic) {
            let text = "there were too many calls with this API token";
            return Err(Refusal::unnoted(busy(text)));
        }
        let token = ShownToken {
            id: certificate.id,
            scopes: certificate.scopes.clone(),
        };
        let caller = ApiCaller {
            token: Some(token),
            subject: facts.place.caller,
        };
        Ok((by, caller))
    }

    /// Checks a call without a token, whose caller is known by its mesh address. WireGuard and the firewall prove this address. A page in a
    /// browser would have the rights of its machine, so a request that a browser sent for a page is refused: those that can change
    /// something have an origin (section 3.2 of the Fetch standard).
    async fn check_address(
        &self,
        source: IpAddr,
        headers: &HeaderMap,
        now: Instant,
    ) -> Result<(Who, ApiCaller), Refusal> {
        let facts = self.knowledge.facts(None, source).await;
        let facts = facts.map_err(Refusal::unnoted)?;
        check_host(headers, &facts).map_err(|error| Refusal::of(unproven(source), error))?;
        if headers.contains_key(ORIGIN) {
            let text = "a page in a browser needs an API token for this call; send the header `Authorization: Bearer TOKEN`";
            let error = ApiError::new(ErrorCode::Forbidden, text);
            return Err(Refusal::of(unproven(source), error));
        }
        let caller = ApiCaller {
            token: None,
            subject: facts.place.caller,
        };
        if caller.subject.is_none() {
            return Err(Refusal::of(unproven(source), no_proof()));
        }
        if !self.limits().take_address(source, now) {
            let text = "there were too many calls from this address";
            return Err(Refusal::unnoted(busy(text)));
        }
        Ok((unproven(source), caller))
    }

    /// Notes that a call was refused. Returns the error for the caller.
    fn note(&self, call: &str, source: IpAddr, refusal: Refusal) -> ApiError {
        let Refusal { error, by } = refusal;
        if let Some(by) = by {
            self.limits().handle_refused(source, Instant::now());
            self.audit.note(&CallRefused {
                call,
                by: &by,
                error: &error,
            });
        }
        error
    }
}

/// Why a call is not passed on.
struct Refusal {
    error: ApiError,
    /// The caller, if the refusal is an event and counts against its source. None if the caller is not at fault, or has to wait.
    by: Option<Box<Who>>,
}

impl Refusal {
    fn of(by: Who, error: ApiError) -> Self {
        Self {
            error,
            by: Some(Box::new(by)),
        }
    }

    fn unnoted(error: ApiError) -> Self {
        Self { error, by: None }
    }
}

/// Returns `router` behind `guard`.
pub fn guarded<K: Knowledge>(router: Router, guard: Guard<K>) -> Router {
    router
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(guard, pass::<K>))
}

async fn pass<K: Knowledge>(
    State(guard): State<Guard<K>>,
    Extension(Source(source)): Extension<Source>,
    mut request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method().as_str(), request.uri().path());
    if method == "GET" && path == guard.description {
        return normalized(next.run(request).await).await;
    }
    let call = match find(guard.calls, method, path) {
        Found::Call(call) => call,
        Found::OtherMethods(methods) => return other_methods(&methods),
        Found::Nothing => return failure(no_such_call(guard.description)),
    };
    let asked = format!("{method} {path}");
    let checked = guard.check(&call.scope, source, request.headers()).await;
    match checked {
        Ok((by, caller)) => {
            request.extensions_mut().insert(by);
            request.extensions_mut().insert(caller);
            normalized(next.run(request).await).await
        }
        Err(refusal) => failure(guard.note(&asked, source, refusal)),
    }
}

/// A caller of which only the address is known.
fn unproven(address: IpAddr) -> Who {
    Who::ApiCaller {
        address,
        token: None,
        name: None,
    }
}

fn no_proof() -> ApiError {
    let text = "this call needs an API token with the scope spawn:TEMPLATE, since no node and no service of the mesh has the address of the caller; send the header `Authorization: Bearer TOKEN`";
    ApiError::new(ErrorCode::Unauthorized, text)
}

fn no_such_call(description: &str) -> ApiError {
    let text = format!("the API has no such call; GET {description} describes all");
    ApiError::new(ErrorCode::NotFound, text)
}

fn busy(what: &str) -> ApiError {
    ApiError::new(ErrorCode::Busy, format!("{what}; try again in a second"))
}

/// Reads the token of a request.
fn token_of(headers: &HeaderMap) -> Result<ApiToken, ApiError> {
    let unauthorized = |text: String| ApiError::new(ErrorCode::Unauthorized, text);
    let Some(value) = only(headers, AUTHORIZATION) else {
        return Err(unauthorized(
            "this call needs an API token; send the header `Authorization: Bearer TOKEN`, once"
                .to_owned(),
        ));
    };
    let token = value.split_once(' ').and_then(|(scheme, token)| {
        let is_bearer = scheme.eq_ignore_ascii_case("Bearer");
        is_bearer.then(|| token.trim())
    });
    let token = token.ok_or_else(|| {
        unauthorized(
            "the credentials are no API token; send `Authorization: Bearer TOKEN`".to_owned(),
        )
    })?;
    ApiToken::parse(token).map_err(|error| unauthorized(error.to_string()))
}

/// Checks that the `Host` of the request is this server, so that no page of another site can send the request (see
/// `protocol::web::host`).
fn check_host(headers: &HeaderMap, facts: &Facts) -> Result<(), ApiError> {
    let names = facts.names.iter().map(String::as_str);
    match only(headers, HOST) {
        Some(host) if host::is_own(host, &facts.domain, names) => Ok(()),
        _ => Err(ApiError::new(
            ErrorCode::Forbidden,
            format!(
                "the `Host` of the request is none of this server; use its address, or a name below .{}",
                facts.domain
            ),
        )),
    }
}

/// The value of a header that a request has once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
