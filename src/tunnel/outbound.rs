//! From the TUN device to the peers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::checking;
use super::drops::DropReason;
use super::guard::Memo;
use super::icmp_errors::{self, ErrorLimit, MAX_ERROR, Reason};
use super::keys::StaticKeys;
use super::local_service::LocalService;
use super::messages;
use super::noise::{padded, room_for};
use super::packet::{Ip, UDP};
use super::paths::Choice;
use super::peer::Peer;
use super::queues::QueueSet;
use super::reset::{self, MAX_RESET};
use super::shared::Shared;
use super::sockets::Sockets;
use super::split::{VNET_HEADER, VnetHeader, largest_segment, split};
use super::table::Table;
use super::too_big;
use super::tun::is_removal;
use super::udp::Sender;

/// The maximum size of a packet from the device in bytes, including its offload header.
const BUFFER: usize = VNET_HEADER + 65_536;
/// After so many packets, once each queue had its turn, the sealed packets are sent and the queues that were empty are read
/// again. That bounds how long the first packet waits.
const BATCH: usize = 16;
/// Small packets are read and sealed sooner, so a batch of fewer bytes than this has up to [`SMALL_BATCH`] packets.
const SMALL_BYTES: usize = 64 * 1024;
/// The maximum number of packets of a batch: as many as the kernel sends as one message (see [`super::udp`]).
const SMALL_BATCH: usize = 64;

/// One end of the direction from the device to the peers.
pub(super) struct Outbound {
    /// The number of the pair of threads: which queues of the device are read, and which sockets are used.
    pair: usize,
    buffer: Vec<u8>,
    /// The space in which a segment is padded to a multiple of 16 bytes.
    scratch: Vec<u8>,
    /// The answer of the local service, before it is written back.
    answer: Vec<u8>,
    sender: Sender,
    errors: ErrorLimit,
    /// The last packet that the policy let pass.
    memo: Memo,
}

impl Outbound {
    pub(super) fn new(pair: usize) -> Self {
        Self {
            pair,
            buffer: vec![0; BUFFER],
            scratch: vec![0; 65_536 + 16],
            answer: Vec::new(),
            sender: Sender::new(),
            errors: ErrorLimit::new(Instant::now()),
            memo: Memo::default(),
        }
    }

    /// Reads, seals and sends one batch. Returns whether there may be more.
    pub(super) fn batch(&mut self, shared: &Shared) -> bool {
        let table = shared.table.load();
        let group = shared.sockets.load();
        let sockets = &group[self.pair];
        let now = Instant::now();
        let device = shared.device.load();
        let tun = &device.pairs[self.pair];
        let mut queues = tun.ready();
        let (mut packets, mut bytes) = (0, 0);
        self.memo.clear();
        while !queues.is_empty() && !is_whole(packets, bytes) {
            for queue in queues {
                match tun.read(queue, &mut self.buffer) {
                    Ok(Some((header, range))) => {
                        let length = range.len();
                        packets += 1;
                        bytes += length;
                        // A split packet grows by its headers and by what sealing adds: at most by half its size.
                        if self.sender.is_full(length + length / 2 + 65_536 / 4) {
                            self.sender.flush(sockets, &shared.drops);
                        }
                        self.packet(shared, &table, sockets, header, range, now);
                    }
                    Ok(None) => queues.remove(queue),
                    Err(error) => {
                        if is_removal(&error) {
                            shared.note_removed(&device);
                        } else {
                            tracing::warn!(%error, "cannot read the tunnel device");
                            std::thread::sleep(std::time::Duration::from_millis(100));
                        }
                        queues = QueueSet::NONE;
                        break;
                    }
                }
            }
        }
        self.sender.flush(sockets, &shared.drops);
        !queues.is_empty()
    }

    fn packet(
        &mut self,
        shared: &Shared,
        table: &Table,
        sockets: &Sockets,
        header: VnetHeader,
        range: std::ops::Range<usize>,
        now: Instant,
    ) {
        let Self {
            buffer,
            answer,
            errors,
            memo,
            ..
        } = self;
        let packet = &mut buffer[range.clone()];
        let Some(ip) = Ip::parse(packet) else {
            shared.drops.add(DropReason::Malformed);
            return;
        };
        let owner = table.owner(ip.destination);
        let (Some(peer), Some(keys)) = (owner, owner.and_then(|peer| table.keys_of(peer))) else {
            // No peer owns the addresses of the local service, so packets to peers need only one lookup.
            let service = table.local_service.as_ref();
            return match service.filter(|service| service.has(ip.destination)) {
                Some(service) => answer_locally(shared, service, header, packet, answer),
                None => shared.drops.add(DropReason::NoOwner),
            };
        };
        // A peer takes a packet to this port for a message of this node's meshd, so no other program may send one.
        if messages::payload(packet, &ip).is_some() && peer.lock().paths.choice == Choice::Steered {
            return shared.drops.add(DropReason::Reserved);
        }
        // The kernel follows a route for the tunnel's own datagrams too, which would be sealed again and again.
        if !table.routed.networks.is_empty() && is_from_port(sockets.port(), packet, &ip) {
            let local = shared.local_addresses.load();
            if is_of_node(&local, &table.own_networks, ip.source) {
                return shared.drops.add(DropReason::Looped);
            }
        }
        if !checking::passes_out((shared, table), (packet, &ip), memo, now) {
            if errors.admit(now) {
                deny(shared, packet, &ip);
            }
            return;
        }
        self.send(shared, sockets, (peer, keys), header, range, now);
    }

    /// Seals a packet and sends it to the peer that owns its destination.
    fn send(
        &mut self,
        shared: &Shared,
        sockets: &Sockets,
        (peer, keys): (&Arc<Peer>, &Arc<StaticKeys>),
        header: VnetHeader,
        range: std::ops::Range<usize>,
        now: Instant,
    ) {
        let Self {
            buffer,
            scratch,
            sender,
            errors,
            ..
        } = self;
        let packet = &mut buffer[range];
        let mut state = peer.lock();
        if state.endpoint().is_none() {
            shared.drops.add(DropReason::NoEndpoint);
            return;
        }
        let mtu = shared.mtu().min(usize::from(state.paths.mtu()));
        if mtu < shared.mtu()
            && let Some(fits) = too_big::refused(packet, largest_segment(header, packet), mtu)
        {
            drop(state);
            shared.drops.add(DropReason::TooBig);
            if errors.admit(now)
                && let Some(ip) = Ip::parse(packet)
            {
                refuse(shared, packet, &ip, Reason::TooBig(fits));
            }
            return;
        }
        let last = state.last_send.replace(now);
        if state.paths.handle_sent(last, now) {
            shared.wakes.news.add(peer.member);
        }
        let Some(endpoint) = state.endpoint() else {
            return;
        };
        let mut initiation = None;
        let noise = state.noise(keys, peer.index, now);
        let mut sent = 0;
        let split = split(header, packet, |segment| {
            let length = padded(segment.len(), mtu);
            if sender.is_full(room_for(length)) {
                sender.flush(sockets, &shared.drops);
            }
            let padded = pad(segment, length, scratch);
            if let Some((length, is_packet)) = noise.seal(padded, sender.space_to(&endpoint), now) {
                if is_packet {
                    sent += length;
                    sender.commit(length, endpoint);
                } else {
                    initiation = Some(sender.space_to(&endpoint)[..length].to_vec());
                }
            }
        });
        (shared.drops).add_many(DropReason::NoAnswer, noise.take_lost());
        if let Some(initiation) = initiation {
            shared.send_initiation((peer, &mut state), &initiation, endpoint, sender, now);
        }
        drop(state);
        peer.count_tx(sent);
        if split.is_err() {
            shared.drops.add(DropReason::Malformed);
        }
    }
}

/// Whether a batch of so many packets, which have so many bytes together, is to be sent.
#[inline]
fn is_whole(packets: usize, bytes: usize) -> bool {
    packets >= SMALL_BATCH || (packets >= BATCH && bytes >= SMALL_BYTES)
}

/// The packet with zeros after it, up to `length` bytes. It is copied into `scratch` only if it is shorter.
#[inline]
fn pad<'a>(packet: &'a [u8], length: usize, scratch: &'a mut [u8]) -> &'a [u8] {
    if length == packet.len() {
        return packet;
    }
    scratch[..packet.len()].copy_from_slice(packet);
    scratch[packet.len()..length].fill(0);
    &scratch[..length]
}

/// Lets the local service answer `packet`: one packet, or several that the kernel merged.
#[inline(never)]
fn answer_locally(
    shared: &Shared,
    service: &LocalService,
    header: VnetHeader,
    packet: &mut [u8],
    answer: &mut Vec<u8>,
) {
    let split = split(header, packet, |one| match service.answer(one, answer) {
        Ok(true) => shared.inject(answer),
        Ok(false) => {}
        Err(reason) => shared.drops.add(reason),
    });
    if split.is_err() {
        shared.drops.add(DropReason::Malformed);
    }
}

/// Whether a packet is a datagram from `port`. If this node sends it, it is one of this tunnel: no other program is at the port.
#[inline]
fn is_from_port(port: u16, packet: &[u8], ip: &Ip) -> bool {
    let source = packet
        .get(ip.transport..)
        .and_then(<[u8]>::first_chunk::<2>);
    ip.protocol == UDP && source.is_some_and(|source| u16::from_be_bytes(*source) == port)
}

/// Whether this node sends datagrams of the tunnel from `source`. That is the address of this node in the mesh, one of `local`, if the
/// kernel chooses it by the route. A datagram that answers a peer keeps the address of the machine to which the peer sends, which is in
/// none of the networks `own` of this node.
fn is_of_node(local: &[IpAddr], own: &[IpNet], source: IpAddr) -> bool {
    local.contains(&source) || !own.iter().any(|net| net.contains(&source))
}

/// Tells the sender of `packet`, through the device, that the policy denies it.
#[cold]
fn deny(shared: &Shared, packet: &[u8], ip: &Ip) {
    let mut out = [0; MAX_RESET];
    match reset::answer(packet, ip, &mut out) {
        Some(length) => shared.inject(&out[..length]),
        None => refuse(shared, packet, ip, Reason::Prohibited),
    }
}

/// Sends an error to the sender of `packet`, through the device.
#[cold]
fn refuse(shared: &Shared, packet: &[u8], ip: &Ip, reason: Reason) {
    let mut error = [0; MAX_ERROR];
    if let Some(length) = icmp_errors::answer(packet, ip, reason, &mut error) {
        shared.inject(&error[..length]);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::local_service::write_datagram;
    use super::*;

    #[test]
    fn a_batch_of_small_packets_has_more_of_them_and_never_waits_for_more_bytes() {
        let packets_of = |length: usize| (1..).find(|packets| is_whole(*packets, packets * length));
        assert_eq!(packets_of(65_535), Some(BATCH));
        assert_eq!(packets_of(SMALL_BYTES / BATCH), Some(BATCH));
        assert_eq!(packets_of(1420), Some(47));
        assert_eq!(packets_of(64), Some(SMALL_BATCH));
        assert_eq!(packets_of(0), Some(SMALL_BATCH));
    }

    #[test]
    fn a_datagram_of_the_tunnel_is_known_by_its_port_whichever_address_of_this_node_it_has() {
        let local: [IpAddr; 1] = ["10.0.1.1".parse().expect("a literal")];
        let own: [IpNet; 1] = ["10.0.1.0/24".parse().expect("a literal")];
        let is_of_tunnel = |source: &str| {
            let source: SocketAddr = source.parse().expect("a literal");
            let destination = SocketAddr::from(([192, 168, 1, 7], 51820));
            let mut packet = Vec::new();
            write_datagram(source, destination, b"hello", &mut packet).expect("one family");
            let ip = Ip::parse(&packet).expect("a whole packet");
            is_from_port(51820, &packet, &ip) && is_of_node(&local, &own, ip.source)
        };
        assert!(is_of_tunnel("10.0.1.1:51820"));
        assert!(is_of_tunnel("172.16.0.9:51820"));
        assert!(!is_of_tunnel("10.0.1.1:4000"));
        // A container is free to use this port.
        assert!(!is_of_tunnel("10.0.1.9:51820"));
    }
}
