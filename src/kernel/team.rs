//! A team of threads for short parallel regions.
//!
//! A token of a small model takes some hundred regions of tens of microseconds, so threads wait for the next one
//! spinning, and sleep only when none comes soon.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread spins for the next region before it sleeps.
const SPIN: Duration = Duration::from_micros(200);

/// Threads that run the parallel regions of kernels. Which thread runs which task changes no bit of any result.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// What the threads of a team see.
struct Shared {
    /// Held by the caller whose region runs.
    busy: AtomicBool,
    /// `OPEN` while workers may enter the region; `ENTERED` times the workers in it; from `REGION` on its number.
    state: AtomicUsize,
    /// The region; written while it's not open and no worker is in it, read by those in it.
    region: UnsafeCell<Region>,
    /// The next task.
    next: AtomicUsize,
    /// The payload of the first task that panicked.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    asleep: AtomicUsize,
    quit: AtomicBool,
    lock: Mutex<()>,
    /// Wakes workers for a region or to quit.
    opened: Condvar,
    /// Wakes the caller when the last worker leaves.
    left: Condvar,
    spin: Duration,
}

const OPEN: usize = 1;
/// The caller sleeps until no worker is in the region.
const AWAITED: usize = 2;
const ENTERED: usize = 4;
const REGION: usize = 1 << 20;

/// A task of `n`, borrowed from the caller of [`Team::run`], which returns only when no worker is in the region.
struct Region {
    n: usize,
    task: *const (dyn Fn(usize) + Sync),
}

// SAFETY: `region` is written by the one caller that holds `busy` while no worker is in it, and its task is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: the pointer is dereferenced only while its region runs.
unsafe impl Send for Shared {}

impl Team {
    /// Returns a team of `threads` threads, the caller's included.
    ///
    /// Errors if the system gives no threads.
    pub fn new(threads: usize) -> Result<Self, std::io::Error> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let shared = Arc::new(Shared {
            busy: AtomicBool::new(false),
            state: AtomicUsize::new(0),
            region: UnsafeCell::new(Region { n: 0, task: &|_| {} }),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            asleep: AtomicUsize::new(0),
            quit: AtomicBool::new(false),
            lock: Mutex::new(()),
            opened: Condvar::new(),
            left: Condvar::new(),
            // Threads beyond the cores would spin in the way of those that work.
            spin: if threads <= cores { SPIN } else { Duration::ZERO },
        });
        let mut team = Team { shared, workers: Vec::new() };
        for i in 1..threads {
            let shared = team.shared.clone();
            let worker =
                std::thread::Builder::new().name(format!("kernel-{i}")).spawn(move || shared.work())?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// Returns the number of threads.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)` to `task(n - 1)`, each once, in any order, on all threads; returns when all have ended.
    ///
    /// A region within a region, or of a second thread at the same time, runs on its caller alone.
    ///
    /// # Panics
    /// If a task does; tasks not yet begun are then left out.
    pub fn run(&self, n: usize, task: impl Fn(usize) + Sync) {
        if n > 1 && !self.workers.is_empty() && !self.shared.busy.swap(true, Ordering::Acquire) {
            self.shared.run(n, &task);
            self.shared.busy.store(false, Ordering::Release);
            let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(payload) = panic {
                resume_unwind(payload);
            }
        } else {
            (0..n).for_each(task);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        drop(self.shared.lock());
        self.shared.opened.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics, and has none of its own to report.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a region; the caller holds `busy`.
    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        // SAFETY: the lifetime ends after this function, which returns when no worker is in the region nor can enter.
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                task,
            )
        };
        // SAFETY: the last region is closed and left, and `busy` keeps other callers out.
        unsafe { *self.region.get() = Region { n, task } };
        self.next.store(0, Ordering::Relaxed);
        let region = (self.state.load(Ordering::Relaxed) & !(REGION - 1)).wrapping_add(REGION);
        // SeqCst, as `asleep`: either this sees a sleeper, or the sleeper-to-be sees the region.
        self.state.store(region | OPEN, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) > 0 {
            drop(self.lock());
            self.opened.notify_all();
        }
        self.take_part();
        if self.state.fetch_and(!OPEN, Ordering::AcqRel) != (region | OPEN) {
            self.wait_until_left();
        }
    }

    /// Runs tasks until none is left to begin; the caller is in the region.
    fn take_part(&self) {
        // SAFETY: the region is not written while someone is in it.
        let Region { n, task } = unsafe { &*self.region.get() };
        // SAFETY: see `Region`.
        let task = unsafe { &**task };
        let tasks = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, Ordering::Relaxed);
                if i >= *n {
                    break;
                }
                task(i);
            }
        }));
        if let Err(payload) = tasks {
            self.next.store(*n, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    /// Waits until no worker is in the region, which is closed.
    fn wait_until_left(&self) {
        let is_left = || self.state.load(Ordering::Acquire) & (REGION - ENTERED) == 0;
        if self.spin_until(is_left) {
            return;
        }
        self.state.fetch_or(AWAITED, Ordering::SeqCst);
        let mut guard = self.lock();
        while !is_left() {
            guard = self.left.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A worker's life.
    fn work(&self) {
        let mut done = 0; // the last region this worker was in
        loop {
            let is_called = || {
                let state = self.state.load(Ordering::SeqCst);
                (state & OPEN != 0 && state / REGION != done) || self.quit.load(Ordering::SeqCst)
            };
            if !self.spin_until(is_called) {
                let mut guard = self.lock();
                self.asleep.fetch_add(1, Ordering::SeqCst);
                while !is_called() {
                    guard = self.opened.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                self.asleep.fetch_sub(1, Ordering::SeqCst);
            }
            if self.quit.load(Ordering::SeqCst) {
                return;
            }
            if let Some(region) = self.enter() {
                done = region;
                self.take_part();
                self.leave();
            }
        }
    }

    /// Enters the region if it's open; returns its number.
    fn enter(&self) -> Option<usize> {
        let enter = |state| (state & OPEN != 0).then_some(state + ENTERED);
        let entered = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter);
        entered.ok().map(|state| state / REGION)
    }

    fn leave(&self) {
        let state = self.state.fetch_sub(ENTERED, Ordering::SeqCst) - ENTERED;
        if state & (REGION - ENTERED) == 0 && state & AWAITED != 0 {
            drop(self.lock());
            self.left.notify_all();
        }
    }

    /// Spins until `is_so`, for a bounded time; returns whether it is so.
    fn spin_until(&self, is_so: impl Fn() -> bool) -> bool {
        let mut start = None;
        loop {
            for _ in 0..64 {
                if is_so() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.get_or_insert_with(Instant::now).elapsed() >= self.spin {
                return is_so();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn counts(n: usize) -> Vec<AtomicU32> {
        (0..n).map(|_| AtomicU32::new(0)).collect()
    }

    fn assert_all_once(counts: &[AtomicU32]) {
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn every_task_runs_once_whatever_the_threads_and_pauses() {
        for threads in [0, 1, 2, 3, 7] {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads.max(1));
            for round in 0..300 {
                let counts = counts(round % 40);
                team.run(counts.len(), |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert_all_once(&counts);
                if round % 100 == 99 {
                    std::thread::sleep(2 * SPIN); // the workers are asleep now
                }
            }
        }
    }

    #[test]
    fn regions_nest_and_come_from_several_threads_at_once() {
        let team = Team::new(3).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let counts = counts(64);
                        team.run(8, |i| {
                            team.run(8, |j| {
                                counts[8 * i + j].fetch_add(1, Ordering::Relaxed);
                            });
                        });
                        assert_all_once(&counts);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(3).unwrap();
        for bad in [0, 5, 99] {
            let caught = catch_unwind(AssertUnwindSafe(|| team.run(100, |i| assert!(i != bad, "task {i}"))));
            let payload = caught.unwrap_err();
            assert_eq!(payload.downcast_ref::<String>().unwrap(), &format!("task {bad}"));
            let counts = counts(100);
            team.run(100, |i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert_all_once(&counts);
        }
    }

    #[test]
    fn slow_workers_are_waited_for() {
        let team = Team::new(2).unwrap();
        let counts = counts(2);
        team.run(2, |i| {
            std::thread::sleep(Duration::from_millis(5 + 10 * i as u64));
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        assert_all_once(&counts);
    }
}
