//! Templates: what the owner of a node permits a caller to start there.

use std::fmt;
use std::time::Duration;

use super::image::{ImageName, ImagePattern};
use crate::model::Label;
use crate::policy::Selector;

/// The beginning of the labels that meshd itself gives to the containers that it spawns.
pub(super) const OWN_LABELS: &str = "meshd.";
/// The beginnings of labels that no template permits. A container with those of Compose would take the name of another project's
/// service in the mesh.
const RESERVED_LABELS: [&str; 3] = [OWN_LABELS, "com.docker.", "io.podman."];
/// The maximum length of the name of a label, in bytes.
const MAX_LABEL_NAME: usize = 128;
/// The largest number of containers in a rate, and the number of bytes in a unit of memory.
const MAX_RATE: u32 = 1000;
const UNITS: [(&str, u64); 4] = [
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
];

/// A template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub name: Label,
    /// The callers that need no token.
    pub from: Vec<Selector>,
    pub images: Vec<ImagePattern>,
    pub may: Permitted,
    pub limits: Limits,
    pub quota: Quota,
    pub network: Network,
    /// The user of each process. None leaves it to the image.
    pub user: Option<User>,
}

/// The parts of a container that the caller may choose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Permitted {
    /// Whether the caller may choose the command, its entry point and its working directory.
    pub command: bool,
    pub environment: bool,
    /// Whether there may be volumes. They are empty at the start and are removed with the container.
    pub scratch: bool,
    pub labels: Vec<LabelRule>,
}

/// The limits of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, with what lies in swap.
    pub memory: u64,
    /// Billionths of a processor.
    pub nano_cpus: u64,
    /// The number of processes and threads.
    pub pids: u32,
}

/// The limits of all containers of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// The number of containers that exist at once.
    pub max: u32,
    /// The sum of their limits of memory, in bytes.
    pub memory_total: u64,
    pub rate: SpawnRate,
    /// How long a container exists.
    pub ttl: Duration,
}

/// How many containers may be created in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpawnRate {
    pub count: u32,
    pub period: Duration,
}

/// The network of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// One for the containers that a caller started from a template.
    Own,
    /// None at all.
    None,
}

/// A user and a group, by their numbers. A name would mean what the image says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: Option<u32>,
}

/// The labels that a caller may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelRule {
    /// `name`: this label, with each value.
    Named(String),
    /// `name=value`: this label, with this value.
    Exactly(String, String),
    /// `prefix.*`: each label that begins so. The text ends with the dot.
    Below(String),
}

/// The reason why the value of a setting has no meaning, with what to write in its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    #[error("`{0}` is no size; write a number with k, m, g or t, such as \"512m\"")]
    Memory(String),
    #[error(
        "`{0}` is no rate; write 1 to {MAX_RATE} in a period, such as \"30/min\", \"1/s\" or \"100/h\""
    )]
    Rate(String),
    #[error(
        "`{0}` is no user; write numbers, such as \"1000:1000\", because a name means what the image says"
    )]
    User(String),
    #[error("`{0}` is no label; write its name, `name=value`, or `prefix.*`")]
    Label(String),
    #[error(
        "`{0}` permits labels that begin with `{1}`; those say whose container it is, and no caller may set them"
    )]
    Reserved(String, &'static str),
}

impl Template {
    #[must_use]
    pub fn permits_image(&self, image: &ImageName) -> bool {
        self.images.iter().any(|pattern| pattern.permits(image))
    }
}

impl Permitted {
    /// Whether a caller may set the label `name` to `value`.
    #[must_use]
    pub fn label(&self, name: &str, value: &str) -> bool {
        let is_reserved = RESERVED_LABELS.iter().any(|start| name.starts_with(start));
        !is_reserved && self.labels.iter().any(|rule| rule.permits(name, value))
    }
}

impl LabelRule {
    /// Parses the text in a template.
    ///
    /// # Errors
    /// The text is no rule, or it permits labels that say whose container it is.
    pub fn parse(text: &str) -> Result<Self, SettingError> {
        let shown = || crate::model::text::printable(text, MAX_LABEL_NAME);
        let below = text.strip_suffix('*');
        let name = below.unwrap_or_else(|| text.split_once('=').map_or(text, |(name, _)| name));
        let is_name = (1..=MAX_LABEL_NAME).contains(&name.len()) && name.bytes().all(is_of_label);
        if !is_name || below.is_some_and(|prefix| !prefix.ends_with('.')) {
            return Err(SettingError::Label(shown()));
        }
        let is_reserved = |start: &&&str| {
            name.starts_with(**start) || (below.is_some() && start.starts_with(name))
        };
        if let Some(start) = RESERVED_LABELS.iter().find(is_reserved) {
            return Err(SettingError::Reserved(shown(), start));
        }
        Ok(match (below, text.split_once('=')) {
            (Some(prefix), _) => Self::Below(prefix.to_owned()),
            (None, Some((name, value))) => Self::Exactly(name.to_owned(), value.to_owned()),
            (None, None) => Self::Named(text.to_owned()),
        })
    }

    fn permits(&self, name: &str, value: &str) -> bool {
        match self {
            Self::Named(own) => own == name,
            Self::Exactly(own, only) => own == name && only == value,
            Self::Below(prefix) => name.starts_with(prefix),
        }
    }

    /// Whether the rule permits a label with which the container becomes a service of the mesh.
    #[must_use]
    pub fn is_of_mesh(&self) -> bool {
        match self {
            Self::Named(name) | Self::Exactly(name, _) | Self::Below(name) => {
                name.starts_with("mesh.")
            }
        }
    }
}

fn is_of_label(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_' | b'/')
}

impl SpawnRate {
    /// Parses a rate such as `30/min`.
    ///
    /// # Errors
    /// The text is no rate.
    pub fn parse(text: &str) -> Result<Self, SettingError> {
        let wrong = || SettingError::Rate(crate::model::text::printable(text, MAX_LABEL_NAME));
        let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
        let seconds = match unit {
            "s" => 1,
            "min" => 60,
            "h" => 3600,
            _ => return Err(wrong()),
        };
        let count = number::<u32>(count).filter(|count| (1..=MAX_RATE).contains(count));
        Ok(Self {
            count: count.ok_or_else(wrong)?,
            period: Duration::from_secs(seconds),
        })
    }
}

impl User {
    /// Parses `1000` or `1000:1000`.
    ///
    /// # Errors
    /// The text is not made of numbers.
    pub fn parse(text: &str) -> Result<Self, SettingError> {
        let wrong = || SettingError::User(crate::model::text::printable(text, MAX_LABEL_NAME));
        // The last number stands for no user in the kernel.
        let id = |text: &str| number::<u32>(text).filter(|id| *id != u32::MAX);
        let (uid, gid) = match text.split_once(':') {
            Some((uid, gid)) => (uid, Some(id(gid).ok_or_else(wrong)?)),
            None => (text, None),
        };
        Ok(Self {
            uid: id(uid).ok_or_else(wrong)?,
            gid,
        })
    }
}

/// Parses a size such as `512m`, in bytes.
///
/// # Errors
/// The text is no size.
pub fn bytes(text: &str) -> Result<u64, SettingError> {
    let wrong = || SettingError::Memory(crate::model::text::printable(text, MAX_LABEL_NAME));
    let in_unit = UNITS.iter().find_map(|(unit, factor)| {
        let count = number::<u64>(text.strip_suffix(unit)?)?;
        count.checked_mul(*factor)
    });
    in_unit.ok_or_else(wrong)
}

/// Parses digits alone, without the sign that the parsers of numbers accept.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let is_plain = text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

impl fmt::Display for SpawnRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.period.as_secs() {
            1 => "s",
            60 => "min",
            _ => "h",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gid {
            Some(gid) => write!(f, "{}:{gid}", self.uid),
            None => write!(f, "{}", self.uid),
        }
    }
}

impl fmt::Display for LabelRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Exactly(name, value) => write!(f, "{name}={value}"),
            Self::Below(prefix) => write!(f, "{prefix}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_rates_and_users_are_read_as_they_are_meant_and_nothing_else_is() {
        assert_eq!(bytes("1g"), Ok(1 << 30));
        assert_eq!(bytes("512m"), Ok(512 << 20));
        for text in [
            "",
            "1",
            "g",
            "-1g",
            "+1g",
            "1.5g",
            "1G",
            "1gb",
            " 1g",
            "99999999999t",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
        let rate =
            |text: &str| SpawnRate::parse(text).map(|rate| (rate.count, rate.period.as_secs()));
        assert_eq!(rate("30/min"), Ok((30, 60)));
        assert_eq!(rate("1/s"), Ok((1, 1)));
        assert_eq!(rate("1000/h"), Ok((1000, 3600)));
        for text in ["", "30", "0/min", "1001/s", "+1/s", "1/d", "/s", "1/"] {
            assert!(rate(text).is_err(), "{text}");
        }
        let user = |text: &str| User::parse(text).map(|user| user.to_string());
        assert_eq!(user("1000:1000").as_deref(), Ok("1000:1000"));
        assert_eq!(user("0").as_deref(), Ok("0"));
        for text in [
            "",
            "root",
            "1000:",
            ":1000",
            "1000:root",
            "-1",
            "4294967295",
            "1:2:3",
        ] {
            assert!(user(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_label_is_permitted_by_name_by_value_or_by_prefix() {
        let may = |rule: &str, name: &str, value: &str| {
            let labels = vec![LabelRule::parse(rule).expect("a rule")];
            let permitted = Permitted {
                labels,
                ..Permitted::default()
            };
            permitted.label(name, value)
        };
        assert!(may("mesh.service", "mesh.service", "db"));
        assert!(!may("mesh.service", "mesh.service2", "db"));
        assert!(may("mesh.service=job", "mesh.service", "job"));
        assert!(!may("mesh.service=job", "mesh.service", "db"));
        assert!(may(
            "org.testcontainers.*",
            "org.testcontainers.lang",
            "java"
        ));
        assert!(!may("org.testcontainers.*", "org.testcontainers", "true"));
    }

    #[test]
    fn no_rule_permits_a_label_that_says_whose_container_it_is() {
        for rule in [
            "meshd.spawn",
            "meshd.*",
            "com.docker.compose.project",
            "com.docker.compose.project=shop",
            "com.docker.*",
            "com.*",
            "io.podman.*",
        ] {
            let error = LabelRule::parse(rule).expect_err("it is reserved");
            assert!(matches!(error, SettingError::Reserved(..)), "{rule}");
        }
        for rule in ["", "*", "a*", ".*x", "a b", "=x", "*=x", "\u{e4}"] {
            assert!(LabelRule::parse(rule).is_err(), "{rule}");
        }
        let permitted = Permitted {
            labels: vec![LabelRule::Named("meshd.spawn".to_owned())],
            ..Permitted::default()
        };
        assert!(!permitted.label("meshd.spawn", "x"));
    }
}
