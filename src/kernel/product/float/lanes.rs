//! What the float micro-kernels ask of an instruction set, and its plain form.
//!
//! Unlike [`crate::kernel::simd`], whose kernels must round as the quantizers' reference does, these multiply-adds are
//! fused everywhere: that is the definition of the float arithmetics.

/// Vectors of `LANES` 32-bit lanes: f32 values, or the bits of a pair of 16-bit values (the even k in the low half).
///
/// # Safety
/// The methods may be called only where the CPU has the instruction set, inlined into functions compiled for it.
pub unsafe trait Lanes: Copy + Send + Sync + 'static {
    /// `LANES` lanes.
    type V: Copy;
    /// Lanes per vector: 8 or 16.
    const LANES: usize;
    /// Rows of x in a micro-kernel.
    const ROWS: usize;
    /// Vectors of w in a micro-kernel; `ROWS * VECTORS` accumulators fit the registers.
    const VECTORS: usize;

    unsafe fn zero() -> Self::V;
    /// Loads `LANES` lanes, unaligned.
    unsafe fn load(from: *const u32) -> Self::V;
    /// Stores `LANES` lanes, unaligned.
    unsafe fn store(v: Self::V, to: *mut u32);
    /// Returns the lane at `from` in every lane.
    unsafe fn splat(from: *const u32) -> Self::V;
    /// Returns `x * w + sum`, rounded once.
    unsafe fn fma(x: Self::V, w: Self::V, sum: Self::V) -> Self::V;
    /// Returns `v`, every NaN as the one of bits 0x7fc00000.
    unsafe fn canonical(v: Self::V) -> Self::V;

    /// Returns the high half of every lane, widened from bf16.
    unsafe fn high_bf16(v: Self::V) -> Self::V;
    /// Returns the low half of every lane, widened from bf16.
    unsafe fn low_bf16(v: Self::V) -> Self::V;
    /// Returns the high half of every lane, widened from f16.
    unsafe fn high_f16(v: Self::V) -> Self::V;
    /// Returns the low half of every lane, widened from f16.
    unsafe fn low_f16(v: Self::V) -> Self::V;
    /// Loads `LANES` halves of f16, unaligned, and widens them.
    unsafe fn load_f16(from: *const u16) -> Self::V;
    /// Loads `LANES` halves, unaligned, each as the low half of a lane, the high half zero.
    unsafe fn load_halves(from: *const u16) -> Self::V;
    /// Returns lanes whose low halves are those of `low` and whose high halves the low halves of `high`; the others are zero.
    unsafe fn pairs(low: Self::V, high: Self::V) -> Self::V;
    /// Returns the pairs of bf16 with every half of magnitude below 2^-50 zeroed.
    unsafe fn flush_bf16(v: Self::V) -> Self::V;

    /// Returns the lanes at byte `offset` of the first `LANES` rows: lane j of vector t is lane t of row j, t < 16.
    unsafe fn columns(rows: &Rows, offset: usize) -> [Self::V; 16];
    /// Asks for the cache line at `address` into the second level: the first has no room for so many rows, whose
    /// distance is often a power of two.
    unsafe fn prefetch(address: *const u8);
}

/// The addresses of at most 16 rows.
pub type Rows = [*const u8; 16];

/// Bytes of a row in a block that [`Lanes::columns`] transposes: a cache line.
pub const BLOCK: usize = 64;

/// 2^-50 in bf16, below which operands of bf16 products are zero.
pub const TINY_BITS: u16 = (super::BF16_TINY.to_bits() >> 16) as u16;

/// Plain Rust.
#[derive(Clone, Copy)]
pub struct Portable;

const PLAIN: usize = 8;

#[inline(always)]
fn each(v: [u32; PLAIN], f: impl Fn(u32) -> u32) -> [u32; PLAIN] {
    let mut out = v;
    for lane in &mut out {
        *lane = f(*lane);
    }
    out
}

// SAFETY: no instruction set is needed.
unsafe impl Lanes for Portable {
    type V = [u32; PLAIN];
    const LANES: usize = PLAIN;
    const ROWS: usize = 4;
    const VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0; PLAIN]
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self::V {
        // SAFETY: the caller's.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(v: Self::V, to: *mut u32) {
        // SAFETY: the caller's.
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const u32) -> Self::V {
        // SAFETY: the caller's.
        [unsafe { from.read_unaligned() }; PLAIN]
    }

    #[inline(always)]
    unsafe fn fma(x: Self::V, w: Self::V, sum: Self::V) -> Self::V {
        let mut out = sum;
        for i in 0..PLAIN {
            out[i] = f32::from_bits(x[i]).mul_add(f32::from_bits(w[i]), f32::from_bits(sum[i])).to_bits();
        }
        out
    }

    #[inline(always)]
    unsafe fn canonical(v: Self::V) -> Self::V {
        each(v, |bits| if f32::from_bits(bits).is_nan() { 0x7fc0_0000 } else { bits })
    }

    #[inline(always)]
    unsafe fn high_bf16(v: Self::V) -> Self::V {
        each(v, |bits| bits & 0xffff_0000)
    }

    #[inline(always)]
    unsafe fn low_bf16(v: Self::V) -> Self::V {
        each(v, |bits| bits << 16)
    }

    #[inline(always)]
    unsafe fn high_f16(v: Self::V) -> Self::V {
        each(v, |bits| crate::kernel::convert::f16_bits_to_f32((bits >> 16) as u16).to_bits())
    }

    #[inline(always)]
    unsafe fn low_f16(v: Self::V) -> Self::V {
        each(v, |bits| crate::kernel::convert::f16_bits_to_f32(bits as u16).to_bits())
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::V {
        // SAFETY: the caller's.
        let halves = unsafe { from.cast::<[u16; PLAIN]>().read_unaligned() };
        let mut out = [0; PLAIN];
        for i in 0..PLAIN {
            out[i] = crate::kernel::convert::f16_bits_to_f32(u16::from_le(halves[i])).to_bits();
        }
        out
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> Self::V {
        // SAFETY: the caller's.
        let halves = unsafe { from.cast::<[u16; PLAIN]>().read_unaligned() };
        halves.map(|half| u32::from(u16::from_le(half)))
    }

    #[inline(always)]
    unsafe fn pairs(low: Self::V, high: Self::V) -> Self::V {
        let mut out = low;
        for i in 0..PLAIN {
            out[i] = low[i] | high[i] << 16;
        }
        out
    }

    #[inline(always)]
    unsafe fn flush_bf16(v: Self::V) -> Self::V {
        let keep = |half: u32| if half & 0x7fff < u32::from(TINY_BITS) { 0 } else { half };
        each(v, |bits| keep(bits >> 16) << 16 | keep(bits & 0xffff))
    }

    #[inline(always)]
    unsafe fn columns(rows: &Rows, offset: usize) -> [Self::V; 16] {
        let mut out = [[0; PLAIN]; 16];
        for j in 0..PLAIN {
            // SAFETY: the caller's.
            let row = unsafe { rows[j].add(offset).cast::<[u32; 16]>().read_unaligned() };
            for t in 0..16 {
                out[t][j] = u32::from_le(row[t]);
            }
        }
        out
    }

    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}
}
