//! The file with the time of the last call of each member.

use std::collections::BTreeMap;

use super::{CALLS, StateDir, StateError};
use crate::model::PublicKey;

/// The time of the last call of each member. It is empty if the file is missing or damaged.
pub(in crate::node) fn read(dir: &StateDir) -> BTreeMap<PublicKey, u64> {
    dir.read_or_nothing(CALLS)
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// Writes the time of the last call of each member.
///
/// # Errors
/// The file cannot be written. The old file is kept then.
pub(super) fn write(dir: &StateDir, calls: &BTreeMap<PublicKey, u64>) -> Result<(), StateError> {
    dir.write(CALLS, calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_read_as_they_were_written_and_are_gone_after_a_leave() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let dir = StateDir::open(&parent.path().join("state")).expect("a new directory");
        assert_eq!(read(&dir), BTreeMap::new());
        let calls = BTreeMap::from([(PublicKey([1; 32]), 7), (PublicKey([2; 32]), u64::MAX)]);
        write(&dir, &calls).expect("writable");
        assert_eq!(read(&dir), calls);
        dir.clear();
        assert_eq!(read(&dir), BTreeMap::new());
    }
}
