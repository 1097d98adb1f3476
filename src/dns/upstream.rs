//! Everything that is not the mesh's: asked of the host's own resolvers, kept for as long as they say, and longer when
//! none of them answers (RFC 8767).
//!
//! The same question from several clients is asked once, and all wait for it. So a question that comes back to this
//! node through another resolver waits for itself and fails in the end, and does not go round.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::cache::{Cache, Key};
use super::exchange::{Question, Received};
use super::message::{Asked, Forwarded, Source};
use super::tls::Tls;

mod server;

pub use server::{Server, ServerError};

/// How long one upstream may take.
const TIMEOUT: Duration = Duration::from_millis(1_200);
/// How long the client waits at most: containers' own resolvers give up after 4 s.
const OVERALL: Duration = Duration::from_millis(3_500);
/// How long a client waits for a fresh answer that can have a stale one (RFC 8767 section 5).
const PATIENCE: Duration = Duration::from_millis(1_800);
/// Tries of all upstreams together, one after another.
const TRIES: usize = 3;
/// Questions that are gone but still listed at most, before the list is gone through.
const MAX_LISTED: usize = 2_048;

type Answer = Arc<OnceCell<Forwarded>>;

/// The resolvers everything else is asked of.
#[derive(Default)]
pub struct Upstream {
    servers: ArcSwap<Vec<Server>>,
    /// The one that answered last: it is asked first.
    preferred: AtomicUsize,
    cache: Mutex<Cache>,
    under_way: Mutex<HashMap<Key, Weak<OnceCell<Forwarded>>>>,
    /// Made when it is needed first, which is never on most nodes.
    tls: OnceCell<Tls>,
}

impl Upstream {
    /// None yet: every question fails until [`Upstream::set`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks `servers` from now on, in turn; never those in `own`, which would be this node itself.
    pub fn set(&self, servers: &[Server], own: &BTreeSet<IpAddr>) {
        let others = servers.iter().filter(|s| !own.contains(&s.address.ip()));
        self.servers.store(Arc::new(others.cloned().collect()));
    }

    /// Asks. A failure is an answer too: SERVFAIL.
    pub async fn ask(&self, asked: &Asked) -> Forwarded {
        let key = Key::new(asked);
        let (fresh, stale) = {
            let (cache, now) = (self.lock_cache(), Instant::now());
            (cache.fresh(&key, now), cache.stale(&key, now))
        };
        if let Some(fresh) = fresh {
            return fresh;
        }
        let answer = self.join(&key);
        let own = key.clone();
        let patience = if stale.is_some() { PATIENCE } else { OVERALL };
        let found = timeout(
            patience,
            answer.get_or_init(|| self.ask_servers(asked, own)),
        )
        .await;
        match found {
            Ok(found) if found.source != Source::Nobody => found.clone(),
            _ => {
                self.lock_cache().hold(&key, Instant::now());
                stale.unwrap_or_else(Forwarded::failure)
            }
        }
    }

    /// The answer to be, shared by all who ask the same now.
    fn join(&self, key: &Key) -> Answer {
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = under_way.get(key).and_then(Weak::upgrade) {
            return answer;
        }
        if under_way.len() >= MAX_LISTED {
            under_way.retain(|_, answer| answer.strong_count() > 0);
        }
        let answer = Answer::default();
        under_way.insert(key.clone(), Arc::downgrade(&answer));
        answer
    }

    async fn ask_servers(&self, asked: &Asked, key: Key) -> Forwarded {
        let servers = self.servers.load_full();
        let first = self.preferred.load(Ordering::Relaxed);
        for place in (0..servers.len()).cycle().take(TRIES) {
            let place = (first + place) % servers.len();
            let Some(Server { address, name }) = servers.get(place) else {
                break;
            };
            let (server, exchange) = (*address, self.exchange(*address, name.as_ref(), asked));
            match timeout(TIMEOUT, exchange).await {
                Ok(Ok(Some(mut answer))) => {
                    self.preferred.store(place, Ordering::Relaxed);
                    answer.source = Source::Upstream(server);
                    self.lock_cache().keep(key, &answer, server, Instant::now());
                    return answer;
                }
                Ok(Ok(None)) => tracing::debug!(%server, "an upstream failed"),
                Ok(Err(error)) => tracing::debug!(%server, %error, "an upstream cannot be asked"),
                Err(_) => tracing::debug!(%server, "an upstream does not answer"),
            }
        }
        Forwarded::failure()
    }

    /// Asks one server; nothing if it cannot or will not say.
    async fn exchange(
        &self,
        server: SocketAddr,
        name: Option<&ServerName<'static>>,
        asked: &Asked,
    ) -> io::Result<Option<Forwarded>> {
        for edns in [true, false] {
            let random = [
                getrandom::u64().map_err(io::Error::other)?,
                getrandom::u64().map_err(io::Error::other)?,
            ];
            let Some(question) = Question::new(asked, random, edns) else {
                return Ok(None);
            };
            let Some(octets) = question.octets() else {
                return Ok(None);
            };
            let received = match name {
                Some(name) => {
                    let tls = self.tls.get_or_try_init(async || Tls::of_system()).await?;
                    let reply = tls.exchange(server, name, &octets).await?;
                    question.handle_reply(&reply, true)
                }
                None => match datagram(server, &question, &octets).await? {
                    Received::Again => stream(server, &question, &octets).await?,
                    received => received,
                },
            };
            match received {
                Received::Answer(answer) => return Ok(Some(answer)),
                Received::NoEdns => {}
                Received::Failed | Received::Again | Received::Stray => return Ok(None),
            }
        }
        Ok(None)
    }

    fn lock_cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("servers", &self.servers)
            .finish_non_exhaustive()
    }
}

/// One socket a question: the system draws its port, and takes datagrams from the server alone.
async fn datagram(server: SocketAddr, question: &Question, octets: &[u8]) -> io::Result<Received> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(octets).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match question.handle_reply(buffer.get(..length).unwrap_or_default(), false) {
            Received::Stray => {}
            received => return Ok(received),
        }
    }
}

async fn stream(server: SocketAddr, question: &Question, octets: &[u8]) -> io::Result<Received> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(octets.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], octets].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; length.into()];
    stream.read_exact(&mut reply).await?;
    Ok(question.handle_reply(&reply, true))
}

#[cfg(test)]
mod tests;
