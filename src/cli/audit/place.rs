//! Where the log lies that is read: that of meshd, or that of mesh-coordinator.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::cli::exit::CliError;
use crate::os::audit::files::{CURRENT, HEAD};
use crate::protocol::api::ErrorCode;

/// The daemons: the name, the configuration, and the state directory if the configuration names no other one.
const DAEMONS: [(&str, &str, &str); 2] = [
    ("meshd", "/etc/meshd/meshd.toml", "/var/lib/meshd"),
    (
        "mesh-coordinator",
        "/etc/meshd/coordinator.toml",
        "/var/lib/mesh-coordinator",
    ),
];

/// The log that is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    /// A note for the user, if this machine has another log as well.
    pub(super) other: Option<String>,
}

/// The log that the user named, or the one of this machine.
pub(super) fn find(named: Option<&Path>) -> Result<Place, CliError> {
    if let Some(path) = named {
        let directory = match path.file_name() {
            Some(name) if name == CURRENT && !path.is_dir() => match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            },
            _ => path,
        };
        if directory.is_file() {
            let text = format!(
                "{} is no state directory and no {CURRENT}; name one of them",
                path.display()
            );
            return Err(CliError::new(ErrorCode::BadRequest, text));
        }
        return Ok(Place {
            directory: directory.to_owned(),
            other: None,
        });
    }
    let directories = DAEMONS.map(|(name, config, directory)| {
        let text = std::fs::read_to_string(config).unwrap_or_default();
        (name, state_dir(&text).unwrap_or_else(|| directory.into()))
    });
    choose(&directories, has_log)
}

/// The state directory that a configuration names.
fn state_dir(config: &str) -> Option<PathBuf> {
    let table: toml::Table = config.parse().ok()?;
    table.get("state_dir")?.as_str().map(PathBuf::from)
}

/// Whether a directory has a log. A directory that this user may not read may have one.
fn has_log(directory: &Path) -> bool {
    [CURRENT, HEAD].iter().any(|name| {
        let found = std::fs::metadata(directory.join(name));
        found.is_ok() || found.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    })
}

fn choose(
    directories: &[(&str, PathBuf)],
    has_log: impl Fn(&Path) -> bool,
) -> Result<Place, CliError> {
    let mut found = directories.iter().filter(|(_, path)| has_log(path));
    let Some((name, directory)) = found.next() else {
        let all = directories.iter().map(|(_, path)| path.display());
        let all: Vec<String> = all.map(|path| path.to_string()).collect();
        let text = format!(
            "there is no audit log in {}; run this where meshd or mesh-coordinator runs, or name its state directory with --file",
            all.join(" and in ")
        );
        return Err(CliError::new(ErrorCode::NotFound, text));
    };
    let other = found.next().map(|(other, path)| {
        format!(
            "this is the log of {name}; for that of {other} use --file {}",
            path.display()
        )
    });
    Ok(Place {
        directory: directory.clone(),
        other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories() -> [(&'static str, PathBuf); 2] {
        [("meshd", "/n".into()), ("mesh-coordinator", "/c".into())]
    }

    #[test]
    fn the_log_of_the_node_is_read_before_that_of_the_coordinator_and_the_other_one_is_named() {
        let only = |which: &'static str| {
            let place = choose(&directories(), |path| path == Path::new(which));
            place.expect("there is one")
        };
        let alone = |directory: &str| Place {
            directory: directory.into(),
            other: None,
        };
        assert_eq!(only("/n"), alone("/n"));
        assert_eq!(only("/c"), alone("/c"));
        let both = choose(&directories(), |_| true).expect("there are two");
        let other = "this is the log of meshd; for that of mesh-coordinator use --file /c";
        assert_eq!(both.directory, Path::new("/n"));
        assert_eq!(both.other.as_deref(), Some(other));
        let none = choose(&directories(), |_| false).expect_err("there is none");
        assert_eq!(none.code, 2);
        assert!(none.message.contains("in /n and in /c"), "{}", none.message);
    }

    #[test]
    fn a_log_is_named_by_its_directory_or_by_its_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        let expected = Place {
            directory: path.to_owned(),
            other: None,
        };
        assert_eq!(find(Some(path)).expect("a directory"), expected);
        let file = path.join(CURRENT);
        assert_eq!(find(Some(&file)).expect("its file"), expected);
        let other = path.join("x.jsonl");
        std::fs::write(&other, "").expect("writable");
        assert_eq!(find(Some(&other)).expect_err("no log").code, 64);
    }

    #[test]
    fn the_state_directory_of_the_configuration_counts() {
        assert_eq!(state_dir("state_dir = \"/x\"\n[log]"), Some("/x".into()));
        assert_eq!(state_dir("[log]"), None);
        assert_eq!(state_dir("="), None);
    }
}
