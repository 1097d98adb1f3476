//! Checks whether a token permits a call at this server, at this time and for this caller.

use super::certificate::ApiToken;
use super::scope::Scope;
use crate::model::text;
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey};
use crate::policy::{Selector, Subject, selects};
use crate::protocol::api::ErrorCode;

/// The maximum number of names that a message lists.
const MAX_LISTED: usize = 5;

/// The server at which a call arrived, and its knowledge of the token and of the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The key of the mesh.
    pub mesh_key: PublicKey,
    /// The node that received the call. None if a coordinator did.
    pub node: Option<Label>,
    /// Whether the token was revoked.
    pub is_revoked: bool,
    /// The node or instance of the mesh that has the address of the caller. None if the address is not of the mesh.
    pub caller: Option<Subject>,
}

/// Why a token does not permit a call. Only the holder of a token of this mesh learns more than that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    /// The signature is not that of the mesh key.
    #[error(
        "the API token is not of this mesh; make one with `meshctl api-token create` where the key of this mesh is"
    )]
    OtherMesh,
    /// The administrator revoked it.
    #[error("the API token was revoked; make another one with `meshctl api-token create`")]
    Revoked,
    /// It has expired.
    #[error("the API token has expired; make another one with `meshctl api-token create`")]
    Expired,
    /// It is for the API of other nodes.
    #[error("the API token is for {}, and not for {here}", text::listed(.nodes, MAX_LISTED))]
    Node {
        /// The nodes that it is for.
        nodes: Vec<Label>,
        /// Where the call arrived.
        here: String,
    },
    /// It is for other callers.
    #[error("the API token is for calls from {}, and this one is from {caller}", text::listed(.from, MAX_LISTED))]
    Caller {
        /// The selectors of the callers that it is for.
        from: Vec<String>,
        /// The caller.
        caller: String,
    },
    /// It does not permit this call.
    #[error(
        "the API token does not have the scope {0}; make one with `meshctl api-token create --scope {0}`"
    )]
    Scope(Scope),
}

impl TokenRefused {
    /// The code of the answer. With [`ErrorCode::Unauthorized`], another token is needed.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::OtherMesh | Self::Revoked | Self::Expired => ErrorCode::Unauthorized,
            Self::Node { .. } | Self::Caller { .. } | Self::Scope(_) => ErrorCode::Forbidden,
        }
    }
}

/// Checks whether `token` permits a call of the scope `needed`.
///
/// # Errors
/// The token does not permit the call.
pub fn permit(
    token: &ApiToken,
    needed: &Scope,
    place: &Place,
    now: UnixSeconds,
) -> Result<(), TokenRefused> {
    if !token.is_of(&place.mesh_key) {
        return Err(TokenRefused::OtherMesh);
    }
    let certificate = token.certificate();
    if place.is_revoked {
        return Err(TokenRefused::Revoked);
    }
    if now >= certificate.expires_at {
        return Err(TokenRefused::Expired);
    }
    let is_for = |node: &Label| certificate.nodes.contains(node);
    if !certificate.nodes.is_empty() && !place.node.as_ref().is_some_and(is_for) {
        let coordinator = || "a coordinator".to_owned();
        let here = place.node.as_ref().map(ToString::to_string);
        return Err(TokenRefused::Node {
            nodes: certificate.nodes.clone(),
            here: here.unwrap_or_else(coordinator),
        });
    }
    if !certificate.from.is_empty() && !is_bound_to(&certificate.from, place.caller.as_ref()) {
        let unknown = || "an address that no node and no service of the mesh has".to_owned();
        let caller = place.caller.as_ref().map(ToString::to_string);
        let from = certificate.from.iter();
        return Err(TokenRefused::Caller {
            from: from.map(|text| text::message(text)).collect(),
            caller: caller.unwrap_or_else(unknown),
        });
    }
    if !certificate.scopes.iter().any(|own| own.grants(needed)) {
        return Err(TokenRefused::Scope(needed.clone()));
    }
    Ok(())
}

/// Whether one of the selectors selects the caller. A text that this version does not understand selects nobody.
fn is_bound_to(from: &[String], caller: Option<&Subject>) -> bool {
    let selected_by = |text: &String| {
        let selector = Selector::parse(text).ok()?;
        caller.map(|caller| selects(&selector, caller))
    };
    from.iter().any(|text| selected_by(text) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceName;
    use crate::policy::Offered;
    use crate::protocol::api_token::ApiCertificate;
    use crate::protocol::token::SpkiPin;
    use crate::testbed::records as build;
    use crate::testbed::records::label;

    const NOW: UnixSeconds = UnixSeconds(150);

    fn certificate() -> ApiCertificate {
        ApiCertificate {
            id: PublicKey([7; 32]),
            name: label("ci"),
            scopes: vec![Scope::ServicesRead],
            nodes: vec![],
            from: vec![],
            created_at: UnixSeconds(100),
            expires_at: UnixSeconds(200),
        }
    }

    fn token(certificate: ApiCertificate) -> ApiToken {
        ApiToken::sign(certificate, SpkiPin([9; 32]), &build::key(1))
    }

    fn place(caller: Option<Subject>) -> Place {
        Place {
            mesh_key: build::id(1),
            node: Some(label("web-1")),
            is_revoked: false,
            caller,
        }
    }

    /// An instance of `service` on the node `ci-1` with the tag `ci`; without a service, the node itself.
    fn caller(service: Option<&str>) -> Subject {
        let offered = |name: &str| Offered {
            service: ServiceName::parse(name).expect("a literal"),
            ports: vec![],
            allow: vec![],
        };
        Subject {
            addresses: vec!["10.210.1.9".parse().expect("a literal")],
            node: label("ci-1"),
            tags: vec![label("ci")],
            services: service.map(offered).into_iter().collect(),
            is_node: service.is_none(),
            guest: None,
            network: None,
        }
    }

    fn bound_to(from: &str, caller: Option<Subject>) -> Result<(), TokenRefused> {
        let certificate = ApiCertificate {
            from: vec![from.to_owned()],
            ..certificate()
        };
        permit(
            &token(certificate),
            &Scope::ServicesRead,
            &place(caller),
            NOW,
        )
    }

    #[test]
    fn a_token_permits_the_calls_of_its_scopes_until_it_expires() {
        let token = token(certificate());
        let permit = |needed, now| permit(&token, needed, &place(None), UnixSeconds(now));
        assert_eq!(permit(&Scope::ServicesRead, 0), Ok(()));
        assert_eq!(permit(&Scope::ServicesRead, 199), Ok(()));
        assert_eq!(
            permit(&Scope::ServicesRead, 200),
            Err(TokenRefused::Expired)
        );
        let lacks = Err(TokenRefused::Scope(Scope::Drain));
        assert_eq!(permit(&Scope::Drain, 150), lacks);
    }

    #[test]
    fn a_token_of_another_mesh_and_a_revoked_one_permit_nothing() {
        let token = token(certificate());
        let permitted = |place: &Place| permit(&token, &Scope::ServicesRead, place, NOW);
        let other = Place {
            mesh_key: build::id(2),
            is_revoked: true,
            ..place(None)
        };
        // The maker of a false token learns nothing about tokens of this mesh.
        assert_eq!(permitted(&other), Err(TokenRefused::OtherMesh));
        let revoked = Place {
            is_revoked: true,
            ..place(None)
        };
        assert_eq!(permitted(&revoked), Err(TokenRefused::Revoked));
    }

    #[test]
    fn a_token_for_some_nodes_is_refused_by_others_and_by_coordinators() {
        let for_node = |name: &str| {
            token(ApiCertificate {
                nodes: vec![label(name), label("web-9")],
                ..certificate()
            })
        };
        let permitted =
            |name, place: &Place| permit(&for_node(name), &Scope::ServicesRead, place, NOW);
        assert_eq!(permitted("web-1", &place(None)), Ok(()));
        let elsewhere = permitted("web-2", &place(None)).expect_err("another node");
        assert_eq!(
            elsewhere.to_string(),
            "the API token is for web-2, web-9, and not for web-1"
        );
        let coordinator = Place {
            node: None,
            ..place(None)
        };
        let refused = permitted("web-1", &coordinator).expect_err("no node");
        assert!(refused.to_string().ends_with("and not for a coordinator"));
    }

    #[test]
    fn a_bound_token_works_for_its_callers_alone() {
        for from in ["ci/runner", "ci/*", "project:ci", "tag:ci", "*"] {
            assert_eq!(
                bound_to(from, Some(caller(Some("runner.ci")))),
                Ok(()),
                "{from}"
            );
            // An address outside of the mesh proves nothing.
            assert!(bound_to(from, None).is_err(), "{from}");
        }
        assert_eq!(bound_to("node:ci-1", Some(caller(None))), Ok(()));
        for (from, service) in [
            ("ci/runner", Some("runner")),
            ("ci/runner", Some("web.ci")),
            ("ci/runner", None),
            ("runner", Some("runner.ci")),
            ("tag:web", Some("runner.ci")),
            ("node:ci-1", Some("runner.ci")),
            ("node:web-1", None),
            ("same-project", Some("runner.ci")),
            ("", Some("runner.ci")),
            ("later:x", Some("runner.ci")),
        ] {
            let refused = bound_to(from, Some(caller(service)));
            assert!(
                matches!(refused, Err(TokenRefused::Caller { .. })),
                "{from}: {refused:?}"
            );
        }
        let refused = bound_to("ci/runner", Some(caller(None))).expect_err("a node");
        assert_eq!(
            refused.to_string(),
            "the API token is for calls from ci/runner, and this one is from node ci-1"
        );
    }

    #[test]
    fn only_a_token_that_never_works_here_again_asks_for_another_one() {
        let scope = TokenRefused::Scope(Scope::Drain);
        for (refused, status) in [
            (TokenRefused::OtherMesh, 401),
            (TokenRefused::Revoked, 401),
            (TokenRefused::Expired, 401),
            (scope, 403),
        ] {
            assert_eq!(refused.code().status(), status, "{refused:?}");
        }
    }
}
