//! The network of the engine whose containers have mesh addresses of their own, which the engine itself assigns. It is
//! for software that has to know its own address. This module computes how the network has to be, and how an existing
//! one differs. Pure.
//!
//! The subnet of the network is the whole mesh, so that a container that is also on a second network still answers
//! through this one. The engine assigns addresses from the first half of the node's block. The second half is left for
//! mapped containers. The engine does not translate addresses of this network. Rules of meshd do, so that the
//! container's address is kept inside the mesh.

pub(super) mod keeper;

pub(crate) use keeper::remove_network;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::json;

use super::inspect::{Engine, EngineNetwork, OWNER};
use super::labels::printable;
use crate::protocol::local::Problem;

/// The name of the network.
pub const NAME: &str = "mesh";
/// The name of its bridge device.
pub const BRIDGE: &str = "br-mesh";
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const MTU: &str = "com.docker.network.driver.mtu";
const GATEWAY_MODE: &str = "com.docker.network.bridge.gateway_mode_ipv4";
/// From this version on, Docker drops packets to ports that it did not publish, unless an option of the network
/// disables that.
const FILTERING_VERSION: u32 = 28;
const UNPROTECTED: &str = "nat-unprotected";

/// The first and the second half of a block.
fn halves(block: Ipv4Net) -> (Ipv4Net, Ipv4Net) {
    let mut halves = block.subnets(block.prefix_len().saturating_add(1)).ok();
    let mut next = || halves.as_mut().and_then(Iterator::next).unwrap_or(block);
    (next(), next())
}

/// The wanted properties of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NativePlan {
    /// The IPv4 prefix of the mesh.
    pub prefix: Ipv4Net,
    /// This node's block.
    pub block: Ipv4Net,
    /// The node's address, which is the gateway of the containers.
    pub node: Ipv4Addr,
    /// The MTU of the path to other nodes, in bytes.
    pub mtu: u16,
}

/// What to do about the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The network exists and is right. This is its id.
    Keep(String),
    /// The network has to be created with this request.
    Create(String),
    /// The network of meshd has other properties. It has to be replaced if no container is attached.
    Replace(Unusable),
    /// There cannot be such a network.
    Refuse(Unusable),
}

/// Why there is no usable network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// The reason.
    pub why: String,
    /// The remedy.
    pub fix: String,
}

impl Unusable {
    /// The problem for the status.
    #[must_use]
    pub fn problem(&self) -> Problem {
        Problem {
            what: "no container has a mesh address of its own; they are mapped instead".into(),
            why: self.why.clone(),
            fix: self.fix.clone(),
        }
    }
}

impl NativePlan {
    /// The range from which the engine assigns addresses.
    #[must_use]
    pub fn range(&self) -> Ipv4Net {
        halves(self.block).0
    }

    /// The range for containers that are mapped.
    #[must_use]
    pub fn rest(&self) -> Ipv4Net {
        halves(self.block).1
    }

    /// Whether the engine may have assigned `address` to a container.
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
                "the engine runs rootless, so its networks are in another network namespace",
                "run the engine as root, or set `addressing = \"nat\"` in [docker] of meshd.toml",
            );
        }
        let Some(there) = networks.iter().find(|network| network.name == NAME) else {
            return Step::Create(self.create_request(engine));
        };
        let differences = self.differences(engine, there);
        if differences.is_empty() {
            return Step::Keep(there.id.clone());
        }
        let unusable = Unusable {
            why: format!("the network {NAME} exists, but {}", differences.join("; ")),
            fix: format!(
                "remove the containers on it, then run `docker network rm {NAME}`; meshd creates it again"
            ),
        };
        if there.ours {
            Step::Replace(unusable)
        } else {
            Step::Refuse(unusable)
        }
    }

    fn create_request(&self, engine: &Engine) -> String {
        let mut options = json!({
            BRIDGE_NAME: BRIDGE,
            MASQUERADE: "false",
            MTU: self.mtu.to_string(),
        });
        if filters_by_default(engine) {
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
                    // The engine must not assign the network address of the block, which identifies the block to users.
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
            wrong.push(format!("it assigns addresses outside {}", self.range()));
        }
        if there.gateway != Some(self.node) {
            wrong.push(format!("its gateway is not {}", self.node));
        }
        let option = |name: &str| there.options.get(name).map(String::as_str);
        if option(MASQUERADE) != Some("false") {
            wrong.push("it hides its containers behind the host's address".into());
        }
        if filters_by_default(engine) && option(GATEWAY_MODE) != Some(UNPROTECTED) {
            wrong.push("Docker drops packets to it from other networks".into());
        }
        wrong
    }
}

fn filters_by_default(engine: &Engine) -> bool {
    let major = engine.version.split('.').next().unwrap_or_default();
    major
        .parse()
        .is_ok_and(|major: u32| major >= FILTERING_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::api;

    fn plan() -> NativePlan {
        NativePlan {
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

    /// The network as the engine lists it after it was created.
    fn made(plan: &NativePlan, version: &str) -> EngineNetwork {
        let Step::Create(text) = plan.step(&engine(version), &[]) else {
            panic!("it is not there");
        };
        let mut shown: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        shown["Id"] = "abc".into();
        let list = serde_json::Value::from(vec![shown]).to_string();
        let mut networks = api::networks(list.as_bytes()).expect("a list");
        networks.pop().expect("one")
    }

    #[test]
    fn a_created_network_is_recognized_and_kept() {
        for version in ["20.10.24", "26.1.5", "28.5.2+dfsg", "29.0.0"] {
            let network = made(&plan(), version);
            assert!(network.ours);
            let keep = Step::Keep("abc".into());
            assert_eq!(plan().step(&engine(version), &[network]), keep, "{version}");
        }
    }

    #[test]
    fn only_engines_that_filter_by_default_get_the_option() {
        let has = |version| made(&plan(), version).options.contains_key(GATEWAY_MODE);
        assert!(!has("20.10.24") && !has("27.5.1") && has("28.0.0") && !has("nonsense"));
    }

    #[test]
    fn the_two_halves_of_a_block_are_disjoint_and_exclude_the_node() {
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
    fn our_network_of_another_block_is_replaced_and_one_of_others_is_a_problem() {
        let other = NativePlan {
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
    fn engines_without_support_are_a_problem() {
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
