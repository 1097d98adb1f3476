//! One path to a peer as the data plane has it, and the address of this host from which datagrams by it leave. Pure.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;

/// The pause after the first initiation by a path by which nothing was ever heard. Each pause is twice as long as the one before, up
/// to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// A path, and what the data plane knows of it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Where its datagrams are sent, and from which address.
    pub(super) endpoint: Endpoint,
    /// When an authentic datagram last arrived by it.
    pub(super) heard: Option<Instant>,
    /// Whether initiations are sent by it while no path is known to work.
    pub(super) opens: bool,
    /// The pause before the next initiation by it while nothing is heard, and when it ends.
    rest: Option<(Duration, Instant)>,
    /// The size in bytes of the largest packet that fits, once that was found out.
    pub(super) mtu: Option<u16>,
    /// The interface by which datagrams leave, once it was looked up.
    leaves_by: Option<u32>,
    /// The endpoint whose source was given up because the route from it changed.
    refused: Option<Endpoint>,
    /// When it was last reported that a datagram arrived by it.
    pub(super) reported: Option<Instant>,
}

impl Entry {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            heard: None,
            opens: false,
            rest: None,
            mtu: None,
            leaves_by: None,
            refused: None,
            reported: None,
        }
    }

    /// Whether an initiation may be sent by it now. It is counted if so. `admit` limits those to the address from which nothing was
    /// ever heard. A relay takes part in the mesh, and forwards only to those that it hears.
    pub(super) fn may_open(&mut self, admit: impl FnOnce(IpAddr) -> bool, now: Instant) -> bool {
        if self.heard.is_some() || self.endpoint.via.is_some() {
            return true;
        }
        let is_resting = self.rest.is_some_and(|(_, end)| now < end);
        if is_resting || !admit(self.endpoint.address.ip()) {
            return false;
        }
        let pause = self.rest.map_or(FIRST_PAUSE, |(pause, _)| pause * 2);
        let pause = pause.min(LONGEST_PAUSE);
        self.rest = Some((pause, now + pause));
        true
    }

    /// The next initiation by it needs no pause.
    pub(super) fn end_rest(&mut self) {
        self.rest = None;
    }

    /// A datagram arrived from there, by this path. Returns whether the route is to be looked up.
    pub(super) fn learn(&mut self, from: Endpoint) -> bool {
        if self.endpoint == from {
            return false;
        }
        self.leaves_by = None;
        if self.refused == Some(from) {
            self.endpoint = from.without_source();
            return false;
        }
        self.endpoint = from;
        from.source.is_some()
    }

    /// Learns the source of datagrams if none is known. Returns where they are sent.
    pub(super) fn learn_missing(&mut self, from: Endpoint) -> Endpoint {
        if self.endpoint.source.is_none() {
            self.learn(from);
        }
        self.endpoint
    }

    /// A relay may have moved, or may have given another tag.
    pub(super) fn renew(&mut self, endpoint: &Endpoint) {
        if self.endpoint.address != endpoint.address {
            self.endpoint = *endpoint;
            self.leaves_by = None;
        }
        self.endpoint.via = endpoint.via;
    }

    /// Lets the kernel choose the source, until the next authentic datagram.
    pub(super) fn forget_source(&mut self) {
        self.endpoint = self.endpoint.without_source();
        self.leaves_by = None;
    }

    /// Nothing was sent by it yet: the route is looked up again.
    pub(super) fn forget_route(&mut self) {
        self.leaves_by = None;
    }

    /// Whether the route from the source is to be looked up.
    pub(super) fn wants_route(&self) -> bool {
        self.leaves_by.is_none() && self.endpoint.source.is_some()
    }

    /// The endpoint whose source was given up, if one was.
    pub(super) fn refused(&self) -> Option<Endpoint> {
        self.refused
    }

    /// The route to `endpoint` was looked up: the interface by which datagrams leave, or none if there is no route from its
    /// source. The source is given up if there is no route, or if the interface has changed.
    pub(super) fn handle_route(&mut self, endpoint: Endpoint, leaves_by: Option<u32>) {
        if self.endpoint != endpoint {
            return;
        }
        match (leaves_by, self.leaves_by) {
            (None, _) => self.forget_source(),
            (Some(now), Some(before)) if now != before => {
                self.forget_source();
                // The peer may still send to the old address for a while.
                self.refused = Some(endpoint);
            }
            (now, _) => self.leaves_by = now,
        }
    }

    /// Lets the source of `endpoint` be used again if it was given up.
    pub(super) fn accept(&mut self, endpoint: Endpoint) {
        self.refused.take_if(|refused| *refused == endpoint);
    }
}
