//! A connection between two ranks: frames with a kind, a number and a length.
//!
//! ```text
//! kind u8 | sequence u32 | length u32 | bytes       little-endian; at most 1 MiB of bytes
//! ```
//!
//! The sequence counts what all ranks do together, so that two that are not in the same place find out.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::error::Error;

/// Most bytes of a frame.
pub const LARGEST: usize = 1 << 20;

/// Most bytes of the reason that a rank gives for its end.
const LONGEST_REASON: usize = 4000;

const HEADER: usize = 9;

/// Most time that a connection takes to close.
const PARTING: Duration = Duration::from_millis(500);

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Who calls, and what it runs: JSON.
    Hello = 1,
    /// All are here.
    Welcome = 2,
    /// No sign but of life.
    Alive = 3,
    /// The sender waits for values.
    Ready = 4,
    Values = 5,
    /// A rank (u32) ends, and why.
    Failed = 6,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        const ALL: [Kind; 6] =
            [Kind::Hello, Kind::Welcome, Kind::Alive, Kind::Ready, Kind::Values, Kind::Failed];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A frame's place and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    pub kind: Kind,
    pub sequence: u32,
    /// Bytes; `None` if any number will do.
    pub length: Option<usize>,
}

/// A connection to another rank.
pub struct Link {
    pub rank: usize,
    stream: TcpStream,
    /// Held while a frame is written: signs of life come from a thread of their own.
    writing: Mutex<()>,
    silence: Duration,
}

impl Link {
    /// Returns the connection; reading and writing give up after `silence`.
    pub fn new(rank: usize, stream: TcpStream, silence: Duration) -> io::Result<Link> {
        // Windows and the BSDs hand a listener's mode on
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        stream.set_write_timeout(Some(silence))?;
        Ok(Link { rank, stream, writing: Mutex::new(()), silence })
    }

    /// Sends a frame.
    pub fn send(&self, kind: Kind, sequence: u32, bytes: &[u8]) -> Result<(), Error> {
        let written = {
            let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            self.write(kind, sequence, bytes)
        };
        written.map_err(|error| match is_timeout(&error) {
            true => {
                // part of a frame is out: no sign of life may follow it
                let _ = self.stream.shutdown(Shutdown::Write);
                self.lost(error)
            }
            // it may have said why before it went
            false => self.last_words().unwrap_or_else(|| self.lost(error)),
        })
    }

    /// Sends a sign of life, unless a frame is being written, which is one.
    pub fn send_alive(&self) {
        let writing = match self.writing.try_lock() {
            Ok(writing) => writing,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if self.write(Kind::Alive, 0, &[]).is_err() {
            // part of a frame may be out: whoever writes next finds the connection ended; what came can still be read
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        drop(writing);
    }

    /// Says that `rank` ends, and why; nobody may be there to hear it.
    pub fn send_failed(&self, rank: usize, why: &str) {
        let cut = (0..=LONGEST_REASON.min(why.len())).rev().find(|at| why.is_char_boundary(*at));
        // fewer ranks than 2^32: `environment::MOST`
        let bytes = [&(rank as u32).to_le_bytes()[..], &why.as_bytes()[..cut.unwrap_or(0)]].concat();
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.write(Kind::Failed, 0, &bytes);
    }

    /// Says that nothing more comes, and waits a little for the other side to say so, too: a connection that is closed with
    /// bytes in it that nobody read takes what was sent last away from the other side.
    pub fn close(&self) {
        let until = Instant::now() + PARTING;
        let _ = self.stream.shutdown(Shutdown::Write);
        let mut dropped = vec![0; 1 << 16];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                return;
            }
            match (&self.stream).read(&mut dropped) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Reads the next frame that is more than a sign of life into `bytes`.
    ///
    /// Errors if it is not the expected one, if the other rank says that one ended, and if nothing comes.
    pub fn receive(&self, expected: Expected, bytes: &mut Vec<u8>) -> Result<(), Error> {
        loop {
            let (kind, sequence) = self.read(bytes)?;
            match kind {
                Kind::Alive => continue,
                Kind::Failed => return Err(self.failed(bytes)),
                _ => {}
            }
            let has_length = expected.length.is_none_or(|length| length == bytes.len());
            if kind == expected.kind && sequence == expected.sequence && has_length {
                return Ok(());
            }
            let found = format!("{kind:?} of step {sequence} with {} bytes", bytes.len());
            let length = expected.length.map_or(String::new(), |length| format!(" with {length} bytes"));
            let expected = format!("{:?} of step {}{length}", expected.kind, expected.sequence);
            return Err(Error::Protocol { rank: self.rank, found, expected });
        }
    }

    fn write(&self, kind: Kind, sequence: u32, bytes: &[u8]) -> io::Result<()> {
        // one write: without Nagle's delay two would be two packets
        let mut frame = Vec::with_capacity(HEADER + bytes.len());
        frame.push(kind as u8);
        frame.extend(sequence.to_le_bytes());
        // at most LARGEST
        frame.extend((bytes.len() as u32).to_le_bytes());
        frame.extend(bytes);
        (&self.stream).write_all(&frame)
    }

    fn read(&self, bytes: &mut Vec<u8>) -> Result<(Kind, u32), Error> {
        let mut header = [0; HEADER];
        (&self.stream).read_exact(&mut header).map_err(|error| self.lost(error))?;
        let [kind, s0, s1, s2, s3, l0, l1, l2, l3] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let Some(kind) = Kind::of(kind).filter(|_| length <= LARGEST) else {
            return Err(Error::Protocol {
                rank: self.rank,
                found: format!("kind {kind} with {length} bytes"),
                expected: format!("a frame of at most {LARGEST}"),
            });
        };
        bytes.resize(length, 0);
        (&self.stream).read_exact(bytes).map_err(|error| self.lost(error))?;
        Ok((kind, u32::from_le_bytes([s0, s1, s2, s3])))
    }

    /// Returns what the other rank said of an end before its connection ended.
    fn last_words(&self) -> Option<Error> {
        let mut bytes = Vec::new();
        // it may be alive, and the connection broken on this side
        let until = Instant::now() + self.silence;
        while Instant::now() < until {
            if self.read(&mut bytes).ok()?.0 == Kind::Failed {
                return Some(self.failed(&bytes));
            }
        }
        None
    }

    fn failed(&self, bytes: &[u8]) -> Error {
        match bytes.split_first_chunk() {
            Some((rank, why)) => Error::Failed {
                rank: u32::from_le_bytes(*rank) as usize,
                why: String::from_utf8_lossy(why).into_owned(),
            },
            None => Error::Failed { rank: self.rank, why: "no reason".to_owned() },
        }
    }

    fn lost(&self, source: io::Error) -> Error {
        let rank = self.rank;
        match is_timeout(&source) {
            true => Error::Silent { rank, seconds: self.silence.as_secs() },
            false => Error::Lost { rank, source },
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
