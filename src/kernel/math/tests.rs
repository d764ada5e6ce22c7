use super::*;

type SliceFunction = fn(Isa, &mut [f32]);

/// Every `step`-th f32 between the two bounds, by bits, both included; low and high have one sign.
fn floats(low: f32, high: f32, step: usize) -> Vec<f32> {
    let (a, b) = (low.to_bits().min(high.to_bits()), low.to_bits().max(high.to_bits()));
    (a..=b).step_by(step).chain([b]).map(f32::from_bits).collect()
}

/// Returns the largest error in units of the last place, and where; results below the normal range don't count.
fn max_ulp(x: &[f32], function: impl Fn(Isa, &mut [f32]), exact: impl Fn(f64) -> f64) -> (f64, f32) {
    let mut y = x.to_vec();
    function(Isa::detect(), &mut y);
    let mut worst = (0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let want = exact(f64::from(*x));
        if want.abs() < f64::from(f32::MIN_POSITIVE) || want.abs() > f64::from(f32::MAX) {
            continue;
        }
        let ulp = 2f64.powi((want.abs().log2().floor() as i32).max(-126) - 23);
        let error = (f64::from(y) - want).abs() / ulp;
        if error.is_nan() || error > worst.0 {
            worst = (error, *x);
        }
    }
    worst
}

fn both_signs(low: f32, high: f32, step: usize) -> Vec<f32> {
    [floats(low, high, step), floats(-low, -high, step)].concat()
}

#[test]
fn errors_in_units_of_the_last_place() {
    let wide = both_signs(1e-30, 87.0, 997);
    let positive = floats(1e-45, f32::MAX, 997);
    let near_one = floats(0.5, 2.0, 7);
    let exp_range: Vec<f32> = [both_signs(1e-10, 87.33, 499), floats(87.33, 88.722_83, 1)].concat();
    let checks = [
        ("exp", max_ulp(&exp_range, exp, f64::exp), 0.9),
        ("log", max_ulp(&positive, log, f64::ln), 0.8),
        ("log near 1", max_ulp(&near_one, log, f64::ln), 0.8),
        ("tanh", max_ulp(&wide, tanh, f64::tanh), 1.3),
        ("sigmoid", max_ulp(&wide, sigmoid, |x| 1.0 / (1.0 + (-x).exp())), 2.1),
        ("silu", max_ulp(&wide, silu, |x| x / (1.0 + (-x).exp())), 2.3),
    ];
    for (name, (error, x), limit) in checks {
        println!("{name}: {error:.3} ulp at {x:e}");
        assert!(error <= limit, "{name}: {error} ulp at {x:e}");
    }
}

#[test]
fn gelu_is_near_its_definition() {
    let x = both_signs(1e-20, 20.0, 499);
    let mut y = x.clone();
    gelu_tanh(Isa::detect(), &mut y);
    let factor = (2.0 / std::f64::consts::PI).sqrt();
    for (x, y) in x.iter().zip(y) {
        let z = f64::from(*x);
        let want = 0.5 * z * (1.0 + (factor * (z + 0.044715 * z * z * z)).tanh());
        assert!((f64::from(y) - want).abs() <= 3e-7 * z.abs(), "{x:e}: {y:e} for {want:e}");
    }
}

#[test]
fn edges_are_what_ieee_says() {
    let inf = f32::INFINITY;
    let run = |function: SliceFunction, x: f32| {
        let mut value = [x];
        function(Isa::detect(), &mut value);
        value[0]
    };
    let cases: [(SliceFunction, f32, f32); 21] = [
        (exp, 0.0, 1.0),
        (exp, -0.0, 1.0),
        (exp, inf, inf),
        (exp, -inf, 0.0),
        (exp, 1e30, inf),
        (exp, -1e30, 0.0),
        (exp, 88.722_83, 3.402_798_5e38),
        (exp, 88.722_84, inf),
        (exp, -87.337, 0.0),
        (log, 1.0, 0.0),
        (log, 0.0, -inf),
        (log, -0.0, -inf),
        (log, inf, inf),
        (tanh, inf, 1.0),
        (tanh, -inf, -1.0),
        (tanh, 0.0, 0.0),
        (sigmoid, inf, 1.0),
        (sigmoid, -inf, 0.0),
        (sigmoid, 0.0, 0.5),
        (silu, 0.0, 0.0),
        (gelu_tanh, 0.0, 0.0),
    ];
    for (i, (function, x, want)) in cases.into_iter().enumerate() {
        assert_eq!(run(function, x), want, "case {i}: {x}");
    }
    assert!(run(tanh, -0.0).is_sign_negative());
    for function in [exp, log, tanh, sigmoid, silu, gelu_tanh] {
        assert!(run(function, f32::NAN).is_nan());
    }
    assert!(run(log, -1.0).is_nan() && run(log, -inf).is_nan());
}

#[derive(Clone, Copy)]
struct ExpNonpositive;

impl Unary for ExpNonpositive {
    #[inline(always)]
    fn apply<S: SimdFma>(self, s: S, x: S::F32) -> S::F32 {
        lanes::exp_nonpositive(s, x)
    }
}

#[test]
fn exp_of_nonpositive_values_has_the_bits_of_exp() {
    let x = [floats(-1e-40, f32::NEG_INFINITY, 1009), vec![0.0, -0.0, -87.3365, -87.336_51]].concat();
    let (mut short, mut full) = (x.clone(), x.clone());
    dispatch_fma(Isa::detect(), MapInPlace(ExpNonpositive, &mut short));
    exp(Isa::detect(), &mut full);
    for ((x, short), full) in x.iter().zip(short).zip(full) {
        assert_eq!(short.to_bits(), full.to_bits(), "{x:e}");
    }
}

#[test]
fn every_isa_and_length_gives_the_same_bits() {
    let x = both_signs(1e-42, 3e38, 9_999_991);
    let x: Vec<f32> = x.into_iter().chain([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY]).collect();
    let bits = |values: &[f32]| -> Vec<u32> {
        values.iter().map(|y| if y.is_nan() { f32::NAN.to_bits() } else { y.to_bits() }).collect()
    };
    for function in [exp, log, tanh, sigmoid, silu, gelu_tanh] {
        let mut want = x.clone();
        function(Isa::Portable, &mut want);
        for isa in Isa::available() {
            for len in [0, 1, 7, 8, 15, 16, 17, x.len()] {
                let mut y = x[..len].to_vec();
                function(isa, &mut y);
                assert_eq!(bits(&y), bits(&want[..len]), "{} at {len}", isa.name());
            }
        }
    }
}
