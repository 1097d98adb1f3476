//! Ways that lose what says that a packet is too large.

use crate::hosts::Hosts;

/// Mebibytes there and back; `TRANSFER` overrides it.
const SIZE: &str = "20";

#[test]
fn a_transfer_completes_where_icmp_about_sizes_is_dropped() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    let size = std::env::var("TRANSFER").unwrap_or_else(|_| SIZE.into());
    hosts.docker(0, &["network", "create", "project"]);
    hosts.run(0, "app", "project", &[]);
    hosts.serve(1, "web", "bridge", "web");
    hosts.wait_for(0, "web", 1);
    let silence = "nft -f - <<'END'
        table ip silence {
            chain before { type filter hook prerouting priority -400; icmp type destination-unreachable icmp code frag-needed drop; }
            chain out { type filter hook output priority -400; icmp type destination-unreachable icmp code frag-needed drop; }
        }
END";
    for n in [0, 1] {
        hosts.exec(n, &["sh", "-c", silence]);
    }
    let began = std::time::Instant::now();
    let server = "web.svc.mesh:7777";
    let called = hosts.exec(0, &hosts.words("app", &["ask", "bulk", server, &size]));
    println!("{size} MiB there and back in {:?}", began.elapsed());
    assert_eq!(called, hosts.node(0).to_string());
}
