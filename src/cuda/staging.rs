//! Copies between the host and a device through pinned memory: what is written is on its way when the call returns, and what is large
//! goes in pieces, one being copied by the host while another is on the bus.
//!
//! There are two halves. Pieces are laid into one until it is full, then into the other; a half is begun anew only when all that was
//! asked of it is done. So a write waits for nothing, unless both halves are full of what the device has not come to yet.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::CudaError;

/// Bytes of a half at first.
const LEAST: usize = 1 << 20;

/// Bytes of a half at most: larger copies go in pieces.
const MOST: usize = 32 << 20;

/// What every piece begins at.
const ALIGNMENT: usize = 256;

/// What a backend does for [`Staging`], in the order of its stream.
pub(super) trait Transfers {
    /// Memory of the host that a device reads and writes by itself.
    type Half;

    /// Returns that many bytes of it.
    fn half(&self, bytes: usize) -> Result<Self::Half, CudaError>;

    /// Returns where it lies.
    fn start(half: &mut Self::Half) -> *mut MaybeUninit<u8>;

    /// Asks for a copy of a range of the half to the device.
    ///
    /// # Safety
    /// There is as much memory at `to`, it is the device's, and the range is within the half and not written before the wait.
    unsafe fn send(&self, half: &mut Self::Half, range: Range<usize>, to: u64) -> Result<(), CudaError>;

    /// Asks for a copy from the device to a range of the half.
    ///
    /// # Safety
    /// As [`Transfers::send`], of `from`; nor is the range read before the wait.
    unsafe fn receive(&self, half: &mut Self::Half, range: Range<usize>, from: u64) -> Result<(), CudaError>;

    /// Waits until all that was asked of the half is done.
    fn wait(&self, half: &mut Self::Half) -> Result<(), CudaError>;
}

/// Gives a half's memory back by `free` if `waited` says that no copy of it is under way.
///
/// Else it stays: memory that a device may still write to must not become somebody else's, and a context that is gone took it along. What
/// `free` says changes nothing: there is nobody left to use the memory, and nothing else to be done with it.
#[cfg(any(feature = "cuda", test))]
pub(super) fn give_back<E>(waited: Result<(), E>, free: impl FnOnce() -> Result<(), E>) {
    if waited.is_ok() {
        let _ = free();
    }
}

/// The halves; see the module.
pub(super) struct Staging<H> {
    halves: [Option<Half<H>>; 2],
    /// Which pieces are laid into.
    current: usize,
    /// Bytes of the current half that are taken.
    used: usize,
    least: usize,
    most: usize,
}

struct Half<H> {
    memory: H,
    len: usize,
}

/// Where a piece lies.
struct Place {
    half: usize,
    range: Range<usize>,
}

impl<H> Default for Staging<H> {
    fn default() -> Self {
        Staging::new(LEAST, MOST)
    }
}

impl<H> Staging<H> {
    /// Halves have `least` bytes at first, and `most` where copies are as large.
    fn new(least: usize, most: usize) -> Self {
        Staging { halves: [None, None], current: 0, used: 0, least, most }
    }

    /// Copies bytes to the device's address `to`, behind what was asked for before; they may be changed when this returns.
    ///
    /// # Safety
    /// There is as much memory at `to`, and it is the device's.
    pub unsafe fn write<T: Transfers<Half = H>>(
        &mut self,
        transfers: &T,
        to: u64,
        bytes: &[u8],
    ) -> Result<(), CudaError> {
        let mut at = to;
        for piece in bytes.chunks(self.most) {
            let place = self.reserve(transfers, piece.len())?;
            let half = self.half(place.half);
            // SAFETY: the range is within the half's memory, which nothing reads: it was waited for, and is behind all other pieces.
            unsafe {
                let out = T::start(&mut half.memory).add(place.range.start).cast::<u8>();
                std::ptr::copy_nonoverlapping(piece.as_ptr(), out, piece.len());
                transfers.send(&mut half.memory, place.range, at)?;
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Copies from the device's address `from`, once everything before is done.
    ///
    /// # Safety
    /// As [`Staging::write`], of `from`.
    pub unsafe fn read<T: Transfers<Half = H>>(
        &mut self,
        transfers: &T,
        from: u64,
        bytes: &mut [u8],
    ) -> Result<(), CudaError> {
        let mut at = from;
        let mut under_way: Option<(Place, &mut [u8])> = None;
        for piece in bytes.chunks_mut(self.most) {
            let place = self.reserve(transfers, piece.len())?;
            let range = place.range.clone();
            // SAFETY: the caller's; nobody else has the range.
            unsafe { transfers.receive(&mut self.half(place.half).memory, range, at)? };
            at += piece.len() as u64;
            // that one is copied out while this one is under way: reserving leaves the half that was reserved from last as it is
            if let Some((place, out)) = under_way.replace((place, piece)) {
                self.take(transfers, &place, out)?;
            }
        }
        under_way.map_or(Ok(()), |(place, out)| self.take(transfers, &place, out))
    }

    /// Copies out what was received at a place.
    fn take<T: Transfers<Half = H>>(
        &mut self,
        transfers: &T,
        place: &Place,
        out: &mut [u8],
    ) -> Result<(), CudaError> {
        let half = self.half(place.half);
        transfers.wait(&mut half.memory)?;
        // SAFETY: the copy to this range is done.
        unsafe {
            let from = T::start(&mut half.memory).add(place.range.start).cast::<u8>();
            std::ptr::copy_nonoverlapping(from.cast_const(), out.as_mut_ptr(), out.len());
        }
        Ok(())
    }

    /// Returns a place for that many bytes, at most [`Staging::most`], that nothing is asked of any more.
    fn reserve<T: Transfers<Half = H>>(&mut self, transfers: &T, bytes: usize) -> Result<Place, CudaError> {
        let fits =
            |half: &Option<Half<H>>, used: usize| half.as_ref().is_some_and(|half| used + bytes <= half.len);
        if !fits(&self.halves[self.current], self.used) {
            let other = 1 - self.current;
            if let Some(half) = &mut self.halves[other] {
                transfers.wait(&mut half.memory)?;
            }
            if !fits(&self.halves[other], 0) {
                // the old one's memory is given back first
                self.halves[other] = None;
                let len = bytes.next_power_of_two().clamp(self.least, self.most);
                self.halves[other] = Some(Half { memory: transfers.half(len)?, len });
            }
            (self.current, self.used) = (other, 0);
        }
        let range = self.used..self.used + bytes;
        self.used = range.end.next_multiple_of(ALIGNMENT);
        Ok(Place { half: self.current, range })
    }

    /// # Panics
    /// If nothing was reserved from it.
    fn half(&mut self, index: usize) -> &mut Half<H> {
        self.halves[index].as_mut().expect("a place was reserved in it")
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// A device that copies as late as it may; if it waits for nothing, too late.
    #[derive(Default)]
    struct Late {
        /// Copies from one address to another.
        pending: RefCell<Vec<(u64, u64, usize)>>,
        waits_for_nothing: bool,
        /// Bytes of the halves.
        halves: RefCell<Vec<usize>>,
        has_no_more: Cell<bool>,
    }

    impl Late {
        fn copy_all(&self) {
            for (from, to, n) in self.pending.borrow_mut().drain(..) {
                let pointer = |address: u64| std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
                // SAFETY: addresses within the halves and within the test's memory, which both live.
                unsafe { std::ptr::copy(pointer(from).cast_const(), pointer(to), n) };
            }
        }
    }

    fn address<T>(memory: &mut [T]) -> u64 {
        memory.as_mut_ptr().expose_provenance() as u64
    }

    impl Transfers for Late {
        type Half = Vec<MaybeUninit<u8>>;

        fn half(&self, bytes: usize) -> Result<Self::Half, CudaError> {
            if self.has_no_more.get() {
                return Err(CudaError::OutOfMemory { index: 0, wanted: bytes as u64, free: 0, total: 0 });
            }
            self.halves.borrow_mut().push(bytes);
            Ok(vec![MaybeUninit::new(0xee); bytes])
        }

        fn start(half: &mut Self::Half) -> *mut MaybeUninit<u8> {
            half.as_mut_ptr()
        }

        unsafe fn send(&self, half: &mut Self::Half, range: Range<usize>, to: u64) -> Result<(), CudaError> {
            self.pending.borrow_mut().push((address(&mut half[range.clone()]), to, range.len()));
            Ok(())
        }

        unsafe fn receive(
            &self,
            half: &mut Self::Half,
            range: Range<usize>,
            from: u64,
        ) -> Result<(), CudaError> {
            self.pending.borrow_mut().push((from, address(&mut half[range.clone()]), range.len()));
            Ok(())
        }

        fn wait(&self, _half: &mut Self::Half) -> Result<(), CudaError> {
            if !self.waits_for_nothing {
                self.copy_all();
            }
            Ok(())
        }
    }

    /// Writes runs of these lengths one behind another, and reads them in two pieces; returns whether they are what was written.
    fn comes_through(device: &Late, lengths: &[usize]) -> bool {
        let n = lengths.iter().sum();
        let values: Vec<u8> = (0..n).map(|i: usize| (i * 31 + i / 251) as u8).collect();
        let mut memory = vec![0u8; n];
        let to = address(&mut memory);
        let mut staging = Staging::new(512, 2048);
        let mut first = 0;
        for len in lengths {
            // changed as soon as the write returns
            let mut run = values[first..first + len].to_vec();
            // SAFETY: the memory has as many.
            unsafe { staging.write(device, to + first as u64, &run).unwrap() };
            run.fill(0);
            first += len;
        }
        let mut found = vec![0; n];
        let (low, high) = found.split_at_mut(n / 3);
        // SAFETY: as above.
        unsafe {
            staging.read(device, to, low).unwrap();
            staging.read(device, to + low.len() as u64, high).unwrap();
        }
        device.copy_all();
        memory == values && found == values
    }

    const LENGTHS: [usize; 12] = [1, 511, 3, 600, 2048, 7, 9000, 256, 255, 4096, 5, 100];

    #[test]
    fn what_is_written_in_pieces_comes_through() {
        let device = Late::default();
        assert!(comes_through(&device, &LENGTHS));
        // they grow to what was asked for
        let halves = device.halves.borrow();
        assert!(
            halves[0] == 512 && halves.contains(&1024) && halves.iter().all(|len| *len <= 2048),
            "{halves:?}"
        );
        for len in [1, 255, 256, 257, 512, 2047, 2048, 2049] {
            assert!(comes_through(&Late::default(), &[len; 9]), "{len}");
        }
    }

    #[test]
    fn memory_that_may_be_written_to_is_not_given_back() {
        let freed = Cell::new(0);
        let free = |said: Result<(), &'static str>| {
            freed.set(freed.get() + 1);
            said
        };
        give_back(Ok(()), || free(Ok(())));
        assert_eq!(freed.get(), 1);
        // what fails to be freed is asked once
        give_back(Ok(()), || free(Err("no such memory")));
        assert_eq!(freed.get(), 2);
        give_back(Err("the context is gone"), || free(Ok(())));
        assert_eq!(freed.get(), 2);
    }

    /// What cannot be had leaves what there was: the copies before it, and room for those behind it.
    #[test]
    fn a_half_that_cannot_be_had_leaves_the_others() {
        let device = Late::default();
        let mut staging = Staging::new(512, 2048);
        let (values, mut memory) = ([7u8; 600], [0u8; 1200]);
        let to = address(&mut memory);
        // SAFETY: the memory has as many.
        unsafe { staging.write(&device, to, &values[..500]).unwrap() };
        device.has_no_more.set(true);
        // SAFETY: as above.
        let refused = unsafe { staging.write(&device, to + 500, &values) };
        assert!(matches!(refused, Err(CudaError::OutOfMemory { .. })));
        device.has_no_more.set(false);
        // SAFETY: as above.
        unsafe { staging.write(&device, to + 500, &values).unwrap() };
        device.copy_all();
        assert!(memory[..1100].iter().all(|byte| *byte == 7) && memory[1100..].iter().all(|byte| *byte == 0));
    }

    /// [`what_is_written_in_pieces_comes_through`] would find a half that is begun anew too early.
    #[test]
    fn without_waiting_it_would_not() {
        let hasty = Late { waits_for_nothing: true, ..Late::default() };
        assert!(!comes_through(&hasty, &LENGTHS));
    }
}
