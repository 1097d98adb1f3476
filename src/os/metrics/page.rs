//! A page of metrics under construction.

use std::fmt::{self, Display, Write as _};

use super::durations::Durations;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value that may rise and fall.
    Gauge,
    /// A value that only rises. The name of the metric ends with `_total`.
    Counter,
    /// Measured values, counted by their size.
    Histogram,
}

/// The value of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    Integer(u64),
    Float(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Integer(value as u64)
    }
}

impl From<u16> for Value {
    fn from(value: u16) -> Self {
        Self::Integer(value.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Integer(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
        }
    }
}

/// A page of metrics under construction.
#[derive(Debug)]
pub struct MetricsPage {
    prefix: &'static str,
    text: String,
}

impl MetricsPage {
    /// An empty page. All names on it begin with `prefix`.
    #[must_use]
    pub fn new(prefix: &'static str) -> Self {
        Self {
            prefix,
            text: String::new(),
        }
    }

    /// Adds the version of the program, which is the value of a label.
    pub fn build_info(&mut self) {
        let version = env!("CARGO_PKG_VERSION");
        self.family("build_info", Kind::Gauge, "The version of the program.")
            .sample(&[("version", version)], 1u64);
    }

    /// Adds a value that may rise and fall.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Into<Value>) {
        self.family(name, Kind::Gauge, help).sample(&[], value);
    }

    /// Adds a value that only rises. `name` ends with `_total`.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Into<Value>) {
        self.family(name, Kind::Counter, help).sample(&[], value);
    }

    /// Adds counters that differ in the value of one label.
    pub fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        let mut family = self.family(name, Kind::Counter, help);
        for (of_label, value) in values {
            family.sample(&[(label, of_label)], value);
        }
    }

    /// Adds durations that were counted by their length.
    pub fn durations(&mut self, name: &str, help: &str, durations: &Durations) {
        self.family(name, Kind::Histogram, help);
        self.add_durations(name, &[], durations);
    }

    /// Adds durations that differ in the value of one label.
    pub fn durations_by<'l, 'd>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        durations: impl IntoIterator<Item = (&'l str, &'d Durations)>,
    ) {
        self.family(name, Kind::Histogram, help);
        for (of_label, durations) in durations {
            self.add_durations(name, &[(label, of_label)], durations);
        }
    }

    fn add_durations(&mut self, name: &str, labels: &[(&str, &str)], durations: &Durations) {
        let mut all = 0;
        let bucket = format!("{name}_bucket");
        for (bound, below) in durations.cumulated() {
            all = below;
            let bound = bound.map(|bound| bound.as_secs_f64().to_string());
            let bound = bound.as_deref().unwrap_or("+Inf");
            let le = [("le", bound)];
            let labels = [labels, &le[..]].concat();
            let mut family = Family {
                page: self,
                name: &bucket,
            };
            family.sample(&labels, below);
        }
        for (what, value) in [
            ("sum", Value::from(durations.sum().as_secs_f64())),
            ("count", all.into()),
        ] {
            let name = &format!("{name}_{what}");
            Family { page: self, name }.sample(labels, value);
        }
    }

    /// Begins a metric, whose samples follow. A metric without samples has only its head.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let prefix = self.prefix;
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
        };
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            self.text,
            "# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind}"
        );
        Family { page: self, name }
    }

    /// The whole page.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }
}

/// A metric whose samples are being added.
#[derive(Debug)]
pub struct Family<'a> {
    page: &'a mut MetricsPage,
    name: &'a str,
}

impl Family<'_> {
    /// Adds a sample. No other sample of this metric has the same labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Into<Value>) {
        let text = &mut self.page.text;
        text.push_str(self.page.prefix);
        text.push_str(self.name);
        for (i, (label, of_label)) in labels.iter().enumerate() {
            text.push(if i == 0 { '{' } else { ',' });
            text.push_str(label);
            text.push_str("=\"");
            push_escaped(text, of_label);
            text.push('"');
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(text, "{end} {}", value.into());
    }
}

/// Adds the value of a label. The format escapes these three characters and no others.
fn push_escaped(text: &mut String, of_label: &str) {
    for c in of_label.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BOUNDS: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(2500)];

    #[test]
    fn a_page_has_a_head_for_each_metric_and_a_line_for_each_value() {
        let mut page = MetricsPage::new("meshd_");
        page.gauge("peers", "Other members.", 3u64);
        page.counters(
            "dropped_total",
            "Packets dropped.",
            "reason",
            [("no_route", 1), ("a \"quote\" \\ \n", 2)],
        );
        page.family("delay_seconds", Kind::Gauge, "Delay.")
            .sample(&[("peer", "web-1"), ("way", "direct")], 0.25);
        assert_eq!(
            page.into_text(),
            "# HELP meshd_peers Other members.\n\
             # TYPE meshd_peers gauge\n\
             meshd_peers 3\n\
             # HELP meshd_dropped_total Packets dropped.\n\
             # TYPE meshd_dropped_total counter\n\
             meshd_dropped_total{reason=\"no_route\"} 1\n\
             meshd_dropped_total{reason=\"a \\\"quote\\\" \\\\ \\n\"} 2\n\
             # HELP meshd_delay_seconds Delay.\n\
             # TYPE meshd_delay_seconds gauge\n\
             meshd_delay_seconds{peer=\"web-1\",way=\"direct\"} 0.25\n"
        );
    }

    #[test]
    fn durations_are_a_histogram_of_prometheus() {
        let mut page = MetricsPage::new("meshd_");
        let mut times = Durations::new(&BOUNDS);
        for ms in [50, 100, 30_100] {
            times.note(Duration::from_millis(ms));
        }
        page.durations("punch_seconds", "Punches.", &times);
        assert_eq!(
            page.into_text(),
            "# HELP meshd_punch_seconds Punches.\n\
             # TYPE meshd_punch_seconds histogram\n\
             meshd_punch_seconds_bucket{le=\"0.1\"} 2\n\
             meshd_punch_seconds_bucket{le=\"2.5\"} 2\n\
             meshd_punch_seconds_bucket{le=\"+Inf\"} 3\n\
             meshd_punch_seconds_sum 30.25\n\
             meshd_punch_seconds_count 3\n"
        );
    }

    #[test]
    fn durations_by_a_label_have_it_in_each_line() {
        let mut page = MetricsPage::new("meshd_");
        let mut times = Durations::new(&BOUNDS);
        times.note(Duration::from_millis(250));
        page.durations_by("change_seconds", "Parts.", "stage", [("zone", &times)]);
        assert_eq!(
            page.into_text(),
            "# HELP meshd_change_seconds Parts.\n\
             # TYPE meshd_change_seconds histogram\n\
             meshd_change_seconds_bucket{stage=\"zone\",le=\"0.1\"} 0\n\
             meshd_change_seconds_bucket{stage=\"zone\",le=\"2.5\"} 1\n\
             meshd_change_seconds_bucket{stage=\"zone\",le=\"+Inf\"} 1\n\
             meshd_change_seconds_sum{stage=\"zone\"} 0.25\n\
             meshd_change_seconds_count{stage=\"zone\"} 1\n"
        );
    }
}
