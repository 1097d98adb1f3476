//! What the firewall does to the machine, behind a trait: the programs `nft` and `iptables`, netlink, one sysctl.

use std::io;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use rtnetlink::Handle;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::conntrack::{self, Gone};
use super::native;
use super::netfilter::{Touched, messages, touched};
use super::ports::{self, Ports};
use super::refused::Refused;
use super::ruleset::TABLE;
use super::{Native, Wiring};
use crate::os::tasks::{AbortOnDrop, Tasks};

/// A program that takes longer hangs.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(10);
/// `NFNLGRP_NFTABLES`: notifications of every change to nftables.
const NOTIFICATIONS: u32 = 7;
/// Ends a dump (`NLMSG_DONE`), and tells how a request went (`NLMSG_ERROR`).
const DONE: u16 = 3;
const ERROR: u16 = 2;
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// The machine, or what stands for it in tests.
pub(super) trait Kernel: Send + 'static {
    /// Carries out an nftables script, whole or not at all.
    fn nft(&mut self, script: &str) -> impl Future<Output = Result<(), Refused>> + Send;
    /// A table as nftables lists it, without counters; nothing if it is not there.
    fn table(
        &mut self,
        family: &str,
        name: &str,
    ) -> impl Future<Output = Result<Option<String>, Refused>> + Send;
    /// The filter table of IPv4 as `iptables -S` lists it.
    fn filter(&mut self) -> impl Future<Output = Result<String, Refused>> + Send;
    /// One call of `iptables`.
    fn iptables(&mut self, call: &[String]) -> impl Future<Output = Result<(), Refused>> + Send;
    /// Looks for bridges and the containers' ports of them.
    fn ports(&mut self, wiring: &Wiring) -> impl Future<Output = Result<Ports, Refused>> + Send;
    /// Sets whether a port turns packets around.
    fn set_hairpin(
        &mut self,
        index: u32,
        on: bool,
    ) -> impl Future<Output = Result<(), Refused>> + Send;
    /// Leads the mesh to a bridge whose containers have addresses of it; `node` is the source of the host's packets.
    fn lead(
        &mut self,
        native: &Native,
        node: Ipv4Addr,
    ) -> impl Future<Output = Result<(), Refused>> + Send;
    /// No longer does that.
    fn lead_away(&mut self, native: &Native) -> impl Future<Output = Result<(), Refused>> + Send;
    /// Whether the machine forwards IPv4.
    fn forwards(&mut self) -> Result<bool, Refused>;
    /// Sets that.
    fn set_forwards(&mut self, on: bool) -> Result<(), Refused>;
    /// Ends connections; gives how many.
    fn forget(&mut self, gone: Gone) -> impl Future<Output = Result<usize, Refused>> + Send;
    /// Returns when somebody has changed a table of ours or the engine's. Never returns if that cannot be known.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
    /// Why changes by others are noticed late, if they are.
    fn blind(&self) -> Option<String>;
}

/// This machine.
pub(super) struct Machine {
    netlink: Option<(Handle, AbortOnDrop)>,
    notifications: io::Result<TokioSocket>,
}

impl Machine {
    pub(super) fn open() -> Self {
        let netlink = rtnetlink::new_connection().ok();
        Self {
            netlink: netlink.map(|(connection, handle, _)| {
                let connection = Tasks::current().spawn_finite("firewall netlink", connection);
                (handle, connection.abort_on_drop())
            }),
            notifications: subscribe(),
        }
    }

    fn handle(&self) -> Result<&Handle, Refused> {
        match &self.netlink {
            Some((handle, _)) => Ok(handle),
            None => Err(Refused::Said("netlink", "no socket".into())),
        }
    }
}

impl Kernel for Machine {
    async fn nft(&mut self, script: &str) -> Result<(), Refused> {
        run("nft", &["-f", "-"], script).await.map(drop)
    }

    async fn table(&mut self, family: &str, name: &str) -> Result<Option<String>, Refused> {
        match run("nft", &["-s", "list", "table", family, name], "").await {
            Ok(text) => Ok(Some(text)),
            Err(Refused::Said(_, why)) if why.contains("No such file") => Ok(None),
            Err(refused) => Err(refused),
        }
    }

    async fn filter(&mut self) -> Result<String, Refused> {
        run("iptables", &["-w", "5", "-S"], "").await
    }

    async fn iptables(&mut self, call: &[String]) -> Result<(), Refused> {
        let arguments: Vec<&str> = ["-w", "5"]
            .into_iter()
            .chain(call.iter().map(String::as_str))
            .collect();
        run("iptables", &arguments, "").await.map(drop)
    }

    async fn ports(&mut self, wiring: &Wiring) -> Result<Ports, Refused> {
        let found = ports::find(self.handle()?, wiring).await;
        found.map_err(|error| Refused::Said("list the bridges", error.to_string()))
    }

    async fn set_hairpin(&mut self, index: u32, on: bool) -> Result<(), Refused> {
        let set = ports::set_hairpin(self.handle()?, index, on).await;
        set.map_err(|error| Refused::Said("set a port of a bridge", error.to_string()))
    }

    async fn lead(&mut self, native: &Native, node: Ipv4Addr) -> Result<(), Refused> {
        native::lead(self.handle()?, native, node).await
    }

    async fn lead_away(&mut self, native: &Native) -> Result<(), Refused> {
        native::lead_away(self.handle()?, native).await
    }

    fn forwards(&mut self) -> Result<bool, Refused> {
        let text = std::fs::read_to_string(FORWARDING);
        let text = text.map_err(|error| Refused::Said(FORWARDING, error.to_string()))?;
        Ok(text.trim() != "0")
    }

    fn set_forwards(&mut self, on: bool) -> Result<(), Refused> {
        std::fs::write(FORWARDING, if on { "1" } else { "0" })
            .map_err(|error| Refused::Said(FORWARDING, error.to_string()))
    }

    async fn forget(&mut self, gone: Gone) -> Result<usize, Refused> {
        // A busy machine has very many connections; going through them must not hold up anything else.
        let forgotten = tokio::task::spawn_blocking(move || forget(&gone)).await;
        match forgotten {
            Ok(Ok(count)) => Ok(count),
            Ok(Err(error)) => Err(Refused::Said("connection tracking", error.to_string())),
            Err(error) => Err(Refused::Said("connection tracking", error.to_string())),
        }
    }

    async fn changed(&mut self) {
        loop {
            let Ok(socket) = &mut self.notifications else {
                return std::future::pending().await;
            };
            match socket.recv_from_full().await {
                Ok((datagram, _)) => {
                    if touched(&datagram, TABLE) != Touched::Nothing {
                        return;
                    }
                }
                // More came than there was room for: it may have been about us.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return,
                Err(error) => self.notifications = Err(error),
            }
        }
    }

    fn blind(&self) -> Option<String> {
        self.notifications.as_ref().err().map(ToString::to_string)
    }
}

fn subscribe() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocols::NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(NOTIFICATIONS)?;
    Ok(socket)
}

/// Runs a program to its end; gives what it printed.
async fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<String, Refused> {
    let said = |error: &dyn std::fmt::Display| Refused::Said(program, error.to_string());
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Refused::NoProgram(program),
            io::ErrorKind::PermissionDenied => Refused::NoRights(program),
            _ => said(&error),
        })?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // One that ends early says why on its own.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(PROGRAM_TIMEOUT, work).await {
        Ok(output) => output.map_err(|error| said(&error))?,
        Err(_) => return Err(said(&"it hangs")),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if text.contains("not permitted") || text.contains("Permission denied") {
        return Err(Refused::NoRights(program));
    }
    let first = text.lines().find(|line| !line.trim().is_empty());
    Err(said(&first.unwrap_or("it failed and did not say why")))
}

fn forget(gone: &Gone) -> io::Result<usize> {
    let mut socket = rtnetlink::sys::Socket::new(protocols::NETLINK_NETFILTER)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&conntrack::dump(), 0)?;
    let mut deletions = Vec::new();
    'dump: loop {
        let (datagram, _) = socket.recv_from_full()?;
        for (kind, _, body) in messages(&datagram) {
            match kind {
                DONE => break 'dump,
                ERROR => outcome(body)?,
                _ => deletions.extend(gone.deletion(body, 2)),
            }
        }
    }
    let mut count = 0;
    for deletion in &deletions {
        socket.send(deletion, 0)?;
        let (datagram, _) = socket.recv_from_full()?;
        for (kind, _, body) in messages(&datagram) {
            // One that ended by itself meanwhile is no fault.
            if kind == ERROR && outcome(body).is_ok() {
                count += 1;
            }
        }
    }
    Ok(count)
}

/// The error number in an answer, as an error unless it is none.
fn outcome(body: &[u8]) -> io::Result<()> {
    let number = body.get(..4).and_then(|octets| octets.try_into().ok());
    match number.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
