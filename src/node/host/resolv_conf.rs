//! /etc/resolv.conf, where the administrator has given it into meshd's hands (`[dns] manage_resolv_conf`).
//!
//! The text before meshd's is kept twice, beside the file and in the state directory, so that a person finds it and
//! `meshd --restore-resolv-conf` works whatever else is lost. meshd's own server stands alone: musl asks all that are
//! listed at once, and takes the first word of any.
//!
//! Where meshd may not write in /etc, a helper writes the file as root ([`super::resolv_request`]). For root, the copy in the
//! state directory is the file of another user. Root opens it without following links, and uses only its lines about
//! resolvers.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use super::resolv_request::{self, RequestError};
use super::resolv_text::{Step, about_resolvers, is_ours, plan};
use crate::os::file::{FileError, write_atomic};

/// The file.
pub(super) const PATH: &str = "/etc/resolv.conf";
/// What is added to its name for what stood there before.
const BEFORE: &str = "before-meshd";
/// Octets of it at most.
const MOST: u64 = 64 * 1024;
/// Everybody reads it.
const MODE: u32 = 0o644;

/// Why the file is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum ResolvConfError {
    /// Another program's work.
    #[error("{0} is a link to {1}, which another program writes")]
    Link(PathBuf, PathBuf),
    /// The request of meshd is not followed.
    #[error("{0}")]
    Request(#[from] RequestError),
    /// The system refuses.
    #[error("{0}")]
    File(#[from] FileError),
}

impl ResolvConfError {
    /// Whether this process may not write the file. The service manager may also have made /etc read-only.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        let Self::File(FileError::Io { source, .. }) = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        )
    }
}

/// The file, and where what stood there before is kept.
#[derive(Debug, Clone)]
pub struct ResolvConf {
    path: PathBuf,
    /// The copies of the text before meshd's. The first one that can be read counts.
    kept: Vec<PathBuf>,
}

impl ResolvConf {
    /// The machine's.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self::at(Path::new(PATH), state_dir)
    }

    fn at(path: &Path, state_dir: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{name}.{BEFORE}");
        Self {
            path: path.to_owned(),
            kept: vec![path.with_file_name(&name), state_dir.join(&name)],
        }
    }

    /// The machine's file for the helper, which accesses nothing but the file and the copy beside it.
    #[must_use]
    pub fn of_helper() -> Self {
        let mut conf = Self::at(Path::new(PATH), Path::new("/"));
        conf.kept.truncate(1);
        conf
    }

    /// Follows the request in meshd's runtime directory. Returns whether the file had to be changed.
    ///
    /// # Errors
    /// The request must not be followed, the file must not be written, or the system refuses.
    pub fn follow_request(&self, runtime_dir: &Path) -> Result<bool, ResolvConfError> {
        match resolv_request::read(runtime_dir)? {
            Some(server) => self.take(server),
            None => self.restore(),
        }
    }

    /// Makes `server` the only one, keeping what else is found there; gives whether anything had to be changed.
    ///
    /// # Errors
    /// The file is not one to be written, or the system refuses.
    pub fn take(&self, server: IpAddr) -> Result<bool, ResolvConfError> {
        if let Ok(target) = std::fs::read_link(&self.path) {
            return Err(ResolvConfError::Link(self.path.clone(), target));
        }
        let found = read(&self.path)?;
        let text = match plan(found.as_deref(), self.before().as_deref(), server) {
            Step::Nothing => return Ok(false),
            Step::Write(text) => text,
            Step::KeepAndWrite(text) => {
                let before = found.unwrap_or_default();
                for kept in &self.kept {
                    write(kept, &before)?;
                }
                text
            }
        };
        write(&self.path, &text)?;
        Ok(true)
    }

    /// Puts back what stood there before, unless somebody else has written the file since; gives whether it did.
    ///
    /// # Errors
    /// The system refuses; what is kept stays.
    pub fn restore(&self) -> Result<bool, ResolvConfError> {
        let ours = std::fs::read_link(&self.path).is_err()
            && read(&self.path)?.is_some_and(|text| is_ours(&text));
        let before = self.before();
        let restored = match (ours, before) {
            (true, Some(before)) => {
                write(&self.path, &before)?;
                true
            }
            _ => false,
        };
        if !ours || restored {
            for kept in &self.kept {
                let _ = std::fs::remove_file(kept);
            }
        }
        Ok(restored)
    }

    /// What stood there before meshd's, if meshd's stands there or has stood.
    #[must_use]
    pub fn before(&self) -> Option<String> {
        self.kept
            .iter()
            .find_map(|kept| read_kept(kept).ok().flatten())
    }

    /// Tells of changes to the file from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn watch(&self) -> io::Result<Changes> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        // The folder, since a file that is replaced is another one.
        let kinds = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        inotify.add_watch(folder, kinds)?;
        // SAFETY: the descriptor is the value's own, the same for as long as the value is there.
        let inotify = unsafe { AsyncFd::register(Watching(inotify)) }?;
        Ok(Changes {
            inotify,
            name: self.path.file_name().unwrap_or_default().to_owned(),
        })
    }
}

struct Watching(Inotify);

impl AsRawFd for Watching {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Changes to one file.
pub struct Changes {
    inotify: AsyncFd<Watching>,
    name: std::ffi::OsString,
}

impl Changes {
    /// Waits for the next change.
    ///
    /// # Errors
    /// The system refuses to go on.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match ready.try_io(|fd| Ok(fd.get_ref().0.read_events()?)) {
                Ok(events) => {
                    let events = events?;
                    // A queue that overflowed says nothing of names.
                    if events
                        .iter()
                        .any(|e| e.name.as_ref().is_none_or(|name| *name == self.name))
                    {
                        return Ok(());
                    }
                }
                Err(_would_block) => {}
            }
        }
    }
}

/// The text of a file; none if there is no file.
fn read(path: &Path) -> Result<Option<String>, FileError> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io("read", path, error)),
    };
    let mut octets = Vec::new();
    file.take(MOST)
        .read_to_end(&mut octets)
        .map_err(|e| FileError::io("read", path, e))?;
    Ok(Some(String::from_utf8_lossy(&octets).into_owned()))
}

/// The text of a copy. None if there is no regular file. If the file belongs to another user, as meshd's does for root, only
/// its lines about resolvers count.
fn read_kept(path: &Path) -> Result<Option<String>, FileError> {
    use std::io::Read as _;
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
    let failed = |error| FileError::io("read", path, error);
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Ok(None);
    }
    let mut octets = Vec::new();
    file.take(MOST).read_to_end(&mut octets).map_err(failed)?;
    let text = String::from_utf8_lossy(&octets).into_owned();
    let own = found.uid() == nix::unistd::geteuid().as_raw();
    Ok(Some(if own { text } else { about_resolvers(&text) }))
}

/// Writes a file that everybody may read: whole, unless it is another user's, who keeps it, or is mounted by itself, as
/// in a container, and can only be written.
fn write(path: &Path, text: &str) -> Result<(), FileError> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let others =
        std::fs::metadata(path).is_ok_and(|found| found.uid() != nix::unistd::geteuid().as_raw());
    let in_place = || std::fs::write(path, text).map_err(|e| FileError::io("write", path, e));
    if others {
        return in_place();
    }
    match write_atomic(path, text.as_bytes(), MODE) {
        // Whatever meshd's own umask is.
        Ok(()) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
            .map_err(|e| FileError::io("open to everybody", path, e)),
        Err(FileError::Io { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            in_place()
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 210, 0, 53));

    fn place() -> (tempfile::TempDir, ResolvConf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = dir.path().join("state");
        std::fs::create_dir(&state).expect("ours");
        let conf = ResolvConf::at(&dir.path().join("resolv.conf"), &state);
        (dir, conf)
    }

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).expect("there")
    }

    #[test]
    fn what_stood_there_is_kept_twice_and_comes_back() {
        let (dir, conf) = place();
        let before = "nameserver 192.0.2.1\nsearch example.com\noptions ndots:2\n";
        std::fs::write(&conf.path, before).expect("ours");
        assert!(conf.take(SERVER).expect("ours"));
        assert!(
            !conf.take(SERVER).expect("ours"),
            "there is nothing more to do"
        );
        let ours = text(&conf.path);
        assert!(ours.contains("\nnameserver 10.210.0.53\n"), "{ours}");
        assert!(
            ours.contains("\nsearch example.com\noptions ndots:2\n"),
            "{ours}"
        );
        assert!(!ours.contains("192.0.2.1"), "{ours}");
        assert_eq!(text(&conf.kept[0]), before);
        assert_eq!(text(&dir.path().join("resolv.conf.before-meshd")), before);
        std::fs::remove_file(&conf.kept[0]).expect("there");
        assert!(conf.restore().expect("ours"));
        assert_eq!(text(&conf.path), before);
        assert!(!conf.kept[1].exists());
    }

    #[test]
    fn what_others_write_is_kept_instead_and_not_written_over_at_the_end() {
        let (_dir, conf) = place();
        std::fs::write(&conf.path, "nameserver 192.0.2.1\n").expect("ours");
        conf.take(SERVER).expect("ours");
        std::fs::write(&conf.path, "nameserver 192.0.2.2\n").expect("ours");
        assert!(conf.take(SERVER).expect("ours"));
        assert_eq!(conf.before().as_deref(), Some("nameserver 192.0.2.2\n"));
        std::fs::write(&conf.path, "nameserver 192.0.2.3\n").expect("ours");
        assert!(!conf.restore().expect("ours"));
        assert_eq!(text(&conf.path), "nameserver 192.0.2.3\n");
        assert_eq!(conf.before(), None);
    }

    #[test]
    fn a_link_is_another_programs_and_left_alone() {
        let (dir, conf) = place();
        let stub = dir.path().join("stub");
        std::fs::write(&stub, "nameserver 127.0.0.53\n").expect("ours");
        std::os::unix::fs::symlink(&stub, &conf.path).expect("ours");
        let refused = conf.take(SERVER).expect_err("a link").to_string();
        assert!(refused.contains("is a link to"), "{refused}");
        assert!(!conf.restore().expect("nothing to do"));
        assert_eq!(text(&stub), "nameserver 127.0.0.53\n");
    }

    #[test]
    fn a_copy_that_is_a_link_is_not_followed() {
        let (dir, conf) = place();
        std::fs::write(&conf.path, "nameserver 192.0.2.1\n").expect("ours");
        conf.take(SERVER).expect("ours");
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "nameserver 192.0.2.66\n").expect("ours");
        for kept in &conf.kept {
            std::fs::remove_file(kept).expect("there");
            std::os::unix::fs::symlink(&secret, kept).expect("ours");
        }
        assert_eq!(conf.before(), None);
        conf.restore().expect("nothing to put back");
        assert!(!text(&conf.path).contains("192.0.2.66"));
    }

    #[test]
    fn of_a_copy_of_another_user_only_lines_about_resolvers_are_used() {
        if !nix::unistd::geteuid().is_root() {
            return crate::testbed::skip_test("only root can make a file of another user");
        }
        let (_dir, conf) = place();
        std::fs::write(&conf.path, "nameserver 192.0.2.1\n").expect("ours");
        conf.take(SERVER).expect("ours");
        std::fs::remove_file(&conf.kept[0]).expect("there");
        std::fs::write(
            &conf.kept[1],
            "root::0:0::/:/bin/sh\n# as it was\nnameserver 192.0.2.1\noptions ndots:2\n",
        )
        .expect("ours");
        std::os::unix::fs::chown(&conf.kept[1], Some(65_534), None).expect("root");
        assert!(conf.restore().expect("ours"));
        assert_eq!(
            text(&conf.path),
            "# as it was\nnameserver 192.0.2.1\noptions ndots:2\n"
        );
    }

    #[test]
    fn the_helper_does_what_is_asked_for_and_keeps_one_copy() {
        let (dir, mut conf) = place();
        conf.kept.truncate(1);
        let runtime = dir.path().join("run");
        std::fs::create_dir(&runtime).expect("ours");
        std::fs::write(&conf.path, "nameserver 192.0.2.1\nsearch a\n").expect("ours");
        resolv_request::ask(&runtime, Some(SERVER)).expect("ours");
        assert!(conf.follow_request(&runtime).expect("ours"));
        assert!(!conf.follow_request(&runtime).expect("it is done"));
        assert!(text(&conf.path).ends_with("\nnameserver 10.210.0.53\nsearch a\n"));
        // A malformed request changes nothing.
        std::fs::write(runtime.join("resolv.conf"), "search evil\n").expect("ours");
        assert!(conf.follow_request(&runtime).is_err());
        resolv_request::ask(&runtime, None).expect("ours");
        assert!(conf.follow_request(&runtime).expect("ours"));
        assert_eq!(text(&conf.path), "nameserver 192.0.2.1\nsearch a\n");
        assert!(!conf.kept[0].exists());
    }

    #[tokio::test]
    async fn changes_are_told_whether_the_file_is_written_or_replaced() {
        let (dir, conf) = place();
        let mut changes = conf.watch().expect("inotify");
        let limit = std::time::Duration::from_secs(10);
        std::fs::write(&conf.path, "a").expect("ours");
        let told = tokio::time::timeout(limit, changes.next()).await;
        assert!(matches!(told, Ok(Ok(()))));
        let other = dir.path().join("new");
        std::fs::write(&other, "b").expect("ours");
        std::fs::rename(&other, &conf.path).expect("ours");
        let told = tokio::time::timeout(limit, changes.next()).await;
        assert!(matches!(told, Ok(Ok(()))));
    }
}
