//! Carries one conversation: sends and receives its messages, and passes its requests to the agent.

use std::collections::VecDeque;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::exchange::{Exchange, Step};
use super::inbound_limit::{Cost, PROOF_TIMEOUT};
use super::{ConversationSlot, PeerEvent};
use crate::node::replica::refusals::Offences;
use crate::node::replica::{Applied, LedgerReply, LedgerRequest};
use crate::protocol::gossip::{MAX_FRAME, MAX_UNPROVEN_FRAME, PeerMessage};

/// How long the other node may take to send or to receive one message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a conversation may last.
const CONVERSATION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the other's kernel may take to acknowledge what is sent before the tunnel to it ends.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// The pause between two checks of what is not acknowledged yet.
const FLUSH_INTERVAL: Duration = Duration::from_millis(10);

/// Why a conversation failed, for the log.
pub(super) type Failure = String;

/// Runs the conversation until both nodes are up to date.
pub(super) async fn run(
    stream: TcpStream,
    exchange: Exchange,
    requests: mpsc::Sender<PeerEvent>,
    slot: ConversationSlot,
) -> Result<(), Failure> {
    timeout(CONVERSATION_TIMEOUT, talk(stream, exchange, requests, slot))
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
                Step::Proven => {}
                // All that comes before the comparison is sent.
                _ => {
                    return match receive(&mut stream, MAX_UNPROVEN_FRAME).await?.0 {
                        PeerMessage::Received => Ok(()),
                        _ => Err("the other node does not keep to the protocol".to_owned()),
                    };
                }
            }
        }
        let (message, _) = receive(&mut stream, MAX_UNPROVEN_FRAME).await?;
        let more = exchange.handle_message(message);
        steps.extend(more.map_err(|broken| broken.to_string())?);
    }
}

/// Waits until the kernel has nothing to send again.
async fn acknowledged(stream: &TcpStream) -> Result<(), Failure> {
    loop {
        let mut unacknowledged: libc::c_int = 0;
        // SAFETY: the descriptor is open while `stream` is borrowed, and the call only writes to the integer. No library has a
        // safe call for this request (`TIOCOUTQ`): nix and rustix only have macros that generate an unsafe function.
        let asked =
            unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut unacknowledged) };
        if asked != 0 {
            return Err(std::io::Error::last_os_error().to_string());
        }
        if unacknowledged == 0 {
            return Ok(());
        }
        sleep(FLUSH_INTERVAL).await;
    }
}

/// Whether the other node has proved its identity.
enum Trust {
    /// It has to prove its identity by this time.
    Unproven(Instant),
    Proven,
}

async fn talk(
    mut stream: TcpStream,
    mut exchange: Exchange,
    requests: mpsc::Sender<PeerEvent>,
    slot: ConversationSlot,
) -> Result<(), Failure> {
    let _ = stream.set_nodelay(true);
    let mut trust = Trust::Unproven(Instant::now() + PROOF_TIMEOUT);
    let mut offences = Offences::default();
    let mut steps: VecDeque<Step> = exchange.begin().into();
    loop {
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Send(message) => send(&mut stream, &message).await?,
                Step::Proven => {
                    slot.handle_proven()?;
                    trust = Trust::Proven;
                }
                Step::Ask(request) => {
                    let reply = ask(&requests, request).await?;
                    if let LedgerReply::Applied(applied) = &reply {
                        charge(applied, &mut offences, &slot).await?;
                    }
                    steps.extend(exchange.handle_reply(reply));
                }
                Step::Flush => {
                    let _ = timeout(FLUSH_TIMEOUT, acknowledged(&stream)).await;
                }
                Step::End => {
                    let _ = stream.shutdown().await;
                    return Ok(());
                }
            }
        }
        match trust {
            Trust::Unproven(until) => {
                let (message, _) = timeout_at(until, receive(&mut stream, MAX_UNPROVEN_FRAME))
                    .await
                    .map_err(|_| "the other node does not prove who it is".to_owned())??;
                let more = exchange.handle_message(message);
                steps.extend(more.map_err(|broken| broken.to_string())?);
            }
            Trust::Proven => {
                let (message, bytes) = receive(&mut stream, MAX_FRAME).await?;
                let more = exchange.handle_message(message);
                steps.extend(more.map_err(|broken| broken.to_string())?);
                let cost = Cost {
                    bytes,
                    ..Cost::default()
                };
                sleep(slot.charge(cost)).await;
            }
        }
    }
}

/// Charges the peer for records that were applied.
async fn charge(
    applied: &Applied,
    offences: &mut Offences,
    slot: &ConversationSlot,
) -> Result<(), Failure> {
    if applied.forged {
        return Err("a record's signature does not hold".to_owned());
    }
    offences.add(applied);
    if offences.is_over() {
        return Err("the other node sends records that break the rules".to_owned());
    }
    let cost = Cost {
        signatures: applied.verified,
        writes: u64::from(applied.changed),
        ..Cost::default()
    };
    sleep(slot.charge(cost)).await;
    Ok(())
}

async fn ask(
    requests: &mpsc::Sender<PeerEvent>,
    request: LedgerRequest,
) -> Result<LedgerReply, Failure> {
    let gone = || "this node is stopping".to_owned();
    let (reply, answer) = oneshot::channel();
    let event = PeerEvent::Request(request, reply);
    requests.send(event).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())
}

async fn send(stream: &mut TcpStream, message: &PeerMessage) -> Result<(), Failure> {
    let text = serde_json::to_vec(message).map_err(|e| e.to_string())?;
    let length = u32::try_from(text.len()).map_err(|e| e.to_string())?;
    let frame = [&length.to_be_bytes(), text.as_slice()].concat();
    timeout(MESSAGE_TIMEOUT, stream.write_all(&frame))
        .await
        .map_err(|_| "the other node takes nothing in".to_owned())?
        .map_err(|e| e.to_string())
}

/// Reads the next message, which may have at most `most` bytes. Returns it with its number of bytes.
async fn receive(stream: &mut TcpStream, most: usize) -> Result<(PeerMessage, u64), Failure> {
    let read = async {
        let length = stream.read_u32().await.map_err(|e| e.to_string())? as usize;
        if length > most {
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
        let message = serde_json::from_slice(&text);
        let message = message.map_err(|e| format!("a message cannot be read: {e}"))?;
        Ok((message, length as u64))
    };
    timeout(MESSAGE_TIMEOUT, read)
        .await
        .map_err(|_| "the other node says nothing".to_owned())?
}
