//! Selectors: the words by which rules select nodes and instances.

use std::fmt;

use super::error::printable;
use crate::model::name::LabelError;
use crate::model::text;
use crate::model::{Label, ServiceName};

/// Which nodes and instances a rule, or the label `mesh.allow`, is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Selector {
    /// `*`: all nodes, instances and guests, and no network.
    Any,
    /// `name`: the instances of a service, as `name.svc.mesh` has them.
    Service(Label),
    /// `project/name`: the instances of a service of a Compose project, as `name.project.svc.mesh` has them.
    InProject(Wild, Wild),
    /// `project:p`: the instances of all services of a project.
    Project(Wild),
    /// `tag:t`: the nodes with this tag and the instances on them, and the guests with this tag.
    Tag(Wild),
    /// `node:n`: a node itself, without the instances on it.
    Node(Wild),
    /// `guest:g`: a guest.
    Guest(Wild),
    /// `route:n`: the networks to which the node `n` routes. No other selector selects a network.
    Route(Wild),
    /// `same-project`: the instances that share a project with the other side.
    SameProject,
    /// A selector of a later version in a signed record: it selects nothing.
    Unknown,
}

/// A name, or `*` for each name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wild {
    /// `*`.
    Any,
    /// One name.
    Is(Label),
}

/// The reason why a text is not a [`Selector`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text is empty.
    #[error("a selector cannot be empty")]
    Empty,
    /// No selector begins with the part before the colon.
    #[error("`{0}:` begins no selector; {1}")]
    Prefix(String, String),
    /// The name of a service as it is written in the DNS.
    #[error("`{0}` has a dot; a service of a project is written `project/name`, such as `{1}`")]
    Dot(String, String),
    /// An address in place of a name.
    #[error("`{0}` is an address; selectors are names, such as `node:NAME` or `tag:TAG`")]
    Address(String),
    /// A character outside of ASCII, which may look like one in ASCII.
    #[error("`{0}` has the character `{odd}` (U+{code:04X}) in it, which may look like another one; letters a-z, digits and hyphens are allowed", odd = .1.escape_debug(), code = u32::from(*.1))]
    NotAscii(String, char),
    /// `*` as a part of a name.
    #[error(
        "`{0}` has a `*` inside a name; `*` stands for a whole name, such as `project/*`, `node:*` or `*`"
    )]
    PartlyWild(String),
    /// A part is not a name.
    #[error(transparent)]
    Name(#[from] LabelError),
}

impl Selector {
    /// Parses a selector, which has no port.
    ///
    /// # Errors
    /// The error says what is wrong, and what to write in its place.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let text = text.trim_matches(' ');
        if text.is_empty() {
            return Err(SelectorError::Empty);
        }
        if let Some(odd) = text.chars().find(|c| !c.is_ascii()) {
            return Err(SelectorError::NotAscii(printable(text), odd));
        }
        if text.parse::<std::net::IpAddr>().is_ok() || text.parse::<ipnet::IpNet>().is_ok() {
            return Err(SelectorError::Address(printable(text)));
        }
        match text {
            "*" => return Ok(Self::Any),
            "same-project" => return Ok(Self::SameProject),
            _ => {}
        }
        if let Some((prefix, name)) = text.split_once(':') {
            return match prefix {
                "tag" => Ok(Self::Tag(Wild::parse(name)?)),
                "node" => Ok(Self::Node(Wild::parse(name)?)),
                "route" => Ok(Self::Route(Wild::parse(name)?)),
                "project" => Ok(Self::Project(Wild::parse(name)?)),
                "guest" => Ok(Self::Guest(Wild::parse(name)?)),
                other => Err(SelectorError::Prefix(printable(other), right_prefix(other))),
            };
        }
        if let Some((project, name)) = text.split_once('/') {
            return Ok(Self::InProject(Wild::parse(project)?, Wild::parse(name)?));
        }
        if let Some((name, project)) = text.split_once('.') {
            let project = project.split('.').next().filter(|p| !p.is_empty());
            let right = format!("{}/{}", project.unwrap_or("project"), name);
            return Err(SelectorError::Dot(printable(text), printable(&right)));
        }
        match Wild::parse(text)? {
            Wild::Any => Ok(Self::Any),
            Wild::Is(name) => Ok(Self::Service(name)),
        }
    }

    /// Whether this is a selector of services, and selects services with this name.
    #[must_use]
    pub fn names(&self, service: &ServiceName) -> bool {
        match self {
            Self::Service(name) => service.project.is_none() && service.name == *name,
            Self::InProject(project, name) => {
                let of_project = service.project.as_ref().is_some_and(|p| project.is(p));
                of_project && name.is(&service.name)
            }
            Self::Project(project) => service.project.as_ref().is_some_and(|p| project.is(p)),
            Self::Any
            | Self::Tag(_)
            | Self::Node(_)
            | Self::Guest(_)
            | Self::Route(_)
            | Self::SameProject
            | Self::Unknown => false,
        }
    }
}

impl Wild {
    fn parse(text: &str) -> Result<Self, SelectorError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if text.contains('*') {
            return Err(SelectorError::PartlyWild(printable(text)));
        }
        Ok(Self::Is(Label::parse(text)?))
    }

    /// Whether this stands for `name`.
    #[must_use]
    pub fn is(&self, name: &Label) -> bool {
        match self {
            Self::Any => true,
            Self::Is(own) => own == name,
        }
    }
}

/// The remedy for a word before a colon with which no selector begins.
fn right_prefix(word: &str) -> String {
    match word {
        "group" | "groups" => "a group is written as its name alone".to_owned(),
        "service" | "services" | "svc" | "name" => {
            "a service is written as its name alone".to_owned()
        }
        _ => {
            let known = "there are `tag:`, `node:`, `project:`, `guest:` and `route:`";
            match text::nearest(word, PREFIXES, SIMILAR) {
                Some(nearest) => format!("did you mean `{nearest}:`? {known}"),
                None => known.to_owned(),
            }
        }
    }
}

/// How similar a word must be to be the one that was probably meant, from 0 to 1 (Jaro-Winkler).
const SIMILAR: f64 = 0.7;

/// The words before a colon with which selectors begin.
pub(super) const PREFIXES: [&str; 5] = ["tag", "node", "project", "guest", "route"];

impl fmt::Display for Wild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Is(name) => write!(f, "{name}"),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Service(name) => write!(f, "{name}"),
            Self::InProject(project, name) => write!(f, "{project}/{name}"),
            Self::Project(project) => write!(f, "project:{project}"),
            Self::Tag(tag) => write!(f, "tag:{tag}"),
            Self::Node(node) => write!(f, "node:{node}"),
            Self::Guest(guest) => write!(f, "guest:{guest}"),
            Self::Route(node) => write!(f, "route:{node}"),
            Self::SameProject => f.write_str("same-project"),
            Self::Unknown => f.write_str("(unknown)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_a_selector_is_printed_as_it_was_written() {
        for text in [
            "*",
            "db",
            "shop/db",
            "shop/*",
            "*/db",
            "project:shop",
            "project:*",
            "tag:ops",
            "tag:*",
            "node:web-1",
            "node:*",
            "guest:anna",
            "guest:*",
            "route:nas",
            "route:*",
            "same-project",
        ] {
            assert_eq!(
                Selector::parse(text).map(|s| s.to_string()),
                Ok(text.to_owned())
            );
        }
        assert_eq!(Selector::parse("Shop/DB"), Selector::parse("shop/db"));
    }

    #[test]
    fn a_wrong_selector_is_answered_with_what_is_right_in_its_place() {
        let said = |text| {
            Selector::parse(text)
                .expect_err("wrong on purpose")
                .to_string()
        };
        assert_eq!(said(""), "a selector cannot be empty");
        assert_eq!(
            said("tags:ops"),
            "`tags:` begins no selector; did you mean `tag:`? there are `tag:`, `node:`, `project:`, `guest:` and `route:`"
        );
        assert_eq!(
            said("x:ops"),
            "`x:` begins no selector; there are `tag:`, `node:`, `project:`, `guest:` and `route:`"
        );
        assert_eq!(
            said("group:ops"),
            "`group:` begins no selector; a group is written as its name alone"
        );
        assert_eq!(
            said("db.shop"),
            "`db.shop` has a dot; a service of a project is written `project/name`, such as `shop/db`"
        );
        assert_eq!(
            said("10.210.0.0/16"),
            "`10.210.0.0/16` is an address; selectors are names, such as `node:NAME` or `tag:TAG`"
        );
        assert_eq!(
            said("tag:\u{43e}ps"),
            "`tag:\u{43e}ps` has the character `\u{43e}` (U+043E) in it, which may look like another one; letters a-z, digits and hyphens are allowed"
        );
        assert_eq!(
            said("db-*"),
            "`db-*` has a `*` inside a name; `*` stands for a whole name, such as `project/*`, `node:*` or `*`"
        );
        assert_eq!(
            said("shop/a/b"),
            "the name `a/b` has `/` in it; letters a-z, digits and hyphens are allowed"
        );
    }

    #[test]
    fn a_service_is_selected_by_the_name_that_the_dns_has_for_it() {
        let names = |selector: &str, service: &str| {
            let selector = Selector::parse(selector).expect("a selector");
            selector.names(&ServiceName::parse(service).expect("a name"))
        };
        assert!(names("db", "db") && !names("db", "db.shop"));
        assert!(names("shop/db", "db.shop") && !names("shop/db", "db"));
        assert!(
            names("shop/*", "db.shop")
                && names("*/db", "db.shop")
                && names("project:shop", "db.shop")
        );
        assert!(!names("*/db", "db") && !names("project:*", "db"));
    }
}
