//! VDPBF16PS against the two fused multiply-adds that define the arithmetic, over operands of every magnitude.

use super::avx512::Avx512;
use super::lanes::Lanes;
use super::step::{Bf16, DotBf16, Step};

const CASES: u32 = 400_000;

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn both(sum: &[u32; 16], x: &[u32; 16], w: &[u32; 16]) -> [[u32; 16]; 2] {
    let mut out = [[0; 16]; 2];
    // SAFETY: the features are this function's; the arrays have LANES lanes.
    unsafe {
        let (sum, x, w) = (Avx512::load(sum.as_ptr()), Avx512::load(x.as_ptr()), Avx512::load(w.as_ptr()));
        Avx512::store(Avx512::canonical(DotBf16::step(sum, x, w)), out[0].as_mut_ptr());
        Avx512::store(Avx512::canonical(Bf16::<Avx512>::step(sum, x, w)), out[1].as_mut_ptr());
    }
    out
}

#[test]
fn the_instruction_equals_two_fused_multiply_adds() {
    if super::forms(crate::kernel::Isa::detect(), super::Arithmetic::Bf16).len() < 2 {
        println!("skipped: this machine has no AVX512-BF16");
        return;
    }
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    };
    // Exponents: all that are not flushed, infinities and NaNs; near one another, so that sums cancel; of weights.
    let ranges = [(77, 256), (120, 131), (77, 90), (100, 130), (180, 256)];
    for case in 0..CASES {
        let (low, high) = ranges[case as usize % ranges.len()];
        let mut half = || {
            let random = next();
            let exponent = low + (random >> 8) % (high - low);
            let zero = random & 0xf0_0000 == 0;
            (random & 0x8000) | if zero { 0 } else { exponent << 7 | random & 0x7f }
        };
        let mut x = [0; 16];
        let mut w = [0; 16];
        let mut sum = [0; 16];
        for lane in 0..16 {
            x[lane] = half() << 16 | half();
            w[lane] = half() << 16 | half();
            sum[lane] = half() << 16;
        }
        // A sum is made of such products, so it is no denormal; the chain's second step has one of full precision.
        // SAFETY: the features were found.
        let [instruction, chain] = unsafe { both(&sum, &x, &w) };
        assert_eq!(instruction, chain, "sum {sum:x?} x {x:x?} w {w:x?}");
        let [instruction, chain] = unsafe { both(&chain, &w, &x) };
        assert_eq!(instruction, chain, "second step: x {x:x?} w {w:x?}");
    }
}
