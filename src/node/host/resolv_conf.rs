//! Manages /etc/resolv.conf, if the administrator has configured that (`[dns] manage_resolv_conf`).
//!
//! The original text is stored twice, beside the file and in the state directory, so that people find it, and `meshd
//! --restore-resolv-conf` works even if one copy is lost. meshd's own server is the only one in the file, because musl
//! queries all listed servers at once and uses the first reply of any of them.
//!
//! If meshd may not write in /etc, a helper writes the file as root ([`super::resolv_request`]). For root, the copy in
//! the state directory is the file of another user. Root opens it without following links, and uses only its lines
//! about resolvers.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::resolv_request::{self, RequestError};
use super::resolv_text::{self, Step, about_resolvers, plan};
use crate::os::file::{FileError, write_atomic};
use crate::os::readable::AsyncReadable;

pub(super) const PATH: &str = "/etc/resolv.conf";
/// The extension of the copy of the original.
const COPY_SUFFIX: &str = "before-meshd";
/// The maximum number of bytes that are read of a file.
const MAX_BYTES: u64 = 64 * 1024;
/// All programs have to be able to read the file.
const MODE: u32 = 0o644;

/// Why the file was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ResolvConfError {
    /// The file is a link to a file of another program.
    #[error("{0} is a link to {1}, which another program writes")]
    Link(PathBuf, PathBuf),
    /// The original cannot be restored.
    #[error(
        "{0} was written by meshd, and no copy of the original can be read; write the DNS servers of this machine into it"
    )]
    NoOriginal(PathBuf),
    /// The helper does not follow meshd's request.
    #[error("{0}")]
    Request(#[from] RequestError),
    /// The system returned an error.
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

/// The file, and the copies of its original.
#[derive(Debug, Clone)]
pub struct ResolvConf {
    path: PathBuf,
    /// The copies of the original. The first one that can be read is used.
    copies: Vec<PathBuf>,
}

impl ResolvConf {
    /// The file of this machine.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self::at(Path::new(PATH), state_dir)
    }

    fn at(path: &Path, state_dir: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{name}.{COPY_SUFFIX}");
        Self {
            path: path.to_owned(),
            copies: vec![path.with_file_name(&name), state_dir.join(&name)],
        }
    }

    /// The machine's file for the helper, which accesses nothing but the file and the copy beside it.
    #[must_use]
    pub fn of_helper() -> Self {
        let mut conf = Self::at(Path::new(PATH), Path::new("/"));
        conf.copies.truncate(1);
        conf
    }

    /// Follows the request in meshd's runtime directory. Returns whether the file was changed.
    ///
    /// # Errors
    /// The request must not be followed, the file must not be written, or the system returns an error.
    pub fn follow_request(&self, runtime_dir: &Path) -> Result<bool, ResolvConfError> {
        match resolv_request::read(runtime_dir)? {
            Some(server) => self.set_server(server),
            None => self.restore(),
        }
    }

    /// Makes `server` the only DNS server in the file, and stores a copy of the original. Returns whether the file was
    /// changed.
    ///
    /// # Errors
    /// The file must not be written, or the system returns an error.
    pub fn set_server(&self, server: IpAddr) -> Result<bool, ResolvConfError> {
        if let Ok(target) = std::fs::read_link(&self.path) {
            return Err(ResolvConfError::Link(self.path.clone(), target));
        }
        let found = read(&self.path)?;
        let text = match plan(found.as_deref(), self.original().as_deref(), server) {
            Step::Nothing => return Ok(false),
            Step::Write(text) => text,
            Step::CopyAndWrite(text) => {
                let original = found.unwrap_or_default();
                for copy in &self.copies {
                    write(copy, &original)?;
                }
                text
            }
        };
        write(&self.path, &text)?;
        Ok(true)
    }

    /// Restores the original, unless another program has written the file since. Returns whether it did.
    ///
    /// # Errors
    /// No copy of the original can be read, or the system returns an error. The copies are kept then.
    pub fn restore(&self) -> Result<bool, ResolvConfError> {
        let is_ours = std::fs::read_link(&self.path).is_err()
            && read(&self.path)?.is_some_and(|text| resolv_text::is_ours(&text));
        if is_ours {
            let lost = || ResolvConfError::NoOriginal(self.path.clone());
            write(&self.path, &self.original().ok_or_else(lost)?)?;
        }
        for copy in &self.copies {
            let _ = std::fs::remove_file(copy);
        }
        Ok(is_ours)
    }

    /// The original of the file, if meshd has replaced it.
    #[must_use]
    pub fn original(&self) -> Option<String> {
        self.copies
            .iter()
            .find_map(|copy| read_copy(copy).ok().flatten())
    }

    /// Watches the file for changes.
    ///
    /// # Errors
    /// The system returns an error.
    pub fn watch(&self) -> io::Result<Changes> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        // The watch is on the folder, because a program may replace the file by another one.
        let kinds = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        inotify.add_watch(folder, kinds)?;
        // The copy refers to the same queue of events.
        let readable = AsyncReadable::new(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Changes {
            inotify,
            readable,
            name: self.path.file_name().unwrap_or_default().to_owned(),
        })
    }
}

/// The changes to one file.
pub struct Changes {
    inotify: Inotify,
    readable: AsyncReadable,
    name: std::ffi::OsString,
}

impl Changes {
    /// Waits for the next change.
    ///
    /// # Errors
    /// The system returns no events.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let events = self.readable.read(|_| Ok(self.inotify.read_events()?));
            // An overflow of the queue is an event without a name.
            if events
                .await?
                .iter()
                .any(|e| e.name.as_ref().is_none_or(|name| *name == self.name))
            {
                return Ok(());
            }
        }
    }
}

/// Reads a file. None if there is no file.
fn read(path: &Path) -> Result<Option<String>, FileError> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io("read", path, error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|e| FileError::io("read", path, e))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Reads a copy. None if there is no regular file. If the file belongs to another user, as meshd's does for root, only
/// its lines about resolvers are used.
fn read_copy(path: &Path) -> Result<Option<String>, FileError> {
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
    let mut bytes = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let is_own = found.uid() == nix::unistd::geteuid().as_raw();
    Ok(Some(if is_own { text } else { about_resolvers(&text) }))
}

/// Writes a file that all users may read. The file is replaced as a whole. If it belongs to another user, its content
/// is overwritten, so that it keeps its owner. The same applies to a file that is a mount point, as in a container,
/// since it cannot be replaced.
fn write(path: &Path, text: &str) -> Result<(), FileError> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let is_of_other_user =
        std::fs::metadata(path).is_ok_and(|found| found.uid() != nix::unistd::geteuid().as_raw());
    let in_place = || std::fs::write(path, text).map_err(|e| FileError::io("write", path, e));
    if is_of_other_user {
        return in_place();
    }
    match write_atomic(path, text.as_bytes(), MODE) {
        // The mode does not depend on meshd's umask.
        Ok(()) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
            .map_err(|e| FileError::io("make readable for all users", path, e)),
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

    fn conf_in_directory() -> (tempfile::TempDir, ResolvConf) {
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
    fn the_original_is_copied_twice_and_restored() {
        let (dir, conf) = conf_in_directory();
        let before = "nameserver 192.0.2.1\nsearch example.com\noptions ndots:2\n";
        std::fs::write(&conf.path, before).expect("ours");
        assert!(conf.set_server(SERVER).expect("ours"));
        assert!(
            !conf.set_server(SERVER).expect("ours"),
            "there is nothing more to do"
        );
        let ours = text(&conf.path);
        assert!(ours.contains("\nnameserver 10.210.0.53\n"), "{ours}");
        assert!(
            ours.contains("\nsearch example.com\noptions ndots:2\n"),
            "{ours}"
        );
        assert!(!ours.contains("192.0.2.1"), "{ours}");
        assert_eq!(text(&conf.copies[0]), before);
        assert_eq!(text(&dir.path().join("resolv.conf.before-meshd")), before);
        std::fs::remove_file(&conf.copies[0]).expect("there");
        assert!(conf.restore().expect("ours"));
        assert_eq!(text(&conf.path), before);
        assert!(!conf.copies[1].exists());
    }

    #[test]
    fn what_other_programs_write_becomes_the_original_and_is_not_overwritten_at_the_end() {
        let (_dir, conf) = conf_in_directory();
        std::fs::write(&conf.path, "nameserver 192.0.2.1\n").expect("ours");
        conf.set_server(SERVER).expect("ours");
        std::fs::write(&conf.path, "nameserver 192.0.2.2\n").expect("ours");
        assert!(conf.set_server(SERVER).expect("ours"));
        assert_eq!(conf.original().as_deref(), Some("nameserver 192.0.2.2\n"));
        std::fs::write(&conf.path, "nameserver 192.0.2.3\n").expect("ours");
        assert!(!conf.restore().expect("ours"));
        assert_eq!(text(&conf.path), "nameserver 192.0.2.3\n");
        assert_eq!(conf.original(), None);
    }

    #[test]
    fn a_link_to_a_file_of_another_program_is_not_changed() {
        let (dir, conf) = conf_in_directory();
        let stub = dir.path().join("stub");
        std::fs::write(&stub, "nameserver 127.0.0.53\n").expect("ours");
        std::os::unix::fs::symlink(&stub, &conf.path).expect("ours");
        let refused = conf.set_server(SERVER).expect_err("a link").to_string();
        assert!(refused.contains("is a link to"), "{refused}");
        assert!(!conf.restore().expect("nothing to do"));
        assert_eq!(text(&stub), "nameserver 127.0.0.53\n");
    }

    #[test]
    fn a_copy_that_is_a_link_is_not_followed() {
        let (dir, conf) = conf_in_directory();
        std::fs::write(&conf.path, "nameserver 192.0.2.1\n").expect("ours");
        conf.set_server(SERVER).expect("ours");
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "nameserver 192.0.2.66\n").expect("ours");
        for copy in &conf.copies {
            std::fs::remove_file(copy).expect("there");
            std::os::unix::fs::symlink(&secret, copy).expect("ours");
        }
        assert_eq!(conf.original(), None);
        let lost = conf.restore().expect_err("no copy").to_string();
        assert!(lost.contains("no copy of the original"), "{lost}");
        assert!(!text(&conf.path).contains("192.0.2.66"));
    }

    #[test]
    fn of_a_copy_of_another_user_only_lines_about_resolvers_are_used() {
        if !nix::unistd::geteuid().is_root() {
            return crate::testbed::skip_test("only root can make a file of another user");
        }
        let (_dir, conf) = conf_in_directory();
        std::fs::write(&conf.path, "nameserver 192.0.2.1\n").expect("ours");
        conf.set_server(SERVER).expect("ours");
        std::fs::remove_file(&conf.copies[0]).expect("there");
        std::fs::write(
            &conf.copies[1],
            "root::0:0::/:/bin/sh\n# as it was\nnameserver 192.0.2.1\noptions ndots:2\n",
        )
        .expect("ours");
        std::os::unix::fs::chown(&conf.copies[1], Some(65_534), None).expect("root");
        assert!(conf.restore().expect("ours"));
        assert_eq!(
            text(&conf.path),
            "# as it was\nnameserver 192.0.2.1\noptions ndots:2\n"
        );
    }

    #[test]
    fn the_helper_follows_the_request_and_stores_one_copy() {
        let (dir, mut conf) = conf_in_directory();
        conf.copies.truncate(1);
        let runtime = dir.path().join("run");
        std::fs::create_dir(&runtime).expect("ours");
        std::fs::write(&conf.path, "nameserver 192.0.2.1\nsearch a\n").expect("ours");
        resolv_request::write(&runtime, Some(SERVER)).expect("ours");
        assert!(conf.follow_request(&runtime).expect("ours"));
        assert!(!conf.follow_request(&runtime).expect("it is done"));
        assert!(text(&conf.path).ends_with("\nnameserver 10.210.0.53\nsearch a\n"));
        // A malformed request changes nothing.
        std::fs::write(runtime.join("resolv.conf"), "search evil\n").expect("ours");
        assert!(conf.follow_request(&runtime).is_err());
        resolv_request::write(&runtime, None).expect("ours");
        assert!(conf.follow_request(&runtime).expect("ours"));
        assert_eq!(text(&conf.path), "nameserver 192.0.2.1\nsearch a\n");
        assert!(!conf.copies[0].exists());
    }

    #[tokio::test]
    async fn changes_are_noticed_whether_the_file_is_written_or_replaced() {
        let (dir, conf) = conf_in_directory();
        let mut changes = conf.watch().expect("inotify");
        let limit = std::time::Duration::from_secs(10);
        std::fs::write(&conf.path, "a").expect("ours");
        let noticed = tokio::time::timeout(limit, changes.next()).await;
        assert!(matches!(noticed, Ok(Ok(()))));
        let other = dir.path().join("new");
        std::fs::write(&other, "b").expect("ours");
        std::fs::rename(&other, &conf.path).expect("ours");
        let noticed = tokio::time::timeout(limit, changes.next()).await;
        assert!(matches!(noticed, Ok(Ok(()))));
    }
}
