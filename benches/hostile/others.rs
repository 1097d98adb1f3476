//! Honest members, which publish changes, and one of which receives all of them, while new members join.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meshd::records::envelope::Signature;
use tokio::time::{interval, sleep, timeout};

use crate::kit::{Hello, Member, Stream, record};
use crate::report::Times;
use crate::setting::Setting;

/// How many members publish.
const PUBLISHERS: usize = 4;
/// The time between two changes of one member.
const PACE: Duration = Duration::from_millis(100);
/// The time between two joins.
const JOINS: Duration = Duration::from_millis(500);

/// When something began, and how long it took. `None` means that it did not end.
type Timed = (Instant, Option<Duration>);

/// The times of all changes and joins.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    changes: Vec<Timed>,
    joins: Vec<Timed>,
    end: Option<Instant>,
}

type Window = (Instant, Instant);

fn within(times: &[Timed], (from, to): Window) -> impl Iterator<Item = &Timed> {
    let is_within = move |timed: &&Timed| timed.0 >= from && timed.0 < to;
    times.iter().filter(is_within)
}

impl Observed {
    pub(crate) fn changes_in(&self, window: Window) -> Times {
        let end = self.end.unwrap_or(window.1);
        let took =
            |(began, took): &Timed| took.unwrap_or_else(|| end.saturating_duration_since(*began));
        Times::new(within(&self.changes, window).map(took).collect())
    }

    pub(crate) fn joins_in(&self, window: Window) -> Times {
        Times::new(within(&self.joins, window).filter_map(|t| t.1).collect())
    }

    pub(crate) fn failed_joins_in(&self, window: Window) -> usize {
        within(&self.joins, window)
            .filter(|t| t.1.is_none())
            .count()
    }
}

/// When each change was due that has not been received yet, by the signature of the change.
type OnTheWay = Rc<RefCell<HashMap<[u8; 64], Instant>>>;

/// Publishes and joins until `stop`.
pub(crate) async fn observe(setting: &Setting, stop: &AtomicBool) -> Observed {
    let on_the_way = OnTheWay::default();
    let changes = Rc::new(RefCell::new(Vec::new()));
    let joins = Rc::new(RefCell::new(Vec::new()));
    let mut members = Vec::new();
    for n in 0..=PUBLISHERS {
        let member = Member::join(&setting.token, &format!("honest{n}")).await;
        members.push(member.expect("nobody attacks yet"));
    }
    let witness = members.pop().expect("one more than publishers");
    let work = async {
        let publishers = members.iter().map(|m| publish(setting, m, &on_the_way));
        let publishers = futures_util::future::join_all(publishers);
        tokio::join!(
            receive(setting, &witness, &on_the_way, &changes),
            publishers,
            join_others(setting, &joins)
        )
    };
    let stopped = async {
        while !stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = work => {}
        () = stopped => {}
    }
    let mut changes = changes.take();
    changes.extend(on_the_way.take().into_values().map(|began| (began, None)));
    Observed {
        changes,
        joins: joins.take(),
        end: Some(Instant::now()),
    }
}

/// Opens a stream, and tries again until it succeeds.
async fn open(setting: &Setting, member: &Member) -> Stream {
    loop {
        let hello = Hello::default();
        let opened = Stream::open(&setting.target, member.key(), &hello);
        if let Ok(Ok(stream)) = timeout(Duration::from_secs(5), opened).await {
            return stream;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn publish(setting: &Setting, member: &Member, on_the_way: &OnTheWay) {
    let mut stream = open(setting, member).await;
    let _ = stream
        .publish(vec![member.node().signed_by(member.key())])
        .await;
    let mut ticks = interval(PACE);
    loop {
        tokio::select! {
            due = ticks.tick() => {
                let change = member.service("web").version(record::new_version());
                let change = change.signed_by(member.key());
                let Signature(signature) = change.signature;
                // The time counts from when the change was due, since a member that has to wait publishes it later.
                on_the_way.borrow_mut().insert(signature, due.into_std());
                if stream.send_records(&[change]).await.is_err() {
                    stream = open(setting, member).await;
                }
            }
            heard = stream.hear() => {
                stream.received.clear();
                if heard.is_err() {
                    stream = open(setting, member).await;
                }
            }
        }
    }
}

async fn receive(
    setting: &Setting,
    member: &Member,
    on_the_way: &OnTheWay,
    changes: &RefCell<Vec<Timed>>,
) {
    let mut stream = open(setting, member).await;
    loop {
        let heard = stream.hear().await;
        for record in stream.received.drain(..) {
            if let Some(began) = on_the_way.borrow_mut().remove(&record.signature.0) {
                changes.borrow_mut().push((began, Some(began.elapsed())));
            }
        }
        if heard.is_err() {
            stream = open(setting, member).await;
        }
    }
}

async fn join_others(setting: &Setting, joins: &RefCell<Vec<Timed>>) {
    let mut ticks = interval(JOINS);
    for n in 0u32.. {
        ticks.tick().await;
        let began = Instant::now();
        let name = format!("new{n}");
        let joined = timeout(Duration::from_secs(5), Member::join(&setting.token, &name)).await;
        let took = matches!(joined, Ok(Ok(_))).then(|| began.elapsed());
        joins.borrow_mut().push((began, took));
    }
}
