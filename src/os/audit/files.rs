//! The files of a log on disk: the current file, earlier ones, and the file with the last number.
//!
//! | file in the state directory | what it is |
//! |---|---|
//! | `audit.jsonl` | the lines that are appended now |
//! | `audit.jsonl.NUMBER` | earlier lines; the number is that of the last of them |
//! | `audit.head` | the number and the digest of the last line |

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::digest::LineDigest;
use super::event::HeadFound;
use super::line::{Chain, Line, MAX_LINE, head_text, parse_head};
use super::recorder::Sink;
use crate::os::file::sync_parent;

/// The name of the current file.
pub const CURRENT: &str = "audit.jsonl";
/// The name of the file with the last number.
pub const HEAD: &str = "audit.head";
/// The maximum number of files, the current one included. With the maximum size of a file, a log has at most 512 MiB.
pub const MAX_FILES: usize = 8;
/// How much of the end of a file is searched for its last line.
const TAIL: u64 = 4 * MAX_LINE as u64;

/// The files of a log that is written.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    current: Option<File>,
    /// The size of the current file up to its last line. After a write that failed, the file may be longer.
    size: u64,
    is_longer: bool,
    head: Option<File>,
}

/// A log that was opened: its files, its end, and what was found.
#[derive(Debug)]
pub struct Opened {
    pub files: Files,
    pub chain: Chain,
    pub size: u64,
    pub torn_bytes: u64,
    pub head: HeadFound,
}

impl Files {
    /// Opens the log in a directory. An unfinished last line is removed.
    ///
    /// # Errors
    /// The system returned an error.
    pub fn open(directory: &Path) -> io::Result<Opened> {
        let current = directory.join(CURRENT);
        let (torn_bytes, size) = match OpenOptions::new().read(true).write(true).open(&current) {
            Ok(file) => remove_torn(&file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (0, 0),
            Err(error) => return Err(error),
        };
        let newest = match size {
            0 => earlier(directory)?.pop().map(|(_, path)| path),
            _ => Some(current),
        };
        let last = newest.map(|path| last_line(&path)).transpose()?.flatten();
        let (chain, head) = end_of(last.as_deref(), &read_head(directory));
        let files = Self {
            directory: directory.to_owned(),
            current: None,
            size,
            is_longer: false,
            head: None,
        };
        Ok(Opened {
            files,
            chain,
            size,
            torn_bytes,
            head,
        })
    }

    /// Opens the current file, if it is not open or if somebody put another file in its place. Returns whether somebody cut off its
    /// last line.
    fn take_up(&mut self) -> io::Result<bool> {
        let path = self.directory.join(CURRENT);
        if let Some(file) = &self.current
            && !is_at(file, &path)?
        {
            // The lines that follow are found in the new file, and what is missing before them is found as well.
            self.current = None;
            self.is_longer = false;
        }
        if self.current.is_none() {
            let file = private().read(true).open(&path)?;
            sync_parent(&path).map_err(io::Error::other)?;
            self.current = Some(file);
        }
        let Some(file) = &self.current else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if self.is_longer {
            file.set_len(self.size)?;
            self.is_longer = false;
            return Ok(false);
        }
        let length = file.metadata()?.len();
        if length == self.size || length == 0 {
            self.size = length;
            return Ok(false);
        }
        self.size = length;
        let mut last = [0];
        file.read_exact_at(&mut last, length - 1)?;
        Ok(last != *b"\n")
    }
}

impl Sink for Files {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let bytes = if self.take_up()? {
            &[b"\n", bytes].concat()
        } else {
            bytes
        };
        let size = self.size;
        let Some(file) = &mut self.current else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let written = file
            .write_all_at(bytes, size)
            .and_then(|()| file.sync_data());
        if let Err(error) = written {
            // A part of the lines may be in the file. If it cannot be removed now, that is done before the next write.
            self.is_longer = file.set_len(size).is_err();
            return Err(error);
        }
        self.size = size.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// The head is not synchronised: after a loss of power it may be older than the log, which [`end_of`] and the verifier permit.
    fn set_head(&mut self, head: Chain) {
        let path = self.directory.join(HEAD);
        let is_in_place = |file: &File| is_at(file, &path).unwrap_or(false);
        let open = self.head.take().filter(is_in_place);
        let file = open.or_else(|| open_head(&path).ok());
        self.head = file.filter(|file| file.write_all_at(head_text(head).as_bytes(), 0).is_ok());
    }

    fn rotate(&mut self, last: u64) -> io::Result<()> {
        // The number has the same length in each name, so that the names have the order of the numbers.
        let earlier = self.directory.join(format!("{CURRENT}.{last:020}"));
        // The directory is synchronised when the new file is made.
        match std::fs::rename(self.directory.join(CURRENT), earlier) {
            // Somebody removed the file. The new one shows that its lines are missing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        self.current = None;
        self.size = 0;
        self.is_longer = false;
        Ok(())
    }

    fn excess(&mut self) -> io::Result<Option<Chain>> {
        let files = earlier(&self.directory)?;
        let mut files = files.into_iter();
        let (count, oldest, next) = (files.len(), files.next(), files.next());
        let Some((last, oldest)) = oldest.filter(|_| count >= MAX_FILES) else {
            return Ok(None);
        };
        let next = next.map_or_else(|| self.directory.join(CURRENT), |(_, path)| path);
        // The line after the removed ones has the true digest, also if the last one of them was changed.
        let digest = match first_line(&next)? {
            Some(line) => line.prev,
            None => LineDigest::of(&last_line(&oldest)?.unwrap_or_default()),
        };
        Ok(Some(Chain { last, digest }))
    }

    fn remove_oldest(&mut self) -> io::Result<()> {
        let files = earlier(&self.directory)?;
        let Some((_, oldest)) = files.first() else {
            return Ok(());
        };
        std::fs::remove_file(oldest)?;
        sync_parent(oldest).map_err(io::Error::other)
    }
}

/// Whether the file at `path` is this open one.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens the file with the last number. It has one length, so what somebody appended to it is removed.
fn open_head(path: &Path) -> io::Result<File> {
    let file = private().open(path)?;
    file.set_len(head_text(Chain::EMPTY).len() as u64)?;
    Ok(file)
}

/// Options for a file that only its owner can read, and that is made if it does not exist.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options
}

/// The end of the chain, by the last line of the files and by the text of the head. If the head is not older than the files, it has
/// the true end: if somebody changed the last line since, the next line does not confirm the change.
fn end_of(last: Option<&[u8]>, head: &HeadText) -> (Chain, HeadFound) {
    let written = last.and_then(|bytes| {
        let n = Line::parse(bytes)?.n;
        let digest = LineDigest::of(bytes);
        Some(Chain { last: n, digest })
    });
    match (head, written) {
        (HeadText::Read(head), Some(written)) if written.last > head.last => {
            (written, HeadFound::Ok)
        }
        (HeadText::Read(head), Some(written)) if written == *head => (*head, HeadFound::Ok),
        (HeadText::Read(head), _) => (*head, HeadFound::Differs),
        (HeadText::Missing, None) if last.is_none() => (Chain::EMPTY, HeadFound::New),
        (HeadText::Missing, written) => (written.unwrap_or(Chain::EMPTY), HeadFound::Missing),
        (HeadText::Unreadable, written) => (written.unwrap_or(Chain::EMPTY), HeadFound::Unreadable),
    }
}

/// The file with the last number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadText {
    Read(Chain),
    Missing,
    Unreadable,
}

impl HeadText {
    /// The end of the chain, if the file has it.
    #[must_use]
    pub fn chain(&self) -> Option<Chain> {
        match self {
            Self::Read(chain) => Some(*chain),
            Self::Missing | Self::Unreadable => None,
        }
    }
}

/// Reads the file with the last number.
#[must_use]
pub fn read_head(directory: &Path) -> HeadText {
    let mut text = String::new();
    // The file has one length, and no other one is read.
    let most = head_text(Chain::EMPTY).len() as u64 + 1;
    let read =
        File::open(directory.join(HEAD)).and_then(|file| file.take(most).read_to_string(&mut text));
    match read {
        Ok(_) => parse_head(&text).map_or(HeadText::Unreadable, HeadText::Read),
        Err(error) if error.kind() == io::ErrorKind::NotFound => HeadText::Missing,
        Err(_) => HeadText::Unreadable,
    }
}

/// The earlier files with their last numbers, the oldest one first.
///
/// # Errors
/// The directory cannot be read.
pub fn earlier(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix(CURRENT)?.strip_prefix('.'))
            .and_then(|number| number.parse().ok());
        if let Some(number) = number {
            files.push((number, entry.path()));
        }
    }
    files.sort();
    Ok(files)
}

/// Removes the bytes after the last line break. Returns their number, and the size of the rest.
fn remove_torn(file: &File) -> io::Result<(u64, u64)> {
    let size = file.metadata()?.len();
    let tail = tail_of(file, size)?;
    let torn = match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => tail.len() - at - 1,
        // No line is that long, so the file is not from a daemon, and it is left as it is.
        None if size > tail.len() as u64 => {
            let text = format!("{CURRENT} does not end with a line of an audit log; move it away");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        None => tail.len(),
    } as u64;
    if torn > 0 {
        file.set_len(size - torn)?;
        file.sync_all()?;
    }
    Ok((torn, size - torn))
}

/// The end of a file.
fn tail_of(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let start = size.saturating_sub(TAIL);
    let mut tail = vec![0; usize::try_from(size - start).unwrap_or(0)];
    file.read_exact_at(&mut tail, start)?;
    Ok(tail)
}

/// The last line of a file, without its line break.
fn last_line(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let tail = tail_of(&file, size)?;
    let lines = tail.strip_suffix(b"\n").unwrap_or(&tail);
    let start = lines.iter().rposition(|byte| *byte == b'\n');
    let line = lines.get(start.map_or(0, |at| at + 1)..);
    Ok(line.filter(|line| !line.is_empty()).map(<[u8]>::to_vec))
}

/// The first line of a file.
fn first_line(path: &Path) -> io::Result<Option<Line>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_LINE as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes
        .split(|byte| *byte == b'\n')
        .next()
        .and_then(Line::parse))
}

#[cfg(test)]
mod tests;
