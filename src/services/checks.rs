//! Health checks: the state machine that turns results into a verdict, and the tasks that run the checks.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::os::http::{self, Method, Request};
use crate::os::random;
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::protocol::local::{Check, CheckProbe};

/// Turns a sequence of results into a verdict. Pure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    healthy: Option<bool>,
    /// The number of results in a row that contradict the verdict.
    against: u32,
}

impl Verdict {
    /// Handles a result. Returns the verdict if it has changed. The first result decides at once, because an instance
    /// that has never worked is not assumed to work. After that, `rise` successes or `fall` failures in a row change
    /// the verdict.
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

/// A check of one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The address to connect to.
    pub address: SocketAddr,
    /// The check and its interval.
    pub check: Check,
    /// Whether the check runs at short intervals until its first success, because an instance that was just started is
    /// to be used soon.
    pub eager: bool,
}

/// The result of a check, or the verdict after several: healthy, or why not.
pub type Outcome = Result<(), String>;

/// Runs checks and sends each verdict that changes. Each target has a key of type `K`.
#[derive(Debug)]
pub struct Checker<K> {
    verdicts: mpsc::Sender<(K, Outcome)>,
    running: HashMap<K, (Target, AbortOnDrop)>,
}

impl<K: Clone + Eq + Hash + Send + 'static> Checker<K> {
    /// Creates a checker that sends its verdicts to `verdicts`.
    #[must_use]
    pub fn new(verdicts: mpsc::Sender<(K, Outcome)>) -> Self {
        Self {
            verdicts,
            running: HashMap::new(),
        }
    }

    /// Sets the targets. The checks of unchanged targets continue.
    pub fn set(&mut self, targets: Vec<(K, Target)>) {
        let mut old = std::mem::take(&mut self.running);
        for (key, target) in targets {
            let same = old.remove(&key).filter(|(running, _)| *running == target);
            let running = same.unwrap_or_else(|| {
                let task = run(key.clone(), target.clone(), self.verdicts.clone());
                // The task ends when the receiver of its verdicts is dropped.
                let task = Tasks::current().spawn_finite("health check", task);
                (target, task.abort_on_drop())
            });
            self.running.insert(key, running);
        }
    }
}

/// The intervals of an eager target until its first success: short at first, and longer later.
const EAGER_STEPS: [(Duration, Duration); 2] = [
    (Duration::from_secs(5), Duration::from_millis(50)),
    (Duration::from_secs(30), Duration::from_millis(250)),
];

async fn run<K: Clone>(key: K, target: Target, verdicts: mpsc::Sender<(K, Outcome)>) {
    let Target {
        address,
        check,
        eager,
    } = target;
    let mut verdict = Verdict::default();
    let mut waited = Duration::ZERO;
    let mut is_eager = eager;
    loop {
        let limit = Duration::from_millis(check.timeout_ms);
        let outcome = timeout(limit, attempt(address, &check)).await;
        let outcome = outcome.unwrap_or_else(|_| {
            let limit = check.timeout_ms;
            Err(format!("no answer of {address} within {limit} ms"))
        });
        let success = outcome.is_ok();
        let is_new = verdict.handle_result(success, check.rise, check.fall);
        if is_new.is_some() && verdicts.send((key.clone(), outcome)).await.is_err() {
            return;
        }
        is_eager &= !success;
        let step = EAGER_STEPS
            .iter()
            .find(|(until, _)| is_eager && waited < *until);
        let pause = step.map_or_else(|| jittered(check.interval_ms), |(_, step)| *step);
        waited = waited.saturating_add(pause);
        sleep(pause).await;
    }
}

/// The interval, changed randomly by up to a tenth, so that checks that started together do not run at the same times.
fn jittered(interval_ms: u64) -> Duration {
    let span = (interval_ms / 5).max(1);
    let random = random::u64().unwrap_or_default() % span;
    Duration::from_millis(interval_ms - interval_ms / 10 + random)
}

async fn attempt(address: SocketAddr, check: &Check) -> Outcome {
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|error| format!("cannot connect to {address}: {error}"))?;
    match &check.probe {
        CheckProbe::Tcp => Ok(()),
        CheckProbe::Http(path) => {
            let request = Request::new(Method::GET, path)
                .host(address.to_string())
                .user_agent(concat!("meshd/", env!("CARGO_PKG_VERSION")));
            // Only the status counts. The caller limits the time.
            let response = http::open(stream, request).await;
            let response =
                response.map_err(|error| format!("{address} does not answer in HTTP: {error}"))?;
            let status = response.status().as_u16();
            if (check.status.0..=check.status.1).contains(&status) {
                Ok(())
            } else {
                Err(format!("{address} answers with HTTP status {status}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn target(address: SocketAddr, check: Check, eager: bool) -> Target {
        Target {
            address,
            check,
            eager,
        }
    }

    #[tokio::test]
    async fn an_eager_check_does_not_wait_for_its_interval_before_the_first_success() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        let (sender, mut verdicts) = mpsc::channel(8);
        let mut checker = Checker::new(sender);
        let check = Check {
            interval_ms: 3_600_000,
            ..Check::new(CheckProbe::Tcp)
        };
        checker.set(vec![("web", target(address, check, true))]);
        let refused = verdicts.recv().await.map(|(_, outcome)| outcome);
        let refused = refused.and_then(Result::err).unwrap_or_default();
        let expected = format!("cannot connect to {address}: ");
        assert!(refused.starts_with(&expected), "{refused}");
        let _listener = TcpListener::bind(address).await.expect("free again");
        let verdict = timeout(Duration::from_secs(60), verdicts.recv()).await;
        assert_eq!(
            verdict.expect("long before the hour"),
            Some(("web", Ok(())))
        );
    }

    async fn first_verdict(address: SocketAddr, probe: CheckProbe) -> bool {
        let (sender, mut verdicts) = mpsc::channel(8);
        let mut checker = Checker::new(sender);
        let check = Check {
            interval_ms: 50,
            timeout_ms: 5000,
            ..Check::new(probe)
        };
        checker.set(vec![("web", target(address, check, false))]);
        let (_, outcome) = verdicts.recv().await.expect("the checker lives");
        outcome.is_ok()
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
    async fn a_port_without_a_listener_is_unhealthy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        assert!(!first_verdict(address, CheckProbe::Tcp).await);
    }
}
