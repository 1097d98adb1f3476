//! The request by which meshd has its helper write /etc/resolv.conf, where it may not write there itself.
//!
//! The right to write into /etc is the right to become root, so meshd does not have it. A unit of its own does
//! (systemd/meshd-resolv-conf.service), which runs for a moment whenever this file changes. The file says no more than which
//! server is to be asked. Everything else the helper takes from /etc, so that a meshd that was broken into can choose the
//! server of this machine, as it may anyway, and nothing else. The helper takes nothing in the file or about it on trust.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::wire::file::{FileError, write_atomic};

/// The name of the file in meshd's runtime directory.
const NAME: &str = "resolv.conf";
/// Bytes of a request at most.
const MAX_REQUEST: u64 = 4096;

/// Why a request is not followed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The file is not one that only meshd can have written.
    #[error("{0} is not followed: {1}")]
    Untrusted(PathBuf, &'static str),
    /// The text is no request.
    #[error("{0} is not followed: line {1} is not a comment or the one `nameserver` line")]
    Malformed(PathBuf, usize),
    /// The system refuses.
    #[error("{0}")]
    File(#[from] FileError),
}

/// Asks for `server` to be the only one of this machine, or for the file as it was before.
///
/// # Errors
/// The system refuses.
pub fn ask(directory: &Path, server: Option<IpAddr>) -> Result<(), FileError> {
    let path = directory.join(NAME);
    write_atomic(&path, text(server).as_bytes(), 0o644)?;
    // Whatever meshd's own umask is: the helper is root without any of root's rights over files of others.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
        .map_err(|e| FileError::io("open to everybody", &path, e))
}

/// What is asked for: a server, or the file as it was before. No request is that as well: meshd has stopped.
///
/// # Errors
/// The request is not to be followed, or cannot be read.
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
    // A pipe would be waited for, and a link may lead to a file that only root can read.
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
        return Err(untrusted("it is another user's file than the directory"));
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
    let begin = "# What meshd asks meshd-resolv-conf.service to write to /etc/resolv.conf.\n";
    match server {
        Some(server) => format!("{begin}nameserver {server}\n"),
        None => format!("{begin}# The file as it was before.\n"),
    }
}

/// Reads a request: comments, and one line `nameserver` with an address that a server can have.
///
/// # Errors
/// The number of the first line that is something else.
fn parse(text: &str) -> Result<Option<IpAddr>, usize> {
    let mut server = None;
    for (number, line) in (1..).zip(text.lines()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let address = line.strip_prefix("nameserver ").ok_or(number)?;
        let address: IpAddr = address.parse().map_err(|_| number)?;
        let address = address.to_canonical();
        if server.is_some() || address.is_unspecified() || address.is_multicast() {
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
    fn what_is_asked_for_is_read_and_no_request_asks_for_the_file_as_it_was() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(read(dir.path()).expect("no request"), None);
        for server in [
            Some(SERVER),
            None,
            Some("fd00::53".parse().expect("a literal")),
        ] {
            ask(dir.path(), server).expect("ours");
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

        ask(dir.path(), Some(SERVER)).expect("ours");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("ours");
        assert!(why(dir.path()).ends_with("other users can write it"));

        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).expect("ours");
        assert!(read(&link).is_err(), "a directory that is a link");
    }
}
