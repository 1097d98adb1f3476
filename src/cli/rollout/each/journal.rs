//! The journal of a rollout: a file with the order in its first line and an entry in each other line. An entry is on disk before the
//! step that it announces, so that the rollout can be resumed after the terminal, or the machine, has died.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::course::Entry;
use super::order::Order;
use crate::cli::exit::CliError;
use crate::model::ServiceName;
use crate::os::file::{FileError, exposure, open_regular, private_dir, sync_parent};
use crate::protocol::api::ErrorCode;
use crate::protocol::local::SCHEMA;

/// The maximum size of a journal that is read, in bytes.
const MAX_JOURNAL: u64 = 16 * 1024 * 1024;

/// A journal that is open for more entries.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Held until the rollout ends, so that no other one of the same service begins on this machine.
    _lock: File,
}

/// What a journal has.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) order: Order,
    pub(super) entries: Vec<Entry>,
    /// The length of what can be read, in bytes. The last line may have been cut off.
    length: u64,
}

/// Where journals are kept, unless the person names a file.
///
/// # Errors
/// The environment names no directory.
pub(super) fn state_directory() -> Result<PathBuf, CliError> {
    let absolute = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    state.map(|state| state.join("meshd")).ok_or_else(|| {
        CliError::new(
            ErrorCode::Configuration,
            "there is no place for the journal, as neither XDG_STATE_HOME nor HOME is set; set one of them to a directory",
        )
    })
}

/// The usual path of the journal for `service`.
///
/// # Errors
/// The environment names no directory.
pub(super) fn usual_path(service: &ServiceName) -> Result<PathBuf, CliError> {
    Ok(state_directory()?.join(format!("rollout-{service}.jsonl")))
}

impl Journal {
    /// Creates a journal that begins with `order`. An earlier one at the same path is replaced if its rollout has ended.
    ///
    /// # Errors
    /// The file cannot be written, or another rollout of the service has not ended.
    pub(super) fn create(path: &Path, order: &Order) -> Result<Self, CliError> {
        let lock = lock(&order.service)?;
        if let Some(earlier) = read_if_there(path)?
            && !earlier.entries.contains(&Entry::Ended)
        {
            let text = format!(
                "an earlier rollout of {} has not ended; continue it with `meshctl rollout --resume {}`, or remove this file to begin a new one",
                earlier.order.service,
                path.display()
            );
            return Err(CliError::new(ErrorCode::Conflict, text));
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| failed("create", path, error))?;
        let mut journal = Self {
            path: path.to_owned(),
            file,
            _lock: lock,
        };
        journal.write(&line(order)?)?;
        sync_parent(path).map_err(|error| CliError::from(&error))?;
        Ok(journal)
    }

    /// Opens the journal of a rollout that has not ended, to continue it.
    ///
    /// # Errors
    /// It cannot be read or written, or the rollout goes on.
    pub(super) fn resume(path: &Path) -> Result<(Self, Recorded), CliError> {
        let Some(recorded) = read_if_there(path)? else {
            let text = format!(
                "there is no journal at {}; name the service, as in `meshctl rollout web --resume`, or the file after --resume",
                path.display()
            );
            return Err(CliError::new(ErrorCode::NotFound, text));
        };
        let lock = lock(&recorded.order.service)?;
        // The rollout that had the lock may have written more.
        let Some(recorded) = read_if_there(path)? else {
            return Err(failed("read", path, ErrorKind::NotFound.into()));
        };
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|error| failed("write", path, error))?;
        file.set_len(recorded.length)
            .map_err(|error| failed("write", path, error))?;
        let journal = Self {
            path: path.to_owned(),
            file,
            _lock: lock,
        };
        Ok((journal, recorded))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes entries, and waits until they are on disk.
    ///
    /// # Errors
    /// They are not.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), CliError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for entry in entries {
            text.push_str(&line(entry)?);
        }
        self.write(&text)
    }

    fn write(&mut self, text: &str) -> Result<(), CliError> {
        let written = self.file.write_all(text.as_bytes());
        written
            .and_then(|()| self.file.sync_data())
            .map_err(|error| failed("write", &self.path, error))
    }
}

/// Takes the lock of a service. It is free again when the file is closed, also when the program is killed.
fn lock(service: &ServiceName) -> Result<File, CliError> {
    let directory = state_directory()?;
    private_dir(&directory).map_err(|error| CliError::from(&error))?;
    let path = directory.join(format!("rollout-{service}.lock"));
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| failed("create", &path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let text = format!(
                "another rollout of {service} is running on this machine; wait until it has ended, or interrupt it"
            );
            Err(CliError::new(ErrorCode::Conflict, text))
        }
        Err(TryLockError::Error(error)) => Err(failed("lock", &path, error)),
    }
}

fn read_if_there(path: &Path) -> Result<Option<Recorded>, CliError> {
    let file = match open_regular(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path, error)),
    };
    check_owner(&file, path)?;
    let mut text = String::new();
    let read = file.take(MAX_JOURNAL).read_to_string(&mut text);
    read.map_err(|error| failed("read", path, error))?;
    if text.is_empty() {
        // The machine died before the first line was on disk, so nothing was done yet.
        return Ok(None);
    }
    parse(&text).map(Some).map_err(|why| {
        let text = format!("{} is not a journal of a rollout: {why}", path.display());
        CliError::new(ErrorCode::Configuration, text)
    })
}

/// Checks that nobody else can have written the journal: its commands run with the rights of this user.
fn check_owner(file: &File, path: &Path) -> Result<(), CliError> {
    let found = file
        .metadata()
        .map_err(|error| failed("look at", path, error))?;
    let why = if found.uid() == nix::unistd::geteuid().as_raw() {
        exposure(&found, path).map(|exposed| format!("{}; {}", exposed.why, exposed.fix))
    } else {
        Some(format!(
            "{} belongs to another user, whose commands would run with your rights; run this as that user",
            path.display()
        ))
    };
    why.map_or(Ok(()), |why| Err(CliError::new(ErrorCode::Permission, why)))
}

/// Parses a journal. A last line without its end was not on disk before its step, so it counts for nothing.
fn parse(text: &str) -> Result<Recorded, String> {
    let length = text.rfind('\n').map_or(0, |at| at + 1);
    let mut lines = text.get(..length).unwrap_or_default().lines();
    let first = lines.next().ok_or("its first line is not complete")?;
    let order: Order =
        serde_json::from_str(first).map_err(|error| format!("its first line: {error}"))?;
    if order.schema != SCHEMA {
        return Err(format!(
            "it has the version {}, and this meshctl reads version {SCHEMA}",
            order.schema
        ));
    }
    let entries = lines.enumerate().map(|(n, line)| {
        serde_json::from_str::<Entry>(line).map_err(|error| format!("line {}: {error}", n + 2))
    });
    Ok(Recorded {
        order,
        entries: entries.collect::<Result<Vec<Entry>, String>>()?,
        length: length as u64,
    })
}

fn line<T: serde::Serialize>(value: &T) -> Result<String, CliError> {
    let text = serde_json::to_string(value).map_err(CliError::failed)?;
    Ok(format!("{text}\n"))
}

fn failed(action: &'static str, path: &Path, error: std::io::Error) -> CliError {
    CliError::from(&FileError::io(action, path, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::order::Way;
    use super::*;
    use crate::model::Label;

    fn label(text: &str) -> Label {
        Label::parse(text).expect("a literal")
    }

    fn order() -> Order {
        Order {
            schema: SCHEMA,
            service: label("web").into(),
            nodes: vec![label("n1"), label("n2")],
            way: Way {
                command: "ssh {node} up".into(),
                rollback: None,
                batch: 1,
                canary: 0,
                soak_ms: 0,
                timeout_ms: 1000,
                force: false,
            },
        }
    }

    #[test]
    fn a_journal_is_read_as_it_was_written_but_for_a_line_that_was_cut_off() {
        let entries = [
            Entry::Drain { node: label("n1") },
            Entry::Run { node: label("n1") },
        ];
        let mut text = line(&order()).expect("a line");
        for entry in &entries {
            text.push_str(&line(entry).expect("a line"));
        }
        let whole = text.len();
        text.push_str(r#"{"step":"cha"#);
        let recorded = parse(&text).expect("a journal");
        assert_eq!(recorded.order, order());
        assert_eq!(recorded.entries, entries);
        assert_eq!(recorded.length, whole as u64);
    }

    #[test]
    fn a_journal_that_others_can_change_is_not_read() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("journal");
        std::fs::write(&path, line(&order()).expect("a line")).expect("our directory");
        let set = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, mode).expect("our file");
        };
        set(0o666);
        let error = read_if_there(&path).expect_err("others can change it");
        assert_eq!(error.code, ErrorCode::Permission.exit_code());
        assert!(error.message.contains("chmod 600"), "{}", error.message);
        set(0o600);
        assert!(read_if_there(&path).is_ok_and(|read| read.is_some()));
    }

    #[test]
    fn another_file_is_no_journal() {
        for text in ["\n", "{}\n", "x", "[1]\n"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        let mut later = order();
        later.schema = 2;
        let text = line(&later).expect("a line");
        assert!(parse(&text).is_err_and(|why| why.contains("version 2")));
        let unknown = format!("{}{{\"step\":\"fly\"}}\n", line(&order()).expect("a line"));
        assert!(parse(&unknown).is_err_and(|why| why.starts_with("line 2")));
    }
}
