//! Sums over TCP: every rank is connected with rank 0, which adds up and sends back.
//!
//! Rank 0 takes and sends `size - 1` times the values. A rank writes only when the other one waits for it: a full buffer is
//! then a sign of a peer that stands still, and never of one that computes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::error::Error;
use super::frame::{Expected, Kind, LARGEST, Link};
use super::{Reducer, World};

/// Most bytes that rank 0 gives to all at once.
const MOST_BYTES: usize = 1 << 28;

/// Processes that add up over TCP.
pub struct TcpReducer {
    world: World,
    /// To all others, ascending, on rank 0; to rank 0 on the others.
    links: Arc<[Link]>,
    /// Of what all do together; counts on from 0.
    sequence: AtomicU32,
    /// Whether the others know that it is over.
    is_over: AtomicBool,
    pulse: Pulse,
}

/// A value as it is sent.
trait Element: Copy + Default {
    const BYTES: usize;
    fn put(self, out: &mut Vec<u8>);
    /// Returns the value of [`Element::BYTES`] bytes.
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! element {
    ($type:ty) => {
        impl Element for $type {
            const BYTES: usize = size_of::<$type>();

            fn put(self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }

            fn get(bytes: &[u8]) -> Self {
                bytes.try_into().map(<$type>::from_le_bytes).unwrap_or_default()
            }
        }
    };
}

element!(f32);
element!(f64);
element!(u8);

impl TcpReducer {
    /// Returns the reducer over connections that are made: of rank 0 to all others in order, of others to rank 0.
    pub(super) fn new(world: World, links: Vec<Link>, silence: Duration) -> TcpReducer {
        let links: Arc<[Link]> = links.into();
        let pulse = Pulse::begin(links.clone(), silence / 6);
        TcpReducer { world, links, sequence: AtomicU32::new(0), is_over: AtomicBool::new(false), pulse }
    }

    fn next(&self) -> u32 {
        self.sequence.fetch_add(1, Ordering::SeqCst)
    }

    /// Tells the others that a rank ended, once.
    fn end(&self, ended: usize, why: &str) {
        if !self.is_over.swap(true, Ordering::SeqCst) {
            self.links.iter().filter(|link| link.rank != ended).for_each(|link| link.send_failed(ended, why));
        }
    }

    /// Returns what was done, or tells the others why it could not be.
    fn told<T>(&self, done: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &done {
            let (rank, why) = match error {
                Error::Failed { rank, why } => (*rank, why.clone()),
                Error::Lost { rank, .. } => (*rank, "its connection ended".to_owned()),
                Error::Silent { rank, seconds } => (*rank, format!("no sign of life for {seconds} s")),
                error => (self.world.rank, error.to_string()),
            };
            self.end(rank, &why);
        }
        done
    }

    /// Replaces values by their sums, added in the order of the ranks.
    fn reduce<E: Element>(&self, values: &mut [E], add: fn(E, E) -> E) -> Result<(), Error> {
        let sequence = self.next();
        for link in self.links.iter() {
            match self.world.is_first() {
                true => {
                    link.send(Kind::Ready, sequence, &[])?;
                    receive_values(link, sequence, values, add)?;
                }
                false => {
                    receive_ready(link, sequence)?;
                    send_values(link, sequence, values)?;
                    receive_values(link, sequence, values, |_, sum| sum)?;
                }
            }
        }
        if self.world.is_first() {
            self.links.iter().try_for_each(|link| send_values(link, sequence, values))?;
        }
        Ok(())
    }

    /// Replaces values by those of rank 0.
    fn give<E: Element>(&self, values: &mut [E]) -> Result<(), Error> {
        let sequence = self.next();
        self.links.iter().try_for_each(|link| match self.world.is_first() {
            true => {
                receive_ready(link, sequence)?;
                send_values(link, sequence, values)
            }
            false => {
                link.send(Kind::Ready, sequence, &[])?;
                receive_values(link, sequence, values, |_, given| given)
            }
        })
    }

    fn give_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        // far below 2^53
        let mut length = [bytes.len() as f64];
        self.give(&mut length)?;
        // what is no length becomes one that is too large
        let length = length[0] as usize;
        if length > MOST_BYTES {
            return Err(Error::Protocol {
                rank: 0,
                found: format!("{length} bytes"),
                expected: format!("at most {MOST_BYTES}"),
            });
        }
        let mut bytes = if self.world.is_first() { bytes } else { vec![0; length] };
        self.give(&mut bytes)?;
        Ok(bytes)
    }
}

impl Reducer for TcpReducer {
    fn world(&self) -> World {
        self.world
    }

    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<(), Error> {
        self.told(self.reduce(values, |sum, value| sum + value))
    }

    fn all_reduce_scalars(&self, values: &mut [f64]) -> Result<(), Error> {
        self.told(self.reduce(values, |sum, value| sum + value))
    }

    fn broadcast(&self, values: &mut [f32]) -> Result<(), Error> {
        self.told(self.give(values))
    }

    fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.told(self.give_bytes(bytes))
    }

    fn fail(&self, why: &str) {
        self.end(self.world.rank, why);
    }
}

fn receive_ready(link: &Link, sequence: u32) -> Result<(), Error> {
    link.receive(Expected { kind: Kind::Ready, sequence, length: Some(0) }, &mut Vec::new())
}

fn send_values<E: Element>(link: &Link, sequence: u32, values: &[E]) -> Result<(), Error> {
    let mut bytes = Vec::with_capacity(LARGEST.min(values.len() * E::BYTES));
    for chunk in values.chunks(LARGEST / E::BYTES) {
        bytes.clear();
        chunk.iter().for_each(|value| value.put(&mut bytes));
        link.send(Kind::Values, sequence, &bytes)?;
    }
    Ok(())
}

/// Replaces every value by `take` of it and the one that comes.
fn receive_values<E: Element>(
    link: &Link,
    sequence: u32,
    values: &mut [E],
    take: impl Fn(E, E) -> E,
) -> Result<(), Error> {
    let mut bytes = Vec::new();
    for chunk in values.chunks_mut(LARGEST / E::BYTES) {
        let length = Some(chunk.len() * E::BYTES);
        link.receive(Expected { kind: Kind::Values, sequence, length }, &mut bytes)?;
        for (value, bytes) in chunk.iter_mut().zip(bytes.chunks_exact(E::BYTES)) {
            *value = take(*value, E::get(bytes));
        }
    }
    Ok(())
}

/// A thread that gives signs of life, so that a rank that computes for long is told from one that is gone.
struct Pulse {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    fn begin(links: Arc<[Link]>, every: Duration) -> Pulse {
        let (end, ended) = channel();
        let beat = move || {
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(every) {
                links.iter().for_each(Link::send_alive);
            }
        };
        Pulse { end: Some(end), thread: Some(std::thread::spawn(beat)) }
    }

    fn stop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // it does not panic
            let _ = thread.join();
        }
    }
}

impl Drop for TcpReducer {
    fn drop(&mut self) {
        self.pulse.stop();
        self.links.iter().for_each(Link::close);
    }
}
