//! What a policy costs a TCP stream, and how soon a change of the policy ends what it denies.

use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use meshd::policy::OPEN;
use meshd::protocol::local::PeerState;
use meshd::testbed::paired::Spread;

use crate::Settings;
use crate::flow::Flow;
use crate::lab::{Lab, Node};
use crate::median::median;
use crate::read::process_cpu;
use crate::report::{Times, note, print};

/// How long the rate is measured in one round.
const ROUND: Duration = Duration::from_secs(3);
/// How long a stream takes to reach its full rate.
const WARM: Duration = Duration::from_secs(1);
/// The rules of the policy that is loaded.
const RULES: usize = 1000;
/// The first port of the streams. The policy allows this one and those after it.
const PORT: u16 = 7100;
const CLOSED: &str = "language = 1\ndefault = \"deny\"\n";
/// How long the traffic passes before a change.
const BEFORE: Duration = Duration::from_millis(700);
/// How long the traffic is watched after a change. It must end in this time.
const AFTER: Duration = Duration::from_secs(2);

pub(crate) fn throughput(settings: &Settings) {
    let lab = pair();
    let rules = rules();
    let rounds = settings.runs.min(12);
    let (mut rates, mut costs) = ([vec![], vec![]], [vec![], vec![]]);
    let mut port = PORT;
    for round in 0..rounds {
        // The order changes, so that a drift of the machine does not favour one of them.
        for which in [round % 2, (round + 1) % 2] {
            lab.apply([OPEN, &rules][which]);
            let stream = lab.nodes[0].stream(&lab.nodes[1], port, None);
            port += 1;
            std::thread::sleep(WARM);
            let (cpu, bytes, began) = (cpu(&lab), stream.received(), Instant::now());
            std::thread::sleep(ROUND);
            let bytes = (stream.received() - bytes) as f64;
            rates[which].push(bytes * 8.0 / 1e9 / began.elapsed().as_secs_f64());
            costs[which].push((self::cpu(&lab) - cpu).as_secs_f64() / (bytes / 1e9));
            assert!(stream.stop(), "the policy allows the stream");
        }
    }
    let span = |values: &[f64]| {
        let spread = Spread::of(values.iter().copied()).expect("there is a round");
        spread.shown(|value| format!("{value:.2}"))
    };
    let share = median(&rates[1]) / median(&rates[0]);
    print(
        "B1",
        "one TCP stream, without a policy and with 1,000 rules",
        &format!(
            "{} and {} Gbit/s: {share:.3} of it; {} and {} s/GB of both daemons; medians of {rounds} rounds in turn",
            span(&rates[0]),
            span(&rates[1]),
            span(&costs[0]),
            span(&costs[1])
        ),
        "a loss of at most 1 %",
        share >= 0.99,
    );
}

pub(crate) fn cuts(settings: &Settings) {
    let lab = pair();
    let mut times = [Times::default(), Times::default(), Times::default()];
    let mut applied = Times::default();
    let runs = settings.runs.min(20);
    for port in (PORT..).take(runs) {
        lab.apply(OPEN);
        let stream = lab.nodes[0].stream(&lab.nodes[1], port, Some(2e6));
        let flow = Flow::start(&lab.nodes[0], &lab.nodes[1], 500);
        let ping = ping(&lab.nodes[0], &lab.nodes[1]);
        std::thread::sleep(BEFORE);
        let (began, date) = (Instant::now(), SystemTime::now());
        lab.sign(CLOSED);
        applied.add(Some(began.elapsed()));
        let (mut last, mut bytes) = (began, stream.received());
        while began.elapsed() < AFTER {
            std::thread::sleep(Duration::from_millis(2));
            if stream.received() != bytes {
                (last, bytes) = (Instant::now(), stream.received());
            }
        }
        let ended = |last: Instant| {
            let after = last.saturating_duration_since(began);
            (after + AFTER / 4 < AFTER).then_some(after)
        };
        times[0].add(ended(last));
        times[1].add(ended(flow.last()));
        times[2].add(ended(began + last_reply(ping, date)));
        flow.stop();
        // The threads of the stream wait for packets that no longer arrive, and end with this program.
        drop(stream);
    }
    for (what, times) in ["TCP", "UDP", "ping"].iter().zip(&times) {
        print(
            "B2",
            &format!("established {what} ends after `policy apply` began"),
            &times.shown(),
            "p99 <= 500 ms",
            times.percentile(99) <= Duration::from_millis(500),
        );
    }
    // What the command and the coordinator take of these times.
    note("B2", "`policy apply` itself ends", &applied.shown());
}

/// Two nodes that reach each other directly.
fn pair() -> Lab {
    let mut lab = Lab::new();
    let (one, other) = (lab.public("one"), lab.public("other"));
    lab.join();
    lab.wait("the two reach each other directly", |lab| {
        lab.are(one, other, PeerState::Direct)
    });
    lab
}

/// A policy of [`RULES`] rules. The first one allows the streams, and the others are about other ports.
fn rules() -> String {
    let mut text = format!("{CLOSED}[[allow]]\nfrom = [\"*\"]\nto = [\"*:{PORT}-9999\"]\n");
    for port in 1..RULES {
        let rule = "[[allow]]\nfrom = [\"node:one\"]\nto = [\"node:other";
        let _ = writeln!(text, "{rule}:{}\"]", 2 * port);
    }
    text
}

/// The processor time of all daemons so far.
fn cpu(lab: &Lab) -> Duration {
    let daemons = lab.nodes.iter().filter_map(|node| node.daemon.as_ref());
    daemons.map(process_cpu).sum()
}

/// Starts to send echo requests, for as long as a run takes.
fn ping(from: &Node, to: &Node) -> Child {
    let mut command: Command = from.host.command("ping").expect("a namespace");
    let lasts = (BEFORE + AFTER).as_secs().to_string();
    command
        .args(["-n", "-D", "-i", "0.01", "-w", &lasts])
        .arg(to.address.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command.spawn().expect("ping is installed")
}

/// How long after `since` the last answer came.
fn last_reply(ping: Child, since: SystemTime) -> Duration {
    let output = ping.wait_with_output().expect("it ends by itself");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut replies = text.lines().filter(|line| line.contains("icmp_seq"));
    let date = replies.next_back().and_then(|line| {
        let seconds = line.strip_prefix('[')?.split(']').next()?;
        seconds.parse().ok().map(Duration::from_secs_f64)
    });
    let date = SystemTime::UNIX_EPOCH + date.expect("the peer answered");
    date.duration_since(since).unwrap_or_default()
}
