//! Reads a log from its files. The daemon need not run, and may write meanwhile.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::files::{CURRENT, earlier, read_head};
use super::line::{Line, MAX_LINE};
use super::verify::{Verified, Verifier};

/// How often the files are listed again, if a new file was begun meanwhile.
const MAX_ATTEMPTS: usize = 8;

/// The files of a log, the oldest one first.
#[derive(Debug)]
struct OpenFiles(Vec<(String, File)>);

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
        for (_, path) in earlier {
            files.push((name_of(path), File::open(path)?));
        }
        let current = directory.join(CURRENT);
        match File::open(&current) {
            Ok(file) => files.push((name_of(&current), file)),
            // No line was written since the last file was begun.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !files.is_empty() => {}
            Err(error) => return Err(error),
        }
        Ok(Self(files))
    }
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
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
    let names = files.0.iter().map(|(name, _)| name.clone()).collect();
    let count = files.0.len();
    let mut torn_bytes = 0;
    'files: for (index, (name, file)) in files.0.into_iter().enumerate() {
        verifier.begin_file(name);
        let mut file = BufReader::new(file);
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

/// Reads the events of a log, and then those that are appended.
#[derive(Debug)]
pub struct EventReader {
    directory: PathBuf,
    /// The files that are not read yet, the oldest one last.
    waiting: Vec<File>,
    current: Option<BufReader<File>>,
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
        let files = OpenFiles::open(directory)?.0;
        Ok(Self {
            directory: directory.to_owned(),
            waiting: files.into_iter().rev().map(|(_, file)| file).collect(),
            current: None,
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
                    let line = Line::parse(&bytes).map(Box::new);
                    return Ok(Some(line.map_or(NextEvent::Unreadable, NextEvent::Event)));
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
        let mut newer = Vec::new();
        for (_, file) in OpenFiles::open(&self.directory)?.0.into_iter().rev() {
            let found = file.metadata()?;
            if (found.dev(), found.ino()) == (read.dev(), read.ino()) {
                self.waiting = newer;
                return Ok(());
            }
            newer.push(file);
        }
        // The file that was read is gone, with all lines before it.
        self.waiting = newer;
        Ok(())
    }
}
