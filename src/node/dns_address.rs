//! Connects the tunnel and the resolver at the mesh's DNS address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::dns::Resolver;
use crate::dns::in_tunnel::{self, TunnelDns};
use crate::model::MeshAddresses;
use crate::model::address::Block;
use crate::tunnel::{Handled, Injector, LocalHandler, LocalService, Tunnel};

/// Starts to answer queries to the DNS address inside `tunnel`'s device.
pub(super) fn answer_at(
    tunnel: &Tunnel,
    resolver: Arc<Resolver>,
    mesh: MeshAddresses,
    block: Block,
) -> Arc<TunnelDns> {
    let device = Arc::new(Device(tunnel.injector()));
    let in_tunnel_dns = Arc::new(TunnelDns::start(resolver, mesh, block, device));
    tunnel.set_local_service(Some(LocalService {
        addresses: TunnelDns::addresses(&mesh).to_vec(),
        handler: Arc::new(Answering(Arc::clone(&in_tunnel_dns))),
    }));
    in_tunnel_dns
}

struct Device(Injector);

impl in_tunnel::Device for Device {
    fn datagram(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        self.0.datagram(source, destination, payload);
    }

    fn packet(&self, packet: &[u8]) {
        self.0.packet(packet);
    }
}

struct Answering(Arc<TunnelDns>);

impl LocalHandler for Answering {
    fn datagram(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Handled {
        handled(self.0.datagram(source, destination, payload))
    }

    fn segment(&self, source: IpAddr, packet: &[u8]) -> Handled {
        handled(self.0.segment(source, packet))
    }
}

fn handled(handled: in_tunnel::Handled) -> Handled {
    match handled {
        in_tunnel::Handled::Reply(reply) => Handled::Reply(reply),
        in_tunnel::Handled::Later => Handled::Later,
        in_tunnel::Handled::Refused => Handled::Refused,
        in_tunnel::Handled::Overload => Handled::Overload,
    }
}
