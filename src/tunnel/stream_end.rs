//! The ends of streams that other parts of the program hold.

use std::sync::Arc;
use std::time::Instant;

use super::shared::Shared;
use super::streams::{OtherEnd, Stream};
use crate::model::NodeAddress;
use crate::protocol::stream::NoFrames;

/// Opens streams of a running tunnel.
#[derive(Clone)]
pub struct StreamOpener(pub(super) Arc<Shared>);

impl StreamOpener {
    /// Opens a stream to the node with this address. It takes the place of another one to the same node.
    #[must_use]
    pub fn open(&self, node: NodeAddress, other: OtherEnd) -> StreamEnd {
        let stream = self.0.wakes.streams.open(node, other);
        if other == OtherEnd::Member {
            let mut relay = self.0.relaying.lock();
            relay.handle_stream_opened(node.0, Instant::now());
        }
        StreamEnd {
            shared: Arc::clone(&self.0),
            stream,
        }
    }
}

impl std::fmt::Debug for StreamOpener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamOpener").finish_non_exhaustive()
    }
}

/// This node's end of an open stream. Dropping it closes the stream.
pub struct StreamEnd {
    shared: Arc<Shared>,
    stream: Arc<Stream>,
}

impl StreamEnd {
    /// Waits for datagrams, and returns a message with them. None if another stream to the node has taken the place of this one.
    pub async fn outgoing(&self) -> Option<Vec<u8>> {
        self.stream.outgoing().await
    }

    /// Passes a message that arrived to the data threads. Waits while there is no room for it.
    ///
    /// # Errors
    /// It does not consist of whole frames.
    pub async fn incoming(&self, message: &[u8]) -> Result<(), NoFrames> {
        if self.stream.incoming(message).await? {
            let wakes = &self.shared.wakes;
            let pair = wakes.streams.announce(&self.stream);
            if let Some(pair) = wakes.pairs.get(pair) {
                let _ = pair.first.write(1);
            }
        }
        Ok(())
    }
}

impl Drop for StreamEnd {
    fn drop(&mut self) {
        self.shared.wakes.streams.close(&self.stream);
        if self.stream.other == OtherEnd::Member {
            let mut relay = self.shared.relaying.lock();
            relay.handle_stream_closed(self.stream.node.0, Instant::now());
        }
    }
}

impl std::fmt::Debug for StreamEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut end = f.debug_struct("StreamEnd");
        end.field("node", &self.stream.node).finish_non_exhaustive()
    }
}
