//! Limits the size and the duration of received WebSocket messages, below the WebSocket library.
//!
//! The permitted size of a message depends on its sender, and changes while the connection is open. The WebSocket library
//! has one limit for the life of a connection, and buffers an unfinished message. So this module follows the frame headers in
//! the bytes that are read. A message over the limit ends the connection at the frame header that exceeds it. A message that
//! stays unfinished for too long ends the connection as well, even if control frames arrive in between.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// The limits on what a sender may send.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    /// The maximum size of a message, in bytes.
    pub message: usize,
    /// How long a message may take from its first byte to its last.
    pub time: Duration,
    /// If set, each message larger than [`SMALL`] needs a permit of this semaphore, which several connections share.
    pub large: Option<Arc<Semaphore>>,
}

/// How long a sender that holds a permit may send nothing. Others wait for the permit meanwhile.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A message up to this many bytes needs no permit.
const SMALL: u64 = 64 * 1024;
/// The fewest bytes that a frame counts as. So a message in many tiny frames counts as more than its payload.
const MIN_FRAME: u64 = 64;
/// The maximum payload of a control frame, in bytes (RFC 6455 section 5.5).
const MAX_CONTROL: u64 = 125;

/// A connection whose received messages are limited.
pub(super) struct Bounded<S> {
    stream: S,
    bound: Bound,
    frames: Frames,
    /// When the unfinished message began; absent between messages.
    begun: Option<Instant>,
    permit: Permit,
    /// Runs while a permit is held and no bytes arrive.
    stall: Option<Pin<Box<Sleep>>>,
}

enum Permit {
    None,
    Asked(Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>),
    Held {
        _permit: Option<OwnedSemaphorePermit>,
    },
}

impl<S> Bounded<S> {
    pub(super) fn new(stream: S, bound: Bound) -> Self {
        Self {
            stream,
            bound,
            frames: Frames::default(),
            begun: None,
            permit: Permit::None,
            stall: None,
        }
    }

    /// Sets the bound for all further bytes, including the rest of an unfinished message.
    pub(super) fn set_bound(&mut self, bound: Bound) {
        self.bound = bound;
        self.permit = Permit::None;
    }

    /// Restarts the time limit of an unfinished message. The caller uses it after a time in which it chose not to read.
    pub(super) fn resume(&mut self, now: Instant) {
        self.begun = self.begun.map(|_| now);
    }

    /// Follows bytes that were just read, and checks the limits.
    fn handle_read(&mut self, bytes: &[u8], now: Instant) -> io::Result<()> {
        let most = u64::try_from(self.bound.message).unwrap_or(u64::MAX);
        self.frames
            .handle(bytes, most)
            .map_err(|TooLarge| io::Error::other("a message is larger than its sender may send"))?;
        self.begun = match self.frames.is_between_messages() {
            true => None,
            false => Some(self.begun.unwrap_or(now)),
        };
        let is_late = |begun: Instant| now > begun + self.bound.time;
        if self.begun.is_some_and(is_late) {
            return Err(io::Error::other("a message takes too long"));
        }
        if self.frames.message > SMALL
            && let (Permit::None, Some(large)) = (&self.permit, &self.bound.large)
        {
            let large = Arc::clone(large);
            self.permit = Permit::Asked(Box::pin(async move { large.acquire_owned().await.ok() }));
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.frames.is_between_messages() {
            // The message that needed the permit has been passed on.
            this.permit = Permit::None;
        }
        if let Permit::Asked(permit) = &mut this.permit {
            let permit = ready!(permit.as_mut().poll(context));
            this.permit = Permit::Held { _permit: permit };
            this.resume(Instant::now());
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        if polled.is_pending() && matches!(this.permit, Permit::Held { .. }) {
            let stall = this
                .stall
                .get_or_insert_with(|| Box::pin(sleep(STALL_TIMEOUT)));
            ready!(stall.as_mut().poll(context));
            return Poll::Ready(Err(io::Error::other("a large message does not arrive")));
        }
        this.stall = None;
        ready!(polled)?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(this.handle_read(read, Instant::now()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A message exceeds the bound.
#[derive(Debug, PartialEq, Eq)]
struct TooLarge;

/// Follows the frames (RFC 6455 section 5.2) in a sequence of bytes. It does no I/O.
#[derive(Debug, Default)]
struct Frames {
    /// The bytes of the frame header received so far.
    header: [u8; 14],
    /// How many bytes of `header` are valid.
    have: usize,
    /// Bytes of the frame's payload that are still to come.
    left: u64,
    /// Bytes that the unfinished message counts as, including the rest of its current frame.
    message: u64,
    /// Whether the most recent data frame is the last one of its message.
    ends_message: bool,
    is_control: bool,
}

impl Frames {
    fn handle(&mut self, mut bytes: &[u8], most: u64) -> Result<(), TooLarge> {
        loop {
            let payload = usize::try_from(self.left).unwrap_or(usize::MAX);
            let (passed, rest) = bytes.split_at(payload.min(bytes.len()));
            self.left -= passed.len() as u64;
            bytes = rest;
            if self.left > 0 {
                return Ok(());
            }
            if self.have == 0 && self.ends_message && !self.is_control {
                self.message = 0;
            }
            let Some((first, rest)) = bytes.split_first() else {
                return Ok(());
            };
            bytes = rest;
            self.handle_header_byte(*first, most)?;
        }
    }

    fn handle_header_byte(&mut self, byte: u8, most: u64) -> Result<(), TooLarge> {
        if let Some(place) = self.header.get_mut(self.have) {
            *place = byte;
        }
        self.have += 1;
        let [first, second, ..] = self.header;
        let length_bytes = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
        if self.have < 2 || self.have < 2 + length_bytes + mask_bytes {
            return Ok(());
        }
        self.have = 0;
        let extended = self.header.get(2..2 + length_bytes).unwrap_or_default();
        let length = match length_bytes {
            0 => u64::from(second & 0x7f),
            _ => extended
                .iter()
                .fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        self.left = length;
        self.is_control = first & 0x08 != 0;
        if self.is_control {
            return if length > MAX_CONTROL {
                Err(TooLarge)
            } else {
                Ok(())
            };
        }
        self.ends_message = first & 0x80 != 0;
        self.message = self.message.saturating_add(length.max(MIN_FRAME));
        if self.message > most {
            return Err(TooLarge);
        }
        Ok(())
    }

    /// Whether no message and no frame is unfinished.
    fn is_between_messages(&self) -> bool {
        self.have == 0 && self.left == 0 && self.message == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::io::AsyncReadExt as _;

    const MOST: u64 = 1000;

    fn frame(first: u8, length: u64, carried: usize) -> Vec<u8> {
        let mut bytes = vec![first];
        match length {
            0..126 => bytes.push(0x80 | u8::try_from(length).expect("small")),
            126..65_536 => {
                bytes.push(0x80 | 126);
                bytes.extend(u16::try_from(length).expect("small").to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 127);
                bytes.extend(length.to_be_bytes());
            }
        }
        bytes.extend([1, 2, 3, 4]);
        bytes.extend(vec![0xff; carried]);
        bytes
    }

    fn whole(first: u8, length: u64) -> Vec<u8> {
        frame(first, length, usize::try_from(length).expect("small"))
    }

    const TEXT: u8 = 0x81;
    const TEXT_GOES_ON: u8 = 0x01;
    const GOES_ON: u8 = 0x00;
    const LAST: u8 = 0x80;
    const PING: u8 = 0x89;

    /// Reads `bytes` in pieces of several sizes. Returns whether no message is unfinished at the end.
    fn follow(bytes: &[u8]) -> Result<bool, TooLarge> {
        let results: Vec<_> = [1, 2, 3, 7, 1000, usize::MAX]
            .into_iter()
            .map(|size| {
                let mut frames = Frames::default();
                for piece in bytes.chunks(size) {
                    frames.handle(piece, MOST)?;
                }
                Ok(frames.is_between_messages())
            })
            .collect();
        assert!(
            results.windows(2).all(|two| two[0] == two[1]),
            "{results:?}"
        );
        results.into_iter().next().expect("one at least")
    }

    #[test]
    fn messages_up_to_the_bound_pass_and_one_over_it_ends_at_its_header() {
        assert_eq!(follow(&[]), Ok(true));
        assert_eq!(follow(&whole(TEXT, 1000)), Ok(true));
        assert_eq!(
            follow(&[whole(TEXT, 1000), whole(TEXT, 0), whole(TEXT, 999)].concat()),
            Ok(true)
        );
        assert_eq!(follow(&frame(TEXT, 1000, 999)), Ok(false));
        assert_eq!(follow(&frame(TEXT, 1001, 0)), Err(TooLarge));
        assert_eq!(follow(&frame(TEXT, u64::MAX, 0)), Err(TooLarge));
        assert_eq!(follow(&[TEXT]), Ok(false));
    }

    #[test]
    fn a_message_in_frames_counts_as_a_whole_and_control_frames_between_them_end_nothing() {
        let half = whole(TEXT_GOES_ON, 500);
        assert_eq!(follow(&half), Ok(false));
        assert_eq!(follow(&[half.clone(), whole(PING, 5)].concat()), Ok(false));
        assert_eq!(
            follow(&[half.clone(), whole(PING, 5), whole(LAST, 500)].concat()),
            Ok(true)
        );
        assert_eq!(
            follow(&[half, whole(PING, 5), frame(LAST, 501, 0)].concat()),
            Err(TooLarge)
        );
        assert_eq!(follow(&whole(PING, 5)), Ok(true));
        assert_eq!(follow(&frame(PING, 126, 0)), Err(TooLarge));
    }

    #[test]
    fn empty_frames_do_not_go_on_for_ever() {
        let empty = |count| [whole(TEXT_GOES_ON, 0), whole(GOES_ON, 0).repeat(count)].concat();
        assert_eq!(follow(&empty(10)), Ok(false));
        assert_eq!(follow(&empty(100)), Err(TooLarge));
    }

    fn bound(message: usize, large: Option<Arc<Semaphore>>) -> Bound {
        Bound {
            message,
            time: Duration::from_secs(5),
            large,
        }
    }

    #[test]
    fn a_message_that_comes_too_slowly_ends_the_stream_though_pings_come_between() {
        let mut receiver = Bounded::new((), bound(1000, None));
        let mut now = Instant::now();
        let mut read = |receiver: &mut Bounded<()>, bytes: &[u8], after: u64| {
            now += Duration::from_secs(after);
            receiver.handle_read(bytes, now).map(|()| now)
        };
        let half = frame(TEXT_GOES_ON, 500, 500);
        read(&mut receiver, &half, 0).expect("its beginning");
        // The receiver chose not to read for a minute.
        let now = read(&mut receiver, &[], 5).expect("in time");
        receiver.resume(now + Duration::from_secs(60));
        read(&mut receiver, &[], 60).expect("in time");
        for _ in 0..5 {
            read(&mut receiver, &whole(PING, 3), 1).expect("in time");
        }
        read(&mut receiver, &whole(PING, 3), 1).expect_err("too late");

        let mut receiver = Bounded::new((), bound(1000, None));
        for _ in 0..100 {
            read(&mut receiver, &whole(TEXT, 500), 1).expect("each message is in time");
        }
    }
    async fn read(receiver: &mut Bounded<tokio::io::DuplexStream>, buffer: &mut [u8]) {
        let count = receiver.read(buffer).await.expect("it is open");
        assert!(count > 0);
    }

    #[tokio::test]
    async fn large_messages_take_turns_and_small_ones_do_not_wait() {
        use tokio::io::AsyncWriteExt as _;
        let large = Arc::new(Semaphore::new(1));
        let (mut one, first) = tokio::io::duplex(1 << 20);
        let (mut other, second) = tokio::io::duplex(1 << 20);
        let most = bound(1 << 20, Some(Arc::clone(&large)));
        let mut first = Bounded::new(first, most.clone());
        let mut second = Bounded::new(second, most);
        let mut buffer = vec![0; 200_000];
        let message = whole(TEXT, 100_000);
        let (head, body) = message.split_at(1000);
        for sender in [&mut one, &mut other] {
            sender.write_all(head).await.expect("room");
        }
        read(&mut first, &mut buffer).await;
        read(&mut second, &mut buffer).await;
        one.write_all(&body[..10]).await.expect("room");
        read(&mut first, &mut buffer).await;
        other.write_all(body).await.expect("room");
        let waits = tokio::time::timeout(Duration::ZERO, read(&mut second, &mut buffer));
        waits.await.expect_err("the other one has the permit");
        // A small message of a third sender does not wait.
        let (mut small, third) = tokio::io::duplex(1 << 20);
        let mut third = Bounded::new(third, bound(1 << 20, Some(large)));
        small.write_all(&whole(TEXT, 1000)).await.expect("room");
        read(&mut third, &mut buffer).await;
        drop(first);
        read(&mut second, &mut buffer).await;
    }
}
