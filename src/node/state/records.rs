//! The records on disk: one envelope a line, appended as they change, written anew when most lines are old.
//!
//! Every line carries its own signature, so a damaged one is noticed when it is read back, left out, and
//! fetched again. Records that others rest on (the mesh, tokens, memberships, revocations) stand there twice:
//! one damaged line costs no other, and never brings a removed node back.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::model::PublicKey;
use crate::os::file;
use crate::os::file::FileError;
use crate::records::envelope::MAX_PAYLOAD;
use crate::records::kinds::Record;
use crate::records::ledger::Refused;
use crate::records::{Envelope, Ledger};

/// Octets of a line at most: a payload with every character escaped, and the signature.
const MAX_LINE: u64 = (MAX_PAYLOAD * 6 + 1024) as u64;
/// The file is written anew when it has more than three times as many lines as records, and more than this.
const SLACK_LINES: usize = 1024;

/// The file of records.
#[derive(Debug)]
pub struct RecordLog {
    path: PathBuf,
    file: File,
    lines: usize,
    /// Whether all that was appended is there.
    whole: bool,
}

/// What came back from disk.
#[derive(Debug)]
pub struct Loaded {
    /// All records that verify.
    pub ledger: Ledger,
    /// Lines that were damaged.
    pub damaged: usize,
}

impl RecordLog {
    /// Opens the file and verifies every line of it.
    ///
    /// # Errors
    /// The disk refuses. Damaged lines are no error.
    pub fn open(path: &Path, mesh_key: PublicKey) -> Result<(Self, Loaded), FileError> {
        let fault = |error: io::Error| FileError::io("open", path, error);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(fault)?;
        let mut loaded = Loaded {
            ledger: Ledger::new(mesh_key),
            damaged: 0,
        };
        let mut reader = BufReader::new(&file);
        let mut lines = 0;
        let mut whole = true;
        loop {
            let mut line = Vec::new();
            let read = reader
                .by_ref()
                .take(MAX_LINE)
                .read_until(b'\n', &mut line)
                .map_err(fault)?;
            if read == 0 {
                break;
            }
            if line == b"\n" {
                continue;
            }
            lines += 1;
            whole = line.last() == Some(&b'\n');
            let envelope = serde_json::from_slice::<Envelope>(&line)
                .ok()
                .filter(|_| whole);
            // A record that a rule refuses is not damaged: a later record, or a rule of a later version, made it invalid.
            match envelope.map(|envelope| loaded.ledger.apply(envelope)) {
                Some(Ok(_)) => {}
                None | Some(Err(Refused::Signature | Refused::TooLong(_) | Refused::Record(_))) => {
                    loaded.damaged += 1;
                }
                Some(Err(refused)) => {
                    tracing::debug!(%refused, "a record on disk is not loaded, since the ledger refuses it");
                }
            }
        }
        let mut log = Self {
            path: path.to_owned(),
            file,
            lines,
            whole: true,
        };
        // A line cut off in the middle would swallow the next one appended.
        if (!whole || loaded.damaged > 0) && log.rewrite(&loaded.ledger).is_err() {
            // A full disk does not keep the node from starting: what was read holds, and is written later.
            log.whole = false;
        }
        Ok((log, loaded))
    }

    /// Whether all that was appended is on disk. Once it is not, the next [`RecordLog::append`] that succeeds makes
    /// it whole.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Appends records and waits for the disk; `ledger` holds them already.
    ///
    /// # Errors
    /// The disk refuses; what was there before stays as it was.
    pub fn append(&mut self, envelopes: &[Envelope], ledger: &Ledger) -> Result<(), FileError> {
        if !self.whole || self.lines + envelopes.len() > ledger.len() * 3 + SLACK_LINES {
            self.whole = false;
            return self.rewrite(ledger);
        }
        let (text, lines) = lines_of(envelopes.iter());
        let before = self.file.metadata().map(|m| m.len());
        let written = self
            .file
            .write_all(&text)
            .and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            if let Ok(length) = before {
                let _ = self.file.set_len(length);
            }
            self.whole = false;
            return Err(FileError::io("write", &self.path, error));
        }
        self.lines += lines;
        Ok(())
    }

    fn rewrite(&mut self, ledger: &Ledger) -> Result<(), FileError> {
        let (text, lines) = lines_of(ledger.envelopes());
        file::write_atomic(&self.path, &text, 0o600)?;
        self.file = OpenOptions::new()
            .append(true)
            .open(&self.path)
            .map_err(|error| FileError::io("open", &self.path, error))?;
        self.lines = lines;
        self.whole = true;
        Ok(())
    }
}

/// The text to append for `envelopes`, and how many lines it has.
fn lines_of<'a>(envelopes: impl Iterator<Item = &'a Envelope>) -> (Vec<u8>, usize) {
    let (mut text, mut lines) = (Vec::new(), 0);
    for envelope in envelopes {
        let copies = if is_foundation(envelope) { 2 } else { 1 };
        for copy in 0..copies {
            if copy > 0 {
                // A damaged line end must not join the two copies into one line.
                text.push(b'\n');
            }
            serde_json::to_writer(&mut text, envelope)
                .expect("an envelope is plain data, and memory does not fail");
            text.push(b'\n');
        }
        lines += copies;
    }
    (text, lines)
}

fn is_foundation(envelope: &Envelope) -> bool {
    Record::parse(&envelope.payload).is_ok_and(|(_, record)| {
        !matches!(
            record,
            Record::Node(_) | Record::Service(_) | Record::Unknown
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;
    use crate::model::time::UnixSeconds;
    use crate::records::kinds::Token;

    const MESH: [u8; 32] = [1; 32];

    fn token(n: u8, version: u64) -> Envelope {
        let token = Token {
            id: SigningKey::from_seed(&[n; 32]).public(),
            version,
            tags: vec![],
            uses: 1,
            created_at: UnixSeconds(1),
            expires_at: UnixSeconds(2),
            ephemeral: false,
        };
        Envelope::seal(&Record::Token(token), &SigningKey::from_seed(&MESH))
    }

    fn open(path: &Path) -> (RecordLog, Loaded) {
        RecordLog::open(path, SigningKey::from_seed(&MESH).public()).expect("a writable directory")
    }

    /// A log of tokens 10 to 12 in a new directory.
    fn three() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("records.jsonl");
        let (mut log, mut loaded) = open(&path);
        for n in 10..13 {
            loaded
                .ledger
                .apply(token(n, 1))
                .expect("signed by the mesh key");
            log.append(&[token(n, 1)], &loaded.ledger)
                .expect("room on the disk");
        }
        (dir, path)
    }

    #[test]
    fn what_was_appended_is_there_again() {
        let (_dir, path) = three();
        let (_, loaded) = open(&path);
        assert_eq!((loaded.ledger.len(), loaded.damaged), (3, 0));
    }

    #[test]
    fn a_file_cut_off_anywhere_keeps_all_whole_lines() {
        let (_dir, path) = three();
        let text = std::fs::read(&path).expect("just written");
        let line = text.len() / 6;
        for (at, cut) in [text.len() - 1, line * 3 + 9, line + 9, 1]
            .into_iter()
            .enumerate()
        {
            std::fs::write(&path, &text[..cut]).expect("writable");
            let (mut log, mut loaded) = open(&path);
            assert_eq!(loaded.ledger.len(), [3, 2, 1, 0][at], "cut at {cut}");
            assert_eq!(loaded.damaged, 1);
            loaded
                .ledger
                .apply(token(20, 1))
                .expect("signed by the mesh key");
            log.append(&[token(20, 1)], &loaded.ledger)
                .expect("room on the disk");
            let (_, again) = open(&path);
            assert_eq!(
                (again.ledger.len(), again.damaged),
                (loaded.ledger.len(), 0)
            );
        }
    }

    #[test]
    fn a_flipped_bit_costs_nothing_that_others_rest_on() {
        let (_dir, path) = three();
        let text = std::fs::read(&path).expect("just written");
        for at in (0..text.len()).step_by(7) {
            let mut flipped = text.clone();
            flipped[at] ^= 1;
            std::fs::write(&path, &flipped).expect("writable");
            let (_, loaded) = open(&path);
            assert_eq!(loaded.ledger.len(), 3, "bit flipped at {at}");
            assert!(loaded.damaged >= 1);
        }
    }

    #[test]
    fn the_file_does_not_grow_with_the_number_of_changes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("records.jsonl");
        let (mut log, mut loaded) = open(&path);
        for version in 1..3000 {
            loaded.ledger.apply(token(10, version)).expect("newer");
            log.append(&[token(10, version)], &loaded.ledger)
                .expect("room on the disk");
        }
        let (log, loaded) = open(&path);
        assert_eq!(loaded.ledger.len(), 1);
        assert!(log.lines <= SLACK_LINES + 5, "{} lines", log.lines);
    }
}
