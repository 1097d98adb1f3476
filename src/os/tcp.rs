//! TCP connections to hosts that have several addresses.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::sleep;

/// How long an attempt may take until the next address is tried beside it (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connects to the first of `addresses` that accepts a connection. The system sorts them, and the first ones are often of IPv6. In a
/// network whose packets of IPv6 are lost, such an attempt ends only with the time of the caller. So the attempts overlap.
///
/// # Errors
/// No address accepts a connection. The error is that of the last attempt.
pub async fn connect_any(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    first_of(addresses, TcpStream::connect).await
}

/// Returns the first success of `attempt`, which is called for each of `addresses` in their order.
async fn first_of<T, F>(
    addresses: &[SocketAddr],
    attempt: impl Fn(SocketAddr) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match waiting.next() {
            Some(address) => attempts.push(attempt(*address)),
            None if attempts.is_empty() => return Err(failure),
            None => {}
        }
        let has_more = !waiting.as_slice().is_empty();
        tokio::select! {
            Some(ended) = attempts.next() => match ended {
                Ok(connected) => return Ok(connected),
                Err(error) => failure = error,
            },
            () = sleep(ATTEMPT_DELAY), if has_more => {}
            else => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn addresses() -> [SocketAddr; 3] {
        ["[2001:db8::1]:7443", "192.0.2.1:7443", "192.0.2.2:7443"]
            .map(|text| text.parse().expect("a literal"))
    }

    #[tokio::test]
    async fn an_address_that_is_silent_does_not_hold_up_the_next_one() {
        let attempt = |address: SocketAddr| async move {
            match address {
                SocketAddr::V6(_) => pending().await,
                SocketAddr::V4(_) => Ok::<_, io::Error>(address),
            }
        };
        let [_, second, _] = addresses();
        assert_eq!(first_of(&addresses(), attempt).await.ok(), Some(second));
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_followed_by_the_next_one_and_the_last_error_is_returned() {
        let [.., last] = addresses();
        let refused = |address: SocketAddr| async move {
            let kind = match address == last {
                true => io::ErrorKind::ConnectionRefused,
                false => io::ErrorKind::NetworkUnreachable,
            };
            Err::<SocketAddr, _>(io::Error::from(kind))
        };
        let failed = first_of(&addresses(), refused)
            .await
            .expect_err("all refuse");
        assert_eq!(failed.kind(), io::ErrorKind::ConnectionRefused);
        let nothing = first_of(&[], refused).await.expect_err("there is none");
        assert_eq!(nothing.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_connection_is_made_to_the_address_at_which_a_program_listens() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = listener.expect("a free port");
        let open = listener.local_addr().expect("it is bound");
        // Nothing listens at this address of the loopback device.
        let closed = SocketAddr::from(([127, 0, 0, 2], open.port()));
        let stream = connect_any(&[closed, open]).await.expect("one listens");
        assert_eq!(stream.peer_addr().ok(), Some(open));
    }
}
