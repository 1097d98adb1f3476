//! The watchdog: whether the loops of a program still go round. The rule is pure; [`Progress`] is what a loop raises.
//!
//! The service manager ends a program that does not send it a sign of life in time. That sign is worth something only if it
//! depends on the loops that do the work. So each loop raises a number whenever it goes round, and the sign of life is sent
//! only while all numbers grow. A loop that has nothing to do sleeps without an end; it is woken after each look, so that it
//! has gone round before the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Looks in one interval of the service manager.
const LOOKS: u32 = 6;
/// Looks in a row at which a loop may stand where it stood before: one, since it may have been woken just before.
const MAX_MISSED: u32 = 1;

/// How often a loop has gone round. Only the loop raises it, and on its own cache lines: that costs it a plain store.
#[derive(Debug)]
#[repr(align(128))]
pub struct Progress {
    rounds: AtomicU64,
    name: String,
}

impl Progress {
    /// That of a loop which people know as `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            rounds: AtomicU64::new(0),
            name: name.to_owned(),
        }
    }

    /// The loop goes round. To be called by one thread alone.
    pub fn raise(&self) {
        let rounds = self.rounds.load(Ordering::Relaxed);
        self.rounds.store(rounds.wrapping_add(1), Ordering::Relaxed);
    }
}

/// What follows from a look at the loops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// All go round: send the sign of life.
    Alive,
    /// These do not: send none.
    Stuck(Vec<String>),
}

/// Looks at loops from time to time.
#[derive(Debug)]
pub struct Watchdog {
    /// Between two looks.
    pause: Duration,
    next: Instant,
    watched: Vec<Watched>,
}

/// A loop as it was at the last look.
#[derive(Debug)]
struct Watched {
    progress: Arc<Progress>,
    rounds: u64,
    missed: u32,
}

impl Watchdog {
    /// One for a service manager that waits for `interval`. It is time for the first look.
    #[must_use]
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            pause: interval / LOOKS,
            next: now,
            watched: Vec::new(),
        }
    }

    /// Whether it is time for a look.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// Looks at `loops`, which are all that there are now. Those that are idle must be woken after it.
    pub fn look<'a>(
        &mut self,
        loops: impl IntoIterator<Item = &'a Arc<Progress>>,
        now: Instant,
    ) -> Look {
        // After the machine stood still, the missed looks are not made up for: nothing went round meanwhile.
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
            Look::Alive
        } else {
            Look::Stuck(stuck)
        }
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
    fn while_all_loops_go_round_there_is_a_sign_of_life_well_within_the_interval() {
        let loops = loops(&["one", "two"]);
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(INTERVAL, now);
        for _ in 0..100 {
            assert!(watchdog.is_due(now));
            loops.iter().for_each(|progress| progress.raise());
            assert_eq!(watchdog.look(&loops, now), Look::Alive);
            assert!(!watchdog.is_due(now));
            now += INTERVAL / LOOKS;
        }
    }

    #[test]
    fn one_loop_that_stands_still_is_enough_and_is_named() {
        let loops = loops(&["one", "two"]);
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(INTERVAL, now);
        assert_eq!(watchdog.look(&loops, now), Look::Alive);
        let mut looks = Vec::new();
        for _ in 0..4 {
            now += INTERVAL / LOOKS;
            loops[0].raise();
            looks.push(watchdog.look(&loops, now));
        }
        let stuck = Look::Stuck(vec!["two".into()]);
        assert_eq!(looks, [Look::Alive, stuck.clone(), stuck.clone(), stuck]);
        // It may go on, or its thread may end with what it was part of.
        loops[1].raise();
        assert_eq!(watchdog.look(&loops, now), Look::Alive);
        for _ in 0..4 {
            loops[0].raise();
            assert_eq!(watchdog.look(&loops[..1], now), Look::Alive);
        }
    }

    #[test]
    fn a_machine_that_stood_still_is_not_taken_for_a_loop_that_does() {
        let loops = loops(&["one"]);
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(INTERVAL, now);
        assert_eq!(watchdog.look(&loops, now), Look::Alive);
        now += Duration::from_secs(3600);
        assert_eq!(watchdog.look(&loops, now), Look::Alive);
        // Woken by that look, it has gone round before the next.
        assert!(!watchdog.is_due(now));
        loops[0].raise();
        now += INTERVAL / LOOKS;
        assert_eq!(watchdog.look(&loops, now), Look::Alive);
    }

    #[test]
    fn a_thread_that_waits_for_a_lock_for_ever_is_noticed() {
        let progress = Arc::new(Progress::new("thread"));
        let lock = Arc::new(std::sync::Mutex::new(()));
        let (rounds, gone_round) = std::sync::mpsc::channel();
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
        gone_round.recv().expect("the thread goes round once");
        let now = Instant::now();
        let mut watchdog = Watchdog::new(INTERVAL, now);
        let mut looks = (0..3)
            .map(|_| watchdog.look([&progress], now))
            .collect::<Vec<_>>();
        assert_eq!(looks.pop(), Some(Look::Stuck(vec!["thread".into()])));
        drop(held);
        thread.join().expect("it ends");
        assert_eq!(watchdog.look([&progress], now), Look::Alive);
    }
}
