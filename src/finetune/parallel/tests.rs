//! Ranks as threads, on the loopback.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::environment::Launch;
use super::error::Error;
use super::rendezvous::{Terms, host, join};
use super::{Patience, Reducer, SingleProcess, TcpReducer, World, check_agreement, connect};

static NEVER: AtomicBool = AtomicBool::new(false);

/// What ends a test that waits for somebody.
const SHORT: Patience =
    Patience { meeting: Duration::from_millis(1000), silence: Duration::from_millis(700) };

/// More than a busy machine takes.
const LONG: Patience = Patience { meeting: Duration::from_secs(60), silence: Duration::from_secs(60) };

fn agreed(recipe: &str) -> Vec<(String, String)> {
    vec![("version".to_owned(), "1".to_owned()), ("recipe".to_owned(), recipe.to_owned())]
}

fn launch(port: u16, rank: usize, size: usize) -> Launch {
    Launch { world: World { rank, size }, local_rank: None, host: "127.0.0.1".to_owned(), port }
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A caller: its rank, the number of processes it expects, its recipe.
type Caller = (usize, usize, &'static str);

/// Returns what rank 0 of `size` gets, then what its callers get.
fn meet(
    size: usize,
    callers: &[Caller],
    patience: Patience,
) -> (Result<TcpReducer, Error>, Vec<Result<TcpReducer, Error>>) {
    let (listener, port) = listener();
    std::thread::scope(|scope| {
        let call = |(rank, size, recipe): Caller| {
            move || {
                let agreed = agreed(recipe);
                let terms = Terms { agreed: &agreed, patience, interrupted: &NEVER };
                join(&launch(port, rank, size), &terms)
            }
        };
        let threads: Vec<_> = callers.iter().map(|caller| scope.spawn(call(*caller))).collect();
        let agreed = agreed("a");
        let terms = Terms { agreed: &agreed, patience, interrupted: &NEVER };
        let first = host(&listener, World { rank: 0, size }, &terms);
        drop(listener);
        (first, threads.into_iter().map(|thread| thread.join().unwrap()).collect())
    })
}

/// Returns the reducers of all ranks, in order.
pub(super) fn world(size: usize) -> Vec<TcpReducer> {
    let callers: Vec<Caller> = (1..size).rev().map(|rank| (rank, size, "a")).collect();
    let (first, others) = meet(size, &callers, LONG);
    let mut all = vec![first.unwrap()];
    all.extend(others.into_iter().rev().map(Result::unwrap));
    assert!(all.iter().enumerate().all(|(rank, reducer)| reducer.world() == World { rank, size }));
    all
}

/// Runs the same on every rank, each in its thread; returns what they return.
pub(super) fn on_all<T: Send>(ranks: Vec<TcpReducer>, run: impl Fn(TcpReducer) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Returns values of a rank whose sums depend on their order.
pub(super) fn values(rank: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 31 + rank * 17) % 101) as f32 * 10f32.powi((i + 3 * rank) as i32 % 7 - 3)).collect()
}

#[test]
fn every_micro_batch_has_one_owner() {
    for size in 1..5 {
        let owners =
            |index| (0..size).filter(|rank| World { rank: *rank, size }.owns(index)).collect::<Vec<_>>();
        assert!((0..20).all(|index| owners(index) == [index % size]));
    }
}

#[test]
fn sums_are_made_in_the_order_of_the_ranks() {
    // more than one frame, and no whole number of them
    let n = (1 << 18) * 2 + 77;
    for size in [2, 3] {
        let mut expected = values(0, n);
        for rank in 1..size {
            expected.iter_mut().zip(values(rank, n)).for_each(|(sum, value)| *sum += value);
        }
        let mut backwards = values(size - 1, n);
        for rank in (0..size - 1).rev() {
            backwards.iter_mut().zip(values(rank, n)).for_each(|(sum, value)| *sum += value);
        }
        assert!(size == 2 || backwards != expected, "the order shows");
        for sums in on_all(world(size), |reducer| {
            let mut sums = values(reducer.world().rank, n);
            reducer.all_reduce_sum(&mut sums).unwrap();
            sums
        }) {
            assert!(sums.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}

#[test]
fn scalars_flags_and_broadcasts_reach_every_rank() {
    let tenth = 0.1;
    on_all(world(3), |reducer| {
        let rank = reducer.world().rank;
        let mut scalars = [tenth, rank as f64, -0.0];
        reducer.all_reduce_scalars(&mut scalars).unwrap();
        assert_eq!(scalars, [tenth + tenth + tenth, 3.0, 0.0]);
        reducer.barrier().unwrap();
        for raised in 0..4 {
            assert_eq!(reducer.any(rank == raised).unwrap(), raised < 3);
        }
        let mut values = vec![rank as f32 + 0.5; 5];
        reducer.broadcast(&mut values).unwrap();
        assert_eq!(values, [0.5; 5]);
        let text = format!("from {rank}").repeat(rank + 1);
        assert_eq!(reducer.broadcast_bytes(text.into_bytes()).unwrap(), b"from 0");
        assert!(reducer.broadcast_bytes(Vec::new()).unwrap().is_empty());
        check_agreement(&reducer, b"same").unwrap();
        let error = check_agreement(&reducer, if rank == 1 { b"other" } else { b"same" }).unwrap_err();
        assert!(matches!(error, Error::Diverged { ranks } if ranks == [1]));
    });
}

#[test]
fn one_process_adds_nothing() {
    let mut values = [1.0, -0.0, f32::NAN];
    SingleProcess.all_reduce_sum(&mut values).unwrap();
    assert_eq!(values.map(f32::to_bits), [1.0, -0.0, f32::NAN].map(f32::to_bits));
    assert!(!SingleProcess.any(false).unwrap() && SingleProcess.any(true).unwrap());
    check_agreement(&SingleProcess, b"a").unwrap();
    let agreed = agreed("a");
    let terms = Terms { agreed: &agreed, patience: SHORT, interrupted: &NEVER };
    assert_eq!(connect(&Launch::alone(), &terms).unwrap().world(), World::ALONE);
}

#[test]
fn callers_of_another_run_are_refused_on_all_ranks() {
    let cases: [(&[Caller], usize, &str); 5] = [
        (&[(1, 3, "a")], 1, "it expects 3 processes, rank 0 expects 2"),
        (&[(1, 2, "b")], 1, "its recipe is b, that of rank 0 is a"),
        (&[(5, 2, "a")], 5, "ranks that call go from 1 to 1"),
        (&[(0, 2, "a")], 0, "ranks that call go from 1 to 1"),
        (&[(1, 3, "a"), (1, 3, "a")], 1, "it came twice"),
    ];
    for (callers, who, why) in cases {
        let size = if callers.len() == 2 { 3 } else { 2 };
        let (first, others) = meet(size, callers, LONG);
        let errors = others.into_iter().chain([first]).map(|result| result.err().unwrap());
        for error in errors {
            assert_eq!(error.rank(), Some(who), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let (first, others) = meet(4, &[(2, 4, "a")], SHORT);
    assert!(matches!(first.err().unwrap(), Error::Absent { ranks, .. } if ranks == [1, 3]));
    // whichever of the two lost patience first
    let error = others.into_iter().next().unwrap().err().unwrap();
    assert!(matches!(error, Error::Failed { rank: 0, .. } | Error::Silent { rank: 0, .. }), "{error}");
    // nobody listens
    let (listener, port) = listener();
    drop(listener);
    let agreed = agreed("a");
    let patience = Patience { meeting: Duration::from_millis(120), ..SHORT };
    let terms = Terms { agreed: &agreed, patience, interrupted: &NEVER };
    let error = connect(&launch(port, 1, 2), &terms).err().unwrap();
    assert!(matches!(&error, Error::Unreachable { address, .. } if address.contains(&port.to_string())));
    let interrupted = AtomicBool::new(true);
    let terms = Terms { agreed: &agreed, patience: LONG, interrupted: &interrupted };
    assert!(matches!(connect(&launch(port, 1, 2), &terms).err().unwrap(), Error::Interrupted));
}

#[test]
fn who_is_no_rank_is_hung_up_on() {
    let (listener, port) = listener();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut stranger = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            // hung up on, by an end or a reset
            let _ = stranger.read_to_end(&mut Vec::new());
            let agreed = agreed("a");
            let terms = Terms { agreed: &agreed, patience: LONG, interrupted: &NEVER };
            join(&launch(port, 1, 2), &terms).unwrap().barrier().unwrap();
        });
        let agreed = agreed("a");
        let terms = Terms { agreed: &agreed, patience: LONG, interrupted: &NEVER };
        host(&listener, World { rank: 0, size: 2 }, &terms).unwrap().barrier().unwrap();
    });
}

#[test]
fn another_version_of_the_protocol_is_told() {
    let (listener, port) = listener();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut caller = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let numbers = [7u32, 1, 2].map(u32::to_le_bytes).concat();
            caller.write_all(&[&b"lctl-ddp"[..], &numbers, b"??"].concat()).unwrap();
            let mut said = Vec::new();
            caller.read_to_end(&mut said).unwrap();
            assert!(String::from_utf8_lossy(&said).contains("version 7"));
        });
        let agreed = agreed("a");
        let terms = Terms { agreed: &agreed, patience: LONG, interrupted: &NEVER };
        let error = host(&listener, World { rank: 0, size: 2 }, &terms).err().unwrap();
        assert!(error.to_string().contains("version 7 of the protocol, rank 0 version 1"), "{error}");
    });
}

#[test]
fn a_rank_that_goes_ends_the_run_on_all_others() {
    let n = 300_000;
    for gone in 0..3 {
        let errors = on_all(world(3), |reducer| {
            reducer.barrier().unwrap();
            if reducer.world().rank == gone {
                return None;
            }
            let mut sums = values(1, n);
            // whatever was under way when it went, the next thing fails
            let mut reduce = || reducer.all_reduce_sum(&mut sums);
            Some(reduce().and_then(|()| reduce()).unwrap_err())
        });
        for error in errors.into_iter().flatten() {
            assert_eq!(error.rank(), Some(gone), "{error}");
        }
    }
}

#[test]
fn a_rank_that_fails_says_why() {
    for failing in 0..3 {
        let errors = on_all(world(3), |reducer| {
            if reducer.world().rank == failing {
                reducer.fail("the disk is full");
                return None;
            }
            Some(reducer.barrier().unwrap_err())
        });
        for error in errors.into_iter().flatten() {
            assert_eq!(error.to_string(), format!("rank {failing} ended the run: the disk is full"));
        }
    }
}

#[test]
fn a_rank_that_stands_still_is_told_from_one_that_computes() {
    let (listener, port) = listener();
    // twice the silence: signs of life come meanwhile
    let slow = 2 * SHORT.silence;
    let patience = Patience { meeting: LONG.meeting, ..SHORT };
    std::thread::scope(|scope| {
        let still = scope.spawn(move || {
            // says hello and nothing more
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let text = serde_json::json!({"size": 3, "agreed": agreed("a")}).to_string();
            let numbers = [1u32, 2, text.len() as u32].map(u32::to_le_bytes).concat();
            stream.write_all(&[&b"lctl-ddp"[..], &numbers, text.as_bytes()].concat()).unwrap();
            stream
        });
        let other = scope.spawn(move || {
            let agreed = agreed("a");
            let terms = Terms { agreed: &agreed, patience, interrupted: &NEVER };
            let reducer = join(&launch(port, 1, 3), &terms).unwrap();
            std::thread::sleep(slow);
            reducer.barrier().unwrap_err()
        });
        let agreed = agreed("a");
        let terms = Terms { agreed: &agreed, patience, interrupted: &NEVER };
        let begun = Instant::now();
        let reducer = host(&listener, World { rank: 0, size: 3 }, &terms).unwrap();
        let error = reducer.barrier().unwrap_err();
        assert!(matches!(error, Error::Silent { rank: 2, .. }), "{error}");
        assert!(begun.elapsed() >= slow && begun.elapsed() < Duration::from_secs(30));
        assert_eq!(other.join().unwrap().rank(), Some(2));
        drop(still.join().unwrap());
    });
}

#[test]
fn ranks_in_different_places_find_out() {
    let errors = on_all(world(2), |reducer| match reducer.world().rank {
        0 => reducer.all_reduce_sum(&mut [1.0; 3]).unwrap_err(),
        _ => reducer.all_reduce_sum(&mut [1.0; 4]).unwrap_err(),
    });
    assert!(errors[0].to_string().contains("16 bytes"), "{}", errors[0]);
    assert!(matches!(errors[1], Error::Failed { rank: 0, .. }), "{}", errors[1]);
}
