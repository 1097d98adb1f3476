//! The TUN device: made by `tun-rs`, read and written here, since the library's offload path copies.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::split::{VNET_HEADER, VnetHeader};

/// Packets in the device's queue towards us at most. Each may be 64 KiB: a longer queue is only delay.
const QUEUE: u32 = 32;

/// A queue of an open device. The device goes away with its last queue.
pub(super) struct Tun {
    device: SyncDevice,
    offload: bool,
    udp_offload: bool,
}

impl Tun {
    /// Makes the device `name`, down, with `queues` queues, and offloads where the kernel has them.
    pub(super) fn open(name: &str, mtu: u16, queues: usize) -> io::Result<Vec<Self>> {
        let build = |offload| {
            DeviceBuilder::new()
                .name(name)
                .mtu(mtu)
                .offload(offload)
                .multi_queue(queues > 1)
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
        let more: Vec<SyncDevice> = (1..queues)
            .map(|_| device.try_clone())
            .collect::<io::Result<_>>()?;
        std::iter::once(device)
            .chain(more)
            .map(Self::queue)
            .collect()
    }

    fn queue(device: SyncDevice) -> io::Result<Self> {
        let (offload, udp_offload) = (device.tcp_gso(), device.udp_gso());
        let tun = Self {
            device,
            offload,
            udp_offload,
        };
        // SAFETY: the descriptor lives as long as `tun`.
        let fd = unsafe { BorrowedFd::borrow_raw(tun.descriptor()) };
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))?;
        Ok(tun)
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.device.as_raw_fd()
    }

    /// Whether the device takes merged UDP packets.
    pub(super) fn merges_udp(&self) -> bool {
        self.udp_offload
    }

    /// Whether the device takes merged packets at all.
    pub(super) fn merges(&self) -> bool {
        self.offload
    }

    pub(super) fn index(&self) -> io::Result<u32> {
        self.device.if_index()
    }

    pub(super) fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        self.device.set_mtu(mtu)
    }

    /// Reads one packet into `buffer`; gives its offload header and where it lies. Nothing if none is waiting.
    pub(super) fn read(
        &self,
        buffer: &mut [u8],
    ) -> io::Result<Option<(VnetHeader, std::ops::Range<usize>)>> {
        // SAFETY: the pointer and length describe `buffer`.
        let read =
            unsafe { libc::read(self.descriptor(), buffer.as_mut_ptr().cast(), buffer.len()) };
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

    /// Writes one packet in `parts`, the first of which is room for the offload header.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let parts = if self.offload {
            parts
        } else {
            parts.get(1..).unwrap_or_default()
        };
        // SAFETY: IoSlice has the layout of iovec, and all parts outlive the call.
        let written =
            unsafe { libc::writev(self.descriptor(), parts.as_ptr().cast(), parts.len() as i32) };
        if written < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
