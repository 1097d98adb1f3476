//! Tests with usual labels, wrong labels and malicious labels.

use proptest::prelude::*;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn facts(exposed: &[u16]) -> Facts {
    Facts {
        exposed: exposed
            .iter()
            .map(|port| (Protocol::Tcp, (*port).try_into().expect("not zero")))
            .collect(),
        has_healthcheck: false,
    }
}

fn exposed_as(pairs: &[(&str, &str)], facts: &Facts) -> Result<Option<Exposed>, LabelError> {
    exposed(
        &labels(pairs),
        Some(&Labels::new()),
        facts,
        Rules::default(),
    )
}

fn names(exposed: Result<Option<Exposed>, LabelError>) -> Vec<String> {
    exposed
        .expect("the labels are right")
        .map(|e| e.services.iter().map(ToString::to_string).collect())
        .unwrap_or_default()
}

const COMPOSE: [(&str, &str); 3] = [
    (COMPOSE_PROJECT, "my_shop"),
    (COMPOSE_SERVICE, "database"),
    (COMPOSE_NUMBER, "1"),
];

#[test]
fn one_label_is_enough() {
    let exposed = exposed_as(&[("mesh.service", "DB")], &facts(&[5432]))
        .expect("right")
        .expect("exposed");
    assert_eq!(
        exposed.services,
        [ServiceName::parse("db").expect("a literal")]
    );
    assert_eq!(exposed.ports.len(), 1);
    assert_eq!(
        exposed.health,
        HealthSource::Tcp(5432.try_into().expect("not zero"))
    );
    assert_eq!((exposed.weight, exposed.drain), (10, None));
    assert_eq!(exposed.priority, 0);
}

#[test]
fn weight_and_priority_are_as_labelled() {
    let labels = [
        ("mesh.service", "db"),
        ("mesh.weight", "0"),
        ("mesh.priority", "20"),
    ];
    let exposed = exposed_as(&labels, &facts(&[80]))
        .expect("right")
        .expect("exposed");
    assert_eq!((exposed.weight, exposed.priority), (0, 20));
    assert!(exposed.unknown.is_empty());
}

#[test]
fn who_may_reach_a_container_is_as_labelled() {
    let allow = |value: &str| {
        let labels = [("mesh.service", "db"), ("mesh.allow", value)];
        let exposed = exposed_as(&labels, &facts(&[80])).expect("right");
        exposed.expect("exposed").allow
    };
    assert_eq!(allow("Shop/API, tag:ops"), ["shop/api", "tag:ops"]);
    assert_eq!(allow("*"), ["*"]);
    let unlabelled = exposed_as(&[("mesh.service", "db")], &facts(&[80]));
    assert!(
        unlabelled
            .expect("right")
            .expect("exposed")
            .allow
            .is_empty()
    );
}

#[test]
fn the_host_names_of_a_container_are_as_labelled() {
    let public = |value: &str| {
        let labels = [("mesh.service", "web"), ("mesh.public", value)];
        let exposed = exposed_as(&labels, &facts(&[80])).expect("right");
        let hosts = exposed.expect("exposed").public;
        hosts.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        public("Shop.example.com, *.shop.example.com"),
        ["shop.example.com", "*.shop.example.com"]
    );
    let unlabelled = exposed_as(&[("mesh.service", "web")], &facts(&[80]));
    assert_eq!(unlabelled.expect("right").expect("exposed").public, []);
}

#[test]
fn a_labelled_compose_container_has_its_name_in_the_project_under_both_names() {
    let mut pairs = COMPOSE.to_vec();
    assert_eq!(
        names(exposed_as(&pairs, &facts(&[80]))),
        Vec::<String>::new()
    );
    pairs.push(("mesh.service", "db"));
    assert_eq!(
        names(exposed_as(&pairs, &facts(&[80]))),
        ["db", "database.my-shop", "db.my-shop"]
    );
    pairs.pop();
    pairs.push(("mesh.service", "database"));
    assert_eq!(
        names(exposed_as(&pairs, &facts(&[80]))),
        ["database", "database.my-shop"]
    );
}

#[test]
fn with_expose_all_compose_containers_have_their_projects_name_only() {
    let rules = Rules {
        expose: Expose::All,
        ..Rules::default()
    };
    let of = |pairs: &[(&str, &str)], facts: &Facts| {
        names(exposed(&labels(pairs), Some(&Labels::new()), facts, rules))
    };
    assert_eq!(of(&COMPOSE, &facts(&[80, 443])), ["database.my-shop"]);
    assert_eq!(of(&COMPOSE, &facts(&[])), Vec::<String>::new());
    let hidden = [&COMPOSE[..], &[("mesh.enable", "false")]].concat();
    assert_eq!(of(&hidden, &facts(&[80])), Vec::<String>::new());
    let one_off = [&COMPOSE[..], &[(COMPOSE_ONE_OFF, "True")]].concat();
    assert_eq!(of(&one_off, &facts(&[80])), Vec::<String>::new());
}

#[test]
fn labels_baked_into_the_image_do_not_count() {
    let baked = labels(&[("mesh.service", "db"), ("mesh.port", "1")]);
    let image = Some(&baked);
    let facts = facts(&[5432]);
    assert_eq!(exposed(&baked, image, &facts, Rules::default()), Ok(None));
    let trusting = Rules {
        trust_image_labels: true,
        ..Rules::default()
    };
    assert_eq!(names(exposed(&baked, image, &facts, trusting)), ["db"]);
    assert_eq!(names(exposed(&baked, None, &facts, trusting)), ["db"]);
    assert_eq!(
        exposed(&baked, None, &facts, Rules::default()),
        Err(LabelError::ImageUnknown)
    );
    let mut own = baked.clone();
    own.insert("mesh.service".into(), "web".into());
    let exposed = exposed(&own, image, &facts, Rules::default())
        .expect("right")
        .expect("exposed");
    assert_eq!(
        exposed.services,
        [ServiceName::parse("web").expect("a literal")]
    );
    assert_eq!(
        exposed.ports[0].number.get(),
        5432,
        "the image's mesh.port is not its own"
    );
}

#[test]
fn compose_names_that_the_image_has_too_count_for_containers_with_a_compose_number() {
    let image = labels(&COMPOSE[..2]);
    let own = labels(&[&COMPOSE[..], &[("mesh.service", "db")]].concat());
    let of = |own: &Labels, image: &Labels| {
        names(exposed(own, Some(image), &facts(&[80]), Rules::default()))
    };
    assert_eq!(of(&own, &image), ["db", "database.my-shop", "db.my-shop"]);
    assert_eq!(of(&own, &labels(&COMPOSE)), ["db"]);
}

#[test]
fn ports_have_names_and_protocols() {
    let pairs = [
        ("mesh.service", "db"),
        ("mesh.port", "5432"),
        ("mesh.port.metrics", "9187/tcp"),
        ("mesh.port.stats", "9187/udp"),
    ];
    let ports = exposed_as(&pairs, &facts(&[]))
        .expect("right")
        .expect("exposed")
        .ports;
    let shown: Vec<String> = ports
        .iter()
        .map(|p| {
            format!(
                "{:?} {}/{}",
                p.name.as_ref().map(Label::as_str),
                p.number,
                p.protocol.as_str()
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "None 5432/tcp",
            "Some(\"metrics\") 9187/tcp",
            "Some(\"stats\") 9187/udp"
        ]
    );
}

#[test]
fn each_invalid_label_is_refused_and_named() {
    let refused = |pairs: &[(&str, &str)], exposed: &[u16]| {
        let pairs = [&[("mesh.service", "db")], pairs].concat();
        exposed_as(&pairs, &facts(exposed))
            .expect_err("refused")
            .to_string()
    };
    for port in [
        "0", "65536", "-1", "+80", "80/sctp", "80/", "", "eighty", " 80", "80\0",
    ] {
        assert!(
            refused(&[("mesh.port", port)], &[]).contains("mesh.port"),
            "{port}"
        );
    }
    assert!(refused(&[("mesh.port", "80"), ("mesh.port.a", "80")], &[]).contains("80/tcp twice"));
    assert!(refused(&[("mesh.port.a_b", "80")], &[]).contains("mesh.port.a_b"));
    assert!(refused(&[("mesh.port.", "80")], &[]).contains("empty"));
    assert!(refused(&[], &[]).contains("mesh.port"));
    assert!(refused(&[], &[80, 443]).contains("exposes 2 ports"));
    assert!(refused(&[("mesh.weight", "heavy")], &[80]).contains("mesh.weight"));
    assert!(refused(&[("mesh.priority", "-1")], &[80]).contains("mesh.priority"));
    assert!(refused(&[("mesh.drain", "3 days")], &[80]).contains("mesh.drain"));
    assert!(refused(&[("mesh.drain", "61m")], &[80]).contains("mesh.drain"));
    assert!(refused(&[("mesh.vip", "yes")], &[80]).contains("true or false"));
    assert!(refused(&[("mesh.check", "http")], &[80]).contains("docker, tcp or none"));
    assert!(refused(&[("mesh.check", "docker")], &[80]).contains("HEALTHCHECK"));
    assert!(refused(&[("mesh.check", "tcp"), ("mesh.port", "53/udp")], &[]).contains("TCP port"));
    for (allow, why) in [
        ("", "a selector cannot be empty"),
        ("shop/api,", "a selector cannot be empty"),
        ("tags:ops", "`tags:` begins no selector"),
        ("db.shop", "`shop/db`"),
        ("10.210.1.1", "is an address"),
        (
            &["db"; 17].join(","),
            "it has 17 selectors; 16 are the most",
        ),
    ] {
        let error = refused(&[("mesh.allow", allow)], &[80]);
        assert!(
            error.contains("mesh.allow") && error.contains(why),
            "{error}"
        );
    }
    for (public, why) in [
        ("", "a host name cannot be empty"),
        ("shop.example.com,", "a host name cannot be empty"),
        ("https://shop.example.com", "write the host name alone"),
        ("*.com", "a domain of two labels or more"),
        ("a.example,A.example", "it has a.example twice"),
        (
            &["a.example"; 9].join(","),
            "it has 9 host names; 8 are the most",
        ),
    ] {
        let error = refused(&[("mesh.public", public)], &[80]);
        assert!(
            error.contains("mesh.public") && error.contains(why),
            "{error}"
        );
    }
    let datagrams = [("mesh.public", "a.example"), ("mesh.port", "53/udp")];
    assert!(refused(&datagrams, &[]).contains("no TCP port"));
    let many: Vec<(String, String)> = (1..=17)
        .map(|n| (format!("mesh.port.p{n}"), n.to_string()))
        .collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert!(refused(&many, &[]).contains("17 ports"));
    for name in ["a.b", "a b", "-a", "", "\0", "\u{202e}db", &"a".repeat(64)] {
        let error = exposed_as(&[("mesh.service", name)], &facts(&[80])).expect_err("no name");
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
}

#[test]
fn a_label_of_ten_mebibytes_is_refused_with_a_short_message() {
    let huge = "x".repeat(10 << 20);
    for label in [
        "mesh.service",
        "mesh.network",
        "mesh.port.huge",
        COMPOSE_PROJECT,
    ] {
        let pairs = [
            &COMPOSE[..],
            &[("mesh.service", "db"), (label, huge.as_str())],
        ]
        .concat();
        let error = exposed_as(&pairs, &facts(&[80]))
            .expect_err("too long")
            .to_string();
        assert!(error.len() < 200 && error.contains("10485760"), "{error}");
    }
    let key = format!("mesh.{huge}");
    let exposed = exposed_as(&[("mesh.service", "db"), (&key, "")], &facts(&[80]))
        .expect("right")
        .expect("exposed");
    assert_eq!(exposed.unknown.len(), 1);
    assert!(exposed.unknown[0].len() <= 64);
}

#[test]
fn an_unknown_label_is_reported_and_ignored() {
    let exposed = exposed_as(&[("mesh.service", "db"), ("mesh.prot", "1")], &facts(&[80]))
        .expect("right")
        .expect("exposed");
    assert_eq!(exposed.unknown, ["mesh.prot"]);
}

#[test]
fn an_unknown_label_is_explained_with_the_known_one_that_is_most_similar() {
    for (label, similar) in [
        ("mesh.servce", Some("mesh.service")),
        ("mesh.prot", Some("mesh.port")),
        ("mesh.Port", Some("mesh.port")),
        ("mesh.enabled", Some("mesh.enable")),
        ("mesh.healthcheck", None),
        ("mesh.", None),
        ("mesh.\u{202e}", None),
    ] {
        assert_eq!(nearest(label), similar, "{label}");
    }
    let labels = ["mesh.prot", "mesh.xyz", "mesh.weight"].map(str::to_owned);
    assert_eq!(
        explain_unused(&labels),
        "meshd knows no label mesh.prot (the most similar one that it knows is mesh.port), mesh.xyz; \
         mesh.weight has an effect only together with mesh.service"
    );
}

#[test]
fn labels_without_effect_are_found_on_a_container_that_is_not_exposed() {
    let of = |pairs: &[(&str, &str)], image: &[(&str, &str)]| {
        unused(&labels(pairs), Some(&labels(image)), Rules::default())
    };
    let misspelt = [("mesh.servce", "db"), ("mesh.port", "80"), ("other", "x")];
    assert!(concerns(&labels(&misspelt), Rules::default()));
    assert!(!may_expose(&labels(&misspelt), Rules::default()));
    assert_eq!(of(&misspelt, &[]), ["mesh.port", "mesh.servce"]);
    assert_eq!(
        of(&misspelt, &misspelt),
        Vec::<String>::new(),
        "those of the image"
    );
    let hidden = [("mesh.enable", "false"), ("mesh.port", "80")];
    assert_eq!(of(&hidden, &[]), Vec::<String>::new());
    let many: Vec<(String, String)> = (0..100)
        .map(|n| (format!("mesh.\u{1b}x{n}"), String::new()))
        .collect();
    let found = unused(
        &many.into_iter().collect(),
        Some(&Labels::new()),
        Rules::default(),
    );
    assert_eq!(found.len(), MAX_UNUSED);
    assert!(!found.concat().contains('\u{1b}'), "{found:?}");
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("mesh.service".to_owned()),
        Just("mesh.port".to_owned()),
        "mesh\\.port\\.[a-z0-9_.-]{0,8}",
        Just("mesh.weight".to_owned()),
        Just("mesh.priority".to_owned()),
        Just("mesh.drain".to_owned()),
        Just("mesh.check".to_owned()),
        Just("mesh.vip".to_owned()),
        Just("mesh.enable".to_owned()),
        Just("mesh.network".to_owned()),
        Just(COMPOSE_PROJECT.to_owned()),
        Just(COMPOSE_SERVICE.to_owned()),
        Just(COMPOSE_NUMBER.to_owned()),
        ".{0,12}",
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9]{1,5}",
        "[0-9]{1,6}(/tcp|/udp|/x)?",
        "[0-9]{1,4}(s|ms|m)",
        "(true|false|docker|tcp|none)",
        ".{0,400}",
    ]
}

proptest! {
    #[test]
    fn the_result_of_any_labels_fits_into_a_record(
        labels in proptest::collection::btree_map(key(), value(), 0..10),
        image in proptest::option::of(proptest::collection::btree_map(key(), value(), 0..4)),
        exposed_ports in proptest::collection::btree_set(1u16.., 0..4),
        has_healthcheck: bool,
        all: bool,
        trust_image_labels: bool,
    ) {
        let expose = if all { Expose::All } else { Expose::Labelled };
        let mut facts = facts(&exposed_ports.into_iter().collect::<Vec<_>>());
        facts.has_healthcheck = has_healthcheck;
        match exposed(&labels, image.as_ref(), &facts, Rules { expose, trust_image_labels, ..Rules::default() }) {
            Ok(Some(exposed)) => {
                prop_assert!((1..=2).contains(&exposed.services.len()));
                prop_assert!((1..=MAX_PORTS).contains(&exposed.ports.len()));
                prop_assert!(exposed.drain.is_none_or(|d| d <= MAX_DRAIN));
            }
            Ok(None) => {}
            Err(error) => {
                let text = error.to_string();
                prop_assert!(text.len() < 1000 && !text.contains(char::is_control), "{}", text);
            }
        }
    }
}
