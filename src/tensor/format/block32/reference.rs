//! One block at a time, one value at a time: the oracle of the vector encoders and decoders.

use half::f16;

use crate::kernel::simd::nearest_int;

/// Returns the format's encoding of rows, block by block.
pub fn encode(name: &str, rows: &[f32], row_len: usize, importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = Vec::new();
    for row in rows.chunks(row_len) {
        let mut sum = 0.0;
        for x in row {
            sum += x * x;
        }
        let mean_square = sum / row_len as f32;
        for (index, x) in row.chunks(32).enumerate() {
            let weights: Option<Vec<f32>> = importance.map(|importance| {
                let of_block = &importance[index * 32..][..32];
                of_block.iter().zip(x).map(|(im, x)| im * (mean_square + x * x).sqrt()).collect()
            });
            match (name, weights) {
                ("Q8_0", _) => q8_0(x, &mut out),
                ("MXFP4", _) => mxfp4(x, &mut out),
                ("Q4_0", None) => symmetric(8.0, x, &mut out),
                ("Q5_0", None) => symmetric(16.0, x, &mut out),
                ("Q4_1", None) => affine(15.0, x, &mut out),
                ("Q5_1", None) => affine(31.0, x, &mut out),
                ("Q4_0", Some(weights)) => symmetric_search(8, x, &weights, &mut out),
                ("Q5_0", Some(weights)) => symmetric_search(16, x, &weights, &mut out),
                ("Q4_1", Some(weights)) => affine_search(15, x, &weights, &mut out),
                ("Q5_1", Some(weights)) => affine_search(31, x, &weights, &mut out),
                _ => panic!("no oracle for {name}"),
            }
        }
    }
    out
}

/// Returns the values of one block.
pub fn decode(name: &str, block: &[u8]) -> Vec<f32> {
    let half = |at: usize| f16::from_bits(u16::from_le_bytes([block[at], block[at + 1]])).to_f32();
    let nibble = |at: usize, i: usize| block[at + i % 16] >> (if i < 16 { 0 } else { 4 }) & 15;
    let fifth = |at: usize, i: usize| (block[at + i / 8] >> (i % 8) & 1) << 4;
    let value = |i: usize| match name {
        "Q8_0" => f32::from(block[2 + i] as i8) * half(0),
        "Q4_0" => (f32::from(nibble(2, i)) - 8.0) * half(0),
        "Q5_0" => (f32::from(nibble(6, i) | fifth(2, i)) - 16.0) * half(0),
        "Q4_1" => f32::from(nibble(4, i)) * half(0) + half(2),
        "Q5_1" => f32::from(nibble(8, i) | fifth(4, i)) * half(0) + half(2),
        "MXFP4" => {
            let values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
            let code = nibble(1, i);
            let magnitude = values[usize::from(code & 7)] * 2f64.powi(i32::from(block[0]) - 127);
            if code > 8 { -magnitude as f32 } else { magnitude as f32 }
        }
        _ => panic!("no oracle for {name}"),
    };
    (0..32).map(value).collect()
}

/// C's conversion of a float to an 8-bit integer on x86: what is out of range for i32 gives 0.
fn low_byte(x: f32) -> u8 {
    if x.abs() < 2147483648.0 { x as i32 as u8 } else { 0 }
}

fn put_half(x: f32, out: &mut Vec<u8>) {
    out.extend(f16::from_f32(x).to_le_bytes());
}

/// Appends fifth bits if there are any to have (`top` > 15), then nibbles.
fn put_levels(levels: &[u8], top: i32, out: &mut Vec<u8>) {
    if top > 15 {
        let bits = levels.iter().enumerate().fold(0u32, |bits, (i, l)| bits | u32::from(l >> 4) << i);
        out.extend(bits.to_le_bytes());
    }
    out.extend((0..16).map(|i| (levels[i] & 15) | (levels[i + 16] << 4)));
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The first value of the largest magnitude.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |best: f32, x| if x.abs() > best.abs() { *x } else { best })
}

fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let d = extreme(x).abs() / 127.0;
    put_half(d, out);
    out.extend(x.iter().map(|x| low_byte((x * inverse(d)).round())));
}

fn symmetric(half_range: f32, x: &[f32], out: &mut Vec<u8>) {
    let d = extreme(x) / -half_range;
    let top = 2.0 * half_range - 1.0;
    let levels: Vec<u8> =
        x.iter().map(|x| low_byte(x * inverse(d) + half_range + 0.5).min(top as u8)).collect();
    put_half(d, out);
    put_levels(&levels, top as i32, out);
}

fn affine(top: f32, x: &[f32], out: &mut Vec<u8>) {
    let min = x.iter().fold(f32::MAX, |min, x| if *x < min { *x } else { min });
    let max = x.iter().fold(-f32::MAX, |max, x| if *x > max { *x } else { max });
    let d = (max - min) / top;
    let levels: Vec<u8> = x.iter().map(|x| low_byte((x - min) * inverse(d) + 0.5).min(top as u8)).collect();
    put_half(d, out);
    put_half(min, out);
    put_levels(&levels, top as i32, out);
}

fn symmetric_search(nmax: i32, x: &[f32], w: &[f32], out: &mut Vec<u8>) {
    let max = extreme(x);
    if max.abs() < 1e-15 {
        put_half(0.0, out);
        put_levels(&[0; 32], 2 * nmax - 1, out);
        return;
    }
    let level = |iscale: f32, x: f32| nearest_int(iscale * x).clamp(-nmax, nmax - 1);
    let fit = |iscale: f32| {
        let (mut lx, mut l2) = (0.0, 0.0);
        for i in 0..32 {
            let l = level(iscale, x[i]) as f32;
            lx += w[i] * x[i] * l;
            l2 += w[i] * l * l;
        }
        (lx, l2)
    };
    let mut iscale = -nmax as f32 / max;
    let (lx, l2) = fit(iscale);
    let mut scale = if l2 == 0.0 { 0.0 } else { lx / l2 };
    let mut best = scale * lx;
    for step in [-9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9] {
        let this = -(nmax as f32 + 0.1 * step as f32) / max;
        let (lx, l2) = fit(this);
        if l2 > 0.0 && lx * lx > best * l2 {
            (scale, iscale) = (lx / l2, this);
            best = scale * lx;
        }
    }
    let levels: Vec<u8> = x.iter().map(|x| (level(iscale, *x) + nmax) as u8).collect();
    put_half(scale, out);
    put_levels(&levels, 2 * nmax - 1, out);
}

fn affine_search(top: i32, x: &[f32], w: &[f32], out: &mut Vec<u8>) {
    let (mut min, mut max, mut sum_w, mut sum_x) = (x[0], x[0], w[0], w[0] * x[0]);
    for i in 1..32 {
        min = if x[i] < min { x[i] } else { min };
        max = if x[i] > max { x[i] } else { max };
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max <= min {
        put_half(0.0, out);
        put_half(min, out);
        put_levels(&[0; 32], top, out);
        return;
    }
    let mut iscale = top as f32 / (max - min);
    let mut scale = 1.0 / iscale;
    let mut levels: Vec<i32> = x.iter().map(|x| nearest_int(iscale * (x - min)).clamp(0, top)).collect();
    let mut best = squared_error(x, w, &levels, scale, min);
    for step in 0..=36 {
        iscale = (-0.9 + 0.05 * step as f32 + top as f32) / (max - min);
        let level = |x: f32| {
            let v = iscale * (x - min);
            if v > 0.0 { nearest_int(v.min(top as f32)) } else { 0 }
        };
        let tried: Vec<i32> = x.iter().map(|x| level(*x)).collect();
        let (mut l1, mut l2, mut xl) = (0.0, 0.0, 0.0);
        for i in 0..32 {
            let l = tried[i] as f32;
            l1 += w[i] * l;
            l2 += w[i] * l * l;
            xl += w[i] * l * x[i];
        }
        let determinant = sum_w * l2 - l1 * l1;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * xl - sum_x * l1) / determinant;
            let mut this_min = (l2 * sum_x - l1 * xl) / determinant;
            if this_min > 0.0 {
                (this_scale, this_min) = (xl / l2, 0.0);
            }
            let error = squared_error(x, w, &tried, this_scale, this_min);
            if error < best {
                (levels, best, scale, min) = (tried, error, this_scale, this_min);
            }
        }
    }
    put_half(scale, out);
    put_half(min, out);
    put_levels(&levels.iter().map(|l| *l as u8).collect::<Vec<_>>(), top, out);
}

fn squared_error(x: &[f32], w: &[f32], levels: &[i32], scale: f32, min: f32) -> f32 {
    let mut sum = 0.0;
    for i in 0..32 {
        let diff = scale * levels[i] as f32 + min - x[i];
        sum += w[i] * (diff * diff);
    }
    sum
}

fn mxfp4(x: &[f32], out: &mut Vec<u8>) {
    let amax = extreme(x).abs();
    // f64 is exact enough: the nearest an f32 logarithm comes to a rounding boundary is far above 2^-53
    let exponent = f64::from(amax).log2() as f32;
    let e = if amax > 0.0 { (exponent.floor() as i32 - 2 + 127) as u8 } else { 0 };
    let d = 2f64.powi(i32::from(e) - 128) as f32;
    let values = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];
    let nearest = |x: f32| {
        let mut best = 0;
        for i in 1..16 {
            if (values[i] * d - x).abs() < (values[best] * d - x).abs() {
                best = i;
            }
        }
        best as u8
    };
    out.push(e);
    let levels: Vec<u8> = x.iter().map(|x| nearest(*x)).collect();
    put_levels(&levels, 15, out);
}
