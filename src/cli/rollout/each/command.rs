//! Runs the command of a rollout for one node. The command has a process group of its own, so that all its processes end when it
//! takes too long or when the rollout is interrupted.

use std::io::Write as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::model::Label;
use crate::model::text;

/// What stands for the node in a command.
pub(super) const NODE: &str = "{node}";
/// How long a command may take to end after SIGTERM.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the rest of the output may take. A process that the command left behind may keep the output open.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum length of a line that is shown, in bytes.
const MAX_LINE: usize = 2048;

/// Puts `node` into `command`, quoted for the shell if it needs to be.
pub(super) fn fill(command: &str, node: &Label) -> String {
    command.replace(NODE, &quoted(node.as_str()))
}

/// Returns `word` in a form in which the shell takes it for one word without a meaning of its own. A usual name is returned as it
/// is, so that it may also stand inside of quotes.
fn quoted(word: &str) -> String {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);
    if !word.is_empty() && !word.starts_with('-') && word.bytes().all(is_safe) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Runs `command` for `node`, until it ends, until `limit` has passed or until `stop` is cancelled. Its output is shown with the name
/// of the node in front of each line.
///
/// # Errors
/// It failed, it took too long, or it was stopped.
pub(super) async fn run(
    command: &str,
    node: &Label,
    limit: Duration,
    stop: &CancellationToken,
) -> Result<(), String> {
    if stop.is_cancelled() {
        return Err("interrupted".to_owned());
    }
    let mut child = Command::new("/bin/sh")
        .args(["-c", &fill(command, node)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot run /bin/sh: {error}"))?;
    let output = (child.stdout.take(), child.stderr.take());
    let reading = async {
        tokio::join!(show(output.0, node), show(output.1, node));
    };
    let ending = end(&mut child, limit, stop);
    tokio::pin!(reading, ending);
    let ended = tokio::select! {
        ended = &mut ending => {
            let _ = timeout(OUTPUT_TIMEOUT, &mut reading).await;
            ended
        }
        () = &mut reading => ending.await,
    };
    match ended? {
        status if status.success() => Ok(()),
        status => Err(format!("the command failed ({status})")),
    }
}

async fn end(
    child: &mut Child,
    limit: Duration,
    stop: &CancellationToken,
) -> Result<ExitStatus, String> {
    let why = tokio::select! {
        status = child.wait() => return status.map_err(|error| format!("cannot wait for the command: {error}")),
        () = sleep(limit) => format!("the command did not end within {} s, and was killed", limit.as_secs()),
        () = stop.cancelled() => "interrupted".to_owned(),
    };
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(group) = group.map(Pid::from_raw) {
        let _ = killpg(group, Signal::SIGTERM);
        let _ = timeout(END_TIMEOUT, child.wait()).await;
        // Processes of the group may outlive the shell.
        let _ = killpg(group, Signal::SIGKILL);
    }
    let _ = child.wait().await;
    Err(why)
}

async fn show(output: Option<impl AsyncRead + Unpin>, node: &Label) {
    let Some(mut output) = output else {
        return;
    };
    let mut line = Vec::new();
    let mut buffer = [0u8; 1024];
    while let Ok(length @ 1..) = output.read(&mut buffer).await {
        for byte in buffer.get(..length).unwrap_or_default() {
            if *byte == b'\n' {
                show_line(node, &line);
                line.clear();
            } else if line.len() < MAX_LINE {
                line.push(*byte);
            }
        }
    }
    if !line.is_empty() {
        show_line(node, &line);
    }
}

/// Writes a line to stderr. If the terminal is gone, the rollout continues.
fn show_line(node: &Label, line: &[u8]) {
    let line = String::from_utf8_lossy(line).replace('\t', "    ");
    let line = text::printable(line.trim_end_matches('\r'), MAX_LINE);
    let _ = writeln!(std::io::stderr(), "{node} | {line}");
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn node() -> Label {
        Label::parse("web-1").expect("a literal")
    }

    async fn run_within(command: &str, limit: Duration) -> Result<(), String> {
        run(command, &node(), limit, &CancellationToken::new()).await
    }

    #[test]
    fn a_usual_name_is_put_in_as_it_is_and_any_other_text_is_quoted() {
        assert_eq!(
            fill("ssh {node} 'echo {node}'", &node()),
            "ssh web-1 'echo web-1'"
        );
        for (word, safe) in [
            ("web-1", "web-1"),
            ("", "''"),
            ("-oProxyCommand=x", "'-oProxyCommand=x'"),
            ("a; rm -rf /", "'a; rm -rf /'"),
            ("$(id)", "'$(id)'"),
            ("a'b", r"'a'\''b'"),
            ("a\nb", "'a\nb'"),
        ] {
            assert_eq!(quoted(word), safe);
        }
    }

    #[tokio::test]
    async fn the_exit_status_decides() {
        let limit = Duration::from_secs(60);
        assert_eq!(run_within("test {node} = web-1", limit).await, Ok(()));
        assert_eq!(
            run_within("exit 3", limit).await,
            Err("the command failed (exit status: 3)".into())
        );
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed_with_all_its_processes() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("pid");
        // The first process ignores the signal, and the second one is its child.
        let command = format!(
            "trap '' TERM; sleep 600 & echo $! > {}; wait; wait",
            path.display()
        );
        let started = Instant::now();
        let ended = run_within(&command, Duration::from_secs(1)).await;
        assert_eq!(
            ended,
            Err("the command did not end within 1 s, and was killed".into())
        );
        assert!(started.elapsed() < Duration::from_secs(300));
        let pid = std::fs::read_to_string(&path).expect("it has started");
        let pid = Pid::from_raw(pid.trim().parse().expect("a number"));
        let is_gone = || nix::sys::signal::kill(pid, None).is_err() || is_zombie(pid);
        let end = Instant::now() + Duration::from_secs(30);
        while !is_gone() {
            assert!(Instant::now() < end, "the child still runs");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether a process has ended and nobody has waited for it.
    fn is_zombie(pid: Pid) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        status.contains(") Z ")
    }

    #[tokio::test]
    async fn a_process_that_keeps_the_output_open_does_not_hold_up_the_rollout() {
        let started = Instant::now();
        let ended = run_within("sleep 600 & exit 0", Duration::from_secs(300)).await;
        assert_eq!(ended, Ok(()));
        assert!(started.elapsed() < Duration::from_secs(200));
    }

    #[tokio::test]
    async fn a_cancelled_command_is_stopped() {
        let stop = CancellationToken::new();
        stop.cancel();
        let ended = run("sleep 600", &node(), Duration::from_secs(300), &stop).await;
        assert_eq!(ended, Err("interrupted".into()));
    }
}
