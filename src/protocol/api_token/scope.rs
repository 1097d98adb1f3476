//! Scopes: the groups of calls that a token permits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::text;

/// How similar a word has to be to a scope so that the error names this scope.
const LEAST_SIMILAR: f64 = 0.8;

/// A group of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    /// Drain and undrain services of a node, see their instances, and reserve them for a rollout.
    Drain,
    /// A scope of a later version. It permits nothing.
    Unknown,
}

/// All scopes that this version knows, with their texts.
const SCOPES: [(Scope, &str); 8] = [
    (Scope::StatusRead, "status:read"),
    (Scope::ServicesRead, "services:read"),
    (Scope::NodesRead, "nodes:read"),
    (Scope::PolicyRead, "policy:read"),
    (Scope::AuditRead, "audit:read"),
    (Scope::MetricsRead, "metrics:read"),
    (Scope::ServicesWrite, "services:write"),
    (Scope::Drain, "drain"),
];

/// The reason why a text is not a [`Scope`], with what to write in its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScopeError(String);

impl Scope {
    /// The text of the scope in a token.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let known = SCOPES.iter().find(|(scope, _)| *scope == self);
        known.map_or("(unknown)", |(_, text)| text)
    }

    /// Whether a token with this scope may make the calls of the scope `needed`.
    #[must_use]
    pub fn grants(self, needed: Self) -> bool {
        match self {
            Self::Unknown => false,
            // A caller that may remove a service may also drain it.
            Self::ServicesWrite => matches!(needed, Self::ServicesWrite | Self::Drain),
            own => own == needed,
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(word: &str) -> Result<Self, ScopeError> {
        let known = SCOPES.iter().find(|(_, text)| *text == word);
        known
            .map(|(scope, _)| *scope)
            .ok_or_else(|| ScopeError(explain(word)))
    }
}

fn explain(word: &str) -> String {
    let texts = SCOPES.map(|(_, text)| text);
    let hint = text::nearest(word, texts, LEAST_SIMILAR)
        .map(|text| format!("; did you mean {text}?"))
        .unwrap_or_default();
    format!("it is one of {}{hint}", texts.join(", "))
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
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
        for (scope, text) in SCOPES {
            assert_eq!(text.parse(), Ok(scope));
            assert_eq!(scope.to_string(), text);
        }
        let error = |word: &str| word.parse::<Scope>().expect_err("no scope").to_string();
        let services = error("service:read");
        assert!(services.starts_with("it is one of status:read, services:read, "));
        assert!(services.ends_with(", drain; did you mean services:read?"));
        assert!(error("%%").ends_with(", drain"));
        for wrong in [
            "",
            "*",
            "status",
            "status:write",
            "Drain",
            "drain ",
            "spawn:ci",
        ] {
            assert!(wrong.parse::<Scope>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_scope_permits_its_own_calls_and_one_that_writes_services_drains_them_too() {
        for (own, _) in SCOPES {
            for (needed, _) in SCOPES {
                let drains = own == Scope::ServicesWrite && needed == Scope::Drain;
                assert_eq!(
                    own.grants(needed),
                    own == needed || drains,
                    "{own} {needed}"
                );
            }
        }
    }

    #[test]
    fn a_scope_of_a_later_version_is_read_and_permits_nothing() {
        let scopes: Vec<Scope> =
            serde_json::from_str(r#"["drain","spawn:ci-job"]"#).expect("texts");
        assert_eq!(scopes, [Scope::Drain, Scope::Unknown]);
        assert!(!Scope::Unknown.grants(Scope::Unknown));
    }
}
