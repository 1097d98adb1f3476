//! The page: a node serves it with its API and at an address of its own, to browsers whose person has an API token.

use std::time::Duration;

use meshd::page::calls::CHANGES;
use meshd::page::frame::{NODE, Section};
use meshd::testbed::Running;
use serde_json::{Value, json};

use crate::api::{create, has_curl};
use crate::mesh::{Mesh, write};

/// Returns the faults of the page that is open.
const ACCESSIBILITY: &str = include_str!("page/accessibility.js");
/// The checks of axe-core, as `tests/run` unpacks them.
const AXE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/axe.min.js");
/// Runs them in the page that is open, and returns what they found.
const RUN_AXE: &str = "const done = arguments[arguments.length - 1]; axe.run(document, { resultTypes: ['violations'] }).then((found) => done(found.violations.map((rule) => rule.id + ': ' + rule.nodes.map((node) => node.target.join(' ')).join(', '))), (error) => done([String(error)]));";

/// The address of its own at which the first node serves the page.
const OWN: &str = "http://127.0.0.1:7448";

/// A mesh of three nodes. The first one serves the page.
fn mesh() -> Option<Mesh> {
    let mut mesh = Mesh::joined(3)?;
    mesh.kill_node(0);
    let text = "[api]\nenabled = true\n[web]\nenabled = true\nlisten = \"127.0.0.1:7448\"\n";
    let config = write(&mesh.nodes[0].host, "/run/meshd.toml", text);
    mesh.start_node_with(0, &["--config", &config]);
    let url = format!("{OWN}/page");
    mesh.wait_until("the node serves the page", || {
        mesh.succeeds(0, "curl", &["-sf", "-o", "/dev/null", &url])
    });
    mesh.wait_until("all nodes reach each other", || {
        (0..3).all(|n| mesh.reaches(n) == 2)
    });
    Some(mesh)
}

/// A token for all views.
fn token(mesh: &Mesh) -> String {
    let scopes = ["status", "nodes", "services", "policy", "audit", "metrics"];
    let scopes = scopes.map(|scope| format!("{scope}:read"));
    let options = scopes.iter().flat_map(|scope| ["--scope", scope.as_str()]);
    let options: Vec<&str> = ["--name", "page"].into_iter().chain(options).collect();
    create(mesh, &options)
}

/// What curl on node `n` prints: the headers and the body of the answer.
fn fetch(mesh: &Mesh, n: usize, url: &str, token: &str) -> String {
    let credentials = format!("Authorization: Bearer {token}");
    let headers = write(&mesh.nodes[n].host, "/run/headers", &credentials);
    curl(
        mesh,
        n,
        &["--include", "--header", &format!("@{headers}"), url],
    )
}

fn curl(mesh: &Mesh, n: usize, arguments: &[&str]) -> String {
    let host = &mesh.nodes[n].host;
    let mut command = host.command("curl").expect("a namespace");
    let output = command
        .args(["-sS", "--max-time", "60"])
        .args(arguments)
        .output()
        .expect("a program");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_node_shows_its_page_to_members_with_a_token_and_its_frame_to_others() {
    if !has_curl() {
        return;
    }
    let Some(mesh) = mesh() else {
        return;
    };
    let added = mesh.on(1, &["service", "add", "web", "--port", "80"]);
    assert_eq!(added.code, 0, "{added:?}");
    let token = token(&mesh);
    let of_mesh = format!("http://{}:7447", mesh.addresses(0).0);
    for (n, at) in [(0, OWN), (1, of_mesh.as_str())] {
        let frame = curl(&mesh, n, &["--include", &format!("{at}/page")]);
        assert!(frame.starts_with("HTTP/1.1 200"), "{frame}");
        assert!(frame.contains("frame-ancestors 'none'"), "{frame}");
        assert!(frame.contains("meshctl api-token create"), "{frame}");
        assert!(!frame.contains("n2"), "no data without a token: {frame}");

        let url = format!("{at}/page/view/nodes");
        let refused = curl(&mesh, n, &["--include", &url]);
        assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
        assert!(!refused.contains("n2"), "{refused}");
        let shown = fetch(&mesh, n, &url, &token);
        assert!(shown.starts_with("HTTP/1.1 200"), "{shown}");
        assert!(shown.contains("default-src 'self'"), "{shown}");
        assert!(
            shown.contains("#why/n2") && shown.contains("#why/n3"),
            "{shown}"
        );

        let why = fetch(&mesh, n, &format!("{at}/page/view/why/n2"), &token);
        assert!(why.contains("From n1 to n2"), "{why}");
        // The token is still in the file.
        let rebinding = [
            "--include",
            "--header",
            "@/run/headers",
            "--header",
            "Host: evil.example",
            url.as_str(),
        ];
        let rebound = curl(&mesh, n, &rebinding);
        assert!(rebound.starts_with("HTTP/1.1 403"), "{rebound}");
        assert!(!rebound.contains("#why/n2"), "{rebound}");
    }
    // Each node tells its paths to the one whose page is looked at.
    let paths = format!("{OWN}/page/view/paths");
    mesh.wait_until("the page shows the paths between all nodes", || {
        let shown = fetch(&mesh, 0, &paths, &token);
        shown.contains("3 of 3 nodes sent theirs")
    });
    let shown = fetch(&mesh, 0, &format!("{paths}/n2%20n3"), &token);
    assert_eq!(shown.matches("rowheader").count(), 3 + 2, "{shown}");
    let services = format!("{OWN}/page/view/services");
    mesh.wait_until("the page shows the service", || {
        let shown = fetch(&mesh, 0, &services, &token);
        shown.contains(">web<") && shown.contains("it has no health check")
    });
    // The address of its own is on this machine alone.
    let elsewhere = format!("http://{}:7448/page", mesh.addresses(0).0);
    assert!(!mesh.succeeds(1, "curl", &["-sf", "--max-time", "5", &elsewhere]));
}

/// The ids of the events that the page of the first node receives in two seconds, if the last one that it has received is `last`.
fn ids_after(mesh: &Mesh, last: &str, token: &str) -> Vec<String> {
    let headers = format!("Authorization: Bearer {token}\nLast-Event-ID: {last}\n");
    let headers = write(&mesh.nodes[0].host, "/run/headers", &headers);
    let (headers, url) = (format!("@{headers}"), format!("{OWN}{CHANGES}"));
    let (headers, url) = (headers.as_str(), url.as_str());
    let options = ["--no-buffer", "--max-time", "2", "--header", headers, url];
    let events = curl(mesh, 0, &options);
    let ids = events.lines().filter_map(|line| line.strip_prefix("id: "));
    ids.map(str::to_owned).collect()
}

#[test]
fn a_peer_that_is_lost_is_a_change_on_the_page_though_no_record_changes() {
    if !has_curl() {
        return;
    }
    let Some(mut mesh) = mesh() else {
        return;
    };
    let token = token(&mesh);
    let ids = ids_after(&mesh, "", &token);
    let last = ids.last().expect("the present state").clone();
    mesh.kill_node(2);
    let nodes = format!("{OWN}/page/view/nodes");
    // A peer to which nothing is sent is probed seldom.
    let limit = Duration::from_secs(90);
    mesh.wait_within(limit, "the page shows that the peer is lost", || {
        let shown = fetch(&mesh, 0, &nodes, &token);
        shown.contains(">unreachable<") || shown.contains(">connecting<")
    });
    assert_ne!(ids_after(&mesh, &last, &token), Vec::<String>::new());
}

/// A browser on the first node, driven over the W3C protocol WebDriver on the loopback of the node.
struct Browser<'a> {
    mesh: &'a Mesh,
    session: String,
    _driver: Running,
}

impl<'a> Browser<'a> {
    const DRIVER: &'static str = "http://127.0.0.1:9515";

    fn start(mesh: &'a Mesh) -> Self {
        let host = &mesh.nodes[0].host;
        let mut command = host.command("chromedriver").expect("a namespace");
        command.arg("--port=9515").env("HOME", "/run");
        let log = mesh.logs.path().join("chromedriver");
        let driver = host.start(&mut command, &log).expect("a program");
        let status = format!("{}/status", Self::DRIVER);
        mesh.wait_until("the driver answers", || {
            mesh.succeeds(0, "curl", &["-sf", "-o", "/dev/null", &status])
        });
        let mut browser = Self {
            mesh,
            session: String::new(),
            _driver: driver,
        };
        let arguments = json!([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage"
        ]);
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let opened = browser.ask("/session", &wanted);
        let id = opened["sessionId"].as_str();
        browser.session = id.unwrap_or_else(|| panic!("{opened}")).to_owned();
        browser
    }

    fn ask(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", Self::DRIVER);
        // A script may be longer than an argument.
        let host = &self.mesh.nodes[0].host;
        let body = write(host, "/run/webdriver.json", &body.to_string());
        let answer = curl(self.mesh, 0, &["--data-binary", &format!("@{body}"), &url]);
        let mut answer: Value = serde_json::from_str(&answer).expect("a document");
        answer["value"].take()
    }

    fn of_session(&self, path: &str, body: &Value) -> Value {
        self.ask(&format!("/session/{}{path}", self.session), body)
    }

    /// The result of a function body in the page.
    fn run(&self, script: &str, arguments: &Value) -> Value {
        let body = json!({"script": script, "args": arguments});
        self.of_session("/execute/sync", &body)
    }

    /// Asserts that people with a screen reader, with weak eyes or without a mouse can use what is shown. `axe` is the text of axe-core.
    #[track_caller]
    fn assert_accessible(&self, what: &str, axe: Option<&str>) {
        let faults = self.run(ACCESSIBILITY, &json!([]));
        assert_eq!(faults, json!([]), "{what}");
        let Some(axe) = axe else { return };
        self.run(axe, &json!([]));
        let body = json!({"script": RUN_AXE, "args": []});
        let found = self.of_session("/execute/async", &body);
        assert_eq!(found, json!([]), "{what}");
    }

    fn open(&self, url: &str) {
        self.of_session("/url", &json!({"url": url}));
    }

    fn set_width(&self, width: u32) {
        let parameters = json!({
            "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false
        });
        let command = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": parameters});
        self.of_session("/goog/cdp/execute", &command);
    }

    /// Opens a view and waits until it is there.
    fn show(&self, section: &Section) {
        self.run("location.hash = arguments[0]", &json!([section.name]));
        let is_there = "return document.querySelector('nav a[aria-current]')?.hash === '#' + arguments[0] && document.activeElement === document.getElementById('title')";
        self.mesh.wait_until(section.name, || {
            self.run(is_there, &json!([section.name])) == json!(true)
        });
    }

    /// Writes a picture of the view into the directory that the variable `MESHD_PICTURES` names, if it is set.
    fn take_picture(&self, name: &str) {
        use base64::Engine as _;

        let Some(directory) = std::env::var_os("MESHD_PICTURES") else {
            return;
        };
        let command =
            json!({"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": true}});
        let taken = self.of_session("/goog/cdp/execute", &command);
        let data = taken["data"].as_str().expect("a picture");
        let picture = base64::engine::general_purpose::STANDARD.decode(data);
        let path = std::path::Path::new(&directory).join(name);
        std::fs::write(path, picture.expect("base64")).expect("a writable directory");
    }
}

impl Drop for Browser<'_> {
    /// Ends the browser, which outlives its driver otherwise.
    fn drop(&mut self) {
        let session = format!("{}/session/{}", Self::DRIVER, self.session);
        let arguments = ["-sf", "-o", "/dev/null", "-X", "DELETE", &session];
        self.mesh.succeeds(0, "curl", &arguments);
    }
}

/// Whether chromedriver is installed. If it is not, the test is listed as skipped.
fn has_browser() -> bool {
    let version = std::process::Command::new("chromedriver")
        .arg("--version")
        .output();
    if version.is_err() {
        meshd::testbed::skip_test("chromedriver is not installed (Debian: chromium-driver)");
    }
    version.is_ok()
}

/// The text of axe-core. If it is not there, this part of the test is listed as skipped.
fn axe() -> Option<String> {
    let text = std::fs::read_to_string(AXE).ok();
    if text.is_none() {
        meshd::testbed::skip_part_of_test("axe-core is not unpacked (tests/run gets it with npm)");
    }
    text
}

/// `MESHD_PICTURES=DIRECTORY` keeps a picture of each view.
#[test]
fn each_view_fits_a_narrow_screen_and_a_wide_one_is_accessible_and_keeps_to_its_policy() {
    if !has_curl() || !has_browser() {
        return;
    }
    let Some(mesh) = mesh() else {
        return;
    };
    let token = token(&mesh);
    let axe = axe();
    let browser = Browser::start(&mesh);
    for width in [1280, 380] {
        browser.set_width(width);
        browser.open(&format!("{OWN}/page"));
        browser.assert_accessible(&format!("the form at {width}"), axe.as_deref());
        let enter = "document.getElementById('token').value = arguments[0]; document.getElementById('enter').requestSubmit()";
        browser.run(enter, &json!([token]));
        for section in NODE.sections {
            browser.show(section);
            let scrolls = browser.run(
                "return document.documentElement.scrollWidth > window.innerWidth",
                &json!([]),
            );
            assert_eq!(scrolls, json!(false), "{} at {width}", section.name);
            let failure = "return document.getElementById('failure').textContent";
            assert_eq!(
                browser.run(failure, &json!([])),
                json!(""),
                "{}",
                section.name
            );
            let what = format!("{} at {width}", section.name);
            browser.assert_accessible(&what, axe.as_deref());
            browser.take_picture(&format!("{}-{width}.png", section.name));
        }
    }
    // The console has a line for each script, style or connection that the policy of the page refused.
    let log = browser.of_session("/se/log", &json!({"type": "browser"}));
    let lines: Vec<String> = log
        .as_array()
        .into_iter()
        .flatten()
        .map(Value::to_string)
        .collect();
    let refused = lines.iter().filter(|line| line.contains("SEVERE"));
    assert_eq!(refused.collect::<Vec<_>>(), Vec::<&String>::new());

    // A change of the mesh is on the screen without a person.
    let services = NODE.sections.iter().find(|of| of.name == "services");
    browser.show(services.expect("a view"));
    let added = mesh.on(1, &["service", "add", "late", "--port", "80"]);
    assert_eq!(added.code, 0, "{added:?}");
    let is_shown = "return document.getElementById('view').textContent.includes('late')";
    mesh.wait_until("the page shows the change", || {
        browser.run(is_shown, &json!([])) == json!(true)
    });
}
