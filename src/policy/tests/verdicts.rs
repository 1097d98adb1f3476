//! Explanations, differences and tests in policies.

use super::*;

fn subjects() -> Vec<Subject> {
    vec![
        instance(1, "web.shop", &["80"]),
        instance(2, "api.shop", &["8080"]),
        instance(3, "db", &["5432", "metrics=9100"]),
        node(4, "n1", &["ops"]),
    ]
}

const POLICY: &str = "
[[allow]]
from = [\"shop/api\"]
to = [\"db:5432\"]
[[allow]]
from = [\"tag:ops\"]
to = [\"*:metrics\", \"shop/api\"]
";

#[test]
fn an_explanation_names_the_rule_or_what_the_nearest_one_lacks() {
    let policy = policy(POLICY);
    let all = subjects();
    let (web, api, db, ops) = (&all[0], &all[1], &all[2], &all[3]);
    let said = |from, to, asked| {
        let explanation = explain(Some(&policy), from, to, asked);
        assert_eq!(
            explanation.verdict,
            interpret(Some(&policy), from, to, asked)
        );
        (explanation.line, explanation.to_string())
    };
    assert_eq!(
        said(api, db, tcp(5432)),
        (
            Some(3),
            "the rule in line 3 allows shop/api on n1 to reach 5432/tcp of db on n1".to_owned()
        )
    );
    assert_eq!(
        said(api, db, tcp(22)),
        (
            Some(3),
            "no rule allows it; the rule in line 3 allows shop/api on n1 to reach db on n1, but not at 22/tcp".to_owned()
        )
    );
    assert_eq!(
        said(web, db, tcp(5432)),
        (Some(3), "no rule allows it; the rule in line 3 opens 5432/tcp of db on n1, but not to shop/web on n1".to_owned())
    );
    assert_eq!(
        said(web, api, tcp(22)),
        (
            Some(6),
            "no rule allows it; the rule in line 6 is about shop/api on n1, but neither about shop/web on n1 nor about 22/tcp".to_owned()
        )
    );
    assert_eq!(
        said(api, ops, tcp(22)),
        (
            Some(3),
            "no rule allows it; the rule in line 3 is about shop/api on n1, but not about node n1"
                .to_owned()
        ),
    );
    let nothing = explain(Some(&super::policy("")), web, db, tcp(1));
    assert_eq!((nothing.line, nothing.verdict), (None, Verdict::Deny));
    assert_eq!(
        explain(None, web, db, tcp(1)).to_string(),
        "there is no policy, so everything is allowed"
    );
}

#[test]
fn an_explanation_names_the_owner_who_refuses() {
    let mut db = instance(3, "db", &["5432"]);
    db.services[0].allow = vec![selector("tag:ops"), selector("web")];
    let explanation = explain(
        Some(&policy(POLICY)),
        &instance(2, "api.shop", &[]),
        &db,
        tcp(5432),
    );
    assert_eq!(explanation.verdict, Verdict::Deny);
    assert_eq!(
        explanation.to_string(),
        "the rule in line 3 allows shop/api on n1 to reach 5432/tcp of db on n1, but `mesh.allow` of db lets only tag:ops, web pass, and shop/api on n1 is none of them"
    );
}

fn failures(tests: &str, subjects: &[Subject]) -> Vec<String> {
    let policy = policy(&format!("{POLICY}{tests}"));
    run_tests(&policy, subjects)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn test(from: &str, to: &str, is: &str) -> String {
    format!("[[test]]\nfrom = \"{from}\"\nto = \"{to}\"\nis = \"{is}\"\n")
}

#[test]
fn tests_that_hold_are_silent_with_and_without_a_mesh() {
    let tests = [
        test("shop/api", "db:5432", "allow"),
        test("shop/web", "db:5432", "deny"),
        test("tag:ops", "db:metrics", "allow"),
        test("project:shop", "node:*", "deny"),
        test("*", "node:n1:22", "deny"),
        test("shop/web", "*:icmp", "deny"),
    ]
    .concat();
    assert_eq!(failures(&tests, &subjects()), Vec::<String>::new());
    assert_eq!(failures(&tests, &[]), Vec::<String>::new());
}

#[test]
fn a_test_that_fails_names_its_line_and_one_pair() {
    assert_eq!(
        failures(&test("shop/api", "db:5432", "deny"), &subjects()),
        [
            "line 9: shop/api on n1 reaches 5432 of db on n1: the rule in line 3 allows shop/api on n1 to reach 5432/tcp of db on n1"
        ]
    );
    assert_eq!(
        failures(&test("shop/api", "db", "allow"), &subjects()),
        [
            "line 9: shop/api on n1 does not reach 9100 of db on n1: no rule allows it; the rule in line 3 allows shop/api on n1 to reach db on n1, but not at 9100/tcp"
        ]
    );
    // A range is allowed only if all of it is, and denied only if nothing of it is.
    assert_eq!(
        failures(&test("shop/api", "db:5400-5500", "allow"), &subjects()).len(),
        1
    );
    assert_eq!(
        failures(&test("shop/api", "db:5400-5500", "deny"), &subjects()).len(),
        1
    );
}

#[test]
fn a_subject_that_is_made_up_belongs_to_one_side_of_one_test() {
    let tests = [
        test("web", "db:5432", "allow"),
        test("web", "db:metrics", "allow"),
        test("db", "db:5433", "allow"),
        test("web", "shop/*:80", "deny"),
    ];
    let policy = policy(&format!(
        "[[allow]]\nfrom = [\"web\", \"db\"]\nto = [\"db\"]\n{}",
        tests.concat()
    ));
    assert_eq!(run_tests(&policy, &[]), []);
}

#[test]
fn tests_of_an_author_who_may_mean_harm_are_run_up_to_a_bound() {
    let of = |tests: Vec<String>| policy(&format!("{POLICY}{}", tests.concat()));
    let most = of(vec![test("shop/api", "db:5432", "deny"); 1_000]);
    let failures = run_tests(&most, &subjects());
    assert_eq!(failures.len(), 1_000);
    assert_eq!(run_tests_bounded(&most, &subjects()), Ok(failures));
    let more = of(vec![test("shop/api", "db:5432", "deny"); 1_001]);
    assert_eq!(run_tests_bounded(&more, &subjects()), Err(TestsTooLong));

    let wide = of(vec![test("*", "*:1", "deny")]);
    let subject = |n: u16| Subject {
        node: label(&format!("n{}", n % 5)),
        ..instance(n, &format!("s{n}"), &[])
    };
    let large: Vec<Subject> = (1..=4_500).map(subject).collect();
    assert_eq!(run_tests_bounded(&wide, &large), Err(TestsTooLong));
    assert_eq!(run_tests_bounded(&wide, &large[..100]), Ok(Vec::new()));
}

#[test]
fn a_test_without_a_port_needs_an_instance_that_declares_one() {
    assert_eq!(
        failures(&test("web", "cache", "deny"), &subjects()),
        [
            "line 9: no port of cache is known, because the mesh does not have it; name a port in the test"
        ]
    );
    assert_eq!(
        failures(&test("web", "shop/web:metrics", "deny"), &subjects()),
        ["line 9: shop/web declares no port `metrics`"]
    );
}

#[test]
fn a_test_sees_what_an_owner_refuses() {
    let mut all = subjects();
    all[2].services[0].allow = vec![selector("web")];
    assert_eq!(
        failures(&test("shop/api", "db:5432", "allow"), &all).len(),
        1
    );
}

#[test]
fn a_difference_lists_what_opens_and_what_closes() {
    let all = subjects();
    let new = policy(&POLICY.replace("db:5432", "db:5433"));
    let changes = diff(Some(&policy(POLICY)), Some(&new), &all);
    assert_eq!(
        changes,
        [Change {
            from: vec![1],
            to: vec![2],
            added: PortSet::of(tcp(5433)),
            removed: PortSet::of(tcp(5432)),
        }]
    );
    assert_eq!(diff(Some(&new), Some(&new), &all), []);
    let first = diff(None, Some(&super::policy("")), &all);
    assert_eq!(first.len(), 1);
    assert!(first[0].removed.is_everything() && first[0].added.is_empty());
    assert_eq!((first[0].from.len(), first[0].to.len()), (4, 4));
}

#[test]
fn a_selector_that_selects_nobody_is_named_with_the_nearest_word() {
    let policy = policy(
        "[groups]\nbackend = [\"shop/apii\", \"shop/web\"]\n[[allow]]\nfrom = [\"backnd\", \"project:*\"]\nto = [\"same-project\", \"db:80\", \"tag:*\", \"node:elsewhere\"]",
    );
    let said: Vec<String> = unmatched(&policy, &subjects())
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        said,
        [
            "line 3: `shop/apii` selects nobody in the mesh; did you mean `shop/api`?",
            "line 4: `backnd` selects nobody in the mesh; did you mean `backend`?",
            "line 4: `node:elsewhere` selects nobody in the mesh",
        ]
    );
}

#[test]
fn a_guest_is_selected_by_its_name_and_its_tags_and_not_as_the_node_that_is_its_door() {
    let (anna, bert) = (guest(5, "anna", &["ops"]), guest(6, "bert", &[]));
    let db = instance(3, "db", &["5432"]);
    let all = [anna.clone(), bert.clone(), db.clone(), node(1, "n1", &[])];
    for (from, who) in [
        ("guest:anna", [true, false]),
        ("guest:*", [true, true]),
        ("tag:ops", [true, false]),
        ("node:n1", [false, false]),
        ("node:*", [false, false]),
        ("*", [true, true]),
    ] {
        let policy = policy(&format!("[[allow]]\nfrom = [\"{from}\"]\nto = [\"db\"]\n"));
        let table = Table::compile(Some(&policy), &all);
        for (subject, expected) in [&anna, &bert].into_iter().zip(who) {
            let verdict = interpret(Some(&policy), subject, &db, tcp(5432));
            assert_eq!(verdict == Verdict::Allow, expected, "{from} {subject}");
            let class = |subject: &Subject| table.class(subject.addresses[0]);
            let by_table = table.allows(class(subject), class(&db), tcp(5432));
            assert_eq!(by_table, expected, "{from} {subject}");
        }
    }
    assert_eq!(anna.to_string(), "guest anna");
}

/// The network 192.168.1.0/24 behind these nodes.
fn network(prefix: &str, gateways: &[&str]) -> Subject {
    Subject {
        addresses: Vec::new(),
        is_node: false,
        network: Some(Network {
            prefix: prefix.parse().expect("a literal"),
            gateways: gateways.iter().map(|name| label(name)).collect(),
        }),
        ..node(0, gateways.first().copied().unwrap_or("nas"), &[])
    }
}

#[test]
fn a_network_is_reached_by_rules_for_its_routes_only() {
    let source = node(1, "laptop", &["ops"]);
    let lan = network("192.168.1.0/24", &["nas", "nas-2"]);
    let allows = |from: &str, to: &str, asked| {
        let policy = rule(from, to);
        let table = Table::compile(Some(&policy), &[source.clone(), lan.clone()]);
        let class = |address: &str| table.class(address.parse().expect("a literal"));
        let by_table = table.allows(
            table.class(source.addresses[0]),
            class("192.168.1.7"),
            asked,
        );
        let by_text = interpret(Some(&policy), &source, &lan, asked) == Verdict::Allow;
        assert_eq!(by_table, by_text, "{from} to {to}");
        assert_eq!(class("192.168.2.7"), Class::OUTSIDE);
        by_text
    };
    for to in [
        "route:nas:443",
        "route:nas-2:443",
        "route:*:443",
        "route:nas",
    ] {
        assert!(allows("tag:ops", to, tcp(443)), "{to}");
    }
    assert!(allows("*", "route:nas", Asked::Icmp) && allows("*", "route:nas", Asked::Other));
    for to in [
        "*:443",
        "node:nas:443",
        "node:*:443",
        "tag:*:443",
        "route:other:443",
    ] {
        assert!(!allows("tag:ops", to, tcp(443)), "{to}");
    }
    assert!(!allows("tag:ops", "route:nas:443", tcp(80)));
}

#[test]
fn hosts_of_a_network_reach_nobody_unless_a_rule_names_them_as_a_source() {
    let (lan, web) = (
        network("192.168.1.0/24", &["nas"]),
        instance(2, "web", &["80"]),
    );
    let allows = |from: &str| {
        let policy = rule(from, "web");
        let table = Table::compile(Some(&policy), &[lan.clone(), web.clone()]);
        let from = table.class("192.168.1.7".parse().expect("a literal"));
        table.allows(from, table.class(web.addresses[0]), tcp(80))
    };
    assert!(!allows("*") && !allows("node:nas") && !allows("route:other"));
    assert!(allows("route:nas"));
}

#[test]
fn an_address_is_in_the_network_with_the_longest_prefix() {
    let source = node(1, "laptop", &[]);
    let subjects = [
        source.clone(),
        network("192.168.0.0/16", &["wide"]),
        network("192.168.1.0/24", &["narrow"]),
    ];
    let table = Table::compile(Some(&rule("*", "route:wide:80")), &subjects);
    let from = table.class(source.addresses[0]);
    let allows = |to: &str| {
        let to = table.class(to.parse().expect("a literal"));
        table.allows(from, to, tcp(80))
    };
    assert!(allows("192.168.2.7") && !allows("192.168.1.7") && !allows("192.169.0.1"));
}
