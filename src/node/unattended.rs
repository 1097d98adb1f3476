//! Joining unattended, with the token in a file. It never ends before this node is joined: what an administrator or time can
//! mend is tried again, and until then it is a problem in `meshctl status` and one line in the log.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::api::Command;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{Join, NodeState, Problem};

/// The first pause after a failure that somebody else has to mend; it doubles with each further one, until the file changes.
const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// The same where this host is the reason: an attempt may have spent a use of the token.
const HOST_PAUSE: Duration = Duration::from_secs(60);
const MAX_HOST_PAUSE: Duration = Duration::from_secs(3600);
/// Octets of a token file at most; the longest token is under 3 KiB.
const MAX_TOKEN: u64 = 16 * 1024;
/// Between two looks at the file, or at a join that somebody else began.
const LOOK: Duration = Duration::from_secs(1);

/// Why an attempt did not lead to a membership.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failed {
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

/// Kinds of failure: each is logged once, since its text may differ each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    NameTaken,
    Join(ErrorCode),
}

/// What follows from a failure.
#[derive(Debug, PartialEq, Eq)]
struct Consequence {
    /// Before the next attempt.
    pause: Duration,
    /// For `meshctl status`, if it is another than before.
    problem: Option<Problem>,
    /// Whether the log has no line about this kind of failure yet.
    is_news: bool,
}

impl Attempts {
    fn handle_failed(&mut self, file: &Path, failed: &Failed) -> Consequence {
        let (first, most) = match failed {
            Failed::Join(error) if is_of_host(error.code) => (HOST_PAUSE, MAX_HOST_PAUSE),
            _ => (PAUSE, MAX_PAUSE),
        };
        let pause = first.saturating_mul(1 << self.failures.min(10)).min(most);
        self.failures = self.failures.saturating_add(1);
        let kind = kind_of(failed);
        let is_news = !self.logged.contains(&kind);
        if is_news {
            self.logged.push(kind);
        }
        let problem = problem_of(file, failed);
        let is_other = self.problem.as_ref() != Some(&problem);
        if is_other {
            self.problem = Some(problem.clone());
        }
        Consequence {
            pause,
            problem: is_other.then_some(problem),
            is_news,
        }
    }
}

fn kind_of(failed: &Failed) -> Kind {
    match failed {
        Failed::File(_) => Kind::File,
        Failed::Join(error) if error.suggestion.is_some() => Kind::NameTaken,
        Failed::Join(error) => Kind::Join(error.code),
    }
}

fn is_of_host(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Configuration | ErrorCode::Permission | ErrorCode::Internal | ErrorCode::Version
    )
}

fn problem_of(file: &Path, failed: &Failed) -> Problem {
    let file = file.display();
    let (why, fix) = match failed {
        Failed::File(why) => (
            format!("the join token in {file} cannot be read: {why}"),
            format!(
                "write what `meshctl token create` prints into {file}; it is read again at each attempt"
            ),
        ),
        Failed::Join(error) => {
            let fix = match error.code {
                ErrorCode::BadRequest | ErrorCode::Forbidden => format!(
                    "write a new token into {file}: `meshctl token create` where the mesh is administered prints one; it is read again at each attempt"
                ),
                ErrorCode::Conflict if error.suggestion.is_some() => {
                    "set another `name` in meshd.toml and restart meshd, or remove the node that has the name; the join is tried again by itself".to_owned()
                }
                ErrorCode::Unreachable => {
                    "nothing, if the coordinator comes back; else look whether it runs and whether this host reaches it".to_owned()
                }
                _ => "mend that; the join is tried again by itself".to_owned(),
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
    let mut warned = false;
    loop {
        match state(&commands).await {
            None | Some(NodeState::Up | NodeState::Leaving | NodeState::Removed) => return,
            Some(NodeState::Joining) => {
                sleep(LOOK).await;
                continue;
            }
            Some(NodeState::Unjoined) => {}
        }
        if !warned && let Some(problem) = exposed(&file) {
            warned = true;
            tracing::warn!(why = %problem.why, fix = %problem.fix, "{}", problem.what);
        }
        let content = read(&file);
        let failed = match content.clone() {
            Err(failed) => failed,
            Ok(token) => match join(token, &commands).await {
                None | Some(Ok(())) => return,
                Some(Err(error)) if error.message == super::joining::GIVEN_UP => return,
                Some(Err(error)) => Failed::Join(error),
            },
        };
        let follows = attempts.handle_failed(&file, &failed);
        if follows.is_news {
            let problem = problem_of(&file, &failed);
            tracing::warn!(why = %problem.why, fix = %problem.fix, "not joined with the token file");
        }
        if let Some(problem) = follows.problem
            && commands.send(Command::Unattended(problem)).await.is_err()
        {
            return;
        }
        let changed = async {
            while read(&file) == content {
                sleep(LOOK).await;
            }
        };
        if timeout(follows.pause, changed).await.is_ok() {
            attempts = Attempts::default();
        }
    }
}

async fn state(commands: &mpsc::Sender<Command>) -> Option<NodeState> {
    let (reply, answer) = oneshot::channel();
    commands.send(Command::Status(reply)).await.ok()?;
    Some(answer.await.ok()?.ok()?.state)
}

/// None: meshd is stopping.
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

fn read(file: &Path) -> Result<String, Failed> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut text))
        .map_err(|error| Failed::File(error.to_string()))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: ErrorCode, message: &str) -> Failed {
        Failed::Join(ApiError::new(code, message))
    }

    #[test]
    fn each_kind_of_failure_is_logged_once_and_tried_again_ever_more_rarely() {
        let file = Path::new("/etc/meshd/join-token");
        let mut attempts = Attempts::default();
        let missing = Failed::File("No such file or directory".to_owned());
        let first = attempts.handle_failed(file, &missing);
        assert_eq!((first.pause, first.is_news), (PAUSE, true));
        assert!(first.problem.is_some_and(|p| p.why.contains("join-token")));
        let mut last = PAUSE;
        for n in 0..20 {
            let again = attempts.handle_failed(file, &missing);
            assert_eq!((again.problem, again.is_news), (None, false));
            assert!(again.pause >= last);
            last = again.pause;
            // What differs each time is shown, and not logged each time.
            let busy = refused(ErrorCode::Busy, &format!("try again in {n} s"));
            let busy = attempts.handle_failed(file, &busy);
            assert_eq!((busy.problem.is_some(), busy.is_news), (true, n == 0));
            attempts.problem = Some(problem_of(file, &missing));
        }
        assert_eq!(last, MAX_PAUSE);
    }

    #[test]
    fn each_failure_has_its_pause_and_its_way_out() {
        let file = Path::new("/etc/meshd/join-token");
        for (code, first, fix) in [
            (ErrorCode::Conflict, PAUSE, "by itself"),
            (ErrorCode::Forbidden, PAUSE, "meshctl token create"),
            (ErrorCode::BadRequest, PAUSE, "meshctl token create"),
            (ErrorCode::Unreachable, PAUSE, "coordinator"),
            (ErrorCode::Busy, PAUSE, "by itself"),
            (ErrorCode::Configuration, HOST_PAUSE, "by itself"),
        ] {
            let follows = Attempts::default().handle_failed(file, &refused(code, "no"));
            assert_eq!(follows.pause, first, "{code:?}");
            let problem = follows.problem.expect("the first");
            assert_eq!(problem.why, "no");
            assert!(problem.fix.contains(fix), "{code:?}: {}", problem.fix);
        }
        let taken = ApiError {
            suggestion: Some("web-2".to_owned()),
            ..ApiError::new(ErrorCode::Conflict, "taken")
        };
        let problem = problem_of(file, &Failed::Join(taken));
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
            Err(Failed::File(_))
        ));
    }
}
