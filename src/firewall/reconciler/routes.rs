//! Applies the part of the wanted state that is about networks to which this node routes.

use ipnet::Ipv4Net;

use super::{NO_TABLE, Work};
use crate::firewall::FirewallState;
use crate::firewall::docker_user::{self, IPTABLES};
use crate::firewall::error::KernelError;
use crate::firewall::kernel::Kernel;
use crate::firewall::problems::problem;
use crate::protocol::local::Problem;

impl<K: Kernel> Work<K> {
    /// Applies the rules in the engine's chain for the networks to which this node routes.
    pub(super) async fn route_rules(&mut self, state: &FirewallState, problems: &mut Vec<Problem>) {
        let routes = &state.outside.routes;
        // A meshd that was killed has left its rules, and what it routed to may not be permitted any more. Without an engine there is no
        // chain, and a look at it would load modules of the kernel.
        let may_have_left = self.applied.state.is_none() && !state.bridges.is_empty();
        if routes.is_empty() && self.applied.routed.is_none() && !may_have_left {
            return;
        }
        match self.set_route_rules(state.prefix, routes).await {
            // Without the program there are no rules that it made.
            Ok(()) | Err(KernelError::NotInstalled(_)) => {}
            // Nor are there any in a kernel without the table.
            Err(KernelError::Failed(_, why)) if why.contains(NO_TABLE) => {}
            Err(error) if routes.is_empty() => {
                tracing::debug!(%error, "cannot look for rules of networks to which this node routed");
            }
            Err(error) => problems.push(problem(
                "the networks to which this node routes cannot be reached",
                error.to_string(),
                "run meshd as root or with the capability CAP_NET_ADMIN; the legacy iptables program needs CAP_NET_RAW too",
            )),
        }
    }

    pub(super) async fn set_route_rules(
        &mut self,
        prefix: Ipv4Net,
        routes: &[Ipv4Net],
    ) -> Result<(), KernelError> {
        let listing = self.kernel.filter(IPTABLES).await?;
        for call in docker_user::route_calls(&listing, prefix, routes) {
            self.kernel.iptables(IPTABLES, &call).await?;
        }
        self.applied.routed = (!routes.is_empty()).then_some(prefix);
        Ok(())
    }
}
