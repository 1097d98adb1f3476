//! Supervised tasks: every task has a name and an owner, and none ends unnoticed.
//!
//! A daemon makes one [`Tasks`] and runs its main loop in [`Tasks::scope`]. Each part starts its tasks with that value, or with
//! [`Tasks::current`]. There are three kinds of task:
//!
//! | call | a panic | an end |
//! |---|---|---|
//! | [`Tasks::spawn`] | ends the program | ends the program |
//! | [`Tasks::spawn_finite`] | ends the program | is normal, unless it is an error |
//! | [`Tasks::spawn_child`] | is logged and counted | is normal |
//!
//! "Ends the program" means: the fault is logged with the name of the task, and [`Tasks::failed`] returns. The main loop waits
//! for that, undoes its changes to the machine and exits with an error, after which the service manager starts the program again.
//! A program that continued without one of its tasks would look healthy while it no longer does its work.
//!
//! Neither [`TaskHandle::abort`] nor [`Tasks::stop`] is a fault: both drop the future of the task at its next await.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// How long [`Tasks::stop`] waits for the tasks. Only a task that blocks its thread takes longer than a moment.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A task whose drop aborts it.
pub type AbortOnDrop = AbortOnDropHandle<()>;

tokio::task_local! {
    static CURRENT: Tasks;
}

/// The tasks of a program. A clone refers to the same tasks.
#[derive(Clone)]
pub struct Tasks {
    owner: &'static str,
    shared: Arc<Shared>,
}

struct Shared {
    tracker: TaskTracker,
    stopped: CancellationToken,
    /// The first failure.
    failure: watch::Sender<Option<Failure>>,
    /// The number of children that panicked.
    panics: AtomicU64,
}

/// Why a task that the program depends on no longer runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the task `{task}` of {owner} {fault}")]
pub struct Failure {
    /// The part of the program that started the task.
    pub owner: &'static str,
    /// The name of the task.
    pub task: &'static str,
    /// What happened to the task.
    pub fault: Fault,
}

/// What can happen to a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It panicked with this message.
    #[error("panicked: {0}")]
    Panicked(String),
    /// It returned, although it has to run as long as the program.
    #[error("ended unexpectedly")]
    Ended,
    /// It returned this error.
    #[error("failed: {0}")]
    Failed(String),
}

/// What the future of a task may return: nothing, or a result whose error is the reason of the failure.
pub trait TaskOutput {
    /// The error, as one line.
    fn into_error(self) -> Option<String>;
}

impl TaskOutput for () {
    fn into_error(self) -> Option<String> {
        None
    }
}

impl<E: fmt::Display> TaskOutput for Result<(), E> {
    fn into_error(self) -> Option<String> {
        self.err().map(|error| error.to_string())
    }
}

/// Which ends of a task are normal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Essential,
    Finite,
    Child,
}

impl Role {
    /// The fault, if the end of a task with this role is one.
    fn fault_of(self, ended: Result<Option<String>, String>) -> Option<Fault> {
        match (ended, self) {
            (Err(message), _) => Some(Fault::Panicked(message)),
            (Ok(Some(error)), _) => Some(Fault::Failed(error)),
            (Ok(None), Self::Essential) => Some(Fault::Ended),
            (Ok(None), Self::Finite | Self::Child) => None,
        }
    }
}

impl Tasks {
    /// No tasks yet. Messages call the part of the program that starts them `owner`.
    #[must_use]
    pub fn new(owner: &'static str) -> Self {
        Self {
            owner,
            shared: Arc::new(Shared {
                tracker: TaskTracker::new(),
                stopped: CancellationToken::new(),
                failure: watch::Sender::new(None),
                panics: AtomicU64::new(0),
            }),
        }
    }

    /// The tasks that the running task belongs to. Code that runs outside of [`Tasks::scope`], such as a unit test, gets tasks that
    /// nobody waits for: their faults are only logged.
    #[must_use]
    pub fn current() -> Self {
        CURRENT
            .try_with(Clone::clone)
            .unwrap_or_else(|_| Self::new("an unsupervised program"))
    }

    /// The same tasks, for another part of the program.
    #[must_use]
    pub fn owned_by(&self, owner: &'static str) -> Self {
        Self {
            owner,
            shared: Arc::clone(&self.shared),
        }
    }

    /// Runs `future`, within which [`Tasks::current`] returns these tasks.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self.clone(), future)
    }

    /// Starts a task that has to run as long as the program. Its panic and its end are failures of the program.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> TaskHandle
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.start(name, Role::Essential, future)
    }

    /// Starts a task that the program depends on and that ends when its work is done. Its panic and its error are failures of
    /// the program.
    pub fn spawn_finite<F>(&self, name: &'static str, future: F) -> TaskHandle
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.start(name, Role::Finite, future)
    }

    /// Starts a task that the program does not depend on, such as one connection. Its panic and its error are logged, and its panic
    /// is counted.
    pub fn spawn_child<F>(&self, name: &'static str, future: F) -> TaskHandle
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.start(name, Role::Child, future)
    }

    fn start<F>(&self, name: &'static str, role: Role, future: F) -> TaskHandle
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        let tasks = self.clone();
        let future = CURRENT.scope(self.clone(), AssertUnwindSafe(future).catch_unwind());
        TaskHandle(self.shared.tracker.spawn(async move {
            let ended = tokio::select! {
                biased;
                () = tasks.shared.stopped.cancelled() => return,
                ended = future => ended,
            };
            let ended = ended
                .map(TaskOutput::into_error)
                .map_err(|panic| message_of(&*panic));
            if let Some(fault) = role.fault_of(ended) {
                tasks.report(name, role, fault);
            }
        }))
    }

    fn report(&self, task: &'static str, role: Role, fault: Fault) {
        let failure = Failure {
            owner: self.owner,
            task,
            fault,
        };
        if role == Role::Child {
            if matches!(failure.fault, Fault::Panicked(_)) {
                self.shared.panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!("{failure}");
            } else {
                tracing::warn!("{failure}");
            }
            return;
        }
        tracing::error!("{failure}; the program ends");
        self.shared.failure.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(failure);
            is_first
        });
    }

    /// Waits until a task has failed that the program depends on.
    pub async fn failed(&self) -> Failure {
        let mut failures = self.shared.failure.subscribe();
        // The sender lives as long as `self`, so the wait ends only with a failure.
        let failure = failures.wait_for(Option::is_some).await;
        match failure.ok().and_then(|failure| failure.clone()) {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    /// The number of children that have panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.shared.panics.load(Ordering::Relaxed)
    }

    /// Waits for [`Tasks::stop`]. Tasks need not wait for it, since stopping drops their futures; threads and processes that a task
    /// started may need it.
    pub async fn cancelled(&self) {
        self.shared.stopped.cancelled().await;
    }

    /// Ends all tasks, also those started later, and waits until none runs. A task that blocks its thread is not waited for
    /// longer than 5 seconds.
    pub async fn stop(&self) {
        self.shared.stopped.cancel();
        self.shared.tracker.close();
        let ended = tokio::time::timeout(STOP_TIMEOUT, self.shared.tracker.wait()).await;
        if ended.is_err() {
            let count = self.shared.tracker.len();
            tracing::warn!(count, "tasks did not end in time");
        }
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("owner", &self.owner)
            .field("running", &self.shared.tracker.len())
            .finish_non_exhaustive()
    }
}

/// A started task. To drop the handle does not end the task; see [`TaskHandle::abort_on_drop`].
#[derive(Debug)]
pub struct TaskHandle(JoinHandle<()>);

impl TaskHandle {
    /// Ends the task at its next await. That is no failure.
    pub fn abort(&self) {
        self.0.abort();
    }

    /// Whether the task has ended in any way.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits until the task has ended in any way.
    pub async fn ended(&mut self) {
        // The error only tells that the task was aborted.
        let _ = (&mut self.0).await;
    }

    /// A handle whose drop aborts the task.
    pub fn abort_on_drop(self) -> AbortOnDrop {
        AbortOnDropHandle::new(self.0)
    }
}

/// The message of a panic; the panic hook has already written its place to the log.
fn message_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|message| (*message).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".into())
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    async fn failure_of(tasks: &Tasks) -> Failure {
        timeout(SOON, tasks.failed()).await.expect("a task failed")
    }

    async fn panic_on_purpose() {
        panic!("on purpose");
    }

    /// A sender that is closed once the future, which holds the receiver, is dropped.
    fn held_by_future() -> (oneshot::Sender<()>, impl Future<Output = ()> + Send) {
        let (sender, receiver) = oneshot::channel::<()>();
        (sender, async move {
            let _held = receiver;
            pending::<()>().await;
        })
    }

    #[tokio::test]
    async fn a_panic_of_an_essential_task_fails_the_program_and_names_the_task() {
        let tasks = Tasks::new("test");
        tasks.spawn("good", pending::<()>());
        tasks.spawn("bad", panic_on_purpose());
        let failure = failure_of(&tasks).await;
        assert_eq!(failure.fault, Fault::Panicked("on purpose".into()));
        assert_eq!(
            failure.to_string(),
            "the task `bad` of test panicked: on purpose"
        );
    }

    #[tokio::test]
    async fn the_end_and_the_error_of_an_essential_task_fail_the_program() {
        let tasks = Tasks::new("test");
        tasks.spawn("short", async {});
        assert_eq!(failure_of(&tasks).await.fault, Fault::Ended);
        let tasks = Tasks::new("test");
        tasks.spawn("listener", async {
            Err::<(), _>(std::io::Error::other("no"))
        });
        assert_eq!(failure_of(&tasks).await.fault, Fault::Failed("no".into()));
    }

    #[tokio::test]
    async fn the_first_failure_is_kept() {
        let tasks = Tasks::new("test");
        tasks.spawn("first", async {}).ended().await;
        tasks.spawn("second", async {}).ended().await;
        assert_eq!(failure_of(&tasks).await.task, "first");
    }

    #[tokio::test]
    async fn a_finite_task_may_end_but_not_panic() {
        let tasks = Tasks::new("test");
        tasks.spawn_finite("ends", async {}).ended().await;
        assert!(tasks.failed().now_or_never().is_none());
        tasks.spawn_finite("panics", panic_on_purpose());
        assert_eq!(failure_of(&tasks).await.task, "panics");
    }

    #[tokio::test]
    async fn a_panic_of_a_child_is_counted_and_fails_nothing() {
        let tasks = Tasks::new("test");
        for _ in 0..2 {
            tasks
                .spawn_child("connection", panic_on_purpose())
                .ended()
                .await;
        }
        tasks.spawn_child("connection", async {}).ended().await;
        assert_eq!(tasks.panics(), 2);
        assert!(tasks.failed().now_or_never().is_none());
    }

    #[tokio::test]
    async fn stopping_ends_all_tasks_and_waits_for_them_without_a_failure() {
        let tasks = Tasks::new("test");
        let (essential, future) = held_by_future();
        tasks.spawn("essential", future);
        let (child, future) = held_by_future();
        tasks.owned_by("another").spawn_child("child", future);
        tasks.stop().await;
        assert!(essential.is_closed() && child.is_closed());
        tasks.cancelled().await;
        // A task that is started later does not run.
        let mut late = tasks.spawn("late", panic_on_purpose());
        timeout(SOON, late.ended()).await.expect("it ends at once");
        assert!(tasks.failed().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_handle_that_aborts_on_drop_ends_its_task_without_a_failure() {
        let tasks = Tasks::new("test");
        let (mut sender, future) = held_by_future();
        let task = tasks.spawn("dropped", future).abort_on_drop();
        tokio::task::yield_now().await;
        assert!(!sender.is_closed());
        drop(task);
        timeout(SOON, sender.closed())
            .await
            .expect("the future is dropped");
        assert!(tasks.failed().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_task_finds_the_tasks_that_it_belongs_to() {
        let tasks = Tasks::new("test");
        tasks.spawn_child("parent", async {
            let tasks = Tasks::current();
            tasks.spawn("deep", panic_on_purpose());
        });
        assert_eq!(failure_of(&tasks).await.task, "deep");
        let other = Tasks::new("other");
        other
            .scope(async { Tasks::current().spawn("scoped", async {}) })
            .await;
        assert_eq!(failure_of(&other).await.owner, "other");
    }
}
