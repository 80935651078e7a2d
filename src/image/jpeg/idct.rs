//! The inverse cosine transform that libjpeg calls `islow`, in the same integers (Loeffler, Ligtenberg, Moschytz, 1989).

/// Bits of the constants' fraction, and of the first pass's.
const CONST_BITS: u32 = 13;
const PASS_BITS: u32 = 2;

/// Writes 8x8 samples into rows that lie `stride` apart. Damaged files overflow, harmlessly.
pub fn block(coefficients: &[i16; 64], quant: &[u16; 64], out: &mut [u8], stride: usize) {
    let mut work = [0i32; 64];
    if coefficients[1..].iter().all(|&c| c == 0) {
        // One value; both passes round as here.
        let dc = (i32::from(coefficients[0]).wrapping_mul(i32::from(quant[0]))).wrapping_shl(PASS_BITS);
        let value = sample(dc.wrapping_add(16) >> (PASS_BITS + 3));
        out.chunks_mut(stride).take(8).for_each(|row| row[..8].fill(value));
        return;
    }
    for x in 0..8 {
        let column: [i32; 8] =
            std::array::from_fn(|y| i32::from(coefficients[y * 8 + x]).wrapping_mul(i32::from(quant[y * 8 + x])));
        let values = if column[1..].iter().all(|&c| c == 0) {
            [column[0].wrapping_shl(PASS_BITS); 8]
        } else {
            pass(column, CONST_BITS - PASS_BITS)
        };
        for (y, value) in values.into_iter().enumerate() {
            work[y * 8 + x] = value;
        }
    }
    for (row, out) in work.as_chunks::<8>().0.iter().zip(out.chunks_mut(stride)) {
        let values = pass(*row, CONST_BITS + PASS_BITS + 3);
        out.iter_mut().zip(values).for_each(|(out, value)| *out = sample(value));
    }
}

fn sample(value: i32) -> u8 {
    value.saturating_add(128).clamp(0, 255) as u8
}

/// Eight values of one row or column, shifted back by `shift` bits.
fn pass(x: [i32; 8], shift: u32) -> [i32; 8] {
    let mul = |a: i32, b: i32| a.wrapping_mul(b);
    let add = |a: i32, b: i32| a.wrapping_add(b);
    let sub = |a: i32, b: i32| a.wrapping_sub(b);
    // Even part; the constants are the named values times 2^13.
    let z = mul(add(x[2], x[6]), 4433); // 0.541196100
    let t2 = add(z, mul(x[6], -15137)); // 1.847759065
    let t3 = add(z, mul(x[2], 6270)); // 0.765366865
    let t0 = add(x[0], x[4]).wrapping_shl(CONST_BITS);
    let t1 = sub(x[0], x[4]).wrapping_shl(CONST_BITS);
    let even = [add(t0, t3), add(t1, t2), sub(t1, t2), sub(t0, t3)];
    // Odd part.
    let (z3, z4) = (add(x[7], x[3]), add(x[5], x[1]));
    let z5 = mul(add(z3, z4), 9633); // 1.175875602
    let z1 = mul(add(x[7], x[1]), -7373); // 0.899976223
    let z2 = mul(add(x[5], x[3]), -20995); // 2.562915447
    let z3 = add(mul(z3, -16069), z5); // 1.961570560
    let z4 = add(mul(z4, -3196), z5); // 0.390180644
    let odd = [
        add(mul(x[1], 12299), add(z1, z4)), // 1.501321110
        add(mul(x[3], 25172), add(z2, z3)), // 3.072711026
        add(mul(x[5], 16819), add(z2, z4)), // 2.053119869
        add(mul(x[7], 2446), add(z1, z3)),  // 0.298631336
    ];
    let half = 1 << (shift - 1);
    std::array::from_fn(|i| {
        let value = if i < 4 { add(even[i], odd[i]) } else { sub(even[7 - i], odd[7 - i]) };
        add(value, half) >> shift
    })
}
