//! The file of the containers that were spawned, and whose they are.

use super::{SPAWNED, StateDir, StateError};
use crate::spawn::StoredLedger;

/// The ledger of spawned containers. It is empty if the file is missing or damaged. The containers are removed then, since nobody knows
/// whose they are.
pub(in crate::node) fn read(dir: &StateDir) -> StoredLedger {
    dir.read_or_nothing(SPAWNED)
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// Writes the ledger.
///
/// # Errors
/// The file cannot be written. The old file is kept then.
pub(in crate::node) fn write(dir: &StateDir, ledger: &StoredLedger) -> Result<(), StateError> {
    dir.write(SPAWNED, ledger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::file;

    #[test]
    fn the_ledger_is_read_as_it_was_written_and_a_damaged_one_is_empty() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let dir = StateDir::open(&parent.path().join("state")).expect("a new directory");
        assert!(read(&dir).is_empty());
        let text = r#"{"entries":[{"id":"01010101010101010101010101010101","template":"job","owner":"service:runner.ci","name":null,"engine_name":"meshd-job-1-x","network":"meshd-spawn-1","image":"alpine:3.20","memory":1,"container":"0a","created_at":1,"expires_at":2}],"created":{"job":[1]}}"#;
        let ledger = serde_json::from_str(text).expect("a ledger");
        write(&dir, &ledger).expect("writable");
        assert_eq!(read(&dir), ledger);
        // It is about this machine, so it outlives the membership.
        dir.clear();
        assert_eq!(read(&dir), ledger);
        file::write_atomic(&dir.path(SPAWNED), b"{", 0o600).expect("writable");
        assert!(read(&dir).is_empty());
    }
}
