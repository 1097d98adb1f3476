//! Scopes: the groups of calls that a token permits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{Label, text};

/// How similar a word has to be to a scope so that the error names this scope.
const LEAST_SIMILAR: f64 = 0.8;

/// The beginning of the scopes that permit to spawn containers from a template.
const SPAWN: &str = "spawn:";
/// Such a scope with a word in the place of the name.
const SPAWN_EXAMPLE: &str = "spawn:TEMPLATE";

/// A group of calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// The state of a node, its changes to its machine, and its problems.
    StatusRead,
    /// The services of the mesh, and what names resolve to.
    ServicesRead,
    /// The nodes of the mesh, the tokens with which they joined, and the paths between them.
    NodesRead,
    /// The policy, and the connections that it refused.
    PolicyRead,
    /// The audit log.
    AuditRead,
    /// The metrics.
    MetricsRead,
    /// Add, change, remove, drain and undrain services of a node.
    ServicesWrite,
    /// Check a policy that is not in force against the present mesh.
    PolicyCheck,
    /// Drain and undrain services of a node, see their instances, and reserve them for a rollout.
    Drain,
    /// Spawn containers from the template with this name on a node, and use these containers.
    Spawn(Label),
    /// What a call needs that is about spawned containers: the scope of a template, whichever it is. The handler looks which one. No token
    /// has it.
    AnyTemplate,
    /// A scope of a later version. It permits nothing.
    Unknown,
}

/// The scopes that consist of one word, with their texts.
static SCOPES: [(Scope, &str); 9] = [
    (Scope::StatusRead, "status:read"),
    (Scope::ServicesRead, "services:read"),
    (Scope::NodesRead, "nodes:read"),
    (Scope::PolicyRead, "policy:read"),
    (Scope::AuditRead, "audit:read"),
    (Scope::MetricsRead, "metrics:read"),
    (Scope::ServicesWrite, "services:write"),
    (Scope::PolicyCheck, "policy:check"),
    (Scope::Drain, "drain"),
];

/// The reason why a text is not a [`Scope`], with what to write in its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScopeError(String);

impl Scope {
    /// Whether a token with this scope may make the calls of the scope `needed`.
    #[must_use]
    pub fn grants(&self, needed: &Self) -> bool {
        match self {
            Self::Unknown | Self::AnyTemplate => false,
            // A caller that may remove a service may also drain it.
            Self::ServicesWrite => matches!(needed, Self::ServicesWrite | Self::Drain),
            Self::Spawn(own) => match needed {
                Self::Spawn(template) => own == template,
                other => *other == Self::AnyTemplate,
            },
            own => own == needed,
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(word: &str) -> Result<Self, ScopeError> {
        if let Some(template) = word.strip_prefix(SPAWN) {
            let template = Label::parse(template);
            let wrong = |error| ScopeError(format!("{SPAWN_EXAMPLE} has a name in it: {error}"));
            return template.map(Self::Spawn).map_err(wrong);
        }
        let known = SCOPES.iter().find(|(_, text)| *text == word);
        known
            .map(|(scope, _)| scope.clone())
            .ok_or_else(|| ScopeError(explain(word)))
    }
}

fn explain(word: &str) -> String {
    let texts = SCOPES.iter().map(|(_, text)| *text);
    let texts: Vec<&str> = texts.chain([SPAWN_EXAMPLE]).collect();
    let list = texts.join(", ");
    let hint = text::nearest(word, texts, LEAST_SIMILAR)
        .map(|text| format!("; did you mean {text}?"))
        .unwrap_or_default();
    format!("it is one of {list}{hint}")
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Spawn(template) => return write!(f, "{SPAWN}{template}"),
            Self::AnyTemplate => SPAWN_EXAMPLE,
            own => {
                let known = SCOPES.iter().find(|(scope, _)| scope == own);
                known.map_or("(unknown)", |(_, text)| *text)
            }
        };
        f.write_str(text)
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(text.parse().unwrap_or(Self::Unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scope_is_read_as_it_is_written_and_another_word_is_explained() {
        for (scope, text) in &SCOPES {
            assert_eq!(text.parse::<Scope>().as_ref(), Ok(scope));
            assert_eq!(scope.to_string(), *text);
        }
        let spawn = "spawn:ci-job".parse::<Scope>();
        assert_eq!(
            spawn.map(|scope| scope.to_string()),
            Ok("spawn:ci-job".to_owned())
        );
        let error = |word: &str| word.parse::<Scope>().expect_err("no scope").to_string();
        let services = error("service:read");
        assert!(services.starts_with("it is one of status:read, services:read, "));
        assert!(services.ends_with(", drain, spawn:TEMPLATE; did you mean services:read?"));
        assert!(error("%%").ends_with(", drain, spawn:TEMPLATE"));
        assert!(error("spawn:a.b").contains("has a dot"));
        for wrong in [
            "",
            "*",
            "status",
            "status:write",
            "Drain",
            "drain ",
            "spawn",
            "spawn:",
            "spawn:*",
        ] {
            assert!(wrong.parse::<Scope>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_scope_permits_its_own_calls_and_one_that_writes_services_drains_them_too() {
        for (own, _) in &SCOPES {
            for (needed, _) in &SCOPES {
                let drains = *own == Scope::ServicesWrite && *needed == Scope::Drain;
                assert_eq!(
                    own.grants(needed),
                    own == needed || drains,
                    "{own} {needed}"
                );
            }
        }
    }

    #[test]
    fn the_scope_of_a_template_permits_no_other_template_and_no_other_call() {
        let of = |name: &str| Scope::Spawn(Label::parse(name).expect("a literal"));
        assert!(of("ci-job").grants(&of("ci-job")));
        assert!(of("ci-job").grants(&Scope::AnyTemplate));
        assert!(!of("ci-job").grants(&of("ci")));
        assert!(!Scope::AnyTemplate.grants(&Scope::AnyTemplate));
        for (other, _) in &SCOPES {
            assert!(
                !of("ci-job").grants(other) && !other.grants(&of("ci-job")),
                "{other}"
            );
            assert!(!other.grants(&Scope::AnyTemplate), "{other}");
        }
    }

    #[test]
    fn a_scope_of_a_later_version_is_read_and_permits_nothing() {
        let scopes: Vec<Scope> = serde_json::from_str(r#"["drain","audit:write"]"#).expect("texts");
        assert_eq!(scopes, [Scope::Drain, Scope::Unknown]);
        assert!(!Scope::Unknown.grants(&Scope::Unknown));
    }
}
