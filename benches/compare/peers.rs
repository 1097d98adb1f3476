//! meshd beside other WireGuards in user space.

use std::path::PathBuf;
use std::time::Instant;

use meshd::testbed::World;

use crate::Settings;
use crate::bed::{Bed, Subject};
use crate::rig::{machine_cpu, median, print_table};

/// A program to measure: its name, the environment variable with its path, and its paths when it is installed.
const PROGRAMS: [(&str, &str, &[&str]); 4] = [
    ("meshd", "BIN_MESHD", &[env!("CARGO_BIN_EXE_meshd")]),
    ("wireguard-go", "BIN_WIREGUARD_GO", &["wireguard-go"]),
    ("boringtun", "BIN_BORINGTUN", &["boringtun-cli"]),
    ("gotatun", "BIN_GOTATUN", &["gotatun", "gotatun-cli"]),
];

/// The measurements, in the order of the table.
const FIGURES: [&str; 12] = [
    "TCP one stream, Gbit/s",
    "TCP four streams, Gbit/s",
    "TCP reverse, Gbit/s",
    "TCP one stream, machine CPU s/GB",
    "TCP four streams, machine CPU s/GB",
    "TCP reverse, machine CPU s/GB",
    "idle ping p50, us",
    "ping p50 under one stream, us",
    "UDP 64 bytes received, kpps",
    "UDP 64 bytes, daemons' CPU us/packet",
    "UDP 64 bytes, machine CPU us/packet",
    "memory after the flood, MiB an end",
];

/// Whether this is the name of something that meshd is measured beside.
pub(crate) fn is_peer(name: &str) -> bool {
    name == "raw" || PROGRAMS.iter().any(|(program, ..)| *program == name)
}

/// meshd, and what is asked for, or what there is.
pub(crate) fn subjects(asked: &[String]) -> Result<Vec<Subject>, String> {
    if let Some(name) = asked.iter().find(|name| !is_peer(name)) {
        let known: Vec<&str> = PROGRAMS.iter().map(|(name, ..)| *name).collect();
        return Err(format!("`{name}` is unknown: raw, {}", known.join(", ")));
    }
    let mut subjects = Vec::new();
    for (name, variable, programs) in PROGRAMS {
        let wanted = name == "meshd" || asked.iter().any(|other| other == name);
        if !wanted && !asked.is_empty() {
            continue;
        }
        let program = std::env::var_os(variable)
            .map(PathBuf::from)
            .or_else(|| programs.iter().find_map(|program| installed(program)));
        match program {
            Some(program) => subjects.push(Subject {
                name,
                program: Some(program),
            }),
            None if wanted => {
                return Err(format!("{name} is not installed; name it in {variable}"));
            }
            None => {}
        }
    }
    if asked.is_empty() || asked.iter().any(|name| name == "raw") {
        subjects.push(Subject {
            name: "raw",
            program: None,
        });
    }
    Ok(subjects)
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

pub(crate) fn compare(settings: &Settings, rounds: usize, subjects: &[Subject]) {
    let (_, stolen) = machine_cpu();
    let began = Instant::now();
    // One list of samples for every subject and figure.
    let mut samples = vec![vec![Vec::new(); FIGURES.len()]; subjects.len()];
    for round in 0..rounds {
        // Each of them is the first in turn, so that none always profits from its place.
        for place in 0..subjects.len() {
            let at = (round + place) % subjects.len();
            let figures = measure(&subjects[at], settings);
            eprintln!("round {}: {} done", round + 1, subjects[at].name);
            for (figure, samples) in figures.into_iter().zip(&mut samples[at]) {
                samples.push(figure);
            }
        }
    }
    let withheld = (machine_cpu().1 - stolen) / began.elapsed().as_secs_f64();
    let medians: Vec<Vec<f64>> = samples
        .iter()
        .map(|figures| figures.iter().map(|figure| median(figure)).collect())
        .collect();
    println!(
        "medians of {rounds} rounds over {}, and of the ratios within a round; the host withheld {withheld:.2} cores\n",
        settings.network()
    );
    let names: Vec<&str> = subjects.iter().map(|subject| subject.name).collect();
    let rows = |cell: &dyn Fn(usize, usize) -> String| -> Vec<Vec<String>> {
        FIGURES
            .iter()
            .enumerate()
            .map(|(figure, name)| {
                let cells = (0..subjects.len()).map(|subject| cell(subject, figure));
                std::iter::once((*name).to_owned()).chain(cells).collect()
            })
            .collect()
    };
    let head = |first| {
        std::iter::once(first)
            .chain(names.iter().copied())
            .collect()
    };
    let (first, second): (Vec<&str>, Vec<&str>) = (head("median"), head("meshd divided by"));
    print_table(
        &first,
        &rows(&|subject, figure| crate::number(medians[subject][figure])),
    );
    println!();
    print_table(
        &second,
        &rows(&|subject, figure| {
            let own = samples[0][figure].iter();
            let ratios = own.zip(&samples[subject][figure]);
            let ratios: Vec<f64> = ratios.map(|(own, other)| own / other).collect();
            crate::number(median(&ratios))
        }),
    );
}

fn measure(subject: &Subject, settings: &Settings) -> [f64; FIGURES.len()] {
    let logs = tempfile::tempdir().expect("a temporary directory");
    let world = World::new().expect("root may make namespaces");
    let mut bed = Bed::new(&world, subject, settings.plain_nic, logs.path());
    let seconds = settings.seconds;
    let idle = bed.idle_round_trip();
    let (one, under_load) = bed.pinged_stream(seconds);
    let four = bed.transfer(&format!("-t {seconds} -C cubic -P 4"));
    let reverse = bed.transfer(&format!("-t {seconds} -C cubic -R"));
    let udp = bed.small_datagrams(seconds);
    [
        one.flow.gbps,
        four.flow.gbps,
        reverse.flow.gbps,
        one.machine / one.gigabytes(),
        four.machine / four.gigabytes(),
        reverse.machine / reverse.gigabytes(),
        idle,
        under_load,
        udp.arrived() / f64::from(seconds) / 1e3,
        bed.of_daemons(udp.daemons * 1e6 / udp.arrived()),
        udp.machine * 1e6 / udp.arrived(),
        bed.memory(),
    ]
}
