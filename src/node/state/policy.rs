//! The file of the policy in force: its record in the signed envelope.

use super::{POLICY, StateDir, StateError};
use crate::records::Envelope;

/// The record of the policy that was in force. None if the file is missing or damaged. Its signature is not verified.
pub(in crate::node) fn read(dir: &StateDir) -> Option<Envelope> {
    dir.read_or_nothing(POLICY).ok().flatten()
}

/// Writes the record of the policy in force.
///
/// # Errors
/// The file cannot be written. The old file is kept then.
pub(super) fn write(dir: &StateDir, record: &Envelope) -> Result<(), StateError> {
    dir.write(POLICY, record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::kinds::Record;
    use crate::testbed::records as build;

    #[test]
    fn the_record_is_read_as_it_was_written_and_is_gone_after_a_leave() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let dir = StateDir::open(&parent.path().join("state")).expect("a new directory");
        assert_eq!(read(&dir), None);
        let record = build::sealed(&Record::Policy(build::policy("language = 1\n")), 1);
        write(&dir, &record).expect("writable");
        assert_eq!(read(&dir), Some(record));
        dir.clear();
        assert_eq!(read(&dir), None);
    }
}
