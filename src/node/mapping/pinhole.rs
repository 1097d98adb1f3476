//! The task that asks the router for a hole in its firewall for IPv6, by PCP.
//!
//! `crab_nat` speaks PCP as well, but from the address that the kernel chooses. For a router that is known by its link-local address
//! this is not the address of the hole, and the router refuses (RFC 6887 section 8.3). So the requests are made in
//! [`crate::path::mapping::pcp`], and the socket has the address of the hole.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::router::Command;
use crate::os::random;
use crate::path::mapping::pcp::{self, Hole, HoleRequest, Refused};
use crate::path::mapping::{Answer, Granted, LIFETIME, Protocol, Refusal, Site};

/// How long the first answer is waited for, and the one to the request that is repeated.
const TIMEOUTS: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(500)];
/// A deletion is not repeated: the node stops meanwhile, and the hole closes by itself.
const CLOSE_TIMEOUTS: [Duration; 1] = [Duration::from_millis(250)];

/// A hole at the router.
struct Opened {
    request: HoleRequest,
    router: SocketAddrV6,
}

/// Carries out commands until there are no more.
pub(super) async fn run(mut commands: mpsc::Receiver<Command>, answers: mpsc::Sender<Answer>) {
    let mut opened: Option<Opened> = None;
    while let Some(command) = commands.recv().await {
        let number = match command {
            Command::Ask(request, _) => {
                close(opened.take()).await;
                opened = Opened::new(&request.site);
                request.number
            }
            Command::Renew(number) => number,
            Command::Delete(done) => {
                close(opened.take()).await;
                let _ = done.send(());
                continue;
            }
        };
        // The state machine asks again if it has no answer.
        let Some(hole) = &opened else { continue };
        let result = hole.open().await;
        if answers.send(Answer { number, result }).await.is_err() {
            return;
        }
    }
}

/// Closes the hole, as far as the router answers in time.
async fn close(opened: Option<Opened>) {
    let Some(hole) = opened else { return };
    match hole.ask(Duration::ZERO, &CLOSE_TIMEOUTS).await {
        Ok(Some(Ok(_))) => {}
        Ok(Some(Err(refused))) => {
            tracing::debug!(%refused, "a router does not close a hole for IPv6");
        }
        Ok(None) => tracing::debug!("a router does not answer that a hole for IPv6 is closed"),
        Err(error) => tracing::debug!(%error, "a router cannot be asked to close a hole for IPv6"),
    }
}

impl Opened {
    /// A hole that is not open yet. None if the site has another family, or there is no random number.
    fn new(site: &Site) -> Option<Self> {
        let (IpAddr::V6(own), IpAddr::V6(gateway)) = (site.own, site.gateway) else {
            return None;
        };
        let mut nonce = [0; 12];
        random::fill(&mut nonce).ok()?;
        let scope = match gateway.is_unicast_link_local() {
            true => site.interface,
            false => 0,
        };
        Some(Self {
            request: HoleRequest {
                nonce,
                own,
                port: site.port,
            },
            router: SocketAddrV6::new(gateway, pcp::PORT, 0, scope),
        })
    }

    /// Opens the hole, or keeps it open.
    async fn open(&self) -> Result<Granted, Refusal> {
        let silent = || Refusal::Silent((*self.router.ip()).into());
        let asked = self.ask(LIFETIME, &TIMEOUTS).await;
        match asked.map_err(|_| silent())? {
            None => Err(silent()),
            Some(Ok(Hole { external, lifetime })) => Ok(Granted {
                protocol: Protocol::Pcp,
                external,
                lifetime,
            }),
            Some(Err(refused)) => Err(Refusal::Denied(Protocol::Pcp, refused.to_string())),
        }
    }

    /// Sends the request, and again after each of `timeouts` but the last. Returns none if the router does not answer. The socket accepts
    /// datagrams of the router only.
    async fn ask(
        &self,
        lifetime: Duration,
        timeouts: &[Duration],
    ) -> io::Result<Option<Result<Hole, Refused>>> {
        let request = self.request.write(lifetime);
        let socket = UdpSocket::bind((self.request.own, 0)).await?;
        socket.connect(SocketAddr::V6(self.router)).await?;
        let mut buffer = [0; pcp::MAX_MESSAGE + 1];
        for limit in timeouts {
            socket.send(&request).await?;
            let end = Instant::now() + *limit;
            while let Ok(received) = timeout_at(end, socket.recv(&mut buffer)).await {
                let datagram = buffer.get(..received?).unwrap_or_default();
                if let Some(answer) = self.request.read(datagram) {
                    return Ok(Some(answer));
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::oneshot;

    use super::*;
    use crate::os::tasks::{AbortOnDrop, Tasks};
    use crate::path::mapping::Request;
    use crate::testbed::records::plan;

    /// All tests share the one port of routers at the one loopback address, so there is one test, which tries one router after another.
    const OWN: Ipv6Addr = Ipv6Addr::LOCALHOST;

    fn request() -> Request {
        Request {
            number: 7,
            site: Site {
                gateway: OWN.into(),
                interface: 1,
                own: OWN.into(),
                port: 51820,
            },
            port: 51820,
            order: Protocol::ALL,
        }
    }

    /// A router that answers each datagram with those that `answers` makes of it.
    async fn router(
        answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> AbortOnDrop {
        let socket = UdpSocket::bind((OWN, pcp::PORT)).await;
        let socket = socket.expect("nothing else listens there");
        let serve = async move {
            let mut buffer = [0; 2048];
            while let Ok((length, to)) = socket.recv_from(&mut buffer).await {
                for answer in answers(&buffer[..length]) {
                    let _ = socket.send_to(&answer, to).await;
                }
            }
        };
        let task = Tasks::current().spawn_child("router", serve);
        task.abort_on_drop()
    }

    fn granted(asked: &[u8]) -> Vec<u8> {
        let mut answer = asked.to_vec();
        answer[1] |= 0x80;
        answer[8..24].fill(0);
        answer
    }

    fn with(mut answer: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
        answer[at] = byte;
        answer
    }

    /// What the task answers to a request, and then to a deletion.
    async fn asked() -> Result<Granted, Refusal> {
        let (commands, received) = mpsc::channel(2);
        let (sender, mut answers) = mpsc::channel(2);
        let _task = Tasks::current()
            .spawn_child("pinhole", run(received, sender))
            .abort_on_drop();
        let ask = Command::Ask(request(), plan());
        assert!(commands.try_send(ask).is_ok());
        let answer = answers.recv().await.expect("an answer");
        assert_eq!(answer.number, 7);
        let (done, deleted) = oneshot::channel();
        assert!(commands.try_send(Command::Delete(done)).is_ok());
        deleted.await.expect("the task reports it");
        answer.result
    }

    #[tokio::test]
    async fn a_hole_is_opened_and_closed_by_a_router_and_lies_silence_and_refusals_are_told_apart()
    {
        let closed = Arc::new(AtomicU32::new(0));
        let closings = Arc::clone(&closed);
        let honest = router(move |asked| {
            let is_closing = asked[4..8] == [0; 4];
            closings.fetch_add(u32::from(is_closing), Ordering::Relaxed);
            // Answers to another request come first.
            vec![
                with(granted(asked), 24, !asked[24]),
                b"noise".to_vec(),
                granted(asked),
            ]
        });
        let honest = honest.await;
        let expected = Granted {
            protocol: Protocol::Pcp,
            external: (OWN, 51820).into(),
            lifetime: LIFETIME,
        };
        assert_eq!(asked().await, Ok(expected));
        assert_eq!(closed.load(Ordering::Relaxed), 1);
        end(honest).await;

        let refusing = router(|asked| vec![with(granted(asked), 3, 2)]).await;
        let why = "the router does not allow it (code 2)".to_owned();
        assert_eq!(asked().await, Err(Refusal::Denied(Protocol::Pcp, why)));
        end(refusing).await;

        let deaf = router(|_| Vec::new()).await;
        assert_eq!(asked().await, Err(Refusal::Silent(OWN.into())));
        end(deaf).await;
        assert_eq!(asked().await, Err(Refusal::Silent(OWN.into())), "no router");
    }

    /// Ends a router, and waits until its port is free.
    async fn end(router: AbortOnDrop) {
        drop(router);
        while UdpSocket::bind((OWN, pcp::PORT)).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}
