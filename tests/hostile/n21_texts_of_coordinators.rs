//! No text from a coordinator forges a line, controls a terminal or hides the text next to it, neither in the status
//! nor in the log nor in the errors of a join.

use std::net::TcpListener;
use std::path::Path;

use meshd::node::control::join::join;
use meshd::protocol::join::JoinRequest;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use crate::kit::{Coordinator, Identity, Stolen, record};
use crate::mesh::Mesh;
use crate::stand_in::acceptor;

/// The beginning of a log line that the attacker tries to forge.
const FORGED: &str = "WARN forged";
/// The greatest length of a line in a log or a status. A text from a coordinator is cut off long before.
const MAX_LINE: usize = 8_000;

/// A very long text with all characters that do harm: line ends, escape sequences with 7-bit and 8-bit introducers, directional
/// characters (UAX #9, the Arabic letter mark among them), and invisible characters, some of which can carry another text.
fn evil() -> String {
    let harm = [
        "\r\n",
        "\u{b}",
        "\u{85}",
        "\u{2028}",
        "\u{1b}[2J",
        "\u{9b}31m",
        "\u{1b}]0;t\u{7}",
        "\u{8}",
        "\u{202e}",
        "\u{2066}",
        "\u{200f}",
        "\u{61c}",
        "\u{200b}",
        "\u{feff}",
        "\u{ad}",
        "\u{e0041}",
        "\u{fff9}",
        "\u{0}",
    ];
    let mut text = String::from("sorry");
    for harm in harm {
        text.push_str(harm);
        text.push_str(FORGED);
    }
    text.push_str(&"x".repeat(200_000));
    text
}

/// Whether a character may be in a text that is shown. Line ends are allowed, since the program writes them itself.
fn is_shown(c: char) -> bool {
    let hidden = [
        '\u{ad}',
        '\u{61c}',
        '\u{200b}',
        '\u{200f}',
        '\u{2028}',
        '\u{202e}',
        '\u{2066}',
        '\u{feff}',
        '\u{fff9}',
        '\u{e0041}',
    ];
    c == '\n' || !(c.is_control() || hidden.contains(&c))
}

#[track_caller]
fn assert_harmless(what: &str, text: &str) {
    let odd: Vec<char> = text.chars().filter(|c| !is_shown(*c)).collect();
    assert!(odd.is_empty(), "{what}: {odd:?}");
    for line in text.lines() {
        assert!(!line.trim_start().starts_with(FORGED), "{what}: {line}");
        assert!(line.len() < MAX_LINE, "{what}: {} bytes", line.len());
    }
}

#[test]
fn no_text_of_a_stolen_coordinator_forges_a_line_in_the_status_or_in_the_log_of_a_node() {
    let Some(mut mesh) = Mesh::joined(1) else {
        return;
    };
    let log = |mesh: &Mesh| std::fs::read_to_string(mesh.log(0)).expect("a log");
    let stolen = Stolen::coordinator_of(&mut mesh);
    mesh.wait_until("the node connects to the thief", || stolen.streams() >= 1);
    // These messages refuse the node's own records with the harmful text as the reason.
    for sequence in 1..=4 {
        let published = json!({
            "type": "published", "sequence": sequence, "accepted": 0, "refused": [evil(), evil()],
        });
        stolen.send_text(published.to_string());
    }
    // The harmful text is the name of a store, the type of a message, an instance and the reason of a refusal.
    let welcome = json!({
        "type": "welcome", "protocol": 1, "store": evil(), "revision": 1, "snapshot": false,
    });
    stolen.send_text(welcome.to_string());
    stolen.send_text(json!({"type": evil()}).to_string());
    stolen.send_text(json!({"type": "copy", "instance": evil()}).to_string());
    let refuse = json!({"type": "refuse", "reason": "busy", "message": evil()});
    stolen.send_text(refuse.to_string());
    mesh.wait_until("the refusal is in the log", || log(&mesh).contains(FORGED));
    let streams = stolen.streams();
    mesh.wait_until("the node connects again", || stolen.streams() > streams);

    let shown = mesh.on(0, &["status"]);
    assert_harmless("status", &shown.stdout);
    assert_harmless("status", &shown.stderr);
    let shown = mesh.on(0, &["status", "--json"]).stdout;
    assert_harmless("status --json", &shown);
    // JSON escapes characters. The texts without the escapes are harmless as well.
    let status = mesh.status(0);
    for problem in &status.problems {
        let text = [&problem.what, &problem.why, &problem.fix];
        text.iter()
            .for_each(|text| assert_harmless("problem", text));
        assert!(!problem.why.contains('\n') && !problem.what.contains('\n'));
    }
    for words in [vec!["doctor"], vec!["status", "--system"], vec!["leave"]] {
        let shown = mesh.on(0, &words);
        assert_harmless(words[0], &shown.stdout);
        assert_harmless(words[0], &shown.stderr);
    }
    assert_harmless("log", &log(&mesh));
}

#[test]
fn what_is_no_message_at_all_is_not_quoted_raw_in_the_log_either() {
    let Some(mut mesh) = Mesh::joined(1) else {
        return;
    };
    let stolen = Stolen::coordinator_of(&mut mesh);
    // The parser's error quotes the text that it found in the place of a number.
    let published = json!({"type": "published", "sequence": evil(), "accepted": 0, "refused": []});
    stolen.send_text(published.to_string());
    mesh.wait_until("the node connects again", || stolen.streams() >= 2);
    let log = std::fs::read_to_string(mesh.log(0)).expect("a log");
    assert_harmless("log", &log);
    assert_harmless("status", &mesh.on(0, &["status"]).stdout);
}

/// Answers every request with `answer`, over TLS with the key in the state directory `state`.
fn serve(listener: TcpListener, state: &Path, answer: Vec<u8>) -> JoinHandle<()> {
    let acceptor = acceptor(state);
    listener.set_nonblocking(true).expect("a socket");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut tls) = acceptor.accept(tcp).await else {
                continue;
            };
            let _ = tls.read(&mut vec![0; 65_536]).await;
            let _ = tls.write_all(&answer).await;
            let _ = tls.shutdown().await;
        }
    })
}

#[tokio::test]
async fn no_answer_to_a_join_forges_a_line_in_its_error() {
    let mut coordinator = Coordinator::start();
    let token = coordinator.token();
    let identity = Identity::new();
    let membership = record::membership(token.key.public(), &identity, "n1").signed_by(&token.key);
    let request = JoinRequest::make(membership, identity.key());
    coordinator.kill();
    let error =
        |code: &str| json!({"code": code, "message": evil(), "suggestion": evil()}).to_string();
    let with = |status: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
    };
    let answers = [
        with("403 Forbidden", &error("forbidden")),
        with("409 Conflict", &error("conflict")),
        with("503 Busy", &error("busy")),
        with("403 Forbidden", &error(&evil())),
        with("200 OK", &json!({"block": evil()}).to_string()),
        with("200 OK", &evil()),
        with("500 \u{1b}[2J\u{9b}", &evil()),
        evil(),
    ];
    for answer in answers {
        let listener = TcpListener::bind(coordinator.address()).expect("the coordinator is dead");
        let serving = serve(listener, &coordinator.state_directory(), answer.into());
        let urls = [coordinator.url()];
        let refused = join(&urls, coordinator.pin(), &request).await;
        let said = refused.expect_err("no membership").to_string();
        assert_harmless("the error of a join", &said);
        assert!(!said.contains('\n'), "{said}");
        serving.abort();
        let _ = serving.await;
    }
}
