//! Who may spawn, and whose a container is.
//!
//! A caller is known by its token, or by its mesh address: the service that has the address owns the containers. So all instances of a
//! service share them, and a runner that was replaced finds those of the one before it.
//!
//! All programs of a node, and its containers without an instance address, send from the address of the node. So this address is a caller
//! only where a template names the node itself. A tag selects the instances on its nodes alone.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::refused::Refused;
use super::template::Template;
use crate::model::{Label, PublicKey, ServiceName};
use crate::policy::{Selector, Subject, selects};
use crate::protocol::api_token::{ApiCaller, Scope};

/// The caller that a container belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Owner {
    /// Whoever holds this API token.
    Token(PublicKey),
    /// The instances of a service of the mesh.
    Service(ServiceName),
    /// All programs of a node.
    Node(Label),
}

/// A template that a caller may use, and the owner of what it spawns from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    pub template: Arc<Template>,
    pub owner: Owner,
}

/// The templates that `caller` may use, in the order of the configuration. A scope of the token counts before the address.
///
/// # Errors
/// There is none.
pub fn granted(templates: &[Arc<Template>], caller: &ApiCaller) -> Result<Vec<Granted>, Refused> {
    let granted: Vec<Granted> = templates
        .iter()
        .filter_map(|template| {
            let owner = by_token(&template.name, caller).or_else(|| by_address(template, caller));
            owner.map(|owner| Granted {
                template: Arc::clone(template),
                owner,
            })
        })
        .collect();
    if granted.is_empty() {
        let subject = caller.subject.as_ref();
        return Err(Refused::NoTemplate(subject.map(ToString::to_string)));
    }
    Ok(granted)
}

fn by_token(template: &Label, caller: &ApiCaller) -> Option<Owner> {
    let token = caller.token.as_ref()?;
    let is_for = |scope: &Scope| matches!(scope, Scope::Spawn(name) if name == template);
    let is_granted = token.scopes.iter().any(is_for);
    is_granted.then_some(Owner::Token(token.id))
}

fn by_address(template: &Template, caller: &ApiCaller) -> Option<Owner> {
    let subject = caller.subject.as_ref()?;
    let mut selectors = template.from.iter();
    if subject.is_node {
        let is_named = |selector: &Selector| {
            matches!(selector, Selector::Node(_)) && selects(selector, subject)
        };
        let is_caller = selectors.any(is_named);
        return is_caller.then(|| Owner::Node(subject.node.clone()));
    }
    let service = selectors.find_map(|selector| service_by(selector, subject));
    service.map(Owner::Service)
}

/// The service by which `selector` selects the caller: the first one in the order of the names, so that it is the same each time.
fn service_by(selector: &Selector, subject: &Subject) -> Option<ServiceName> {
    if !selects(selector, subject) {
        return None;
    }
    let services = subject.services.iter().map(|offered| &offered.service);
    let named = services.clone().filter(|service| selector.names(service));
    // A tag selects a caller without naming a service.
    named.min().or_else(|| services.min()).cloned()
}

impl Owner {
    /// The first digits of a digest of the owner and of `template`, by which names of the engine differ.
    #[must_use]
    pub fn digest(&self, template: &Label) -> String {
        let digest = Sha256::digest(format!("{template} {self}"));
        let digits = digest.iter().take(8).map(|byte| format!("{byte:02x}"));
        digits.collect()
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(id) => write!(f, "token:{id}"),
            Self::Service(service) => write!(f, "service:{service}"),
            Self::Node(node) => write!(f, "node:{node}"),
        }
    }
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "an owner is `token:ID`, `service:NAME` or `node:NAME`".to_owned();
        let (kind, name) = text.split_once(':').ok_or_else(wrong)?;
        match kind {
            "token" => name.parse().map(Self::Token).map_err(|_| wrong()),
            "service" => ServiceName::parse(name)
                .map(Self::Service)
                .map_err(|error| error.to_string()),
            "node" => Label::parse(name)
                .map(Self::Node)
                .map_err(|error| error.to_string()),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Owner {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Offered;
    use crate::protocol::api_token::ShownToken;
    use crate::spawn::fixture::template;
    use crate::testbed::records::label;

    fn service(name: &str) -> ServiceName {
        ServiceName::parse(name).expect("a literal")
    }

    /// A caller on a node with the tag `build`, which has the address of these services.
    fn instance(services: &[&str]) -> ApiCaller {
        let offered = |name: &&str| Offered {
            service: service(name),
            ports: vec![],
            allow: vec![],
        };
        let subject = Subject {
            addresses: vec!["10.210.1.9".parse().expect("a literal")],
            node: label("ci-1"),
            tags: vec![label("build")],
            services: services.iter().map(offered).collect(),
            guest: None,
            network: None,
            is_node: false,
        };
        ApiCaller {
            token: None,
            subject: Some(subject),
        }
    }

    fn with_token(scopes: &[Scope], caller: ApiCaller) -> ApiCaller {
        let token = ShownToken {
            id: PublicKey([7; 32]),
            scopes: scopes.to_vec(),
        };
        ApiCaller {
            token: Some(token),
            ..caller
        }
    }

    fn owner(from: &str, caller: &ApiCaller) -> Option<Owner> {
        let template = Template {
            from: vec![Selector::parse(from).expect("a literal")],
            ..template()
        };
        let granted = granted(&[Arc::new(template)], caller).ok()?;
        granted.into_iter().next().map(|granted| granted.owner)
    }

    #[test]
    fn an_address_owns_as_the_service_by_which_it_is_selected() {
        let runner = instance(&["web.shop", "runner.ci"]);
        let of = |name: &str| Some(Owner::Service(service(name)));
        assert_eq!(owner("ci/runner", &runner), of("runner.ci"));
        assert_eq!(owner("shop/*", &runner), of("web.shop"));
        assert_eq!(owner("tag:build", &runner), of("runner.ci"));
        assert_eq!(owner("ci/builder", &runner), None);
        assert_eq!(owner("tag:ops", &runner), None);
    }

    #[test]
    fn the_address_of_a_node_is_a_caller_only_where_the_node_is_named_and_an_unknown_one_never_is()
    {
        let mut node = instance(&["runner.ci"]);
        if let Some(subject) = &mut node.subject {
            subject.is_node = true;
        }
        assert_eq!(owner("ci/runner", &node), None);
        assert_eq!(owner("tag:build", &node), None);
        assert_eq!(owner("node:ci-2", &node), None);
        let named = Some(Owner::Node(label("ci-1")));
        assert_eq!(owner("node:ci-1", &node), named);
        assert_eq!(owner("node:ci-1", &instance(&["runner.ci"])), None);
        let nobody = ApiCaller {
            token: None,
            subject: None,
        };
        assert_eq!(owner("tag:build", &nobody), None);
        let scopes = [Scope::Spawn(label("job"))];
        let token = Some(Owner::Token(PublicKey([7; 32])));
        assert_eq!(owner("ci/runner", &with_token(&scopes, node)), token);
        assert_eq!(owner("ci/runner", &with_token(&scopes, nobody)), token);
    }

    #[test]
    fn a_guest_is_no_caller_by_its_address_although_it_has_the_tag() {
        let mut guest = instance(&[]);
        if let Some(subject) = &mut guest.subject {
            subject.guest = Some(label("phone"));
        }
        for from in ["tag:build", "tag:*", "node:ci-1", "project:*"] {
            assert_eq!(owner(from, &guest), None, "{from}");
        }
        let scopes = [Scope::Spawn(label("job"))];
        let token = Some(Owner::Token(PublicKey([7; 32])));
        assert_eq!(owner("tag:build", &with_token(&scopes, guest)), token);
    }

    #[test]
    fn a_token_for_another_template_grants_nothing_by_itself() {
        let other = [Scope::Spawn(label("web")), Scope::StatusRead];
        let stranger = with_token(&other, instance(&["web.shop"]));
        assert_eq!(owner("ci/runner", &stranger), None);
        let runner = with_token(&other, instance(&["runner.ci"]));
        let expected = Some(Owner::Service(service("runner.ci")));
        assert_eq!(owner("ci/runner", &runner), expected);
    }

    #[test]
    fn an_owner_is_read_as_it_is_written_and_has_its_own_names() {
        let (template, other) = (label("job"), label("web"));
        let token = Owner::Token(PublicKey([7; 32]));
        let service = Owner::Service(service("runner.ci"));
        let node = Owner::Node(label("ci-1"));
        for owner in [&token, &service, &node] {
            let text = serde_json::to_string(owner).expect("a text");
            assert_eq!(
                serde_json::from_str::<Owner>(&text).ok().as_ref(),
                Some(owner)
            );
            assert_eq!(owner.digest(&template).len(), 16);
            assert_ne!(owner.digest(&template), owner.digest(&other));
        }
        assert_ne!(token.digest(&template), service.digest(&template));
        for text in [
            "",
            "token:",
            "token:12",
            "service:",
            "node:",
            "tag:ci",
            "runner.ci",
        ] {
            assert!(text.parse::<Owner>().is_err(), "{text}");
        }
    }
}
