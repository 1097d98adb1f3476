//! Tests of what every store must do. Each runs with every kind of store.

use super::*;
use crate::model::SigningKey;

/// The kinds of store, each new and empty. etcd is left out if it is not installed.
fn stores() -> Vec<Box<dyn Store>> {
    let memory = |sharing| {
        let mut next = 0x9e37_79b9_7f4a_7c15_u64;
        let disk = MemoryDisk::new(sharing, move || {
            next = next.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            next
        });
        Box::new(disk.open())
    };
    let stores: Vec<Box<dyn Store>> = vec![
        Box::new(Sqlite::in_memory().expect("memory")),
        memory(Sharing::Exclusive),
        memory(Sharing::Shared),
    ];
    #[cfg(feature = "etcd")]
    let stores = with_etcd(stores);
    stores
}

#[cfg(feature = "etcd")]
fn with_etcd(mut stores: Vec<Box<dyn Store>>) -> Vec<Box<dyn Store>> {
    if let Some(fixture) = EtcdFixture::start_for_part() {
        let mut store = Etcd::open(&fixture.settings(), None).expect("it runs");
        store.load().expect("readable");
        store.end_with_store(fixture);
        stores.push(Box::new(store));
    }
    stores
}

const TOKEN: PublicKey = PublicKey([0xaa; 32]);

fn node(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn label(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

fn record(kind: &str, id: &str, text: &str) -> (RecordKey, Envelope) {
    (
        RecordKey::parse(kind, id),
        Envelope::seal_payload(text.into(), &SigningKey::from_seed(&[1; 32])),
    )
}

fn write(kind: &str, id: &str, text: &str, effect: Effect) -> Write {
    let (key, envelope) = record(kind, id, text);
    Write {
        key,
        envelope,
        gone: Vec::new(),
        effect,
    }
}

fn admission(n: u8, name: &str, uses: u32, blocks: u32) -> Admission {
    let (key, envelope) = record("membership", &node(n).to_string(), name);
    Admission {
        node: node(n),
        name: label(name),
        token: TOKEN,
        uses,
        blocks,
        key,
        envelope,
    }
}

fn key(kind: &str, id: &str) -> RecordKey {
    RecordKey::parse(kind, id)
}

fn release(n: u8) -> Write {
    release_with(n, vec![])
}

/// A removal, with the records that the ledger drops because of it.
fn release_with(n: u8, gone: Vec<RecordKey>) -> Write {
    let effect = Effect::Released(vec![node(n)]);
    Write {
        gone,
        ..write("revocation", &node(n).to_string(), "{}", effect)
    }
}

fn leased(n: u8, block: u32) -> Write {
    let effect = Effect::Leased {
        node: node(n),
        block,
    };
    write("node", &node(n).to_string(), "{}", effect)
}

fn kinds(store: &mut dyn Store) -> Vec<(u64, String)> {
    let contents = store.load().expect("readable");
    contents
        .records
        .into_iter()
        .map(|stored| (stored.revision, stored.key.kind().to_owned()))
        .collect()
}

#[test]
fn a_token_admits_as_many_as_it_may_and_the_same_node_again() {
    for mut store in stores() {
        let first = store.admit(&admission(1, "a", 1, 256)).expect("unspent");
        assert_eq!((first.block, first.revision), (1, 1));
        assert_eq!(
            store.admit(&admission(1, "a", 1, 256)).expect("the same"),
            first
        );
        assert!(matches!(
            store.admit(&admission(2, "b", 1, 256)),
            Err(StoreError::TokenSpent(1))
        ));
    }
}

#[test]
fn a_node_that_is_released_leaves_none_of_its_records() {
    for mut store in stores() {
        store.admit(&admission(1, "a", 1, 256)).expect("unspent");
        let id = node(1).to_string();
        let own = [
            leased(1, 1),
            write("name", &id, "{}", Effect::None),
            write("service", &format!("{id}/web"), "{}", Effect::None),
            write("weather", &format!("{id}/here"), "{}", Effect::None),
        ];
        store.put(&own).expect("writable");
        let gone = own.into_iter().map(|write| write.key).collect();
        store.put(&[release_with(1, gone)]).expect("writable");
        let left: Vec<String> = kinds(&mut *store).into_iter().map(|(_, k)| k).collect();
        assert_eq!(left, ["membership", "revocation"]);
    }
}

#[test]
fn a_refused_admission_spends_nothing() {
    for mut store in stores() {
        store.admit(&admission(1, "a", 2, 256)).expect("unspent");
        assert!(matches!(
            store.admit(&admission(2, "a", 2, 256)),
            Err(StoreError::NameTaken(_))
        ));
        let second = store.admit(&admission(2, "b", 2, 256)).expect("a use left");
        assert_eq!(second.block, 2);
    }
}

#[test]
fn a_node_gets_another_name_and_frees_the_old_one() {
    for mut store in stores() {
        store.admit(&admission(1, "a", 2, 256)).expect("unspent");
        let renamed = store.admit(&admission(1, "b", 2, 256)).expect("its own");
        assert_eq!((renamed.block, renamed.revision), (1, 2));
        store.admit(&admission(2, "a", 2, 256)).expect("free again");
    }
}

#[test]
fn blocks_are_leased_once_and_the_longest_free_comes_first_again() {
    for mut store in stores() {
        for n in 1..=3 {
            let admitted = store.admit(&admission(n, &format!("n{n}"), 9, 4));
            assert_eq!(admitted.expect("room").block, u32::from(n));
        }
        assert!(matches!(
            store.admit(&admission(4, "n4", 9, 4)),
            Err(StoreError::NoBlock(3))
        ));
        store.put(&[release(2)]).expect("writable");
        store.put(&[release(1)]).expect("writable");
        for (n, block) in [(4, 2), (5, 1)] {
            let admitted = store.admit(&admission(n, &format!("n{n}"), 9, 4));
            assert_eq!(admitted.expect("one is free").block, block);
        }
    }
}

#[test]
fn a_block_that_was_never_leased_comes_before_a_released_one() {
    for mut store in stores() {
        store.admit(&admission(1, "a", 9, 256)).expect("room");
        store.put(&[release(1)]).expect("writable");
        let second = store.admit(&admission(2, "b", 9, 256)).expect("room");
        assert_eq!(second.block, 2);
    }
}

#[test]
fn a_block_that_a_node_has_published_is_leased_to_no_other_node() {
    for mut store in stores() {
        store.put(&[leased(1, 1), leased(2, 2)]).expect("writable");
        // One moves: what it had is free, but rests.
        store.put(&[leased(1, 3)]).expect("writable");
        let third = store.admit(&admission(3, "c", 9, 256)).expect("room");
        assert_eq!(third.block, 4);
    }
}

#[test]
fn a_block_moves_from_its_leaseholder_to_the_node_that_published_it() {
    for mut store in stores() {
        assert_eq!(
            store.admit(&admission(1, "a", 9, 256)).expect("room").block,
            1
        );
        store.put(&[leased(2, 1)]).expect("writable");
        assert_eq!(
            store.admit(&admission(1, "a", 9, 256)).expect("room").block,
            2
        );
    }
}

#[test]
fn names_of_nodes_that_joined_elsewhere_are_taken_even_if_two_have_one() {
    for mut store in stores() {
        let admitted = |n: u8, name: &str| {
            let effect = Effect::Admitted {
                node: node(n),
                token: TOKEN,
                name: label(name),
            };
            write("membership", &node(n).to_string(), "{}", effect)
        };
        store
            .put(&[admitted(1, "web"), admitted(2, "web")])
            .expect("writable");
        assert!(matches!(
            store.admit(&admission(3, "web", 9, 256)),
            Err(StoreError::NameTaken(_))
        ));
        store.put(&[release(1)]).expect("writable");
        assert!(matches!(
            store.admit(&admission(3, "web", 9, 256)),
            Err(StoreError::NameTaken(_))
        ));
        assert!(matches!(
            store.admit(&admission(3, "db", 2, 256)),
            Err(StoreError::TokenSpent(2))
        ));
    }
}

#[test]
fn a_removed_nodes_own_records_are_gone_and_others_stay() {
    for mut store in stores() {
        let (one, two) = (node(1).to_string(), node(2).to_string());
        store
            .put(&[
                write("membership", &one, "{}", Effect::None),
                leased(1, 1),
                write("service", &format!("{one}/web"), "{}", Effect::None),
                write("service", &format!("{two}/web"), "{}", Effect::None),
                release_with(
                    1,
                    vec![key("node", &one), key("service", &format!("{one}/web"))],
                ),
            ])
            .expect("writable");
        let left = [(1, "membership"), (4, "service"), (5, "revocation")];
        assert_eq!(
            kinds(&mut *store),
            left.map(|(revision, kind)| (revision, kind.to_owned()))
        );
    }
}

#[test]
fn a_token_of_this_store_has_admitted_only_the_nodes_in_this_store() {
    for mut store in stores() {
        assert!(
            store.may_have_admitted(&TOKEN, &node(1)).expect("readable"),
            "a token from elsewhere may have"
        );
        let issued = write("token", &TOKEN.to_string(), "{}", Effect::Issued(TOKEN));
        store.put(&[issued]).expect("writable");
        assert!(!store.may_have_admitted(&TOKEN, &node(1)).expect("readable"));
        store.admit(&admission(1, "a", 1, 256)).expect("unspent");
        assert!(store.may_have_admitted(&TOKEN, &node(1)).expect("readable"));
    }
}

#[test]
fn each_write_has_a_revision_and_a_new_version_a_later_one() {
    for mut store in stores() {
        assert_eq!(store.put(&[]).expect("writable"), 0);
        let first = [
            write("token", "a", "1", Effect::None),
            write("token", "b", "1", Effect::None),
        ];
        assert_eq!(store.put(&first).expect("writable"), 2);
        let second = [write("token", "a", "2", Effect::None)];
        assert_eq!(store.put(&second).expect("writable"), 3);
        let contents = store.load().expect("readable");
        let held: Vec<_> = contents
            .records
            .iter()
            .map(|s| (s.revision, s.key.id(), s.envelope.payload.as_str()))
            .collect();
        assert_eq!(held, [(2, "b".into(), "1"), (3, "a".into(), "2")]);
        assert_eq!(contents.revision, 3);
    }
}

#[test]
fn the_node_that_a_block_is_leased_to_may_have_it_and_no_other() {
    for mut store in stores() {
        let may = |store: &mut dyn Store, n: u8, block| {
            store.may_lease(&node(n), block).expect("readable")
        };
        assert_eq!(
            store.admit(&admission(1, "a", 9, 256)).expect("room").block,
            1
        );
        assert!(may(&mut *store, 1, 1), "its own");
        assert!(!may(&mut *store, 1, 2), "it has another");
        assert!(!may(&mut *store, 2, 1), "another node's");
        assert!(may(&mut *store, 2, 2), "nobody's, and it has none");
        store.put(&[release(1)]).expect("writable");
        assert!(may(&mut *store, 2, 1), "free again");
    }
}

#[test]
fn only_a_restored_store_may_have_leased_a_block_that_it_knows_nothing_of() {
    for mut store in stores() {
        let admitted = store.admit(&admission(1, "a", 9, 256)).expect("room");
        assert_eq!(admitted.block, 1);
        assert!(!store.may_have_leased(2).expect("readable"));
        store.set_restored().expect("writable");
        store.load().expect("readable");
        assert!(store.may_have_leased(2).expect("readable"));
        assert!(!store.may_have_leased(1).expect("readable"), "it is leased");
    }
}

#[test]
fn records_that_no_ledger_holds_are_deleted_without_a_revision() {
    for mut store in stores() {
        store
            .put(&[
                write("weather", "a", "{}", Effect::None),
                write("weather", "b", "{}", Effect::None),
            ])
            .expect("writable");
        let before = store.load().expect("readable").revision;
        store
            .forget(&[key("weather", "a"), key("weather", "never")])
            .expect("writable");
        assert_eq!(kinds(&mut *store), [(2, "weather".to_owned())]);
        assert_eq!(store.load().expect("readable").revision, before);
        store
            .put(&[write("weather", "a", "{}", Effect::None)])
            .expect("writable");
        assert_eq!(kinds(&mut *store).len(), 2);
    }
}

#[test]
fn a_removed_node_counts_as_a_use_of_its_token_and_has_no_name() {
    for mut store in stores() {
        let effect = Effect::Spent {
            node: node(1),
            token: TOKEN,
        };
        store
            .put(&[write("membership", &node(1).to_string(), "{}", effect)])
            .expect("writable");
        assert!(matches!(
            store.admit(&admission(2, "a", 1, 256)),
            Err(StoreError::TokenSpent(1))
        ));
        store.admit(&admission(2, "a", 2, 256)).expect("a use left");
    }
}

#[test]
fn a_store_that_lacks_records_gets_another_name_and_knows_no_token() {
    for mut store in stores() {
        let issued = write("token", &TOKEN.to_string(), "{}", Effect::Issued(TOKEN));
        store.put(&[issued]).expect("writable");
        let first = store.admit(&admission(1, "a", 9, 256)).expect("unspent");
        let before = store.load().expect("readable");
        store.set_restored().expect("writable");
        let after = store.load().expect("readable");
        assert!(!before.restored && after.restored);
        assert_ne!(before.id, after.id);
        assert_eq!(before.records, after.records);
        assert!(!store.is_issued_here(&TOKEN).expect("readable"));
        let block = store.admit(&admission(2, "b", 9, 256)).expect("room").block;
        assert!(block > 100, "{block} is right above {}", first.block);
    }
}
