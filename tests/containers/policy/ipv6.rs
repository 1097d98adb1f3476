//! The policy between containers over IPv6, as over IPv4.

use super::{
    CLIENTS, a_change_ends_flows_to, answers, apply, before_port, denied_neighbours_are_listed,
    dual_shop, hosts_with_lasting_containers, instance_on, nothing_denied_passes,
};
use crate::hosts::Hosts;

fn hosts() -> Option<Hosts> {
    Hosts::joined(2).filter(Hosts::have_ipv6)
}

#[test]
fn only_what_the_policy_allows_passes_over_ipv6_between_containers_of_one_host_and_of_two() {
    let Some(hosts) = hosts() else {
        return;
    };
    dual_shop(&hosts);
    let db = before_port(hosts.wait_for_v6(0, "db").into());
    let ways = [("tcp", db.as_str()), ("tcp6", "db.svc.mesh")];
    for (protocol, server) in ways {
        for client in CLIENTS {
            let answered = answers(&hosts, client, protocol, server);
            assert!(answered, "{server} from {client:?}");
        }
    }

    let tcp = [("web", "db:7777")];
    apply(&hosts, &tcp);
    for client in [(0, "other-0"), (1, "other-1")] {
        hosts.wait_until("the policy is in force", || {
            !answers(&hosts, client, "tcp", &db)
        });
    }
    for (protocol, server) in ways {
        for client in CLIENTS {
            let expected = client.1.starts_with("web");
            let found = answers(&hosts, client, protocol, server);
            assert_eq!(found, expected, "{server} from {client:?}");
        }
    }
    for client in [(0, "web-0"), (1, "web-1")] {
        assert!(!answers(&hosts, client, "udp", &db), "{client:?}");
    }
    // A container reaches itself by its name, and the other direction is not allowed.
    assert!(answers(&hosts, (1, "db"), "tcp6", "db.svc.mesh"));
    for of in [0, 1] {
        let web = before_port(instance_on(&hosts, (1, of), "web", true));
        assert!(!answers(&hosts, (1, "db"), "tcp", &web), "{web}");
    }

    let both = [
        tcp.as_slice(),
        &[("web", "db:7777/udp"), ("node:*", "db:7777")],
    ]
    .concat();
    apply(&hosts, &both);
    for client in [(0, "web-0"), (1, "web-1")] {
        hosts.wait_until("datagrams are allowed", || {
            answers(&hosts, client, "udp", &db)
        });
    }
    for client in CLIENTS {
        let expected = !client.1.starts_with("other");
        assert_eq!(answers(&hosts, client, "tcp", &db), expected, "{client:?}");
    }
}

#[test]
fn what_the_policy_denies_over_ipv6_between_containers_of_one_host_is_listed() {
    let Some(hosts) = hosts() else {
        return;
    };
    dual_shop(&hosts);
    let db = before_port(hosts.wait_for_v6(1, "db").into());
    denied_neighbours_are_listed(&hosts, &db, true);
}

#[test]
fn a_change_of_the_policy_ends_connections_over_ipv6_of_one_host_and_of_two() {
    let Some(hosts) = hosts() else {
        return;
    };
    dual_shop(&hosts);
    let db = before_port(hosts.wait_for_v6(0, "db").into());
    a_change_ends_flows_to(&hosts, &db);
}

#[test]
fn no_denied_packet_passes_over_ipv6_while_rules_are_flushed_and_each_daemon_restarts() {
    let Some(mut hosts) = hosts_with_lasting_containers().filter(Hosts::have_ipv6) else {
        return;
    };
    dual_shop(&hosts);
    let db = hosts.wait_for_v6(1, "db");
    nothing_denied_passes(&mut hosts, db.into());
}
