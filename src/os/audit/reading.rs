//! Reads a log from its files. The daemon need not run, and may write meanwhile.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::files::{CURRENT, earlier, read_head};
use super::line::{Line, MAX_LINE};
use super::verify::{Verified, Verifier};

/// How often the files are listed again, if a new file was begun meanwhile.
const MAX_ATTEMPTS: usize = 8;

/// The files of a log, the oldest one first.
#[derive(Debug)]
struct OpenFiles(Vec<OpenFile>);

#[derive(Debug)]
struct OpenFile {
    name: String,
    /// The number of the last line in an earlier file. None for the current file.
    last: Option<u64>,
    file: File,
}

impl OpenFile {
    fn open(path: &Path, last: Option<u64>) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default();
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            last,
            file: File::open(path)?,
        })
    }
}

impl OpenFiles {
    /// Opens all files. If a new one is begun meanwhile, they are opened again.
    fn open(directory: &Path) -> io::Result<Self> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let before = earlier(directory)?;
            match Self::open_all(directory, &before) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < MAX_ATTEMPTS => {
                }
                opened if attempt >= MAX_ATTEMPTS || earlier(directory)? == before => {
                    return opened;
                }
                _ => {}
            }
        }
    }

    fn open_all(directory: &Path, earlier: &[(u64, PathBuf)]) -> io::Result<Self> {
        let mut files = Vec::new();
        for (last, path) in earlier {
            files.push(OpenFile::open(path, Some(*last))?);
        }
        match OpenFile::open(&directory.join(CURRENT), None) {
            Ok(file) => files.push(file),
            // No line was written since the last file was begun.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !files.is_empty() => {}
            Err(error) => return Err(error),
        }
        Ok(Self(files))
    }
}

/// The next part of a file.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// A line without its line break.
    Line(Vec<u8>),
    /// The number of bytes after the last line break.
    Torn(u64),
    End,
}

/// Reads the next line. Of a line that is too long, the beginning is returned.
fn read_line(file: &mut BufReader<File>) -> io::Result<Read> {
    let mut line = Vec::new();
    let mut length = 0u64;
    loop {
        let buffer = match file.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            return Ok(if length == 0 {
                Read::End
            } else {
                Read::Torn(length)
            });
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = buffer
            .get(..end.unwrap_or(buffer.len()))
            .unwrap_or_default();
        let room = (MAX_LINE + 1).saturating_sub(line.len());
        line.extend(part.iter().take(room));
        let consumed = part.len() + usize::from(end.is_some());
        length = length.saturating_add(consumed as u64);
        file.consume(consumed);
        if end.is_some() {
            return Ok(Read::Line(line));
        }
    }
}

/// A log that was verified.
#[derive(Debug)]
pub struct VerifiedLog {
    pub verified: Verified,
    /// The names of the files.
    pub files: Vec<String>,
    /// The length of an unfinished last line. The daemon writes it now, or was killed while it wrote it.
    pub torn_bytes: u64,
}

/// Verifies the log in a directory.
///
/// # Errors
/// A file cannot be read.
pub fn verify(directory: &Path) -> io::Result<VerifiedLog> {
    // The head is read first: lines that are appended afterwards are after it.
    let head = read_head(directory).chain();
    let files = match OpenFiles::open(directory) {
        Ok(files) => files,
        // All files were deleted, and the head says how many lines are missing.
        Err(error) if error.kind() == io::ErrorKind::NotFound && head.is_some() => {
            OpenFiles(Vec::new())
        }
        Err(error) => return Err(error),
    };
    let mut verifier = Verifier::new(head);
    let names = files.0.iter().map(|file| file.name.clone()).collect();
    let count = files.0.len();
    let mut torn_bytes = 0;
    'files: for (index, opened) in files.0.into_iter().enumerate() {
        verifier.begin_file(opened.name);
        let mut file = BufReader::new(opened.file);
        loop {
            match read_line(&mut file)? {
                Read::Line(line) => verifier.handle_line(&line),
                // Only the file that is written now may end so.
                Read::Torn(_) if index + 1 < count => verifier.handle_line(b""),
                Read::Torn(bytes) => torn_bytes = bytes,
                Read::End => break,
            }
            if verifier.is_full() {
                break 'files;
            }
        }
    }
    Ok(VerifiedLog {
        verified: verifier.finish(),
        files: names,
        torn_bytes,
    })
}

/// The number of bytes at the end of a log in which [`latest`] looks.
const MAX_LATEST: u64 = 1024 * 1024;

/// The latest events of a log, the latest one first, and at most `most` of them. It reads only the end of the log, so it takes the same time
/// however long the log is.
///
/// # Errors
/// A file cannot be read.
pub fn latest(directory: &Path, most: usize) -> io::Result<Vec<Line>> {
    let mut lines: Vec<Line> = Vec::new();
    let mut room = MAX_LATEST;
    for opened in OpenFiles::open(directory)?.0.into_iter().rev() {
        let length = opened.file.metadata()?.len();
        let start = length.saturating_sub(room);
        room = room.saturating_sub(length);
        let mut file = BufReader::new(opened.file);
        if start > 0 {
            file.seek(SeekFrom::Start(start))?;
            // The rest of a line whose beginning is not read.
            read_line(&mut file)?;
        }
        let mut of_file = Vec::new();
        while let Read::Line(bytes) = read_line(&mut file)? {
            of_file.extend(Line::parse(&bytes));
        }
        let missing = most.saturating_sub(lines.len());
        lines.extend(of_file.into_iter().rev().take(missing));
        if room == 0 || lines.len() >= most {
            break;
        }
    }
    Ok(lines)
}

/// Reads the events of a log, and then those that are appended.
#[derive(Debug)]
pub struct EventReader {
    directory: PathBuf,
    /// The files that are not read yet, the oldest one last.
    waiting: Vec<File>,
    current: Option<BufReader<File>>,
    /// The last line that was returned.
    last: Option<Mark>,
    /// Lines up to this one are passed over, because they were returned already.
    known: Option<Mark>,
}

/// A line, by its number and its time. Lines of a log that was begun again have low numbers, and later times.
#[derive(Debug, Clone)]
struct Mark {
    n: u64,
    at: String,
}

impl Mark {
    fn covers(&self, line: &Line) -> bool {
        line.n <= self.n && line.at <= self.at
    }
}

/// The next line that a reader found.
#[derive(Debug)]
pub enum NextEvent {
    Event(Box<Line>),
    /// A line that cannot be read.
    Unreadable,
}

impl EventReader {
    /// Begins at the oldest line.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn open(directory: &Path) -> io::Result<Self> {
        Self::open_since(directory, SystemTime::UNIX_EPOCH)
    }

    /// Begins at the oldest line of the files that may have an event after `since`.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn open_since(directory: &Path, since: SystemTime) -> io::Result<Self> {
        let mut waiting = Vec::new();
        for opened in OpenFiles::open(directory)?.0.into_iter().rev() {
            // Nothing is appended to an earlier file, so all of its lines are older than its last change.
            if opened.last.is_none() || opened.file.metadata()?.modified()? >= since {
                waiting.push(opened.file);
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            waiting,
            current: None,
            last: None,
            known: None,
        })
    }

    /// The next event. None if there is none at present.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn poll(&mut self) -> io::Result<Option<NextEvent>> {
        loop {
            if self.current.is_none() {
                let Some(next) = self.waiting.pop() else {
                    return Ok(None);
                };
                self.current = Some(BufReader::new(next));
            }
            let Some(file) = &mut self.current else {
                return Ok(None);
            };
            match read_line(file)? {
                Read::Line(bytes) => {
                    let Some(line) = Line::parse(&bytes) else {
                        return Ok(Some(NextEvent::Unreadable));
                    };
                    if self.known.as_ref().is_some_and(|known| known.covers(&line)) {
                        continue;
                    }
                    let (n, at) = (line.n, line.at.clone());
                    self.last = Some(Mark { n, at });
                    return Ok(Some(NextEvent::Event(Box::new(line))));
                }
                // The rest of this line is read with its beginning, when it is there.
                Read::Torn(bytes) => {
                    let back = i64::try_from(bytes).unwrap_or(i64::MAX);
                    file.seek(SeekFrom::Current(-back))?;
                    if self.waiting.is_empty() {
                        return Ok(None);
                    }
                    self.current = None;
                }
                Read::End if self.waiting.is_empty() => return Ok(None),
                Read::End => self.current = None,
            }
        }
    }

    /// Looks for files that were begun after the one that is read. It is called when [`EventReader::poll`] has found nothing.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn follow(&mut self) -> io::Result<()> {
        let Some(file) = &self.current else {
            self.waiting = Self::open(&self.directory)?.waiting;
            return Ok(());
        };
        let read = file.get_ref().metadata()?;
        let mut newer: Vec<OpenFile> = Vec::new();
        for opened in OpenFiles::open(&self.directory)?.0.into_iter().rev() {
            let found = opened.file.metadata()?;
            if (found.dev(), found.ino()) == (read.dev(), read.ino()) {
                self.waiting = newer.into_iter().map(|newer| newer.file).collect();
                return Ok(());
            }
            newer.push(opened);
        }
        // The file that was read is gone, or another one was put in its place, which may have the same lines. Earlier files may still be
        // there.
        self.known.clone_from(&self.last);
        let through = self.last.as_ref().map_or(0, |last| last.n);
        newer.retain(|opened| opened.last.is_none_or(|last| last > through));
        self.waiting = newer.into_iter().map(|newer| newer.file).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::os::audit::event::{Event, Text, What, Who};
    use crate::os::audit::line::Chain;

    /// The lines with these numbers, each at the second of its number after `start`.
    fn lines(chain: &mut Chain, count: u64, start: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for n in 1..=count {
            let reason = Text::of(&n);
            let event = Event::done(Who::Daemon, What::StoreWentBack { reason });
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(start + n);
            bytes.extend(chain.append(at, &event));
        }
        bytes
    }

    fn numbers(reader: &mut EventReader) -> Vec<u64> {
        let mut found = Vec::new();
        while let Some(next) = reader.poll().expect("readable") {
            match next {
                NextEvent::Event(line) => found.push(line.n),
                NextEvent::Unreadable => panic!("nobody changed it"),
            }
        }
        found
    }

    /// Puts another file in the place of the current one.
    fn replace(directory: &Path, bytes: &[u8]) {
        let other = directory.join("other");
        std::fs::write(&other, bytes).expect("writable");
        std::fs::rename(&other, directory.join(CURRENT)).expect("writable");
    }

    #[test]
    fn no_event_is_shown_again_after_the_file_was_replaced() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        let mut chain = Chain::EMPTY;
        let earlier = path.join(format!("{CURRENT}.{:020}", 3));
        std::fs::write(earlier, lines(&mut chain, 3, 0)).expect("writable");
        let mut current = lines(&mut chain, 2, 10);
        std::fs::write(path.join(CURRENT), &current).expect("writable");
        let mut reader = EventReader::open(path).expect("a log");
        assert_eq!(numbers(&mut reader), [1, 2, 3, 4, 5]);
        reader.follow().expect("readable");
        assert_eq!(numbers(&mut reader), [0_u64; 0]);

        current.extend(lines(&mut chain, 1, 20));
        replace(path, &current);
        reader.follow().expect("readable");
        assert_eq!(numbers(&mut reader), [6]);

        // A log that is begun again has low numbers.
        let mut again = Chain::EMPTY;
        replace(path, &lines(&mut again, 2, 100));
        reader.follow().expect("readable");
        assert_eq!(numbers(&mut reader), [1, 2]);
    }

    #[test]
    fn the_latest_events_are_read_from_the_end_of_the_log() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        let mut chain = Chain::EMPTY;
        let earlier = path.join(format!("{CURRENT}.{:020}", 3));
        std::fs::write(earlier, lines(&mut chain, 3, 0)).expect("writable");
        let current = lines(&mut chain, 2, 10);
        std::fs::write(path.join(CURRENT), &current).expect("writable");
        let latest_numbers = |most| {
            let lines = latest(path, most).expect("a log");
            lines.iter().map(|line| line.n).collect::<Vec<_>>()
        };
        assert_eq!(latest_numbers(10), [5, 4, 3, 2, 1]);
        assert_eq!(latest_numbers(3), [5, 4, 3]);
        assert_eq!(latest_numbers(0), [0_u64; 0]);

        // Of a long file only the end is read.
        let long = lines(&mut chain, 10_000, 100);
        assert!(long.len() as u64 > MAX_LATEST);
        std::fs::write(path.join(CURRENT), &long).expect("writable");
        let found = latest_numbers(usize::MAX);
        assert_eq!(found.first(), Some(&10_005));
        assert!(found.len() < 10_000, "{}", found.len());
        assert!(found.is_sorted_by(|a, b| *a == *b + 1));
    }

    #[test]
    fn earlier_files_that_are_too_old_are_not_read() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        let mut chain = Chain::EMPTY;
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for last in [2, 4] {
            let earlier = path.join(format!("{CURRENT}.{last:020}"));
            std::fs::write(&earlier, lines(&mut chain, 2, last * 10)).expect("writable");
            let file = File::options().append(true).open(&earlier);
            let changed = file.and_then(|file| file.set_modified(at(last * 10 + 2)));
            changed.expect("writable");
        }
        std::fs::write(path.join(CURRENT), lines(&mut chain, 1, 60)).expect("writable");
        let since = |seconds| {
            let reader = EventReader::open_since(path, at(seconds));
            numbers(&mut reader.expect("a log"))
        };
        assert_eq!(since(0), [1, 2, 3, 4, 5]);
        assert_eq!(since(30), [3, 4, 5]);
        assert_eq!(since(1_000), [5]);
    }
}
