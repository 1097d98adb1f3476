//! The coordinator: admits nodes by join token, leases addresses, stores and forwards signed records.
//!
//! It is never in the data path and never trusted with keys. Everything it takes in passes the same
//! [`crate::wire::ledger`] that nodes use; what it forwards, they verify again.

mod admin;
mod config;
mod control;
mod enroll;
mod hub;
mod metrics;
mod server;
pub mod store;
mod tls;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

pub use config::{Arguments, Config};
pub use hub::Hub;

use crate::wire::api::ErrorCode;
use crate::wire::file;
use crate::wire::url::CoordinatorUrl;

/// A start that failed: what to say, and with which code to exit.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: String,
    code: ErrorCode,
}

impl Failure {
    fn new(code: ErrorCode, message: impl std::fmt::Display) -> Self {
        Self {
            message: message.to_string(),
            code,
        }
    }
}

impl From<file::FileError> for Failure {
    fn from(error: file::FileError) -> Self {
        let code = if error.is_permission() {
            ErrorCode::Permission
        } else {
            ErrorCode::Configuration
        };
        Self::new(code, error)
    }
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return crate::wire::usage::report("mesh-coordinator", &error),
    };
    crate::wire::log::to_stderr();
    let result = Config::load(&arguments)
        .map_err(|e| Failure::new(ErrorCode::Configuration, e))
        .and_then(|config| {
            if arguments.check_config {
                println!("the configuration is right");
                return Ok(());
            }
            let runtime =
                tokio::runtime::Runtime::new().map_err(|e| Failure::new(ErrorCode::Internal, e))?;
            runtime.block_on(run(config))
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("mesh-coordinator: {failure}");
            ExitCode::from(failure.code.exit_code())
        }
    }
}

async fn run(config: Config) -> Result<(), Failure> {
    file::private_dir(&config.state_dir)?;
    let identity = tls::load_or_make(&config.state_dir)?;
    let urls = if config.public_urls.is_empty() {
        guess_urls(&config)
    } else {
        config.public_urls.clone()
    };
    let hub = Arc::new(open_hub(&config, &urls, identity.pin)?);

    let listener = server::bind(config.listen).await?;
    let admin = admin::bind(&config.admin_socket)?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let serve = tokio::spawn(server::serve(
        listener,
        identity.config,
        Arc::clone(&hub),
        stopped.clone(),
    ));
    let serve_admin = tokio::spawn(admin::serve(
        admin,
        config.admin_socket.clone(),
        Arc::clone(&hub),
    ));
    let serve_metrics = tokio::spawn(metrics::serve(config.metrics_listen, Arc::clone(&hub)));
    tracing::info!(listen = %config.listen, urls = ?urls, admin = %config.admin_socket.display(), "ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let watchdog = tokio::spawn(crate::wire::log::feed_watchdog());

    wait_for_stop().await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
    let _ = stop.send(true);
    // Streams close with what they are sending; nodes go on without.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(3), serve).await;
    serve_admin.abort();
    serve_metrics.abort();
    watchdog.abort();
    let _ = std::fs::remove_file(&config.admin_socket);
    Ok(())
}

fn open_hub(
    config: &Config,
    urls: &[CoordinatorUrl],
    pin: crate::wire::token::SpkiPin,
) -> Result<Hub, Failure> {
    let path: &Path = &config.state_dir.join("records.db");
    let store = store::Sqlite::open(path)
        .map_err(|e| Failure::new(ErrorCode::Configuration, format!("{}: {e}", path.display())))?;
    Hub::open(
        Box::new(store),
        hub::Setup {
            urls: urls.to_vec(),
            pin,
            domain: config.domain.clone(),
            prefix_v4: config.prefix_v4,
            node_block_v4: config.node_block_v4,
        },
    )
    .map_err(|e| Failure::new(ErrorCode::Configuration, format!("{}: {e}", path.display())))
}

/// Without `public_urls`: the address listened on, or the one this machine would use to reach others.
fn guess_urls(config: &Config) -> Vec<CoordinatorUrl> {
    let address = if config.listen.ip().is_unspecified() {
        source_address()
    } else {
        Some(config.listen.ip())
    };
    let url = address.and_then(|ip| {
        format!(
            "https://{}",
            std::net::SocketAddr::new(ip, config.listen.port())
        )
        .parse()
        .ok()
    });
    if url.is_none() {
        tracing::warn!(
            "no public URL is known; set public_urls, or nobody can be given a join token"
        );
    }
    url.into_iter().collect()
}

/// The address the kernel would send from. Connecting a UDP socket sends nothing; the destination is one of
/// those set aside for documentation (RFC 5737).
fn source_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    let by_route = socket
        .connect("192.0.2.1:9")
        .and_then(|()| socket.local_addr())
        .ok()
        .map(|a| a.ip());
    by_route.or_else(first_address)
}

/// Without a default route: the first address of an interface that is up.
fn first_address() -> Option<std::net::IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?;
    addresses
        .filter_map(|entry| entry.address?.as_sockaddr_in().map(|a| a.ip()))
        .find(|ip| !ip.is_loopback() && !ip.is_link_local())
        .map(Into::into)
}

async fn wait_for_stop() {
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
