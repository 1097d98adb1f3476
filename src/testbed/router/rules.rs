//! The nftables rules of routers.

use std::net::Ipv4Addr;

use super::{Fault, Nat, Way};

/// The rules of a router whose outer address is `own`.
pub(super) fn of(nat: Nat, own: Ipv4Addr) -> String {
    match nat {
        Nat::Plain | Nat::Cgnat => [filter(true, "", ""), masquerade("wan", "masquerade")].concat(),
        Nat::PlainOpen => [filter(false, "", ""), masquerade("wan", "masquerade")].concat(),
        Nat::Symmetric => {
            let random = "masquerade fully-random";
            [filter(true, "", ""), masquerade("wan", random)].concat()
        }
        Nat::UdpBlocked => {
            let drop = "meta l4proto udp drop";
            [filter(true, drop, ""), masquerade("wan", "masquerade")].concat()
        }
        Nat::Cone => {
            let mapped = "iifname \"wan\" ct status dnat accept";
            [filter(true, "", mapped), one_port(own, false)].concat()
        }
        Nat::Restricted => [filter(true, "", ""), one_port(own, false)].concat(),
        Nat::Hairpin => [filter(true, "", ""), one_port(own, true)].concat(),
        Nat::Firewall6 => {
            let v4 = masquerade("wan", "masquerade");
            [&filter(true, "", ""), v4.as_str(), FIREWALL6].concat()
        }
    }
}

/// The rules of a provider that shares its address among its customers.
pub(super) fn of_carrier() -> String {
    let filter = "\
table ip filter {
  chain input {
    type filter hook input priority filter
    ct state established,related accept
    iifname \"core\" drop
  }
}
";
    [filter, &masquerade("core", "masquerade")].concat()
}

/// The chains that miniupnpd fills, and the rule that lets through what it maps.
pub(super) const MAPPINGS: &str = "\
table inet mappings {
  chain forwarded {
  }
  chain before {
    type nat hook prerouting priority dstnat
  }
  chain after {
    type nat hook postrouting priority srcnat - 1
  }
}
insert rule ip filter forwarded iifname wan ct status dnat accept
";

/// The rules that replace those of the fault before.
pub(super) fn of_fault(fault: Option<Fault>) -> String {
    let rule = match fault {
        None => String::new(),
        Some(Fault::DropUdp) => "meta l4proto udp drop".to_owned(),
        Some(Fault::LoseInward(percent)) => lossy("wan", percent),
        Some(Fault::LoseOutward(percent)) => lossy("lan", percent),
    };
    replaced(
        "fault",
        &format!(
            "  chain lossy {{
    type filter hook forward priority filter - 5
    {rule}
  }}
"
        ),
    )
}

/// The rules of the core that drop UDP in these directions.
pub(super) fn of_cuts(ways: &[Way]) -> String {
    forwarded("cuts", "", ways, "drop")
}

/// The rules of the core that count UDP in these directions.
pub(super) fn of_counting(ways: &[Way]) -> String {
    let counter = "  counter counted {\n  }\n";
    forwarded("counting", counter, ways, "counter name counted")
}

fn forwarded(table: &str, first: &str, ways: &[Way], action: &str) -> String {
    let rules = ways
        .iter()
        .map(|(from, to)| format!("    ip saddr {from} ip daddr {to} meta l4proto udp {action}\n"));
    let rules: String = rules.collect();
    let chain = format!(
        "{first}  chain forwarded {{
    type filter hook forward priority filter - 5
{rules}  }}
"
    );
    replaced(table, &chain)
}

/// The rules that let packets out to this address alone.
pub(super) fn of_only_way_out(address: Ipv4Addr) -> String {
    replaced(
        "way_out",
        &format!(
            "  chain forwarded {{
    type filter hook forward priority filter - 5
    iifname \"lan\" ip daddr != {address} drop
  }}
"
        ),
    )
}

fn lossy(from: &str, percent: u8) -> String {
    // nft refuses a comparison that always holds.
    let chance = match percent {
        100.. => String::new(),
        _ => format!("numgen random mod 100 < {percent}"),
    };
    format!("iifname \"{from}\" meta l4proto udp {chance} drop")
}

/// The rules that give new translations at the interface `outside` ports that the turns before did not give.
pub(super) fn of_rebinding(outside: &str, turn: u8) -> String {
    let first = 20_000 + u32::from(turn) * 100;
    let last = first + 99;
    replaced(
        "rebinding",
        &format!(
            "  chain after {{
    type nat hook postrouting priority srcnat - 5
    oifname \"{outside}\" meta l4proto udp masquerade to :{first}-{last}
  }}
"
        ),
    )
}

/// A table that replaces the one of the same name, if there is one.
fn replaced(table: &str, chains: &str) -> String {
    format!("table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n{chains}}}\n")
}

/// Drops what nobody asked for: what is sent to hosts always, what is sent to the router itself if it is `closed`. `first`
/// and `mapped` are rules for forwarded packets before all others, and before the last one.
fn filter(closed: bool, first: &str, mapped: &str) -> String {
    let unasked = if closed { "iifname \"wan\" drop" } else { "" };
    format!(
        "table ip filter {{
  chain input {{
    type filter hook input priority filter
    ct state established,related accept
    {unasked}
  }}
  chain forwarded {{
    type filter hook forward priority filter
    {first}
    ct state established,related accept
    {mapped}
    iifname \"wan\" drop
  }}
}}
"
    )
}

fn masquerade(outside: &str, translate: &str) -> String {
    format!(
        "table ip nat {{
  chain after {{
    type nat hook postrouting priority srcnat
    oifname \"{outside}\" {translate}
  }}
}}
"
    )
}

/// One port for all peers: a port leads back to the host that used it first. With `hairpin` also from the own network, whose
/// hosts then see each other at the outer address.
fn one_port(own: Ipv4Addr, hairpin: bool) -> String {
    let (inner_before, inner_after) = if hairpin {
        (
            format!("iifname \"lan\" ip daddr {own} dnat to udp dport map @ports"),
            format!(
                "iifname \"lan\" oifname \"lan\" ip protocol udp update @ports {{ udp sport : ip saddr . udp sport }}
    iifname \"lan\" oifname \"lan\" snat to {own}"
            ),
        )
    } else {
        (String::new(), String::new())
    };
    format!(
        "table ip nat {{
  map ports {{
    type inet_service : ipv4_addr . inet_service
    flags dynamic
    size 65535
  }}
  chain before {{
    type nat hook prerouting priority dstnat
    iifname \"wan\" dnat to udp dport map @ports
    {inner_before}
  }}
  chain after {{
    type nat hook postrouting priority srcnat
    oifname \"wan\" ip protocol udp update @ports {{ udp sport : ip saddr . udp sport }}
    oifname \"wan\" snat to {own}
    {inner_after}
  }}
}}
"
    )
}

/// Lets IPv6 packets in that a host asked for, and ICMPv6 (RFC 4890).
const FIREWALL6: &str = "\
table ip6 filter {
  chain forwarded {
    type filter hook forward priority filter
    ct state established,related accept
    iifname \"wan\" meta l4proto ipv6-icmp accept
    iifname \"wan\" drop
  }
}
";
