//! What a caller may choose of a container, checked against its template.

use std::collections::{BTreeMap, BTreeSet};

use super::image::ImageName;
use super::refused::{MAX_NAME, Refused};
use super::template::{Network, Template};

/// The maximum number of words of a command, of variables, labels, volumes and ports.
const MAX_WORDS: usize = 256;
const MAX_VARIABLES: usize = 256;
const MAX_LABELS: usize = 32;
const MAX_VOLUMES: usize = 8;
const MAX_PORTS: usize = 32;
/// The maximum length of a path, in bytes, as Linux has it.
const MAX_PATH: usize = 4095;
/// The folders of the kernel, over which no volume is mounted.
const OF_KERNEL: [&str; 3] = ["/dev", "/proc", "/sys"];

/// What a caller wants, in values that the template permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub image: ImageName,
    pub process: Process,
    pub terminal: Terminal,
    pub labels: BTreeMap<String, String>,
    /// The folders that are empty at the start and are removed with the container.
    pub volumes: BTreeSet<String>,
    /// The ports on which its programs listen, such as `80/tcp`. They open nothing.
    pub exposed: BTreeSet<String>,
    pub host_name: Option<String>,
    /// Whether it has no network although its template has one.
    pub is_isolated: bool,
    /// Whether the engine removes it when it ends.
    pub auto_remove: bool,
}

/// The first process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Process {
    pub command: Option<Vec<String>>,
    pub entry_point: Option<Vec<String>>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    pub working_dir: Option<String>,
    /// Whether a small init process of the engine reaps its children.
    pub init: bool,
    pub stop_signal: Option<String>,
    pub stop_timeout: Option<u32>,
}

/// Which streams of the first process are connected, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terminal {
    pub attach: Attach,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
}

/// The streams that the caller attaches to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attach {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// The names that fields have in the body of a call, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    pub command: &'static str,
    pub entry_point: &'static str,
    pub environment: &'static str,
    pub working_dir: &'static str,
    pub labels: &'static str,
    pub volumes: &'static str,
}

impl Wanted {
    /// A container of `image` of which the caller chose nothing else.
    #[must_use]
    pub fn of(image: ImageName) -> Self {
        Self {
            image,
            process: Process::default(),
            terminal: Terminal::default(),
            labels: BTreeMap::new(),
            volumes: BTreeSet::new(),
            exposed: BTreeSet::new(),
            host_name: None,
            is_isolated: false,
            auto_remove: false,
        }
    }

    /// Checks each value, and that `template` permits to choose it.
    ///
    /// # Errors
    /// The first value that is refused, by the name that its field has in `names`.
    pub(super) fn check(&self, template: &Template, names: &Names) -> Result<(), Refused> {
        self.check_process(template, names)?;
        self.check_labels(template, names.labels)?;
        self.check_volumes(template, names.volumes)?;
        if self.exposed.len() > MAX_PORTS {
            return Err(Refused::field("ExposedPorts", too_many(MAX_PORTS)));
        }
        if let Some(port) = self.exposed.iter().find(|port| !is_port(port)) {
            let field = format!("ExposedPorts.{port}");
            return Err(Refused::field(&field, "write a port such as 80/tcp"));
        }
        let is_host_name = |name: &String| crate::model::Label::parse(name).is_ok();
        if !self.host_name.as_ref().is_none_or(is_host_name) {
            let right = "write one DNS label of letters, digits and hyphens";
            return Err(Refused::field("Hostname", right));
        }
        Ok(())
    }

    fn check_process(&self, template: &Template, names: &Names) -> Result<(), Refused> {
        let process = &self.process;
        let lists = [
            (names.command, &process.command),
            (names.entry_point, &process.entry_point),
        ];
        for (name, words) in lists {
            let Some(words) = words else { continue };
            if !template.may.command {
                return Err(Refused::field(name, not_permitted(template, "command")));
            }
            check_words(name, words)?;
        }
        if let Some(path) = &process.working_dir {
            if !template.may.command {
                let right = not_permitted(template, "command");
                return Err(Refused::field(names.working_dir, right));
            }
            if !is_path(path) {
                return Err(Refused::field(names.working_dir, NO_PATH));
            }
        }
        check_environment(&process.environment, template, names.environment)?;
        let is_signal = |signal: &String| {
            let plain = signal
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'+' || c == b'-');
            (1..=16).contains(&signal.len()) && plain
        };
        if !process.stop_signal.as_ref().is_none_or(is_signal) {
            return Err(Refused::field(
                "StopSignal",
                "write a signal such as SIGTERM",
            ));
        }
        Ok(())
    }

    fn check_labels(&self, template: &Template, field: &str) -> Result<(), Refused> {
        if self.labels.len() > MAX_LABELS {
            return Err(Refused::field(field, too_many(MAX_LABELS)));
        }
        let mut labels = self.labels.iter();
        match labels.find(|(name, value)| !template.may.label(name, value)) {
            Some((name, _)) => {
                let right = not_permitted(template, "labels");
                Err(Refused::field(&format!("{field}.{name}"), right))
            }
            None => Ok(()),
        }
    }

    fn check_volumes(&self, template: &Template, field: &str) -> Result<(), Refused> {
        if self.volumes.is_empty() {
            return Ok(());
        }
        if !template.may.scratch {
            let right = not_permitted(template, "volumes");
            return Err(Refused::field(field, right));
        }
        if self.volumes.len() > MAX_VOLUMES {
            return Err(Refused::field(field, too_many(MAX_VOLUMES)));
        }
        match self.volumes.iter().find(|path| !is_volume(path)) {
            Some(path) => Err(Refused::field(
                &format!("{field}.{path}"),
                "write the path of a folder that the container may have for itself, such as /cache",
            )),
            None => Ok(()),
        }
    }

    /// Whether the container is on the network of its template.
    #[must_use]
    pub fn has_network(&self, template: &Template) -> bool {
        template.network == Network::Own && !self.is_isolated
    }
}

const NO_PATH: &str = "write a path that begins with `/`, without `..`";

/// Checks variables, and that the template permits to set some.
pub(super) fn check_environment(
    variables: &[String],
    template: &Template,
    field: &str,
) -> Result<(), Refused> {
    if variables.is_empty() {
        return Ok(());
    }
    if !template.may.environment {
        let right = not_permitted(template, "environment");
        return Err(Refused::field(field, right));
    }
    if variables.len() > MAX_VARIABLES {
        return Err(Refused::field(field, too_many(MAX_VARIABLES)));
    }
    // For a name without a value, Podman takes the value that its own service has, and with `*` those of all names that begin so.
    let is_named = |variable: &String| {
        variable.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| !c.is_whitespace() && !c.is_control())
        })
    };
    if !variables.iter().all(is_named) {
        return Err(Refused::field(field, "write variables as `NAME=value`"));
    }
    no_zero(field, variables)
}

/// Checks words of a command that may be chosen: their number, and that the kernel can take them.
pub(super) fn check_words(field: &str, words: &[String]) -> Result<(), Refused> {
    if words.len() > MAX_WORDS {
        return Err(Refused::field(field, too_many(MAX_WORDS)));
    }
    no_zero(field, words)
}

/// Checks the name that a caller gives to a container.
///
/// # Errors
/// The engine would not take it, or it is too long.
pub fn check_name(name: &str) -> Result<(), Refused> {
    let word = |c: u8| c.is_ascii_alphanumeric();
    let is_valid = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().next().is_some_and(word)
        && name
            .bytes()
            .all(|c| word(c) || matches!(c, b'.' | b'_' | b'-'));
    let shown = || crate::model::text::printable(name, MAX_NAME);
    is_valid.then_some(()).ok_or_else(|| Refused::Name(shown()))
}

/// A path from the root in its only form: no part of it is empty, `.` or `..`.
pub(super) fn is_path(path: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(char::is_control);
    let below = path.strip_prefix('/');
    path.len() <= MAX_PATH
        && below.is_some_and(|below| below.is_empty() || below.split('/').all(plain))
}

/// Whether a volume may be mounted at `path`.
fn is_volume(path: &str) -> bool {
    let is_within = |folder: &&str| {
        let rest = path.strip_prefix(*folder);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    // The engine's own notation of mounts has a meaning for colons.
    is_path(path) && path != "/" && !path.contains(':') && !OF_KERNEL.iter().any(is_within)
}

fn is_port(text: &str) -> bool {
    let number = match text.split_once('/') {
        Some((number, "tcp" | "udp" | "sctp")) => number,
        Some(_) => return false,
        None => text,
    };
    let is_plain = number.bytes().all(|c| c.is_ascii_digit());
    is_plain && number.parse::<std::num::NonZeroU16>().is_ok()
}

fn no_zero(field: &str, texts: &[String]) -> Result<(), Refused> {
    match texts.iter().any(|text| text.contains('\0')) {
        true => Err(Refused::field(field, "no text may have a zero byte in it")),
        false => Ok(()),
    }
}

fn too_many(most: usize) -> String {
    format!("{most} are the most")
}

fn not_permitted(template: &Template, setting: &str) -> String {
    format!(
        "the template {} does not permit to choose it; its owner decides that with `{setting}` in [[spawn]]",
        template.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawn::fixture::template;

    #[test]
    fn volumes_are_folders_of_the_container_alone() {
        for path in ["/cache", "/var/lib/x", "/device", "/home/a b"] {
            assert!(is_volume(path), "{path}");
        }
        for path in [
            "",
            "/",
            "cache",
            "/a/../b",
            "/a//b",
            "/a/",
            "/./a",
            "/proc",
            "/proc/sys",
            "/sys/fs",
            "/dev",
            "/dev/sda",
            "/host:/x",
            "/a\n",
            "/..",
        ] {
            assert!(!is_volume(path), "{path}");
        }
    }

    #[test]
    fn a_variable_has_a_value_of_the_caller_and_none_of_the_engine() {
        let check = |variable: &str| {
            let variables = [variable.to_owned()];
            check_environment(&variables, &template(), "Env")
        };
        for variable in ["A=1", "A=", "a.b-c=x=y", "*=1"] {
            assert_eq!(check(variable), Ok(()), "{variable}");
        }
        for variable in ["", "A", "*", "REGISTRY_*", "=1", "A B=1", "A\n=1", "A=\0"] {
            let refused = check(variable).expect_err(variable);
            assert!(refused.to_string().starts_with("Env: "), "{refused}");
        }
    }

    #[test]
    fn ports_and_names_have_the_form_that_the_engine_takes() {
        for port in ["80/tcp", "53/udp", "9/sctp", "1"] {
            assert!(is_port(port), "{port}");
        }
        for port in [
            "",
            "0/tcp",
            "65536/tcp",
            "80/icmp",
            "80-90/tcp",
            "+80/tcp",
            "80/",
        ] {
            assert!(!is_port(port), "{port}");
        }
        for name in ["web", "web-1", "a.b_c", "9"] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", "-a", "a/b", "a b", "\u{e4}", "a?x=1", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
