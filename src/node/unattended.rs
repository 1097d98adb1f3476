//! Joins unattended, with the token in a file. The task does not end before this node has joined: after each failure it
//! tries again, and until then the failure is a problem in `meshctl status` and one line in the log.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::api::Command;
use super::join_problem::JoinProblem;
use crate::model::time::retry_pause;
use crate::os::{clock, token_file};
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{Join, NodeState, Problem};

/// The first pause after a failure whose cause is outside this host. It doubles with each further failure, until the
/// file changes.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// The same for a failure whose cause is this host: such an attempt may have spent a use of the token.
const MIN_HOST_PAUSE: Duration = Duration::from_secs(60);
const MAX_HOST_PAUSE: Duration = Duration::from_secs(3600);
/// The interval at which the file, or a join that another caller began, is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Why an attempt did not result in a membership.
#[derive(Debug, Clone, PartialEq, Eq)]
enum JoinFailure {
    /// The file cannot be read.
    File(String),
    /// The join was refused.
    Join(ApiError),
}

/// The attempts with one content of the file. Pure.
#[derive(Debug, Default)]
struct Attempts {
    failures: u32,
    logged: Vec<Kind>,
}

/// The kinds of failure. Each kind is logged once, since the text may differ each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    NameTaken,
    Join(ErrorCode),
}

/// What to do after a failure.
#[derive(Debug, PartialEq, Eq)]
struct NextStep {
    /// The pause before the next attempt.
    pause: Duration,
    /// The problem for `meshctl status`.
    problem: Problem,
    /// Whether this kind of failure has not been logged yet.
    is_new_kind: bool,
}

impl Attempts {
    fn handle_failure(&mut self, file: &Path, failure: &JoinFailure) -> NextStep {
        let (first, longest) = match failure {
            JoinFailure::Join(error) if is_of_host(error.code) => (MIN_HOST_PAUSE, MAX_HOST_PAUSE),
            _ => (MIN_PAUSE, MAX_PAUSE),
        };
        let pause = retry_pause(first, self.failures, longest);
        self.failures = self.failures.saturating_add(1);
        let kind = kind_of(failure);
        let is_new_kind = !self.logged.contains(&kind);
        if is_new_kind {
            self.logged.push(kind);
        }
        NextStep {
            pause,
            problem: problem_of(file, failure),
            is_new_kind,
        }
    }
}

fn kind_of(failure: &JoinFailure) -> Kind {
    match failure {
        JoinFailure::File(_) => Kind::File,
        JoinFailure::Join(error) if error.suggestion.is_some() => Kind::NameTaken,
        JoinFailure::Join(error) => Kind::Join(error.code),
    }
}

fn is_of_host(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Configuration | ErrorCode::Permission | ErrorCode::Internal | ErrorCode::Version
    )
}

fn problem_of(file: &Path, failure: &JoinFailure) -> Problem {
    let file = file.display();
    let (why, fix) = match failure {
        JoinFailure::File(why) => (
            format!("the join token in {file} cannot be read: {why}"),
            format!(
                "write the output of `meshctl token create` into {file}, which the user of meshd must be able to read"
            ),
        ),
        JoinFailure::Join(error) => {
            let fix = match error.code {
                ErrorCode::BadRequest | ErrorCode::Forbidden => format!(
                    "write a new token into {file}: run `meshctl token create` on the administrator's machine"
                ),
                ErrorCode::Conflict if error.suggestion.is_some() => {
                    "set another `name` in meshd.toml and restart meshd, or remove the node that has the name".to_owned()
                }
                ErrorCode::Unreachable => {
                    "nothing, if the coordinator starts again; otherwise check that it runs and that this host reaches it".to_owned()
                }
                ErrorCode::Busy => {
                    "nothing, since meshd tries again; if it stays so, look at the log of mesh-coordinator"
                        .to_owned()
                }
                _ => "correct that".to_owned(),
            };
            (error.message.clone(), fix)
        }
    };
    Problem {
        what: format!("this node has not joined with the token file {file}"),
        why,
        fix,
    }
}

/// The problem of a token file that every user of the machine can read or change.
pub(super) fn exposed(file: &Path) -> Option<Problem> {
    let found = std::fs::metadata(file).ok()?;
    let exposure = crate::os::file::exposure(&found, file)?;
    Some(Problem {
        what: format!("the join token {}", exposure.what),
        why: exposure.why,
        fix: exposure.fix,
    })
}

/// Joins with the token in `file`, unless this node is a member already.
pub(super) async fn run(file: PathBuf, commands: mpsc::Sender<Command>) {
    let mut attempts = Attempts::default();
    let mut tried = None;
    let mut warned = false;
    loop {
        match state(&commands).await {
            None | Some(NodeState::Up | NodeState::Leaving | NodeState::Removed) => return,
            Some(NodeState::Joining) => {
                sleep(CHECK_INTERVAL).await;
                continue;
            }
            Some(NodeState::Unjoined) => {}
        }
        if !warned && let Some(problem) = exposed(&file) {
            warned = true;
            tracing::warn!(why = %problem.why, fix = %problem.fix, "{}", problem.what);
        }
        let content = read(&file);
        // The file may also have changed just when the pause ended, so it is compared here and not only during the pause.
        if tried.as_ref() != Some(&content) {
            attempts = Attempts::default();
            tried = Some(content.clone());
        }
        let failure = match content.clone() {
            Err(failure) => failure,
            Ok(token) => match join(token, &commands).await {
                None | Some(Ok(())) => return,
                Some(Err(error)) if error.message == super::joining::GIVEN_UP => return,
                Some(Err(error)) => JoinFailure::Join(error),
            },
        };
        let next = attempts.handle_failure(&file, &failure);
        let problem = next.problem;
        if next.is_new_kind {
            tracing::warn!(why = %problem.why, fix = %problem.fix, "not joined with the token file; it is tried again");
        }
        let next_attempt = clock::now().monotonic.checked_add(next.pause);
        let problem = JoinProblem {
            problem,
            next: next_attempt,
        };
        if commands.send(Command::Unattended(problem)).await.is_err() {
            return;
        }
        let changed = async {
            while read(&file) == content {
                sleep(CHECK_INTERVAL).await;
            }
        };
        let _ = timeout(next.pause, changed).await;
    }
}

async fn state(commands: &mpsc::Sender<Command>) -> Option<NodeState> {
    let (reply, answer) = oneshot::channel();
    commands.send(Command::Status(reply)).await.ok()?;
    Some(answer.await.ok()?.ok()?.state)
}

/// Sends the command to join. None if meshd is stopping.
async fn join(token: String, commands: &mpsc::Sender<Command>) -> Option<Result<(), ApiError>> {
    let (reply, answer) = oneshot::channel();
    let join = Join {
        token,
        name: None,
        timeout_seconds: 30.0,
    };
    commands.send(Command::Join(join, reply)).await.ok()?;
    let joined = answer.await.ok()?;
    Some(joined.map(|joined| tracing::info!(name = %joined.name, "joined with the token file")))
}

fn read(file: &Path) -> Result<String, JoinFailure> {
    token_file::read_file(file).map_err(|error| JoinFailure::File(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn refused(code: ErrorCode, message: &str) -> JoinFailure {
        JoinFailure::Join(ApiError::new(code, message))
    }

    #[test]
    fn each_kind_of_failure_is_logged_once_and_the_pauses_become_longer() {
        let file = Path::new("/etc/meshd/join-token");
        let mut attempts = Attempts::default();
        let missing = JoinFailure::File("No such file or directory".to_owned());
        let first = attempts.handle_failure(file, &missing);
        assert_eq!((first.pause, first.is_new_kind), (MIN_PAUSE, true));
        assert!(first.problem.why.contains("join-token"));
        let mut last = MIN_PAUSE;
        for n in 0..20 {
            let again = attempts.handle_failure(file, &missing);
            assert!(!again.is_new_kind && again.pause >= last);
            last = again.pause;
            // A text that differs each time is shown each time, but logged once.
            let text = format!("try again in {n} s");
            let busy = attempts.handle_failure(file, &refused(ErrorCode::Busy, &text));
            assert_eq!((busy.problem.why, busy.is_new_kind), (text, n == 0));
        }
        assert_eq!(last, MAX_PAUSE);
    }

    #[test]
    fn each_failure_has_its_pause_and_its_remedy() {
        let file = Path::new("/etc/meshd/join-token");
        for (code, first, fix) in [
            (ErrorCode::Conflict, MIN_PAUSE, "correct that"),
            (ErrorCode::Forbidden, MIN_PAUSE, "meshctl token create"),
            (ErrorCode::BadRequest, MIN_PAUSE, "meshctl token create"),
            (ErrorCode::Unreachable, MIN_PAUSE, "coordinator"),
            (
                ErrorCode::Busy,
                MIN_PAUSE,
                "nothing, since meshd tries again",
            ),
            (ErrorCode::Configuration, MIN_HOST_PAUSE, "correct that"),
        ] {
            let next = Attempts::default().handle_failure(file, &refused(code, "no"));
            assert_eq!(next.pause, first, "{code:?}");
            let problem = next.problem;
            assert_eq!(problem.why, "no");
            assert!(problem.fix.contains(fix), "{code:?}: {}", problem.fix);
        }
        let taken = ApiError {
            suggestion: Some("web-2".to_owned()),
            ..ApiError::new(ErrorCode::Conflict, "taken")
        };
        let problem = problem_of(file, &JoinFailure::Join(taken));
        assert!(problem.fix.contains("another `name`"), "{}", problem.fix);
    }

    #[test]
    fn a_token_file_that_every_user_can_read_is_a_problem_until_it_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let set = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(file.path(), mode).expect("ours");
        };
        set(0o604);
        let problem = exposed(file.path()).expect("all can read it");
        assert!(problem.why.contains("(mode 0604)"), "{problem:?}");
        assert!(problem.fix.contains("chmod 600 "), "{problem:?}");
        set(0o600);
        assert_eq!(exposed(file.path()), None);
        assert_eq!(exposed(Path::new("/nonexistent")), None);
    }

    #[test]
    fn a_file_that_is_missing_or_no_file_is_a_problem_with_the_time_of_the_next_attempt() {
        for (path, why) in [
            ("/nonexistent/token", "there is no such file"),
            (
                "/dev/zero",
                "it is not a file, but a directory, a device or a pipe",
            ),
        ] {
            let path = Path::new(path);
            let failure = read(path).expect_err("no token");
            let next = Attempts::default().handle_failure(path, &failure);
            let text = format!("the join token in {} cannot be read: {why}", path.display());
            assert_eq!(next.problem.why, text);
            let now = Instant::now();
            let problem = JoinProblem {
                problem: next.problem,
                next: Some(now + Duration::from_millis(11_100)),
            };
            let fix = problem.shown(now).fix;
            assert!(
                fix.ends_with("in 12 s, or at once when the file changes"),
                "{fix}"
            );
            let fix = problem.shown(now + Duration::from_secs(12)).fix;
            assert!(fix.ends_with("; an attempt is under way"), "{fix}");
        }
    }
}
