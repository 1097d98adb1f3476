//! The tunnel device, with its addresses and routes on this machine.
//!
//! If somebody deletes the device, it is made again with everything on it. If somebody moves it to another network namespace,
//! it stays there, and that is a problem to show.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::calling::Calling;
use super::guests::Guests;
use super::host::{Interface, Upkeep};
use super::mapping::PortMapping;
use super::policy::PolicyInForce;
use super::reach::Reach;
use super::routing::Routing;
use super::rows::Rows;
use super::streams::RelayStreams;
use crate::os::clock;
use crate::os::readable::AsyncReadable;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::Problem;
use crate::tunnel::{TunUnusable, Tunnel, TunnelError};

/// How long [`when_free`] waits for a device name or a port that is taken.
const TAKEN_TIMEOUT: Duration = Duration::from_secs(1);

/// The running tunnel and its device.
pub(super) struct Device {
    pub(super) tunnel: Tunnel,
    /// Keeps addresses and routes on the device.
    pub(super) network: Upkeep,
    /// The MTU of the device, in bytes.
    pub(super) mtu: u16,
    /// The addresses of this machine, as they were listed last.
    pub(super) interfaces: Vec<Interface>,
    /// How others reach this node.
    pub(super) reach: Reach,
    /// The hole in the router's firewall for IPv6.
    pub(super) pinhole: PortMapping,
    /// The policy that the tunnel enforces.
    pub(super) policy: PolicyInForce,
    /// The streams to relays and of members.
    pub(super) streams: RelayStreams,
    pub(super) asked: Asked,
    /// The guests for which this node is the door.
    pub(super) guests: Guests,
    /// The networks outside the mesh to which members route.
    pub(super) routing: Routing,
    /// The problem while the device is in another network namespace.
    elsewhere: Option<Problem>,
}

/// What nodes ask each other by messages about paths.
pub(super) struct Asked {
    /// The calls of this node and of members.
    pub(super) calls: Calling,
    /// What other nodes tell of their paths.
    pub(super) rows: Rows,
}

impl Device {
    pub(super) fn new(
        tunnel: Tunnel,
        policy: PolicyInForce,
        network: Upkeep,
        mtu: u16,
        reach: Reach,
        streams: RelayStreams,
        routing: Routing,
    ) -> Self {
        Self {
            tunnel,
            network,
            mtu,
            interfaces: Vec::new(),
            pinhole: PortMapping::start_pinhole(reach.maps_port()),
            reach,
            policy,
            streams,
            asked: Asked {
                calls: Calling::new(clock::now()),
                rows: Rows::new(Instant::now()),
            },
            guests: Guests::default(),
            routing,
            elsewhere: None,
        }
    }

    /// Makes the device again if it was deleted, with all that was on it. Peers and their sessions stay as they were. Returns
    /// whether there is another device now.
    ///
    /// # Errors
    /// The kernel refuses to make another one.
    pub(super) async fn restore(&self) -> Result<bool, ApiError> {
        if !self.tunnel.is_gone() {
            return Ok(false);
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
        self.network.set_device(self.tunnel.index()).await;
        Ok(true)
    }

    /// Checks whether somebody moved the device to another network namespace, where meshd can put nothing on it. That is a
    /// problem until the device is back. Returns whether it has just come back.
    pub(super) async fn check_namespace(&mut self) -> bool {
        // A device that is gone is about to be made again.
        if self.tunnel.is_gone() {
            return false;
        }
        if !self.tunnel.is_elsewhere() {
            let is_back = self.elsewhere.take().is_some();
            if is_back {
                self.network.set_device(self.tunnel.index()).await;
            }
            return is_back;
        }
        let interface = self.tunnel.interface();
        self.elsewhere = Some(Problem {
            what: "the tunnel device is in another network namespace".into(),
            why: format!(
                "somebody moved {interface} there; this host has no addresses and routes of the mesh, and programs here do not reach it"
            ),
            fix: format!(
                "move it back (`ip -n NAMESPACE link set {interface} netns 1`), or restart meshd to have it made here"
            ),
        });
        false
    }

    /// What is wrong, with remedies.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let elsewhere = self.elsewhere.clone().into_iter();
        let reach = self.reach.problems().into_iter();
        elsewhere.chain(self.network.problems()).chain(reach)
    }
}

/// Notifies when the tunnel device is gone.
pub(super) struct DeviceEvents(AsyncReadable);

impl DeviceEvents {
    /// The events of the device of `tunnel`.
    pub(super) fn of(tunnel: &Tunnel) -> io::Result<Self> {
        Self::watch(tunnel.gone_event().try_clone_to_owned()?)
    }

    /// The events of `event`, which becomes readable when the device is gone.
    pub(super) fn watch(event: OwnedFd) -> io::Result<Self> {
        Ok(Self(AsyncReadable::new(event)?))
    }

    /// Waits until the device is gone. Never returns if the event cannot be read.
    pub(super) async fn gone(&mut self) {
        raised(&self.0).await;
    }
}

/// Notifies when the tunnel has news of the paths to peers.
pub(super) struct PathEvents(AsyncReadable);

impl PathEvents {
    /// The events of `tunnel`.
    pub(super) fn of(tunnel: &Tunnel) -> io::Result<Self> {
        Self::watch(tunnel.steering().news_event().try_clone_to_owned()?)
    }

    /// The events of `event`, which becomes readable when there is news.
    pub(super) fn watch(event: OwnedFd) -> io::Result<Self> {
        Ok(Self(AsyncReadable::new(event)?))
    }

    /// Waits until there is news. Never returns if the event cannot be read.
    pub(super) async fn news(&mut self) {
        raised(&self.0).await;
    }
}

/// Waits until `event` counts, and resets it. Never returns if it cannot be read.
async fn raised(event: &AsyncReadable) {
    let read = event.read(|event| {
        let mut count = [0; 8];
        nix::unistd::read(event, &mut count).map_err(io::Error::from)
    });
    if read.await.is_err() {
        std::future::pending().await
    }
}

/// Starts a part of the tunnel that needs a device name or a port. A meshd that was killed leaves both to a program that it was
/// just starting, for as long as that takes. So a name or port that is taken is tried again for [`TAKEN_TIMEOUT`].
pub(super) async fn when_free<T>(
    start: impl Fn() -> Result<T, TunnelError>,
) -> Result<T, TunnelError> {
    let end = Instant::now() + TAKEN_TIMEOUT;
    loop {
        match start() {
            Err(TunnelError::InterfaceTaken(_) | TunnelError::PortTaken(_))
                if Instant::now() < end =>
            {
                tokio::time::sleep(TAKEN_TIMEOUT / 20).await;
            }
            ended => return ended,
        }
    }
}

/// The code with which the program reports a failure of the tunnel.
pub(super) fn code_of(error: &TunnelError) -> ErrorCode {
    match error {
        TunnelError::Permission
        | TunnelError::PortDenied(_)
        | TunnelError::Tun(TunUnusable::Mode { .. } | TunUnusable::Device) => ErrorCode::Permission,
        TunnelError::Io(..) => ErrorCode::Internal,
        TunnelError::Tun(TunUnusable::Missing | TunUnusable::NoDriver)
        | TunnelError::Name(_)
        | TunnelError::InterfaceTaken(_)
        | TunnelError::PortTaken(_) => ErrorCode::Configuration,
    }
}
