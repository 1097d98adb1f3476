//! /etc/resolv.conf, where the administrator has given it into meshd's hands (`[dns] manage_resolv_conf`).
//!
//! What stood there is kept twice, in the state directory and beside the file, so that a person finds it and
//! `meshd --restore-resolv-conf` works whatever else is lost. meshd's own server stands alone: musl asks all that are
//! listed at once, and takes the first word of any.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use super::resolv_text::{Step, is_ours, plan};
use crate::wire::file::{FileError, write_atomic};

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
    /// The system refuses.
    #[error("{0}")]
    File(#[from] FileError),
}

/// The file, and where what stood there before is kept.
#[derive(Debug, Clone)]
pub struct ResolvConf {
    path: PathBuf,
    kept: [PathBuf; 2],
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
            kept: [state_dir.join(&name), path.with_file_name(&name)],
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
        self.kept.iter().find_map(|kept| read(kept).ok().flatten())
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
