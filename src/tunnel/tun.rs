//! The TUN device. `tun-rs` makes it; it is read and written here, since the library's offload path copies packets.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::uio::writev;
use tun_rs::{DeviceBuilder, SyncDevice};

use super::config::TunUnusable;
use super::queues::{MAX_QUEUES, Queue, QueueSet, queues_of_a_pair};
use super::split::{VNET_HEADER, VnetHeader};

/// The number of packets that each queue of the device holds. Each may be 64 KiB: with more of them TCP only waits longer, in
/// the queue or where its peer reads.
const QUEUE_LENGTH: u32 = 32;

/// `TUNGETDEVNETNS`: the request for a descriptor of the network namespace that a device is in.
const TUNGETDEVNETNS: u32 = 0x54e3;

/// The namespace of this thread.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// The file through which programs make TUN devices.
const TUN: &str = "/dev/net/tun";

/// Checks that this process may open the TUN device. The error of [`Device::open`] does not show whether the device or the rights to
/// make an interface are missing.
pub(super) fn check() -> Result<(), TunUnusable> {
    let opened = std::fs::File::options().read(true).write(true).open(TUN);
    let Err(error) = opened else {
        return Ok(());
    };
    let found = std::fs::metadata(TUN).map(|found| (found.mode() & 0o7777, found.uid()));
    Err(unusable(&error, found.ok()))
}

/// Why the TUN device cannot be opened, given the error, and the mode and the owner of the file.
fn unusable(error: &io::Error, found: Option<(u32, u32)>) -> TunUnusable {
    match (error.raw_os_error(), found) {
        (Some(libc::ENODEV | libc::ENXIO), _) => TunUnusable::NoDriver,
        // A device controller and some security modules answer so, and the mode of a file never does.
        (Some(libc::EPERM), _) => TunUnusable::Device,
        (_, Some((mode, owner))) if mode & 0o006 != 0o006 => TunUnusable::Mode { mode, owner },
        (Some(libc::ENOENT | libc::ENOTDIR), _) => TunUnusable::Missing,
        _ => TunUnusable::Device,
    }
}

/// An open device. It is identified by its descriptors: its name, its index and its namespace may change while it is open.
pub(super) struct Device {
    /// The queues of each pair of threads.
    pub(super) pairs: Vec<Tun>,
    /// The index that it was made with.
    index: u32,
    removed: AtomicBool,
}

impl Device {
    /// Makes the device `name`, down, with queues for so many pairs of threads.
    pub(super) fn open(name: &str, mtu: u16, pairs: usize) -> io::Result<Self> {
        let pairs = Tun::open(name, mtu, pairs)?;
        let index = match pairs.first() {
            Some(tun) => tun.queues[0].if_index()?,
            None => 0,
        };
        Ok(Self {
            pairs,
            index,
            removed: AtomicBool::new(false),
        })
    }

    /// Notes that the kernel has removed the device, and returns whether this is new.
    pub(super) fn note_removed(&self) -> bool {
        !self.removed.swap(true, Ordering::Relaxed)
    }

    /// Whether the kernel has removed the device.
    pub(super) fn is_gone(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// The index of the device in this thread's namespace. It changes when a device is moved to another namespace and back.
    pub(super) fn index(&self) -> u32 {
        match self.pairs.first() {
            Some(tun) if !self.is_elsewhere() => tun.queues[0].if_index().unwrap_or(self.index),
            _ => self.index,
        }
    }

    /// The MTU of the device, which other programs may change; none if it is in another namespace.
    pub(super) fn mtu(&self) -> Option<u16> {
        let tun = self.pairs.first().filter(|_| !self.is_elsewhere())?;
        tun.queues[0].mtu().ok()
    }

    /// Whether the device is in another network namespace than this thread. Kernels before 5.2 do not report it.
    pub(super) fn is_elsewhere(&self) -> bool {
        let Some(tun) = self.pairs.first() else {
            return false;
        };
        let device = tun.queues[0].as_raw_fd();
        // SAFETY: this request has no argument and returns a new descriptor, which nothing else owns, or an error. No
        // library has it.
        let namespace = unsafe {
            match libc::ioctl(device, TUNGETDEVNETNS as _) {
                namespace @ 0.. => std::fs::File::from(OwnedFd::from_raw_fd(namespace)),
                _ => return false,
            }
        };
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

/// The queues of an open device that belong to one pair of threads. The device goes away with the last of them.
pub(super) struct Tun {
    queues: Vec<SyncDevice>,
    /// Reports which queues have packets.
    ready: Epoll,
    offload: bool,
    udp_offload: bool,
}

impl Tun {
    /// Makes the device `name`, down, with queues for so many pairs of threads, and with the offloads that the kernel has.
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
        // It only changes delays, and is refused in user namespaces.
        let _ = device.set_tx_queue_len(QUEUE_LENGTH);
        let each = queues_of_a_pair(pairs);
        let mut queues: Vec<SyncDevice> = (1..pairs * each)
            .map(|_| device.try_clone())
            .collect::<io::Result<_>>()?;
        queues.push(device);
        (0..pairs)
            .map(|_| Self::of(queues.split_off(queues.len() - each)))
            .collect()
    }

    fn of(queues: Vec<SyncDevice>) -> io::Result<Self> {
        let (offload, udp_offload) = (queues[0].tcp_gso(), queues[0].udp_gso());
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (number, queue) in queues.iter().enumerate() {
            queue.set_nonblocking(true)?;
            ready.add(queue, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        }
        Ok(Self {
            queues,
            ready,
            offload,
            udp_offload,
        })
    }

    /// Readable when one of the queues has a packet.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }

    /// The queues that have packets.
    pub(super) fn ready(&self) -> QueueSet {
        let mut events = [EpollEvent::empty(); MAX_QUEUES];
        // Only a signal ends a wait of no length early. The next call then reports the queues.
        let count = self.ready.wait(&mut events, EpollTimeout::ZERO);
        let ready = events.iter().take(count.unwrap_or_default());
        QueueSet::of(ready.map(EpollEvent::data))
    }

    /// Whether the device accepts merged UDP packets.
    pub(super) fn merges_udp(&self) -> bool {
        self.udp_offload
    }

    /// Whether the device accepts merged packets.
    #[inline]
    pub(super) fn merges(&self) -> bool {
        self.offload
    }

    /// Reads one packet of a queue into `buffer`, and returns its offload header and its place. Returns none if there is no
    /// packet.
    #[inline]
    pub(super) fn read(
        &self,
        queue: Queue,
        buffer: &mut [u8],
    ) -> io::Result<Option<(VnetHeader, std::ops::Range<usize>)>> {
        let read = match nix::unistd::read(&self.queues[queue.number()], buffer) {
            Ok(read) => read,
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
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

    /// Writes one packet in `parts`, the first of which is space for the offload header. The kernel puts the packets of the
    /// other direction of its flow into the same queue from then on.
    #[inline]
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let queue = parts
            .get(1)
            .map_or(Queue::FIRST, |packet| Queue::of(packet, self.queues.len()));
        let parts = if self.offload {
            parts
        } else {
            parts.get(1..).unwrap_or_default()
        };
        writev(&self.queues[queue.number()], parts)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_program_from_the_tun_device_is_told_apart() {
        let why = |errno, found| unusable(&io::Error::from_raw_os_error(errno), found);
        let private = Some((0o600, 0));
        let public = Some((0o666, 0));
        assert_eq!(why(libc::ENOENT, None), TunUnusable::Missing);
        assert_eq!(why(libc::ENXIO, public), TunUnusable::NoDriver);
        assert_eq!(why(libc::ENODEV, private), TunUnusable::NoDriver);
        let mode = TunUnusable::Mode {
            mode: 0o600,
            owner: 0,
        };
        assert_eq!(why(libc::EACCES, private), mode);
        assert_eq!(why(libc::EACCES, public), TunUnusable::Device);
        assert_eq!(why(libc::EPERM, public), TunUnusable::Device);
        let text = mode.to_string();
        assert!(
            text.contains("mode 0600") && text.contains("chmod 666"),
            "{text}"
        );
        assert!(!text.contains("as root"), "{text}");
    }
}
