//! How ranks agree while each of them waits for something that blocks: whether all have it, or why one does not.
//!
//! Nobody waits for a rank that failed: what each one knows goes round by the connections that there are, several times a second.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::{Error, Reducer, World};

/// Time between two rounds.
const ROUND: Duration = Duration::from_millis(100);

/// Most bytes of a reason that the other ranks are told.
const LONGEST: usize = 400;

/// Why not all ranks have what they wanted. All ranks get the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unconnected {
    #[error("NCCL fails on rank {rank}: {why}")]
    Failed { rank: usize, why: String },

    #[error("NCCL has not connected rank {} within {seconds} s", shown(.ranks))]
    Late { ranks: Vec<usize>, seconds: u64 },
}

fn shown(ranks: &[usize]) -> String {
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// What a rank knows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Done,
    Failed,
    Late,
}

impl State {
    const ALL: [State; 4] = [State::Waiting, State::Done, State::Failed, State::Late];

    fn number(self) -> f64 {
        f64::from(self as u8)
    }

    fn of(number: f64) -> State {
        State::ALL.into_iter().find(|state| state.number() == number).unwrap_or(State::Failed)
    }
}

/// Returns what this rank has, if every rank has one. All ranks call this.
///
/// Errors as the reducer; inside, with the first rank that has none.
pub fn all_have<T>(reducer: &dyn Reducer, own: Result<T, String>) -> Result<Result<T, Unconnected>, Error> {
    let state = if own.is_ok() { State::Done } else { State::Failed };
    let states = exchange(reducer, state)?;
    match (failed(&states), own) {
        (None, Ok(own)) => Ok(Ok(own)),
        (rank, own) => {
            let rank = rank.unwrap_or(reducer.world().rank);
            let why = told(reducer, rank, own.err().as_deref())?;
            Ok(Err(Unconnected::Failed { rank, why }))
        }
    }
}

/// Returns what comes to this rank, once something came to every rank. All ranks call this.
///
/// Errors as the reducer; inside, as soon as a rank fails, with its reason, or if one has nothing within `limit`.
pub fn all_get<T>(
    reducer: &dyn Reducer,
    own: &Receiver<Result<T, String>>,
    limit: Duration,
) -> Result<Result<T, Unconnected>, Error> {
    let begun = Instant::now();
    let mut came: Option<Result<T, String>> = None;
    loop {
        // who has something waits for the others in the round
        if came.is_none() {
            came = match own.recv_timeout(ROUND) {
                Ok(something) => Some(something),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Err("its thread ended".to_owned())),
            };
        }
        let state = match &came {
            Some(Ok(_)) => State::Done,
            Some(Err(_)) => State::Failed,
            None if begun.elapsed() > limit => State::Late,
            None => State::Waiting,
        };
        let states = exchange(reducer, state)?;
        if let Some(rank) = failed(&states) {
            let own = came.and_then(Result::err);
            let why = told(reducer, rank, own.as_deref())?;
            return Ok(Err(Unconnected::Failed { rank, why }));
        }
        if states.contains(&State::Late) {
            let ranks = (0..states.len()).filter(|rank| states[*rank] != State::Done).collect();
            return Ok(Err(Unconnected::Late { ranks, seconds: limit.as_secs() }));
        }
        if states.iter().all(|state| *state == State::Done)
            && let Some(Ok(own)) = came.take()
        {
            return Ok(Ok(own));
        }
    }
}

fn failed(states: &[State]) -> Option<usize> {
    states.iter().position(|state| *state == State::Failed)
}

/// Returns the states of all ranks.
fn exchange(reducer: &dyn Reducer, own: State) -> Result<Vec<State>, Error> {
    let World { rank, size } = reducer.world();
    let mut numbers = vec![0.0; size];
    numbers[rank] = own.number();
    reducer.all_reduce_scalars(&mut numbers)?;
    Ok(numbers.into_iter().map(State::of).collect())
}

/// Returns what `rank` has to say, cut after [`LONGEST`] bytes; the others give nothing.
fn told(reducer: &dyn Reducer, rank: usize, own: Option<&str>) -> Result<String, Error> {
    // a byte each, plus one: 0 stands for none
    let mut numbers = [0.0; LONGEST];
    if reducer.world().rank == rank {
        let bytes = own.unwrap_or_default().bytes();
        numbers.iter_mut().zip(bytes).for_each(|(number, byte)| *number = f64::from(byte) + 1.0);
    }
    reducer.all_reduce_scalars(&mut numbers)?;
    let bytes: Vec<u8> =
        numbers.iter().take_while(|number| **number > 0.0).map(|number| (number - 1.0) as u8).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::super::tests::{on_all, world};
    use super::*;

    type Channel = (Sender<Result<usize, String>>, Receiver<Result<usize, String>>);

    /// What rank 1 has of three, the others having theirs.
    fn with_rank_1(own: &(dyn Fn() -> Result<usize, String> + Sync)) -> Vec<Result<usize, Unconnected>> {
        on_all(world(3), |reducer| {
            let rank = reducer.world().rank;
            all_have(&reducer, if rank == 1 { own() } else { Ok(rank) }).unwrap()
        })
    }

    #[test]
    fn what_one_rank_lacks_none_has() {
        assert_eq!(with_rank_1(&|| Ok(1)), [Ok(0), Ok(1), Ok(2)]);
        let why = "there is no libnccl.so.2".to_owned();
        let lacking = Unconnected::Failed { rank: 1, why: why.clone() };
        assert_eq!(lacking.to_string(), "NCCL fails on rank 1: there is no libnccl.so.2");
        assert_eq!(with_rank_1(&|| Err(why.clone())), vec![Err(lacking); 3]);
        // a long reason is cut, an empty one is none
        let long = with_rank_1(&|| Err("é".repeat(LONGEST)));
        assert_eq!(long[0], Err(Unconnected::Failed { rank: 1, why: "é".repeat(LONGEST / 2) }));
        assert_eq!(
            with_rank_1(&|| Err(String::new()))[2],
            Err(Unconnected::Failed { rank: 1, why: String::new() })
        );
    }

    #[test]
    fn nobody_waits_for_a_rank_that_failed() {
        let begun = Instant::now();
        let found = on_all(world(3), |reducer| {
            let (sender, receiver): Channel = channel();
            // the other ranks' calls would block without an end: nothing is sent while the sender lives
            if reducer.world().rank == 2 {
                sender.send(Err("unhandled system error".to_owned())).unwrap();
            }
            all_get(&reducer, &receiver, Duration::from_secs(600)).unwrap()
        });
        let failed = Unconnected::Failed { rank: 2, why: "unhandled system error".to_owned() };
        assert_eq!(found, vec![Err(failed); 3]);
        // rounds, not the limit
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_thread_that_ended_is_a_failure() {
        let found = on_all(world(2), |reducer| {
            let (sender, receiver): Channel = channel();
            let kept = (reducer.world().rank == 1).then_some(sender);
            let found = all_get(&reducer, &receiver, Duration::from_secs(600)).unwrap();
            drop(kept);
            found
        });
        assert_eq!(found, vec![Err(Unconnected::Failed { rank: 0, why: "its thread ended".to_owned() }); 2]);
    }

    #[test]
    fn the_wait_is_bounded_and_names_the_ranks() {
        let found = on_all(world(3), |reducer| {
            let (sender, receiver): Channel = channel();
            if reducer.world().rank == 1 {
                sender.send(Ok(1)).unwrap();
            }
            all_get(&reducer, &receiver, Duration::from_secs(1)).unwrap()
        });
        let late = Unconnected::Late { ranks: vec![0, 2], seconds: 1 };
        assert_eq!(late.to_string(), "NCCL has not connected rank 0, 2 within 1 s");
        assert_eq!(found, vec![Err(late); 3]);
    }

    #[test]
    fn what_comes_late_to_one_comes_to_all() {
        let found = on_all(world(3), |reducer| {
            let rank = reducer.world().rank;
            let (sender, receiver): Channel = channel();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    std::thread::sleep(ROUND * 3 * rank as u32);
                    sender.send(Ok(rank)).unwrap();
                });
                all_get(&reducer, &receiver, Duration::from_secs(600)).unwrap()
            })
        });
        assert_eq!(found, [Ok(0), Ok(1), Ok(2)]);
    }
}
