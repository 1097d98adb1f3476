use std::net::SocketAddr;

use super::super::endpoint::Via;
use super::super::path_entries::KEPT_FOR;
use super::*;
use crate::model::NodeAddress;
use crate::os::batch::Source;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn at(host: u8, port: u16) -> Endpoint {
    Endpoint::from(SocketAddr::from(([192, 0, 2, host], port)))
}

fn path(host: u8, port: u16) -> Path {
    at(host, port).path()
}

/// From the peer's usual endpoint to an address of this host.
fn from(last: u8) -> Endpoint {
    Endpoint {
        source: Some(Source {
            address: [192, 0, 2, last].into(),
            interface: 2,
        }),
        ..at(1, 51820)
    }
}

fn roaming() -> PathTable {
    PathTable::new(None)
}

fn wants_route(table: &PathTable) -> bool {
    table.entries().iter().any(Entry::wants_route)
}

fn handle_route(table: &mut PathTable, endpoint: Endpoint, leaves_by: Option<u32>) {
    for entry in table.entries_mut() {
        entry.handle_route(endpoint, leaves_by);
    }
}

/// A steered table whose primary path was heard at `now`.
fn steered(primary: Endpoint, now: Instant) -> PathTable {
    let mut table = PathTable::new(Some(primary));
    table.set_choice(Choice::Steered);
    table.handle_received(primary, now);
    assert_eq!(table.primary(), Some(primary.path()));
    table
}

#[test]
fn a_roaming_peer_is_where_its_last_datagram_came_from_and_has_one_path() {
    let (mut table, now) = (roaming(), Instant::now());
    for host in 1..=40 {
        table.handle_received(at(host, 7), now);
        assert_eq!(table.endpoint(), Some(at(host, 7)));
        assert_eq!(table.entries().len(), 1);
    }
}

#[test]
fn the_source_is_given_up_when_an_initiation_is_repeated_without_an_answer() {
    let (mut table, now) = (roaming(), Instant::now());
    table.handle_received(from(7), now);
    table.handle_initiation();
    assert_eq!(table.endpoint(), Some(from(7)), "the first initiation");
    table.handle_received(from(7), now);
    table.handle_initiation();
    assert_eq!(table.endpoint(), Some(from(7)), "the last one was answered");
    table.handle_initiation();
    assert_eq!(table.endpoint(), Some(from(7).without_source()));
}

#[test]
fn the_route_is_looked_up_once_for_each_new_source() {
    for steered in [false, true] {
        let (mut table, now) = (roaming(), Instant::now());
        if steered {
            table.set_choice(Choice::Steered);
        }
        assert!(table.handle_received(from(7), now).wants_route && wants_route(&table));
        assert!(!table.handle_received(from(7), now).wants_route);
        handle_route(&mut table, from(7), Some(2));
        assert!(!wants_route(&table));
        assert!(table.handle_received(from(8), now).wants_route && wants_route(&table));
        let other = from(8).without_source();
        assert!(!table.handle_received(other, now).wants_route && !wants_route(&table));
    }
}

#[test]
fn a_source_whose_route_changed_is_not_learnt_again_from_datagrams_that_still_arrive_there() {
    for steered in [false, true] {
        let (mut table, now) = (roaming(), Instant::now());
        if steered {
            table.set_choice(Choice::Steered);
        }
        table.handle_received(from(7), now);
        // Datagrams arrive at one interface and leave by another: that alone changes nothing.
        handle_route(&mut table, from(7), Some(3));
        handle_route(&mut table, from(7), Some(3));
        assert_eq!(table.endpoint(), Some(from(7)));
        handle_route(&mut table, from(7), Some(4));
        assert_eq!(table.endpoint(), Some(from(7).without_source()));
        assert!(!table.handle_received(from(7), now).wants_route);
        assert_eq!(table.endpoint(), Some(from(7).without_source()));
        assert!(
            table.handle_received(from(8), now).wants_route,
            "another source is learnt"
        );
        table
            .entries_mut()
            .iter_mut()
            .for_each(|entry| entry.accept(from(7)));
        assert!(
            table.handle_received(from(7), now).wants_route,
            "and this one once it is accepted"
        );
    }
}

#[test]
fn a_source_without_a_route_is_given_up_until_the_next_datagram_arrives_there() {
    let (mut table, now) = (roaming(), Instant::now());
    table.handle_received(from(7), now);
    handle_route(&mut table, from(8), None);
    assert_eq!(
        table.endpoint(),
        Some(from(7)),
        "the answer is about another source"
    );
    handle_route(&mut table, from(7), None);
    assert_eq!(table.endpoint(), Some(from(7).without_source()));
    assert!(table.handle_received(from(7), now).wants_route);
    assert_eq!(table.endpoint(), Some(from(7)));
}

#[test]
fn setting_an_endpoint_leaves_the_source_to_the_kernel() {
    let (mut table, now) = (roaming(), Instant::now());
    table.handle_received(from(7), now);
    table.set_endpoint(Some(from(7).without_source()));
    assert_eq!(table.endpoint(), Some(from(7).without_source()));
}

#[test]
fn a_datagram_by_another_path_does_not_move_the_path_of_a_steered_peer() {
    let now = Instant::now();
    let mut table = steered(at(1, 7), now);
    // Another address, also after the primary path was silent; another port while the primary path is heard.
    assert!(table.handle_received(at(2, 7), now).is_news);
    assert!(table.handle_received(at(1, 8), now + ms(399)).is_news);
    table.handle_received(at(3, 7), now + ms(10_000));
    assert_eq!(table.primary(), Some(path(1, 7)));
    let heard = |table: &PathTable, of| {
        let mut entries = table.entries().iter();
        entries.find(|e| e.endpoint == of).and_then(|e| e.heard)
    };
    assert_eq!(heard(&table, at(1, 8)), Some(now + ms(399)), "it is known");
}

#[test]
fn another_port_of_the_same_address_is_adopted_at_once_when_the_primary_path_is_silent() {
    let now = Instant::now();
    let mut table = steered(at(1, 7), now);
    table.reports.patience = ms(900);
    table.handle_received(at(1, 8), now + ms(899));
    assert_eq!(table.primary(), Some(path(1, 7)));
    assert!(table.handle_received(at(1, 8), now + ms(900)).is_news);
    assert_eq!(table.primary(), Some(path(1, 8)));
}

#[test]
fn a_primary_path_that_was_never_heard_gives_way_to_one_that_is() {
    let now = Instant::now();
    let mut table = PathTable::new(Some(at(1, 7)));
    table.set_choice(Choice::Steered);
    assert!(table.handle_received(at(9, 9), now).is_news);
    assert_eq!(table.primary(), Some(path(9, 9)));
    table.handle_received(at(1, 7), now);
    assert_eq!(table.primary(), Some(path(9, 9)), "the first one is kept");
}

#[test]
fn a_primary_path_that_was_chosen_does_not_give_way_to_a_datagram_from_anywhere() {
    let now = Instant::now();
    let mut table = steered(at(1, 7), now);
    table.offer(&[at(2, 7)], &[], now);
    assert!(table.use_path(&path(2, 7), None, now));
    // Nothing was heard by it yet.
    assert!(table.handle_received(at(9, 9), now).is_news);
    table.handle_received(at(1, 7), now);
    assert_eq!(table.primary(), Some(path(2, 7)));
    table.handle_received(at(2, 8), now);
    assert_eq!(
        table.primary(),
        Some(path(2, 8)),
        "its translator was renewed"
    );
}

#[test]
fn a_table_holds_twelve_paths_and_keeps_the_primary_one() {
    let now = Instant::now();
    let mut table = steered(at(1, 7), now);
    let mut reports = 0;
    for port in 1000..2000 {
        reports += u32::from(table.handle_received(at(2, port), now + ms(1)).is_news);
        assert!(table.entries().len() <= MAX_PATHS);
    }
    assert_eq!(table.primary(), Some(path(1, 7)));
    assert_eq!(reports, 1, "a flood of ports is one report");
    let offers: Vec<Endpoint> = (0..100).map(|n| at(3, n)).collect();
    table.offer(&offers, &offers, now);
    assert_eq!(table.entries().len(), MAX_PATHS);
    assert_eq!(table.primary(), Some(path(1, 7)));
}

#[test]
fn silence_is_reported_once_after_the_patience_and_only_while_packets_are_sent() {
    let now = Instant::now();
    let mut table = steered(at(1, 7), now);
    assert_eq!(table.handle_time(now + ms(60_000)), (false, None));
    table.handle_sent(None, now);
    let due = now + LEAST_PATIENCE;
    assert_eq!(table.handle_time(now + ms(399)), (false, Some(due)));
    // Datagrams by another path do not count.
    table.handle_received(at(2, 7), now + ms(399));
    table.handle_sent(None, now + ms(399));
    assert_eq!(table.handle_time(due), (true, None));
    assert_eq!(table.handle_time(due + ms(1000)), (false, None));
    table.handle_received(at(1, 7), due);
    assert_eq!(table.handle_time(due + ms(1000)), (false, None));
    table.handle_sent(None, due);
    assert_eq!(table.handle_time(due + ms(400)), (true, None));
}

#[test]
fn silence_is_reported_although_the_peer_tests_the_path() {
    let now = Instant::now();
    let mut table = steered(at(1, 7), now);
    table.handle_sent(None, now);
    for n in (100..400).step_by(100) {
        table.handle_received(at(1, 7), now + ms(n));
        table.wait.handle_probe(1);
    }
    assert_eq!(table.handle_time(now + LEAST_PATIENCE), (true, None));
    // A probe by another path does not bring back a wait that ended.
    table.handle_received(at(1, 7), now + ms(500));
    table.handle_received(at(2, 7), now + ms(500));
    table.wait.handle_probe(1);
    assert_eq!(table.wait.since(), None);
}

#[test]
fn a_move_to_a_faster_path_waits_for_a_gap_but_not_for_long() {
    let now = Instant::now();
    let gap = Some(ms(10));
    let table = || {
        let mut table = steered(at(1, 7), now);
        table.handle_received(at(2, 7), now);
        assert!(table.use_path(&path(2, 7), gap, now));
        table
    };
    let mut sent = table();
    sent.handle_sent(Some(now), now + ms(9));
    assert_eq!(sent.primary(), Some(path(1, 7)), "no gap yet");
    sent.handle_sent(Some(now + ms(9)), now + ms(19));
    assert_eq!(sent.primary(), Some(path(2, 7)));
    let mut busy = table();
    for n in 0..500 {
        busy.handle_sent(Some(now + ms(n)), now + ms(n));
        assert_eq!(busy.primary(), Some(path(1, 7)));
    }
    busy.handle_sent(Some(now + ms(499)), now + LONGEST_MOVE);
    assert_eq!(busy.primary(), Some(path(2, 7)));
    let mut idle = table();
    assert!(idle.handle_time(now + LONGEST_MOVE).0, "it is reported");
    assert_eq!(idle.primary(), Some(path(2, 7)));
    assert!(!idle.use_path(&path(3, 7), None, now), "an unknown path");
}

#[test]
fn initiations_are_sent_by_all_offered_paths_until_one_works() {
    let now = Instant::now();
    let mut table = PathTable::new(Some(at(1, 7)));
    table.set_choice(Choice::Steered);
    table.offer(&[at(4, 7)], &[at(1, 7), at(2, 7), at(3, 7)], now);
    let openings = |table: &mut PathTable| {
        table.entries_mut().iter_mut().for_each(Entry::end_rest);
        let to = table.endpoint().expect("a primary path");
        table.openings(&to, |_| true, now)
    };
    assert_eq!(openings(&mut table), [at(1, 7), at(2, 7), at(3, 7)]);
    table.handle_received(at(3, 7), now);
    assert_eq!(table.primary(), Some(path(3, 7)));
    assert_eq!(openings(&mut table), [at(3, 7)]);
    table.handle_initiation();
    let all = [at(3, 7), at(1, 7), at(2, 7)];
    assert_eq!(openings(&mut table), all, "it is not answered");
}

#[test]
fn an_initiation_is_sent_back_by_a_stream_that_is_no_path_of_the_peer_yet() {
    let now = Instant::now();
    let mut table = PathTable::new(None);
    table.set_choice(Choice::Steered);
    table.offer(&[], &[at(1, 7)], now);
    let peer = NodeAddress([10, 210, 2, 1].into());
    let stream = Endpoint::streamed(Via::streamed(peer, peer.0));
    let sent = table.openings(&stream, |_| true, now);
    assert_eq!(sent, [stream, at(1, 7)]);
    let unknown = table.openings(&at(9, 7), |_| false, now);
    assert_eq!(unknown, [], "the limit applies to what is not known");
}

#[test]
fn paths_by_which_the_peer_was_never_heard_are_opened_more_and_more_rarely_and_within_the_limit() {
    let now = Instant::now();
    let mut table = PathTable::new(None);
    table.set_choice(Choice::Steered);
    let (victim, other) = (at(9, 7), at(8, 7));
    table.offer(&[], &[victim, other], now);
    let mut asked = 0;
    let mut times = |table: &mut PathTable, from: u64, to: u64, limit: bool| {
        // The timers repeat an initiation every five seconds.
        let mut times = Vec::new();
        for second in (from..to).step_by(5) {
            let admit = |address| {
                asked += u32::from(address == victim.address.ip());
                limit || address != victim.address.ip()
            };
            let sent = table.openings(&other, admit, now + ms(second * 1000));
            if sent.contains(&victim) {
                times.push(second);
            }
        }
        times
    };
    let sent = times(&mut table, 0, 400, true);
    assert_eq!(sent, [0, 5, 10, 15, 25, 45, 80, 145, 210, 275, 340]);
    table.open();
    assert_eq!(
        times(&mut table, 400, 405, false),
        [0; 0],
        "the limit is reached"
    );
    assert_eq!(times(&mut table, 405, 406, true), [405]);
    table.handle_received(victim, now + ms(406_000));
    table.handle_initiation();
    let sent = times(&mut table, 410, 430, false);
    assert_eq!(sent, [410, 415, 420, 425], "it is the peer's own address");
    assert!(asked <= 14, "{asked}");
}

#[test]
fn each_path_has_its_own_mtu_and_a_new_one_begins_with_the_one_in_use() {
    let now = Instant::now();
    let mut table = steered(at(1, 7), now);
    assert_eq!(table.mtu(), u16::MAX);
    table.set_mtu(1300);
    table.handle_received(at(2, 7), now);
    table.use_path(&path(2, 7), None, now);
    assert_eq!(table.mtu(), 1300);
    table.set_mtu(1400);
    table.use_path(&path(1, 7), None, now);
    assert_eq!(table.mtu(), 1300);
    table.use_path(&path(2, 7), None, now);
    assert_eq!(table.mtu(), 1400);
}

#[test]
fn reports_are_made_once_when_they_are_asked_for() {
    let now = Instant::now();
    let mut table = steered(at(1, 7), now);
    assert!(!table.handle_sent(None, now));
    assert!(!table.handle_received(at(1, 7), now).is_news);
    (table.reports.heard, table.reports.sent) = (true, true);
    assert!(table.handle_sent(None, now) && !table.handle_sent(None, now));
    assert!(table.handle_received(at(1, 7), now).is_news);
    assert!(!table.handle_received(at(1, 7), now).is_news);
}

#[test]
fn former_paths_make_room_for_offered_ones_unless_they_are_in_use_or_heard_lately() {
    let now = Instant::now();
    let mut table = PathTable::new(None);
    table.set_choice(Choice::Steered);
    for port in 1..=12 {
        table.handle_received(at(1, port), now);
    }
    let later = now + KEPT_FOR;
    // The primary path is the last one of the table, and so it moves up.
    table.handle_received(at(1, 5), later);
    table.use_path(&path(1, 12), None, later);
    table.use_path(&path(1, 9), Some(ms(10)), later);
    let ports = |table: &PathTable| {
        let entries = table.entries().iter();
        let mut paths: Vec<Path> = entries.map(|entry| entry.endpoint.path()).collect();
        paths.sort_unstable();
        paths
    };
    table.offer(&[at(2, 1)], &[], later);
    let kept = [path(1, 5), path(1, 9), path(1, 12), path(2, 1)];
    assert_eq!(ports(&table), kept);
    assert_eq!(table.primary(), Some(path(1, 12)));
    assert!(table.handle_time(later + LONGEST_MOVE).0);
    assert_eq!(table.primary(), Some(path(1, 9)));
    // All others were heard lately: the oldest ones make room for those that are offered, and none of these for another.
    for port in 20..40 {
        table.handle_received(at(4, port), later + ms(1));
    }
    let offers: Vec<Endpoint> = (1..=10).map(|n| at(3, n)).collect();
    table.offer(&offers, &offers, later + ms(2));
    let is_known = |offer: &Endpoint| table.endpoint_of(&offer.path()).is_some();
    assert!(offers.iter().all(is_known), "{:?}", ports(&table));
    assert_eq!(table.primary(), Some(path(1, 9)));
    assert_eq!(table.entries().len(), MAX_PATHS);
}
