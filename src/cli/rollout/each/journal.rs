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
use crate::os::file::{FileError, exposure, open_regular, private_dir, write_atomic};
use crate::protocol::api::ErrorCode;
use crate::protocol::local::SCHEMA;

/// The maximum size of a journal that is read, in bytes.
const MAX_JOURNAL: u64 = 16 * 1024 * 1024;

/// A journal that is open for more entries.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// The length of the entries that are on disk, in bytes.
    length: u64,
    /// The entries that are not on disk yet, because the last write failed.
    unwritten: String,
    _lock: Lock,
}

/// Held until a rollout ends, so that no other one of the same service begins on this machine. It is free again when the file is closed,
/// also when the program is killed.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
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
    /// The file cannot be written, or an earlier rollout has not ended.
    pub(super) fn create(path: &Path, order: &Order, lock: Lock) -> Result<Self, CliError> {
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
        let first = line(order)?;
        // A machine that dies now leaves the earlier journal or the new one, and no part of a line.
        write_atomic(path, first.as_bytes(), 0o600).map_err(|error| CliError::from(&error))?;
        Self::open(path, first.len() as u64, lock)
    }

    fn open(path: &Path, length: u64, lock: Lock) -> Result<Self, CliError> {
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|error| failed("write", path, error))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            unwritten: String::new(),
            _lock: lock,
        })
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
        let journal = Self::open(path, recorded.length, lock)?;
        let cut = journal.file.set_len(recorded.length);
        cut.map_err(|error| failed("write", path, error))?;
        Ok((journal, recorded))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes entries, and waits until they are on disk. After an error, the next call writes them as well, so that the journal never
    /// leaves out an entry or a part of one.
    ///
    /// # Errors
    /// They are not on disk.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), CliError> {
        for entry in entries {
            self.unwritten.push_str(&line(entry)?);
        }
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(self.unwritten.as_bytes());
        match written.and_then(|()| self.file.sync_data()) {
            Ok(()) => {
                self.length += self.unwritten.len() as u64;
                self.unwritten.clear();
                Ok(())
            }
            Err(error) => {
                // What was written of them is written again.
                let _ = self.file.set_len(self.length);
                Err(failed("write", &self.path, error))
            }
        }
    }
}

/// Takes the lock of a service.
///
/// # Errors
/// Another rollout of the service runs on this machine, or the lock cannot be made.
pub(super) fn lock(service: &ServiceName) -> Result<Lock, CliError> {
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
        Ok(()) => Ok(Lock { _file: file }),
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
    let mut bytes = Vec::new();
    let read = file.take(MAX_JOURNAL + 1).read_to_end(&mut bytes);
    read.map_err(|error| failed("read", path, error))?;
    if bytes.len() as u64 > MAX_JOURNAL {
        let error = FileError::TooLarge {
            path: path.to_owned(),
            most: MAX_JOURNAL,
        };
        return Err(CliError::from(&error));
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    parse(&bytes).map(Some).map_err(|why| {
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
fn parse(bytes: &[u8]) -> Result<Recorded, String> {
    // The end that was cut off may have a part of a character.
    let length = bytes.iter().rposition(|byte| *byte == b'\n');
    let length = length.map_or(0, |at| at + 1);
    let text = std::str::from_utf8(bytes.get(..length).unwrap_or_default());
    let mut lines = text.map_err(|_| "it is no text")?.lines();
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
            holder: "1f".into(),
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
        text.push_str(r#"{"step":"failed","node":null,"why":"caf"#);
        let mut bytes = text.into_bytes();
        // The first one of the two bytes of an é.
        bytes.push(0xc3);
        let recorded = parse(&bytes).expect("a journal");
        assert_eq!(recorded.order, order());
        assert_eq!(recorded.entries, entries);
        assert_eq!(recorded.length, whole as u64);
    }

    #[test]
    fn entries_that_could_not_be_written_are_written_with_the_next_ones() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("journal");
        let file = File::create(directory.path().join("lock")).expect("our directory");
        let lock = Lock { _file: file };
        let mut journal = Journal::create(&path, &order(), lock).expect("our directory");
        let drain = Entry::Drain { node: label("n1") };
        let run = Entry::Run { node: label("n1") };
        // A file that is open for reading cannot be written.
        let writable =
            std::mem::replace(&mut journal.file, File::open(&path).expect("it is there"));
        assert!(journal.append(std::slice::from_ref(&drain)).is_err());
        journal.file = writable;
        journal
            .append(std::slice::from_ref(&run))
            .expect("it can be written");
        let read = read_if_there(&path)
            .expect("a journal")
            .expect("it is there");
        assert_eq!(read.entries, [drain, run]);
        assert_eq!(read.length, journal.length);
    }

    #[test]
    fn a_journal_that_is_too_long_is_refused_and_not_cut_off() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("journal");
        write_atomic(&path, b"", 0o600).expect("our directory");
        let file = OpenOptions::new().write(true).open(&path);
        let file = file.expect("our file");
        file.set_len(MAX_JOURNAL + 1).expect("a sparse file");
        assert!(read_if_there(&path).is_err());
        assert_eq!(file.metadata().expect("our file").len(), MAX_JOURNAL + 1);
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
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        let mut later = order();
        later.schema = 2;
        let text = line(&later).expect("a line");
        assert!(parse(text.as_bytes()).is_err_and(|why| why.contains("version 2")));
        let unknown = format!("{}{{\"step\":\"fly\"}}\n", line(&order()).expect("a line"));
        assert!(parse(unknown.as_bytes()).is_err_and(|why| why.starts_with("line 2")));
    }
}
