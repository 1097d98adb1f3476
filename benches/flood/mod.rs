//! Forged handshake initiations: each carries the victim's MAC, comes from a source of its own, and is of a key that is no
//! peer's.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use meshd::tunnel::noise::{Noise, StaticKeys, room_for};
use meshd::tunnel::packet::{UDP, write_ipv4_checksum};
use socket2::{Domain, Protocol, Socket, Type};
use x25519_dalek::{PublicKey, StaticSecret};

/// Different initiations; they go round, under ever new sources.
const INITIATIONS: u8 = 200;
/// Bytes of an initiation (WireGuard section 5.4.2), and with IPv4 and UDP headers.
const INITIATION: usize = 148;
const PACKET: usize = 28 + INITIATION;
/// Packets for one system call.
const BATCH: usize = 50;

/// The kind of packets that are sent.
pub(crate) struct Flood {
    initiations: Vec<Vec<u8>>,
    victim: Ipv4Addr,
}

impl Flood {
    /// Makes initiations for the node of `key`, which listens at `victim`.
    pub(crate) fn new(key: &PublicKey, victim: Ipv4Addr) -> Self {
        let initiations = (0..INITIATIONS)
            .map(|n| {
                let stranger = StaticKeys::new(StaticSecret::from([n; 32]));
                let now = Instant::now();
                let mut noise = Noise::new(&stranger, key.to_bytes(), None, None, n.into(), now);
                let mut datagram = vec![0; room_for(0)];
                let length = noise.initiate(&mut datagram).expect("none is under way");
                assert_eq!(length, INITIATION, "the only length there is");
                datagram.truncate(length);
                datagram
            })
            .collect();
        Self {
            initiations,
            victim,
        }
    }

    /// Sends `rate` a second for `time` from the network of this thread; gives how many.
    pub(crate) fn send(&self, rate: u32, time: Duration) -> u64 {
        let protocol = Protocol::from(libc::IPPROTO_RAW);
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(protocol))
            .expect("root may open raw sockets");
        socket.set_send_buffer_size(4 << 20).expect("a size");
        let mut packets = [[0u8; PACKET]; BATCH];
        let (began, mut sent) = (Instant::now(), 0u64);
        while began.elapsed() < time {
            let due = (began.elapsed().as_secs_f64() * f64::from(rate)) as u64;
            while sent + BATCH as u64 <= due {
                for (n, packet) in packets.iter_mut().enumerate() {
                    self.forge(sent + n as u64, packet);
                }
                sent += self.send_batch(&socket, &mut packets) as u64;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        sent
    }

    /// Writes the packet of this `number`.
    fn forge(&self, number: u64, packet: &mut [u8; PACKET]) {
        // An odd factor: 2^24 different hosts of public networks before the first comes again.
        let host = (number as u32).wrapping_mul(0x009e_3779) & 0x00ff_ffff;
        let source = Ipv4Addr::from((45 << 24) | host);
        let initiation = &self.initiations[number as usize % self.initiations.len()];
        packet[..28].fill(0);
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(PACKET as u16).to_be_bytes());
        packet[8] = 64;
        packet[9] = UDP;
        packet[12..16].copy_from_slice(&source.octets());
        packet[16..20].copy_from_slice(&self.victim.octets());
        write_ipv4_checksum(packet, 20);
        packet[20..22].copy_from_slice(&(1024 + (number as u16 & 0x7fff)).to_be_bytes());
        packet[22..24].copy_from_slice(&super::rig::PORT.to_be_bytes());
        // No UDP checksum, which IPv4 allows (RFC 768).
        packet[24..26].copy_from_slice(&(8 + INITIATION as u16).to_be_bytes());
        packet[28..].copy_from_slice(initiation);
    }

    fn send_batch(&self, socket: &Socket, packets: &mut [[u8; PACKET]; BATCH]) -> usize {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr {
                s_addr: u32::from(self.victim).to_be(),
            },
            sin_zero: [0; 8],
        };
        // SAFETY: zeros are a valid value of this C structure.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        let mut vectors = packets.each_mut().map(|packet| libc::iovec {
            iov_base: packet.as_mut_ptr().cast(),
            iov_len: PACKET,
        });
        for (message, vector) in messages.iter_mut().zip(&mut vectors) {
            message.msg_hdr.msg_name = (&raw const address).cast_mut().cast();
            message.msg_hdr.msg_namelen = size_of_val(&address) as u32;
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: `messages` holds BATCH valid headers, and all they point to outlives the call.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, 0) };
        match usize::try_from(sent) {
            Ok(sent) => sent,
            Err(_) => {
                let error = io::Error::last_os_error();
                assert!(
                    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)),
                    "cannot send: {error}"
                );
                0
            }
        }
    }
}
