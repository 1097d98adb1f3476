//! The tables of results.

use std::time::Duration;

use crate::usage::Usage;

/// The durations of a repeated action, sorted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    fn joined<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        Self::new(all.flat_map(|times| times.0.iter().copied()).collect())
    }

    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The quantile `part` of the durations, for example the median for 0.5.
    fn quantile(&self, part: f64) -> Option<Duration> {
        let last = self.0.len().checked_sub(1)?;
        self.0.get((last as f64 * part).round() as usize).copied()
    }

    fn shown(&self, part: f64) -> String {
        self.quantile(part).map_or_else(
            || "-".to_owned(),
            |time| format!("{:.1}", time.as_secs_f64() * 1000.0),
        )
    }

    fn pair(&self) -> String {
        format!("{} / {}", self.shown(0.5), self.shown(0.99))
    }
}

/// The results of one attack.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// A description of the attacker's result.
    pub(crate) came_through: String,
    /// `None` if the attacker was in the place of the coordinator.
    pub(crate) coordinator: Option<Usage>,
    pub(crate) node: Usage,
    /// The times from publishing a change to receiving it, or those of queries, before the attack.
    pub(crate) quiet: Times,
    pub(crate) attacked: Times,
    pub(crate) joins: Times,
    /// How many joins of others failed during the attack.
    pub(crate) failed_joins: usize,
    /// How many queries of others were not answered during the attack. `None` if others published changes and sent no queries.
    pub(crate) lost_queries: Option<usize>,
}

impl Row {
    pub(crate) fn failed(name: &'static str) -> Self {
        Self {
            name,
            came_through: "not measured: the attack's own program failed".to_owned(),
            ..Self::default()
        }
    }
}

const MIB: f64 = 1024.0 * 1024.0;

fn usage(usage: Option<Usage>) -> String {
    match usage {
        None => "-".to_owned(),
        Some(usage) => format!(
            "{:+.1} MiB, {:+.1} %, {:+.1} MiB",
            usage.memory as f64 / MIB,
            usage.cpu * 100.0,
            usage.disk as f64 / MIB
        ),
    }
}

fn ratio(attacked: Option<Duration>, quiet: Option<Duration>) -> String {
    match (attacked, quiet) {
        (Some(attacked), Some(quiet)) => {
            format!("{:.1}", attacked.as_secs_f64() / quiet.as_secs_f64())
        }
        _ => "-".to_owned(),
    }
}

/// Prints the table of attacks during which others publish and join.
pub(crate) fn print_changes(rows: &[Row]) {
    let rows: Vec<&Row> = rows.iter().filter(|r| r.lost_queries.is_none()).collect();
    if rows.is_empty() {
        return;
    }
    println!(
        "\n| attack | what came through | coordinator: memory, core, disk | node: memory, core, disk \
         | others' changes, quiet (p50 / p99 ms) | under attack | times the p99 of all quiet times | joins of others (p50 / p99 ms) | failed |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let quiet = Times::joined(rows.iter().map(|row| &row.quiet)).quantile(0.99);
    for row in rows {
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.name,
            row.came_through,
            usage(row.coordinator),
            usage(Some(row.node)),
            row.quiet.pair(),
            row.attacked.pair(),
            ratio(row.attacked.quantile(0.99), quiet),
            row.joins.pair(),
            row.failed_joins
        );
    }
}

/// Prints the table of attacks during which others ask for names.
pub(crate) fn print_queries(rows: &[Row]) {
    let rows: Vec<&Row> = rows.iter().filter(|r| r.lost_queries.is_some()).collect();
    if rows.is_empty() {
        return;
    }
    println!(
        "\n| attack | what came through | node: memory, core, disk | others' queries, quiet (p50 / p99 ms) | under attack | not answered |"
    );
    println!("|---|---|---|---|---|---|");
    for row in rows {
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            row.name,
            row.came_through,
            usage(Some(row.node)),
            row.quiet.pair(),
            row.attacked.pair(),
            row.lost_queries.unwrap_or(0)
        );
    }
}
