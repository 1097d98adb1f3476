//! What each word of the language means, by the plain reading.

use super::*;

#[test]
fn a_rule_without_a_port_opens_the_declared_ports_of_an_instance_and_echo() {
    let policy = rule("web", "db");
    let (web, db) = (
        instance(1, "web", &["80"]),
        instance(2, "db", &["5432", "53/udp"]),
    );
    assert!(allows(&policy, &web, &db, tcp(5432)));
    assert!(allows(&policy, &web, &db, udp(53)));
    assert!(allows(&policy, &web, &db, Asked::Icmp));
    assert!(allows(&policy, &web, &db, Asked::Other));
    assert!(!allows(&policy, &web, &db, tcp(22)));
    assert!(!allows(&policy, &web, &db, udp(5432)));
    assert!(!allows(&policy, &db, &web, tcp(80)));
}

#[test]
fn a_rule_with_a_port_opens_this_port_alone() {
    let policy = rule("web", "db:5432");
    let (web, db) = (
        instance(1, "web", &["80"]),
        instance(2, "db", &["5432", "9100"]),
    );
    assert!(allows(&policy, &web, &db, tcp(5432)));
    for asked in [tcp(9100), udp(5432), Asked::Icmp, Asked::Other] {
        assert!(!allows(&policy, &web, &db, asked), "{asked}");
    }
    let undeclared = rule("web", "db:8000-8100/udp");
    assert!(allows(&undeclared, &web, &db, udp(8050)));
    assert!(!allows(&undeclared, &web, &db, udp(8101)));
    let echo = rule("web", "db:icmp");
    assert!(allows(&echo, &web, &db, Asked::Icmp));
    assert!(!allows(&echo, &web, &db, tcp(5432)));
}

#[test]
fn a_port_by_its_name_is_that_of_each_instance() {
    let policy = rule("*", "*:metrics");
    let from = node(9, "m", &[]);
    let a = instance(1, "a", &["80", "metrics=9100"]);
    let b = instance(2, "b", &["metrics=9200/udp"]);
    assert!(allows(&policy, &from, &a, tcp(9100)) && allows(&policy, &from, &b, udp(9200)));
    assert!(!allows(&policy, &from, &a, tcp(80)) && !allows(&policy, &from, &b, tcp(9200)));
}

#[test]
fn a_rule_for_a_node_opens_its_own_sockets_and_none_of_its_instances() {
    let policy = rule("*", "node:n1");
    let (own, web) = (node(1, "n1", &[]), instance(2, "web", &["80"]));
    for asked in [tcp(22), udp(500), Asked::Icmp, Asked::Other] {
        assert!(allows(&policy, &web, &own, asked), "{asked}");
    }
    assert!(!allows(&policy, &own, &web, tcp(80)));
    let port = rule("*", "node:*:9100");
    assert!(allows(&port, &web, &own, tcp(9100)) && !allows(&port, &web, &own, tcp(22)));
}

#[test]
fn a_tag_selects_nodes_and_the_instances_on_them() {
    let policy = rule("tag:ops", "*");
    let ops = node(1, "n1", &["ops"]);
    let tool = Subject {
        tags: vec![label("ops")],
        ..instance(2, "tool", &[])
    };
    let (other, db) = (node(3, "n3", &["db"]), instance(4, "db", &["5432"]));
    for from in [&ops, &tool] {
        assert!(allows(&policy, from, &db, tcp(5432)));
        assert!(allows(&policy, from, &other, tcp(22)));
    }
    assert!(!allows(&policy, &other, &db, tcp(5432)));
}

#[test]
fn a_service_at_the_address_of_a_node_opens_its_ports_and_no_other_socket() {
    let policy = rule("web", "db");
    let web = instance(1, "web", &[]);
    let host = Subject {
        services: vec![offered("db", &["5432"], &[])],
        ..node(2, "n2", &[])
    };
    assert!(allows(&policy, &web, &host, tcp(5432)) && allows(&policy, &web, &host, Asked::Icmp));
    assert!(!allows(&policy, &web, &host, tcp(22)) && !allows(&policy, &web, &host, Asked::Other));
}

#[test]
fn a_fragment_passes_only_if_all_ports_of_the_instance_are_open() {
    let (web, mut db) = (instance(1, "web", &[]), instance(2, "db", &["5432"]));
    let policy = rule("web", "db");
    assert!(allows(&policy, &web, &db, Asked::Other));
    // The same container under its name in the project.
    db.services.push(offered("db.shop", &["5432"], &[]));
    assert!(allows(&policy, &web, &db, Asked::Other));
    db.services.push(offered("admin", &["9000"], &[]));
    assert!(!allows(&policy, &web, &db, Asked::Other));
}

#[test]
fn same_project_is_a_project_that_both_sides_have() {
    let policy = rule("project:*", "same-project");
    let (web, db) = (
        instance(1, "web.shop", &["80"]),
        instance(2, "db.shop", &["5432"]),
    );
    let other = instance(3, "db.blog", &["5432"]);
    let without = instance(4, "db", &["5432"]);
    assert!(allows(&policy, &web, &db, tcp(5432)) && allows(&policy, &db, &web, tcp(80)));
    assert!(!allows(&policy, &web, &other, tcp(5432)));
    assert!(
        !allows(&policy, &web, &without, tcp(5432)) && !allows(&policy, &without, &web, tcp(80))
    );
}

#[test]
fn groups_stand_for_their_members_also_in_groups() {
    let policy = policy(
        "[groups]\nbackend = [\"shop/api\", \"workers\"]\nworkers = [\"shop/worker\"]\n[[allow]]\nfrom = [\"backend\"]\nto = [\"workers:80\"]",
    );
    let (api, worker) = (
        instance(1, "api.shop", &[]),
        instance(2, "worker.shop", &[]),
    );
    assert!(allows(&policy, &api, &worker, tcp(80)) && allows(&policy, &worker, &worker, tcp(80)));
    assert!(!allows(&policy, &worker, &api, tcp(80)));
}

#[test]
fn nothing_is_allowed_by_an_empty_policy_and_everything_without_one() {
    let (a, b) = (node(1, "a", &[]), node(2, "b", &[]));
    assert!(!allows(&policy(""), &a, &b, tcp(22)));
    assert!(allows(&policy("default = \"allow\""), &a, &b, tcp(22)));
    assert_eq!(interpret(None, &a, &b, Asked::Other), Verdict::Allow);
}

#[test]
fn an_owner_narrows_who_reaches_its_ports() {
    let db = Subject {
        services: vec![
            offered("db", &["5432"], &["shop/api", "tag:ops"]),
            offered("metrics", &["9100"], &[]),
        ],
        ..instance(1, "db", &[])
    };
    let (api, web) = (instance(2, "api.shop", &[]), instance(3, "web.shop", &[]));
    let all = rule("*", "*:1-65535");
    for policy in [None, Some(&all)] {
        let allows = |from, asked| interpret(policy, from, &db, asked) == Verdict::Allow;
        assert!(allows(&api, tcp(5432)) && allows(&api, tcp(9100)) && allows(&api, tcp(22)));
        assert!(allows(&web, tcp(9100)));
        // A port that nobody declares belongs to each service.
        assert!(!allows(&web, tcp(5432)) && !allows(&web, tcp(22)));
        assert!(!allows(&web, Asked::Icmp) && !allows(&web, Asked::Other));
    }
    // What the policy does not allow is not opened by the owner.
    assert!(!allows(&rule("*", "db:9100"), &api, &db, tcp(5432)));
}

#[test]
fn an_owner_at_the_address_of_a_node_narrows_its_own_ports_and_fragments() {
    let host = Subject {
        services: vec![offered("db", &["5432"], &["web"])],
        ..node(1, "n1", &[])
    };
    let (web, other) = (instance(2, "web", &[]), instance(3, "other", &[]));
    let allows = |from, asked| interpret(None, from, &host, asked) == Verdict::Allow;
    assert!(allows(&web, tcp(5432)) && !allows(&other, tcp(5432)));
    assert!(allows(&other, tcp(22)) && allows(&other, Asked::Icmp));
    assert!(allows(&web, Asked::Other) && !allows(&other, Asked::Other));
}

#[test]
fn an_owner_may_narrow_to_its_own_project() {
    let db = Subject {
        services: vec![
            offered("db", &["5432"], &["same-project"]),
            offered("db.shop", &["5432"], &["same-project"]),
        ],
        ..instance(1, "db", &[])
    };
    let (api, other) = (instance(2, "api.shop", &[]), instance(3, "api.blog", &[]));
    assert_eq!(interpret(None, &api, &db, tcp(5432)), Verdict::Allow);
    assert_eq!(interpret(None, &other, &db, tcp(5432)), Verdict::Deny);
}

#[test]
fn a_selector_of_a_later_version_narrows_to_nobody() {
    let mut db = instance(1, "db", &["5432"]);
    db.services[0].allow = vec![Selector::Unknown];
    assert_eq!(
        interpret(None, &node(2, "n2", &[]), &db, tcp(5432)),
        Verdict::Deny
    );
    assert!(!Table::compile(None, &[db]).allows_everything());
}

#[test]
fn what_an_owner_lists_beyond_the_bound_admits_nobody() {
    let web = instance(1, "web", &[]);
    let nobody: Vec<String> = (0..MAX_NARROWED).map(|n| format!("s{n}")).collect();
    let mut allow: Vec<&str> = nobody.iter().map(String::as_str).collect();
    allow.push("web");
    let late = Subject {
        services: vec![offered("db", &["80"], &allow)],
        ..instance(2, "db", &[])
    };
    let services = (0..=MAX_NARROWED).map(|n| {
        let port = (100 + n).to_string();
        offered("db", &[&port], &["web"])
    });
    let many = Subject {
        services: services.collect(),
        ..instance(3, "db", &[])
    };
    let table = Table::compile(None, &[web.clone(), late.clone(), many.clone()]);
    let class = |subject: &Subject| table.class(subject.addresses[0]);
    for (to, asked, verdict) in [
        (&late, tcp(80), Verdict::Deny),
        (&many, tcp(100), Verdict::Allow),
        (&many, tcp(115), Verdict::Allow),
        (&many, tcp(116), Verdict::Deny),
        (&many, tcp(99), Verdict::Deny),
    ] {
        assert_eq!(interpret(None, &web, to, asked), verdict, "{asked} of {to}");
        let compiled = table.allows(class(&web), class(to), asked);
        assert_eq!(compiled, verdict == Verdict::Allow, "{asked} of {to}");
    }
}
