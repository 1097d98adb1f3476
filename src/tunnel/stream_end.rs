//! The ends of streams that other parts of the program hold.

use std::sync::Arc;
use std::time::Instant;

use super::shared::Shared;
use super::streams::{Line, OtherEnd};
use crate::model::NodeAddress;
use crate::protocol::stream::NoFrames;

/// Opens streams of a running tunnel.
#[derive(Clone)]
pub struct StreamDoor(pub(super) Arc<Shared>);

impl StreamDoor {
    /// Opens a stream to the node with this address. It takes the place of another one to the same node.
    #[must_use]
    pub fn open(&self, node: NodeAddress, other: OtherEnd) -> StreamEnd {
        let line = self.0.wakes.streams.open(node, other);
        if other == OtherEnd::Member {
            let mut relay = self.0.relaying.lock();
            relay.handle_stream_opened(node.0, Instant::now());
        }
        StreamEnd {
            shared: Arc::clone(&self.0),
            line,
        }
    }
}

impl std::fmt::Debug for StreamDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamDoor").finish_non_exhaustive()
    }
}

/// This node's end of an open stream. Dropping it closes the stream.
pub struct StreamEnd {
    shared: Arc<Shared>,
    line: Arc<Line>,
}

impl StreamEnd {
    /// Waits for datagrams, and returns a message with them. None if another stream to the node has taken the place of this one.
    pub async fn outgoing(&self) -> Option<Vec<u8>> {
        self.line.outgoing().await
    }

    /// Passes a message that arrived to the data threads. Waits while there is no room for it.
    ///
    /// # Errors
    /// It does not consist of whole frames.
    pub async fn incoming(&self, message: &[u8]) -> Result<(), NoFrames> {
        if self.line.incoming(message).await? {
            let wakes = &self.shared.wakes;
            let pair = wakes.streams.announce(&self.line);
            if let Some(pair) = wakes.pairs.get(pair) {
                let _ = pair.first.write(1);
            }
        }
        Ok(())
    }
}

impl Drop for StreamEnd {
    fn drop(&mut self) {
        self.shared.wakes.streams.close(&self.line);
        if self.line.other == OtherEnd::Member {
            let mut relay = self.shared.relaying.lock();
            relay.handle_stream_closed(self.line.node.0, Instant::now());
        }
    }
}

impl std::fmt::Debug for StreamEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut end = f.debug_struct("StreamEnd");
        end.field("node", &self.line.node).finish_non_exhaustive()
    }
}
