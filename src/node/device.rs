//! The tunnel device, when somebody takes it away: deleted, it is made again with everything on it; moved to another
//! network namespace, it stays there, and that is a problem to show.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::host::SplitDns;
use super::mesh::{Mesh, code_of};
use super::resolved::ResolvedLink;
use crate::protocol::api::ApiError;
use crate::tunnel::{Tunnel, TunnelError};

/// How long a device or port that is taken is waited for.
const TAKEN: Duration = Duration::from_secs(1);

/// Notices of the kernel that the tunnel device is gone.
pub(super) struct DeviceEvents(AsyncFd<OwnedFd>);

impl DeviceEvents {
    /// Those of the device of `tunnel`.
    pub(super) fn of(tunnel: &Tunnel) -> io::Result<Self> {
        let event = tunnel.gone_event().try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` names one open descriptor for as long as it lives.
        let event = unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) }?;
        Ok(Self(event))
    }

    /// Waits until the device is gone.
    pub(super) async fn gone(&mut self) {
        loop {
            let Ok(mut guard) = self.0.readable().await else {
                return std::future::pending().await;
            };
            let read = guard.try_io(|event| {
                let mut count = [0; 8];
                nix::unistd::read(event.get_ref(), &mut count).map_err(io::Error::from)
            });
            if let Ok(Ok(_)) = read {
                return;
            }
        }
    }
}

/// Starts what needs a name or a port. A meshd that was killed leaves the device and the port to a program that it was
/// just starting, for as long as that takes: what is taken is asked for again for a while.
pub(super) async fn when_free<T>(
    start: impl Fn() -> Result<T, TunnelError>,
) -> Result<T, TunnelError> {
    let end = Instant::now() + TAKEN;
    loop {
        match start() {
            Err(TunnelError::InterfaceTaken(_) | TunnelError::PortTaken(_))
                if Instant::now() < end =>
            {
                tokio::time::sleep(TAKEN / 20).await;
            }
            ended => return ended,
        }
    }
}

impl Mesh {
    /// Makes the device again, with all that was on it. Peers and their sessions are as they were.
    ///
    /// # Errors
    /// The kernel does not give another one.
    pub(super) async fn restore_device(&mut self) -> Result<(), ApiError> {
        if !self.tunnel.is_gone() {
            return Ok(());
        }
        let interface = self.tunnel.interface();
        when_free(|| self.tunnel.reopen()).await.map_err(|error| {
            let text = format!(
                "the tunnel device {interface} was deleted, and cannot be made again: {error}"
            );
            ApiError::new(code_of(&error), text)
        })?;
        tracing::warn!(
            interface,
            "somebody deleted the tunnel device; it was made again"
        );
        self.refit_device().await;
        self.reconcile().await;
        Ok(())
    }

    /// Whether somebody moved the device to another network namespace, where nothing can be put on it. That is shown as
    /// a problem until it is back.
    pub(super) async fn is_device_elsewhere(&mut self) -> bool {
        const KEY: &str = "device";
        if !self.tunnel.is_elsewhere() {
            if self.troubles.remove(KEY).is_some() {
                self.refit_device().await;
            }
            return false;
        }
        let interface = self.tunnel.interface().to_owned();
        self.trouble(
            KEY,
            "the tunnel device is in another network namespace",
            format!("somebody moved {interface} there; this host has no addresses and routes of the mesh, and programs here do not reach it"),
            &format!("move it back (`ip -n NAMESPACE link set {interface} netns 1`), or restart meshd to have it made here"),
        );
        true
    }

    /// Sets up a device that was made again. The queueing discipline, the link settings of systemd-resolved and the
    /// listener of the peers belong to the device's index, and nothing else renews them.
    async fn refit_device(&mut self) {
        let index = self.tunnel.index();
        self.network.refit(index).await;
        if let (Some(dns), Some(mesh)) = (&mut self.dns, self.replica.ledger().mesh())
            && dns.resolved.is_some()
        {
            let split = SplitDns::new(&mesh.domain, &mesh.addresses);
            dns.resolved = Some(ResolvedLink::start(index, split));
        }
        self.gossip.listen_again();
    }
}
