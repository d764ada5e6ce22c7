//! How the processes of a run meet: rank 0 listens, the others call until it does.
//!
//! A caller says the protocol's version, its rank, the number of processes, and digests of everything that must be the same; rank 0
//! answers all when the last has come, or tells all why it cannot be. What does not begin as a caller does is none, and is hung up on.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::environment::Launch;
use super::error::Error;
use super::frame::{Expected, Kind, LARGEST, Link};
use super::tcp::TcpReducer;
use super::{Patience, Reducer, SingleProcess, World};

/// What a caller sends first; then the version (u32), its rank (u32), the length of what follows (u32, little-endian), and [`Hello`].
const MAGIC: [u8; 8] = *b"lctl-ddp";

/// Of frames and of what is said in them.
const VERSION: u32 = 1;

/// Time between tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Most time that a caller has to say who it is.
const GREETING: Duration = Duration::from_secs(5);

/// What must be the same on all ranks, and the patience to find out.
pub struct Terms<'a> {
    /// Names and digests.
    pub agreed: &'a [(String, String)],
    pub patience: Patience,
    /// Ends the waiting.
    pub interrupted: &'a AtomicBool,
}

/// What a caller says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    size: usize,
    agreed: Vec<(String, String)>,
}

/// Who calls.
struct Caller {
    stream: TcpStream,
    version: u32,
    rank: usize,
    /// `None` if it cannot be read.
    hello: Option<Hello>,
}

/// Returns this process's way to the others; there is nobody to wait for if it is the only one.
///
/// Errors, on all ranks that came, if not all come in time, if two have one rank, or if they were not started for one run.
pub fn connect(launch: &Launch, terms: &Terms<'_>) -> Result<Box<dyn Reducer>, Error> {
    if launch.world.size == 1 {
        return Ok(Box::new(SingleProcess));
    }
    if launch.world.is_first() {
        let address = || format!("{}:{}", launch.host, launch.port);
        let listener = TcpListener::bind((launch.host.as_str(), launch.port))
            .map_err(|source| Error::Listen { address: address(), source })?;
        return Ok(Box::new(host(&listener, launch.world, terms)?));
    }
    Ok(Box::new(join(launch, terms)?))
}

/// Waits until a time, or until it is interrupted.
struct Wait<'a> {
    until: Instant,
    interrupted: &'a AtomicBool,
}

impl Wait<'_> {
    fn begin<'a>(terms: &Terms<'a>) -> Wait<'a> {
        Wait { until: Instant::now() + terms.patience.meeting, interrupted: terms.interrupted }
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Waits a little; returns whether there is time left.
    ///
    /// Errors if it is interrupted.
    fn goes_on(&self) -> Result<bool, Error> {
        if self.interrupted.load(Ordering::SeqCst) {
            return Err(Error::Interrupted);
        }
        std::thread::sleep(PAUSE.min(self.left()));
        Ok(!self.left().is_zero())
    }
}

/// Waits for all other ranks at `listener`.
pub(super) fn host(listener: &TcpListener, world: World, terms: &Terms<'_>) -> Result<TcpReducer, Error> {
    let silence = terms.patience.silence;
    let mut links: Vec<Link> = Vec::new();
    match gather(listener, world, terms, &mut links) {
        Ok(()) => {
            links.sort_by_key(|link| link.rank);
            // one that went away since is found by the first thing that is done together
            links.iter().for_each(|link| drop(link.send(Kind::Welcome, 0, &[])));
            Ok(TcpReducer::new(world, links, silence))
        }
        Err(error) => {
            links.iter().for_each(|link| send_refusal(link, &error));
            Err(error)
        }
    }
}

/// Tells a caller why there will be no run.
fn send_refusal(link: &Link, error: &Error) {
    match error {
        Error::Refused { rank, why } => link.send_failed(*rank, why),
        error => link.send_failed(0, &error.to_string()),
    }
    link.close();
}

/// Fills `links` with all other ranks, in the order in which they come.
fn gather(
    listener: &TcpListener,
    world: World,
    terms: &Terms<'_>,
    links: &mut Vec<Link>,
) -> Result<(), Error> {
    let not_listening = |source| {
        let address = listener.local_addr().map_or_else(|_| "its port".to_owned(), |at| at.to_string());
        Error::Listen { address, source }
    };
    listener.set_nonblocking(true).map_err(not_listening)?;
    let wait = Wait::begin(terms);
    while links.len() + 1 < world.size {
        match listener.accept() {
            Ok((stream, _)) => {
                let Some(caller) = greeted(stream) else {
                    // who is no rank does not keep the others waiting
                    wait.goes_on()?;
                    continue;
                };
                let checked = check(&caller, world, terms, links);
                let link = Link::new(caller.rank, caller.stream, terms.patience.silence);
                if let (Err(error), Ok(link)) = (&checked, &link) {
                    send_refusal(link, error);
                }
                checked?;
                // one that hung up since may call again
                links.extend(link);
            }
            // a caller that hung up before it was answered is none
            Err(error) if is_passing(&error) => {
                if !wait.goes_on()? {
                    let is_absent = |rank: &usize| links.iter().all(|link| link.rank != *rank);
                    let ranks = (1..world.size).filter(is_absent).collect();
                    return Err(Error::Absent { ranks, seconds: terms.patience.meeting.as_secs() });
                }
            }
            Err(error) => return Err(not_listening(error)),
        }
    }
    Ok(())
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | ConnectionAborted | ConnectionReset | Interrupted)
}

/// Reads who calls; `None` if it is no rank of a run.
fn greeted(mut stream: TcpStream) -> Option<Caller> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(GREETING)).ok()?;
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic).ok().filter(|()| magic == MAGIC)?;
    let mut number = || {
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).ok().map(|()| u32::from_le_bytes(bytes))
    };
    let (version, rank, length) = (number()?, number()? as usize, number()? as usize);
    let mut bytes = vec![0; Some(length).filter(|length| *length <= LARGEST)?];
    stream.read_exact(&mut bytes).ok()?;
    Some(Caller { stream, version, rank, hello: serde_json::from_slice(&bytes).ok() })
}

/// Errors if the caller is of another run, or its rank is here already.
fn check(caller: &Caller, world: World, terms: &Terms<'_>, links: &[Link]) -> Result<(), Error> {
    let rank = caller.rank;
    let refused = |why: String| Err(Error::Refused { rank, why });
    let (VERSION, Some(hello)) = (caller.version, &caller.hello) else {
        return refused(format!(
            "it speaks version {} of the protocol, rank 0 version {VERSION}",
            caller.version
        ));
    };
    if hello.size != world.size {
        return refused(format!("it expects {} processes, rank 0 expects {}", hello.size, world.size));
    }
    if rank == 0 || rank >= world.size {
        return refused(format!("ranks that call go from 1 to {}", world.size - 1));
    }
    if links.iter().any(|link| link.rank == rank) {
        return refused("it came twice".to_owned());
    }
    let find = |all: &[(String, String)], name: &str| {
        all.iter().find(|(known, _)| known == name).map_or("none", |(_, value)| value.as_str()).to_owned()
    };
    let names = terms.agreed.iter().chain(&hello.agreed).map(|(name, _)| name);
    for name in names {
        let (own, its) = (find(terms.agreed, name), find(&hello.agreed, name));
        if own != its {
            return refused(format!("its {name} is {its}, that of rank 0 is {own}"));
        }
    }
    Ok(())
}

/// Calls rank 0 until it answers, and waits until all are there.
pub(super) fn join(launch: &Launch, terms: &Terms<'_>) -> Result<TcpReducer, Error> {
    let Launch { world, host, port, .. } = launch;
    let wait = Wait::begin(terms);
    let stream = loop {
        let source = match call(host, *port, wait.left(), &hello(*world, terms)) {
            Ok(stream) => break stream,
            Err(source) => source,
        };
        if !wait.goes_on()? {
            let seconds = terms.patience.meeting.as_secs();
            return Err(Error::Unreachable { address: format!("{host}:{port}"), seconds, source });
        }
    };
    let lost = |source| Error::Lost { rank: 0, source };
    stream.set_read_timeout(Some(PAUSE)).map_err(lost)?;
    // rank 0 is silent until the last has come
    while let Err(error) = stream.peek(&mut [0]) {
        if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            return Err(lost(error));
        }
        if !wait.goes_on()? {
            return Err(Error::Silent { rank: 0, seconds: terms.patience.meeting.as_secs() });
        }
    }
    let link = Link::new(0, stream, terms.patience.silence).map_err(lost)?;
    let welcome = Expected { kind: Kind::Welcome, sequence: 0, length: Some(0) };
    link.receive(welcome, &mut Vec::new()).map_err(|error| match error {
        Error::Failed { rank, why } if rank > 0 => Error::Refused { rank, why },
        error => error,
    })?;
    Ok(TcpReducer::new(*world, vec![link], terms.patience.silence))
}

/// Returns what a caller says first.
fn hello(world: World, terms: &Terms<'_>) -> Vec<u8> {
    let hello = Hello { size: world.size, agreed: terms.agreed.to_vec() };
    // numbers and texts
    let text = serde_json::to_vec(&hello).unwrap_or_default();
    // a rank is below `environment::MOST`, the text some hundred bytes
    let numbers = [VERSION, world.rank as u32, text.len() as u32].map(u32::to_le_bytes).concat();
    [&MAGIC[..], &numbers, &text].concat()
}

fn call(host: &str, port: u16, left: Duration, hello: &[u8]) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    // a name may become another address while machines start
    for address in (host, port).to_socket_addrs()? {
        // a time of zero is an error
        let most = left.clamp(PAUSE, GREETING);
        let called = TcpStream::connect_timeout(&address, most).and_then(|mut stream| {
            stream.set_write_timeout(Some(GREETING))?;
            stream.write_all(hello).map(|()| stream)
        });
        match called {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
