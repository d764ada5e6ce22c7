//! One run in several processes, one per machine or per GPU: who takes part, how they meet, how they add up.
//!
//! ```text
//! Launch::from_environment()   torchrun's or Slurm's variables       -> rank, size, where to meet
//! connect(..)                  rank 0 listens, the others call       -> Box<dyn Reducer>
//! Reducer                      sums, broadcasts, decisions of all
//! OnDevices                    sums of gradients from GPU to GPU
//! ```
//!
//! A sum has one order, that of the ranks, and is made once, by rank 0: so every rank holds the same bits, and the same number of
//! processes gives the same bits again.

#[cfg(any(feature = "cuda", test))]
mod connecting;
mod environment;
mod error;
mod frame;
mod nodes;
#[cfg(gpu)]
mod on_devices;
mod rendezvous;
mod tcp;
#[cfg(test)]
mod tests;

use std::time::Duration;

#[cfg(gpu)]
use crate::cuda::{Device, buffer::Buffer};

pub use environment::{Launch, VARIABLES};
pub use error::Error;
#[cfg(gpu)]
pub use on_devices::OnDevices;
pub use rendezvous::{Terms, connect};
pub use tcp::TcpReducer;

/// A process among those of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// Below `size`.
    pub rank: usize,
    pub size: usize,
}

impl World {
    /// One process.
    pub const ALONE: World = World { rank: 0, size: 1 };

    /// Returns whether this is the process that writes and speaks.
    pub fn is_first(self) -> bool {
        self.rank == 0
    }

    /// Returns whether a step's micro-batch of that index is this rank's: they are dealt out in turn.
    pub fn owns(self, index: usize) -> bool {
        index % self.size == self.rank
    }
}

/// How long is waited.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For all to have come.
    pub meeting: Duration,
    /// For any sign of life. A process gives one six times in that time, whatever it computes.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { meeting: Duration::from_secs(600), silence: Duration::from_secs(60) }
    }
}

/// What the processes of a run do together. Every rank makes the same calls in the same order.
///
/// An error is one that all ranks get, each within [`Patience::silence`] of the call in which it would wait for the others.
pub trait Reducer: Send + Sync {
    fn world(&self) -> World;

    /// Replaces the values by their sums over all ranks, `((v0 + v1) + v2) + ..` in f32: the same bits on every rank.
    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<(), Error>;

    /// The same in f64.
    fn all_reduce_scalars(&self, values: &mut [f64]) -> Result<(), Error>;

    /// Replaces the values by those of rank 0.
    fn broadcast(&self, values: &mut [f32]) -> Result<(), Error>;

    /// Returns the bytes that rank 0 gave; those of the other ranks are dropped.
    fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error>;

    /// [`Reducer::all_reduce_sum`] of values on a device, where they lie, to the same bits. Returns false, and leaves them as they
    /// are, if that is for the host to do.
    #[cfg(gpu)]
    fn sum_on_device(&self, _device: &Device, _values: &mut Buffer<f32>) -> Result<bool, Error> {
        Ok(false)
    }

    /// Tells the others that this rank ends, and why, unless they know. Can be called at any time, and does not fail.
    fn fail(&self, why: &str);

    /// Returns whether the flag is set on any rank.
    fn any(&self, flag: bool) -> Result<bool, Error> {
        let mut count = [f64::from(u8::from(flag))];
        self.all_reduce_scalars(&mut count)?;
        Ok(count[0] > 0.0)
    }

    /// Returns when all ranks are here.
    fn barrier(&self) -> Result<(), Error> {
        self.any(false).map(|_| ())
    }
}

/// One process: every sum is what it was.
pub struct SingleProcess;

impl Reducer for SingleProcess {
    fn world(&self) -> World {
        World::ALONE
    }

    fn all_reduce_sum(&self, _values: &mut [f32]) -> Result<(), Error> {
        Ok(())
    }

    fn all_reduce_scalars(&self, _values: &mut [f64]) -> Result<(), Error> {
        Ok(())
    }

    fn broadcast(&self, _values: &mut [f32]) -> Result<(), Error> {
        Ok(())
    }

    fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        Ok(bytes)
    }

    fn fail(&self, _why: &str) {}
}

/// Errors, on every rank and naming those that differ from rank 0, unless all ranks have these bytes.
pub fn check_agreement(reducer: &dyn Reducer, bytes: &[u8]) -> Result<(), Error> {
    let World { rank, size } = reducer.world();
    let first = reducer.broadcast_bytes(bytes.to_vec())?;
    let mut differs = vec![0.0; size];
    differs[rank] = f64::from(u8::from(first != bytes));
    reducer.all_reduce_scalars(&mut differs)?;
    let ranks: Vec<usize> = (0..size).filter(|rank| differs[*rank] > 0.0).collect();
    if ranks.is_empty() { Ok(()) } else { Err(Error::Diverged { ranks }) }
}
