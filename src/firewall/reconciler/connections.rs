//! Deletes the tracked connections that a change of the wanted state made stale.

use super::Work;
use crate::firewall::conntrack::StaleConnections;
use crate::firewall::kernel::Kernel;
use crate::firewall::problems::problem;
use crate::firewall::ruleset::ValidState;
use crate::protocol::local::Problem;

impl<K: Kernel> Work<K> {
    /// Deletes the connections that are `stale` since the last change, which was to the state `now`, and those that could not be deleted
    /// before.
    pub(super) async fn delete_connections(
        &mut self,
        stale: Option<StaleConnections>,
        now: &ValidState,
        problems: &mut Vec<Problem>,
    ) {
        let earlier = self.applied.undeleted.take();
        let earlier = earlier.and_then(|earlier| earlier.after(now));
        let stale = match (stale, earlier) {
            (Some(stale), Some(earlier)) => stale.with_earlier(earlier),
            (Some(stale), None) | (None, Some(stale)) => stale,
            (None, None) => return,
        };
        if let Err(error) = self.kernel.delete_connections(stale.clone()).await {
            self.applied.undeleted = Some(stale);
            problems.push(problem(
                "connections to removed containers continue until they time out, and connections that the policy denies pass whenever another program removes meshd's rules",
                error.to_string(),
                "load the kernel module nf_conntrack_netlink",
            ));
        }
    }
}
