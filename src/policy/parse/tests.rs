use super::*;
use crate::model::{Label, ServiceName};
use crate::policy::subject::NodeFacts;

/// The policy of the design, with each key of the language.
const WHOLE: &str = r#"
language = 1
default = "deny"
strict = false

[groups]
backend = ["shop/api", "shop/worker"]
ops = ["tag:ops"]
all = ["backend", "ops", "node:*"]

[[serve]]
names = ["db", "shop/*"]
by = ["tag:shop"]

[[allow]]
from = ["backend"]
to = ["db:5432"]

[[allow]]
from = ["tag:monitor"]
to = ["*:metrics", "node:*:9100"]

[[allow]]
from = ["project:*"]
to = ["same-project"]

[[relay]]
offer = ["tag:public"]

[[test]]
from = "shop/web"
to = "db:5432"
is = "deny"
"#;

/// Parses `rest` after the line `language = 1`, so that its first line is the second one.
fn errors(rest: &str) -> Vec<String> {
    let errors = Policy::check(&format!("language = 1\n{rest}")).expect_err(rest);
    errors.iter().map(ToString::to_string).collect()
}

fn error(rest: &str) -> String {
    let mut errors = errors(rest);
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

fn policy(rest: &str) -> Policy {
    Policy::parse(&format!("language = 1\n{rest}")).expect("a policy")
}

#[test]
fn a_policy_with_every_key_is_read() {
    let policy = Policy::parse(WHOLE).expect("a policy");
    assert_eq!(policy.text(), WHOLE);
    assert_eq!(policy.language(), 1);
    assert_eq!(
        policy
            .rules
            .iter()
            .map(|rule| rule.line)
            .collect::<Vec<_>>(),
        [15, 19, 23]
    );
    assert_eq!(
        policy
            .tests
            .iter()
            .map(|test| test.line)
            .collect::<Vec<_>>(),
        [30]
    );
    let groups = policy.groups.iter();
    let groups: Vec<(&str, usize, usize)> = groups
        .map(|group| (group.name.as_str(), group.line, group.members.len()))
        .collect();
    assert_eq!(groups, [("all", 9, 4), ("backend", 7, 2), ("ops", 8, 1)]);
}

#[test]
fn the_shortest_policy_denies_everything() {
    let shortest = policy("");
    assert!(!shortest.default_allow && shortest.rules.is_empty());
    assert!(policy("default = \"allow\"").default_allow);
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_right_one() {
    assert_eq!(
        error("defualt = \"deny\""),
        "line 2, column 1: unknown key `defualt`; did you mean `default`?"
    );
    assert_eq!(
        error("[[allow]]\nfrom = [\"a\"]\nto = [\"b\"]\nport = [\"80\"]"),
        "line 5, column 1: unknown key `port` in `[[allow]]`; the keys here are `from`, `to`"
    );
    assert_eq!(
        error("[[serve]]\nnames = [\"a\"]\nby = [\"*\"]\nstrict = true"),
        "line 5, column 1: unknown key `strict` in `[[serve]]`; `strict` stands at the top, before the first `[...]`"
    );
    assert_eq!(
        error("[[allow]]\n\"fr\u{43e}m\" = [\"a\"]\nfrom = [\"a\"]\nto = [\"b\"]"),
        "line 3, column 1: unknown key `fr\u{43e}m` in `[[allow]]`; did you mean `from`?"
    );
}

#[test]
fn a_key_that_is_missing_or_of_another_kind_is_an_error() {
    assert_eq!(
        error("[[allow]]\nfrom = [\"a\"]"),
        "line 2, column 1: this `[[allow]]` lacks `to`"
    );
    assert_eq!(
        error("[[allow]]\nfrom = \"a\"\nto = [\"b\"]"),
        "line 3, column 8: `from` is a list; write [\"a\"]"
    );
    assert_eq!(
        error("[allow]\nfrom = [\"a\"]\nto = [\"b\"]"),
        "line 2, column 1: `allow` is a list of tables; write `[[allow]]`"
    );
    assert_eq!(
        error("[[allow]]\nfrom = []\nto = [\"b\"]"),
        "line 3, column 8: `from` is empty, so it names nobody; name one at least"
    );
    assert_eq!(
        error("[[allow]]\nfrom = [1]\nto = [\"b\"]"),
        "line 3, column 9: `from` is a list of texts; this is a number"
    );
    assert_eq!(
        error("default = \"maybe\""),
        "line 2, column 11: `default` is \"deny\" or \"allow\""
    );
    assert_eq!(
        error("strict = \"yes\""),
        "line 2, column 10: `strict` is true or false, not a text"
    );
    assert_eq!(
        error("groups = [\"a\"]"),
        "line 2, column 10: `groups` is a table, not a list; write `[groups]`"
    );
}

#[test]
fn a_wrong_word_in_a_rule_is_named_with_its_place() {
    let to = |word: &str| {
        error(&format!(
            "[[allow]]\nfrom = [\"a\"]\nto = [\"ok\", \"{word}\"]"
        ))
    };
    assert_eq!(
        to("db:90-80"),
        "line 4, column 13: the range `90-80` goes backwards; write `80-90`"
    );
    assert_eq!(
        to("tags:ops"),
        "line 4, column 13: `tags:` begins no selector; did you mean `tag:`? there are `tag:`, `node:`, `project:`, `guest:` and `route:`"
    );
    assert_eq!(
        to("db:70000"),
        "line 4, column 13: `70000` is no port; ports are 1 to 65535"
    );
    assert!(to("d\u{432}:80").contains("U+0432"));
    let from = |word: &str| error(&format!("[[allow]]\nfrom = [\"{word}\"]\nto = [\"b\"]"));
    assert_eq!(
        from("db:5432"),
        "line 3, column 9: `db:5432` has a port; ports stand in `to` only"
    );
    assert_eq!(
        from("tag:ops:22"),
        "line 3, column 9: `tag:ops:22` has a port; ports stand in `to` only"
    );
    assert_eq!(
        from("groups:ops"),
        "line 3, column 9: `groups:` begins no selector; a group is written as its name alone"
    );
    assert!(from("same-project").contains("to = [\"same-project\"]"));
}

#[test]
fn a_column_counts_characters_and_not_bytes() {
    assert_eq!(
        error("[[allow]]\nfrom = [ \"a\" ]\nto = [ # \u{fc}ber\n\"x y\"]"),
        "line 5, column 1: the name `x y` has ` ` in it; letters a-z, digits and hyphens are allowed"
    );
    let said = errors("allow = [{ \"\u{fc}\" = 1, from = [\"a\"], to = [\"b\", \"0.\"] }]");
    let second = "line 2, column 46: `0.` has a dot; a service of a project is written `project/name`, such as `project/0`";
    assert_eq!(said.get(1).map(String::as_str), Some(second));
}

#[test]
fn all_errors_are_reported_in_the_order_of_the_text() {
    let said = errors(
        "defualt = 1\n[[allow]]\nfrom = [\"a b\"]\nto = [\"c:0\"]\n[[test]]\nfrom = \"a\"\nto = \"b\"\nis = \"denied\"",
    );
    assert_eq!(
        said,
        [
            "line 2, column 1: unknown key `defualt`; did you mean `default`?",
            "line 4, column 9: the name `a b` has ` ` in it; letters a-z, digits and hyphens are allowed",
            "line 5, column 7: `0` is no port; ports are 1 to 65535",
            "line 9, column 6: `is` cannot be \"denied\"; did you mean \"deny\"?",
        ]
    );
    let many = format!("allow = [{}]", "1, ".repeat(1000));
    assert_eq!(errors(&many).len(), 20);
}

#[test]
fn broken_toml_names_its_line() {
    let said = errors("default = \n[[allow]\n");
    assert!(
        said.iter().any(|error| error.starts_with("line 2, ")),
        "{said:?}"
    );
    assert!(
        said.iter().any(|error| error.starts_with("line 3, ")),
        "{said:?}"
    );
}

#[test]
fn a_later_language_is_one_error_even_if_the_rest_is_not_understood() {
    let newer = Policy::check("language = 2\nwhatever = [{]\n").expect_err("newer");
    assert_eq!(newer.len(), 1);
    assert!(newer[0].is_newer());
    assert_eq!(
        newer[0].to_string(),
        "line 1, column 12: the policy is in language 2; this version of meshd speaks language 1"
    );
    for text in [
        "language = 0",
        "language = \"1\"",
        "language = 1.0",
        "",
        "default = \"deny\"",
    ] {
        let error = Policy::parse(text).expect_err(text);
        assert!(
            !error.is_newer() && error.message.contains("language"),
            "{error}"
        );
    }
}

#[test]
fn a_policy_has_at_most_60_kib() {
    let mut text = "language = 1\n".to_owned();
    text.push_str(&"#".repeat(MAX_POLICY - text.len()));
    assert!(Policy::parse(&text).is_ok());
    text.push('#');
    let error = Policy::parse(&text).expect_err("too large");
    assert_eq!(
        error.to_string(),
        "line 1, column 1: the policy has 61441 bytes; 61440 (60 KiB) are the most"
    );
}

#[test]
fn groups_in_a_circle_are_named() {
    assert_eq!(
        error("[groups]\na = [\"b\"]\nb = [\"c\", \"x\"]\nc = [\"a\"]\nd = [\"a\"]"),
        "line 3, column 1: the groups `a`, `b`, `c` are members of each other in a circle"
    );
    assert_eq!(
        error("[groups]\ndb = [\"db\"]"),
        "line 3, column 1: the group `db` has itself as a member; a group and a service in it cannot have one name"
    );
}

#[test]
fn a_group_has_names_selectors_and_groups() {
    assert_eq!(
        error("[groups]\na = []"),
        "line 3, column 5: `a` is empty, so it names nobody; name one at least"
    );
    assert_eq!(
        error("[groups]\na = [\"db:80\"]"),
        "line 3, column 6: `db:80` has a port; ports stand in `to` only"
    );
    assert_eq!(
        error("[groups]\na = [\"x\"]\nA = [\"y\"]"),
        "line 3, column 1: there are two groups `a`; names have no case"
    );
    assert!(error("[groups]\na = [\"same-project\"]").contains("stands in `to`"));
    assert!(error("[groups]\nsame-project = [\"x\"]").contains("no name for a group"));
}

#[test]
fn groups_that_would_have_millions_of_members_are_refused() {
    let mut text = "[groups]\n".to_owned();
    for n in 0..2000 {
        let inner = if n > 0 {
            format!(", \"g{}\"", n - 1)
        } else {
            String::new()
        };
        text.push_str(&format!("g{n} = [\"a{n}\"{inner}]\n"));
    }
    assert!(error(&text).contains("the groups have more than 65536 members together"));
}

#[test]
fn lists_of_nodes_name_nodes_only() {
    let by = |word: &str| {
        error(&format!(
            "[groups]\nmixed = [\"tag:a\", \"db\"]\n[[serve]]\nnames = [\"db\"]\nby = [\"{word}\"]"
        ))
    };
    assert_eq!(
        by("db"),
        "line 6, column 7: `by` names nodes, and `db` does not; write `tag:TAG`, `node:NAME` or `*`"
    );
    assert_eq!(
        by("mixed"),
        "line 6, column 7: `by` names nodes, and the group `mixed` has `db` in it; write `tag:TAG`, `node:NAME` or `*`"
    );
    let names = |word: &str| {
        error(&format!(
            "[[serve]]\nnames = [\"{word}\"]\nby = [\"tag:a\"]"
        ))
    };
    assert!(names("tag:a").contains("no name of a service"));
    assert!(names("db:80").contains("names have none"));
}

#[test]
fn a_name_is_served_by_the_nodes_that_its_entries_name() {
    let rights = policy(
        "[groups]\nshop = [\"tag:shop\"]\n[[serve]]\nnames = [\"db\", \"shop/*\"]\nby = [\"shop\"]\n[[serve]]\nnames = [\"db\"]\nby = [\"node:n1\"]\n",
    );
    let may = |policy: &Policy, name: &str, node: &str, tags: &[&str]| {
        let label = |text: &&str| Label::parse(text).expect("a label");
        let tags: Vec<Label> = tags.iter().map(label).collect();
        let node = NodeFacts {
            name: &label(&node),
            tags: &tags,
        };
        policy.may_serve(&ServiceName::parse(name).expect("a name"), &node)
    };
    assert!(may(&rights, "db", "n9", &["shop"]));
    assert!(may(&rights, "db", "n1", &[]));
    assert!(!may(&rights, "db", "n9", &["web"]));
    assert!(!may(&rights, "web.shop", "n1", &[]));
    // Another name than `db` is not bound.
    assert!(may(&rights, "db.blog", "n9", &[]));
    assert!(may(&rights, "web", "n9", &[]));
    let strict = Policy::parse(
        &rights
            .text()
            .replace("language = 1", "language = 1\nstrict = true"),
    )
    .expect("a policy");
    assert!(!may(&strict, "web", "n9", &["shop"]));
    assert!(may(&strict, "db", "n9", &["shop"]));
}

#[test]
fn each_node_may_relay_until_one_is_named() {
    let tags = [Label::parse("public").expect("a label")];
    let name = Label::parse("n1").expect("a label");
    let public = NodeFacts {
        name: &name,
        tags: &tags,
    };
    let other = NodeFacts {
        name: &name,
        tags: &[],
    };
    assert!(policy("").may_offer_relay(&other));
    let rule = policy("[[relay]]\noffer = [\"tag:public\"]");
    assert!(rule.may_offer_relay(&public) && !rule.may_offer_relay(&other));
}

#[test]
fn a_policy_that_allows_nothing_useful_is_no_error() {
    policy("[[allow]]\nfrom = [\"nobody\"]\nto = [\"node:nothing:nowhere\"]");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(
        text in "(language = 1\n|default = \"deny\"\n|\\[groups\\]\n|\\[\\[allow\\]\\]\n|from = |to = |is = |\\[|\\]|\"|,|\\*|:|/|tag:|node:|a|b|80|-|\u{fc}|\n|#|\\{|\\}){0,40}"
    ) {
        if let Err(errors) = Policy::check(&text) {
            assert!(!errors.is_empty());
            assert!(errors.iter().all(|error| error.to_string().lines().count() == 1));
        }
    }
}

#[test]
fn a_route_names_a_node_and_a_network_and_what_is_wrong_is_named_with_its_place() {
    let policy = policy("[[route]]\nnode = \"nas\"\nprefix = \"192.168.1.0/24\"\n");
    let nas = Label::parse("nas").expect("a label");
    let routes: Vec<String> = policy.routes_of(&nas).map(|net| net.to_string()).collect();
    assert_eq!(routes, ["192.168.1.0/24"]);
    let other = Label::parse("other").expect("a label");
    assert_eq!(policy.routes_of(&other).count(), 0);
    let wrong = |node: &str, prefix: &str| {
        error(&format!(
            "[[route]]\nnode = \"{node}\"\nprefix = \"{prefix}\""
        ))
    };
    assert_eq!(
        wrong("nas", "192.168.1.7/24"),
        "line 4, column 10: the network 192.168.1.7/24 has bits set behind its length; write 192.168.1.0/24"
    );
    assert!(wrong("nas", "0.0.0.0/0").starts_with("line 4, column 10: 0.0.0.0/0 is every address"));
    assert!(wrong("nas", "::/0").contains("every address"));
    assert_eq!(
        wrong("node:nas", "192.168.1.0/24"),
        "line 3, column 8: `node:nas` is a selector; write node = \"nas\""
    );
    assert!(wrong("*", "192.168.1.0/24").contains("names no node"));
    assert_eq!(
        error("[[route]]\nnode = \"nas\""),
        "line 2, column 1: this `[[route]]` lacks `prefix`"
    );
    let misspelt = errors("[[route]]\nnode = \"nas\"\nprefx = \"192.168.1.0/24\"");
    assert_eq!(
        misspelt[1],
        "line 4, column 1: unknown key `prefx` in `[[route]]`; did you mean `prefix`?"
    );
    assert_eq!(
        error("[[route]]\nnode = \"nas\"\nprefix = \"192.168.1.0/24\"\nnodes = \"b\""),
        "line 5, column 1: unknown key `nodes` in `[[route]]`; did you mean `node`?"
    );
}

#[test]
fn a_policy_has_a_bounded_number_of_routes() {
    let route = "[[route]]\nnode = \"nas\"\nprefix = \"192.168.1.0/24\"\n";
    policy(&route.repeat(MAX_ROUTES));
    let said = error(&route.repeat(MAX_ROUTES + 1));
    assert!(said.contains("more than 256"), "{said}");
}
