//! Graphs of the last hour. The values are in memory alone, and their number is bounded. Pure: the caller measures.

use std::collections::VecDeque;
use std::time::Duration;

use maud::{Markup, html};

use super::table::heading;

/// The time between two measurements.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// The number of measurements that are kept: one hour.
pub const KEPT: usize = 360;
/// The size of a graph, in units of its own. The stylesheet decides how large a unit is.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 60.0;

/// What a graph shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chart {
    pub title: &'static str,
    /// The unit of its values. It is empty for counts.
    pub unit: &'static str,
}

/// One value for each chart. None where nothing could be measured.
pub type Sample = Vec<Option<f64>>;

/// The measurements of the last hour.
#[derive(Debug, Clone)]
pub struct History {
    charts: &'static [Chart],
    samples: VecDeque<Sample>,
}

impl History {
    #[must_use]
    pub fn new(charts: &'static [Chart]) -> Self {
        Self {
            charts,
            samples: VecDeque::new(),
        }
    }

    /// Adds a measurement, and forgets the one of an hour ago.
    pub fn add(&mut self, sample: Sample) {
        if self.samples.len() >= KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// The graphs.
    #[must_use]
    pub fn view(&self) -> Markup {
        let charts = self.charts.iter().enumerate();
        html! {
            (heading("Last hour"))
            p { "This program measures every 10 seconds, and keeps the values in memory since its start." }
            @for (place, chart) in charts {
                @let values = self.values(place);
                (graph(place, *chart, &values))
            }
        }
    }

    fn values(&self, place: usize) -> Vec<Option<f64>> {
        let samples = self.samples.iter();
        let values = samples.map(|sample| sample.get(place).copied().flatten());
        values
            .map(|value| value.filter(|value| value.is_finite()))
            .collect()
    }
}

/// A graph, whose caption says in words what it shows.
fn graph(place: usize, chart: Chart, values: &[Option<f64>]) -> Markup {
    let Some(range) = Range::of(values) else {
        return html! {
            figure { figcaption { strong { (chart.title) } " Nothing was measured yet." } }
        };
    };
    let label = format!("graph-{place}");
    let unit = chart.unit;
    let now = match values.last() {
        Some(Some(value)) => number(*value, unit),
        _ => "not measured".to_owned(),
    };
    html! {
        figure {
            figcaption id=(label) {
                strong { (chart.title) }
                " now " (now) ", lowest " (number(range.lowest, unit)) ", highest " (number(range.highest, unit))
            }
            svg viewBox="0 0 360 60" preserveAspectRatio="none" role="img" aria-labelledby=(label) {
                @for line in lines(values, range.highest) {
                    polyline points=(line) {}
                }
            }
        }
    }
}

/// The lowest and the highest of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Range {
    lowest: f64,
    highest: f64,
}

impl Range {
    fn of(values: &[Option<f64>]) -> Option<Self> {
        let mut known = values.iter().flatten().copied();
        let first = known.next()?;
        let start = Self {
            lowest: first,
            highest: first,
        };
        Some(known.fold(start, |range, value| Self {
            lowest: range.lowest.min(value),
            highest: range.highest.max(value),
        }))
    }
}

/// The points of the lines between measurements that follow each other. The last measurement is at the right end.
fn lines(values: &[Option<f64>], highest: f64) -> Vec<String> {
    let missing = KEPT.saturating_sub(values.len());
    let scale = if highest > 0.0 {
        (HEIGHT - 2.0) / highest
    } else {
        0.0
    };
    let step = WIDTH / f64::from(u32::try_from(KEPT).unwrap_or(u32::MAX));
    let mut lines: Vec<String> = Vec::new();
    let mut is_open = false;
    for (place, value) in values.iter().enumerate() {
        let Some(value) = value else {
            is_open = false;
            continue;
        };
        let place = u32::try_from(missing + place).unwrap_or(u32::MAX);
        let (x, y) = (f64::from(place) * step, HEIGHT - 1.0 - value * scale);
        let point = format!("{x:.1},{y:.1}");
        match lines.last_mut().filter(|_| is_open) {
            Some(line) => {
                line.push(' ');
                line.push_str(&point);
            }
            None => lines.push(point),
        }
        is_open = true;
    }
    lines
}

fn number(value: f64, unit: &str) -> String {
    let digits = if value < 10.0 && value.fract() > 0.0 {
        1
    } else {
        0
    };
    let space = if unit.is_empty() { "" } else { " " };
    format!("{value:.digits$}{space}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHARTS: &[Chart] = &[
        Chart {
            title: "Peers",
            unit: "",
        },
        Chart {
            title: "Round trip",
            unit: "ms",
        },
    ];

    #[test]
    fn one_hour_is_kept_whatever_is_added() {
        let mut history = History::new(CHARTS);
        for n in 0..10_000u32 {
            history.add(vec![Some(f64::from(n)), Some(f64::from(n) / 7.0)]);
        }
        assert_eq!(history.samples.len(), KEPT);
        let page = history.view().into_string();
        assert!(
            page.contains("now 9999, lowest 9640, highest 9999"),
            "{page}"
        );
        assert!(page.len() < 32 * 1024, "{}", page.len());
    }

    #[test]
    fn a_graph_says_in_words_what_it_shows() {
        let mut history = History::new(CHARTS);
        history.add(vec![Some(3.0), Some(0.5)]);
        history.add(vec![Some(5.0), None]);
        let page = history.view().into_string();
        assert!(
            page.contains("<strong>Peers</strong> now 5, lowest 3, highest 5"),
            "{page}"
        );
        assert!(
            page.contains("now not measured, lowest 0.5 ms, highest 0.5 ms"),
            "{page}"
        );
        let label = r#"role="img" aria-labelledby="graph-0""#;
        assert!(
            page.contains(label) && page.contains(r#"id="graph-0""#),
            "{page}"
        );
        let empty = History::new(CHARTS).view().into_string();
        assert!(empty.contains("Nothing was measured yet"), "{empty}");
    }

    #[test]
    fn where_nothing_was_measured_there_is_no_line() {
        let values = [Some(1.0), Some(1.0), None, Some(2.0)];
        let lines = lines(&values, 2.0);
        assert_eq!(lines, ["356.0,30.0 357.0,30.0", "359.0,1.0"]);
        let zero = super::lines(&[Some(0.0)], 0.0);
        assert_eq!(zero, ["359.0,59.0"]);
    }

    #[test]
    fn a_value_that_is_no_number_is_left_out() {
        let mut history = History::new(CHARTS);
        history.add(vec![Some(f64::NAN), Some(f64::INFINITY)]);
        history.add(vec![]);
        let page = history.view().into_string();
        assert_eq!(
            page.matches("Nothing was measured yet").count(),
            2,
            "{page}"
        );
    }
}
