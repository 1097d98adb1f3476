//! Bytes that go on: output of containers, and attached containers and commands.
//!
//! A stream has a buffer of a fixed size in each direction, and reads no more before that is written. A caller that does not read ends its
//! connection (see `node::web`), and so does one that may not have the stream any more (see `permission`). A caller may have some streams at
//! once, and all callers together some more.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, split};
use tokio::time::timeout;

use crate::containers::control::{Stream, SwitchedStream};
use crate::model::address::link_of;
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::os::web::LongAnswer;

/// The maximum number of streams of one caller. A `docker run` in the foreground has two.
pub(super) const MAX_OF_CALLER: usize = 24;
/// The maximum number of streams.
const MAX_STREAMS: usize = 192;
/// How long a stream lasts.
pub(in crate::node) const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The size of a buffer in bytes.
const BUFFER: usize = 16 * 1024;

/// The streams that are open. A clone refers to the same ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Streams(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// The place of a stream. It is free again when this is dropped.
#[derive(Debug)]
pub(super) struct StreamPlace {
    streams: Streams,
    caller: IpAddr,
    /// The task that looks whether the caller may still have the stream.
    watch: Option<AbortOnDrop>,
}

impl Streams {
    /// Takes a place for a stream of the caller at an address. None if there are too many.
    pub(super) fn take(&self, caller: IpAddr) -> Option<StreamPlace> {
        // One machine can have all addresses of its link, which count as one caller.
        let caller = link_of(caller);
        let mut counts = self.counts();
        let all: usize = counts.values().sum();
        let own = counts.get(&caller).copied().unwrap_or_default();
        if all >= MAX_STREAMS || own >= MAX_OF_CALLER {
            return None;
        }
        counts.insert(caller, own + 1);
        Some(StreamPlace {
            streams: self.clone(),
            caller,
            watch: None,
        })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // A panic under the lock leaves at most a wrong count.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamPlace {
    /// The same place, with a task that ends with it.
    pub(super) fn watched(mut self, watch: AbortOnDrop) -> Self {
        self.watch = Some(watch);
        self
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        drop(self.watch.take());
        let mut counts = self.streams.counts();
        if let Some(count) = counts.get_mut(&self.caller) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.caller);
            }
        }
    }
}

/// The body that has the rest of an answer of the engine.
pub(super) fn body_of(stream: Stream, place: StreamPlace) -> Body {
    let parts = stream::unfold(Some((stream, place)), |state| async move {
        let (mut stream, place) = state?;
        match stream.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some((stream, place)))),
            Ok(None) => None,
            // The caller learns that something is missing, since the body has no proper end.
            Err(fault) => Some((Err(io::Error::other(fault)), None)),
        }
    });
    Body::from_stream(parts)
}

/// The body that has what the engine sends on an attached stream.
pub(super) fn body_of_switched(switched: SwitchedStream, place: StreamPlace) -> Body {
    let parts = stream::unfold(Some((switched, place)), |state| async move {
        let (mut switched, place) = state?;
        let mut buffer = vec![0; BUFFER];
        match switched.io.read(&mut buffer).await {
            Ok(0) => None,
            Ok(read) => {
                buffer.truncate(read);
                Some((Ok(Bytes::from(buffer)), Some((switched, place))))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    Body::from_stream(parts)
}

/// The body that has one text, once that is known.
pub(super) fn body_later<F>(text: F, place: StreamPlace) -> Body
where
    F: Future<Output = io::Result<String>> + Send + 'static,
{
    let part = stream::once(async move {
        let text = text.await;
        drop(place);
        text.map(Bytes::from)
    });
    Body::from_stream(part)
}

/// A body of texts, each of which is known later. It ends after the text for which `next` returns no further state.
pub(super) fn body_of_texts<S, N, F>(state: S, next: N) -> Body
where
    S: Send + 'static,
    N: Fn(S) -> F + Send + 'static,
    F: Future<Output = Option<(String, Option<S>)>> + Send + 'static,
{
    let parts = stream::unfold((Some(state), next), |(state, next)| async move {
        let (text, state) = next(state?).await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), (state, next)))
    });
    Body::from_stream(parts)
}

/// Connects the caller with the engine, once the answer was sent, until the connection has to end.
pub(super) fn connect(
    caller: OnUpgrade,
    engine: SwitchedStream,
    place: StreamPlace,
    long: LongAnswer,
) {
    Tasks::current().spawn_child("attached stream", async move {
        if let Ok(caller) = caller.await {
            let relayed = timeout(LIFETIME, relay(TokioIo::new(caller), engine.io));
            let is_whole = tokio::select! {
                ended = relayed => ended.is_ok(),
                () = long.has_to_end() => false,
            };
            if !is_whole {
                tracing::debug!("an attached stream was ended before the engine ended it");
            }
        }
        drop(place);
    });
}

/// Copies in both directions until the engine ends, or until the caller is gone.
async fn relay<C, E>(caller: C, engine: E)
where
    C: AsyncRead + AsyncWrite + Unpin,
    E: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_caller, mut to_caller) = split(caller);
    let (mut from_engine, mut to_engine) = split(engine);
    let input = async {
        copy(&mut from_caller, &mut to_engine).await?;
        // The caller has no more input, and still reads the output.
        to_engine.shutdown().await
    };
    let output = async {
        let copied = copy(&mut from_engine, &mut to_caller).await;
        let _ = to_caller.shutdown().await;
        copied
    };
    tokio::pin!(output);
    let ended = tokio::select! {
        copied = &mut output => copied.map(drop),
        given = input => match given {
            Ok(()) => output.await.map(drop),
            Err(error) => Err(error),
        },
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an attached stream broke");
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::node::docker_face::answer;
    use crate::os::http::{self, Method, Request, Switched};

    /// Asks the server behind `stream` to switch, which it does.
    async fn switch(stream: DuplexStream) -> SwitchedStream {
        let request = Request::new(Method::POST, "/attach").upgrade("tcp");
        match http::upgrade(stream, request).await {
            Ok(Switched::Stream(switched)) => switched,
            other => panic!("it does not switch: {other:?}"),
        }
    }

    /// A stream on which the engine has switched, and the engine's end of it.
    async fn engine() -> (SwitchedStream, DuplexStream) {
        let (client, mut engine) = duplex(1024);
        let switching = tokio::spawn(switch(client));
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(engine.read_u8().await.expect("a whole head"));
        }
        let answer = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
        engine.write_all(answer).await.expect("room");
        (switching.await.expect("no panic"), engine)
    }

    #[tokio::test]
    async fn a_caller_that_switches_is_connected_with_the_engine_until_that_ends() {
        let (switched, mut engine) = engine().await;
        let streams = Streams::default();
        let place = streams.take(IpAddr::from([10, 210, 1, 1]));
        let given = Mutex::new(Some((switched, place.expect("a place"))));
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            let given = given.lock().expect("nobody panics with it").take();
            let (switched, place) = given.expect("there is one request");
            let long = LongAnswer::default();
            connect(hyper::upgrade::on(&mut request), switched, place, long);
            async { Ok::<_, Infallible>(answer::upgraded(None)) }
        });
        let (caller, server) = duplex(1024);
        let server = http1::Builder::new()
            .keep_alive(false)
            .serve_connection(TokioIo::new(server), service)
            .with_upgrades();
        let served = tokio::spawn(server);
        let mut caller = switch(caller).await;
        served.await.expect("no panic").expect("it has switched");
        caller.io.write_all(b"in").await.expect("room");
        caller.io.shutdown().await.expect("open");
        let mut input = Vec::new();
        engine.read_to_end(&mut input).await.expect("bytes");
        assert_eq!(input, b"in");
        engine.write_all(b"out").await.expect("room");
        drop(engine);
        let mut output = Vec::new();
        caller.io.read_to_end(&mut output).await.expect("bytes");
        assert_eq!(output, b"out");
        let is_free = async {
            while !streams.counts().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        let is_free = timeout(Duration::from_secs(10), is_free).await;
        is_free.expect("the place is free again");
    }

    #[test]
    fn a_caller_has_some_streams_at_once_and_others_are_not_affected() {
        let streams = Streams::default();
        let caller = |n: u8| IpAddr::from([10, 210, n, 1]);
        let mut held: Vec<_> = (0..100).filter_map(|_| streams.take(caller(1))).collect();
        assert_eq!(held.len(), MAX_OF_CALLER);
        for n in 2..100 {
            held.extend((0..100).filter_map(|_| streams.take(caller(n))));
        }
        assert_eq!(held.len(), MAX_STREAMS);
        held.clear();
        assert!(streams.counts().is_empty());
        assert!(streams.take(caller(1)).is_some());
    }

    #[tokio::test]
    async fn both_directions_pass_and_the_output_goes_on_after_the_input_has_ended() {
        let (mut caller, caller_end) = duplex(64);
        let (mut engine, engine_end) = duplex(64);
        let relayed = tokio::spawn(relay(caller_end, engine_end));
        caller.write_all(b"in").await.expect("room");
        caller.shutdown().await.expect("open");
        let mut input = Vec::new();
        engine.read_to_end(&mut input).await.expect("bytes");
        assert_eq!(input, b"in");
        engine.write_all(b"out").await.expect("room");
        drop(engine);
        let mut output = Vec::new();
        caller.read_to_end(&mut output).await.expect("bytes");
        assert_eq!(output, b"out");
        relayed.await.expect("no panic");
    }

    #[tokio::test]
    async fn an_engine_that_ends_ends_the_stream_while_the_caller_still_listens() {
        let (mut caller, caller_end) = duplex(64);
        let (engine, engine_end) = duplex(64);
        let relayed = tokio::spawn(relay(caller_end, engine_end));
        drop(engine);
        let mut output = Vec::new();
        caller.read_to_end(&mut output).await.expect("an end");
        relayed.await.expect("no panic");
    }

    #[tokio::test]
    async fn no_more_is_read_than_a_caller_takes() {
        let (_caller, caller_end) = duplex(64);
        let (mut engine, engine_end) = duplex(64);
        let relayed = tokio::spawn(relay(caller_end, engine_end));
        let endless = async {
            let mut written = 0;
            while engine.write_all(&[0; 1024]).await.is_ok() {
                written += 1024;
                assert!(written < 1 << 20, "the caller reads nothing");
            }
        };
        let limit = Duration::from_millis(100);
        assert!(timeout(limit, endless).await.is_err(), "it has to wait");
        relayed.abort();
    }

    #[tokio::test]
    async fn texts_follow_each_other_until_the_last() {
        let body = body_of_texts(1, |n: u8| async move {
            Some((n.to_string(), (n < 3).then_some(n + 1)))
        });
        let body = to_bytes(body, 100).await.expect("short");
        assert_eq!(&body[..], b"123");
    }
}
