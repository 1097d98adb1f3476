//! What the API over the network returns, and what is needed to check its tokens.

use super::errors::no_mesh;
use super::members::{Administered, Submitted};
use super::view::View;
use crate::model::{Label, PublicKey};
use crate::os::audit::Who;
use crate::page::policy::PolicyFacts;
use crate::policy::{Policy, run_tests_bounded, unmatched};
use crate::protocol::admin::RevokedApiTokens;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::api_token::{ApiCertificate, Place};
use crate::protocol::local::ServiceList;
use crate::protocol::policy_check::Checked;
use crate::protocol::service_list;
use crate::records::netmap::Rules;
use crate::records::subjects::{not_keeping_to, subjects};
use crate::records::{Ledger, RecordKey, api_revocation};

/// Where a call with `token`, if it shows one, arrives, and the domain of the mesh.
///
/// # Errors
/// There is no mesh.
pub fn place(view: &View, token: Option<&PublicKey>) -> Result<(Place, Label), ApiError> {
    let state = view.read();
    let ledger = state.ledger.as_ref().ok_or_else(no_mesh)?;
    let mesh = ledger.mesh().ok_or_else(no_mesh)?;
    let place = Place {
        mesh_key: ledger.mesh_key(),
        node: None,
        is_revoked: token.is_some_and(|token| api_revocation::is_revoked(ledger, token)),
        // Callers reach a coordinator from outside of the tunnel, where an address proves nothing.
        caller: None,
    };
    Ok((place, mesh.domain.clone()))
}

/// The names at which nodes reach the coordinator.
#[must_use]
pub fn hosts(view: &View) -> Vec<String> {
    let urls = view.setup.urls.iter();
    urls.map(|url| url.host().to_owned()).collect()
}

/// The services of the mesh. An instance is reachable if its node has a control stream to this coordinator.
#[must_use]
pub fn services(view: &View) -> ServiceList {
    let state = view.read();
    let netmap = state.ledger.as_ref().map(Ledger::netmap);
    let netmap = netmap.unwrap_or_default();
    service_list::of(&netmap, |node| state.connected.contains_key(node))
}

/// What the page shows of the policy.
#[must_use]
pub fn policy_facts(view: &View) -> PolicyFacts {
    let state = view.read();
    let Some(ledger) = &state.ledger else {
        return PolicyFacts::default();
    };
    let netmap = ledger.netmap();
    PolicyFacts {
        version: ledger.entry(&RecordKey::Policy).map(|entry| entry.version),
        is_trying: ledger.policy().is_some_and(|policy| policy.tried.is_some()),
        subjects: subjects(&netmap),
        rules: netmap.rules,
        denied: None,
    }
}

/// Checks a policy that is not in force against the present mesh, and runs its tests, which can take seconds.
///
/// # Errors
/// There is no mesh, or the tests would take longer.
pub fn check_policy(view: &View, text: &str) -> Result<Checked, ApiError> {
    let policy = match Policy::check(text) {
        Ok(policy) => policy,
        Err(errors) => return Ok(Checked::refused(&errors)),
    };
    let (subjects, without) = {
        let state = view.read();
        let ledger = state.ledger.as_ref().ok_or_else(no_mesh)?;
        let netmap = ledger.netmap_under(Rules::Policy(policy.clone().into()));
        (subjects(&netmap), not_keeping_to(ledger, &policy))
    };
    let failures = run_tests_bounded(&policy, &subjects);
    let failures =
        failures.map_err(|error| ApiError::new(ErrorCode::Configuration, error.to_string()))?;
    let unmatched = unmatched(&policy, &subjects);
    Ok(Checked::read(&failures, &unmatched, without))
}

/// The API tokens that the administrator revoked.
#[must_use]
pub fn revoked_api_tokens(view: &View) -> RevokedApiTokens {
    let state = view.read();
    let revoked = state.ledger.iter().flat_map(|ledger| {
        let mesh_key = ledger.mesh_key();
        let records = ledger.envelopes();
        let of_administrator = records.filter(move |record| record.signer == mesh_key);
        of_administrator.filter_map(|record| api_revocation::revoked_by(&record.key()?))
    });
    RevokedApiTokens {
        schema: 1,
        ids: revoked.collect(),
    }
}

/// Notes that the administrator made a token. Waits until the event is on disk.
pub fn note_made(view: &View, certificate: ApiCertificate, by: &Who) {
    let made = Administered::ApiTokenMade(certificate);
    let audit = &view.setup.audit;
    audit.note(&Submitted(&made, by));
    audit.flush();
}
