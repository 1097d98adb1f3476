//! Ledgers in this process, for rules that need no network.

use meshd::model::PublicKey;
use meshd::wire::ledger::{Applied, Refused};
use meshd::wire::{Envelope, Ledger};

/// What becomes of each record, in this order.
pub(crate) fn apply_all(
    ledger: &mut Ledger,
    records: impl IntoIterator<Item = Envelope>,
) -> Vec<Result<Applied, Refused>> {
    let records = records.into_iter();
    records.map(|record| ledger.apply(record)).collect()
}

/// A ledger that takes all of these in.
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

/// How many of the results are changes.
pub(crate) fn taken(results: &[Result<Applied, Refused>]) -> usize {
    let changed = |result: &&Result<_, _>| matches!(result, Ok(Applied::Changed(_)));
    results.iter().filter(changed).count()
}
