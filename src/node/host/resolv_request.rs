//! The file with which meshd requests that a helper writes /etc/resolv.conf, where meshd may not write it itself.
//!
//! A process that may write in /etc can become root, so meshd does not have that right. A separate unit has it
//! (systemd/meshd-resolv-conf.service), which runs for a moment whenever the request file changes. The request names only the
//! server of the machine. The helper takes everything else from /etc. So an attacker who controls meshd can choose the server
//! of this machine, which meshd decides anyway, but nothing else. The helper verifies the text of the request and the file.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::resolv_text::name_server;
use crate::os::file::{FileError, write_atomic};

/// The name of the file in meshd's runtime directory.
const NAME: &str = "resolv.conf";
/// The maximum number of bytes of a request.
const MAX_REQUEST: u64 = 4096;

/// Why a request is not followed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The file may have been written by another user than that of meshd.
    #[error("{0} is not followed: {1}")]
    Untrusted(PathBuf, &'static str),
    /// The text is not a request.
    #[error("{0} is not followed: line {1} is neither a comment nor the single `nameserver` line")]
    Malformed(PathBuf, usize),
    /// The system returned an error.
    #[error("{0}")]
    File(#[from] FileError),
}

/// Requests that `server` is the only server of this machine or, with none, that the file is restored.
///
/// # Errors
/// The system returns an error.
pub fn write(directory: &Path, server: Option<IpAddr>) -> Result<(), FileError> {
    let path = directory.join(NAME);
    write_atomic(&path, text(server).as_bytes(), 0o644)?;
    // This does not depend on the umask of meshd. The helper is root without capabilities, so it needs the right to read.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
        .map_err(|e| FileError::io("make readable for all users", &path, e))
}

/// Reads the request. Returns the server, or none if the file is to be restored. The latter also holds if there is no request,
/// since meshd has stopped then.
///
/// # Errors
/// The request must not be followed, or cannot be read.
pub fn read(directory: &Path) -> Result<Option<IpAddr>, RequestError> {
    let path = directory.join(NAME);
    let untrusted = |why| RequestError::Untrusted(path.clone(), why);
    let failed = |error: io::Error| RequestError::File(FileError::io("read", &path, error));
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(directory);
    let opened = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let owner = opened.metadata().map_err(failed)?.uid();
    // Opening a pipe must not block, and a link may lead to a file that only root can read.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = match openat(opened.as_fd(), NAME, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(nix::errno::Errno::ENOENT) => return Ok(None),
        Err(nix::errno::Errno::ELOOP) => return Err(untrusted("it is a link")),
        Err(error) => return Err(failed(error.into())),
    };
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(untrusted("it is not a regular file"));
    }
    if found.uid() != owner || found.nlink() != 1 {
        return Err(untrusted(
            "it is another user's file, or it has a second link",
        ));
    }
    if found.mode() & 0o022 != 0 {
        return Err(untrusted("other users can write it"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_REQUEST + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_REQUEST {
        return Err(untrusted("it is too large"));
    }
    let text = String::from_utf8(bytes).map_err(|_| untrusted("it is not text"))?;
    parse(&text).map_err(|line| RequestError::Malformed(path, line))
}

fn text(server: Option<IpAddr>) -> String {
    let begin = "# A request of meshd to meshd-resolv-conf.service, about /etc/resolv.conf.\n";
    match server {
        Some(server) => format!("{begin}nameserver {server}\n"),
        None => format!("{begin}# Restore the original file.\n"),
    }
}

/// Parses a request, which has comments and at most one `nameserver` line with an address that a server can have.
///
/// # Errors
/// The number of the first line that is neither of them.
fn parse(text: &str) -> Result<Option<IpAddr>, usize> {
    let mut server = None;
    for (number, line) in (1..).zip(text.lines()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let address = name_server(line).ok_or(number)?;
        // A request has nothing but what meshd writes, so anything around the two words was not written by it.
        let is_exact = line
            .strip_prefix("nameserver ")
            .is_some_and(|rest| !rest.contains(char::is_whitespace));
        let address = address.to_canonical();
        if !is_exact || server.is_some() || address.is_unspecified() || address.is_multicast() {
            return Err(number);
        }
        server = Some(address);
    }
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 210, 0, 53));

    fn why(directory: &Path) -> String {
        let error = read(directory).expect_err("it is not followed");
        error.to_string()
    }

    #[test]
    fn a_request_is_read_and_no_request_restores_the_original() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(read(dir.path()).expect("no request"), None);
        for server in [
            Some(SERVER),
            None,
            Some("fd00::53".parse().expect("a literal")),
        ] {
            write(dir.path(), server).expect("ours");
            assert_eq!(read(dir.path()).expect("just written"), server);
        }
        let away = dir.path().join("away");
        assert_eq!(read(&away).expect("no directory"), None);
    }

    #[test]
    fn a_text_with_anything_besides_one_server_is_no_request() {
        assert_eq!(parse("# a\n\nnameserver 10.210.0.53\n"), Ok(Some(SERVER)));
        for (text, line) in [
            ("nameserver 10.210.0.53\nnameserver 9.9.9.9\n", 2),
            ("search example.com\n", 1),
            ("# a\noptions ndots:2\n", 2),
            ("nameserver 10.210.0.53 # x\n", 1),
            ("nameserver 0.0.0.0\n", 1),
            ("nameserver ff02::1\n", 1),
            ("nameserver localhost\n", 1),
            (" nameserver 10.210.0.53\n", 1),
            ("root:x:0:0:root:/root:/bin/sh\n", 1),
            ("\u{0}\n", 1),
        ] {
            assert_eq!(parse(text), Err(line), "{text:?}");
        }
    }

    #[test]
    fn a_link_a_pipe_a_large_file_and_one_that_others_write_are_not_followed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join(NAME);
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "nameserver 192.0.2.1\n").expect("ours");

        std::os::unix::fs::symlink(&secret, &path).expect("ours");
        assert!(why(dir.path()).ends_with("it is a link"));
        std::fs::remove_file(&path).expect("ours");

        std::fs::hard_link(&secret, &path).expect("ours");
        assert!(why(dir.path()).contains("another user's file"));
        std::fs::remove_file(&path).expect("ours");

        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o644)).expect("ours");
        assert!(why(dir.path()).ends_with("it is not a regular file"));
        std::fs::remove_file(&path).expect("ours");

        std::fs::write(&path, "#".repeat(5000)).expect("ours");
        assert!(why(dir.path()).ends_with("it is too large"));

        write(dir.path(), Some(SERVER)).expect("ours");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("ours");
        assert!(why(dir.path()).ends_with("other users can write it"));

        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).expect("ours");
        assert!(read(&link).is_err(), "a directory that is a link");
    }
}
