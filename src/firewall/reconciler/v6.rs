//! Applies the part of the wanted state that is about IPv6.

use super::{DOCKER_TABLE, Work};
use crate::firewall::FirewallState;
use crate::firewall::docker_user::{IP6TABLES, Rule};
use crate::firewall::kernel::Kernel;
use crate::firewall::problems::{docker_drops, no_forwarding_v6, no_tables_v6};
use crate::firewall::ruleset::{MARK, ValidState};
use crate::protocol::local::Problem;

impl<K: Kernel> Work<K> {
    /// Applies the table and the rule for IPv6. Returns whether containers are reached by IPv6.
    pub(super) async fn apply_v6(
        &mut self,
        state: &FirewallState,
        valid: &ValidState,
        problems: &mut Vec<Problem>,
    ) -> bool {
        let Some(v6) = &state.v6 else { return false };
        let docker = if state.bridges.is_empty() {
            None
        } else {
            // A kernel without the family has no table of the engine in it either.
            self.kernel.table("ip6", DOCKER_TABLE).await.ok().flatten()
        };
        let mark = format!("{MARK:#010x}");
        let passes = docker.as_ref().is_none_or(|text| text.contains(&mark));
        let script = valid.table_v6(v6, &state.interface, docker.is_some());
        if let Err(error) = self.table("ip6", script).await {
            let guard = valid.guard_v6(v6, &state.interface);
            let is_guarded = self.table("ip6", guard).await.is_ok();
            problems.push(no_tables_v6(&error, is_guarded));
            return false;
        }
        let has_containers = !v6.mappings.is_empty();
        if has_containers && !passes {
            problems.push(docker_drops(&mark));
        }
        let wanted = Rule {
            prefix: v6.prefix.into(),
            native: false,
        };
        let wanted = Some(wanted).filter(|_| has_containers && !state.bridges.is_empty());
        let is_accepted = self.rule(IP6TABLES, wanted, problems).await;
        if !has_containers {
            return false;
        }
        let forwards = self.kernel.forwards_v6();
        let is_forwarding = matches!(forwards, Ok(true));
        if !is_forwarding {
            problems.push(no_forwarding_v6(forwards.err().as_ref()));
        }
        passes && is_accepted && is_forwarding
    }
}
