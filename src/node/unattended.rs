//! Joins unattended, with the token in a file. The task does not end before this node has joined: after each failure it
//! tries again, and until then the failure is a problem in `meshctl status` and one line in the log.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::api::Command;
use crate::model::time::retry_pause;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{Join, NodeState, Problem};

/// The first pause after a failure whose cause is outside this host. It doubles with each further failure, until the
/// file changes.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// The same for a failure whose cause is this host: such an attempt may have spent a use of the token.
const MIN_HOST_PAUSE: Duration = Duration::from_secs(60);
const MAX_HOST_PAUSE: Duration = Duration::from_secs(3600);
/// The maximum size of a token file, in bytes. The longest token has less than 3 KiB.
const MAX_TOKEN: u64 = 16 * 1024;
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
    problem: Option<Problem>,
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
    /// The problem for `meshctl status`, if it differs from the last one.
    problem: Option<Problem>,
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
        let problem = problem_of(file, failure);
        let is_other = self.problem.as_ref() != Some(&problem);
        if is_other {
            self.problem = Some(problem.clone());
        }
        NextStep {
            pause,
            problem: is_other.then_some(problem),
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
                "write the output of `meshctl token create` into {file}; it is read again at each attempt"
            ),
        ),
        JoinFailure::Join(error) => {
            let fix = match error.code {
                ErrorCode::BadRequest | ErrorCode::Forbidden => format!(
                    "write a new token into {file}: run `meshctl token create` on the administrator's machine; the file is read again at each attempt"
                ),
                ErrorCode::Conflict if error.suggestion.is_some() => {
                    "set another `name` in meshd.toml and restart meshd, or remove the node that has the name; the join is tried again by itself".to_owned()
                }
                ErrorCode::Unreachable => {
                    "nothing, if the coordinator starts again; otherwise check that it runs and that this host reaches it".to_owned()
                }
                _ => "correct that; the join is tried again by itself".to_owned(),
            };
            (error.message.clone(), fix)
        }
    };
    Problem {
        what: "this node has not joined with the token file".to_owned(),
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
        if next.is_new_kind {
            let problem = problem_of(&file, &failure);
            tracing::warn!(why = %problem.why, fix = %problem.fix, "not joined with the token file");
        }
        if let Some(problem) = next.problem
            && commands.send(Command::Unattended(problem)).await.is_err()
        {
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
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut text))
        .map_err(|error| JoinFailure::File(error.to_string()))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
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
        assert!(first.problem.is_some_and(|p| p.why.contains("join-token")));
        let mut last = MIN_PAUSE;
        for n in 0..20 {
            let again = attempts.handle_failure(file, &missing);
            assert_eq!((again.problem, again.is_new_kind), (None, false));
            assert!(again.pause >= last);
            last = again.pause;
            // A text that differs each time is shown each time, but logged once.
            let busy = refused(ErrorCode::Busy, &format!("try again in {n} s"));
            let busy = attempts.handle_failure(file, &busy);
            assert_eq!((busy.problem.is_some(), busy.is_new_kind), (true, n == 0));
            attempts.problem = Some(problem_of(file, &missing));
        }
        assert_eq!(last, MAX_PAUSE);
    }

    #[test]
    fn each_failure_has_its_pause_and_its_remedy() {
        let file = Path::new("/etc/meshd/join-token");
        for (code, first, fix) in [
            (ErrorCode::Conflict, MIN_PAUSE, "by itself"),
            (ErrorCode::Forbidden, MIN_PAUSE, "meshctl token create"),
            (ErrorCode::BadRequest, MIN_PAUSE, "meshctl token create"),
            (ErrorCode::Unreachable, MIN_PAUSE, "coordinator"),
            (ErrorCode::Busy, MIN_PAUSE, "by itself"),
            (ErrorCode::Configuration, MIN_HOST_PAUSE, "by itself"),
        ] {
            let next = Attempts::default().handle_failure(file, &refused(code, "no"));
            assert_eq!(next.pause, first, "{code:?}");
            let problem = next.problem.expect("the first");
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
    fn a_file_without_end_is_not_read_to_its_end() {
        assert!(read(Path::new("/dev/zero")).is_ok_and(|text| text.len() <= 16 * 1024));
        assert!(matches!(
            read(Path::new("/nonexistent")),
            Err(JoinFailure::File(_))
        ));
    }
}
