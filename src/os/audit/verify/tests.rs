//! Every line of a log is deleted, swapped and edited, and the verifier names it.

use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::os::audit::event::{Event, Text, What, Who};

/// A log of `count` lines, without line breaks, and its end.
fn log(count: u64) -> (Vec<Vec<u8>>, Chain) {
    let mut chain = Chain::EMPTY;
    let line = |n| {
        let what = What::StoreWentBack {
            reason: Text::of(&n),
        };
        let mut line = chain.append(SystemTime::UNIX_EPOCH, &Event::done(Who::Daemon, what));
        line.pop();
        line
    };
    ((1..=count).map(line).collect(), chain)
}

fn verify(lines: &[Vec<u8>], head: Option<Chain>) -> Vec<Finding> {
    let mut verifier = Verifier::new(head);
    verifier.begin_file("a".to_owned());
    lines.iter().for_each(|line| verifier.handle_line(line));
    let verified = verifier.finish();
    assert!(!verified.is_cut);
    verified.findings
}

fn at(line: u64) -> Place {
    Place {
        file: "a".to_owned(),
        line,
    }
}

fn index(n: u64) -> usize {
    usize::try_from(n - 1).expect("small")
}

/// Replaces a text in a line.
fn replace(line: &mut Vec<u8>, from: &str, to: &str) {
    let text = String::from_utf8(line.clone()).expect("JSON");
    assert!(text.contains(from), "{text}");
    *line = text.replacen(from, to, 1).into_bytes();
}

#[test]
fn a_log_that_nobody_changed_has_no_findings() {
    for count in [0, 1, 2, 50] {
        let (lines, head) = log(count);
        assert_eq!(verify(&lines, Some(head)), []);
    }
}

#[test]
fn a_log_that_was_killed_before_its_head_was_written_has_no_findings() {
    let (lines, _) = log(50);
    let (_, head) = log(40);
    assert_eq!(verify(&lines, Some(head)), []);
}

#[test]
fn each_line_that_is_deleted_is_named() {
    let (lines, head) = log(20);
    for n in 1..=20 {
        let mut changed = lines.clone();
        changed.remove(index(n));
        let deleted = Finding::Deleted {
            first: n,
            last: n,
            after: (n > 1).then(|| at(n - 1)),
            before: (n < 20).then(|| at(n)),
        };
        assert_eq!(verify(&changed, Some(head)), [deleted]);
    }
}

#[test]
fn each_line_whose_content_is_edited_is_named() {
    let (lines, head) = log(20);
    for n in 1..=20 {
        let place = at(n);
        let mut other_content = lines.clone();
        replace(
            &mut other_content[index(n)],
            r#""result":"ok""#,
            r#""result":"no""#,
        );
        let mut other_number = lines.clone();
        let number = format!(r#""n":{n},"#);
        replace(&mut other_number[index(n)], &number, r#""n":77,"#);
        let edited = Finding::Edited {
            n,
            place: place.clone(),
        };
        for changed in [other_content, other_number] {
            assert_eq!(verify(&changed, Some(head)), std::slice::from_ref(&edited));
        }
        for garbage in ["", "{}", "\u{0}"] {
            let mut changed = lines.clone();
            changed[index(n)] = garbage.into();
            let unreadable = Finding::Unreadable {
                n: Some(n),
                place: place.clone(),
            };
            assert_eq!(verify(&changed, Some(head)), [unreadable]);
        }
    }
}

#[test]
fn a_line_whose_link_is_edited_is_named_and_the_line_before_it_counts_as_unconfirmed() {
    let (lines, head) = log(20);
    for n in 1..=20 {
        let mut changed = lines.clone();
        replace(&mut changed[index(n)], r#""prev":""#, r#""prev":"f"#);
        let length = changed[index(n)].len();
        changed[index(n)].remove(length - 3);
        let found = verify(&changed, Some(head));
        let edited = Finding::Edited { n, place: at(n) };
        assert!(found.contains(&edited), "{n}: {found:?}");
        let others: Vec<&Finding> = found.iter().filter(|f| **f != edited).collect();
        if n > 1 {
            let (n, place) = (n - 1, at(n - 1));
            assert_eq!(others, [&Finding::Unconfirmed { n, place }]);
        } else {
            assert!(others.is_empty());
        }
    }
}

#[test]
fn both_of_two_lines_that_are_swapped_are_named() {
    let (lines, head) = log(20);
    for (low, high) in (1..=20).flat_map(|low| (low + 1..=20).map(move |high| (low, high))) {
        let mut changed = lines.clone();
        changed.swap(index(low), index(high));
        let found = verify(&changed, Some(head));
        let moved = |n, line| Finding::Moved { n, place: at(line) };
        let mut expected = vec![moved(low, high), moved(high, low)];
        if high == low + 2 {
            // The three lines are in reverse order, and nothing tells which of them stayed.
            expected.insert(1, moved(low + 1, low + 1));
        }
        assert_eq!(found, expected, "{low} and {high}");
    }
}

#[test]
fn a_line_that_is_copied_or_made_up_is_named() {
    let (lines, head) = log(20);
    for (n, to) in [(3, 9), (9, 3), (20, 1), (1, 20), (5, 5)] {
        let mut changed = lines.clone();
        let copy = lines[index(n)].clone();
        changed.insert(to, copy);
        let found = verify(&changed, Some(head));
        let names_it = found.iter().any(|finding| match finding {
            Finding::Extra { n: found, .. } => *found == n,
            _ => false,
        });
        assert!(names_it, "{n} to {to}: {found:?}");
    }
    let mut changed = lines;
    changed.insert(4, b"made up".to_vec());
    let unreadable = Finding::Unreadable {
        n: None,
        place: at(5),
    };
    assert_eq!(verify(&changed, Some(head)), [unreadable]);
}

#[test]
fn a_block_of_lines_that_is_moved_is_named_by_its_first_line() {
    let (lines, head) = log(20);
    let mut changed = lines;
    let block: Vec<Vec<u8>> = changed.drain(4..7).collect();
    changed.splice(10..10, block);
    let moved = Finding::Moved {
        n: 5,
        place: at(11),
    };
    assert_eq!(verify(&changed, Some(head)), [moved]);
}

#[test]
fn without_its_head_a_log_may_lack_lines_at_the_end_and_that_is_said() {
    let (lines, _) = log(20);
    assert_eq!(verify(&lines, None), [Finding::NoHead]);
}

#[test]
fn a_log_of_which_nothing_is_left_lacks_all_lines() {
    let (_, head) = log(20);
    let deleted = Finding::Deleted {
        first: 1,
        last: 20,
        after: None,
        before: None,
    };
    assert_eq!(verify(&[], Some(head)), [deleted]);
}

#[test]
fn lines_that_the_log_itself_removed_are_not_missing_and_others_are() {
    let (mut lines, mut chain) = log(20);
    let through = Chain {
        last: 8,
        digest: LineDigest::of(&lines[7]),
    };
    let what = What::LogTrimmed {
        through: through.last,
        digest: through.digest,
    };
    let mut line = chain.append(SystemTime::UNIX_EPOCH, &Event::done(Who::Daemon, what));
    line.pop();
    lines.push(line);
    // It was killed before it removed them.
    assert_eq!(verify(&lines, Some(chain)), []);
    assert_eq!(verify(&lines[8..], Some(chain)), []);
    let deleted = Finding::Deleted {
        first: 9,
        last: 10,
        after: None,
        before: Some(at(1)),
    };
    assert_eq!(verify(&lines[10..], Some(chain)), [deleted]);
    let mut changed = lines[8..].to_vec();
    replace(&mut changed[0], r#""result":"ok""#, r#""result":"no""#);
    let edited = Finding::Edited { n: 9, place: at(1) };
    assert_eq!(verify(&changed, Some(chain)), [edited]);
}

/// A change to a log.
#[derive(Debug, Clone)]
enum Change {
    Delete(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    Flip(prop::sample::Index, prop::sample::Index, u8),
    Cut(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        index().prop_map(Change::Delete),
        (index(), index()).prop_map(|(a, b)| Change::Swap(a, b)),
        (index(), index(), 1..=255u8).prop_map(|(line, byte, bits)| Change::Flip(line, byte, bits)),
        index().prop_map(Change::Cut),
    ]
}

fn apply(lines: &mut Vec<Vec<u8>>, change: &Change) {
    if lines.is_empty() {
        return;
    }
    match change {
        Change::Delete(at) => drop(lines.remove(at.index(lines.len()))),
        Change::Swap(a, b) => {
            let count = lines.len();
            lines.swap(a.index(count), b.index(count));
        }
        Change::Flip(at, byte, bits) => {
            let at = at.index(lines.len());
            let line = &mut lines[at];
            if !line.is_empty() {
                let byte = byte.index(line.len());
                line[byte] ^= bits;
            }
        }
        Change::Cut(at) => lines.truncate(at.index(lines.len())),
    }
}

proptest! {
    /// Whatever is done to the lines is found, and nothing is found where nothing was done.
    #[test]
    fn any_changes_are_found_and_only_changes_are(
        count in 1u64..60,
        changes in prop::collection::vec(change(), 0..6),
    ) {
        let (lines, head) = log(count);
        let mut changed = lines.clone();
        changes.iter().for_each(|change| apply(&mut changed, change));
        let found = verify(&changed, Some(head));
        prop_assert_eq!(found.is_empty(), changed == lines, "{:?}", found);
    }

    /// A line in which one byte is changed is named by its number or by its place, wherever the byte is.
    #[test]
    fn a_line_with_a_changed_byte_is_named(
        count in 1u64..40,
        line in any::<prop::sample::Index>(),
        byte in any::<prop::sample::Index>(),
        bits in 1..=255u8,
    ) {
        let (mut lines, head) = log(count);
        let changed = line.index(lines.len());
        let at_byte = byte.index(lines[changed].len());
        lines[changed][at_byte] ^= bits;
        let expected = at(changed as u64 + 1);
        let found = verify(&lines, Some(head));
        let is_named = found.iter().any(|finding| match finding {
            Finding::Edited { place, .. } | Finding::Unreadable { place, .. } | Finding::Extra { place, .. } | Finding::Moved { place, .. } => *place == expected,
            _ => false,
        });
        prop_assert!(is_named, "{:?}", found);
    }
}
