//! Two builds of meshd in turn.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use meshd::testbed::World;
use meshd::testbed::paired::{Comparison, SIGNIFICANCE};

use crate::bed::{Bed, Subject};
use crate::earlier::{self, Earlier};
use crate::rig::{machine_cpu, print_table};
use crate::{Settings, names, number};

/// A figure of one build in one round: its name, and the value.
type Figure = (&'static str, f64);

/// The words for what can be measured.
const WORDS: [&str; 6] = ["tcp", "udp", "ping", "memory", "dns", "demo"];

/// The words that were given; without any, everything is measured.
pub(crate) struct Wanted(Vec<String>);

impl Wanted {
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        match words.iter().find(|word| !WORDS.contains(&word.as_str())) {
            Some(word) => Err(format!("`{word}` is not measured: {}", WORDS.join(", "))),
            None => Ok(Self(words.to_vec())),
        }
    }

    fn has(&self, word: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|wanted| wanted == word)
    }
}

/// What was measured of a figure: the values of the earlier build and of this one, by the round.
struct Samples {
    figure: &'static str,
    rounds: Vec<[f64; 2]>,
}

/// Prints a table of both builds. Returns whether it has a line.
pub(crate) fn compare(
    settings: &Settings,
    rounds: usize,
    wanted: &Wanted,
    earlier: &Earlier,
) -> bool {
    let (_, stolen) = machine_cpu();
    let began = Instant::now();
    let builds = [earlier.programs.as_path(), earlier::own_programs()];
    let mut samples: Vec<Samples> = Vec::new();
    for round in 0..rounds {
        // The order changes, so that neither of them always profits from being first.
        for build in [round % 2, (round + 1) % 2] {
            for (figure, value) in measure(builds[build], settings, wanted) {
                note(&mut samples, figure, [round, build], value);
            }
        }
        eprintln!("round {} of {rounds} done", round + 1);
    }
    let withheld = (machine_cpu().1 - stolen) / began.elapsed().as_secs_f64();
    println!(
        "{rounds} rounds over {}; the host withheld {withheld:.2} cores\nbefore: {}\nmedians, with the least and the most; the ratio is that of this build to the one before, within a round\n",
        settings.network(),
        earlier.title
    );
    let rows: Vec<Vec<String>> = samples.iter().filter_map(row).collect();
    let head = ["", "before", "now", "ratio", "p", "rounds", "difference"];
    print_table(&head, &rows);
    println!(
        "\np: how probable such ratios are without any difference (Wilcoxon's signed-rank test, two-sided); below {SIGNIFICANCE} the difference is larger than the spread"
    );
    !rows.is_empty()
}

/// Stores a value of a figure.
fn note(samples: &mut Vec<Samples>, figure: &'static str, [round, build]: [usize; 2], value: f64) {
    let place = samples.iter().position(|held| held.figure == figure);
    let place = place.unwrap_or_else(|| {
        let rounds = Vec::new();
        samples.push(Samples { figure, rounds });
        samples.len() - 1
    });
    let rounds = &mut samples[place].rounds;
    if rounds.len() <= round {
        rounds.resize(round + 1, [f64::NAN; 2]);
    }
    rounds[round][build] = value;
}

/// The line of a figure. None if no round has both builds.
fn row(samples: &Samples) -> Option<Vec<String>> {
    let rounds: Vec<(f64, f64)> = samples.rounds.iter().map(|r| (r[0], r[1])).collect();
    let compared = Comparison::of(&rounds)?;
    let verdict = match compared.is_difference() {
        true if compared.ratio.median > 1.0 => "higher now",
        true => "lower now",
        false => "within the spread",
    };
    let digits = |value: f64| format!("{value:.3}");
    Some(vec![
        samples.figure.to_owned(),
        compared.before.shown(number),
        compared.now.shown(number),
        compared.ratio.shown(digits),
        digits(compared.probability),
        compared.rounds.to_string(),
        verdict.to_owned(),
    ])
}

/// All figures of a build in one round.
fn measure(programs: &Path, settings: &Settings, wanted: &Wanted) -> Vec<Figure> {
    let mut figures = Vec::new();
    if ["tcp", "udp", "ping", "memory"]
        .iter()
        .any(|w| wanted.has(w))
    {
        figures.extend(tried(|| tunnel(programs, settings, wanted)));
    }
    if wanted.has("dns") {
        figures.extend(tried(|| names::measure(programs, settings.seconds)));
    }
    if wanted.has("demo") {
        figures.extend(tried(|| demo(programs)));
    }
    figures
}

/// An earlier build may not have what is measured. The other figures are measured all the same.
fn tried(measure: impl FnOnce() -> Vec<Figure>) -> Vec<Figure> {
    // What the closure borrows is not used after a panic, except for paths and settings, which it cannot change.
    catch_unwind(AssertUnwindSafe(measure)).unwrap_or_default()
}

/// The figures of two ends that are configured with `wg`.
fn tunnel(programs: &Path, settings: &Settings, wanted: &Wanted) -> Vec<Figure> {
    let subject = Subject {
        name: "meshd",
        program: Some(programs.join("meshd")),
    };
    let logs = tempfile::tempdir().expect("a temporary directory");
    let world = World::new().expect("root may make namespaces");
    let mut bed = Bed::new(&world, &subject, settings.plain_nic, logs.path());
    let mut figures = Vec::new();
    if wanted.has("ping") {
        figures.push(("idle ping p50, us", bed.idle_round_trip()));
    }
    if wanted.has("tcp") || wanted.has("ping") {
        let (stream, under_load) = bed.pinged_stream(settings.seconds);
        let bytes = stream.gigabytes();
        figures.extend([
            ("TCP one stream, Gbit/s", stream.flow.gbps),
            ("TCP one stream, daemons' CPU s/GB", stream.daemons / bytes),
            ("TCP one stream, machine CPU s/GB", stream.machine / bytes),
            ("ping p50 under one stream, us", under_load),
        ]);
    }
    if wanted.has("udp") {
        let udp = bed.small_datagrams(settings.seconds);
        let (arrived, seconds) = (udp.arrived(), f64::from(settings.seconds));
        figures.extend([
            ("UDP 64 bytes received, kpps", arrived / seconds / 1e3),
            (
                "UDP 64 bytes, daemons' CPU us/packet",
                udp.daemons * 1e6 / arrived,
            ),
        ]);
    }
    if wanted.has("memory") {
        figures.push(("memory of `meshd wireguard`, MiB an end", bed.memory()));
    }
    figures
}

/// How long the demo takes, from its start to its end.
fn demo(programs: &Path) -> Vec<Figure> {
    let began = Instant::now();
    let output = Command::new(programs.join("meshctl"))
        .arg("demo")
        .stdin(Stdio::null())
        .output()
        .expect("it is built");
    let took = began.elapsed().as_secs_f64();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "meshctl demo: {why}");
    vec![("`meshctl demo`, s", took)]
}
