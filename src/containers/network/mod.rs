//! The network of the engine whose containers have mesh addresses of their own, as the engine itself gives them out: for
//! software that must know its own address. What it is to be like, and what differs in one that is there. Pure.
//!
//! It has the whole mesh as its subnet, so that a container on a second network still answers by this one, and gives
//! addresses out of the first half of the node's block; the second half is left for those that are mapped. The engine
//! translates nothing for it: that is done by rules of our own, which keep the container's address inside the mesh.

pub(super) mod keeper;

pub(crate) use keeper::take_away;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::json;

use super::inspect::{Engine, EngineNetwork, OWNER};
use super::labels::printable;
use crate::protocol::local::Problem;

/// Its name.
pub const NAME: &str = "mesh";
/// The bridge it is.
pub const BRIDGE: &str = "br-mesh";
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const MTU: &str = "com.docker.network.driver.mtu";
const GATEWAY_MODE: &str = "com.docker.network.bridge.gateway_mode_ipv4";
/// From this version on Docker drops what it did not publish itself, unless the network says otherwise.
const PROTECTIVE: u32 = 28;
const UNPROTECTED: &str = "nat-unprotected";

/// The first and the second half of a block.
fn halves(block: Ipv4Net) -> (Ipv4Net, Ipv4Net) {
    let mut halves = block.subnets(block.prefix_len().saturating_add(1)).ok();
    let mut next = || halves.as_mut().and_then(Iterator::next).unwrap_or(block);
    (next(), next())
}

/// What the network is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// All IPv4 addresses of the mesh.
    pub prefix: Ipv4Net,
    /// This node's block.
    pub block: Ipv4Net,
    /// The node's address, by which containers on it leave the mesh.
    pub node: Ipv4Addr,
    /// Octets that the way to other nodes carries.
    pub mtu: u16,
}

/// What there is to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// It is there, with this id.
    Keep(String),
    /// It is to be made: what the engine is asked.
    Make(String),
    /// Ours, of another time: to be made again if nothing is on it.
    Replace(Unusable),
    /// There can be none.
    Refuse(Unusable),
}

/// Why there is no such network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// What is in the way.
    pub why: String,
    /// What to do about it.
    pub fix: String,
}

impl Unusable {
    /// As people are told.
    #[must_use]
    pub fn problem(&self) -> Problem {
        Problem {
            what: "no container has a mesh address of its own; they are mapped instead".into(),
            why: self.why.clone(),
            fix: self.fix.clone(),
        }
    }
}

impl Plan {
    /// The addresses that the engine gives out.
    #[must_use]
    pub fn range(&self) -> Ipv4Net {
        halves(self.block).0
    }

    /// The addresses left for containers that are mapped.
    #[must_use]
    pub fn rest(&self) -> Ipv4Net {
        halves(self.block).1
    }

    /// Whether a container may have `address`: one that the engine gives out, and not the node's.
    #[must_use]
    pub fn is_own(&self, address: Ipv4Addr) -> bool {
        let range = self.range();
        range.contains(&address) && address != range.network() && address != self.node
    }

    pub(super) fn step(&self, engine: &Engine, networks: &[EngineNetwork]) -> Step {
        let refuse = |why: &str, fix: &str| {
            Step::Refuse(Unusable {
                why: why.into(),
                fix: fix.into(),
            })
        };
        if engine.podman {
            return refuse(
                "Podman hides the containers of every bridge behind the host's address",
                "use Docker, or set `addressing = \"nat\"` in [docker] of meshd.toml",
            );
        }
        if engine.rootless {
            return refuse(
                "the engine runs rootless: its networks are not those of this host",
                "run the engine as root, or set `addressing = \"nat\"` in [docker] of meshd.toml",
            );
        }
        let Some(there) = networks.iter().find(|network| network.name == NAME) else {
            return Step::Make(self.making(engine));
        };
        let differences = self.differences(engine, there);
        if differences.is_empty() {
            return Step::Keep(there.id.clone());
        }
        let unusable = Unusable {
            why: format!(
                "the network {NAME} is there, but {}",
                differences.join("; ")
            ),
            fix: format!(
                "remove the containers on it, then `docker network rm {NAME}`: meshd makes it anew"
            ),
        };
        if there.ours {
            Step::Replace(unusable)
        } else {
            Step::Refuse(unusable)
        }
    }

    fn making(&self, engine: &Engine) -> String {
        let mut options = json!({
            BRIDGE_NAME: BRIDGE,
            MASQUERADE: "false",
            MTU: self.mtu.to_string(),
        });
        if is_protective(engine) {
            options[GATEWAY_MODE] = UNPROTECTED.into();
        }
        let (owner, value) = OWNER;
        let text = json!({
            "Name": NAME,
            "CheckDuplicate": true,
            "Driver": "bridge",
            "IPAM": {
                "Driver": "default",
                "Config": [{
                    "Subnet": self.prefix.to_string(),
                    "IPRange": self.range().to_string(),
                    "Gateway": self.node.to_string(),
                    // To the engine it is an address like any other; to people it is the block.
                    "AuxiliaryAddresses": {"block": self.block.network().to_string()},
                }],
            },
            "Options": options,
            "Labels": {owner: value},
        });
        text.to_string()
    }

    fn differences(&self, engine: &Engine, there: &EngineNetwork) -> Vec<String> {
        let mut wrong = Vec::new();
        if there.driver != "bridge" {
            wrong.push(format!("its driver is {}", printable(&there.driver)));
        }
        if there.internal {
            wrong.push("it is internal".into());
        }
        if there.bridge.as_deref() != Some(BRIDGE) {
            wrong.push(format!("its bridge is not called {BRIDGE}"));
        }
        if there.subnets != [self.prefix] {
            let subnets: Vec<String> = there.subnets.iter().map(ToString::to_string).collect();
            let subnets = subnets.join(", ");
            wrong.push(format!("its subnet is {subnets} and not {}", self.prefix));
        }
        if there.range != Some(self.range()) {
            wrong.push(format!(
                "it gives out other addresses than {}",
                self.range()
            ));
        }
        if there.gateway != Some(self.node) {
            wrong.push(format!("its gateway is not {}", self.node));
        }
        let option = |name: &str| there.options.get(name).map(String::as_str);
        if option(MASQUERADE) != Some("false") {
            wrong.push("it hides its containers behind the host's address".into());
        }
        if is_protective(engine) && option(GATEWAY_MODE) != Some(UNPROTECTED) {
            wrong.push("Docker drops what comes to it from elsewhere".into());
        }
        wrong
    }
}

fn is_protective(engine: &Engine) -> bool {
    let major = engine.version.split('.').next().unwrap_or_default();
    major.parse().is_ok_and(|major: u32| major >= PROTECTIVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::api;

    fn plan() -> Plan {
        Plan {
            prefix: "10.210.0.0/16".parse().expect("a literal"),
            block: "10.210.5.0/24".parse().expect("a literal"),
            node: "10.210.5.1".parse().expect("a literal"),
            mtu: 1420,
        }
    }

    fn engine(version: &str) -> Engine {
        Engine {
            version: version.into(),
            ..Engine::default()
        }
    }

    /// The network as the engine shows it after it was asked to make it.
    fn made(plan: &Plan, version: &str) -> EngineNetwork {
        let Step::Make(text) = plan.step(&engine(version), &[]) else {
            panic!("it is not there");
        };
        let mut shown: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        shown["Id"] = "abc".into();
        let list = serde_json::Value::from(vec![shown]).to_string();
        let mut networks = api::networks(list.as_bytes()).expect("a list");
        networks.pop().expect("one")
    }

    #[test]
    fn what_was_made_is_kept_and_ours() {
        for version in ["20.10.24", "26.1.5", "28.5.2+dfsg", "29.0.0"] {
            let network = made(&plan(), version);
            assert!(network.ours);
            let keep = Step::Keep("abc".into());
            assert_eq!(plan().step(&engine(version), &[network]), keep, "{version}");
        }
    }

    #[test]
    fn only_engines_that_protect_networks_are_told_not_to() {
        let has = |version| made(&plan(), version).options.contains_key(GATEWAY_MODE);
        assert!(!has("20.10.24") && !has("27.5.1") && has("28.0.0") && !has("nonsense"));
    }

    #[test]
    fn the_two_halves_of_a_block_do_not_meet_and_the_node_is_in_neither() {
        let plan = plan();
        assert_eq!(plan.range().to_string(), "10.210.5.0/25");
        assert_eq!(plan.rest().to_string(), "10.210.5.128/25");
        let own = |text: &str| plan.is_own(text.parse().expect("a literal"));
        assert!(own("10.210.5.2") && own("10.210.5.127"));
        assert!(
            !own("10.210.5.0") && !own("10.210.5.1") && !own("10.210.5.128") && !own("10.210.6.2")
        );
    }

    #[test]
    fn ours_of_another_block_is_replaced_and_one_of_somebody_else_is_named() {
        let other = Plan {
            block: "10.210.6.0/24".parse().expect("a literal"),
            node: "10.210.6.1".parse().expect("a literal"),
            ..plan()
        };
        let mut network = made(&other, "26.1.5");
        let Step::Replace(unusable) = plan().step(&engine("26.1.5"), &[network.clone()]) else {
            panic!("it is of another block");
        };
        assert!(unusable.why.contains("10.210.5.0/25"), "{}", unusable.why);
        network.ours = false;
        network.subnets = vec!["172.30.0.0/16".parse().expect("a literal")];
        network.options.clear();
        network.bridge = Some("br-0123".into());
        let Step::Refuse(unusable) = plan().step(&engine("28.5.2"), &[network]) else {
            panic!("it is somebody else's");
        };
        for part in ["172.30.0.0/16", "br-mesh", "gateway", "hides", "drops"] {
            assert!(unusable.why.contains(part), "{part}: {}", unusable.why);
        }
    }

    #[test]
    fn an_engine_that_was_upgraded_is_noticed() {
        let network = made(&plan(), "26.1.5");
        assert!(matches!(
            plan().step(&engine("28.5.2"), &[network]),
            Step::Replace(_)
        ));
    }

    #[test]
    fn engines_that_cannot_do_it_are_refused() {
        let podman = Engine {
            podman: true,
            ..engine("5.8.6")
        };
        let rootless = Engine {
            rootless: true,
            ..engine("28.5.2")
        };
        for engine in [podman, rootless] {
            assert!(matches!(plan().step(&engine, &[]), Step::Refuse(_)));
        }
    }
}
