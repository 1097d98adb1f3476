//! What differs when a person at a terminal runs meshctl: colours, width, a question, a line of progress.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use meshd::model::PublicKey;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::daemon::{Daemon, JOINED, UNJOINED};
use crate::program::{command, meshctl, token};

/// How long anything that is waited for may take: only a hang takes that long.
const TIMEOUT: Duration = Duration::from_secs(30);

fn nodes() -> String {
    let id = PublicKey([3; 32]);
    format!(
        r#"{{"schema":1,"nodes":[{{"id":"{id}","name":"web-1","tags":[],"address_v4":"10.210.1.1",
            "address_v6":"fd00::1","endpoints":[],"connected":true,"joined_at":1700000000}}]}}"#
    )
}

/// A program whose three streams are a terminal.
struct Terminal {
    master: File,
    child: Child,
    shown: String,
}

impl Terminal {
    fn run(mut command: Command, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("ours");
        unlockpt(&master).expect("ours");
        let size = Winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(master.as_fd(), size).expect("a terminal");
        let path = ptsname(&master, Vec::new()).expect("a terminal has a name");
        let path = path.into_string().expect("a plain path");
        let terminal = File::options().read(true).write(true).open(path);
        let terminal = terminal.expect("the other end");
        let copy = || terminal.try_clone().expect("a descriptor");
        command.stdin(copy()).stdout(copy()).stderr(copy());
        let child = command.spawn().expect("meshctl is built");
        Self {
            master: master.into(),
            child,
            shown: String::new(),
        }
    }

    /// Reads once. Returns false at the end: the last program that had the terminal open has ended.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let length = self.master.read(&mut bytes).unwrap_or(0);
        self.shown
            .push_str(&String::from_utf8_lossy(&bytes[..length]));
        length > 0
    }

    fn read_until(&mut self, text: &str) {
        let end = Instant::now() + TIMEOUT;
        while !self.shown.contains(text) && Instant::now() < end && self.read() {}
        assert!(self.shown.contains(text), "no {text:?} in {:?}", self.shown);
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.master, "{line}").expect("the program reads");
    }

    /// The exit status and everything that was shown.
    fn end(mut self) -> (i32, String) {
        // The command has kept no copy of the terminal, so that reading ends with the program.
        while self.read() {}
        let status = self.child.wait().expect("our child");
        (status.code().expect("it exits by itself"), self.shown)
    }
}

fn at_terminal(socket: &Path, words: &[&str]) -> Command {
    let mut command = command(socket, words);
    command
        .env("TERM", "xterm")
        .env("MESH_ADMIN_SOCKET", socket);
    command
}

/// The status of a node without a mesh, on a terminal of this width.
fn status(columns: u16, change: impl Fn(&mut Command)) -> String {
    let daemon = Daemon::answering(vec![(200, UNJOINED.to_owned())]);
    let mut command = at_terminal(&daemon.socket(), &["status"]);
    change(&mut command);
    let (code, shown) = Terminal::run(command, columns).end();
    assert_eq!(code, 0, "{shown}");
    shown
}

#[test]
fn a_terminal_has_colours_and_lines_of_its_width() {
    let shown = status(40, |_| {});
    assert!(shown.contains("\u{1b}[31m"), "{shown:?}");
    let plain = anstream::adapter::strip_str(&shown).to_string();
    assert!(plain.lines().count() > 2, "{plain}");
    for line in plain.lines() {
        assert!(line.trim_end().chars().count() <= 40, "{line:?}");
    }
}

#[test]
fn a_person_who_wants_no_colours_gets_none() {
    for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let shown = status(40, |command| {
            command.env(name, value);
        });
        assert!(!shown.contains('\u{1b}'), "{name}: {shown:?}");
    }
}

#[test]
fn a_watched_status_is_drawn_over_the_one_before() {
    let answers = vec![(200, UNJOINED.to_owned()), (200, UNJOINED.to_owned())];
    let daemon = Daemon::answering(answers);
    let command = at_terminal(&daemon.socket(), &["status", "--watch"]);
    let mut terminal = Terminal::run(command, 200);
    let redrawn = "ends)\r\n\u{1b}[H\u{1b}[J";
    terminal.read_until(redrawn);
    terminal.child.kill().expect("our child");
    terminal.child.wait().expect("our child");
    assert_eq!(daemon.asked().len(), 2);
}

#[test]
fn a_person_is_asked_before_a_node_is_removed_and_no_is_the_default() {
    for answer in ["", "n", "web-1"] {
        let daemon = Daemon::answering(vec![(200, nodes())]);
        let command = at_terminal(&daemon.socket(), &["node", "remove", "web-1"]);
        let mut terminal = Terminal::run(command, 200);
        terminal.read_until("[y/N] ");
        terminal.type_line(answer);
        let (code, shown) = terminal.end();
        assert_eq!(code, 1, "{shown}");
        assert!(shown.contains("web-1 was not removed"), "{shown}");
        assert_eq!(daemon.asked(), ["GET /v1/nodes"]);
    }
}

#[test]
fn work_of_more_than_a_second_has_a_line_that_is_gone_at_the_end() {
    let daemon =
        Daemon::answering_after(Duration::from_millis(2500), vec![(200, JOINED.to_owned())]);
    let token = token();
    let command = at_terminal(&daemon.socket(), &["join", &token]);
    let (code, shown) = Terminal::run(command, 200).end();
    assert_eq!(code, 0, "{shown}");
    let line = "joining: waiting for the coordinator and for the tunnel (";
    let (_, after) = shown.rsplit_once(line).expect("a line of progress");
    let (_, after) = after.split_once("\r\u{1b}[K").expect("the line is erased");
    assert!(after.starts_with("joined as a"), "{after:?}");
}

#[test]
fn without_a_terminal_there_is_no_line_of_progress() {
    let daemon =
        Daemon::answering_after(Duration::from_millis(1500), vec![(200, JOINED.to_owned())]);
    let ran = meshctl(&daemon.socket(), &["join", &token()]);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(!ran.stderr.contains("waiting"), "{ran:?}");
    assert!(!ran.stderr.contains('\u{1b}'), "{ran:?}");
}
