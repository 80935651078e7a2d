//! The inverse cosine transform that libjpeg calls `islow`, in the same integers (Loeffler,
//! Ligtenberg, Moschytz, 1989).

use super::vectorised::vectorised;

/// Bits of the constants' fraction, and of the first pass's.
const CONST_BITS: u32 = 13;
const PASS_BITS: u32 = 2;

/// Where all coefficients but the first are zero: both passes of [`block`] round as here.
pub fn flat(dc: i32, out: &mut [u8], stride: usize) {
    let value = level(dc.wrapping_shl(PASS_BITS).wrapping_add(16) >> (PASS_BITS + 3));
    out.chunks_mut(stride).take(8).for_each(|row| row[..8].fill(value));
}

vectorised! {
    /// Writes 8x8 samples into rows that lie `stride` apart. Damaged files overflow, harmlessly.
    pub fn block(coefficients: &[i32; 64], out: &mut [u8], stride: usize) {
        let (mut columns, mut turned, mut rows) = ([0; 64], [0; 64], [0; 64]);
        pass::<{ CONST_BITS - PASS_BITS }>(coefficients, &mut columns);
        for i in 0..64 {
            turned[i] = columns[i % 8 * 8 + i / 8];
        }
        pass::<{ CONST_BITS + PASS_BITS + 3 }>(&turned, &mut rows);
        for i in 0..64 {
            turned[i] = rows[i % 8 * 8 + i / 8];
        }
        for (row, out) in turned.as_chunks::<8>().0.iter().zip(out.chunks_mut(stride)) {
            let mut samples = [0; 8];
            for (sample, &value) in samples.iter_mut().zip(row) {
                *sample = level(value);
            }
            out[..8].copy_from_slice(&samples);
        }
    }
}

#[inline(always)]
fn level(value: i32) -> u8 {
    value.saturating_add(128).clamp(0, 255) as u8
}

/// Transforms each column, and shifts it back by `SHIFT` bits. A loop of eight turns, which
/// compilers vectorise.
#[inline(always)]
fn pass<const SHIFT: u32>(input: &[i32; 64], output: &mut [i32; 64]) {
    let mul = |a: i32, b: i32| a.wrapping_mul(b);
    let add = |a: i32, b: i32| a.wrapping_add(b);
    let sub = |a: i32, b: i32| a.wrapping_sub(b);
    for i in 0..8 {
        let x = |k: usize| input[k * 8 + i];
        // Even part; the constants are the named values times 2^13.
        let z = mul(add(x(2), x(6)), 4433); // 0.541196100
        let t2 = add(z, mul(x(6), -15137)); // 1.847759065
        let t3 = add(z, mul(x(2), 6270)); // 0.765366865
        let t0 = add(x(0), x(4)).wrapping_shl(CONST_BITS);
        let t1 = sub(x(0), x(4)).wrapping_shl(CONST_BITS);
        let even = [add(t0, t3), add(t1, t2), sub(t1, t2), sub(t0, t3)];
        // Odd part.
        let (z3, z4) = (add(x(7), x(3)), add(x(5), x(1)));
        let z5 = mul(add(z3, z4), 9633); // 1.175875602
        let z1 = mul(add(x(7), x(1)), -7373); // 0.899976223
        let z2 = mul(add(x(5), x(3)), -20995); // 2.562915447
        let z3 = add(mul(z3, -16069), z5); // 1.961570560
        let z4 = add(mul(z4, -3196), z5); // 0.390180644
        let odd = [
            add(mul(x(1), 12299), add(z1, z4)), // 1.501321110
            add(mul(x(3), 25172), add(z2, z3)), // 3.072711026
            add(mul(x(5), 16819), add(z2, z4)), // 2.053119869
            add(mul(x(7), 2446), add(z1, z3)),  // 0.298631336
        ];
        for k in 0..4 {
            output[k * 8 + i] = add(add(even[k], odd[k]), 1 << (SHIFT - 1)) >> SHIFT;
            output[(7 - k) * 8 + i] = add(sub(even[k], odd[k]), 1 << (SHIFT - 1)) >> SHIFT;
        }
    }
}
