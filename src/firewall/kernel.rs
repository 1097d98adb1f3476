//! The firewall's access to the machine, behind a trait: the programs `nft`, `iptables` and `ip6tables`, netlink, and sysctls.

use std::io;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use rtnetlink::Handle;
use rtnetlink::sys::{SocketAddr, protocols};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::conntrack::StaleConnections;
use super::error::KernelError;
use super::native;
use super::netfilter::{self, Affected, affected};
use super::ports::{self, Ports};
use super::ruleset::TABLE;
use super::{FirewallState, Native};
use crate::os::netlink::{Message, Subscription, messages};
use crate::os::tasks::{AbortOnDrop, Tasks};

/// A program that takes longer is treated as hanging.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(10);
/// `NFNLGRP_NFTABLES`: the multicast group with notifications of all changes to nftables.
const NOTIFICATIONS: u32 = 7;
/// `NLMSG_DONE` ends a dump. `NLMSG_ERROR` has the result of a request.
const DONE: u16 = 3;
const ERROR: u16 = 2;
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARDING_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// The machine, or its replacement in tests.
pub(super) trait Kernel: Send + 'static {
    /// Runs an nftables script as one transaction.
    fn nft(&mut self, script: &str) -> impl Future<Output = Result<(), KernelError>> + Send;
    /// Returns a table as nftables lists it. None if there is no such table.
    fn table(
        &mut self,
        family: &str,
        name: &str,
    ) -> impl Future<Output = Result<Option<String>, KernelError>> + Send;
    /// The number of transactions of nftables so far, modulo 2^32. The kernel skips 0. None if it cannot be read.
    fn generation(&mut self) -> Option<u32>;
    /// Returns the filter table of a family as `program -S` lists it.
    fn filter(
        &mut self,
        program: &'static str,
    ) -> impl Future<Output = Result<String, KernelError>> + Send;
    /// Runs `iptables` or `ip6tables` once.
    fn iptables(
        &mut self,
        program: &'static str,
        call: &[String],
    ) -> impl Future<Output = Result<(), KernelError>> + Send;
    /// Finds the bridges and the bridge ports of the containers.
    fn ports(
        &mut self,
        state: &FirewallState,
    ) -> impl Future<Output = Result<Ports, KernelError>> + Send;
    /// Sets the hairpin mode of a bridge port.
    fn set_hairpin(
        &mut self,
        index: u32,
        on: bool,
    ) -> impl Future<Output = Result<(), KernelError>> + Send;
    /// Adds the route to a bridge whose containers have mesh addresses. `node` is the source address of the host's own
    /// packets.
    fn add_route(
        &mut self,
        native: &Native,
        node: Ipv4Addr,
    ) -> impl Future<Output = Result<(), KernelError>> + Send;
    /// Removes this route.
    fn remove_route(
        &mut self,
        native: &Native,
    ) -> impl Future<Output = Result<(), KernelError>> + Send;
    /// Whether the machine forwards IPv4.
    fn forwards(&mut self) -> Result<bool, KernelError>;
    /// Sets whether the machine forwards IPv4.
    fn set_forwards(&mut self, on: bool) -> Result<(), KernelError>;
    /// Whether the machine forwards IPv6.
    fn forwards_v6(&mut self) -> Result<bool, KernelError>;
    /// Deletes tracked connections and returns their number.
    fn delete_connections(
        &mut self,
        stale: StaleConnections,
    ) -> impl Future<Output = Result<usize, KernelError>> + Send;
    /// Returns when another program has changed a table of meshd or of the engine. Never returns if there are no
    /// notifications.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
    /// Why there are no notifications, if there are none: changes by other programs are then noticed late.
    fn notifications_error(&self) -> Option<String>;
}

pub(super) struct Machine {
    netlink: Option<(Handle, AbortOnDrop)>,
    notifications: Subscription,
}

impl Machine {
    pub(super) fn open() -> Self {
        let netlink = rtnetlink::new_connection().ok();
        Self {
            netlink: netlink.map(|(connection, handle, _)| {
                let connection = Tasks::current().spawn_finite("firewall netlink", connection);
                (handle, connection.abort_on_drop())
            }),
            notifications: Subscription::open(protocols::NETLINK_NETFILTER, &[NOTIFICATIONS]),
        }
    }

    fn handle(&self) -> Result<&Handle, KernelError> {
        match &self.netlink {
            Some((handle, _)) => Ok(handle),
            None => Err(KernelError::Failed("netlink", "no socket".into())),
        }
    }
}

impl Kernel for Machine {
    async fn nft(&mut self, script: &str) -> Result<(), KernelError> {
        run("nft", &["-f", "-"], script).await.map(drop)
    }

    async fn table(&mut self, family: &str, name: &str) -> Result<Option<String>, KernelError> {
        match run("nft", &["list", "table", family, name], "").await {
            Ok(text) => Ok(Some(text)),
            Err(KernelError::Failed(_, why)) if why.contains("No such file") => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn generation(&mut self) -> Option<u32> {
        generation().ok()
    }

    async fn filter(&mut self, program: &'static str) -> Result<String, KernelError> {
        run(program, &["-w", "5", "-S"], "").await
    }

    async fn iptables(
        &mut self,
        program: &'static str,
        call: &[String],
    ) -> Result<(), KernelError> {
        let arguments: Vec<&str> = ["-w", "5"]
            .into_iter()
            .chain(call.iter().map(String::as_str))
            .collect();
        run(program, &arguments, "").await.map(drop)
    }

    async fn ports(&mut self, state: &FirewallState) -> Result<Ports, KernelError> {
        let found = ports::find(self.handle()?, state).await;
        found.map_err(|error| KernelError::Failed("list the bridges", error.to_string()))
    }

    async fn set_hairpin(&mut self, index: u32, on: bool) -> Result<(), KernelError> {
        let set = ports::set_hairpin(self.handle()?, index, on).await;
        set.map_err(|error| KernelError::Failed("set a port of a bridge", error.to_string()))
    }

    async fn add_route(&mut self, native: &Native, node: Ipv4Addr) -> Result<(), KernelError> {
        native::add_route(self.handle()?, native, node).await
    }

    async fn remove_route(&mut self, native: &Native) -> Result<(), KernelError> {
        native::remove_route(self.handle()?, native).await
    }

    fn forwards(&mut self) -> Result<bool, KernelError> {
        is_on(FORWARDING)
    }

    fn set_forwards(&mut self, on: bool) -> Result<(), KernelError> {
        std::fs::write(FORWARDING, if on { "1" } else { "0" })
            .map_err(|error| KernelError::Failed(FORWARDING, error.to_string()))
    }

    fn forwards_v6(&mut self) -> Result<bool, KernelError> {
        is_on(FORWARDING_V6)
    }

    async fn delete_connections(&mut self, stale: StaleConnections) -> Result<usize, KernelError> {
        // A busy machine has millions of connections, so the dump runs on a thread of its own.
        let deleted = tokio::task::spawn_blocking(move || delete_stale(&stale)).await;
        deleted
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|error| KernelError::Failed("connection tracking", error.to_string()))
    }

    async fn changed(&mut self) {
        let concerns = |datagram: &[u8]| affected(datagram, TABLE) != Affected::Nothing;
        self.notifications.next(concerns).await;
    }

    fn notifications_error(&self) -> Option<String> {
        self.notifications.error()
    }
}

/// Whether a sysctl is not 0.
fn is_on(path: &'static str) -> Result<bool, KernelError> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| KernelError::Failed(path, error.to_string()))?;
    Ok(text.trim() != "0")
}

/// Runs a program until it exits, and returns its output.
async fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, KernelError> {
    let failed = |error: &dyn std::fmt::Display| KernelError::Failed(program, error.to_string());
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => KernelError::NotInstalled(program),
            io::ErrorKind::PermissionDenied => KernelError::NotPermitted(program),
            _ => failed(&error),
        })?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // A program that exits before it reads all of its input reports the reason itself.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(PROGRAM_TIMEOUT, work).await {
        Ok(output) => output.map_err(|error| failed(&error))?,
        Err(_) => {
            let limit = PROGRAM_TIMEOUT.as_secs();
            return Err(failed(&format!("it did not end within {limit} s")));
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if text.contains("not permitted") || text.contains("Permission denied") {
        return Err(KernelError::NotPermitted(program));
    }
    let first = text.lines().find(|line| !line.trim().is_empty());
    Err(failed(&first.unwrap_or("it failed without a message")))
}

/// Opens a socket for requests to netfilter.
fn netfilter_socket() -> io::Result<rtnetlink::sys::Socket> {
    let mut socket = rtnetlink::sys::Socket::new(protocols::NETLINK_NETFILTER)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn generation() -> io::Result<u32> {
    let socket = netfilter_socket()?;
    socket.send(&netfilter::get_generation(), 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    netfilter::generation(&datagram).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn delete_stale(stale: &StaleConnections) -> io::Result<usize> {
    let socket = netfilter_socket()?;
    socket.send(&stale.dump(), 0)?;
    let mut deletions = Vec::new();
    'dump: loop {
        let (datagram, _) = socket.recv_from_full()?;
        for Message { kind, body, .. } in messages(&datagram) {
            match kind {
                DONE => break 'dump,
                ERROR => outcome(body)?,
                _ => deletions.extend(stale.deletion(body, 2)),
            }
        }
    }
    let mut count = 0;
    for deletion in &deletions {
        socket.send(deletion, 0)?;
        let (datagram, _) = socket.recv_from_full()?;
        for Message { kind, body, .. } in messages(&datagram) {
            // A connection that ended in the meantime is no error.
            if kind == ERROR && outcome(body).is_ok() {
                count += 1;
            }
        }
    }
    Ok(count)
}

/// The error in a reply. `Ok` if its error number is 0.
fn outcome(body: &[u8]) -> io::Result<()> {
    let number = body.get(..4).and_then(|bytes| bytes.try_into().ok());
    match number.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
