//! `meshctl audit --verify`.

use std::path::Path;

use serde::Serialize;

use super::failed;
use crate::cli::exit::CliError;
use crate::cli::style::{BAD, GOOD, Output};
use crate::cli::table;
use crate::model::text::printable;
use crate::os::audit::reading::{self, VerifiedLog};
use crate::os::audit::verify::{Finding, Place};
use crate::protocol::api::ErrorCode;

/// `meshctl audit --verify --json`.
#[derive(Debug, Serialize)]
struct VerifiedAudit {
    schema: u32,
    /// The directory of the log.
    directory: String,
    /// The files of the log, the oldest one first.
    files: Vec<String>,
    /// The number of lines.
    lines: u64,
    /// The lowest number of a line.
    first: Option<u64>,
    /// The highest number of a line.
    last: Option<u64>,
    /// The length of an unfinished last line in bytes.
    torn_bytes: u64,
    /// Whether each line is as it was written.
    verified: bool,
    /// The lines that are not, in the order of their numbers.
    findings: Vec<AuditFinding>,
    /// Whether there are more findings than are listed.
    more_findings: bool,
}

/// A line that is not as it was written.
#[derive(Debug, Serialize)]
struct AuditFinding {
    kind: FindingKind,
    /// The number of the line, or of the first of several lines. It is null if the line has none.
    first: Option<u64>,
    /// The number of the last of several lines.
    last: Option<u64>,
    /// The name of the file. It is null if nothing is left of the log.
    file: Option<String>,
    /// The place in the file, from 1. For lines that were deleted it is that of a neighbour.
    line: Option<u64>,
    /// The same as a sentence.
    text: String,
}

/// What is wrong with a line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum FindingKind {
    Edited,
    Unconfirmed,
    Unreadable,
    Deleted,
    Moved,
    Extra,
    NoHead,
}

impl From<&Finding> for AuditFinding {
    fn from(finding: &Finding) -> Self {
        use FindingKind as Kind;
        let (kind, first, last) = match finding {
            Finding::Edited { n, .. } => (Kind::Edited, Some(*n), Some(*n)),
            Finding::Unconfirmed { n, .. } => (Kind::Unconfirmed, Some(*n), Some(*n)),
            Finding::Unreadable { n, .. } => (Kind::Unreadable, *n, *n),
            Finding::Deleted { first, last, .. } => (Kind::Deleted, Some(*first), Some(*last)),
            Finding::Moved { n, .. } => (Kind::Moved, Some(*n), Some(*n)),
            Finding::Extra { n, .. } => (Kind::Extra, Some(*n), Some(*n)),
            Finding::NoHead => (Kind::NoHead, None, None),
        };
        let place = place_of(finding);
        Self {
            kind,
            first,
            last,
            file: place.map(|place| place.file.clone()),
            line: place.map(|place| place.line),
            text: sentence(finding),
        }
    }
}

pub(super) fn verify(directory: &Path, json: bool) -> Result<u8, CliError> {
    let log = reading::verify(directory).map_err(|error| failed(directory, &error))?;
    let is_verified = log.verified.findings.is_empty();
    if json {
        table::json(&document(directory, log))?;
        return Ok(if is_verified {
            0
        } else {
            ErrorCode::NotFound.exit_code()
        });
    }
    for line in lines(&log, Output::stdout()) {
        table::line(&line);
    }
    if is_verified {
        return Ok(0);
    }
    Err(CliError::new(
        ErrorCode::NotFound,
        format!(
            "the audit log in {} is not as it was written",
            directory.display()
        ),
    ))
}

fn document(directory: &Path, log: VerifiedLog) -> VerifiedAudit {
    let verified = log.verified;
    VerifiedAudit {
        schema: 1,
        directory: directory.display().to_string(),
        files: log.files,
        lines: verified.lines,
        first: verified.first,
        last: verified.last,
        torn_bytes: log.torn_bytes,
        verified: verified.findings.is_empty(),
        findings: verified.findings.iter().map(AuditFinding::from).collect(),
        more_findings: verified.is_cut,
    }
}

fn lines(log: &VerifiedLog, output: Output) -> Vec<String> {
    let verified = &log.verified;
    let mut lines: Vec<String> = verified.findings.iter().map(sentence).collect();
    if verified.is_cut {
        lines.push("there are more findings, which are not listed".to_owned());
    }
    let summary = match (verified.first, verified.last) {
        (Some(first), Some(last)) => format!(
            "{} lines in {} file(s), numbered {first} to {last}",
            verified.lines,
            log.files.len()
        ),
        _ => "no lines".to_owned(),
    };
    if log.torn_bytes > 0 {
        lines.push(format!(
            "the last {} bytes are no whole line: the daemon writes it now, or was killed while it wrote it, and acknowledged nothing that it says",
            log.torn_bytes
        ));
    }
    let verdict = if verified.findings.is_empty() {
        output.paint(GOOD, "each line is as it was written")
    } else {
        output.paint(BAD, "the log is not as it was written")
    };
    lines.push(format!("{summary}: {verdict}"));
    lines
}

/// The place of a finding. For lines that were deleted it is that of a neighbour.
fn place_of(finding: &Finding) -> Option<&Place> {
    match finding {
        Finding::Edited { place, .. }
        | Finding::Unconfirmed { place, .. }
        | Finding::Unreadable { place, .. }
        | Finding::Moved { place, .. }
        | Finding::Extra { place, .. } => Some(place),
        Finding::Deleted { after, before, .. } => after.as_ref().or(before.as_ref()),
        Finding::NoHead => None,
    }
}

/// A finding as a sentence, which begins with the place as compilers write it.
fn sentence(finding: &Finding) -> String {
    let found = match finding {
        Finding::Edited { n, .. } => format!("line {n} was changed"),
        Finding::Unconfirmed { n, .. } => format!(
            "line {n} may be changed as well, since line {} after it was",
            n.saturating_add(1)
        ),
        Finding::Unreadable { n: Some(n), .. } => {
            format!("line {n} was changed, and is no event any more")
        }
        Finding::Unreadable { n: None, .. } => "this line is no event, and was added".to_owned(),
        Finding::Deleted {
            first,
            last,
            after,
            before,
        } => {
            let lines = if first == last {
                format!("line {first} was deleted")
            } else {
                format!("lines {first} to {last} were deleted")
            };
            match (after, before) {
                (Some(_), _) => format!("{lines} after this one"),
                (None, Some(_)) => format!("{lines} before this one"),
                (None, None) => lines,
            }
        }
        Finding::Moved { n, .. } => format!("line {n} was moved here from another place"),
        Finding::Extra { n, .. } => format!("this line was added; there is another line {n}"),
        Finding::NoHead => "audit.head: it is missing or damaged, so nothing shows whether lines at the end were deleted".to_owned(),
    };
    match place_of(finding) {
        Some(place) => format!("{}:{}: {found}", printable(&place.file, 100), place.line),
        None => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::audit::verify::Verified;

    #[test]
    fn each_finding_is_a_sentence_with_the_number_and_the_place_of_its_line() {
        let place = |line| Place {
            file: "audit.jsonl".to_owned(),
            line,
        };
        let deleted = |first, last, after: Option<u64>, before: Option<u64>| Finding::Deleted {
            first,
            last,
            after: after.map(place),
            before: before.map(place),
        };
        let findings = vec![
            Finding::Edited {
                n: 4,
                place: place(4),
            },
            Finding::Unconfirmed {
                n: 3,
                place: place(3),
            },
            Finding::Unreadable {
                n: Some(5),
                place: place(5),
            },
            Finding::Unreadable {
                n: None,
                place: place(6),
            },
            deleted(7, 7, Some(6), Some(7)),
            deleted(1, 2, None, Some(1)),
            deleted(1, 9, None, None),
            Finding::Moved {
                n: 8,
                place: place(2),
            },
            Finding::Extra {
                n: 8,
                place: place(9),
            },
            Finding::NoHead,
        ];
        let log = VerifiedLog {
            verified: Verified {
                lines: 12,
                first: Some(3),
                last: Some(8),
                findings,
                is_cut: true,
            },
            files: vec!["audit.jsonl".to_owned()],
            torn_bytes: 17,
        };
        assert_eq!(
            lines(&log, Output::PLAIN),
            [
                "audit.jsonl:4: line 4 was changed",
                "audit.jsonl:3: line 3 may be changed as well, since line 4 after it was",
                "audit.jsonl:5: line 5 was changed, and is no event any more",
                "audit.jsonl:6: this line is no event, and was added",
                "audit.jsonl:6: line 7 was deleted after this one",
                "audit.jsonl:1: lines 1 to 2 were deleted before this one",
                "lines 1 to 9 were deleted",
                "audit.jsonl:2: line 8 was moved here from another place",
                "audit.jsonl:9: this line was added; there is another line 8",
                "audit.head: it is missing or damaged, so nothing shows whether lines at the end were deleted",
                "there are more findings, which are not listed",
                "the last 17 bytes are no whole line: the daemon writes it now, or was killed while it wrote it, and acknowledged nothing that it says",
                "12 lines in 1 file(s), numbered 3 to 8: the log is not as it was written",
            ]
        );
    }
}
