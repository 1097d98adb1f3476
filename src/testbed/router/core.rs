//! What happens in the core of a world between two of its routers: UDP is dropped, counted or delayed.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{BATCH, RULES, Router, Way, rules};
use crate::testbed::TestbedError;
use crate::testbed::host::Namespace;

/// Drops UDP in these directions, and in no other ones.
pub(in crate::testbed) fn set_cuts(core: &Namespace, ways: &[Way]) -> Result<(), TestbedError> {
    core.run("nft", RULES, &rules::of_cuts(ways))
}

/// Counts UDP in these directions from now on.
pub(in crate::testbed) fn count(core: &Namespace, ways: &[Way]) -> Result<(), TestbedError> {
    core.run("nft", RULES, &rules::of_counting(ways))
}

/// The number of packets and bytes that were counted.
pub(in crate::testbed) fn counted(core: &Namespace) -> Result<(u64, u64), TestbedError> {
    let listed = core.output("nft", &["list", "counters", "table", "ip", "counting"])?;
    let number = |name: &str| -> Option<u64> {
        let mut words = listed.split_whitespace().skip_while(|word| *word != name);
        words.nth(1)?.parse().ok()
    };
    let strange = || TestbedError::Program("nft".into(), listed.clone());
    number("packets").zip(number("bytes")).ok_or_else(strange)
}

/// Delays what passes between two routers by this time in each direction, until the result is dropped.
pub(in crate::testbed) fn delay<'a>(
    core: &'a Namespace,
    [one, other]: [&Router; 2],
    by: Duration,
) -> Result<Delay<'a>, TestbedError> {
    Delay::begin(core, [(one, other), (other, one)].map(way_of), by)
}

impl Router {
    /// Forgets all translations, as a router does that nobody used for some minutes.
    ///
    /// # Errors
    /// The kernel returns an error.
    pub fn forget(&self) -> Result<(), TestbedError> {
        for namespace in [&self.home, &self.provider] {
            namespace
                .inside(flush_connections)?
                .map_err(|e| TestbedError::Io("flush the connections", e))?;
        }
        Ok(())
    }
}

/// The interface of the core at which packets of the first router arrive, and the address of the second.
fn way_of((from, to): (&Router, &Router)) -> (String, Ipv4Addr) {
    (format!("i{}", from.links.number), to.public_v4())
}

/// `IPCTNL_MSG_CT_DELETE` of `NFNL_SUBSYS_CTNETLINK`: without attributes it deletes all connections.
const DELETE_CONNECTIONS: u16 = 1 << 8 | 2;

fn flush_connections() -> io::Result<()> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let mut request = Vec::new();
    request.extend_from_slice(&20u32.to_ne_bytes());
    request.extend_from_slice(&DELETE_CONNECTIONS.to_ne_bytes());
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    request.extend_from_slice(&flags.to_ne_bytes());
    request.extend_from_slice(&[0; 12]);
    let kernel = NetlinkAddr::new(0, 0);
    sendto(netlink.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
    let mut answer = [0; 128];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let code = answer.get(16..20).filter(|_| length >= 20);
    let code = code.and_then(|bytes| bytes.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Packets between two routers take a way through a device from which a thread reads them, holds them, and writes them back. The kernel
/// need not have the queueing discipline `netem` for this.
#[derive(Debug)]
pub struct Delay<'a> {
    core: &'a Namespace,
    ways: [(String, Ipv4Addr); 2],
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The name of the device.
const DEVICE: &str = "delay";
/// The number of the routing table that leads to it.
const TABLE: &str = "7446";
/// The thread looks so often whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(100);

impl<'a> Delay<'a> {
    fn begin(
        core: &'a Namespace,
        ways: [(String, Ipv4Addr); 2],
        by: Duration,
    ) -> Result<Self, TestbedError> {
        let fault = |e| TestbedError::Io("make a device that delays packets", e);
        let open = || -> io::Result<SyncDevice> {
            let device = DeviceBuilder::new().name(DEVICE).mtu(1500).build_sync()?;
            device.set_nonblocking(true)?;
            // Its packets have sources that are elsewhere.
            let filter = format!("/proc/sys/net/ipv4/conf/{DEVICE}/rp_filter");
            std::fs::write(filter, "0")?;
            Ok(device)
        };
        let device = core.inside(open)?.map_err(fault)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("testbed delay".into())
            .spawn(move || hold(&device, by, &stopped))
            .map_err(fault)?;
        let mut batch = format!("route add default dev {DEVICE} table {TABLE}\n");
        for (from, to) in &ways {
            batch += &format!("rule add iif {from} to {to} lookup {TABLE}\n");
        }
        let delay = Self {
            core,
            ways,
            stop,
            thread: Some(thread),
        };
        core.run("ip", BATCH, &batch)?;
        Ok(delay)
    }
}

impl Drop for Delay<'_> {
    fn drop(&mut self) {
        let mut batch = String::new();
        for (from, to) in &self.ways {
            batch += &format!("rule del iif {from} to {to} lookup {TABLE}\n");
        }
        let _ = self.core.run("ip", BATCH, &batch);
        // What is under way still arrives.
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes each packet of `device` back after this time, until it is to stop and has none left.
fn hold(device: &SyncDevice, by: Duration, stop: &AtomicBool) {
    let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = [0; 2048];
    while !(stop.load(Ordering::Relaxed) && held.is_empty()) {
        let now = Instant::now();
        let first = held
            .front()
            .map(|(at, _)| at.saturating_duration_since(now));
        let wait = first.map_or(STOP_INTERVAL, |wait| wait.min(STOP_INTERVAL));
        let wait = u16::try_from(wait.as_millis()).unwrap_or(u16::MAX);
        let mut ready = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ready, PollTimeout::from(wait));
        let now = Instant::now();
        while let Ok(length) = device.recv(&mut buffer) {
            let packet = buffer.get(..length).unwrap_or_default().to_vec();
            held.push_back((now + by, packet));
        }
        while let Some((_, packet)) = held.pop_front_if(|(at, _)| *at <= now) {
            let _ = device.send(&packet);
        }
    }
}
