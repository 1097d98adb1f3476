//! The tunnels to the other nodes in the report of `meshctl doctor`.

use super::table;
use crate::protocol::local::TunnelCheck;

/// The message for a node that was removed from the mesh. No other check matters then.
pub(super) const REMOVED: &str = "this node was removed from the mesh: no peer accepts its packets; run `meshctl leave`, then `meshctl join` with a new token";

pub(super) fn all_work(tunnels: &[TunnelCheck]) -> bool {
    tunnels.iter().all(|tunnel| tunnel.rtt_ms.is_some())
}

pub(super) fn print(tunnels: &[TunnelCheck]) {
    for tunnel in tunnels {
        for line in lines(tunnel) {
            table::line(&line);
        }
    }
}

fn lines(tunnel: &TunnelCheck) -> Vec<String> {
    let over = tunnel
        .endpoint
        .map_or_else(String::new, |endpoint| format!(" over {endpoint}"));
    let Some(rtt) = tunnel.rtt_ms else {
        let mut lines = vec![format!("tunnel to {}: does not work{over}", tunnel.peer)];
        lines.extend(tunnel.why.iter().map(|why| format!("  why: {why}")));
        lines.extend(tunnel.fix.iter().map(|fix| format!("  fix: {fix}")));
        return lines;
    };
    vec![format!(
        "tunnel to {}: works, answered in {rtt:.1} ms{over}",
        tunnel.peer
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_that_does_not_work_is_shown_with_the_reason_and_the_remedy() {
        let works = TunnelCheck {
            peer: "n2".parse().expect("a label"),
            endpoint: "192.0.2.7:51820".parse().ok(),
            rtt_ms: Some(0.84),
            why: None,
            fix: None,
        };
        let broken = TunnelCheck {
            rtt_ms: None,
            why: Some("it is blocked".into()),
            fix: Some("open it".into()),
            ..works.clone()
        };
        assert_eq!(
            lines(&works),
            ["tunnel to n2: works, answered in 0.8 ms over 192.0.2.7:51820"]
        );
        assert_eq!(
            lines(&broken),
            [
                "tunnel to n2: does not work over 192.0.2.7:51820",
                "  why: it is blocked",
                "  fix: open it"
            ]
        );
        assert!(all_work(std::slice::from_ref(&works)) && !all_work(&[works, broken]));
    }
}
