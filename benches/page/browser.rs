//! A browser without a window, driven over the W3C protocol WebDriver.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longer than the driver takes to start.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Returns when the frame was painted first, in milliseconds since the request for it.
const FIRST_PAINT: &str = "
const done = arguments[0];
const look = () => {
  const paint = performance.getEntriesByType('paint').find((entry) => entry.name === 'first-paint');
  if (paint) done(paint.startTime);
  else setTimeout(look, 20);
};
look();";
/// Enters the token, and returns how many milliseconds later the view is painted.
const VIEW_PAINTED: &str = "
const [token, done] = arguments;
const view = document.getElementById('view');
const begun = performance.now();
const observer = new MutationObserver(() => {
  if (view.querySelector('table') === null) return;
  observer.disconnect();
  // The callback runs before the frame is painted, and the timer after it.
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun)));
});
observer.observe(view, { childList: true });
document.getElementById('token').value = token;
document.getElementById('enter').requestSubmit();";

/// Ends with the value.
pub(crate) struct Browser {
    driver: Child,
    /// The URL of the session.
    session: String,
    directory: tempfile::TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("loopback")
            .port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .env("HOME", directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it is installed");
        let url = format!("http://127.0.0.1:{port}");
        let mut browser = Self {
            driver,
            session: String::new(),
            directory,
        };
        let end = Instant::now() + START_TIMEOUT;
        while curl(&[format!("{url}/status").as_str()]).is_none() {
            assert!(Instant::now() < end, "the driver does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-proxy-server",
        ];
        // The certificate of the coordinator is its own.
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"args": arguments},
        }}});
        let opened = browser.ask(&format!("{url}/session"), &wanted);
        let id = opened["sessionId"].as_str();
        let id = id.unwrap_or_else(|| panic!("{opened}"));
        browser.session = format!("{url}/session/{id}");
        browser
    }

    /// Loads the page anew and enters the token. Returns the milliseconds up to the first paint, and from the token to the paint of the view.
    pub(crate) fn load(&self, url: &str, token: &str) -> (f64, f64) {
        // Without another page in between, the browser would only follow the fragment of the URL.
        for url in ["about:blank", url] {
            self.ask(&format!("{}/url", self.session), &json!({"url": url}));
        }
        (
            self.time(FIRST_PAINT, &json!([])),
            self.time(VIEW_PAINTED, &json!([token])),
        )
    }

    /// The number that a script in the page returns. NaN if it returns none.
    fn time(&self, script: &str, arguments: &Value) -> f64 {
        let body = json!({"script": script, "args": arguments});
        let result = self.ask(&format!("{}/execute/async", self.session), &body);
        result.as_f64().unwrap_or(f64::NAN)
    }

    fn ask(&self, url: &str, body: &Value) -> Value {
        let file = self.directory.path().join("body.json");
        std::fs::write(&file, body.to_string()).expect("writable");
        let data = format!("@{}", file.display());
        let answer = curl(&["--data-binary", &data, url]).expect("the driver answers");
        let mut answer: Value = serde_json::from_str(&answer).expect("a document");
        answer["value"].take()
    }
}

impl Drop for Browser {
    /// Ends the browser first, which outlives its driver otherwise.
    fn drop(&mut self) {
        let _ = curl(&["-X", "DELETE", &self.session]);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// What curl prints. None if it has no answer.
fn curl(arguments: &[&str]) -> Option<String> {
    let output = Command::new("curl")
        .args(["-sS", "--noproxy", "*", "--max-time", "60"])
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .expect("it is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}
