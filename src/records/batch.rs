//! Cuts lists of records into batches, each with a maximum number of records and a maximum total payload.
//!
//! Messages between nodes and coordinators, parts of a snapshot and transactions of a store are all such batches.

use super::Envelope;

/// The room that is left in one batch.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    is_empty: bool,
    count: usize,
    bytes: usize,
}

impl Room {
    /// The room in an empty batch. The maximum total payload is `max_bytes`, in bytes.
    #[must_use]
    pub fn new(max_count: usize, max_bytes: usize) -> Self {
        Self {
            is_empty: true,
            count: max_count,
            bytes: max_bytes,
        }
    }

    /// Adds a record if the batch has room for it. Returns false and changes nothing if it has none. An empty batch has room for any
    /// record, because a record cannot be cut.
    pub fn take(&mut self, record: &Envelope) -> bool {
        let left = self.bytes.checked_sub(record.payload.len());
        if !self.is_empty && (self.count == 0 || left.is_none()) {
            return false;
        }
        self.is_empty = false;
        // A record that is too large on its own leaves no room, not even for an empty payload.
        self.count = left.map_or(0, |_| self.count.saturating_sub(1));
        self.bytes = left.unwrap_or(0);
        true
    }
}

/// Cuts `records` into batches of at most `max_count` records with a total payload of at most `max_bytes` bytes. The records keep
/// their order. A batch has at least one record, so a single record that exceeds a limit is a batch of its own. No records give no
/// batch.
pub fn batches<R: AsRef<Envelope>>(
    records: impl IntoIterator<Item = R>,
    max_count: usize,
    max_bytes: usize,
) -> impl Iterator<Item = Vec<R>> {
    let mut records = records.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut room = Room::new(max_count, max_bytes);
        let mut batch = Vec::new();
        while let Some(record) = records.next_if(|record| room.take(record.as_ref())) {
            batch.push(record);
        }
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::PublicKey;
    use crate::records::envelope::Signature;

    /// Records with payloads of these sizes. Each has another signer.
    fn records(sizes: &[usize]) -> Vec<Envelope> {
        let record = |(n, size): (usize, &usize)| Envelope {
            payload: "x".repeat(*size),
            signer: PublicKey([u8::try_from(n).expect("few records"); 32]),
            signature: Signature([0; 64]),
        };
        sizes.iter().enumerate().map(record).collect()
    }

    fn sizes(records: &[Envelope]) -> Vec<usize> {
        records.iter().map(|record| record.payload.len()).collect()
    }

    fn cut(given: &[usize], max_count: usize, max_bytes: usize) -> Vec<Vec<usize>> {
        batches(records(given), max_count, max_bytes)
            .map(|batch| sizes(&batch))
            .collect()
    }

    #[test]
    fn a_batch_is_full_at_either_limit_and_not_before() {
        assert_eq!(cut(&[1, 1, 1], 2, 10), [vec![1, 1], vec![1]]);
        assert_eq!(cut(&[4, 6, 1], 9, 10), [vec![4, 6], vec![1]]);
        assert_eq!(cut(&[4, 7], 9, 10), [vec![4], vec![7]]);
        assert_eq!(
            cut(&[3, 4, 5, 11, 1], 2, 10),
            [vec![3, 4], vec![5], vec![11], vec![1]]
        );
    }

    #[test]
    fn a_record_that_exceeds_a_limit_is_alone_and_no_records_give_no_batch() {
        assert_eq!(cut(&[1, 11, 1], 9, 10), [vec![1], vec![11], vec![1]]);
        assert_eq!(cut(&[11, 0], 9, 10), [vec![11], vec![0]]);
        assert_eq!(cut(&[1, 1], 0, 0), [vec![1], vec![1]]);
        assert_eq!(cut(&[0, 0, 0], 9, 0), [vec![0, 0, 0]]);
        assert!(cut(&[], 9, 10).is_empty());
    }

    proptest! {
        #[test]
        fn batches_keep_all_records_in_order_within_the_limits_and_none_could_hold_one_more(
            given in prop::collection::vec(0usize..40, 0..60),
            max_count in 0usize..8,
            max_bytes in 0usize..100,
        ) {
            let all = records(&given);
            let batches: Vec<Vec<Envelope>> = batches(all.clone(), max_count, max_bytes).collect();
            prop_assert_eq!(batches.concat(), all);
            for batch in &batches {
                let bytes: usize = sizes(batch).iter().sum();
                let is_within = batch.len() <= max_count && bytes <= max_bytes;
                prop_assert!(batch.len() == 1 || is_within, "{:?}", sizes(batch));
            }
            for pair in batches.windows(2) {
                let bytes = sizes(&pair[0]).iter().sum::<usize>() + pair[1][0].payload.len();
                prop_assert!(pair[0].len() >= max_count || bytes > max_bytes);
            }
        }
    }
}
