//! Slow, obvious forms of the searches in [`super::affine`], one sub-block at a time: what the lane-parallel forms are
//! tested against.

use half::f16;

use super::affine::Search;
use super::affine_blocks::AffineBlock;
use super::oracle_symmetric::nearest_int;

/// Fits `x[i] ~ scale * level[i] - min` under weights `w`. Returns scale, min, levels.
pub(super) fn search(x: &[f32], w: &[f32], search: Search) -> (f32, f32, Vec<u8>) {
    let Search { nmax, scan, saturates, absolute } = search;
    let mut low = x[0];
    let mut high = x[0];
    let mut sum_w = w[0];
    let mut sum_x = w[0] * x[0];
    for i in 1..x.len() {
        if x[i] < low {
            low = x[i];
        }
        if x[i] > high {
            high = x[i];
        }
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if low > 0.0 {
        low = 0.0;
    }
    if high <= low {
        return (0.0, -low, vec![0; x.len()]);
    }
    let error_of = |scale: f32, offset: f32, levels: &[u8]| {
        let mut sum = 0.0f32;
        for i in 0..x.len() {
            let difference = scale * f32::from(levels[i]) + offset - x[i];
            sum += w[i] * if absolute { difference.abs() } else { difference * difference };
        }
        sum
    };

    let inverse = nmax as f32 / (high - low);
    let mut scale = 1.0 / inverse;
    let mut levels: Vec<u8> =
        x.iter().map(|v| nearest_int(inverse * (v - low)).clamp(0, nmax) as u8).collect();
    let mut best = error_of(scale, low, &levels);
    for k in 0..=scan.last {
        let inverse = (scan.start + scan.step * k as f32 + nmax as f32) / (high - low);
        let mut trial = Vec::new();
        let (mut sum_l, mut sum_ll, mut sum_lx) = (0.0f32, 0.0f32, 0.0f32);
        for i in 0..x.len() {
            let v = inverse * (x[i] - low);
            let level = match saturates {
                false => nearest_int(v).clamp(0, nmax),
                true if v > 0.0 => nearest_int(if v < nmax as f32 { v } else { nmax as f32 }),
                true => 0,
            };
            trial.push(level as u8);
            let l = level as f32;
            sum_l += w[i] * l;
            sum_ll += w[i] * l * l;
            sum_lx += w[i] * l * x[i];
        }
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        if determinant > 0.0 {
            let mut trial_scale = (sum_w * sum_lx - sum_x * sum_l) / determinant;
            let mut trial_low = (sum_ll * sum_x - sum_l * sum_lx) / determinant;
            if trial_low > 0.0 {
                trial_low = 0.0;
                trial_scale = sum_lx / sum_ll;
            }
            let error = error_of(trial_scale, trial_low, &trial);
            if error < best {
                (best, scale, low, levels) = (error, trial_scale, trial_low, trial);
            }
        }
    }
    (scale, -low, levels)
}

/// Fits `x[i] ~ scale * code[i]`, x not negative, under weights `w`. Returns scale and codes.
pub(super) fn search_positive(x: &[f32], w: &[f32], nmax: i32) -> (f32, Vec<u8>) {
    let max = x.iter().fold(0.0f32, |max, v| if max > *v { max } else { *v });
    if max < 1e-15 {
        return (0.0, vec![0; x.len()]);
    }
    let error_of = |inverse: f32, code_of: &dyn Fn(i32) -> i32| {
        let scale = 1.0 / inverse;
        let mut error = 0.0f32;
        for i in 0..x.len() {
            let difference = x[i] - scale * code_of(nearest_int(inverse * x[i])) as f32;
            error += w[i] * difference * difference;
        }
        error
    };
    let mut inverse = nmax as f32 / max;
    let mut best = error_of(inverse, &|code| i32::from(code as u8));
    for k in [-4, -3, -2, -1, 1, 2, 3, 4] {
        let trial = (0.1 * k as f32 + nmax as f32) / max;
        let error = error_of(trial, &|code| code.min(nmax));
        if error < best {
            (best, inverse) = (error, trial);
        }
    }
    let mut codes = Vec::new();
    let (mut lx, mut ll) = (0.0f32, 0.0f32);
    for i in 0..x.len() {
        let code = nearest_int(inverse * x[i]).min(nmax);
        codes.push(code as u8);
        lx += w[i] * x[i] * code as f32;
        ll += w[i] * code as f32 * code as f32;
    }
    for _pass in 0..5 {
        let mut changed = false;
        for i in 0..x.len() {
            let old = f32::from(codes[i]);
            let mut lx_new = lx - w[i] * x[i] * old;
            let mut ll_new = ll - w[i] * old * old;
            if lx_new <= 0.0 || ll_new <= 0.0 || lx_new.is_nan() || ll_new.is_nan() {
                continue;
            }
            let code = nearest_int(x[i] * ll_new / lx_new).min(nmax);
            if code == i32::from(codes[i]) {
                continue;
            }
            lx_new += w[i] * x[i] * code as f32;
            ll_new += w[i] * code as f32 * code as f32;
            if lx_new * lx_new * ll > lx * lx * ll_new {
                codes[i] = code as u8;
                (lx, ll) = (lx_new, ll_new);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    (if ll > 0.0 { lx / ll } else { 0.0 }, codes)
}

/// A super-block before its levels are rounded to the stored scales.
pub(super) struct FittedBlock {
    pub d: f16,
    pub dmin: f16,
    pub codes: Vec<u8>,
    pub min_codes: Vec<u8>,
    pub levels: Vec<u8>,
}

/// Fits the sub-blocks of one super-block, then quantizes their scales and mins.
pub(super) fn fit_block<F: AffineBlock>(
    x: &[f32],
    importance: Option<&[f32]>,
    plain_weights: fn(&[f32]) -> Vec<f32>,
) -> FittedBlock {
    let sigma2 = F::SIGMA_FACTOR * x.iter().fold(0.0f32, |sum, v| sum + v * v) / 256.0;
    let (mut scales, mut mins, mut sums, mut levels) = (vec![], vec![], vec![], vec![]);
    for (j, sub) in x.chunks(F::SUB_LEN).enumerate() {
        let (w, kind) = match importance {
            None => (plain_weights(sub), F::PLAIN),
            Some(importance) => {
                let importance = &importance[j * F::SUB_LEN..][..F::SUB_LEN];
                (sub.iter().zip(importance).map(|(x, i)| i * (sigma2 + x * x).sqrt()).collect(), F::WEIGHTED)
            }
        };
        let (scale, min, sub_levels) = search(sub, &w, kind);
        scales.push(scale);
        mins.push(min);
        sums.push(w.iter().fold(0.0f32, |sum, w| sum + w));
        levels.extend(sub_levels);
    }
    let (plain_limit, weighted_limit) = F::CODE_LIMITS;
    let quantize = |values: &[f32]| {
        let code_max = F::CODE_MAX as f32;
        if importance.is_some() {
            let (factor, codes) = search_positive(values, &sums, F::CODE_MAX);
            return (f16::from_f32(factor), codes.iter().map(|c| *c.min(&weighted_limit)).collect());
        }
        let max = values.iter().fold(0.0f32, |max, v| if *v > max { *v } else { max });
        let inverse = if max > 0.0 { code_max / max } else { 0.0 };
        let codes = values.iter().map(|v| (nearest_int(inverse * v) as u8).min(plain_limit)).collect();
        (f16::from_f32(max / code_max), codes)
    };
    let (d, codes) = quantize(&scales);
    let (dmin, min_codes) = quantize(&mins);
    FittedBlock { d, dmin, codes, min_codes, levels }
}

/// Rounds `x` to levels of (scale, min); keeps the levels if the scale is 0.
pub(super) fn relevel(x: &[f32], (scale, min): (f32, f32), nmax: i32, levels: &mut [u8]) {
    if scale == 0.0 {
        return;
    }
    for (x, level) in x.iter().zip(levels) {
        *level = nearest_int((x + min) / scale).clamp(0, nmax) as u8;
    }
}
