//! Files with state: replaced as a whole, private, and read within a limit.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Component, Path, PathBuf};

use super::rights::user_name;

/// The number of symbolic links that the kernel follows in one path (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Why a file or directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system returned an error.
    #[error("cannot {action} {path}: {source}{}", remedy(.source))]
    Io {
        /// The action that failed.
        action: &'static str,
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is larger than its limit.
    #[error("{path} is larger than {most} bytes, so it is not a file of meshd; move it away")]
    TooLarge {
        path: PathBuf,
        /// The limit in bytes.
        most: u64,
    },
    /// Other users can read a secret file.
    #[error("{path} can be read by others (mode {mode:04o}); run: chmod {wanted:o} {path}")]
    Exposed {
        path: PathBuf,
        /// The mode of the file.
        mode: u32,
        /// The mode that it must have.
        wanted: u32,
    },
    /// Another user can change the file.
    #[error(
        "{path} belongs to user {owner}, and this program runs as user {user}; run it as {owner}, which its systemd unit does, or name another directory"
    )]
    Owner {
        path: PathBuf,
        /// The name of the owner.
        owner: String,
        /// The name of the user of this process.
        user: String,
    },
    /// The path is not a directory.
    #[error("{0} is not a directory; move it away or name another directory")]
    NotADirectory(PathBuf),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run as root",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room on that file system"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; name a directory on a writable file system",
        io::ErrorKind::InvalidInput => "; name a file, and no directory, device or pipe",
        _ => "",
    }
}

impl FileError {
    /// An error of the system on `path`.
    #[must_use]
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the file does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether rights are missing.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Owner { .. } => true,
            _ => false,
        }
    }

    /// What happened, without the remedy.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Io {
                action,
                path,
                source,
            } => format!("cannot {action} {}: {source}", path.display()),
            Self::Owner { path, owner, user } => format!(
                "{} belongs to user {owner}, and this program runs as user {user}",
                path.display()
            ),
            other => other.to_string(),
        }
    }
}

/// Makes sure that `path` is a directory of this user that nobody else can access (0700). Creates it if necessary, and makes an
/// empty one private.
///
/// # Errors
/// It cannot be created, or it has content and other rights. Those are reported, not changed.
pub fn private_dir(path: &Path) -> Result<(), FileError> {
    match fs::metadata(path) {
        Ok(found) => {
            if !found.is_dir() {
                return Err(FileError::NotADirectory(path.to_owned()));
            }
            let user = nix::unistd::geteuid().as_raw();
            if found.uid() != user {
                return Err(FileError::Owner {
                    path: path.to_owned(),
                    owner: user_name(found.uid()),
                    user: user_name(user),
                });
            }
            let mode = found.permissions().mode() & 0o7777;
            if mode & 0o077 == 0 {
                return Ok(());
            }
            // Container engines make the directory of a volume with mode 0755.
            if is_empty(path).map_err(|e| FileError::io("list", path, e))? {
                return fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                    .map_err(|e| FileError::io("set the mode of", path, e));
            }
            Err(FileError::Exposed {
                path: path.to_owned(),
                mode,
                wanted: 0o700,
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| FileError::io("make the directory", path, e)),
        Err(error) => Err(FileError::io("look at", path, error)),
    }
}

fn is_empty(directory: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(directory)?.next().is_none())
}

/// Replaces `path` by a file with `bytes` and `mode`. A reader, and a machine that loses power at any moment, finds
/// either the old content or the new one, never a mixture.
///
/// # Errors
/// The system returns an error. The old file is unchanged then.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new.{}", std::process::id()));
    let temporary = path.with_file_name(name);
    // A process with the same pid that was killed may have left this file.
    let _ = fs::remove_file(&temporary);
    let written = write_new(&temporary, bytes, mode)
        .and_then(|()| fs::rename(&temporary, path).map_err(|e| FileError::io("replace", path, e)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
        return written;
    }
    sync_parent(path)
}

/// Creates a file that only its owner can read. If the file exists already, that is an error.
///
/// # Errors
/// The system returns an error. An incomplete file is removed.
pub fn create_private_new(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    if let Err(error) = write_new(path, bytes, 0o600) {
        let exists = matches!(&error, FileError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists);
        if !exists {
            let _ = fs::remove_file(path);
        }
        return Err(error);
    }
    sync_parent(path)
}

/// Opens a regular file to read it. If `path` is a pipe, the call does not wait for a writer.
///
/// # Errors
/// The system returns an error, or `path` is no regular file ([`io::ErrorKind::InvalidInput`]).
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK the opening of a pipe would wait for a writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    Err(error)
}

/// Reads a secret file of at most `most` bytes, if no other user can read it.
///
/// # Errors
/// It does not exist, it is too large, or other users can read it.
pub fn read_private(path: &Path, most: u64) -> Result<Vec<u8>, FileError> {
    let file = open_regular(path).map_err(|e| FileError::io("read", path, e))?;
    let found = file
        .metadata()
        .map_err(|e| FileError::io("look at", path, e))?;
    let mode = found.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed {
            path: path.to_owned(),
            mode,
            wanted: 0o600,
        });
    }
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| FileError::io("read", path, e))?;
    if bytes.len() as u64 > most {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            most,
        });
    }
    Ok(bytes)
}

/// Why a file with a secret is not safe from other users, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// What other users can do with the file, as the end of a sentence.
    pub what: &'static str,
    /// The reason.
    pub why: String,
    /// The remedy.
    pub fix: String,
}

/// Whether every user of the machine can read `file`, which was found at `path`, change it or replace it. Access for the file's
/// group is not reported, since the owner chose the group.
#[must_use]
pub fn exposure(file: &fs::Metadata, path: &Path) -> Option<Exposure> {
    if !file.is_file() {
        return None;
    }
    let mode = file.permissions().mode() & 0o7777;
    let (what, verb) = match mode & 0o006 {
        0 => return replaceable(path),
        0o004 => ("is readable by others", "read"),
        _ => ("can be changed by others", "change"),
    };
    let user = nix::unistd::geteuid();
    let path = path.display();
    // This program has to be able to read it afterwards.
    let own = if user.is_root() || user.as_raw() == file.uid() {
        String::new()
    } else {
        format!("chown {user} {path} && ")
    };
    Some(Exposure {
        what,
        why: format!("every user of this machine can {verb} {path} (mode {mode:04o})"),
        fix: format!("run: {own}chmod 600 {path}"),
    })
}

/// Whether every user can put another file at `path`. That is so if a directory that its resolution passes is writable
/// by all and not sticky: in a sticky directory only owners may rename or delete files.
fn replaceable(path: &Path) -> Option<Exposure> {
    let directories = passed_directories(path);
    // The nearest directory is reported.
    let open = directories.iter().rev().find_map(|directory| {
        let found = fs::metadata(directory).ok()?;
        let mode = found.permissions().mode() & 0o7777;
        (found.is_dir() && mode & 0o1002 == 0o002).then(|| (directory.display(), mode))
    });
    let (directory, mode) = open?;
    Some(Exposure {
        what: "can be changed by others",
        why: format!(
            "every user of this machine can replace {}: the directory {directory} is writable by all (mode {mode:04o})",
            path.display()
        ),
        fix: format!("run: chmod o-w {directory}"),
    })
}

/// The directories that the kernel searches when it resolves `path`, those of symbolic links on the way included.
fn passed_directories(path: &Path) -> Vec<PathBuf> {
    let mut passed = Vec::new();
    let mut current = PathBuf::from("/");
    let mut rest = std::path::absolute(path).unwrap_or_default();
    let mut links = 0;
    loop {
        let mut components = rest.components();
        let Some(component) = components.next() else {
            return passed;
        };
        let after = components.as_path().to_owned();
        match component {
            Component::RootDir | Component::Prefix(_) => current = PathBuf::from("/"),
            Component::CurDir => {}
            Component::ParentDir => drop(current.pop()),
            Component::Normal(name) => {
                passed.push(current.clone());
                let next = current.join(name);
                if let Ok(target) = fs::read_link(&next) {
                    links += 1;
                    if links > MAX_LINKS {
                        return passed;
                    }
                    rest = target.join(after);
                    continue;
                }
                current = next;
            }
        }
        rest = after;
    }
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|e| FileError::io("make", path, e))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|e| FileError::io("write", path, e))
}

/// Waits until the entry of `path` in its directory is on disk. Without that, a loss of power may undo a rename, or the creation or
/// removal of the file.
///
/// # Errors
/// The system returns an error.
pub fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|d| d.sync_all())
        .map_err(|e| FileError::io("write", parent, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_no_private_file_and_nobody_waits_for_its_writer() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("key");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).expect("a writable directory");
        let refused = read_private(&path, 10).expect_err("a pipe").to_string();
        assert!(
            refused.ends_with("not a regular file; name a file, and no directory, device or pipe"),
            "{refused}"
        );
    }

    #[test]
    fn a_secret_that_every_user_can_read_is_found_with_the_remedy() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("token");
        fs::write(&path, "secret").expect("room");
        let found = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
            exposure(&fs::metadata(&path).expect("just written"), &path)
        };
        assert_eq!(found(0o600), None);
        assert_eq!(found(0o640), None, "a group was chosen");
        let changeable = found(0o602).expect("writable by all");
        assert_eq!(changeable.what, "can be changed by others");
        let exposed = found(0o644).expect("readable by all");
        assert_eq!(exposed.what, "is readable by others");
        assert!(exposed.why.contains("(mode 0644)"), "{exposed:?}");
        assert_eq!(exposed.fix, format!("run: chmod 600 {}", path.display()));
        let pipe = fs::metadata("/dev/null").expect("it is always there");
        assert_eq!(exposure(&pipe, Path::new("/dev/null")), None);
    }

    #[test]
    fn a_link_that_every_user_can_replace_on_the_way_to_a_secret_is_found() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [open, real] = ["open", "real"].map(|name| dir.path().join(name));
        for directory in [&open, &real] {
            fs::create_dir(directory).expect("room");
        }
        let path = open.join("link/token");
        std::os::unix::fs::symlink("../real", open.join("link")).expect("room");
        fs::write(real.join("token"), "secret").expect("room");
        fs::set_permissions(real.join("token"), fs::Permissions::from_mode(0o600)).expect("ours");
        let found = || exposure(&fs::metadata(&path).expect("just written"), &path);
        assert_eq!(found(), None);
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("ours");
        let fix = found().expect("the link can be replaced").fix;
        assert_eq!(fix, format!("run: chmod o-w {}", open.display()));
    }

    #[test]
    fn a_directory_that_others_can_look_into_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("state");
        private_dir(&path).expect("made");
        private_dir(&path).expect("found as made");
        fs::write(path.join("key"), "secret").expect("room");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        let refused = private_dir(&path)
            .expect_err("readable by others")
            .to_string();
        assert_eq!(
            refused,
            format!(
                "{0} can be read by others (mode 0755); run: chmod 700 {0}",
                path.display()
            )
        );
    }

    #[test]
    fn an_empty_directory_that_others_can_look_into_becomes_private() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        private_dir(dir.path()).expect("empty");
        let mode = fs::metadata(dir.path())
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o700);
    }

    #[test]
    fn a_directory_of_another_user_is_refused_and_stays_with_its_owner() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("state");
        private_dir(&path).expect("made");
        if std::os::unix::fs::chown(&path, Some(65_534), None).is_err() {
            return crate::testbed::skip_test("giving a directory away needs root");
        }
        let refused = private_dir(&path).expect_err("another user's");
        assert!(refused.is_permission());
        let text = refused.to_string();
        assert!(!text.contains("chown"), "{text}");
        assert!(text.starts_with(&refused.reason()), "{text}");
    }

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f");
        write_atomic(&path, b"one", 0o600).expect("room");
        write_atomic(&path, b"two", 0o600).expect("room");
        assert_eq!(read_private(&path, 10).expect("ours"), b"two");
        assert_eq!(fs::read_dir(dir.path()).expect("ours").count(), 1);
        assert!(matches!(
            read_private(&path, 2),
            Err(FileError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f");
        fs::create_dir(&path).expect("ours");
        assert!(
            write_atomic(&path, b"x", 0o600).is_err(),
            "a directory is in the way"
        );
        assert_eq!(fs::read_dir(dir.path()).expect("ours").count(), 1);
    }

    #[test]
    fn a_new_file_never_overwrites_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("key");
        create_private_new(&path, b"first").expect("room");
        assert!(create_private_new(&path, b"second").is_err());
        assert_eq!(read_private(&path, 10).expect("ours"), b"first");
    }
}
