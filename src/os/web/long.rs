//! The mark of an answer that may take long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A mark that the answer to a request may take as long as a stream. The listener puts it into the extensions of each request. A clone is
/// the same mark.
#[derive(Debug, Clone, Default)]
pub struct LongAnswer(Arc<AtomicBool>);

impl LongAnswer {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
