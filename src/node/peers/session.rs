//! Carries one conversation: messages on and off the socket, questions to the agent.

use std::collections::VecDeque;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::Ask;
use super::exchange::{Exchange, Step};
use crate::wire::peers::{MAX_FRAME, PeerMessage};

/// How long the other may take for one message, in or out.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a conversation may last.
const LIMIT: Duration = Duration::from_secs(60);

/// How long the other's kernel may take to acknowledge what is sent before the tunnel to it ends.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);
/// Between two looks at what is not acknowledged yet.
const OUTGOING_LOOK: Duration = Duration::from_millis(10);

/// Why a conversation failed, for the log.
pub(super) type Failure = String;

/// Talks until both are up to date.
pub(super) async fn run(
    stream: TcpStream,
    exchange: Exchange,
    asks: mpsc::Sender<Ask>,
) -> Result<(), Failure> {
    timeout(LIMIT, talk(stream, exchange, asks))
        .await
        .map_err(|_| "it takes too long".to_owned())?
}

/// Sends what `exchange` has to send first, and waits until the other side has received it.
pub(super) async fn hand_over(
    mut stream: TcpStream,
    mut exchange: Exchange,
) -> Result<(), Failure> {
    let _ = stream.set_nodelay(true);
    let mut steps: VecDeque<Step> = exchange.begin().into();
    loop {
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Send(message) => send(&mut stream, &message).await?,
                // All that comes before the comparison is sent.
                _ => {
                    return match receive(&mut stream).await? {
                        PeerMessage::Received => Ok(()),
                        _ => Err("the other node does not keep to the protocol".to_owned()),
                    };
                }
            }
        }
        let message = receive(&mut stream).await?;
        let more = exchange.handle_message(message);
        steps.extend(more.map_err(|broken| broken.to_string())?);
    }
}

/// Waits until the kernel has nothing to send again.
async fn acknowledged(stream: &TcpStream) -> Result<(), Failure> {
    loop {
        let mut unacknowledged: libc::c_int = 0;
        // SAFETY: the descriptor is open while `stream` is borrowed, and the call only writes to the integer.
        let asked =
            unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut unacknowledged) };
        if asked != 0 {
            return Err(std::io::Error::last_os_error().to_string());
        }
        if unacknowledged == 0 {
            return Ok(());
        }
        sleep(OUTGOING_LOOK).await;
    }
}

async fn talk(
    mut stream: TcpStream,
    mut exchange: Exchange,
    asks: mpsc::Sender<Ask>,
) -> Result<(), Failure> {
    let _ = stream.set_nodelay(true);
    let mut steps: VecDeque<Step> = exchange.begin().into();
    loop {
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Send(message) => send(&mut stream, &message).await?,
                Step::Apply(records) => {
                    let sound = ask(&asks, |reply| Ask::Apply(records, reply)).await?;
                    if !sound {
                        return Err("a record's signature does not hold".to_owned());
                    }
                }
                Step::Flush => {
                    let _ = timeout(FLUSH_LIMIT, acknowledged(&stream)).await;
                }
                Step::AskHoldings => {
                    let held = ask(&asks, Ask::Holdings).await?;
                    steps.extend(exchange.handle_holdings(&held));
                }
                Step::AskRecords(signers) => {
                    let records = ask(&asks, |reply| Ask::Records(signers, reply)).await?;
                    steps.extend(exchange.handle_records(records));
                }
                Step::End => {
                    let _ = stream.shutdown().await;
                    return Ok(());
                }
            }
        }
        let message = receive(&mut stream).await?;
        let more = exchange.handle_message(message);
        steps.extend(more.map_err(|broken| broken.to_string())?);
    }
}

async fn ask<T>(
    asks: &mpsc::Sender<Ask>,
    question: impl FnOnce(oneshot::Sender<T>) -> Ask,
) -> Result<T, Failure> {
    let gone = || "this node is stopping".to_owned();
    let (reply, answer) = oneshot::channel();
    asks.send(question(reply)).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())
}

async fn send(stream: &mut TcpStream, message: &PeerMessage) -> Result<(), Failure> {
    let text = serde_json::to_vec(message).map_err(|e| e.to_string())?;
    let length = u32::try_from(text.len()).map_err(|e| e.to_string())?;
    let frame = [&length.to_be_bytes(), text.as_slice()].concat();
    timeout(PATIENCE, stream.write_all(&frame))
        .await
        .map_err(|_| "the other node takes nothing in".to_owned())?
        .map_err(|e| e.to_string())
}

async fn receive(stream: &mut TcpStream) -> Result<PeerMessage, Failure> {
    let read = async {
        let length = stream.read_u32().await.map_err(|e| e.to_string())? as usize;
        if length > MAX_FRAME {
            return Err("a message is too long".to_owned());
        }
        // Memory comes with what is read, not with what is announced.
        let mut text = Vec::new();
        let mut rest = stream.take(length as u64);
        rest.read_to_end(&mut text)
            .await
            .map_err(|e| e.to_string())?;
        if text.len() < length {
            return Err("the other node hung up".to_owned());
        }
        serde_json::from_slice(&text).map_err(|e| format!("a message cannot be read: {e}"))
    };
    timeout(PATIENCE, read)
        .await
        .map_err(|_| "the other node says nothing".to_owned())?
}
