//! The lines and the files of a log whose disk fails when the test wants it.

use super::*;
use crate::os::audit::digest::LineDigest;
use crate::os::audit::line::Line;
use crate::os::audit::verify::Verifier;

/// Files in memory.
#[derive(Debug, Default)]
struct Memory {
    /// The oldest one first; the last one is the current one.
    files: Vec<Vec<u8>>,
    head: Option<Chain>,
    is_full: bool,
    max_files: usize,
    /// Whether files cannot be removed, or not get another name.
    is_permanent: bool,
    is_immutable: bool,
}

impl Sink for Memory {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.files.is_empty() {
            self.files.push(Vec::new());
        }
        let current = self.files.last_mut().expect("just made");
        current.extend(bytes);
        Ok(())
    }

    fn set_head(&mut self, head: Chain) {
        self.head = Some(head);
    }

    fn rotate(&mut self, _: u64) -> io::Result<()> {
        if self.is_immutable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.files.push(Vec::new());
        Ok(())
    }

    fn excess(&mut self) -> io::Result<Option<Chain>> {
        let oldest = self
            .files
            .first()
            .filter(|_| self.files.len() > self.max_files);
        Ok(oldest.map(|file| {
            let line = file.trim_ascii_end().split(|b| *b == b'\n').next_back();
            let line = line.expect("a line");
            Chain {
                last: Line::parse(line).expect("ours").n,
                digest: LineDigest::of(line),
            }
        }))
    }

    fn remove_oldest(&mut self) -> io::Result<()> {
        if self.is_permanent {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.files.remove(0);
        Ok(())
    }
}

fn entry(n: u64) -> Entry {
    let what = What::StoreWentBack {
        reason: Text::of(&n),
    };
    Entry {
        at: SystemTime::UNIX_EPOCH,
        event: Event::done(Who::Daemon, what),
    }
}

fn recorder(max_files: usize) -> Recorder<Memory> {
    let sink = Memory {
        max_files,
        ..Memory::default()
    };
    Recorder::new(sink, Chain::EMPTY, 0)
}

fn lines(recorder: &Recorder<Memory>) -> Vec<Line> {
    let files = recorder.sink.files.iter();
    let lines = files.flat_map(|file| file.split(|byte| *byte == b'\n'));
    let lines = lines.filter(|line| !line.is_empty());
    lines.map(|line| Line::parse(line).expect("ours")).collect()
}

fn assert_verified(recorder: &Recorder<Memory>) {
    let mut verifier = Verifier::new(recorder.sink.head);
    for (file, bytes) in recorder.sink.files.iter().enumerate() {
        verifier.begin_file(format!("{file}"));
        for line in bytes.split(|byte| *byte == b'\n') {
            if !line.is_empty() {
                verifier.handle_line(line);
            }
        }
    }
    assert_eq!(verifier.finish().findings, []);
}

#[test]
fn the_chain_goes_on_over_files_and_the_removal_of_the_oldest_one_is_in_it() {
    let mut recorder = recorder(3).with_max_file(2_000);
    for n in 0..100 {
        let written = recorder.write(&[entry(n)], SystemTime::UNIX_EPOCH);
        written.expect("there is room");
        assert!(recorder.sink.files.iter().all(|file| file.len() <= 2_300));
    }
    assert_eq!(recorder.sink.files.len(), 3);
    let lines = lines(&recorder);
    assert!(lines.first().is_some_and(|line| line.n > 50));
    assert!(lines.iter().any(|line| line.what == "log_trimmed"));
    assert_verified(&recorder);
}

#[test]
fn a_file_that_cannot_be_removed_has_one_line_about_its_removal() {
    let mut recorder = recorder(1).with_max_file(2_000);
    recorder.sink.is_permanent = true;
    let write = |recorder: &mut Recorder<Memory>| {
        let written = recorder.write(&[entry(0)], SystemTime::UNIX_EPOCH);
        written.expect("there is room");
    };
    let removals = |recorder: &Recorder<Memory>| {
        let lines = lines(recorder).into_iter();
        lines.filter(|line| line.what == "log_trimmed").count()
    };
    while recorder.sink.files.len() < 2 {
        write(&mut recorder);
    }
    for _ in 0..3 {
        write(&mut recorder);
    }
    assert_eq!(recorder.sink.files.len(), 2);
    assert_eq!(removals(&recorder), 1);
    assert!(recorder.excess().is_some());
    recorder.sink.is_permanent = false;
    write(&mut recorder);
    assert_eq!(recorder.excess(), None);
    assert_eq!(recorder.sink.files.len(), 1);
    assert_eq!(removals(&recorder), 1);
    assert_verified(&recorder);
}

#[test]
fn a_file_that_cannot_be_put_aside_is_continued_up_to_twice_its_size_and_that_is_a_fault() {
    let mut recorder = recorder(3).with_max_file(2_000);
    recorder.sink.is_immutable = true;
    let now = SystemTime::UNIX_EPOCH;
    let mut written = 0;
    while recorder.write(&[entry(0)], now).is_ok() {
        written += 1;
        let length = recorder.sink.files.first().map_or(0, Vec::len);
        assert_eq!(recorder.excess().is_some(), length > 2_000);
        assert!(length < 4_500, "{length}");
    }
    assert!(written > 10, "{written}");
    recorder.sink.is_immutable = false;
    recorder.write(&[entry(1)], now).expect("there is room");
    assert_eq!(recorder.excess(), None);
    assert_eq!(recorder.sink.files.len(), 2);
    assert_verified(&recorder);
}

#[test]
fn a_full_disk_costs_the_events_of_that_time_and_the_log_says_how_many() {
    let mut recorder = recorder(3);
    let write = |recorder: &mut Recorder<Memory>, n, is_full| {
        recorder.sink.is_full = is_full;
        let entries = [entry(n), entry(n + 1)];
        let written = recorder.write(&entries, SystemTime::UNIX_EPOCH);
        assert_eq!(written.is_err(), is_full);
    };
    write(&mut recorder, 0, false);
    write(&mut recorder, 2, true);
    write(&mut recorder, 4, true);
    assert_eq!(
        recorder.missing.as_ref().map(|missing| missing.count),
        Some(4)
    );
    recorder.note_missing(3, "too many events at once");
    write(&mut recorder, 6, false);
    assert_eq!(recorder.missing, None);
    let lines = lines(&recorder);
    let whats: Vec<&str> = lines.iter().map(|line| line.what.as_str()).collect();
    let event = "store_went_back";
    assert_eq!(whats, [event, event, "events_lost", event, event]);
    let lost = &lines.get(2).expect("the third").object;
    assert_eq!(
        lost,
        &serde_json::json!({"count": 7, "reason": "too many events at once"})
    );
    assert_verified(&recorder);
}

#[test]
fn a_log_that_can_be_written_again_says_so_without_another_event() {
    let mut recorder = recorder(3);
    recorder.sink.is_full = true;
    let now = SystemTime::UNIX_EPOCH;
    assert!(recorder.write(&[entry(0)], now).is_err());
    assert!(recorder.write(&[], now).is_err());
    assert_eq!(
        recorder.missing.as_ref().map(|missing| missing.count),
        Some(1)
    );
    recorder.sink.is_full = false;
    recorder.write(&[], now).expect("there is room");
    recorder.write(&[], now).expect("nothing to write");
    let whats: Vec<String> = lines(&recorder).into_iter().map(|line| line.what).collect();
    assert_eq!(whats, ["events_lost"]);
}
