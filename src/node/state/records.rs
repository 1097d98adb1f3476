//! The records on disk: one envelope a line. Records are appended as they change. The file is replaced when most lines are out
//! of date.
//!
//! Every line carries its own signature, so a damaged line is noticed when the file is read. It is left out, and the record is
//! requested again. Records on which other records depend (the mesh, tokens, memberships, revocations) stand in the file
//! twice, so that one damaged line costs no other record and never brings a removed node back.

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

/// The maximum length of a line, in bytes: a payload with every character escaped, and the signature.
const MAX_LINE: u64 = (MAX_PAYLOAD * 6 + 1024) as u64;

/// The file of records.
#[derive(Debug)]
pub struct RecordLog {
    path: PathBuf,
    file: File,
    lines: usize,
    /// Whether all records that were to be written are in the file.
    whole: bool,
}

/// The content of the file.
#[derive(Debug)]
pub struct Loaded {
    /// All records that verify.
    pub ledger: Ledger,
    /// The number of lines that were damaged.
    pub damaged: usize,
    /// The number of those whose record was lost. A damaged line loses no record if the record stands in the file twice. The
    /// last line loses none if it was cut off: the program ended before the disk had confirmed that line, and nothing else on
    /// disk follows from it.
    pub lost: usize,
}

/// Counts the damaged lines while the file is read.
#[derive(Debug, Default)]
struct Damage {
    damaged: usize,
    lost: usize,
    last: LastLine,
}

/// The last line, as far as the next line depends on it.
#[derive(Debug, Default)]
enum LastLine {
    #[default]
    Settled,
    /// Its record was lost, unless the next line is a copy of it.
    Damaged,
    /// The first copy of a record that stands in the file twice.
    First(Envelope),
    /// A copy of a record that stands in the file twice, after a damaged line. If the next line is a copy of it as well, the
    /// damaged line was another record.
    AfterDamaged(Envelope),
}

impl Damage {
    /// A line was read. `envelope` is none if it is damaged.
    fn handle_line(&mut self, envelope: Option<&Envelope>) {
        let last = std::mem::take(&mut self.last);
        let Some(envelope) = envelope else {
            self.damaged += 1;
            match last {
                LastLine::Settled => self.last = LastLine::Damaged,
                // The second copy is damaged.
                LastLine::First(_) => {}
                LastLine::Damaged | LastLine::AfterDamaged(_) => {
                    self.lost += 1;
                    self.last = LastLine::Damaged;
                }
            }
            return;
        };
        let is_twice = is_foundation(envelope);
        match last {
            LastLine::Damaged if is_twice => {
                self.last = LastLine::AfterDamaged(envelope.clone());
            }
            LastLine::Damaged => self.lost += 1,
            LastLine::AfterDamaged(copy) if copy == *envelope => self.lost += 1,
            LastLine::First(copy) if copy == *envelope => {}
            _ if is_twice => self.last = LastLine::First(envelope.clone()),
            _ => {}
        }
    }

    /// The file ended. `is_torn` is whether the last line has no end.
    fn finish(&mut self, is_torn: bool) {
        if matches!(self.last, LastLine::Damaged) && !is_torn {
            self.lost += 1;
        }
    }
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
        let mut ledger = Ledger::new(mesh_key);
        let mut damage = Damage::default();
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
            let applied = envelope.clone().map(|envelope| ledger.apply(envelope));
            // A record that a rule refuses is not damaged: a later record, or a rule of a later version, made it invalid.
            let is_damaged = match &applied {
                None => true,
                Some(Err(refused)) => {
                    tracing::debug!(%refused, "a record on disk is not loaded, since the ledger refuses it");
                    matches!(
                        refused,
                        Refused::Signature | Refused::TooLong(_) | Refused::Record(_)
                    )
                }
                Some(Ok(_)) => false,
            };
            damage.handle_line(envelope.as_ref().filter(|_| !is_damaged));
        }
        damage.finish(!whole);
        let loaded = Loaded {
            ledger,
            damaged: damage.damaged,
            lost: damage.lost,
        };
        let mut log = Self {
            path: path.to_owned(),
            file,
            lines,
            whole: true,
        };
        // A line cut off in the middle would swallow the next one that is appended.
        if (!whole || loaded.damaged > 0) && log.replace(loaded.ledger.envelopes()).is_err() {
            // A full disk does not keep the node from starting: the records that were read hold, and are written later.
            log.whole = false;
        }
        Ok((log, loaded))
    }

    /// Whether all records that were to be written are in the file. If they are not, only [`RecordLog::replace`] makes it whole.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The number of lines.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Appends records and waits for the disk.
    ///
    /// # Errors
    /// The disk refuses. The file is then as before.
    pub fn append(&mut self, envelopes: &[Envelope]) -> Result<(), FileError> {
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

    /// Replaces the content of the file with these records, and waits for the disk.
    ///
    /// # Errors
    /// The disk refuses. The file is then as before.
    pub fn replace<'a>(
        &mut self,
        envelopes: impl Iterator<Item = &'a Envelope>,
    ) -> Result<(), FileError> {
        let (text, lines) = lines_of(envelopes);
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
    use crate::records::kinds::Token;
    use crate::testbed::records as build;
    use crate::testbed::records::{id, key};

    const MESH: u8 = 1;

    fn token(n: u8, version: u64) -> Envelope {
        let token = Token {
            version,
            ..build::token(&id(n))
        };
        Envelope::seal(&Record::Token(token), &key(MESH))
    }

    fn open(path: &Path) -> (RecordLog, Loaded) {
        RecordLog::open(path, id(MESH)).expect("a writable directory")
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
            log.append(&[token(n, 1)]).expect("room on the disk");
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
            assert_eq!((loaded.damaged, loaded.lost), (1, 0));
            loaded
                .ledger
                .apply(token(20, 1))
                .expect("signed by the mesh key");
            log.append(&[token(20, 1)]).expect("room on the disk");
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
            assert_eq!(loaded.lost, 0, "bit flipped at {at}");
        }
    }

    #[test]
    fn a_damaged_line_is_a_lost_record_if_no_copy_of_it_is_left() {
        let (_dir, path) = three();
        let text = std::fs::read_to_string(&path).expect("just written");
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), 6);
        // The damaged lines, and the number of records that are lost with them.
        for (damaged, lost) in [
            (vec![0], 0),
            (vec![1], 0),
            (vec![5], 0),
            (vec![0, 1], 1),
            (vec![4, 5], 1),
            (vec![2, 3], 1),
            (vec![0, 1, 2, 3, 4, 5], 3),
        ] {
            let line = |n: usize| if damaged.contains(&n) { "{" } else { lines[n] };
            let text: Vec<String> = (0..6).map(|n| format!("{}\n", line(n))).collect();
            std::fs::write(&path, text.concat()).expect("writable");
            let (_, loaded) = open(&path);
            assert_eq!(loaded.damaged, damaged.len());
            assert_eq!(3 - loaded.ledger.len(), lost);
            assert!(loaded.lost >= lost, "{damaged:?}");
            assert_eq!(loaded.lost > 0, lost > 0, "{damaged:?}");
        }
        // A line that was cut off is the only damaged one, and none that was on disk for certain.
        let service = "{\"signer\":";
        std::fs::write(&path, format!("{text}{service}")).expect("writable");
        let (_, loaded) = open(&path);
        assert_eq!((loaded.damaged, loaded.lost), (1, 0));
    }

    #[test]
    fn the_content_is_replaced_as_a_whole() {
        let (_dir, path) = three();
        let (mut log, loaded) = open(&path);
        let kept: Vec<Envelope> = loaded.ledger.envelopes().take(2).cloned().collect();
        log.replace(kept.iter()).expect("room on the disk");
        assert_eq!((log.lines(), log.is_whole()), (4, true));
        log.append(&[token(20, 1)]).expect("room on the disk");
        let (again, loaded) = open(&path);
        assert_eq!((loaded.ledger.len(), again.lines()), (3, 6));
    }
}
