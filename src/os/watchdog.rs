//! The watchdog: it checks whether the loops of a program still make progress. The check is pure. Each loop has a [`Progress`],
//! which it raises.
//!
//! The service manager kills a program that does not notify it in time. The notification is useful only if it depends on the
//! loops that do the work. So each loop increments a counter in each of its rounds, and the program notifies the service manager
//! only while all counters grow. An idle loop sleeps without a timeout. The caller wakes it after each check, so that it
//! completes a round before the next check.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The number of checks in one interval of the service manager.
const CHECKS: u32 = 6;
/// The number of checks in a row at which a counter may be unchanged. It is one, since the loop may have been woken only just
/// before the check.
const MAX_MISSED: u32 = 1;

/// Counts the rounds of one loop. Only that loop writes the counter, which has cache lines of its own, so that a round
/// costs only a plain store.
#[derive(Debug)]
#[repr(align(128))]
pub struct Progress {
    rounds: AtomicU64,
    name: String,
}

impl Progress {
    /// A counter for the loop that messages call `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            rounds: AtomicU64::new(0),
            name: name.to_owned(),
        }
    }

    /// Counts one more round. Only one thread may call this.
    pub fn raise(&self) {
        let rounds = self.rounds.load(Ordering::Relaxed);
        self.rounds.store(rounds.wrapping_add(1), Ordering::Relaxed);
    }
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Check {
    /// All loops make progress: notify the service manager.
    Alive,
    /// The named loops make no progress: do not notify the service manager.
    Stuck(Vec<String>),
}

/// Checks loops at regular times.
#[derive(Debug)]
struct Watchdog {
    /// The time between two checks.
    pause: Duration,
    next: Instant,
    watched: Vec<Watched>,
}

/// A loop as it was at the last check.
#[derive(Debug)]
struct Watched {
    progress: Arc<Progress>,
    rounds: u64,
    /// The number of checks in a row at which the counter was unchanged.
    missed: u32,
}

impl Watchdog {
    /// A watchdog for a service manager that expects a notification in each `interval`. The first check is due at once.
    #[must_use]
    fn new(interval: Duration, now: Instant) -> Self {
        Self {
            pause: interval / CHECKS,
            next: now,
            watched: Vec::new(),
        }
    }

    /// Whether the next check is due.
    #[must_use]
    fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// Checks `loops`, which have to be all loops of the program. The caller has to wake idle loops afterwards.
    fn check<'a>(
        &mut self,
        loops: impl IntoIterator<Item = &'a Arc<Progress>>,
        now: Instant,
    ) -> Check {
        // After the machine was suspended, the missed checks are skipped: no loop could make progress in that time.
        self.next = now + self.pause;
        let mut before = std::mem::take(&mut self.watched);
        for progress in loops {
            let rounds = progress.rounds.load(Ordering::Relaxed);
            let known = before
                .iter()
                .position(|watched| Arc::ptr_eq(&watched.progress, progress));
            let missed = match known.map(|at| before.swap_remove(at)) {
                Some(watched) if watched.rounds == rounds => watched.missed.saturating_add(1),
                _ => 0,
            };
            self.watched.push(Watched {
                progress: Arc::clone(progress),
                rounds,
                missed,
            });
        }
        let stuck = self.watched.iter().filter(|w| w.missed > MAX_MISSED);
        let stuck: Vec<String> = stuck.map(|w| w.progress.name.clone()).collect();
        if stuck.is_empty() {
            Check::Alive
        } else {
            Check::Stuck(stuck)
        }
    }
}

/// The watchdog of the service manager, as the main loop of a program uses it.
#[derive(Debug)]
pub struct ServiceWatchdog {
    /// `None` if the service manager expects no notifications.
    watchdog: Option<Watchdog>,
    /// The loops that made no progress at the last check.
    stuck: Vec<String>,
}

impl ServiceWatchdog {
    /// Reads from the environment whether the service manager expects notifications.
    #[must_use]
    pub fn from_environment(now: Instant) -> Self {
        Self {
            watchdog: sd_notify::watchdog_enabled().map(|interval| Watchdog::new(interval, now)),
            stuck: Vec::new(),
        }
    }

    /// The time between two checks. None if the service manager expects no notifications.
    #[must_use]
    pub fn pause(&self) -> Option<Duration> {
        self.watchdog.as_ref().map(|watchdog| watchdog.pause)
    }

    /// Checks `loops` if a check is due, and notifies the service manager if all of them make progress. Returns whether
    /// a check was due. In that case the caller has to wake idle loops.
    pub fn feed<'a>(
        &mut self,
        loops: impl IntoIterator<Item = &'a Arc<Progress>>,
        now: Instant,
    ) -> bool {
        let Some(watchdog) = self.watchdog.as_mut().filter(|w| w.is_due(now)) else {
            return false;
        };
        let stuck = match watchdog.check(loops, now) {
            Check::Alive => {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
                Vec::new()
            }
            Check::Stuck(stuck) => stuck,
        };
        if stuck != self.stuck && !stuck.is_empty() {
            let loops = stuck.join(", ");
            tracing::error!(%loops, "loops make no progress; if this lasts, the service manager ends the program");
        }
        self.stuck = stuck;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn loops(names: &[&str]) -> Vec<Arc<Progress>> {
        names
            .iter()
            .map(|name| Arc::new(Progress::new(name)))
            .collect()
    }

    #[test]
    fn while_all_loops_make_progress_the_notifications_come_well_within_the_interval() {
        let loops = loops(&["one", "two"]);
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(INTERVAL, now);
        for _ in 0..100 {
            assert!(watchdog.is_due(now));
            loops.iter().for_each(|progress| progress.raise());
            assert_eq!(watchdog.check(&loops, now), Check::Alive);
            assert!(!watchdog.is_due(now));
            now += INTERVAL / CHECKS;
        }
    }

    #[test]
    fn one_loop_without_progress_is_enough_and_is_named() {
        let loops = loops(&["one", "two"]);
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(INTERVAL, now);
        assert_eq!(watchdog.check(&loops, now), Check::Alive);
        let mut checks = Vec::new();
        for _ in 0..4 {
            now += INTERVAL / CHECKS;
            loops[0].raise();
            checks.push(watchdog.check(&loops, now));
        }
        let stuck = Check::Stuck(vec!["two".into()]);
        assert_eq!(checks, [Check::Alive, stuck.clone(), stuck.clone(), stuck]);
        // The loop may continue, or its thread may end.
        loops[1].raise();
        assert_eq!(watchdog.check(&loops, now), Check::Alive);
        for _ in 0..4 {
            loops[0].raise();
            assert_eq!(watchdog.check(&loops[..1], now), Check::Alive);
        }
    }

    #[test]
    fn a_suspended_machine_is_not_mistaken_for_a_stuck_loop() {
        let loops = loops(&["one"]);
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(INTERVAL, now);
        assert_eq!(watchdog.check(&loops, now), Check::Alive);
        now += Duration::from_secs(3600);
        assert_eq!(watchdog.check(&loops, now), Check::Alive);
        // The loop was woken after that check, so it has completed a round before the next one.
        assert!(!watchdog.is_due(now));
        loops[0].raise();
        now += INTERVAL / CHECKS;
        assert_eq!(watchdog.check(&loops, now), Check::Alive);
    }

    #[test]
    fn a_thread_that_waits_forever_for_a_lock_is_noticed() {
        let progress = Arc::new(Progress::new("thread"));
        let lock = Arc::new(std::sync::Mutex::new(()));
        let (rounds, first_round) = std::sync::mpsc::channel();
        let held = lock.lock().expect("nobody panics");
        let thread = std::thread::spawn({
            let (progress, lock) = (Arc::clone(&progress), Arc::clone(&lock));
            move || {
                progress.raise();
                rounds.send(()).expect("the test waits");
                drop(lock.lock());
                progress.raise();
            }
        });
        first_round.recv().expect("the thread completes one round");
        let now = Instant::now();
        let mut watchdog = Watchdog::new(INTERVAL, now);
        let mut checks = (0..3)
            .map(|_| watchdog.check([&progress], now))
            .collect::<Vec<_>>();
        assert_eq!(checks.pop(), Some(Check::Stuck(vec!["thread".into()])));
        drop(held);
        thread.join().expect("it ends");
        assert_eq!(watchdog.check([&progress], now), Check::Alive);
    }
}
