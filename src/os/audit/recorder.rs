//! Decides which lines are appended to the log, when a new file begins, and when the oldest file is removed. The files are behind
//! the trait [`Sink`]. Pure.
//!
//! Events that could not be written do not become lines later, and no number is taken for them: when the log can be written
//! again, an event says how many are missing.

use std::io;
use std::time::SystemTime;

use super::event::{Event, Text, What, Who};
use super::line::Chain;
use super::pace::Entry;

/// The maximum size of a file in bytes.
pub const MAX_FILE: u64 = 64 * 1024 * 1024;

/// The files of a log.
pub trait Sink {
    /// Appends `bytes` to the current file and waits until they are on disk. If it fails, the file is as before.
    ///
    /// # Errors
    /// The system returned an error.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Stores the end of the chain, all of which is on disk.
    fn set_head(&mut self, head: Chain);

    /// Begins a new file. The current one is kept under a name with its last number, which is `last`.
    ///
    /// # Errors
    /// The system returned an error. The current file is then continued.
    fn rotate(&mut self, last: u64) -> io::Result<()>;

    /// If there are too many files: the last number in the oldest one, with the digest of its line.
    ///
    /// # Errors
    /// The files cannot be read.
    fn excess(&mut self) -> io::Result<Option<Chain>>;

    /// Removes the oldest file, of which [`Sink::excess`] returned the end.
    ///
    /// # Errors
    /// The system returned an error.
    fn remove_oldest(&mut self) -> io::Result<()>;
}

/// The writer of a log.
#[derive(Debug)]
pub struct Recorder<S> {
    sink: S,
    chain: Chain,
    /// The size of the current file.
    size: u64,
    max_file: u64,
    /// Whether there are at most as many files as permitted.
    is_trimmed: bool,
    /// The last number in the files whose removal has a line in the log.
    trimmed_through: u64,
    missing: Option<Missing>,
    /// Why no new file can be begun.
    unrotated: Option<String>,
    /// Why the oldest file cannot be removed.
    untrimmed: Option<String>,
}

/// Events that are not in the log, and the reason.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    count: u64,
    reason: String,
}

impl<S: Sink> Recorder<S> {
    /// Continues a log that ends with `chain` and whose current file has `size` bytes.
    pub fn new(sink: S, chain: Chain, size: u64) -> Self {
        Self {
            sink,
            chain,
            size,
            max_file: MAX_FILE,
            is_trimmed: false,
            trimmed_through: 0,
            missing: None,
            unrotated: None,
            untrimmed: None,
        }
    }

    /// Why the log takes more room than it should, if it does.
    pub fn excess(&self) -> Option<&str> {
        let excess = self.unrotated.as_ref().or(self.untrimmed.as_ref());
        excess.map(String::as_str)
    }

    /// Sets the maximum size of a file.
    #[cfg(test)]
    pub fn with_max_file(self, max_file: u64) -> Self {
        Self { max_file, ..self }
    }

    /// Notes that events are missing for another reason.
    pub fn note_missing(&mut self, count: u64, reason: &str) {
        let missing = self.missing.get_or_insert(Missing {
            count: 0,
            reason: String::new(),
        });
        missing.count = missing.count.saturating_add(count);
        reason.clone_into(&mut missing.reason);
    }

    /// Writes all `entries` or none. Without entries, it only writes how many events are missing, if any are.
    ///
    /// # Errors
    /// The system returned an error. The entries are then missing.
    pub fn write(&mut self, entries: &[Entry], now: SystemTime) -> io::Result<()> {
        if entries.is_empty() && self.missing.is_none() {
            return Ok(());
        }
        let mut chain = self.chain;
        let mut bytes = Vec::new();
        if let Some(Missing { count, reason }) = &self.missing {
            let what = What::EventsLost {
                count: *count,
                reason: Text::from(reason.as_str()),
            };
            bytes.extend(chain.append(now, &Event::done(Who::Daemon, what)));
        }
        for entry in entries {
            bytes.extend(chain.append(entry.at, &entry.event));
        }
        match self.append(&bytes, chain) {
            Ok(()) => {
                self.missing = None;
                // The lines are on disk, so they are written even if the trim fails. The trim is tried again with the next lines.
                let trimmed = self.trim(now);
                self.untrimmed = trimmed.err().map(|error| error.to_string());
                Ok(())
            }
            Err(error) => {
                self.note_missing(entries.len() as u64, &error.to_string());
                Err(error)
            }
        }
    }

    /// Appends lines that end with `chain`, after a new file was begun if the current one has no room for them.
    fn append(&mut self, bytes: &[u8], chain: Chain) -> io::Result<()> {
        let length = bytes.len() as u64;
        if self.size > 0 && self.size.saturating_add(length) > self.max_file {
            match self.sink.rotate(self.chain.last) {
                Ok(()) => {
                    self.size = 0;
                    self.is_trimmed = false;
                    self.unrotated = None;
                }
                // A file that is too long is better than missing events, until it has twice its size. The next lines try it again.
                Err(error) if self.size < self.max_file.saturating_mul(2) => {
                    self.unrotated = Some(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        self.sink.append(bytes)?;
        self.size = self.size.saturating_add(length);
        self.chain = chain;
        self.sink.set_head(chain);
        Ok(())
    }

    /// Removes the oldest files, if there are too many. A removal is in the log before it is carried out: a file that is missing
    /// without such an event was removed by somebody else.
    fn trim(&mut self, now: SystemTime) -> io::Result<()> {
        if self.is_trimmed {
            return Ok(());
        }
        while let Some(oldest) = self.sink.excess()? {
            // A removal that failed before has its line already.
            if oldest.last > self.trimmed_through {
                let what = What::LogTrimmed {
                    through: oldest.last,
                    digest: oldest.digest,
                };
                let mut chain = self.chain;
                let bytes = chain.append(now, &Event::done(Who::Daemon, what));
                self.append(&bytes, chain)?;
                self.trimmed_through = oldest.last;
            }
            self.sink.remove_oldest()?;
        }
        self.is_trimmed = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
