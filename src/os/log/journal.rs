//! The priority of each line, for the journal of systemd.

use std::io::{self, Stderr as StdStderr, Write};
use std::os::linux::fs::MetadataExt as _;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Whether stderr is connected to the journal. systemd names the stream in `JOURNAL_STREAM`, which children with another
/// stderr inherit, so device and inode are compared as systemd.exec(5) says.
pub(super) fn is_stderr() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr
        .is_ok_and(|stderr| is_stream(&stream.to_string_lossy(), stderr.st_dev(), stderr.st_ino()))
}

fn is_stream(named: &str, device: u64, inode: u64) -> bool {
    named == format!("{device}:{inode}")
}

/// The priority of a level, as sd-daemon(3) writes it before a line.
pub(super) fn prefix(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

/// Writes lines to stderr, for the journal with their priorities.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stderr {
    pub(super) is_journal: bool,
}

impl<'w> MakeWriter<'w> for Stderr {
    type Writer = Line<StdStderr>;

    fn make_writer(&'w self) -> Self::Writer {
        Line {
            prefix: "",
            writer: io::stderr(),
        }
    }

    fn make_writer_for(&'w self, metadata: &Metadata<'_>) -> Self::Writer {
        let prefix = if self.is_journal {
            prefix(*metadata.level())
        } else {
            ""
        };
        Line {
            prefix,
            writer: io::stderr(),
        }
    }
}

/// Writes one line, which is given in one piece, with a prefix.
pub(super) struct Line<W> {
    prefix: &'static str,
    writer: W,
}

impl<W: Write> Write for Line<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // The prefix and the line are one write, so that lines of other threads cannot come between them.
        let whole = [self.prefix.as_bytes(), line].concat();
        self.prefix = "";
        self.writer.write_all(&whole)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_begins_with_its_priority_once() {
        let mut written = Vec::new();
        let mut line = Line {
            prefix: prefix(Level::WARN),
            writer: &mut written,
        };
        line.write_all(b" WARN peer lost\n").expect("a vector");
        assert_eq!(written, b"<4> WARN peer lost\n");
    }

    #[test]
    fn only_the_stream_that_systemd_names_is_the_journal() {
        assert!(is_stream("8:4711", 8, 4711));
        for other in ["8:4712", "9:4711", "", "8", "a:b"] {
            assert!(!is_stream(other, 8, 4711), "{other}");
        }
    }
}
