use std::collections::VecDeque;
use std::sync::Arc;

use super::*;
use crate::node::replica::Applied;
use crate::records::Ledger;
use crate::records::kinds::{Record, Token};
use crate::testbed::records as build;
use crate::testbed::records::key;

const MESH: u8 = 1;

fn token(n: u8, version: u64) -> Envelope {
    let token = Token {
        version,
        ..build::token(&key(n).public())
    };
    Envelope::seal(&Record::Token(token), &key(MESH))
}

/// A node: its conversation and its ledger.
struct End {
    exchange: Exchange,
    ledger: Ledger,
    steps: VecDeque<Step>,
    ended: bool,
    /// Memberships for which this end vouches.
    witnessed: Vec<Envelope>,
    /// Memberships for which the other end vouched.
    vouched: Vec<Envelope>,
}

impl End {
    fn new(exchange: Exchange, records: &[Envelope]) -> Self {
        let mut ledger = Ledger::new(key(MESH).public());
        for record in records {
            ledger.apply(record.clone()).expect("sound");
        }
        let steps = exchange.begin().into();
        Self {
            exchange,
            ledger,
            steps,
            ended: false,
            witnessed: Vec::new(),
            vouched: Vec::new(),
        }
    }

    /// Takes all steps, and returns the messages that it sends.
    fn run(&mut self) -> Vec<PeerMessage> {
        let mut sent = Vec::new();
        while let Some(step) = self.steps.pop_front() {
            let request = match step {
                Step::Send(message) => {
                    sent.push(message);
                    continue;
                }
                Step::Flush | Step::Proven => continue,
                Step::End => {
                    self.ended = true;
                    continue;
                }
                Step::Ask(request) => request,
            };
            let reply = match request {
                LedgerRequest::Vouched { memberships, .. } => {
                    self.vouched.extend(memberships);
                    LedgerReply::Applied(Applied::default())
                }
                LedgerRequest::Memberships(nodes) => {
                    assert!(nodes.len() <= MAX_ASKED);
                    LedgerReply::Memberships(self.witnessed.clone())
                }
                LedgerRequest::Apply { records, .. } => {
                    for record in records {
                        let _ = self.ledger.apply(record);
                    }
                    LedgerReply::Applied(Applied::default())
                }
                LedgerRequest::Digests => LedgerReply::Digests(Arc::new(Digests::of(&self.ledger))),
                LedgerRequest::Records(signers) => {
                    let held = self.ledger.envelopes_for_peers();
                    let held = held.filter(|e| signers.contains(&e.signer));
                    LedgerReply::Records(held.cloned().collect())
                }
            };
            let more = self.exchange.handle_reply(reply);
            self.steps.extend(more);
        }
        sent
    }
}

/// Exchanges all messages of the two, and returns their number.
fn talk(dialler: &mut End, dialled: &mut End) -> Result<usize, Broken> {
    let mut count = 0;
    loop {
        let mut silent = true;
        for turn in [true, false] {
            let (from, to) = if turn {
                (&mut *dialler, &mut *dialled)
            } else {
                (&mut *dialled, &mut *dialler)
            };
            for message in from.run() {
                silent = false;
                count += 1;
                to.steps.extend(to.exchange.handle_message(message)?);
                // What is sent meanwhile is kept back till its turn.
                let replies = to.run();
                to.steps.extend(replies.into_iter().map(Step::Send));
            }
        }
        if silent {
            return Ok(count);
        }
    }
}

fn with(news: Vec<Envelope>) -> Opening {
    Opening {
        news,
        asks: Vec::new(),
    }
}

fn pair(ours: &[Envelope], theirs: &[Envelope], news: Vec<Envelope>) -> (End, End) {
    let (a, b) = (key(10), key(11));
    let dial = Exchange::dial(a.clone(), b.public(), "n1".into(), with(news));
    let answer = Exchange::answer(b, a.public(), "n2".into());
    (End::new(dial, ours), End::new(answer, theirs))
}

#[test]
fn both_hold_the_newest_of_all_afterwards() {
    let (mut a, mut b) = pair(
        &[token(20, 5), token(21, 1)],
        &[token(21, 7), token(22, 1)],
        vec![],
    );
    talk(&mut a, &mut b).expect("both keep to the protocol");
    assert!(a.ended && b.ended);
    assert_eq!(Digests::of(&a.ledger), Digests::of(&b.ledger));
    assert_eq!(a.ledger.len(), 3);
    let id = key(21).public();
    assert_eq!(a.ledger.token(&id).map(|t| t.version), Some(7));
}

#[test]
fn news_alone_are_a_matter_of_seven_messages() {
    let known = [token(20, 5)];
    let news = token(21, 1);
    let (mut a, mut b) = pair(&[known[0].clone(), news.clone()], &known, vec![news]);
    let count = talk(&mut a, &mut b).expect("both keep to the protocol");
    // Two hellos, two proofs, the news, the summary, and that it is the same.
    assert_eq!(count, 7);
    assert!(a.ended && b.ended);
    assert_eq!(b.ledger.len(), 2);
}

#[test]
fn who_cannot_prove_who_it_is_gets_nothing() {
    let stranger = key(66);
    let (_, b) = (key(10), key(11));
    let a_key = key(10).public();
    // It claims to be another.
    let mut a = End::new(
        Exchange::dial(
            stranger.clone(),
            b.public(),
            "n1".into(),
            with(vec![token(20, 1)]),
        ),
        &[],
    );
    let mut answer = End::new(Exchange::answer(b.clone(), a_key, "n2".into()), &[]);
    assert_eq!(talk(&mut a, &mut answer), Err(Broken::WrongNode));
    // It names the other, and signs with its own key.
    let mut answer = End::new(Exchange::answer(b.clone(), a_key, "n2".into()), &[]);
    let hello = PeerMessage::Hello {
        protocol: PROTOCOL,
        node: a_key,
        nonce: "n1".into(),
    };
    let steps = answer.exchange.handle_message(hello).expect("a hello");
    assert_eq!(steps.len(), 2);
    let message = proof_message("n2", &a_key, &b.public());
    let signature = Signature::make(&stranger, Purpose::Peer, &message);
    let proof = PeerMessage::Proof { signature };
    assert_eq!(answer.exchange.handle_message(proof), Err(Broken::Proof));
    // The answer to its own challenge does not serve it either.
    let message = proof_message("n1", &b.public(), &a_key);
    let signature = Signature::make(&b, Purpose::Peer, &message);
    let proof = PeerMessage::Proof { signature };
    assert_eq!(answer.exchange.handle_message(proof), Err(Broken::Proof));
}

#[test]
fn nothing_is_taken_out_of_turn_or_beyond_the_bounds() {
    let fresh = || Exchange::answer(key(11), key(10).public(), "n2".into());
    for message in [
        PeerMessage::Records { records: vec![] },
        PeerMessage::Same,
        PeerMessage::Done,
        PeerMessage::Want {
            signers: vec![],
            last: true,
        },
    ] {
        assert_eq!(fresh().handle_message(message), Err(Broken::OutOfTurn));
    }
    assert_eq!(
        fresh().handle_message(PeerMessage::Hello {
            protocol: PROTOCOL + 1,
            node: key(10).public(),
            nonce: String::new(),
        }),
        Err(Broken::Version(PROTOCOL + 1))
    );
    let mut flooded = fresh();
    flooded.turn = Turn::Summary;
    let records = vec![token(20, 1); MAX_RECORDS + 1];
    assert_eq!(
        flooded.handle_message(PeerMessage::Records { records }),
        Err(Broken::TooMuch)
    );
    let mut flooded = fresh();
    flooded.turn = Turn::Summary;
    let records = vec![token(20, 1); MAX_RECORDS];
    let most = MAX_ALL_RECORDS / MAX_RECORDS;
    let taken = (0..=most)
        .map_while(|_| {
            let records = records.clone();
            flooded
                .handle_message(PeerMessage::Records { records })
                .ok()
        })
        .count();
    assert_eq!(taken, most);
}

#[test]
fn a_departure_is_acknowledged_before_it_ends_the_tunnel() {
    use crate::records::kinds::{Departure, Record};
    let departure = |n: u8| {
        let key = SigningKey::from_seed(&[n; 32]);
        Envelope::seal(&Record::Departure(Departure::of(key.public())), &key)
    };
    let (here, there) = (
        SigningKey::from_seed(&[1; 32]),
        SigningKey::from_seed(&[2; 32]),
    );
    let steps_of = |records: Vec<Envelope>| {
        let mut exchange = Exchange::answer(here.clone(), there.public(), "nonce".to_owned());
        exchange.turn = Turn::Summary;
        exchange.handle_message(PeerMessage::Records { records })
    };
    let peer = there.public();
    let apply = |records| Step::Ask(LedgerRequest::Apply { peer, records });
    let own = vec![departure(2)];
    assert_eq!(
        steps_of(own.clone()),
        Ok(vec![
            Step::Send(PeerMessage::Received),
            Step::Flush,
            apply(own)
        ])
    );
    // That of another node ends no tunnel to this one.
    let others = vec![departure(3)];
    assert_eq!(steps_of(others.clone()), Ok(vec![apply(others)]));
}

/// Like [`pair`]. The end that dials holds back the memberships of the nodes in `asks`.
fn asking(asks: Vec<PublicKey>, ours: &[Envelope], theirs: &[Envelope]) -> (End, End) {
    let (a, b) = (key(10), key(11));
    let opening = Opening {
        news: Vec::new(),
        asks,
    };
    let dial = Exchange::dial(a.clone(), b.public(), "n1".into(), opening);
    let answer = Exchange::answer(b, a.public(), "n2".into());
    (End::new(dial, ours), End::new(answer, theirs))
}

#[test]
fn a_peer_is_asked_for_memberships_and_vouches_before_the_records_are_compared() {
    let held_back = key(30).public();
    for theirs in [vec![token(20, 5)], vec![token(21, 1)]] {
        let (mut a, mut b) = asking(vec![held_back], &[token(20, 5)], &theirs);
        let membership = token(99, 1);
        b.witnessed = vec![membership.clone()];
        talk(&mut a, &mut b).expect("both keep to the protocol");
        assert!(a.ended && b.ended);
        assert_eq!(a.vouched, [membership]);
        assert_eq!(Digests::of(&a.ledger), Digests::of(&b.ledger));
        // If the other end vouches for no membership, the conversation goes on as without the question.
        let (mut a, mut b) = asking(vec![held_back], &[token(20, 5)], &theirs);
        talk(&mut a, &mut b).expect("both keep to the protocol");
        assert!(a.ended && b.ended && a.vouched.is_empty());
    }
}

#[test]
fn nobody_vouches_unasked_or_for_more_than_was_asked() {
    let vouch = |count| PeerMessage::Vouch {
        memberships: vec![token(20, 1); count],
    };
    let asked = |count: u8| {
        let asks = (0..count).map(|n| key(n).public()).collect();
        let (mut a, _) = asking(asks, &[], &[]);
        a.exchange.asked = match &a.exchange.side {
            Side::Dials(opening) => opening.asks.clone(),
            Side::IsDialled => Vec::new(),
        };
        a.exchange.turn = Turn::Verdict;
        a.exchange
    };
    assert_eq!(asked(0).handle_message(vouch(1)), Err(Broken::TooMuch));
    assert_eq!(asked(2).handle_message(vouch(3)), Err(Broken::TooMuch));
    let mut once = asked(200);
    assert_eq!(once.asked.len(), MAX_ASKED);
    assert!(once.handle_message(vouch(MAX_ASKED)).is_ok());
    assert_eq!(once.handle_message(vouch(1)), Err(Broken::TooMuch));
    // The dialled end accepts no vouching, and answers only one question, of bounded length.
    let fresh = || {
        let mut exchange = Exchange::answer(key(11), key(10).public(), "n2".into());
        exchange.turn = Turn::Summary;
        exchange
    };
    assert_eq!(fresh().handle_message(vouch(1)), Err(Broken::OutOfTurn));
    let ask = |count| PeerMessage::Ask {
        nodes: vec![key(1).public(); count],
    };
    assert_eq!(
        fresh().handle_message(ask(MAX_ASKED + 1)),
        Err(Broken::TooMuch)
    );
    let mut twice = fresh();
    assert_eq!(twice.handle_message(ask(1)), Ok(vec![]));
    assert_eq!(twice.handle_message(ask(1)), Err(Broken::TooMuch));
}

#[test]
fn who_dials_a_peer_of_an_earlier_version_is_not_kept_waiting() {
    let (mut a, mut b) = asking(vec![key(30).public()], &[token(20, 5)], &[token(20, 5)]);
    // That version ignores messages that it does not know.
    let mut messages = VecDeque::new();
    loop {
        for message in a.run() {
            let message = match message {
                PeerMessage::Ask { .. } => PeerMessage::Unknown,
                other => other,
            };
            messages.push_back(message);
        }
        let Some(message) = messages.pop_front() else {
            break;
        };
        b.steps
            .extend(b.exchange.handle_message(message).expect("in turn"));
        for reply in b.run() {
            a.steps
                .extend(a.exchange.handle_message(reply).expect("in turn"));
        }
    }
    assert!(a.ended && b.ended);
}
