//! Checks whether the coordinator's public URLs lead back to it.
//!
//! Join tokens contain these URLs. A wrong one is noticed otherwise only on the machine that joins, by somebody who cannot correct
//! it. So the coordinator connects to each of its URLs after its start and from time to time, compares the TLS key that it finds
//! with its own, and closes the connection. It sends nothing, reads nothing beyond the TLS handshake, and waits for a limited time.
//! A URL that leads elsewhere is a warning and never ends the coordinator: a router may keep a machine from its own public address
//! although all others reach it there.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::hub::Hub;
use crate::model::text::message;
use crate::os::dial::{DialError, dial};
use crate::protocol::admin::UrlProblem;
use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;

/// The pause between two checks while all URLs lead back.
const CHECK_INTERVAL: Duration = Duration::from_secs(600);
/// The pause between two checks while one of them does not, so that the warning ends soon after it was corrected.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// Checks `urls` until the coordinator ends. The key of this coordinator has the hash `pin`.
pub(super) async fn watch(urls: Vec<CoordinatorUrl>, pin: SpkiPin, hub: Arc<Hub>) {
    if urls.is_empty() {
        return std::future::pending().await;
    }
    loop {
        let mut found = Vec::new();
        for url in &urls {
            found.extend(check(url, pin).await);
        }
        let before = hub.url_problems.read();
        for problem in found.iter().filter(|problem| !before.contains(problem)) {
            tracing::warn!(url = %problem.url, why = %problem.why, fix = %problem.fix, "a public URL does not lead to this coordinator");
        }
        let is_corrected = |url: &CoordinatorUrl| !found.iter().any(|problem| problem.url == *url);
        for problem in before.iter().filter(|problem| is_corrected(&problem.url)) {
            tracing::info!(url = %problem.url, "this public URL leads to this coordinator now");
        }
        let pause = match found.is_empty() {
            true => CHECK_INTERVAL,
            false => RETRY_INTERVAL,
        };
        hub.url_problems.set(found);
        sleep(pause).await;
    }
}

/// Connects to `url` once. Returns the problem if another program, or none, answers there.
async fn check(url: &CoordinatorUrl, pin: SpkiPin) -> Option<UrlProblem> {
    let error = dial(url, pin).await.err()?;
    Some(UrlProblem {
        url: url.clone(),
        why: message(&error.reason()),
        fix: remedy(&error).to_owned(),
    })
}

fn remedy(error: &DialError) -> &'static str {
    match error {
        DialError::Unresolved { .. } => {
            "make the name resolve on all servers, or set another URL with --public-url (`public_urls`), and make new tokens: they contain the URLs"
        }
        DialError::Unreachable { .. } => {
            "start all coordinators, and open and forward the port to this machine; or set another URL with --public-url (`public_urls`), and make new tokens. Nothing needs to be done if only this machine does not reach the URL, because its router does not lead connections from inside back"
        }
        DialError::NotACoordinator { .. } | DialError::Pin { .. } => {
            "nodes refuse what answers there: let the URL lead to this coordinator, with TLS that ends here and not at a proxy; or set another URL with --public-url (`public_urls`), and make new tokens. Coordinators that share a store need the same tls.key"
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::coordinator::tls;
    use crate::model::Label;
    use crate::os::clock;

    const PIN: SpkiPin = SpkiPin([7; 32]);

    async fn listener() -> (TcpListener, CoordinatorUrl) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let url = format!("https://{address}").parse().expect("a URL");
        (listener, url)
    }

    #[tokio::test]
    async fn a_url_that_leads_back_is_no_problem_and_a_server_with_another_key_is_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let domain = Label::parse("mesh").expect("a literal");
        let subject = tls::Subject::new(&[], &domain);
        let identity =
            tls::load_or_make(dir.path(), &subject, clock::wall()).expect("a new directory");
        let acceptor = TlsAcceptor::from(identity.config);
        let (listener, url) = listener().await;
        let served = async {
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.expect("the check connects");
                let _ = acceptor.accept(stream).await;
            }
        };
        let checked = async { [check(&url, identity.pin).await, check(&url, PIN).await] };
        let ([own, other], ()) = tokio::join!(checked, served);
        assert_eq!(own, None);
        let other = other.expect("its key is another one");
        assert!(other.why.contains("another TLS key"), "{other:?}");
    }

    #[tokio::test]
    async fn a_url_at_which_nothing_or_another_program_answers_is_a_problem_with_a_remedy() {
        let (closed, url) = listener().await;
        drop(closed);
        let problem = check(&url, PIN).await.expect("nothing listens");
        assert_eq!(problem.url, url);
        assert!(problem.why.contains("refused"), "{problem:?}");
        assert!(problem.fix.contains("--public-url"), "{problem:?}");

        let (other, url) = listener().await;
        let served = async {
            let (mut stream, _) = other.accept().await.expect("the check connects");
            // It does not end, and forges a line.
            let _ = stream
                .write_all(&b"no TLS\nWARN forged\n".repeat(100_000))
                .await;
        };
        let (problem, ()) = tokio::join!(check(&url, PIN), served);
        let problem = problem.expect("another program answers");
        assert!(problem.why.contains("no mesh-coordinator"), "{problem:?}");
        assert!(
            !problem.why.contains('\n') && problem.why.len() < 500,
            "{problem:?}"
        );
        assert!(problem.fix.contains("proxy"), "{problem:?}");
    }
}
