//! Sends a question over a stream and reads the reply. A reply may be large, so memory for it is reserved before it is read.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::super::limits::Share;
use super::Asker;
use super::exchange::{Received, SentQuery};

/// The most bytes of memory that a reply may take without a reservation: about as much as a reply in a datagram.
const SMALL: usize = 4096;
/// The bytes of memory that a record takes when it is parsed, beside its bytes in the message. It is held twice: by the flight,
/// and by the client that gets the answer.
const RECORD: usize = 640;
/// The fewest bytes that a record has in a message: a name of one byte, the type, the class, the TTL and a length of zero.
const LEAST_RECORD: usize = 11;
const HEADER: usize = 12;

/// A reply as it was received, with the memory that is reserved for it.
#[derive(Debug)]
pub(in crate::dns) struct Streamed {
    octets: Vec<u8>,
    held: Option<Share>,
}

impl Streamed {
    /// Parses the reply. The answer keeps the reservation until it is dropped.
    pub(super) fn read(self, question: &SentQuery) -> Received {
        match question.handle_reply(&self.octets, true) {
            Received::Answer(mut answer) => {
                answer.held = self.held.map(Arc::new);
                Received::Answer(answer)
            }
            other => other,
        }
    }
}

/// Sends a question and reads the reply, each with its length in front (RFC 1035 section 4.2.2).
pub(in crate::dns) async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    question: &[u8],
    asker: Option<&Asker>,
) -> io::Result<Streamed> {
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes()[..], question].concat();
    stream.write_all(&framed).await?;
    stream.flush().await?;
    let length = usize::from(stream.read_u16().await?);
    let mut octets = vec![0; length.min(HEADER)];
    stream.read_exact(&mut octets).await?;
    let size = length + records(&octets).min(length / LEAST_RECORD) * RECORD;
    let held = match asker.filter(|_| size > SMALL) {
        Some(asker) => {
            let full = || io::Error::from_raw_os_error(libc::ENOMEM);
            Some(asker.hold(size).ok_or_else(full)?)
        }
        None => None,
    };
    octets.resize(length, 0);
    if let Some(rest) = octets.get_mut(HEADER..) {
        stream.read_exact(rest).await?;
    }
    Ok(Streamed { octets, held })
}

/// The number of records that the header of a message states.
fn records(header: &[u8]) -> usize {
    let count = |at| match header.get(at..at + 2) {
        Some([high, low]) => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    [6, 8, 10].into_iter().map(count).sum()
}
