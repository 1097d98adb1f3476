//! The files of a log that is killed, cut off and filled.

use std::os::unix::fs::PermissionsExt as _;
use std::time::SystemTime;

use super::*;
use crate::os::audit::event::{Event, Text, What, Who};
use crate::os::audit::pace::Entry;
use crate::os::audit::reading::verify;
use crate::os::audit::recorder::Recorder;
use crate::os::audit::verify::{Finding, Place};

fn entry(n: u64) -> Entry {
    let what = What::StoreWentBack {
        reason: Text::of(&n),
    };
    Entry {
        at: SystemTime::UNIX_EPOCH,
        event: Event::done(Who::Daemon, what),
    }
}

fn write(directory: &Path, count: u64) -> Opened {
    let opened = Files::open(directory).expect("ours");
    let found = (opened.torn_bytes, opened.head);
    let (chain, size) = (opened.chain, opened.size);
    let mut recorder = Recorder::new(opened.files, chain, size).with_max_file(20_000);
    for n in 0..count {
        let written = recorder.write(&[entry(n)], SystemTime::UNIX_EPOCH);
        written.expect("there is room");
    }
    drop(recorder);
    let again = Files::open(directory).expect("ours");
    Opened {
        torn_bytes: found.0,
        head: found.1,
        ..again
    }
}

#[test]
fn a_log_is_continued_over_starts_and_files_and_the_oldest_files_are_removed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path();
    assert_eq!(write(path, 1).head, HeadFound::New);
    for _ in 0..40 {
        assert_eq!(write(path, 20).head, HeadFound::Ok);
    }
    let opened = write(path, 0);
    assert!(opened.chain.last > 801, "the removals have lines as well");
    assert_eq!(earlier(path).expect("readable").len(), MAX_FILES - 1);
    let mode = std::fs::metadata(path.join(CURRENT)).expect("there");
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    let verified = verify(path).expect("readable");
    assert_eq!(verified.verified.findings, []);
    assert_eq!(verified.verified.last, Some(opened.chain.last));
}

#[test]
fn a_last_line_that_is_torn_anywhere_is_removed_and_nothing_before_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path();
    write(path, 5);
    let current = path.join(CURRENT);
    let whole = std::fs::read(&current).expect("there");
    let head = std::fs::read(path.join(HEAD)).expect("there");
    let fragment = &whole[..200];
    for length in 1..fragment.len() {
        let torn = [&whole, &fragment[..length]].concat();
        std::fs::write(&current, torn).expect("writable");
        std::fs::write(path.join(HEAD), &head).expect("writable");
        let before = verify(path).expect("readable");
        assert_eq!(before.verified.findings, []);
        assert_eq!(before.torn_bytes, length as u64);
        let opened = write(path, 1);
        assert_eq!(opened.torn_bytes, length as u64);
        let after = verify(path).expect("readable");
        assert_eq!((after.verified.findings, after.torn_bytes), (vec![], 0));
        assert_eq!(after.verified.last, Some(6));
    }
}

#[test]
fn lines_that_were_deleted_at_the_end_are_missing_also_after_the_next_start() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path();
    write(path, 5);
    let current = path.join(CURRENT);
    let whole = std::fs::read_to_string(&current).expect("there");
    let rest: Vec<&str> = whole.lines().take(3).collect();
    std::fs::write(&current, rest.join("\n") + "\n").expect("writable");
    assert_eq!(write(path, 2).head, HeadFound::Differs);
    let found = verify(path).expect("readable").verified.findings;
    assert_eq!(found.len(), 1, "{found:?}");
    let is_named = matches!(
        found.first(),
        Some(Finding::Deleted {
            first: 4,
            last: 5,
            ..
        })
    );
    assert!(is_named, "{found:?}");
}

#[test]
fn a_last_line_that_was_changed_is_named_also_after_the_next_start() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path();
    write(path, 5);
    let current = path.join(CURRENT);
    let text = std::fs::read_to_string(&current).expect("there");
    let (rest, _) = text.trim_end().rsplit_once('\n').expect("five lines");
    let last = text.lines().next_back().expect("a line");
    let changed = last.replace("\"ok\"", "\"no\"");
    std::fs::write(&current, format!("{rest}\n{changed}\n")).expect("writable");
    assert_eq!(write(path, 2).head, HeadFound::Differs);
    let found = verify(path).expect("readable").verified.findings;
    let is_named = matches!(found.as_slice(), [Finding::Edited { n: 5, .. }]);
    assert!(is_named, "{found:?}");
}

#[test]
fn a_file_that_is_replaced_cut_off_or_appended_to_under_a_running_log_is_continued_and_named() {
    let change = |change: &dyn Fn(&Path, &str)| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let opened = Files::open(directory.path()).expect("ours");
        let mut recorder = Recorder::new(opened.files, opened.chain, opened.size);
        let mut write = |n| {
            let written = recorder.write(&[entry(n)], SystemTime::UNIX_EPOCH);
            written.expect("there is room");
        };
        (1..=5).for_each(&mut write);
        let current = directory.path().join(CURRENT);
        let text = std::fs::read_to_string(&current).expect("there");
        change(&current, &text);
        (6..=8).for_each(&mut write);
        let log = verify(directory.path()).expect("readable");
        assert_eq!(log.verified.last, Some(8));
        log.verified.findings
    };
    let without_second = |text: &str| {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.remove(1);
        lines.join("\n") + "\n"
    };
    let is_second = |found: &[Finding]| {
        matches!(
            found,
            [Finding::Deleted {
                first: 2,
                last: 2,
                ..
            }]
        )
    };
    // As `sed -i` does.
    let replaced = change(&|path, text| {
        let other = path.with_extension("new");
        std::fs::write(&other, without_second(text)).expect("writable");
        std::fs::rename(&other, path).expect("writable");
    });
    assert!(is_second(&replaced), "{replaced:?}");
    let rewritten = change(&|path, text| {
        std::fs::write(path, without_second(text)).expect("writable");
    });
    assert!(is_second(&rewritten), "{rewritten:?}");
    let removed = change(&|path, _| std::fs::remove_file(path).expect("there"));
    let all = [Finding::Deleted {
        first: 1,
        last: 5,
        after: None,
        before: Some(Place {
            file: CURRENT.to_owned(),
            line: 1,
        }),
    }];
    assert_eq!(removed, all);
    let cut = change(&|path, text| {
        std::fs::write(path, &text[..text.len() - 10]).expect("writable");
    });
    assert!(
        matches!(cut.as_slice(), [Finding::Unreadable { n: Some(5), .. }]),
        "{cut:?}"
    );
    let added = change(&|path, text| {
        std::fs::write(path, format!("{text}made up\n")).expect("writable");
    });
    assert!(
        matches!(added.as_slice(), [Finding::Unreadable { n: None, .. }]),
        "{added:?}"
    );
}

#[test]
fn a_head_that_is_removed_or_replaced_under_a_running_log_is_written_again() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path();
    let opened = Files::open(path).expect("ours");
    let mut recorder = Recorder::new(opened.files, opened.chain, opened.size);
    let mut write = |n| {
        let written = recorder.write(&[entry(n)], SystemTime::UNIX_EPOCH);
        written.expect("there is room");
    };
    write(1);
    std::fs::remove_file(path.join(HEAD)).expect("there");
    write(2);
    assert_eq!(verify(path).expect("readable").verified.findings, []);
    // As an editor does that adds a line break.
    let other = path.join("other");
    let head = std::fs::read_to_string(path.join(HEAD)).expect("there");
    std::fs::write(&other, head + "\n").expect("writable");
    std::fs::rename(&other, path.join(HEAD)).expect("writable");
    write(3);
    assert_eq!(verify(path).expect("readable").verified.findings, []);
}

#[test]
fn a_file_that_is_removed_before_a_new_one_begins_stops_no_log() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path();
    let opened = Files::open(path).expect("ours");
    let recorder = Recorder::new(opened.files, opened.chain, opened.size);
    // Each line begins a new file.
    let mut recorder = recorder.with_max_file(1);
    let mut write = |n| {
        let written = recorder.write(&[entry(n)], SystemTime::UNIX_EPOCH);
        written.expect("there is room");
    };
    write(1);
    std::fs::remove_file(path.join(CURRENT)).expect("there");
    write(2);
    write(3);
    let found = verify(path).expect("readable").verified.findings;
    let is_named = matches!(
        found.as_slice(),
        [Finding::Deleted {
            first: 1,
            last: 1,
            ..
        }]
    );
    assert!(is_named, "{found:?}");
}
