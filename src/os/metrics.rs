//! The text format of Prometheus: the one writer of the metrics pages of both programs.
//!
//! Decision: the crate prometheus-client is not used. It writes only OpenMetrics, whose `# TYPE` lines name counters without `_total`,
//! whose help texts and last line differ, and whose content type is another one. Scrapers and rules that know the present text, format
//! 0.0.4, would have to change. Our counters are atomics in the parts that count, so a registry would only copy them.

use std::fmt::Write as _;

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
        self.head("build_info", "gauge", "The version.");
        let version = env!("CARGO_PKG_VERSION");
        self.labelled("build_info", "version", version, 1);
    }

    /// Adds a value that may rise and fall.
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        self.plain(name, value);
    }

    /// Adds a value that only rises. `name` ends with `_total`.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.plain(name, value);
    }

    /// Adds counters that differ in the value of one label.
    pub fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        self.head(name, "counter", help);
        for (of_label, value) in values {
            self.labelled(name, label, of_label, value);
        }
    }

    /// The whole page.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }

    // Writing to a `String` cannot fail.

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let prefix = self.prefix;
        let _ = writeln!(
            self.text,
            "# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind}"
        );
    }

    fn plain(&mut self, name: &str, value: u64) {
        let _ = writeln!(self.text, "{}{name} {value}", self.prefix);
    }

    fn labelled(&mut self, name: &str, label: &str, of_label: &str, value: u64) {
        let prefix = self.prefix;
        let escaped = of_label
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        let _ = writeln!(self.text, "{prefix}{name}{{{label}=\"{escaped}\"}} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_head_for_each_metric_and_a_line_for_each_value() {
        let mut page = MetricsPage::new("meshd_");
        page.gauge("peers", "Other members.", 3);
        page.counters(
            "dropped_total",
            "Packets dropped.",
            "reason",
            [("no_route", 1), ("a \"quote\"", 2)],
        );
        assert_eq!(
            page.into_text(),
            "# HELP meshd_peers Other members.\n\
             # TYPE meshd_peers gauge\n\
             meshd_peers 3\n\
             # HELP meshd_dropped_total Packets dropped.\n\
             # TYPE meshd_dropped_total counter\n\
             meshd_dropped_total{reason=\"no_route\"} 1\n\
             meshd_dropped_total{reason=\"a \\\"quote\\\"\"} 2\n"
        );
    }
}
