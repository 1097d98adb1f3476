//! Health checks: a verdict from a row of results, and the tasks that try.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::registry::Key;
use crate::wire::local::{Check, CheckProbe};

/// What a row of results means. Pure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    healthy: Option<bool>,
    /// Results in a row that speak against the verdict.
    against: u32,
}

impl Verdict {
    /// Takes a result in; gives the verdict if it has changed. The first result decides at once: an instance that was
    /// never seen to work has no credit. After that, `rise` successes in a row or `fall` failures turn it.
    pub fn handle_result(&mut self, success: bool, rise: u32, fall: u32) -> Option<bool> {
        if self.healthy == Some(success) {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        let needed = match self.healthy {
            None => 1,
            Some(true) => fall,
            Some(false) => rise,
        };
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.healthy = Some(success);
        self.healthy
    }
}

/// Runs checks and tells of verdicts that change.
#[derive(Debug)]
pub struct Checker {
    verdicts: mpsc::Sender<(Key, bool)>,
    running: HashMap<Key, (SocketAddr, Check, JoinHandle<()>)>,
}

impl Checker {
    /// Verdicts go to `verdicts`.
    #[must_use]
    pub fn new(verdicts: mpsc::Sender<(Key, bool)>) -> Self {
        Self {
            verdicts,
            running: HashMap::new(),
        }
    }

    /// Checks these from now on; those that stay as they were go on.
    pub fn set(&mut self, targets: Vec<(Key, SocketAddr, Check)>) {
        let mut old = std::mem::take(&mut self.running);
        for (key, address, check) in targets {
            let same = old.remove(&key).and_then(|running| {
                if running.0 == address && running.1 == check {
                    return Some(running);
                }
                running.2.abort();
                None
            });
            let running = same.unwrap_or_else(|| {
                let task = tokio::spawn(run(
                    key.clone(),
                    address,
                    check.clone(),
                    self.verdicts.clone(),
                ));
                (address, check, task)
            });
            self.running.insert(key, running);
        }
        for (_, _, task) in old.into_values() {
            task.abort();
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.running.values().for_each(|(_, _, task)| task.abort());
    }
}

async fn run(key: Key, address: SocketAddr, check: Check, verdicts: mpsc::Sender<(Key, bool)>) {
    let mut verdict = Verdict::default();
    loop {
        let limit = Duration::from_millis(check.timeout_ms);
        let success = timeout(limit, attempt(address, &check))
            .await
            .is_ok_and(|healthy| healthy);
        if let Some(healthy) = verdict.handle_result(success, check.rise, check.fall)
            && verdicts.send((key.clone(), healthy)).await.is_err()
        {
            return;
        }
        sleep(jittered(check.interval_ms)).await;
    }
}

/// The interval, a tenth more or less: checks that started together drift apart.
fn jittered(interval_ms: u64) -> Duration {
    let span = (interval_ms / 5).max(1);
    let random = getrandom::u64().unwrap_or_default() % span;
    Duration::from_millis(interval_ms - interval_ms / 10 + random)
}

async fn attempt(address: SocketAddr, check: &Check) -> bool {
    let Ok(stream) = TcpStream::connect(address).await else {
        return false;
    };
    match &check.probe {
        CheckProbe::Tcp => true,
        CheckProbe::Http(path) => {
            let status = http(stream, address, path).await.unwrap_or_default();
            (check.status.0..=check.status.1).contains(&status)
        }
    }
}

async fn http(
    stream: TcpStream,
    address: SocketAddr,
    path: &str,
) -> Result<u16, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = hyper::Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, concat!("meshd/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())?;
    let status = sender.send_request(request).await?.status();
    driver.abort();
    Ok(status.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Label;
    use crate::model::record::Protocol;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    #[test]
    fn the_first_result_decides_and_then_two_failures_in_a_row() {
        let mut verdict = Verdict::default();
        let results = [true, true, false, true, false, false, false, true];
        let verdicts: Vec<_> = results
            .iter()
            .map(|r| verdict.handle_result(*r, 1, 2))
            .collect();
        assert_eq!(
            verdicts,
            [
                Some(true),
                None,
                None,
                None,
                None,
                Some(false),
                None,
                Some(true)
            ]
        );
        assert_eq!(Verdict::default().handle_result(false, 3, 3), Some(false));
    }

    #[test]
    fn rise_and_fall_are_counted_in_a_row() {
        let mut verdict = Verdict::default();
        let results = [
            true, false, false, true, false, false, false, true, true, false, true, true, true,
        ];
        let turns: Vec<(usize, bool)> = results
            .iter()
            .enumerate()
            .filter_map(|(at, r)| Some((at, verdict.handle_result(*r, 3, 3)?)))
            .collect();
        assert_eq!(turns, [(0, true), (6, false), (12, true)]);
    }

    fn key(port: u16) -> Key {
        Key {
            name: Label::parse("web").expect("a literal"),
            port: port.try_into().expect("not zero"),
            protocol: Protocol::Tcp,
        }
    }

    /// The first verdict on a server that answers every connection with `answer`.
    async fn verdict_on(answer: &'static str, probe: CheckProbe) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        first_verdict(address, probe).await
    }

    async fn first_verdict(address: SocketAddr, probe: CheckProbe) -> bool {
        let (sender, mut verdicts) = mpsc::channel(8);
        let mut checker = Checker::new(sender);
        checker.set(vec![(
            key(address.port()),
            address,
            Check {
                interval_ms: 50,
                timeout_ms: 5000,
                ..Check::new(probe)
            },
        )]);
        verdicts.recv().await.expect("the checker lives").1
    }

    #[tokio::test]
    async fn http_counts_by_its_status_and_tcp_by_the_connection() {
        let http = || CheckProbe::Http("/healthz".into());
        assert!(verdict_on("HTTP/1.1 204 No Content\r\n\r\n", http()).await);
        assert!(verdict_on("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", http()).await);
        assert!(
            !verdict_on(
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
                http()
            )
            .await
        );
        assert!(!verdict_on("garbage\r\n\r\n", http()).await);
        assert!(verdict_on("garbage", CheckProbe::Tcp).await);
    }

    #[tokio::test]
    async fn nobody_listening_is_unhealthy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        assert!(!first_verdict(address, CheckProbe::Tcp).await);
    }
}
