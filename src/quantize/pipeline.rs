//! Many workers, one ordered output: bounded memory, and the same bytes for any number of threads.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Finished slabs that may wait for their turn, per worker.
const PARKED_PER_WORKER: usize = 3;

/// Runs `work(slab, buffer)` for every slab below `n_slabs` on `n_workers` threads, and hands the filled
/// buffers to `write` in slab order, one at a time.
///
/// Whoever finishes the slab whose turn it is writes it and every parked one behind it; others park
/// their buffer and go on, at most [`PARKED_PER_WORKER`] slabs per worker ahead of the writer.
/// `make_worker` gives each thread its own state.
///
/// Errors: of all slabs that fail in `work`, the first one's error, whatever the thread count.
pub(super) fn run_ordered<E, W>(
    n_slabs: usize,
    n_workers: usize,
    make_worker: impl Fn() -> W + Sync,
    write: impl FnMut(&[u8]) -> Result<(), E> + Send,
) -> Result<(), E>
where
    E: Send,
    W: FnMut(usize, &mut Vec<u8>) -> Result<(), E>,
{
    let turnstile = Turnstile {
        state: Mutex::new(State::default()),
        moved: Condvar::new(),
        write: Mutex::new(write),
        n_slabs,
        n_ahead: n_workers.max(1) * PARKED_PER_WORKER,
    };
    std::thread::scope(|scope| {
        for _ in 0..n_workers.max(1).min(n_slabs) {
            scope.spawn(|| turnstile.work_through(make_worker()));
        }
    });
    let state = turnstile.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    state.failed.map_or(Ok(()), |(_, error)| Err(error))
}

struct State<E> {
    /// Next slab to hand out; slabs are handed out in order.
    next_work: usize,
    /// Next slab to write.
    next_write: usize,
    is_writing: bool,
    parked: BTreeMap<usize, Vec<u8>>,
    free: Vec<Vec<u8>>,
    /// The failure of the lowest slab so far.
    failed: Option<(usize, E)>,
    panicked: bool,
}

impl<E> Default for State<E> {
    fn default() -> Self {
        State {
            next_work: 0,
            next_write: 0,
            is_writing: false,
            parked: BTreeMap::new(),
            free: Vec::new(),
            failed: None,
            panicked: false,
        }
    }
}

impl<E> State<E> {
    fn is_stopped(&self) -> bool {
        self.failed.is_some() || self.panicked
    }

    fn fail(&mut self, slab: usize, error: E) {
        if self.failed.as_ref().is_none_or(|(first, _)| slab < *first) {
            self.failed = Some((slab, error));
        }
    }
}

struct Turnstile<E, F> {
    state: Mutex<State<E>>,
    moved: Condvar,
    write: Mutex<F>,
    n_slabs: usize,
    n_ahead: usize,
}

impl<E, F: FnMut(&[u8]) -> Result<(), E>> Turnstile<E, F> {
    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work_through(&self, mut worker: impl FnMut(usize, &mut Vec<u8>) -> Result<(), E>) {
        let guard = StopOnPanic(self);
        while let Some((slab, mut buffer)) = self.take() {
            let done = worker(slab, &mut buffer);
            let mut state = self.lock();
            match done {
                Ok(()) => {
                    state.parked.insert(slab, buffer);
                    self.write_parked(state);
                }
                Err(error) => {
                    state.fail(slab, error);
                    self.moved.notify_all();
                }
            }
        }
        std::mem::forget(guard);
    }

    /// Returns the next slab and a buffer for it, or `None` when there is no more to do.
    fn take(&self) -> Option<(usize, Vec<u8>)> {
        let mut state = self.lock();
        loop {
            if state.is_stopped() || state.next_work == self.n_slabs {
                return None;
            }
            if state.next_work < state.next_write + self.n_ahead {
                let slab = state.next_work;
                state.next_work += 1;
                return Some((slab, state.free.pop().unwrap_or_default()));
            }
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes every parked slab whose turn it is, unless another worker is at it.
    fn write_parked<'a>(&'a self, mut state: MutexGuard<'a, State<E>>) {
        if state.is_writing {
            return;
        }
        state.is_writing = true;
        while !state.is_stopped() {
            let slab = state.next_write;
            let Some(buffer) = state.parked.remove(&slab) else { break };
            drop(state);
            let written = (self.write.lock().unwrap_or_else(PoisonError::into_inner))(&buffer);
            state = self.lock();
            match written {
                Ok(()) => state.next_write += 1,
                Err(error) => state.fail(slab, error),
            }
            state.free.push(buffer);
            self.moved.notify_all();
        }
        state.is_writing = false;
    }
}

/// Wakes and stops the other workers if one panics; the scope then passes the panic on.
struct StopOnPanic<'a, E, F: FnMut(&[u8]) -> Result<(), E>>(&'a Turnstile<E, F>);

impl<E, F: FnMut(&[u8]) -> Result<(), E>> Drop for StopOnPanic<'_, E, F> {
    fn drop(&mut self) {
        self.0.lock().panicked = true;
        self.0.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn fill(slab: usize, buffer: &mut Vec<u8>) {
        // later slabs of a pair finish first, so that parking is exercised
        std::thread::sleep(Duration::from_micros(if slab.is_multiple_of(2) { 300 } else { 10 }));
        buffer.clear();
        buffer.extend(std::iter::repeat_n(slab as u8, slab % 5));
    }

    #[test]
    fn slabs_come_out_in_order_for_any_number_of_workers() {
        let expected: Vec<u8> =
            (0..100usize).flat_map(|slab| std::iter::repeat_n(slab as u8, slab % 5)).collect();
        for n_workers in [0, 1, 2, 7, 200] {
            let mut written = Vec::new();
            let worker = || {
                |slab: usize, buffer: &mut Vec<u8>| {
                    fill(slab, buffer);
                    Ok::<(), ()>(())
                }
            };
            run_ordered(100, n_workers, worker, |bytes| {
                written.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
            assert_eq!(written, expected, "{n_workers} workers");
        }
        run_ordered(0, 3, || |_: usize, _: &mut Vec<u8>| Err(()), |_| Err(())).unwrap();
    }

    #[test]
    fn the_first_failing_slab_is_the_one_reported() {
        for n_workers in [1, 2, 7] {
            let worker = || {
                |slab: usize, buffer: &mut Vec<u8>| {
                    fill(slab, buffer);
                    if slab >= 20 { Err(slab) } else { Ok(()) }
                }
            };
            assert_eq!(run_ordered(100, n_workers, worker, |_| Ok(())), Err(20));
        }
    }

    #[test]
    fn a_failing_write_stops_the_work() {
        let n_worked = AtomicUsize::new(0);
        let worker = || {
            |slab: usize, buffer: &mut Vec<u8>| {
                fill(slab, buffer);
                n_worked.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        };
        let mut n_left = 3;
        let write = |_: &[u8]| {
            n_left -= 1;
            if n_left == 0 { Err("full") } else { Ok(()) }
        };
        assert_eq!(run_ordered(10_000, 4, worker, write), Err("full"));
        assert!(n_worked.into_inner() < 3 + 2 * 4 * PARKED_PER_WORKER);
    }

    #[test]
    fn workers_never_run_far_ahead_of_the_writer() {
        let (n_taken, n_written) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let worker = || {
            |_: usize, _: &mut Vec<u8>| {
                let taken = n_taken.fetch_add(1, Ordering::SeqCst) + 1;
                assert!(taken <= n_written.load(Ordering::SeqCst) + 4 * PARKED_PER_WORKER);
                Ok::<(), ()>(())
            }
        };
        let write = |_: &[u8]| {
            std::thread::sleep(Duration::from_micros(50));
            n_written.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        run_ordered(500, 4, worker, write).unwrap();
    }

    #[test]
    fn a_panic_in_one_worker_does_not_hang_the_others() {
        let worker = || {
            |slab: usize, buffer: &mut Vec<u8>| {
                assert!(slab != 5, "bug in slab 5");
                fill(slab, buffer);
                Ok::<(), ()>(())
            }
        };
        let run = std::panic::AssertUnwindSafe(|| run_ordered(1000, 3, worker, |_| Ok(())));
        assert!(std::panic::catch_unwind(run).is_err());
    }
}
