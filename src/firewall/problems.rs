//! The problems of the firewall that users see: what does not work, why, and what to do.

use std::net::Ipv4Addr;

use super::error::KernelError;
use super::native::PROXY_ARP;
use crate::protocol::local::Problem;

pub(super) fn problem(what: &str, why: impl Into<String>, fix: &str) -> Problem {
    Problem {
        what: what.into(),
        why: why.into(),
        fix: fix.into(),
    }
}

pub(super) fn left_out(what: &str) -> Problem {
    problem(
        &format!("left out of the firewall: {what}"),
        "the rules need plain names and addresses that do not overlap",
        "give the container network another name or subnet",
    )
}

pub(super) fn no_hairpin(error: &KernelError) -> Problem {
    problem(
        "containers may not reach their own mesh names",
        error.to_string(),
        "run meshd as root or with the capability CAP_NET_ADMIN",
    )
}

pub(super) fn no_tables(error: &KernelError, node: Ipv4Addr) -> Problem {
    let fix = match error {
        KernelError::NotInstalled(_) => format!(
            "install nftables (`apt install nftables`, `dnf install nftables`); until then publish ports on the node's address (`ports: [\"{node}:5432:5432\"]`)"
        ),
        KernelError::NotPermitted(_) => {
            "run meshd as root or with the capability CAP_NET_ADMIN, as its unit does".to_owned()
        }
        KernelError::Failed(..) => format!(
            "use a kernel and a program nft with nftables NAT (nftables 0.9.4 or later); until then publish ports on the node's address (`ports: [\"{node}:5432:5432\"]`)"
        ),
    };
    problem(
        "containers have no mesh addresses on this machine",
        error.to_string(),
        &fix,
    )
}

/// `is_guarded` is whether the rules without translation are in place.
pub(super) fn no_tables_v6(error: &KernelError, is_guarded: bool) -> Problem {
    let what = if is_guarded {
        "containers have no IPv6 addresses in the mesh"
    } else {
        "hosts on the local network can send packets with IPv6 addresses of the mesh"
    };
    let fix = "use a kernel with nftables NAT for IPv6";
    problem(what, error.to_string(), fix)
}

/// Forwarding of IPv6 is not turned on by meshd, because a host that forwards ignores router advertisements by default, and may lose
/// its own addresses.
pub(super) fn no_forwarding_v6(error: Option<&KernelError>) -> Problem {
    let why = error.map_or_else(
        || "net.ipv6.conf.all.forwarding is 0".to_owned(),
        ToString::to_string,
    );
    problem(
        "containers are not reached by IPv6: this machine does not forward IPv6 packets",
        why,
        "run `sysctl -w net.ipv6.conf.all.forwarding=1`, and put the setting into a file of /etc/sysctl.d; first set `accept_ra` to 2 for each interface that gets its address from a router",
    )
}

/// Containers with mesh addresses of their own are not reached.
pub(super) fn no_native(error: &KernelError) -> Problem {
    let fix = match error {
        KernelError::Failed(PROXY_ARP, _) => {
            "let meshd write in /proc/sys/net, as its unit does; in a container it cannot: run meshd on the host"
        }
        _ => "restart Docker, so that it makes its bridges again",
    };
    problem(
        "the containers that have mesh addresses of their own cannot be reached",
        error.to_string(),
        fix,
    )
}

/// `mark` is the packet mark that Docker has to accept.
pub(super) fn docker_drops(mark: &str) -> Problem {
    problem(
        "containers cannot be reached by their mesh addresses: Docker drops connections to ports that it did not publish itself",
        "Docker's nftables backend is in use, and it has no chain for the rules of other programs",
        &format!(
            "put \"bridge-accept-fwmark\": \"{mark}/{mark}\" into /etc/docker/daemon.json and restart Docker, or set \"firewall-backend\": \"iptables\" there"
        ),
    )
}

pub(super) fn no_bridge(bridge: &str, node: Ipv4Addr) -> Problem {
    problem(
        &format!("the containers on {bridge} cannot be reached by mesh addresses"),
        "their bridge is not on this machine: the container engine runs without root, in a network of its own",
        &format!(
            "run the engine as root, or publish ports on the node's address (`ports: [\"{node}:5432:5432\"]`)"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_cannot_be_written_is_no_reason_to_restart_docker() {
        let failed = |step| no_native(&KernelError::Failed(step, "no such file".into())).fix;
        assert!(failed(PROXY_ARP).contains("/proc/sys/net"));
        assert!(failed("add a route").contains("restart Docker"));
    }
}
