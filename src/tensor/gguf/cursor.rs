//! Bytes of a header, read in windows, never past the file's end.

use super::HeaderError;

/// Fills a buffer from an absolute offset.
pub(super) type ReadAt<'a> = dyn Fn(u64, &mut [u8]) -> std::io::Result<()> + 'a;

/// What a header that cannot be parsed was stopped by.
#[derive(Debug)]
pub(super) enum Stop {
    Header(HeaderError),
    Io(std::io::Error),
}

impl From<HeaderError> for Stop {
    fn from(error: HeaderError) -> Stop {
        Stop::Header(error)
    }
}

/// A forward cursor over a file. What it holds in memory is bounded by the largest single item, which
/// is bounded by the bytes the file has.
pub(super) struct Cursor<'a> {
    read_at: &'a ReadAt<'a>,
    len: u64,
    window: Vec<u8>,
    /// File offset of `window[0]`.
    window_start: u64,
    /// Next byte, as an index into `window`.
    at: usize,
}

const WINDOW: u64 = 1 << 20;

impl<'a> Cursor<'a> {
    pub fn new(read_at: &'a ReadAt<'a>, len: u64) -> Cursor<'a> {
        Cursor { read_at, len, window: Vec::new(), window_start: 0, at: 0 }
    }

    pub fn position(&self) -> u64 {
        self.window_start + self.at as u64
    }

    /// Returns the bytes between the cursor and the end of the file.
    pub fn left(&self) -> u64 {
        self.len - self.position()
    }

    /// Returns the next `n` bytes. `what` names them if the file ends first.
    pub fn take(&mut self, n: u64, what: &str) -> Result<&[u8], Stop> {
        if n > self.left() {
            let (at, left) = (self.position(), self.left());
            return Err(HeaderError::Truncated { what: what.to_owned(), at, needed: n, left }.into());
        }
        // Fails only where the address space is smaller than the file.
        let n = usize::try_from(n).map_err(|_| Stop::Io(std::io::ErrorKind::OutOfMemory.into()))?;
        if self.window.len() - self.at < n {
            self.refill(n)?;
        }
        let bytes = &self.window[self.at..self.at + n];
        self.at += n;
        Ok(bytes)
    }

    pub fn u8(&mut self, what: &str) -> Result<u8, Stop> {
        Ok(self.array::<1>(what)?[0])
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, Stop> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, Stop> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Stop> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    /// Reads a u64 length and as many bytes of UTF-8.
    pub fn string(&mut self, what: &str) -> Result<String, Stop> {
        let n = self.u64(what)?;
        let at = self.position();
        let bytes = self.take(n, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => {
                let at = at + error.valid_up_to() as u64;
                Err(HeaderError::NotUtf8 { what: what.to_owned(), at }.into())
            }
        }
    }

    /// Makes at least `n` bytes available; the caller has checked that the file has them.
    fn refill(&mut self, n: usize) -> Result<(), Stop> {
        let start = self.position();
        let size = WINDOW.max(n as u64).min(self.len - start);
        self.window.clear();
        self.window.resize(size as usize, 0);
        self.window_start = start;
        self.at = 0;
        (self.read_at)(start, &mut self.window).map_err(Stop::Io)
    }
}
