//! A team of threads for short parallel regions.

/// Threads that run the parallel regions of kernels. Which thread runs which task changes no bit of any result.
pub struct Team {
    pool: rayon::ThreadPool,
}

impl Team {
    /// Returns a team of `threads` threads, the caller's included.
    ///
    /// Errors if the system gives no threads.
    pub fn new(threads: usize) -> Result<Self, std::io::Error> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
        pool.map(|pool| Team { pool }).map_err(std::io::Error::other)
    }

    /// Returns the number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Calls `task(0)` to `task(n - 1)`, each once, in any order, on all threads; returns when all have ended.
    pub fn run(&self, n: usize, task: impl Fn(usize) + Sync) {
        self.pool.install(|| {
            use rayon::prelude::*;
            (0..n).into_par_iter().for_each(|i| task(i));
        });
    }
}
