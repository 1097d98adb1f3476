//! Draws what the dashboard shows while the test runs, from the series of the real Prometheus:
//! `MESHD_PICTURE=docs/dashboard.svg cargo nextest run --features etcd -E 'test(alerts_fire_and_resolve)'`.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::prometheus::Prometheus;
use crate::mesh::Mesh;

/// The panels: a title, an expression, and the label that names a lane.
const PANELS: [(&str, &str, &[&str]); 4] = [
    ("Reachable", "meshd_peer_reachable", &["instance", "peer"]),
    (
        "Usable instances of db",
        "meshd_service_mesh_instances{usable=\"true\"}",
        &["instance"],
    ),
    (
        "Connected to the coordinator",
        "meshd_coordinator_connected",
        &["instance"],
    ),
    (
        "Alerts that fire",
        "count by (alertname) (ALERTS{alertstate=\"firing\"})",
        &["alertname"],
    ),
];

/// The width of the names, of the lanes, and the height of a lane, in pixels.
const NAMES: f64 = 250.0;
const LANES: f64 = 560.0;
const HEIGHT: f64 = 16.0;
const GREEN: &str = "#3f9142";
const RED: &str = "#c4302b";

/// A lane: its name, and a value for each second.
type Lane = (String, Vec<(f64, f64)>);

/// Writes the picture of the last minutes to `path`.
pub(super) fn write(prometheus: &Prometheus, mesh: &Mesh, path: &Path) {
    let now = meshd::os::clock::wall();
    let now = now.duration_since(std::time::UNIX_EPOCH).expect("a date");
    let end = now.as_secs_f64();
    let panels = PANELS.map(|(title, expression, labels)| {
        let query = encoded(expression);
        let start = end - 600.0;
        let range = format!("/api/v1/query_range?query={query}&start={start}&end={end}&step=1");
        let data = prometheus.ask(mesh, &range);
        (title, lanes(mesh, &data, labels))
    });
    let times = panels.iter().flat_map(|(_, lanes)| lanes);
    let times = times.flat_map(|(_, points)| points.iter().map(|(at, _)| *at));
    let start = times.fold(end, f64::min);
    std::fs::write(path, drawn(&panels, start, end)).expect("a writable path");
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        let _ = write!(encoded, "%{byte:02X}");
        encoded
    })
}

fn lanes(mesh: &Mesh, data: &Value, labels: &[&str]) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Vec::new();
    for series in data["result"].as_array().into_iter().flatten() {
        let names = labels.iter().map(|label| {
            let value = series["metric"][label].as_str().unwrap_or_default();
            let host = mesh
                .nodes
                .iter()
                .find(|node| value.split(':').next() == Some(node.host.v4().to_string().as_str()));
            host.map_or(value, |node| node.host.name())
        });
        let name = names.collect::<Vec<_>>().join(" to ");
        let points = series["values"].as_array().into_iter().flatten();
        let points = points.filter_map(|point| {
            let value: f64 = point[1].as_str()?.parse().ok()?;
            Some((point[0].as_f64()?, value))
        });
        lanes.push((name, points.collect()));
    }
    lanes.sort_by(|a, b| a.0.cmp(&b.0));
    lanes
}

fn drawn(panels: &[(&str, Vec<Lane>)], start: f64, end: f64) -> String {
    let scale = LANES / (end - start).max(1.0);
    let mut body = String::new();
    let mut y = 10.0;
    for (title, lanes) in panels {
        y += 22.0;
        let _ = writeln!(
            body,
            "<text x=\"10\" y=\"{y}\" font-weight=\"bold\">{title}</text>"
        );
        y += 6.0;
        let is_alert = *title == "Alerts that fire";
        for (name, points) in lanes {
            let middle = y + 12.0;
            let _ = writeln!(body, "<text x=\"20\" y=\"{middle}\">{name}</text>");
            for (from, to, value) in runs(points) {
                let is_good = value > 0.0 && !is_alert;
                let colour = if is_good { GREEN } else { RED };
                let (x, width) = (NAMES + (from - start) * scale, (to - from) * scale);
                let height = HEIGHT - 3.0;
                let _ = writeln!(
                    body,
                    "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\"/>"
                );
            }
            y += HEIGHT;
        }
    }
    y += 20.0;
    for tick in (0..)
        .map(|n| f64::from(n) * 20.0)
        .take_while(|at| *at <= end - start)
    {
        let x = NAMES + tick * scale;
        let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{y}\">{tick} s</text>");
    }
    let (width, height) = (NAMES + LANES + 40.0, y + 12.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// The times during which the value was the same and there was one each second.
fn runs(points: &[(f64, f64)]) -> Vec<(f64, f64, f64)> {
    let mut runs: Vec<(f64, f64, f64)> = Vec::new();
    for (at, value) in points {
        match runs.last_mut() {
            Some((_, to, held)) if held == value && *at <= *to + 0.5 => *to = at + 1.0,
            _ => runs.push((*at, at + 1.0, *value)),
        }
    }
    runs
}
