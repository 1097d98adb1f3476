//! The metrics of how this node finds its own addresses, and of the calls by which nodes meet.

use crate::node::joined::JoinedNode;
use crate::os::metrics::{Kind, MetricsPage};

/// Adds the metrics of STUN and of calls. The values of their labels are few, and the same on every node.
pub(super) fn add(page: &mut MetricsPage, node: &JoinedNode) {
    let stun = node.device.reach.stun.rounds.counts();
    let help = "Requests to STUN servers, repeated ones included.";
    page.counter("stun_requests_total", help, stun.requests);
    let help = "What STUN servers answered: an address that this node does not have, one that it has, or nothing.";
    let answers = [
        ("translated", stun.translated),
        ("own", stun.own),
        ("none", stun.silent),
    ];
    page.counters("stun_answers_total", help, "result", answers);
    let help = "Calls, by which nodes without a path and a common relay meet, by the way on which they passed and by what became of them.";
    let mut family = page.family("calls_total", Kind::Counter, help);
    for (way, result, count) in node.device.asked.calls.log.counts() {
        let labels = [("result", result.as_str()), ("way", way.as_str())];
        family.sample(&labels, count);
    }
}
