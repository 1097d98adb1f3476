//! The TUN device: made by `tun-rs`, read and written here, since the library's offload path copies.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::packet::{TCP, flow};
use super::split::{VNET_HEADER, VnetHeader};

/// Packets in a lane towards us at most. Each may be 64 KiB: with more of them TCP only waits longer, in the lane or where
/// its peer reads.
const QUEUE: u32 = 32;

/// Queues of the device that one pair of threads reads in turn at most: what fills one is lost there, and the others go on.
const LANES: usize = 16;

/// Queues that the kernel gives a device (MAX_TAP_QUEUES).
const QUEUES: usize = 256;

/// `TUNGETDEVNETNS`: a descriptor of the network namespace that a device is in.
const TUNGETDEVNETNS: u32 = 0x54e3;

/// The namespace of this thread.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// An open device. It is known by its descriptors: its name, its index and its namespace may change while it is open.
pub(super) struct Device {
    /// One for each pair of threads.
    pub(super) queues: Vec<Tun>,
    /// The index that it was made with.
    index: u32,
    gone: AtomicBool,
}

impl Device {
    /// Makes the device `name`, down, with lanes for `pairs` pairs of threads.
    pub(super) fn open(name: &str, mtu: u16, pairs: usize) -> io::Result<Self> {
        let queues = Tun::open(name, mtu, pairs)?;
        let index = match queues.first() {
            Some(tun) => tun.lanes[0].if_index()?,
            None => 0,
        };
        Ok(Self {
            queues,
            index,
            gone: AtomicBool::new(false),
        })
    }

    /// Notes that the kernel has removed the device; gives whether this is new.
    pub(super) fn note_gone(&self) -> bool {
        !self.gone.swap(true, Ordering::Relaxed)
    }

    /// Whether the kernel has removed the device.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// The index that the device has, in this thread's namespace. It changes when a device is moved to another namespace and
    /// back.
    pub(super) fn index(&self) -> u32 {
        match self.queues.first() {
            Some(tun) if !self.is_elsewhere() => tun.lanes[0].if_index().unwrap_or(self.index),
            _ => self.index,
        }
    }

    /// The MTU that the device has, whoever set it; nothing if it is in another namespace.
    pub(super) fn mtu(&self) -> Option<u16> {
        let tun = self.queues.first().filter(|_| !self.is_elsewhere())?;
        tun.lanes[0].mtu().ok()
    }

    /// Whether the device is in another network namespace than this thread. Kernels before 5.2 do not tell.
    pub(super) fn is_elsewhere(&self) -> bool {
        let Some(tun) = self.queues.first() else {
            return false;
        };
        // SAFETY: this request takes no argument and gives a new descriptor or an error.
        let namespace = unsafe { libc::ioctl(tun.lanes[0].as_raw_fd(), TUNGETDEVNETNS as _) };
        if namespace < 0 {
            return false;
        }
        // SAFETY: the descriptor is new, and nobody else has it.
        let namespace = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(namespace) });
        match (namespace.metadata(), std::fs::metadata(OWN_NAMESPACE)) {
            (Ok(its), Ok(own)) => (its.dev(), its.ino()) != (own.dev(), own.ino()),
            _ => false,
        }
    }
}

/// Whether reading or writing failed because the kernel has removed the device.
pub(super) fn is_removal(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

/// What one pair of threads has of an open device. The device goes away with the last of them.
pub(super) struct Tun {
    lanes: Vec<SyncDevice>,
    /// Tells which lanes have something.
    ready: Epoll,
    offload: bool,
    udp_offload: bool,
}

impl Tun {
    /// Makes the device `name`, down, with lanes for `pairs` pairs of threads, and offloads where the kernel has them.
    fn open(name: &str, mtu: u16, pairs: usize) -> io::Result<Vec<Self>> {
        let build = |offload| {
            DeviceBuilder::new()
                .name(name)
                .mtu(mtu)
                .offload(offload)
                .multi_queue(true)
                .enable(false)
                .build_sync()
        };
        let device = match build(true) {
            Ok(device) => device,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)) => {
                build(false)?
            }
            Err(error) => return Err(error),
        };
        // Only a matter of delay, and refused in user namespaces.
        let _ = device.set_tx_queue_len(QUEUE);
        let each = lanes_of_a_pair(pairs);
        let mut lanes: Vec<SyncDevice> = (1..pairs * each)
            .map(|_| device.try_clone())
            .collect::<io::Result<_>>()?;
        lanes.push(device);
        (0..pairs)
            .map(|_| Self::gather(lanes.split_off(lanes.len() - each)))
            .collect()
    }

    fn gather(lanes: Vec<SyncDevice>) -> io::Result<Self> {
        let (offload, udp_offload) = (lanes[0].tcp_gso(), lanes[0].udp_gso());
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (lane, device) in lanes.iter().enumerate() {
            // SAFETY: the descriptor lives as long as `device`.
            let fd = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))?;
            ready.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, lane as u64))?;
        }
        Ok(Self {
            lanes,
            ready,
            offload,
            udp_offload,
        })
    }

    /// Readable when there is something in one of the lanes.
    pub(super) fn descriptor(&self) -> RawFd {
        self.ready.0.as_raw_fd()
    }

    /// The lanes that have something, a bit for each.
    pub(super) fn ready(&self) -> Lanes {
        let mut events = [EpollEvent::empty(); LANES];
        // Only a signal ends a wait of no length, and then the next call tells.
        let count = self.ready.wait(&mut events, EpollTimeout::ZERO);
        let lanes = events.iter().take(count.unwrap_or_default());
        Lanes(lanes.fold(0, |lanes, event| lanes | 1 << event.data()))
    }

    /// Whether the device takes merged UDP packets.
    pub(super) fn merges_udp(&self) -> bool {
        self.udp_offload
    }

    /// Whether the device takes merged packets at all.
    pub(super) fn merges(&self) -> bool {
        self.offload
    }

    pub(super) fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        self.lanes[0].set_mtu(mtu)
    }

    /// Reads one packet of a lane into `buffer`; gives its offload header and where it lies. Nothing if none is waiting.
    pub(super) fn read(
        &self,
        lane: Lane,
        buffer: &mut [u8],
    ) -> io::Result<Option<(VnetHeader, std::ops::Range<usize>)>> {
        let fd = self.lanes[lane.0].as_raw_fd();
        // SAFETY: the pointer and length describe `buffer`.
        let read = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
        if read < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        let read = read as usize;
        if !self.offload {
            return Ok(Some((VnetHeader::default(), 0..read)));
        }
        match buffer.first_chunk::<VNET_HEADER>() {
            Some(header) if read >= VNET_HEADER => {
                Ok(Some((VnetHeader::read(header), VNET_HEADER..read)))
            }
            _ => Ok(None),
        }
    }

    /// Writes one packet in `parts`, the first of which is room for the offload header. The other direction of its flow
    /// comes by the same lane from then on.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let lane = parts
            .get(1)
            .map_or(Lane(0), |packet| Lane::of(packet, self.lanes.len()));
        let fd = self.lanes[lane.0].as_raw_fd();
        let parts = if self.offload {
            parts
        } else {
            parts.get(1..).unwrap_or_default()
        };
        // SAFETY: IoSlice has the layout of iovec, and all parts outlive the call.
        let written = unsafe { libc::writev(fd, parts.as_ptr().cast(), parts.len() as i32) };
        if written < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

fn lanes_of_a_pair(pairs: usize) -> usize {
    (QUEUES / pairs).clamp(1, LANES)
}

/// One lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lane(usize);

impl Lane {
    /// Where the answers to a packet come, of so many. The last quarter is TCP's, which alone sends until something is lost.
    fn of(packet: &[u8], lanes: usize) -> Self {
        let tcp = lanes / 4;
        let others = lanes - tcp;
        let flow = flow(packet);
        let hash = usize::from(flow.hash);
        Self(match flow.protocol {
            TCP if tcp > 0 => others + hash % tcp,
            _ => hash % others,
        })
    }
}

/// Some of the lanes, a bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lanes(u16);

impl Lanes {
    pub(super) const NONE: Self = Self(0);

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn remove(&mut self, lane: Lane) {
        self.0 &= !(1 << lane.0);
    }
}

impl Iterator for Lanes {
    type Item = Lane;

    fn next(&mut self) -> Option<Lane> {
        let lane = Lane(self.0.checked_ilog2()? as usize);
        self.remove(lane);
        Some(lane)
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::UDP;
    use super::*;

    /// An IPv4 packet with ports.
    fn packet(protocol: u8, last: u8, port: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend([10, 210, 1, 1, 10, 210, 2, last]);
        packet.extend(port.to_be_bytes());
        packet.extend([0, 53, 0, 8, 0, 0]);
        packet
    }

    #[test]
    fn tcp_has_lanes_that_nothing_else_has() {
        for port in 0..1000 {
            assert!(Lane::of(&packet(TCP, 1, port), 16).0 >= 12);
            assert!(Lane::of(&packet(UDP, 1, port), 16).0 < 12);
            assert_eq!(Lane::of(&packet(TCP, 1, port), 1), Lane(0));
        }
    }

    #[test]
    fn flows_are_spread_evenly_by_their_ports_and_by_their_addresses() {
        let by_port = (0..1200).map(|n| packet(UDP, 1, 32_768 + n)).collect();
        let by_address = (0..240).map(|n| packet(UDP, n, 53)).collect();
        let all: [Vec<Vec<u8>>; 2] = [by_port, by_address];
        for packets in all {
            let mut counts = [0; 12];
            for packet in &packets {
                counts[Lane::of(packet, 16).0] += 1;
            }
            let fair = packets.len() / counts.len();
            let even = fair / 2..fair * 2;
            assert!(
                counts.iter().all(|count| even.contains(count)),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn as_many_pairs_as_can_be_configured_find_room_in_the_device() {
        for pairs in 1..=32 {
            let each = lanes_of_a_pair(pairs);
            assert!(each > 3 && pairs * each <= QUEUES, "{pairs} pairs: {each}");
        }
    }

    #[test]
    fn lanes_are_gone_through_once_each() {
        let mut lanes = Lanes(0b1000_0000_0000_0101);
        assert_eq!(lanes.map(|lane| lane.0).collect::<Vec<_>>(), [15, 2, 0]);
        lanes.remove(Lane(2));
        assert_eq!(lanes, Lanes(0b1000_0000_0000_0001));
        assert!(!lanes.is_empty() && Lanes(0).is_empty());
    }
}
