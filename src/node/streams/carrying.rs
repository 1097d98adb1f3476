//! Carries frames between a WebSocket and the tunnel.

use std::time::Duration;

use futures_util::{Sink, SinkExt as _, Stream as Source, StreamExt as _};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Bytes, Message};

use crate::protocol::stream::{MAX_MESSAGE, PING_SECONDS};
use crate::tunnel::StreamEnd;

/// How long the other end may take to receive one message.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);
/// How many unsent bytes the kernel queues, besides those that are in flight. What waits in the kernel cannot be displaced by newer
/// datagrams, and makes all of them late.
const MAX_UNSENT: u32 = 16 * 1024;
/// The size of each buffer of a connection at the beginning, in bytes.
const BUFFER: usize = 16 * 1024;
/// A connection on which nothing came for this long is looked at.
const IDLE: Duration = Duration::from_secs(10);
/// A machine that acknowledges nothing for this long is gone.
const UNANSWERED: Duration = Duration::from_secs(15);

/// The limits of a WebSocket.
pub(super) fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_write_buffer_size(2 * MAX_MESSAGE)
}

/// Sets the options of a connection. It works without those that the kernel refuses.
pub(super) fn set_options(tcp: &TcpStream) {
    let _ = tcp.set_nodelay(true);
    let socket = SockRef::from(tcp);
    let _ = socket.set_tcp_notsent_lowat(MAX_UNSENT);
    let keepalive = TcpKeepalive::new()
        .with_time(IDLE)
        .with_interval(Duration::from_secs(2));
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(UNANSWERED));
}

/// Carries frames until the stream ends, and returns why.
pub(super) async fn carry(
    socket: WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>,
    end: &StreamEnd,
) -> String {
    let (sink, source) = socket.split();
    tokio::select! {
        why = write(sink, end) => why,
        why = read(source, end) => why,
    }
}

async fn write(
    mut sink: impl Sink<Message, Error = tungstenite::Error> + Unpin,
    end: &StreamEnd,
) -> String {
    let mut pings = interval(Duration::from_secs(PING_SECONDS));
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            message = end.outgoing() => match message {
                Some(message) => Message::Binary(message.into()),
                None => return "another stream took its place".to_owned(),
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        match timeout(SEND_TIMEOUT, sink.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "the other end accepts no more data".to_owned(),
        }
    }
}

async fn read(
    mut source: impl Source<Item = Result<Message, tungstenite::Error>> + Unpin,
    end: &StreamEnd,
) -> String {
    let silence = Duration::from_secs(3 * PING_SECONDS);
    loop {
        let message = match timeout(silence, source.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(error))) => return error.to_string(),
            Ok(None) => return "the other end closed the stream".to_owned(),
            Err(_) => return "nothing arrived for a minute".to_owned(),
        };
        match message {
            Message::Binary(frames) => {
                if let Err(error) = end.incoming(&frames).await {
                    return error.to_string();
                }
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return "the other end closed the stream".to_owned(),
            Message::Text(_) | Message::Frame(_) => {
                return "the other end does not speak this protocol".to_owned();
            }
        }
    }
}
