//! Tests of what a ledger returns about a change, of undoing the last one, and of what it lists.

use super::*;

fn replaced(ledger: &mut Ledger, envelope: Envelope) -> Replaced {
    let replaced = ledger.replace(envelope).expect("by the rules");
    replaced.expect("it is new")
}

#[test]
fn a_node_record_that_is_put_back_gives_way_to_the_one_before() {
    let mut ledger = two_nodes();
    let before = ledger.fingerprint();
    let moved = replaced(&mut ledger, node(10, 6, 3));
    assert!(!moved.is_first() && moved.dropped().is_empty());
    assert!(ledger.put_back(moved));
    assert_eq!(ledger.fingerprint(), before);
    assert!(matches!(
        ledger.apply(node(11, 6, 1)),
        Err(Refused::BlockTaken(_))
    ));
    ledger.apply(node(11, 6, 3)).expect("nobody's block");
}

#[test]
fn the_first_record_of_a_node_that_is_put_back_leaves_its_block_free() {
    let mut ledger = ledger(2);
    for n in [10, 11] {
        ledger.apply(membership(n)).expect("within the token");
    }
    let first = replaced(&mut ledger, node(10, 1, 1));
    assert!(first.is_first());
    assert!(ledger.put_back(first));
    assert_eq!(ledger.node(&key(10).public()), None);
    ledger.apply(node(11, 1, 1)).expect("nobody's block");
}

#[test]
fn a_change_with_consequences_for_other_records_is_not_undone() {
    let mut ledger = ledger(2);
    let joined = replaced(&mut ledger, membership(10));
    assert!(!ledger.put_back(joined));
    assert!(ledger.holds(&membership(10)));
    for envelope in [node(10, 1, 1), service(10, 1, "10.210.1.1")] {
        ledger.apply(envelope).expect("its own record");
    }
    let clearing = Node {
        services_from: 2,
        ..node_record(10, 2, 1)
    };
    let clearing = Envelope::seal(&Record::Node(clearing), &key(10));
    let cleared = replaced(&mut ledger, clearing.clone());
    assert_eq!(cleared.dropped().len(), 1);
    assert!(!ledger.put_back(cleared));
    assert!(ledger.holds(&clearing));
}

#[test]
fn the_tokens_and_the_members_that_each_of_them_admitted_are_listed() {
    assert!(Ledger::new(key(MESH).public()).is_empty());
    let mut ledger = two_nodes();
    assert!(!ledger.is_empty());
    let tokens: Vec<PublicKey> = ledger.tokens().map(|token| token.id).collect();
    assert_eq!(tokens, [key(TOKEN).public()]);
    let members = |ledger: &Ledger, token: u8| -> Vec<PublicKey> {
        let token = key(token).public();
        ledger.members_by(&token).map(|member| member.id).collect()
    };
    assert_eq!(members(&ledger, TOKEN).len(), 2);
    assert!(members(&ledger, 3).is_empty());
    ledger
        .apply(revocation(10, RevokedKind::Node, NOW))
        .expect("signed by the mesh key");
    assert_eq!(members(&ledger, TOKEN), [key(11).public()]);
}
