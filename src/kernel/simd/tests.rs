use half::f16;

use super::*;

/// Values where vector and scalar units could disagree: both zeros, denormals, halves, edges of i32, infinities.
const EDGES: [f32; 32] = [
    0.0,
    -0.0,
    0.5,
    -0.5,
    1.5,
    -1.5,
    2.5,
    -2.5,
    0.499_999_97,
    -0.499_999_97,
    1.0e-45,
    -1.0e-45,
    1.0e-39,
    f32::MIN_POSITIVE,
    65504.0,
    65520.0,
    -65519.0,
    5.96e-8,
    2.98e-8,
    6.1e-5,
    8_388_607.5,
    8_388_609.0,
    4_194_303.0,
    -4_194_303.5,
    2_147_483_648.0,
    -2_147_483_648.0,
    2_147_483_520.0,
    1.0e30,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
];

/// Pairs of every edge with every edge, then pseudo-random bit patterns that are not NaN.
fn operands() -> (Vec<f32>, Vec<f32>) {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for x in EDGES {
        for y in EDGES {
            a.push(x);
            b.push(y);
        }
    }
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let x = f32::from_bits(state);
        if x.is_nan() { state as f32 * 1e-6 } else { x }
    };
    for _ in 0..4096 {
        a.push(next());
        b.push(next());
    }
    (a, b)
}

/// One NaN for all: sign and payload of a NaN are not promised.
fn canonical(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

/// The result bits of one operation over all operands.
type Outcome = (&'static str, Vec<u32>);

struct AllOps<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl AllOps<'_> {
    #[inline(always)]
    fn f32s<S: Simd>(&self, s: S, op: impl Fn(S::F32, S::F32) -> S::F32) -> Vec<u32> {
        let mut out = Vec::new();
        let mut lanes = [0f32; 16];
        for (a, b) in self.a.chunks_exact(S::LANES).zip(self.b.chunks_exact(S::LANES)) {
            s.store(op(s.load(a), s.load(b)), &mut lanes);
            out.extend(lanes[..S::LANES].iter().map(|x| canonical(*x)));
        }
        out
    }

    #[inline(always)]
    fn i32s<S: Simd>(&self, s: S, op: impl Fn(S::I32, S::I32) -> S::I32) -> Vec<u32> {
        let mut out = Vec::new();
        let mut lanes = [0i32; 16];
        for (a, b) in self.a.chunks_exact(S::LANES).zip(self.b.chunks_exact(S::LANES)) {
            s.store_i32(op(s.to_bits(s.load(a)), s.to_bits(s.load(b))), &mut lanes);
            out.extend(lanes[..S::LANES].iter().map(|x| *x as u32));
        }
        out
    }

    #[inline(always)]
    fn masks<S: Simd>(&self, s: S, op: impl Fn(S::F32, S::F32) -> S::Mask) -> Vec<u32> {
        let one = s.splat(1.0);
        self.f32s(s, |a, b| s.select(op(a, b), one, -one))
    }
}

impl Kernel for AllOps<'_> {
    type Output = Vec<Outcome>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<Outcome> {
        let mut out = self.float_ops(s);
        out.extend(self.int_ops(s));
        out.extend(self.mask_ops(s));
        out
    }
}

impl AllOps<'_> {
    #[inline(always)]
    fn float_ops<S: Simd>(&self, s: S) -> Vec<Outcome> {
        vec![
            ("add", self.f32s(s, |a, b| a + b)),
            ("sub", self.f32s(s, |a, b| a - b)),
            ("mul", self.f32s(s, |a, b| a * b)),
            ("div", self.f32s(s, |a, b| a / b)),
            ("neg", self.f32s(s, |a, _| -a)),
            ("min", self.f32s(s, |a, b| s.min(a, b))),
            ("max", self.f32s(s, |a, b| s.max(a, b))),
            ("abs", self.f32s(s, |a, _| s.abs(a))),
            ("sqrt", self.f32s(s, |a, _| s.sqrt(a))),
            ("trunc", self.f32s(s, |a, _| s.trunc(a))),
            ("copysign", self.f32s(s, |a, b| s.copysign(s.abs(a), b))),
            ("round_small", self.f32s(s, |a, _| s.round_small(a))),
            ("round_away", self.f32s(s, |a, _| s.round_away(a))),
            ("to_f32", self.f32s(s, |a, _| s.to_f32(s.to_bits(a)))),
            ("splat", self.f32s(s, |_, _| s.splat(0.1) + s.to_f32(s.splat_i32(-7)))),
        ]
    }

    #[inline(always)]
    fn int_ops<S: Simd>(&self, s: S) -> Vec<Outcome> {
        let float = |a| s.from_bits(a);
        vec![
            ("add_i32", self.i32s(s, |a, b| a + b)),
            ("sub_i32", self.i32s(s, |a, b| a - b)),
            ("mul_i32", self.i32s(s, |a, b| a * b)),
            ("and", self.i32s(s, |a, b| a & b)),
            ("or", self.i32s(s, |a, b| a | b)),
            ("xor", self.i32s(s, |a, b| a ^ b)),
            ("min_i32", self.i32s(s, |a, b| s.min_i32(a, b))),
            ("max_i32", self.i32s(s, |a, b| s.max_i32(a, b))),
            ("shl", self.i32s(s, |a, _| s.shl::<5>(a))),
            ("shr", self.i32s(s, |a, _| s.shr::<9>(a))),
            ("sar", self.i32s(s, |a, _| s.sar::<31>(a))),
            ("trunc_i32", self.i32s(s, |a, _| s.trunc_i32(float(a)))),
            ("nearest_int", self.i32s(s, |a, _| s.nearest_int(float(a)))),
            ("select_i32", self.i32s(s, |a, b| s.select_i32(s.gt_i32(a, b), a, b))),
            ("eq_i32", self.i32s(s, |a, b| s.select_i32(s.eq_i32(a, b), a, s.splat_i32(3)))),
        ]
    }

    #[inline(always)]
    fn mask_ops<S: Simd>(&self, s: S) -> Vec<Outcome> {
        vec![
            ("lt", self.masks(s, |a, b| s.lt(a, b))),
            ("le", self.masks(s, |a, b| s.le(a, b))),
            ("eq", self.masks(s, |a, b| s.eq(a, b))),
            ("gt", self.masks(s, |a, b| s.gt(a, b))),
            ("ge", self.masks(s, |a, b| s.ge(a, b))),
            ("not", self.masks(s, |a, b| !s.lt(a, b))),
            ("mask_and", self.masks(s, |a, b| s.le(a, b) & s.le(b, a))),
            ("mask_or", self.masks(s, |a, b| s.lt(a, b) | s.lt(b, a))),
        ]
    }
}

#[test]
fn every_op_gives_the_portable_bits_on_every_isa() {
    let (a, b) = operands();
    let expected = dispatch(Isa::Portable, AllOps { a: &a, b: &b });
    for isa in Isa::available() {
        let got = dispatch(isa, AllOps { a: &a, b: &b });
        for ((name, want), (_, have)) in expected.iter().zip(&got) {
            assert_eq!(want.len(), a.len());
            for i in 0..want.len() {
                assert_eq!(want[i], have[i], "{name}({:e}, {:e}) on {}", a[i], b[i], isa.name());
            }
        }
    }
}

#[test]
fn portable_rounding_is_the_scalar_definition() {
    let (a, b) = operands();
    let outcomes = dispatch(Isa::Portable, AllOps { a: &a, b: &b });
    let of = |name: &str| &outcomes.iter().find(|(n, _)| *n == name).unwrap().1;
    for (i, x) in a.iter().enumerate() {
        assert_eq!(of("round_away")[i], x.round().to_bits(), "{x:e}");
        assert_eq!(of("nearest_int")[i] as i32, nearest_int(*x), "{x:e}");
        if x.abs() <= 4_194_303.0 {
            assert_eq!(f32::from_bits(of("round_small")[i]), x.round_ties_even(), "{x:e}");
            assert_eq!(nearest_int(*x), x.round_ties_even() as i32, "{x:e}");
        }
        assert_eq!(of("add")[i], canonical(x + b[i]));
        assert_eq!(of("min")[i], canonical(if *x < b[i] { *x } else { b[i] }));
    }
    assert_eq!(nearest_int(f32::NAN), 0);
}

struct Memory<'a>(&'a [u8]);

impl Kernel for Memory<'_> {
    type Output = Vec<(&'static str, Vec<u8>)>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut names = ["u8", "i8", "low byte", "u16", "low word", "f16", "i32"].map(|n| (n, Vec::new()));
        let mut bytes = [0u8; 64];
        let mut words = [0i32; 16];
        let mut floats = [0f32; 16];
        for chunk in self.0.chunks_exact(4 * S::LANES) {
            let ints: Vec<i32> =
                chunk.chunks_exact(4).map(|c| i32::from_le_bytes(c.try_into().unwrap())).collect();
            let v = s.load_i32(&ints);
            s.store_i32(s.load_u8(chunk), &mut words);
            names[0].1.extend(words[..8].iter().map(|w| *w as u8));
            s.store_i32(s.load_i8(chunk), &mut words);
            names[1].1.extend(words[..8].iter().flat_map(|w| w.to_le_bytes()));
            s.store_u8(v, &mut bytes);
            names[2].1.extend(&bytes[..S::LANES]);
            s.store_i32(s.load_u16(chunk), &mut words);
            names[3].1.extend(words[..8].iter().flat_map(|w| w.to_le_bytes()));
            s.store_u16(v, &mut bytes);
            names[4].1.extend(&bytes[..2 * S::LANES]);
            s.store(s.load_f16(chunk), &mut floats);
            names[5].1.extend(floats[..8].iter().flat_map(|w| w.to_le_bytes()));
            names[6].1.extend(ints.iter().flat_map(|w| w.to_le_bytes()));
        }
        names.into()
    }
}

#[test]
fn loads_and_stores_agree_with_scalar_code() {
    // 16-lane chunks of 64 bytes; the narrow loads look at the first 8 lanes of a chunk, so 8-lane levels repeat a half
    let mut data = Vec::new();
    for i in 0..4096u32 {
        data.extend((i.wrapping_mul(0x9e37_79b9) ^ (i << 7)).to_le_bytes());
    }
    for isa in Isa::available() {
        let lanes = if isa == Isa::Avx512 { 16 } else { 8 };
        let got = dispatch(isa, Memory(&data));
        let of = |name: &str| &got.iter().find(|(n, _)| *n == name).unwrap().1;
        let (mut u8s, mut i8s, mut low, mut u16s, mut low16, mut f16s) =
            (vec![], vec![], vec![], vec![], vec![], vec![]);
        for chunk in data.chunks_exact(4 * lanes) {
            u8s.extend(&chunk[..8]);
            i8s.extend(chunk[..8].iter().flat_map(|b| (*b as i8 as i32).to_le_bytes()));
            low.extend(chunk.iter().step_by(4));
            let words = chunk[..16].chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]]));
            u16s.extend(words.clone().flat_map(|w| i32::from(w).to_le_bytes()));
            low16.extend(chunk.chunks_exact(4).flat_map(|c| [c[0], c[1]]));
            f16s.extend(words.flat_map(|w| f16::from_bits(w).to_f32().to_le_bytes()));
        }
        for (name, want) in [
            ("u8", &u8s),
            ("i8", &i8s),
            ("low byte", &low),
            ("u16", &u16s),
            ("low word", &low16),
            ("f16", &f16s),
        ] {
            assert_eq!(of(name), want, "{name} on {}", isa.name());
        }
        assert_eq!(of("i32"), &data);
    }
}

struct ToHalf<'a>(&'a [f32]);

impl Kernel for ToHalf<'_> {
    type Output = Vec<u16>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u16> {
        let mut out = vec![0u8; 2 * self.0.len()];
        for (x, y) in self.0.chunks_exact(S::LANES).zip(out.chunks_exact_mut(2 * S::LANES)) {
            s.store_f16(s.load(x), y);
        }
        out.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect()
    }
}

#[test]
fn halves_round_half_to_even_on_every_isa() {
    // every half, the midpoint to its successor, and the f32 neighbours of the midpoint
    let mut x = Vec::new();
    for bits in (0..0x7c00u16).chain(0x8000..0xfc00) {
        let (low, high) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
        let high = if high.is_infinite() { 65536f32.copysign(low) } else { high };
        let middle = low / 2.0 + high / 2.0;
        let (below, above) = (f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1));
        x.extend([low, middle, below, above]);
    }
    let want: Vec<u16> = x.iter().map(|x| f16::from_f32(*x).to_bits()).collect();
    for isa in Isa::available() {
        assert_eq!(dispatch(isa, ToHalf(&x)), want, "{}", isa.name());
    }
}

struct Shuffles;

impl Kernel for Shuffles {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const STRIDE: usize = 37;
        let src: Vec<f32> = (0..16 * STRIDE).map(|i| i as f32).collect();
        let mut columns = [s.splat(0.0); 32];
        s.transpose(&src, STRIDE, &mut columns);
        let mut lanes = [0f32; 16];
        for (i, column) in columns.iter().enumerate() {
            s.store(*column, &mut lanes);
            for (j, lane) in lanes[..S::LANES].iter().enumerate() {
                assert_eq!(*lane, (j * STRIDE + i) as f32, "element {i}, lane {j}");
            }
        }

        let levels = columns.map(|c| s.trunc_i32(c));
        let mut bytes = vec![0u8; 16 * STRIDE];
        s.store_bytes_by_lane(&levels, &mut bytes, STRIDE);
        for j in 0..S::LANES {
            for i in 0..32 {
                assert_eq!(bytes[j * STRIDE + i], (j * STRIDE + i) as u8);
            }
            assert_eq!(bytes[j * STRIDE + 32..(j + 1) * STRIDE], [0; STRIDE - 32]);
        }

        let table: [f32; 16] = std::array::from_fn(|i| 100.0 + (i * i) as f32);
        let index: [i32; 16] = std::array::from_fn(|i| (i * 7 % 16) as i32 | 0x50);
        for start in (0..16).step_by(S::LANES) {
            s.store(s.lookup16(&table, s.load_i32(&index[start..])), &mut lanes);
            for (j, lane) in lanes[..S::LANES].iter().enumerate() {
                assert_eq!(*lane, table[(start + j) * 7 % 16]);
            }
        }

        let table: [f32; 32] = std::array::from_fn(|i| 100.0 + (i * i) as f32);
        let index: [i32; 32] = std::array::from_fn(|i| (i * 7 % 32) as i32 | 0x4b40_0040);
        for start in (0..32).step_by(S::LANES) {
            s.store(s.lookup32(&table, s.load_i32(&index[start..])), &mut lanes);
            for (j, lane) in lanes[..S::LANES].iter().enumerate() {
                assert_eq!(*lane, table[(start + j) * 7 % 32]);
            }
        }

        let mask = s.lt(s.load(&src), s.splat(3.0));
        assert_eq!((s.mask_bits(mask), s.any(mask), s.all(mask)), (7, true, false));
        let none = s.lt(s.load(&src), s.splat(0.0));
        assert_eq!((s.mask_bits(none), s.any(none), s.all(!none)), (0, false, true));
    }
}

#[test]
fn shuffles_lookups_and_mask_bits() {
    for isa in Isa::available() {
        dispatch(isa, Shuffles);
    }
}

struct FusedProducts<'a>(&'a [f32], &'a [f32]);

impl FmaKernel for FusedProducts<'_> {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) -> Vec<u32> {
        let mut out = vec![0f32; self.0.len()];
        for ((a, b), out) in self
            .0
            .chunks_exact(S::LANES)
            .zip(self.1.chunks_exact(S::LANES))
            .zip(out.chunks_exact_mut(S::LANES))
        {
            let (a, b) = (s.load(a), s.load(b));
            s.store(s.mul_add(a, b, -(a * b)), out);
        }
        out.into_iter().map(canonical).collect()
    }
}

#[test]
fn fused_products_are_rounded_once_on_every_isa() {
    let (a, b) = operands();
    let want: Vec<u32> = a.iter().zip(&b).map(|(a, b)| canonical(a.mul_add(*b, -(a * b)))).collect();
    assert!(want.iter().any(|bits| *bits << 1 != 0), "the rounding errors of the products");
    for isa in Isa::available() {
        assert_eq!(dispatch_fma(isa, FusedProducts(&a, &b)), want, "{}", isa.name());
    }
}
