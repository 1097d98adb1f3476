//! The compiled form: addresses, classes, and its ends.

use super::*;

fn first(subject: &Subject) -> IpAddr {
    subject.addresses[0]
}

/// What the table says about the first addresses of two subjects.
fn passes(table: &Table, from: &Subject, to: &Subject, asked: Asked) -> bool {
    table.allows(table.class(first(from)), table.class(first(to)), asked)
}

/// The nodes with subjects that have no class, and the number of these subjects.
fn beyond(table: &Table) -> Vec<(&str, usize)> {
    let beyond = table.beyond().iter();
    beyond
        .map(|(node, count)| (node.as_str(), *count))
        .collect()
}

#[test]
fn nothing_passes_by_a_closed_table() {
    let table = Table::closed();
    assert!(!table.allows_everything());
    assert!(!table.allows(Class::OUTSIDE, Class::OUTSIDE, Asked::Icmp));
    assert!(table.ports(Class::OUTSIDE, Class::OUTSIDE).is_empty());
}

#[test]
fn everything_passes_without_a_policy_until_an_owner_narrows() {
    let (a, mut b, c) = (
        node(1, "a", &[]),
        instance(2, "b", &["80"]),
        node(3, "c", &[]),
    );
    assert!(Table::compile(None, &[a.clone(), b.clone()]).allows_everything());
    assert!(
        Table::compile(
            Some(&policy("default = \"allow\"")),
            std::slice::from_ref(&a)
        )
        .allows_everything()
    );
    assert!(!Table::compile(Some(&policy("")), std::slice::from_ref(&a)).allows_everything());
    b.services[0].allow = vec![selector("node:a")];
    let table = Table::compile(None, &[a.clone(), b.clone(), c.clone()]);
    assert!(!table.allows_everything());
    assert!(passes(&table, &a, &b, tcp(80)) && !passes(&table, &c, &b, tcp(80)));
    assert!(passes(&table, &c, &a, tcp(22)));
    // An address of no subject is as it was, but nobody's friend.
    let to = |subject| table.class(first(subject));
    assert!(
        table.allows(Class::OUTSIDE, to(&a), tcp(22))
            && !table.allows(Class::OUTSIDE, to(&b), tcp(80))
    );
}

#[test]
fn a_table_without_an_address_denies_only_what_is_about_it() {
    let (a, b, c) = (
        node(1, "a", &[]),
        instance(2, "b", &["80"]),
        node(3, "c", &[]),
    );
    let all = [a.clone(), b.clone()];
    for table in [
        Table::compile(None, &[]),
        Table::compile(None, &all),
        Table::compile(Some(&rule("*", "*")), &all),
    ] {
        assert!(passes(&table, &a, &b, tcp(80)) || !table.allows_unknown());
        let without = table.without(b.addresses.clone());
        assert!(!without.allows_everything());
        assert!(!passes(&without, &a, &b, tcp(80)) && !passes(&without, &b, &a, tcp(22)));
        let others = |table: &Table| {
            (
                passes(table, &a, &a, tcp(22)),
                passes(table, &c, &a, tcp(22)),
            )
        };
        assert_eq!(others(&without), others(&table));
    }
}

#[test]
fn an_address_of_no_subject_has_no_part_in_any_rule() {
    let a = node(1, "a", &[]);
    let table = Table::compile(Some(&rule("*", "*")), std::slice::from_ref(&a));
    let class = table.class(first(&a));
    assert_eq!(
        table.class("192.0.2.1".parse().expect("an address")),
        Class::OUTSIDE
    );
    assert!(table.allows(class, class, Asked::Other));
    assert!(
        !table.allows(Class::OUTSIDE, class, tcp(1))
            && !table.allows(class, Class::OUTSIDE, tcp(1))
    );
}

#[test]
fn equal_subjects_share_a_class_with_all_their_addresses() {
    let (a, b, c) = (
        instance(1, "a", &["80"]),
        instance(2, "a", &["80"]),
        instance(3, "a", &["81"]),
    );
    let table = Table::compile(None, &[a.clone(), b.clone(), c.clone()]);
    let class = table.class(first(&a));
    let classes = |subjects: &[&Subject]| -> Vec<Class> {
        let addresses = subjects.iter().flat_map(|subject| &subject.addresses);
        addresses.map(|address| table.class(*address)).collect()
    };
    assert_eq!(classes(&[&a, &b]), [class; 4]);
    let other = table.class(first(&c));
    assert_eq!(classes(&[&c]), [other; 2]);
    assert_ne!(class, other);
    assert!(![Class::OUTSIDE, Class::NOBODY].contains(&class));
    assert!(![Class::OUTSIDE, Class::NOBODY].contains(&other));
}

#[test]
fn subjects_of_one_node_at_one_address_are_one_subject_there() {
    let mut host = node(1, "n1", &[]);
    let mut service = instance(1, "db", &["5432"]);
    service.services[0].allow = vec![selector("web")];
    let web = instance(2, "web", &[]);
    let table = Table::compile(
        Some(&rule("*", "*")),
        &[host.clone(), service.clone(), web.clone()],
    );
    host.services = service.services;
    let merged = host;
    for from in [&web, &merged] {
        for asked in [tcp(5432), tcp(22), Asked::Icmp, Asked::Other] {
            let plain = interpret(Some(&rule("*", "*")), from, &merged, asked) == Verdict::Allow;
            assert_eq!(
                passes(&table, from, &merged, asked),
                plain,
                "{asked} from {from}"
            );
        }
    }
}

#[test]
fn an_address_that_two_nodes_claim_is_nobodys() {
    let (a, b, c) = (node(1, "a", &[]), node(1, "b", &[]), node(2, "c", &[]));
    for policy in [Some(rule("*", "*")), Some(rule("node:*", "node:*:22"))] {
        let table = Table::compile(policy.as_ref(), &[a.clone(), b.clone(), c.clone()]);
        assert_eq!(table.class(first(&a)), Class::NOBODY);
        assert!(!passes(&table, &a, &c, tcp(22)) && !passes(&table, &c, &a, tcp(22)));
        assert!(passes(&table, &c, &c, tcp(22)));
    }
}

#[test]
fn subjects_beyond_the_number_of_classes_reach_nothing_and_are_counted() {
    let mut all: Vec<Subject> = (0..=u16::MAX)
        .map(|n| node(n, &format!("n{n}"), &[]))
        .collect();
    all.push(instance(1, "late", &["80"]));
    let table = Table::compile(Some(&rule("*", "*")), &all);
    assert_eq!(beyond(&table), [("n1", 1), ("n65534", 1), ("n65535", 1)]);
    let (early, late) = (&all[65_533], &all[65_534]);
    assert!(passes(&table, &all[0], early, tcp(1)) && !passes(&table, &all[0], late, tcp(1)));
    assert_eq!(table.class(first(late)), Class::NOBODY);
    assert!(!passes(&table, late, &all[0], tcp(1)));
}

#[test]
fn a_member_with_thousands_of_kinds_of_instances_takes_no_classes_of_others() {
    let mut all: Vec<Subject> = (1..3_000)
        .map(|n| instance(n, &format!("s{n}"), &["80"]))
        .collect();
    let late = Subject {
        node: label("n2"),
        ..instance(4_000, "late", &["80"])
    };
    all.push(late.clone());
    // An instance that is like one with a class needs no other one.
    all.push(instance(5_000, "s1", &["80"]));
    let table = Table::compile(Some(&rule("*", "*")), &all);
    assert_eq!(beyond(&table), [("n1", 2_999 - MAX_KINDS)]);
    let (last, next) = (&all[MAX_KINDS - 1], &all[MAX_KINDS]);
    assert!(passes(&table, &late, last, tcp(80)) && passes(&table, last, &late, tcp(80)));
    assert!(!passes(&table, &late, next, tcp(80)) && !passes(&table, next, &late, tcp(80)));
    assert!(passes(&table, &late, &all[3_000], tcp(80)));
}

#[test]
fn one_destination_that_many_rules_open_makes_few_sets() {
    let offers =
        (0..400).map(|n| offered(&format!("s{n}"), &[(2 * n + 1).to_string().as_str()], &[]));
    let hostile = Subject {
        services: offers.collect(),
        ..instance(1, "s", &[])
    };
    let mut text = String::new();
    for n in 0..400 {
        text.push_str(&format!(
            "[[allow]]\nfrom=[\"a\", \"b{n}\"]\nto=[\"s{n}\"]\n"
        ));
    }
    let table = Table::compile(
        Some(&policy(&text)),
        &[hostile.clone(), instance(2, "a", &[])],
    );
    assert!(table.sets.len() <= 410, "{}", table.sets.len());
    let open = table.ports(table.class(addresses(2)[0]), table.class(first(&hostile)));
    assert_eq!(open.ranges(Protocol::Tcp).count(), 400);
}

#[test]
fn the_pairs_of_one_host_are_those_between_which_something_passes() {
    let (a, b, c) = (
        instance(1, "a", &["80"]),
        instance(2, "b", &["81"]),
        instance(3, "c", &["82"]),
    );
    let table = Table::compile(Some(&rule("a", "b")), &[a.clone(), b.clone(), c.clone()]);
    let class = |subject: &Subject| table.class(first(subject));
    let ports: PortSet = [tcp(81), Asked::Icmp, Asked::Other].into_iter().collect();
    assert_eq!(
        table.pairs(&[class(&b), class(&a), class(&c), class(&a)]),
        [(class(&a), class(&b), ports)]
    );
    assert!(table.pairs(&[class(&a), class(&c)]).is_empty());
}

#[test]
fn the_classes_of_the_projects_of_an_owner_are_listed_once() {
    let services = (0..MAX_NARROWED).map(|n| {
        let name = format!("s{n}.p{}", n % 2);
        offered(&name, &["80"], &["same-project"])
    });
    let owner = Subject {
        services: services.collect(),
        ..instance(1, "owner", &[])
    };
    let (near, far) = (instance(2, "near.p1", &[]), instance(3, "far.q", &[]));
    let table = Table::compile(None, &[owner.clone(), near.clone(), far.clone()]);
    assert_eq!(table.narrowing.admitted.len(), 1);
    assert!(passes(&table, &near, &owner, tcp(80)) && !passes(&table, &far, &owner, tcp(80)));
}

#[test]
fn broad_rules_and_narrow_ones_fit_into_few_layers() {
    let subjects: Vec<Subject> = (0..3_000)
        .map(|n| Subject {
            node: label(&format!("n{}", n % 10)),
            ..instance(n, &format!("s{n}.p{}", n % 500), &["80", "metrics=9100"])
        })
        .collect();
    let mut text = String::new();
    for n in 1..=700 {
        text.push_str(&format!(
            "[[allow]]\nfrom=[\"*/s{n}\"]\nto=[\"*/s{}:{n}\"]\n",
            n + 1
        ));
    }
    text.push_str("[[allow]]\nfrom=[\"*\"]\nto=[\"*:icmp\"]\n");
    text.push_str("[[allow]]\nfrom=[\"*/s1\"]\nto=[\"*:metrics\"]\n");
    text.push_str("[[allow]]\nfrom=[\"project:*\"]\nto=[\"same-project\"]\n");
    let policy = policy(&text);
    let table = Table::compile(Some(&policy), &subjects);
    assert!(table.layers.len() <= 2, "{}", table.layers.len());
    let pairs: usize = table.layers.iter().map(|layer| layer.pairs.len()).sum();
    assert!(pairs < 100_000, "{pairs}");
    for (from, to, asked) in [
        (5, 6, tcp(5)),
        (5, 505, tcp(80)),
        (9, 2_000, Asked::Icmp),
        (1, 2_999, tcp(9100)),
        (7, 9, tcp(7)),
    ] {
        let (from, to) = (&subjects[from], &subjects[to]);
        let plain = allows(&policy, from, to, asked);
        assert_eq!(passes(&table, from, to, asked), plain);
    }
}
