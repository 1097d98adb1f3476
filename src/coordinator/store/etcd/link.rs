//! Sends requests to etcd: to one member at a time, and to the next one if it does not answer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, Identity, TlsOptions, Txn, TxnResponse,
};
use tokio::time::{Instant, sleep, timeout};

use super::super::{EtcdSettings, StoreError};
use super::keys::Key;
use super::view::Change;
use crate::os::random;

/// How long a member may take to answer before the next one is tried. An election takes about as long.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1500);
/// The time limit of all attempts together. A node waits at least this long for its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(9);
/// Unanswered pings reveal a dead connection. etcd accepts one ping in five seconds.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// The number of keys in one page of a listing: with records, and of keys alone.
const RECORDS_PER_PAGE: i64 = 256;
const KEYS_PER_PAGE: i64 = 8192;
/// The maximum size of an answer, in bytes. A page of the largest records has half of it.
const MAX_ANSWER: usize = 64 << 20;
const MAX_FILE: u64 = 1 << 20;

/// The connection to etcd.
pub(super) struct Link {
    endpoints: Vec<String>,
    options: ConnectOptions,
    prefix: String,
    current: Mutex<Current>,
}

/// The member that is used now.
struct Current {
    index: usize,
    client: Option<Client>,
}

/// All keys under the prefix at one of etcd's revisions.
pub(super) struct Listing {
    pub(super) at: i64,
    pub(super) entries: Vec<(Change, i64)>,
}

impl Link {
    /// Creates a connection to the cluster that `settings` describe, without a request.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn new(settings: &EtcdSettings) -> Result<Self, StoreError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(ATTEMPT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let (Some(user), Some(file)) = (&settings.user, &settings.password_file) {
            let password = String::from_utf8_lossy(&read_secret(file)?)
                .trim()
                .to_owned();
            options = options
                .with_user(user, password)
                .with_auto_token_refresh(true);
        }
        if let Some(file) = &settings.ca_file {
            let ca = std::fs::read(file).map_err(|e| unreadable(file, e))?;
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let (Some(certificate), Some(key)) = (&settings.certificate_file, &settings.key_file)
            {
                let chain = std::fs::read(certificate).map_err(|e| unreadable(certificate, e))?;
                tls = tls.identity(Identity::from_pem(chain, read_secret(key)?));
            }
            options = options.with_tls(tls);
        }
        let random = random::u32().unwrap_or(0) as usize;
        Ok(Self {
            current: Mutex::new(Current {
                index: random % settings.endpoints.len().max(1),
                client: None,
            }),
            endpoints: settings.endpoints.clone(),
            options,
            prefix: settings.prefix.clone(),
        })
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // No change under the lock can be left incomplete by a panic.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the prefix to a key.
    pub(super) fn key(&self, text: &str) -> String {
        format!("{}{text}", self.prefix)
    }

    /// Parses the key after the prefix. None if it is not held in memory.
    pub(super) fn parse(&self, key: &[u8]) -> Option<Key> {
        Key::parse(std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?)
    }

    /// Returns a connection to the member that is used now, and the index of this member.
    pub(super) async fn client(&self) -> Result<(usize, Client), Error> {
        let (index, client) = {
            let current = self.current();
            (current.index, current.client.clone())
        };
        if let Some(client) = client {
            return Ok((index, client));
        }
        let Some(endpoint) = self.endpoints.get(index) else {
            return Err(Error::InvalidArgs("no endpoints".into()));
        };
        let client = match timeout(
            ATTEMPT_TIMEOUT,
            Client::connect([endpoint], Some(self.options.clone())),
        )
        .await
        {
            Ok(client) => client?,
            Err(_) => return Err(silent()),
        };
        let mut current = self.current();
        if current.index == index {
            current.client = Some(client.clone());
        }
        Ok((index, client))
    }

    /// Changes to another member, unless that has already been done.
    pub(super) fn leave(&self, index: usize) {
        let mut current = self.current();
        if current.index == index {
            current.index = (index + 1) % self.endpoints.len().max(1);
            current.client = None;
        }
    }

    /// The index of the member that is used now.
    pub(super) fn index(&self) -> usize {
        self.current().index
    }

    /// Sends a request until a member answers. A request may be applied more than once.
    ///
    /// # Errors
    /// No member answers in time, or a member refuses the request.
    pub(super) async fn call<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let end = Instant::now() + CALL_TIMEOUT;
        loop {
            let index = self.index();
            let attempt = async {
                let (_, client) = self.client().await?;
                call(client).await
            };
            let error = match timeout(ATTEMPT_TIMEOUT, attempt).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => silent(),
            };
            if is_final(&error) || Instant::now() >= end {
                return Err(self.failed(&error));
            }
            tracing::debug!(endpoint = ?self.endpoints.get(index), %error, "a request to an etcd member failed; the next one is tried");
            self.leave(index);
            sleep(jitter(Duration::from_millis(100))).await;
        }
    }

    fn failed(&self, error: &Error) -> StoreError {
        let text = error.to_string();
        let endpoints = self.endpoints.join(", ");
        StoreError::Failed(if text.contains("database space exceeded") {
            "etcd's database is full; compact and defragment it, raise its quota, and run `etcdctl alarm disarm`".to_owned()
        } else if is_about_rights(&text) {
            format!(
                "etcd refuses the coordinator ({text}); check user, password_file, certificate_file and what the user may do under {}",
                self.prefix
            )
        } else if is_final(error) {
            format!(
                "etcd cannot process a request ({text}); check endpoints, and start etcd with --max-txn-ops and --max-request-bytes that are not below its defaults"
            )
        } else {
            let secured = self.endpoints.iter().any(|e| e.starts_with("https:"));
            let check = match secured {
                true => "; if they run, check ca_file, certificate_file and key_file",
                false => "",
            };
            format!("no member of the etcd cluster answers ({endpoints}): {text}{check}")
        })
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// See [`Link::call`].
    pub(super) async fn transact(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        self.call(|client| {
            let txn = txn.clone();
            async move {
                let mut client = client.kv_client().max_decoding_message_size(MAX_ANSWER);
                client.txn(txn).await
            }
        })
        .await
    }

    /// Returns the value of a key and etcd's revision of it, confirmed by a majority of the members.
    ///
    /// # Errors
    /// See [`Link::call`].
    pub(super) async fn read(&self, key: String) -> Result<Option<(Vec<u8>, i64)>, StoreError> {
        Ok(self.read_counted(key).await?.0)
    }

    /// Returns the same, and etcd's present revision.
    ///
    /// # Errors
    /// See [`Link::call`].
    pub(super) async fn read_counted(
        &self,
        key: String,
    ) -> Result<(Option<(Vec<u8>, i64)>, i64), StoreError> {
        let answer = self
            .call(|client| {
                let key = key.clone();
                async move { client.kv_client().get(key, None).await }
            })
            .await?;
        let now = answer
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision);
        let held = answer.kvs().first();
        Ok((held.map(|kv| (kv.value().to_vec(), kv.mod_revision())), now))
    }

    /// Lists all keys that are held in memory, with their values.
    ///
    /// # Errors
    /// See [`Link::call`].
    pub(super) async fn list(&self) -> Result<Listing, StoreError> {
        let mut entries = Vec::new();
        let at = self
            .pages(
                0,
                RECORDS_PER_PAGE,
                GetOptions::new(),
                |key, value, marked| {
                    let value = Some(value.to_vec());
                    entries.push((Change { key, value }, marked));
                },
            )
            .await?;
        Ok(Listing { at, entries })
    }

    /// Lists the keys at etcd's revision `at`, without values.
    ///
    /// # Errors
    /// See [`Link::call`]. Another error is that etcd has compacted this revision.
    pub(super) async fn marks(&self, at: i64) -> Result<Vec<(Key, i64)>, StoreError> {
        let mut marks = Vec::new();
        let keys_only = GetOptions::new().with_keys_only();
        self.pages(at, KEYS_PER_PAGE, keys_only, |key, _, marked| {
            marks.push((key, marked));
        })
        .await?;
        Ok(marks)
    }

    /// Reads all pages of one revision, which is `at` or the last one. Returns that revision.
    async fn pages(
        &self,
        mut at: i64,
        page: i64,
        options: GetOptions,
        mut found: impl FnMut(Key, &[u8], i64),
    ) -> Result<i64, StoreError> {
        let mut from = self.prefix.clone().into_bytes();
        let end = end_of(&self.prefix);
        loop {
            let answer = self
                .call(|client| {
                    let (from, end) = (from.clone(), end.clone());
                    let options = options
                        .clone()
                        .with_range(end)
                        .with_limit(page)
                        .with_revision(at);
                    async move {
                        let mut client = client.kv_client().max_decoding_message_size(MAX_ANSWER);
                        client.get(from, Some(options)).await
                    }
                })
                .await?;
            if at == 0 {
                at = answer
                    .header()
                    .map_or(0, etcd_client::ResponseHeader::revision);
            }
            for kv in answer.kvs() {
                if let Some(key) = self.parse(kv.key()) {
                    found(key, kv.value(), kv.mod_revision());
                }
            }
            match answer.kvs().last() {
                Some(last) if answer.more() => from = [last.key(), b"\0"].concat(),
                _ => return Ok(at),
            }
        }
    }
}

/// The first key after all keys that begin with `prefix`, which ends with a printable character.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

/// A random duration up to `most`.
pub(super) fn jitter(most: Duration) -> Duration {
    most.mul_f64(f64::from(random::u32().unwrap_or(0)) / f64::from(u32::MAX))
}

fn silent() -> Error {
    Error::EndpointError("no answer in time".into())
}

/// Whether every other member would return the same error.
fn is_final(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else {
        return matches!(error, Error::InvalidArgs(_) | Error::InvalidUri(_));
    };
    let text = status.message();
    is_about_rights(text)
        || text.contains("database space exceeded")
        || text.contains("has been compacted")
        || text.contains("too many operations")
        || text.contains("request is too large")
}

/// Whether etcd refuses the coordinator's user.
fn is_about_rights(text: &str) -> bool {
    [
        "permission denied",
        "authentication failed",
        "user name is empty",
    ]
    .iter()
    .any(|refusal| text.contains(refusal))
}

fn read_secret(path: &std::path::Path) -> Result<Vec<u8>, StoreError> {
    crate::os::file::read_private(path, MAX_FILE).map_err(|e| StoreError::Failed(e.to_string()))
}

fn unreadable(path: &std::path::Path, error: std::io::Error) -> StoreError {
    StoreError::Failed(format!("cannot read {}: {error}", path.display()))
}
