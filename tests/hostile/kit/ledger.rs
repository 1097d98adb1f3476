//! Ledgers in the test's process, for rules that can be tested without a network.

use meshd::model::PublicKey;
use meshd::records::ledger::{Applied, Refused};
use meshd::records::{Envelope, Ledger};

/// Applies the records in their order and returns the result of each.
pub(crate) fn apply_all(
    ledger: &mut Ledger,
    records: impl IntoIterator<Item = Envelope>,
) -> Vec<Result<Applied, Refused>> {
    let records = records.into_iter();
    records.map(|record| ledger.apply(record)).collect()
}

/// Makes a ledger of these records, each of which it has to accept as new.
pub(crate) fn ledger_of(
    mesh_key: PublicKey,
    records: impl IntoIterator<Item = Envelope>,
) -> Ledger {
    let mut ledger = Ledger::new(mesh_key);
    for result in apply_all(&mut ledger, records) {
        assert!(matches!(result, Ok(Applied::Changed(_))), "{result:?}");
    }
    ledger
}

/// Counts the results that are changes.
pub(crate) fn taken(results: &[Result<Applied, Refused>]) -> usize {
    let changed = |result: &&Result<_, _>| matches!(result, Ok(Applied::Changed(_)));
    results.iter().filter(changed).count()
}
