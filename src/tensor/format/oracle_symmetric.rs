//! Slow, obvious forms of the symmetric scale searches, one sub-block at a time: what the lane-parallel forms in
//! [`super::symmetric`] and [`super::descent`] are tested against.

/// Rounds half to even by adding 1.5 * 2^23 and reading the mantissa; |v| above 2^22 wraps, infinities and
/// NaN give fixed values. The searches depend on all of it.
pub(super) fn nearest_int(v: f32) -> i32 {
    ((v + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// Returns the value of largest magnitude, the first of them on ties; NaN never counts.
pub(super) fn signed_max(x: &[f32]) -> f32 {
    let mut max = 0.0f32;
    for &v in x {
        if v.abs() > max.abs() {
            max = v;
        }
    }
    max
}

fn levels(x: &[f32], inverse: f32, nmax: i32) -> impl Iterator<Item = i32> {
    x.iter().map(move |v| nearest_int(inverse * v).clamp(-nmax, nmax - 1))
}

/// Fits `x[i] ~ scale * (level[i] - nmax)` under weights `w` by trying 19 scales. Returns the scale and the
/// levels, all 0 if no value reaches 1e-15.
pub(super) fn search_scale(x: &[f32], w: &[f32], nmax: i32) -> (f32, Vec<u8>) {
    let max = signed_max(x);
    if max.abs() < 1e-15 {
        return (0.0, vec![0; x.len()]);
    }
    let sums = |inverse: f32| {
        let (mut xl, mut ll) = (0.0f32, 0.0f32);
        for (i, level) in levels(x, inverse, nmax).enumerate() {
            let l = level as f32;
            xl += w[i] * x[i] * l;
            ll += w[i] * l * l;
        }
        (xl, ll)
    };
    let mut best_inverse = -(nmax as f32) / max;
    let (xl, ll) = sums(best_inverse);
    let mut scale = if ll != 0.0 { xl / ll } else { 0.0 };
    let mut best = scale * xl;
    for step in (-9..=9).filter(|s| *s != 0) {
        let inverse = -(nmax as f32 + 0.1 * step as f32) / max;
        let (xl, ll) = sums(inverse);
        if ll > 0.0 && xl * xl > best * ll {
            scale = xl / ll;
            best = scale * xl;
            best_inverse = inverse;
        }
    }
    (scale, levels(x, best_inverse, nmax).map(|l| (l + nmax) as u8).collect())
}

/// Fits as [`search_scale`] under weights x^2 by up to five passes of coordinate descent over the levels.
pub(super) fn descend_levels(x: &[f32], nmax: i32) -> (f32, Vec<u8>) {
    let max = signed_max(x);
    if max.abs() < 1e-15 {
        return (0.0, vec![0; x.len()]);
    }
    let mut level: Vec<i32> = levels(x, -(nmax as f32) / max, nmax).collect();
    let (mut xl, mut ll) = (0.0f32, 0.0f32);
    for (&v, &l) in x.iter().zip(&level) {
        xl += v * v * v * l as f32;
        ll += v * v * l as f32 * l as f32;
    }
    for _pass in 0..5 {
        let mut changed = false;
        for (&v, level) in x.iter().zip(&mut level) {
            let w = v * v;
            let without_xl = xl - w * v * *level as f32;
            let without_ll = ll - w * *level as f32 * *level as f32;
            let new = nearest_int(v * without_ll / without_xl).clamp(-nmax, nmax - 1);
            let new_xl = without_xl + w * v * new as f32;
            let new_ll = without_ll + w * new as f32 * new as f32;
            let possible = without_xl > 0.0 && new_ll > 0.0 && new != *level;
            if possible && new_xl * new_xl * ll > xl * xl * new_ll {
                (*level, xl, ll) = (new, new_xl, new_ll);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let scale = if ll > 0.0 { xl / ll } else { 0.0 };
    (scale, level.iter().map(|l| (l + nmax) as u8).collect())
}

/// Overwrites the levels of one sub-block for the final scale `d`; 0 leaves the search's levels.
pub(super) fn relevel(x: &[f32], d: f32, nmax: i32, level: &mut [u8]) {
    if d != 0.0 {
        for (l, v) in level.iter_mut().zip(x) {
            *l = (nearest_int(v / d).clamp(-nmax, nmax - 1) + nmax) as u8;
        }
    }
}
