//! Computes the changes to the one rule in the container engine's chains, which accepts translated connections to mesh
//! addresses. Pure. An engine has its chains for IPv4, and perhaps again for IPv6.
//!
//! Engines up to version 26 append a `RETURN` to `DOCKER-USER` whenever a network is created, so the rule has to be the
//! first one.
//!
//! An engine that is restarted with `--live-restore` after all rules were flushed makes its other chains again, but not this one.
//! Then meshd makes the chain as the engine does, and the engine accepts a chain that exists already. The chain `FORWARD` has a jump to
//! it. Rules of `FORWARD` before this jump would drop packets between bridges, so the jump is kept in front of those to the engine's
//! other chains.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};

/// The programs that list and change the rules of the engine, one for each family.
pub(super) const IPTABLES: &str = "iptables";
pub(super) const IP6TABLES: &str = "ip6tables";
/// The engine's chain for the rules of other programs.
pub(super) const CHAIN: &str = "DOCKER-USER";
/// The comment that identifies our rule.
const COMMENT: &str = "meshd";

/// The wanted rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    /// The prefix of the mesh. Its family is that of the rule.
    pub(super) prefix: IpNet,
    /// Whether the rule accepts connections that were not translated, because containers have mesh addresses of their
    /// own.
    pub(super) native: bool,
}

/// The changes to the engine's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Steps {
    /// Whether the listing of the filter table (`iptables -S`) has chains of Docker.
    pub(super) has_docker: bool,
    /// The arguments of `iptables` calls, in the order in which the calls have to run.
    pub(super) calls: Vec<Vec<String>>,
}

impl Rule {
    /// The rule as arguments of `iptables`.
    pub(super) fn words(self) -> Vec<String> {
        let prefix = self.prefix.trunc().to_string();
        let state: &[&str] = if self.native {
            &[]
        } else {
            &["--ctstate", "DNAT"]
        };
        let to = [
            "--ctorigdst",
            &prefix,
            "-m",
            "comment",
            "--comment",
            COMMENT,
        ];
        [&["-m", "conntrack"], state, &to, &["-j", "ACCEPT"]]
            .concat()
            .into_iter()
            .map(ToOwned::to_owned)
            .collect()
    }
}

/// The comment that identifies the rules for networks to which this node routes.
const ROUTE_COMMENT: &str = "meshd-route";

/// Compares the listing with the rules for the networks to which this node routes, and returns the arguments of the `iptables` calls
/// that lead to them. Such a rule accepts both directions of a connection from the mesh. Without the engine's chain nothing drops
/// these connections, so no rule is needed.
pub(super) fn route_calls(listing: &str, prefix: Ipv4Net, routes: &[Ipv4Net]) -> Vec<Vec<String>> {
    if !listing
        .lines()
        .any(|line| line.trim() == format!("-N {CHAIN}"))
    {
        return Vec::new();
    }
    let prefix = prefix.trunc().to_string();
    let mut missing: BTreeSet<String> = routes.iter().map(|net| net.trunc().to_string()).collect();
    let mut calls = Vec::new();
    for words in rules_of_chain(listing) {
        let value = |flag: &str| {
            let mut pairs = words.windows(2);
            let pair = pairs.find(|pair| pair.first() == Some(&flag))?;
            pair.get(1).copied()
        };
        if value("--comment") != Some(ROUTE_COMMENT) {
            continue;
        }
        let is_of_mesh = value("--ctorigsrc") == Some(prefix.as_str());
        let network = value("--ctorigdst").filter(|_| is_of_mesh);
        let is_wanted = network.is_some_and(|network| missing.remove(network));
        if !is_wanted {
            calls.push(deletion(&words));
        }
    }
    calls.extend(missing.into_iter().map(|network| {
        let words = [
            "-I",
            CHAIN,
            "1",
            "-m",
            "conntrack",
            "--ctorigsrc",
            &prefix,
            "--ctorigdst",
            &network,
            "-m",
            "comment",
            "--comment",
            ROUTE_COMMENT,
            "-j",
            "ACCEPT",
        ];
        Vec::from(words.map(str::to_owned))
    }));
    calls
}

/// Compares the listing with the wanted rule, and returns the changes. Without a wanted rule, ours is removed.
pub(super) fn steps(listing: &str, wanted: Option<Rule>) -> Steps {
    let chains: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.strip_prefix("-N "))
        .map(str::trim)
        .collect();
    let has_docker = chains.iter().any(|chain| chain.starts_with("DOCKER"));
    let mut calls = Vec::new();
    if !has_docker {
        return Steps { has_docker, calls };
    }
    if wanted.is_some() {
        if !chains.contains(&CHAIN) {
            calls.push(vec!["-N".to_owned(), CHAIN.to_owned()]);
        }
        calls.extend(jump_first(listing));
    }
    let mut is_present = false;
    let mut after_jump = false;
    for words in rules_of_chain(listing) {
        let has = |flag: &str, value: &str| {
            words
                .windows(2)
                .any(|pair| pair.first() == Some(&flag) && pair.get(1) == Some(&value))
        };
        if has("--comment", COMMENT) {
            let is_right = wanted.is_some_and(|rule| {
                has("--ctorigdst", &rule.prefix.trunc().to_string())
                    && has("--ctstate", "DNAT") != rule.native
                    && has("-j", "ACCEPT")
            });
            if is_right && !after_jump && !is_present {
                is_present = true;
            } else {
                calls.push(deletion(&words));
            }
        } else if let ["-j", _] = words.as_slice() {
            after_jump = true;
        }
    }
    if let Some(rule) = wanted
        && !is_present
    {
        let mut call = vec!["-I".to_owned(), CHAIN.to_owned(), "1".to_owned()];
        call.extend(rule.words());
        calls.push(call);
    }
    Steps { has_docker, calls }
}

/// The rules of [`CHAIN`] in a listing, each as its words. Older programs put some of them in quotes.
fn rules_of_chain(listing: &str) -> impl Iterator<Item = Vec<&str>> {
    let rules = listing.lines().filter_map(|line| {
        let rule = line.strip_prefix("-A ")?.strip_prefix(CHAIN)?;
        rule.strip_prefix(' ')
    });
    rules.map(|rule| {
        let words = rule.split_whitespace();
        words.map(|word| word.trim_matches('"')).collect()
    })
}

/// The call that deletes a rule of [`CHAIN`].
fn deletion(words: &[&str]) -> Vec<String> {
    let call = ["-D", CHAIN];
    let call = call.iter().chain(words);
    call.map(ToString::to_string).collect()
}

/// The calls that put the jump to [`CHAIN`] in front of the jumps to Docker's other chains.
fn jump_first(listing: &str) -> Vec<Vec<String>> {
    let jump = format!("-A FORWARD -j {CHAIN}");
    let mut jumps = listing
        .lines()
        .map(str::trim_end)
        .filter(|line| line.starts_with("-A FORWARD ") && line.contains("-j DOCKER"));
    if jumps.next() == Some(jump.as_str()) {
        return Vec::new();
    }
    let call = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    let is_behind = jumps.any(|line| line == jump);
    let removal = is_behind.then(|| call(&["-D", "FORWARD", "-j", CHAIN]));
    let insertion = call(&["-I", "FORWARD", "1", "-j", CHAIN]);
    removal.into_iter().chain([insertion]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "-A DOCKER-USER -m conntrack --ctstate DNAT --ctorigdst 10.210.0.0/16 -m comment --comment meshd -j ACCEPT";

    fn prefix() -> Option<Rule> {
        let prefix = "10.210.0.0/16".parse().ok()?;
        let native = false;
        Some(Rule { prefix, native })
    }

    fn calls(listing: &str, wanted: Option<Rule>) -> Vec<String> {
        steps(listing, wanted)
            .calls
            .iter()
            .map(|call| call.join(" "))
            .collect()
    }

    #[test]
    fn the_rule_is_put_first_where_there_is_a_chain_for_it() {
        let insert = OURS.replace("-A DOCKER-USER", "-I DOCKER-USER 1");
        let docker = "-P FORWARD DROP\n-N DOCKER\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n";
        let empty = format!("{docker}-A DOCKER-USER -j RETURN\n");
        assert_eq!(calls(&empty, prefix()), std::slice::from_ref(&insert));
        let there = format!("{docker}{OURS}\n-A DOCKER-USER -j RETURN\n");
        assert!(calls(&there, prefix()).is_empty());
        let behind = format!("{docker}-A DOCKER-USER -j RETURN\n{OURS}\n");
        assert_eq!(calls(&behind, prefix()), [OURS.replace("-A", "-D"), insert]);
    }

    #[test]
    fn another_prefix_a_second_copy_and_the_quotes_of_older_programs_are_seen() {
        let docker = "-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n";
        let old = OURS.replace("210", "211");
        let quoted = OURS.replace("--comment meshd", "--comment \"meshd\"");
        let listing = format!("{docker}{quoted}\n{old}\n{OURS}\n");
        assert_eq!(
            calls(&listing, prefix()),
            [old.replace("-A", "-D"), OURS.replace("-A", "-D")]
        );
        assert_eq!(
            calls(&listing, None),
            [
                OURS.replace("-A", "-D"),
                old.replace("-A", "-D"),
                OURS.replace("-A", "-D")
            ]
        );
    }

    #[test]
    fn rules_of_others_are_left_alone_and_no_chain_is_made_without_docker() {
        let others = "-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -s 192.0.2.0/24 -j DROP\n-A DOCKER-USER -m comment --comment meshdx -j ACCEPT\n";
        assert!(calls(others, None).is_empty());
        assert_eq!(calls(others, prefix()).len(), 1);
        let none = steps("-P FORWARD ACCEPT\n-N ufw-user-forward\n", prefix());
        assert_eq!((none.has_docker, none.calls.len()), (false, 0));
    }

    #[test]
    fn the_rule_for_ipv6_has_the_prefix_of_ipv6() {
        let v6 = prefix().map(|rule| Rule {
            prefix: "fd00:1:2::/48".parse().expect("a literal"),
            ..rule
        });
        let ours = OURS.replace("10.210.0.0/16", "fd00:1:2::/48");
        let docker = "-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n";
        let insert = ours.replace("-A DOCKER-USER", "-I DOCKER-USER 1");
        assert_eq!(calls(docker, v6), [insert]);
        assert!(calls(&format!("{docker}{ours}\n"), v6).is_empty());
    }

    #[test]
    fn the_chain_is_made_if_docker_has_only_its_others() {
        let others = "-P FORWARD DROP\n-N DOCKER\n-N DOCKER-FORWARD\n";
        let made = [
            "-N DOCKER-USER".to_owned(),
            "-I FORWARD 1 -j DOCKER-USER".to_owned(),
            OURS.replace("-A DOCKER-USER", "-I DOCKER-USER 1"),
        ];
        assert_eq!(calls(others, prefix()), made);
        assert!(calls(others, None).is_empty());
    }

    #[test]
    fn the_jump_to_the_chain_is_put_in_front_of_dockers_others() {
        let docker = "-N DOCKER\n-N DOCKER-USER\n-A FORWARD -s 192.0.2.0/24 -j ACCEPT\n";
        let other = "-A FORWARD -j DOCKER-ISOLATION-STAGE-1\n";
        let out = "-A FORWARD -o docker0 -j DOCKER\n";
        let jump = "-A FORWARD -j DOCKER-USER\n";
        let (delete, insert) = ("-D FORWARD -j DOCKER-USER", "-I FORWARD 1 -j DOCKER-USER");
        let moved = |jumps: &[&str]| calls(&[docker, &jumps.concat(), OURS].concat(), prefix());
        assert!(moved(&[jump, other, out]).is_empty());
        assert_eq!(moved(&[other, jump, out]), [delete, insert]);
        assert_eq!(moved(&[out, other]), [insert]);
    }

    #[test]
    fn containers_with_mesh_addresses_are_let_through_untranslated() {
        let native = prefix().map(|rule| Rule {
            native: true,
            ..rule
        });
        let untranslated = OURS.replace("--ctstate DNAT ", "");
        let insert = untranslated.replace("-A DOCKER-USER", "-I DOCKER-USER 1");
        let docker = "-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n";
        let translated = format!("{docker}{OURS}\n");
        assert_eq!(
            calls(&translated, native),
            [OURS.replace("-A", "-D"), insert]
        );
        let there = format!("{docker}{untranslated}\n");
        assert!(calls(&there, native).is_empty());
        assert_eq!(calls(&there, prefix()).len(), 2);
    }

    #[test]
    fn networks_to_which_a_node_routes_have_a_rule_each_if_docker_has_its_chain() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("a literal");
        let mesh = net("10.210.0.0/16");
        let (one, other) = (net("192.168.1.0/24"), net("192.168.2.0/24"));
        let calls = |listing: &str, routes: &[Ipv4Net]| -> Vec<String> {
            let calls = route_calls(listing, mesh, routes);
            calls.iter().map(|call| call.join(" ")).collect()
        };
        let rule = |network: &str| {
            format!(
                "-m conntrack --ctorigsrc 10.210.0.0/16 --ctorigdst {network} -m comment --comment meshd-route -j ACCEPT"
            )
        };
        let docker = "-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n";
        assert!(calls("-P FORWARD ACCEPT\n", &[one]).is_empty());
        let insert = format!("-I DOCKER-USER 1 {}", rule("192.168.1.0/24"));
        assert_eq!(calls(docker, &[one]), std::slice::from_ref(&insert));
        let there = format!("{docker}-A DOCKER-USER {}\n", rule("192.168.1.0/24"));
        assert!(calls(&there, &[one]).is_empty());
        let delete = format!("-D DOCKER-USER {}", rule("192.168.1.0/24"));
        assert_eq!(calls(&there, &[]), std::slice::from_ref(&delete));
        let add = format!("-I DOCKER-USER 1 {}", rule("192.168.2.0/24"));
        assert_eq!(calls(&there, &[other]), [delete, add]);
        // The rule for instance addresses is none of these.
        let ours = format!("{docker}{OURS}\n");
        assert_eq!(calls(&ours, &[]), Vec::<String>::new());
        assert_eq!(calls(&ours, &[one]), [insert]);
    }
}
