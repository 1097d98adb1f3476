//! The mark of an answer that may take long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// A mark that the answer to a request may take as long as a stream, and the end of its connection before that. The listener puts it into
/// the extensions of each request. A clone is the same mark.
#[derive(Debug, Clone, Default)]
pub struct LongAnswer(Arc<Mark>);

#[derive(Debug, Default)]
struct Mark {
    is_set: AtomicBool,
    cut: Notify,
}

impl LongAnswer {
    pub fn set(&self) {
        self.0.is_set.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::Relaxed)
    }

    /// Ends the connection, whether the caller reads or not.
    pub fn cut(&self) {
        // One of two waits for it: the connection, or the stream that it became.
        self.0.cut.notify_one();
    }

    /// Returns when the connection has to end.
    pub async fn has_to_end(&self) {
        self.0.cut.notified().await;
    }
}
