//! Names that become DNS labels: nodes, services, projects, instances, tags, ports.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// One DNS label of letters, digits and hyphens (RFC 1035 section 2.3.1, with the leading digit that RFC 1123 section
/// 2.1 allows). It is stored in lower case, because names are compared without case (RFC 4343).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Label(String);

/// The maximum length of a label, in bytes (RFC 1035 section 2.3.4).
pub const MAX_LABEL: usize = 63;

/// The reason why a text is not a [`Label`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The text is empty.
    #[error("a name cannot be empty")]
    Empty,
    /// The text has more than 63 bytes.
    #[error("the name has {0} bytes; a DNS label has at most 63")]
    TooLong(usize),
    /// The text has a dot, so it is more than one label.
    #[error("the name `{0}` has a dot; give one label, such as `{1}`")]
    Dot(String, String),
    /// The text has a character that is not a letter, digit or hyphen.
    #[error("the name `{0}` has `{odd}` in it; letters a-z, digits and hyphens are allowed", odd = .1.escape_debug())]
    Character(String, char),
    /// The text starts or ends with a hyphen.
    #[error("the name `{0}` starts or ends with a hyphen; begin and end it with a letter or digit")]
    Hyphen(String),
}

impl Label {
    /// Parses a name, and changes upper case to lower case.
    ///
    /// # Errors
    /// Says which rule of the label syntax the text breaks.
    pub fn parse(text: &str) -> Result<Self, LabelError> {
        if text.is_empty() {
            return Err(LabelError::Empty);
        }
        if text.len() > MAX_LABEL {
            return Err(LabelError::TooLong(text.len()));
        }
        if let Some((first, _)) = text.split_once('.') {
            return Err(LabelError::Dot(printable(text), printable(first)));
        }
        if let Some(odd) = text
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && *c != '-')
        {
            return Err(LabelError::Character(printable(text), odd));
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(LabelError::Hyphen(text.to_owned()));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    /// Returns the label that is closest to a machine's host name: its first part, with hyphens in place of other characters.
    #[must_use]
    pub fn from_host_name(host: &str) -> Self {
        let first = host.split('.').next().unwrap_or_default();
        let mut text: String = first
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '-'
                }
            })
            .take(MAX_LABEL)
            .collect();
        text = text.trim_matches('-').to_owned();
        if text.is_empty() {
            Self("node".to_owned())
        } else {
            Self(text)
        }
    }

    /// Returns the label that is closest to another name, such as a container's, with hyphens in place of other
    /// characters. Returns none if the name has no letter or digit, or if it is too long.
    #[must_use]
    pub fn nearest(text: &str) -> Option<Self> {
        if text.len() > 4 * MAX_LABEL {
            return None;
        }
        let mapped: String = text
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        Self::parse(mapped.trim_matches('-')).ok()
    }

    /// Returns this label and `other` with a hyphen between them; none if they are longer than 63 bytes.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Option<Self> {
        let text = format!("{self}-{other}");
        (text.len() <= MAX_LABEL).then_some(Self(text))
    }

    /// Returns this label with `suffix` after a hyphen. The label is cut so that both fit into 63 bytes.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Self {
        let suffix: String = suffix
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .take(32)
            .collect();
        let suffix = suffix.trim_matches('-');
        let room = MAX_LABEL.saturating_sub(suffix.len() + 1);
        let front = self.0.get(..room.min(self.0.len())).unwrap_or_default();
        Self(format!(
            "{}-{}",
            front.trim_end_matches('-'),
            suffix.to_ascii_lowercase()
        ))
    }

    /// Returns the label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn printable(text: &str) -> String {
    super::text::printable(text, MAX_LABEL)
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::str::FromStr for Label {
    type Err = LabelError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// What a service is called: `<name>.svc.<domain>`, or `<name>.<project>.svc.<domain>` for one of a Compose project.
/// As text it is `<name>` or `<name>.<project>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The first label.
    pub name: Label,
    /// The Compose project, if it is of one.
    pub project: Option<Label>,
}

impl ServiceName {
    /// Parses `<name>` or `<name>.<project>`.
    ///
    /// # Errors
    /// Says which rule of the label syntax a part breaks.
    pub fn parse(text: &str) -> Result<Self, LabelError> {
        let (name, project) = match text.split_once('.') {
            Some((name, project)) => (name, Some(Label::parse(project)?)),
            None => (text, None),
        };
        Ok(Self {
            name: Label::parse(name)?,
            project,
        })
    }
}

impl From<Label> for ServiceName {
    fn from(name: Label) -> Self {
        Self {
            name,
            project: None,
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.project {
            Some(project) => write!(f, "{}.{project}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

impl Serialize for ServiceName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_name_is_one_label_or_two() {
        for text in ["db", "web.shop"] {
            assert_eq!(
                ServiceName::parse(text).map(|name| name.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in ["", "a.b.c", "a.", ".b", "a_b"] {
            assert!(ServiceName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_nearest_label_keeps_letters_and_digits() {
        let nearest = |text| Label::nearest(text).map(|l| l.to_string());
        assert_eq!(nearest("My_app.1"), Some("my-app-1".to_owned()));
        assert_eq!(nearest("__"), None);
        assert_eq!(nearest(&"a".repeat(64)), None);
    }

    #[test]
    fn a_plain_name_is_folded_to_lower_case() {
        assert_eq!(
            Label::parse("Web-1").map(|l| l.to_string()),
            Ok("web-1".to_owned())
        );
        assert_eq!(
            Label::parse(&"a".repeat(63)).map(|l| l.as_str().len()),
            Ok(63)
        );
    }

    #[test]
    fn each_broken_rule_is_named() {
        assert_eq!(Label::parse(""), Err(LabelError::Empty));
        assert_eq!(Label::parse(&"a".repeat(64)), Err(LabelError::TooLong(64)));
        assert_eq!(
            Label::parse("a.b"),
            Err(LabelError::Dot("a.b".into(), "a".into()))
        );
        assert_eq!(
            Label::parse("a_b"),
            Err(LabelError::Character("a_b".into(), '_'))
        );
        assert_eq!(
            Label::parse("bücher"),
            Err(LabelError::Character("bücher".into(), 'ü'))
        );
        assert_eq!(Label::parse("-a"), Err(LabelError::Hyphen("-a".into())));
        assert_eq!(Label::parse("a-"), Err(LabelError::Hyphen("a-".into())));
    }

    #[test]
    fn any_host_name_gives_a_label() {
        assert_eq!(Label::from_host_name("Web_1.example.com").as_str(), "web-1");
        assert_eq!(Label::from_host_name("___").as_str(), "node");
        assert_eq!(Label::from_host_name("").as_str(), "node");
    }

    #[test]
    fn a_suffix_never_makes_a_label_too_long() {
        let long = Label::parse(&"a".repeat(63)).expect("63 bytes fit");
        let suffixed = long.with_suffix("8080");
        assert_eq!(suffixed.as_str().len(), 63);
        assert!(suffixed.as_str().ends_with("a-8080"));
        let suffixed = long.with_suffix("-8080-udp_");
        assert_eq!(suffixed.as_str().len(), 63);
        assert!(suffixed.as_str().ends_with("a-8080-udp"));
    }
}
