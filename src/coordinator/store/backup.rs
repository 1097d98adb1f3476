//! Backups of a SQLite store. A backup is one file with everything that a coordinator needs. It is written while the coordinator
//! runs, and it is restored as a store with another name.
//!
//! A backup contains the records, the leases and the spent tokens, and the coordinator's TLS key, which nodes pin. So it is as
//! secret as the state directory. It does not contain what happened later. So a restored store takes another name, after which nodes
//! offer all records that they hold. It does not rely on knowing all uses of its tokens, leases blocks from another range, and is
//! marked as restored until the nodes have offered their records.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, params};

use super::StoreError;
use super::sqlite::{SCHEMA_VERSION, mark_restored, meta};

/// The store's file in the state directory.
pub(crate) const FILE: &str = "records.db";
/// How long a backup waits for another process that writes.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

fn failed(what: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(what.to_string())
}

fn at(action: &str, path: &Path, error: &io::Error) -> StoreError {
    if error.kind() == io::ErrorKind::StorageFull {
        return StoreError::Full;
    }
    failed(format_args!("cannot {action} {}: {error}", path.display()))
}

/// Writes the present contents of the store of `state_dir`, and the named files beside it, into the new file `to` (mode 0600). The
/// coordinator may run meanwhile.
///
/// # Errors
/// There is no store, `to` exists already, or it cannot be written. Then no file is left behind.
pub fn back_up(state_dir: &Path, files: &[&str], to: &Path) -> Result<(), StoreError> {
    if to.exists() {
        return Err(failed(format_args!(
            "{} exists already; name a new file",
            to.display()
        )));
    }
    let temporary = beside(to, "new");
    let written = write_copy(state_dir, files, &temporary)
        .and_then(|()| sync(&temporary))
        .and_then(|()| fs::rename(&temporary, to).map_err(|e| at("make", to, &e)))
        .and_then(|()| sync_directory(to));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_copy(state_dir: &Path, files: &[&str], to: &Path) -> Result<(), StoreError> {
    let store = state_dir.join(FILE);
    if matches!(fs::metadata(&store), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return Err(failed(format_args!(
            "there are no records in {}; name the state directory of the coordinator with --state-dir",
            state_dir.display()
        )));
    }
    let source = open(&store)?;
    private_new(to)?;
    source.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
    let mut copy = open(to)?;
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    let transaction = copy.transaction()?;
    transaction.execute_batch("CREATE TABLE backup_files (name TEXT PRIMARY KEY, content BLOB)")?;
    for name in files {
        let path = state_dir.join(name);
        let content = fs::read(&path).map_err(|e| at("read", &path, &e))?;
        transaction.execute(
            "INSERT INTO backup_files VALUES (?1, ?2)",
            params![name, content],
        )?;
    }
    transaction.commit()?;
    close(copy)
}

/// Replaces the store in `state_dir` by the backup `from`. No coordinator may use the store meanwhile. The old store is kept as
/// `records.db.before-restore`. If the machine fails in between, either the old or the new store is in place. `write_files`
/// writes the files that came with the backup, before the store is replaced.
///
/// # Errors
/// The file is no backup, is damaged, belongs to another mesh, or the store cannot be written.
pub fn restore(
    from: &Path,
    state_dir: &Path,
    write_files: impl FnOnce(&[(String, Vec<u8>)]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let store = state_dir.join(FILE);
    let temporary = beside(&store, "restoring");
    let prepared = copy_file(from, &temporary)
        .and_then(|()| take_over(from, &temporary, &store))
        .and_then(|files| write_files(&files))
        .and_then(|()| sync(&temporary))
        .and_then(|()| set_aside(&store))
        .and_then(|()| fs::rename(&temporary, &store).map_err(|e| at("replace", &store, &e)));
    if prepared.is_err() {
        let _ = fs::remove_file(&temporary);
        return prepared;
    }
    sync_directory(&store)
}

/// Converts the copy of a backup into a store. Returns the files that came with the backup.
fn take_over(
    from: &Path,
    copy: &Path,
    replaced: &Path,
) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    let no_backup = |why: String| {
        failed(format_args!(
            "{} is no whole backup made by `mesh-coordinator backup` ({why})",
            from.display()
        ))
    };
    let mut connection = open(copy)?;
    let check: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .map_err(|e| no_backup(e.to_string()))?;
    if check != "ok" {
        return Err(no_backup(check));
    }
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > SCHEMA_VERSION {
        return Err(failed(format_args!(
            "{} was made by a later version (schema {version}); upgrade mesh-coordinator",
            from.display()
        )));
    }
    let transaction = connection.transaction()?;
    let files = transaction
        .prepare("SELECT name, content FROM backup_files")
        .and_then(|mut statement| {
            statement
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<Vec<(String, Vec<u8>)>, _>>()
        })
        .map_err(|e| no_backup(e.to_string()))?;
    let mesh = meta(&transaction, "mesh_key")?;
    let other = open(replaced)
        .and_then(|c| meta(&c, "mesh_key"))
        .ok()
        .flatten();
    if other.is_some() && mesh.is_some() && other != mesh {
        return Err(failed(format_args!(
            "{} is of another mesh than the one this state directory has; name another --state-dir",
            from.display()
        )));
    }
    transaction.execute("DROP TABLE backup_files", [])?;
    mark_restored(&transaction)?;
    transaction.commit()?;
    close(connection)?;
    Ok(files)
}

/// Keeps the old store under another name, and leaves no log of it behind. SQLite would apply that log to the new store.
fn set_aside(store: &Path) -> Result<(), StoreError> {
    if !store.exists() {
        return Ok(());
    }
    let kept = beside(store, "before-restore");
    let log = with_suffix(store, "-wal");
    let whole = open(store)
        .and_then(|connection| {
            connection.pragma_update(None, "journal_mode", "DELETE")?;
            close(connection)
        })
        .is_ok()
        && !log.exists();
    let _ = fs::remove_file(&kept);
    if whole && fs::hard_link(store, &kept).is_ok() {
        return Ok(());
    }
    // The store is damaged, or the file system has no hard links. Without its log the store is incomplete, so both are moved.
    for (path, to) in [
        (log.clone(), with_suffix(&kept, "-wal")),
        (with_suffix(store, "-shm"), with_suffix(&kept, "-shm")),
        (store.to_owned(), kept),
    ] {
        match fs::rename(&path, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("move away", &path, &error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .map_err(|e| failed(format_args!("cannot open {}: {e}", path.display())))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

fn close(connection: Connection) -> Result<(), StoreError> {
    connection.close().map_err(|(_, error)| error.into())
}

fn private_new(path: &Path) -> Result<File, StoreError> {
    // A process that was killed may have left the file.
    let _ = fs::remove_file(path);
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| at("make", path, &e))
}

fn copy_file(from: &Path, to: &Path) -> Result<(), StoreError> {
    let mut source = File::open(from).map_err(|e| at("read", from, &e))?;
    let mut target = private_new(to)?;
    io::copy(&mut source, &mut target)
        .map(drop)
        .map_err(|e| at("write", to, &e))
}

fn sync(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|e| at("write", path, &e))
}

/// A rename is on disk only when its directory is.
fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    sync(parent)
}

fn beside(path: &Path, what: &str) -> PathBuf {
    with_suffix(path, &format!(".{what}"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
