use std::time::{SystemTime, UNIX_EPOCH};

use super::*;
use crate::model::{PublicKey, ServiceName};
use crate::spawn::fixture::template;
use crate::testbed::records::label;

/// The present time, `seconds` after the start of a test.
fn at(start: Instant, seconds: u64) -> Now {
    let since = Duration::from_secs(1_800_000_000 + seconds);
    Now {
        monotonic: start + Duration::from_secs(seconds),
        wall: UNIX_EPOCH + since,
    }
}

fn id(n: u8) -> SpawnId {
    SpawnId::from_bytes([n; 16])
}

fn container(n: u8) -> ContainerId {
    ContainerId::parse(&format!("{n:02x}").repeat(32)).expect("hexadecimal digits")
}

fn granted(template: Template, owner: Owner) -> Granted {
    Granted {
        template: Arc::new(template),
        owner,
    }
}

fn token(n: u8) -> Owner {
    Owner::Token(PublicKey([n; 32]))
}

fn order<'a>(granted: &'a Granted, n: u8, name: Option<&'a str>) -> Order<'a> {
    Order {
        granted,
        id: id(n),
        name,
        image: "alpine:3.20".to_owned(),
    }
}

/// Reserves the entry `n` and gives it a container.
fn spawn(ledger: &mut Ledger, granted: &Granted, n: u8, now: Now) -> Result<Entry, Refused> {
    let entry = ledger.reserve(order(granted, n, None), now)?;
    Ok(ledger
        .set_container(&entry.id, container(n))
        .expect("it is reserved"))
}

fn reread(ledger: &Ledger, templates: &[Arc<Template>], now: Now) -> Ledger {
    let text = serde_json::to_string(&ledger.stored()).expect("plain data");
    let stored = serde_json::from_str(&text).expect("just written");
    Ledger::restore(stored, templates, now)
}

#[test]
fn a_template_has_no_more_containers_and_no_more_memory_than_its_quota_also_after_a_restart() {
    let start = Instant::now();
    let mut many = template();
    many.quota.memory_total = u64::MAX;
    let many = granted(many, token(1));
    let mut ledger = Ledger::default();
    for n in 0..3 {
        spawn(&mut ledger, &many, n, at(start, 0)).expect("three are permitted");
    }
    let full = Refused::Full(label("job"), 3);
    assert_eq!(
        spawn(&mut ledger, &many, 3, at(start, 0)),
        Err(full.clone())
    );
    let mut ledger = reread(&ledger, &[Arc::clone(&many.template)], at(start, 1));
    assert_eq!(spawn(&mut ledger, &many, 3, at(start, 1)), Err(full));
    ledger.forget(&id(0));
    assert!(spawn(&mut ledger, &many, 3, at(start, 1)).is_ok());

    // 512 MiB are two containers of 256 MiB.
    let narrow = granted(template(), token(1));
    let mut ledger = Ledger::default();
    for n in 0..2 {
        spawn(&mut ledger, &narrow, n, at(start, 0)).expect("two are permitted");
    }
    let refused = spawn(&mut ledger, &narrow, 2, at(start, 0)).expect_err("no memory is left");
    assert_eq!(refused, Refused::Memory(label("job"), 512 << 20));
}

#[test]
fn a_quota_counts_the_containers_of_all_callers() {
    let start = Instant::now();
    let mut ledger = Ledger::default();
    for n in 0..2 {
        let own = granted(template(), token(n));
        spawn(&mut ledger, &own, n, at(start, 0)).expect("two are permitted");
    }
    let third = granted(template(), token(9));
    assert!(spawn(&mut ledger, &third, 9, at(start, 0)).is_err());
}

#[test]
fn no_more_containers_are_created_than_the_rate_permits_although_they_end_at_once() {
    let start = Instant::now();
    let own = granted(template(), token(1));
    let mut ledger = Ledger::default();
    let create = |ledger: &mut Ledger, n: u8, seconds: u64| {
        let entry = spawn(ledger, &own, n, at(start, seconds))?;
        ledger.forget(&entry.id);
        Ok::<_, Refused>(())
    };
    for n in 0..5 {
        create(&mut ledger, n, u64::from(n)).expect("five in a minute are permitted");
    }
    let refused = create(&mut ledger, 5, 10).expect_err("the sixth");
    let wait = Duration::from_secs(50);
    assert_eq!(
        refused,
        Refused::Rate(label("job"), "5/min".to_owned(), wait)
    );
    let mut again = reread(&ledger, &[Arc::clone(&own.template)], at(start, 11));
    assert!(
        create(&mut again, 5, 11).is_err(),
        "a restart forgives nothing"
    );
    assert!(create(&mut ledger, 5, 61).is_ok());
    assert!(create(&mut ledger, 6, 61).is_ok());
    assert!(create(&mut ledger, 7, 61).is_err());
}

#[test]
fn a_container_expires_after_its_time_whatever_the_clock_on_the_wall_says() {
    let start = Instant::now();
    let own = granted(template(), token(1));
    let templates = [Arc::clone(&own.template)];
    let mut ledger = Ledger::default();
    let entry = spawn(&mut ledger, &own, 1, at(start, 0)).expect("it is permitted");
    assert_eq!(ledger.poll_timeout(), Some(at(start, 3600).monotonic));
    assert!(ledger.expired(at(start, 3599).monotonic).is_empty());
    assert_eq!(
        ledger.expired(at(start, 3600).monotonic),
        std::slice::from_ref(&entry)
    );

    // After a restart, the rest of its time is left.
    let again = reread(&ledger, &templates, at(start, 3000));
    assert_eq!(again.poll_timeout(), Some(at(start, 3600).monotonic));
    // A clock that was set back by a year gives it an hour, and not a year.
    let back = Now {
        wall: SystemTime::UNIX_EPOCH,
        ..at(start, 0)
    };
    let again = reread(&ledger, &templates, back);
    assert_eq!(again.poll_timeout(), Some(at(start, 3600).monotonic));
    // A template that is gone keeps none.
    let without = reread(&ledger, &[], at(start, 1));
    assert_eq!(without.expired(at(start, 1).monotonic), [entry]);
}

#[test]
fn a_reservation_that_a_stop_of_meshd_interrupted_expires_at_the_next_start() {
    let start = Instant::now();
    let own = granted(template(), token(1));
    let mut ledger = Ledger::default();
    let entry = ledger.reserve(order(&own, 1, None), at(start, 0));
    let entry = entry.expect("it is permitted");
    let again = reread(&ledger, &[Arc::clone(&own.template)], at(start, 1));
    assert_eq!(again.expired(at(start, 1).monotonic), [entry]);
}

#[test]
fn a_caller_finds_its_own_containers_and_none_of_others() {
    let start = Instant::now();
    let service = Owner::Service(ServiceName::parse("runner.ci").expect("a literal"));
    let (own, other) = (granted(template(), service), granted(template(), token(2)));
    let mut ledger = Ledger::default();
    let reserved = ledger.reserve(order(&own, 1, Some("web")), at(start, 0));
    let entry = reserved.expect("it is permitted");
    let (mine, others) = (vec![own.clone()], vec![other.clone()]);
    assert!(ledger.find(&mine, "web").is_err(), "it is not created yet");
    ledger.set_container(&entry.id, container(1));
    let texts = [
        "web".to_owned(),
        "/web".to_owned(),
        entry.id.to_string(),
        entry.engine_name.clone(),
        container(1).to_string(),
        "0101".to_owned(),
        "010101010101".to_owned(),
    ];
    for text in &texts {
        assert_eq!(
            ledger.find(&mine, text).map(|found| &found.id),
            Ok(&entry.id)
        );
        let unknown = ledger.find(&others, text).expect_err("of another caller");
        assert_eq!(unknown.code().status(), 404, "{text}");
    }
    for text in ["", "010", "0202", "we", "/", "web/x"] {
        assert!(ledger.find(&mine, text).is_err(), "{text}");
    }
    assert_eq!(ledger.owned(&others).count(), 0);
    // Another caller may have the same name, and the same caller may not.
    assert!(
        ledger
            .reserve(order(&other, 2, Some("web")), at(start, 0))
            .is_ok()
    );
    let taken = ledger.reserve(order(&own, 3, Some("web")), at(start, 0));
    assert_eq!(taken, Err(Refused::NameTaken("web".to_owned())));
}

#[test]
fn a_beginning_that_two_containers_have_names_neither() {
    let start = Instant::now();
    let own = granted(template(), token(1));
    let mut ledger = Ledger::default();
    for (n, container) in [(1, "abcd01"), (2, "abcd02")] {
        let entry = ledger.reserve(order(&own, n, None), at(start, 0));
        let entry = entry.expect("it is permitted");
        let container = ContainerId::parse(container).expect("hexadecimal digits");
        ledger.set_container(&entry.id, container);
    }
    let mine = vec![own];
    assert!(ledger.find(&mine, "abcd").is_err());
    assert!(ledger.find(&mine, "abcd0").is_err());
    assert_eq!(
        ledger.find(&mine, "abcd01").map(|found| &found.id),
        Ok(&id(1))
    );
}

#[test]
fn a_name_that_containers_of_two_templates_have_names_neither() {
    let start = Instant::now();
    let other = Template {
        name: label("other"),
        ..template()
    };
    let mine = [granted(template(), token(1)), granted(other, token(1))];
    let mut ledger = Ledger::default();
    for (own, n) in mine.iter().zip([1, 2]) {
        let entry = ledger.reserve(order(own, n, Some("web")), at(start, 0));
        let entry = entry.expect("it is permitted");
        ledger.set_container(&entry.id, container(n));
    }
    let ambiguous = Refused::Ambiguous("web".to_owned());
    assert_eq!(ledger.find(&mine, "web"), Err(ambiguous));
    assert_eq!(ledger.find(&mine[..1], "web").map(|e| &e.id), Ok(&id(1)));
    let by_id = ledger.find(&mine, container(2).as_str());
    assert_eq!(by_id.map(|e| &e.id), Ok(&id(2)));
}

#[test]
fn an_id_is_found_although_another_container_has_it_as_its_name() {
    let start = Instant::now();
    let mine = [granted(template(), token(1))];
    let ids = [id(1).to_string(), container(1).to_string()];
    for text in &ids {
        let mut ledger = Ledger::default();
        for (n, name) in [(1, None), (2, Some(text.as_str()))] {
            let entry = ledger.reserve(order(&mine[0], n, name), at(start, 0));
            let entry = entry.expect("it is permitted");
            ledger.set_container(&entry.id, container(n));
        }
        assert_eq!(ledger.find(&mine, text).map(|e| &e.id), Ok(&id(1)));
    }
}

#[test]
fn names_and_networks_are_those_of_the_template_and_the_owner() {
    let start = Instant::now();
    let (own, other) = (granted(template(), token(1)), granted(template(), token(2)));
    let mut ledger = Ledger::default();
    let named = ledger.reserve(order(&own, 1, Some("web")), at(start, 0));
    let named = named.expect("it is permitted");
    let second = ledger.reserve(order(&other, 2, None), at(start, 0));
    let second = second.expect("it is permitted");
    assert!(named.engine_name.starts_with("meshd-job-") && named.engine_name.ends_with("-web"));
    assert_eq!(
        (named.shown(), second.shown()),
        ("web", second.engine_name.as_str())
    );
    assert_ne!(named.network, second.network);
    assert_eq!(ledger.networks().len(), 2);
    for name in ["", "../x", "-rf", "a b"] {
        let refused = ledger.reserve(order(&own, 3, Some(name)), at(start, 0));
        assert!(matches!(refused, Err(Refused::Name(_))), "{name}");
    }
}

#[test]
fn containers_without_an_entry_are_orphans_and_entries_without_a_container_are_forgotten() {
    let start = Instant::now();
    let own = granted(template(), token(1));
    let mut ledger = Ledger::default();
    let kept = spawn(&mut ledger, &own, 1, at(start, 0)).expect("it is permitted");
    let gone = spawn(&mut ledger, &own, 2, at(start, 0)).expect("it is permitted");
    let before = ledger.with_container();
    let found = |n: u8, label: String| Found {
        container: container(n),
        label,
    };
    let found = [
        found(1, id(1).to_string()),
        found(7, id(7).to_string()),
        // A container with the label of another one is none that meshd created.
        found(8, id(1).to_string()),
        found(9, "x".to_owned()),
    ];
    let (forgotten, orphans) = ledger.compare(&before, &found, at(start, 1));
    assert_eq!(forgotten, [gone]);
    assert_eq!(orphans, [container(7), container(8), container(9)]);
    assert_eq!(ledger.counts().get(&label("job")), Some(&1));
    assert_eq!(
        ledger.find(&[own], &kept.id.to_string()).map(|e| &e.id),
        Ok(&kept.id)
    );
}

#[test]
fn a_container_that_is_created_while_the_engine_lists_is_neither() {
    let start = Instant::now();
    let own = granted(template(), token(1));
    let mut ledger = Ledger::default();
    let before = ledger.with_container();
    spawn(&mut ledger, &own, 1, at(start, 0)).expect("it is permitted");
    assert_eq!(ledger.compare(&before, &[], at(start, 0)), (vec![], vec![]));
    let reserved = ledger.reserve(order(&own, 2, None), at(start, 0));
    reserved.expect("it is permitted");
    let before = ledger.with_container();
    let new = Found {
        container: container(2),
        label: id(2).to_string(),
    };
    let found = [
        Found {
            container: container(1),
            label: id(1).to_string(),
        },
        new,
    ];
    assert_eq!(
        ledger.compare(&before, &found, at(start, 1)),
        (vec![], vec![])
    );
    // A reservation that nothing became of does not take its place for ever.
    let later = at(start, 3000);
    let (forgotten, orphans) = ledger.compare(&before, &found, later);
    assert_eq!(forgotten.len(), 1);
    assert_eq!(orphans, [container(2)]);
}

#[test]
fn a_file_with_more_entries_than_there_can_be_is_cut_off() {
    let start = Instant::now();
    let own = granted(template(), token(1));
    let mut ledger = Ledger::default();
    let entry = spawn(&mut ledger, &own, 1, at(start, 0)).expect("it is permitted");
    let entries = (0u32..5000).map(|n| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        Entry {
            id: SpawnId::from_bytes(bytes),
            ..entry.clone()
        }
    });
    let stored = StoredLedger {
        entries: entries.collect(),
        created: BTreeMap::new(),
    };
    let ledger = Ledger::restore(stored, &[own.template], at(start, 0));
    assert_eq!(ledger.with_container().len(), MAX_ENTRIES);
}
