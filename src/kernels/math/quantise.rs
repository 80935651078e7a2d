//! Numbers in the formats of packed products, and back.

use half::bf16;

use super::lanes::{LANES, ROUND, fold, larger, largest};
use super::vectorised::vectorised;
use crate::kernels::cpu::Cpu;
use crate::kernels::layout::{BLOCK, High, OFFSET, QUAD};

/// The largest number of 16 bits whose upper half, rounded, has 8.
pub(in crate::kernels) const TWICE: f32 = 127.0 * 256.0;

#[inline]
pub(in crate::kernels) fn low_half(word: u32) -> f32 {
    f32::from_bits(word << 16)
}

#[inline]
pub(in crate::kernels) fn high_half(word: u32) -> f32 {
    f32::from_bits(word & 0xffff_0000)
}

/// The nearest bf16, ties to even. Infinities and NaN, which no activation should be, stay what
/// they are or become NaN.
#[inline(always)]
pub(super) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16
}

vectorised! {
    /// Two numbers to a word, rounded to bf16; a missing second one is 0.
    to_bf16(x: &[f32], words: &mut [u32]) {
        for (word, pair) in words.iter_mut().zip(x.chunks_exact(2)) {
            *word = bf16_bits(pair[0]) | bf16_bits(pair[1]) << 16;
        }
        if let (Some(last), [x]) = (words.get_mut(x.len() / 2), x.chunks_exact(2).remainder()) {
            *last = bf16_bits(*x);
        }
    }
}

vectorised! {
    /// Numbers in bf16, little-endian, at any address.
    from_bf16(bytes: &[u8], x: &mut [f32]) {
        for (x, bytes) in x.iter_mut().zip(bytes.as_chunks().0) {
            *x = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
    }
}

vectorised! {
    /// A number to the lower half of each word, rounded to bf16; the upper one becomes 0.
    set_low(x: &[f32], words: &mut [u32]) {
        for (word, x) in words.iter_mut().zip(x) {
            *word = bf16_bits(*x);
        }
    }
}

vectorised! {
    /// A number to the upper half of each word, rounded to bf16.
    set_high(x: &[f32], words: &mut [u32]) {
        for (word, x) in words.iter_mut().zip(x) {
            *word = *word & 0xffff | bf16_bits(*x) << 16;
        }
    }
}

vectorised! {
    /// What [`isa::to_int8`](crate::kernels::isa::to_int8) says, alone.
    int8_scale(x: &[f32]) -> f32 {
        largest(x, 0.0, f32::abs) / 127.0
    }
}

vectorised! {
    /// [`isa::to_int8`](crate::kernels::isa::to_int8) without instructions of its own.
    to_int8_elsewhere(x: &[f32], words: &mut [u32]) -> f32 {
        let largest = largest(x, 0.0, f32::abs);
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        // The first of a word's numbers is lowest: machines are little-endian.
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
        bytes[x.len()..].fill(OFFSET as u8);
        for (byte, x) in bytes.iter_mut().zip(x) {
            *byte = (x * inverse + ROUND).to_bits().wrapping_add(OFFSET as u32) as u8;
        }
        largest / 127.0
    }
}

vectorised! {
    /// [`isa::to_int8_twice`](crate::kernels::isa::to_int8_twice) without instructions of its own.
    to_int8_twice_elsewhere(x: &[f32], high: &mut [u32], low: &mut [u32]) -> f32 {
        let largest = largest(x, 0.0, f32::abs);
        let inverse = if largest > 0.0 { TWICE / largest } else { 0.0 };
        let [high, low]: [&mut [u8]; 2] = [bytemuck::cast_slice_mut(high), bytemuck::cast_slice_mut(low)];
        for bytes in [&mut *high, &mut *low] {
            bytes[x.len()..].fill(OFFSET as u8);
        }
        for ((high, low), x) in high.iter_mut().zip(low).zip(x) {
            let bits = (x * inverse + ROUND).to_bits();
            *low = bits.wrapping_add(OFFSET as u32) as u8;
            // Rounded: the lower half is signed.
            *high = (bits.wrapping_add(128) >> 8).wrapping_add(OFFSET as u32) as u8;
        }
        largest / TWICE
    }
}

vectorised! {
    /// [`isa::to_int16`](crate::kernels::isa::to_int16) without instructions of its own.
    to_int16_elsewhere(x: &[f32], numbers: &mut [i16]) -> f32 {
        let largest = largest(x, 0.0, f32::abs);
        let inverse = if largest > 0.0 { 32767.0 / largest } else { 0.0 };
        for (number, x) in numbers.iter_mut().zip(x) {
            *number = (x * inverse + ROUND).to_bits() as i16;
        }
        largest / 32767.0
    }
}

vectorised! {
    /// What [`isa::to_int16`](crate::kernels::isa::to_int16) was given, but for its rounding.
    from_int16(numbers: &[i16], scale: f32, x: &mut [f32]) {
        for (x, number) in x.iter_mut().zip(numbers) {
            *x = f32::from(*number) * scale;
        }
    }
}

vectorised! {
    /// The same, added to `sums`.
    add_int16(numbers: &[i16], scale: f32, sums: &mut [f32]) {
        for (sum, number) in sums.iter_mut().zip(numbers) {
            *sum += f32::from(*number) * scale;
        }
    }
}

vectorised! {
    /// Numbers divided by a scale and rounded, plus an offset, which is half of all levels; the sum
    /// of the squares of the errors.
    to_levels(x: &[f32], scale: (f32, i32), integers: &mut [u8; BLOCK]) -> f32 {
        let (scale, offset) = (scale.0, scale.1 as f32);
        let (inverse, most) = (scale.recip(), 2.0 * offset - 1.0);
        let mut errors = [0f32; BLOCK];
        for ((error, integer), x) in errors.iter_mut().zip(integers).zip(x) {
            let shifted = x * inverse + offset;
            let rounded = larger(if shifted < most { shifted } else { most }, 0.0) + ROUND;
            *integer = rounded.to_bits() as u8;
            let difference = (rounded - ROUND - offset) * scale - x;
            *error = difference * difference;
        }
        errors.iter().sum()
    }
}

/// What becomes of a panel of weights of fewer bits in 8 bits.
pub(in crate::kernels) struct WidePanel<'a> {
    /// [groups, LANES], each four of a column's numbers.
    pub(in crate::kernels) words: &'a mut [u32],
    /// What each column's numbers have to be multiplied by, and their sum.
    pub(in crate::kernels) scales: &'a mut [f32],
    pub(in crate::kernels) sums: &'a mut [i32],
}

vectorised! {
    /// A panel of weights of 4 to 6 bits, in blocks, and its scales [blocks, LANES], in f16, in
    /// 8 bits: as many groups as there is room for. The largest number of a column's block with the
    /// largest scale is 127.
    widen(values: (&[u32], High), scales: &[u16], panel: WidePanel<'_>) {
        // Numbers have 7 bits behind the point before they are rounded.
        const BITS: u32 = 7;
        // Exact for all but what is no number: the exponent's offset is 15 in 16 bits, and 127 in
        // 32.
        let scale = |bits: u16| {
            let size = f32::from_bits((u32::from(bits) & 0x7fff) << 13) * 2f32.powi(112);
            f32::from_bits(size.to_bits() | (u32::from(bits) & 0x8000) << 16)
        };
        let (values, high) = values;
        let mask = u16::from(high.mask());
        let mut largest = [0f32; LANES];
        for block in scales.chunks_exact(LANES) {
            for (largest, bits) in largest.iter_mut().zip(block) {
                *largest = larger(scale(*bits).abs(), *largest);
            }
        }
        let mut inverses = [0f32; LANES];
        for ((inverse, step), largest) in inverses.iter_mut().zip(&mut *panel.scales).zip(largest) {
            *step = largest * (high.offset() as f32 / 127.0);
            *inverse = if largest > 0.0 { 127.0 / high.offset() as f32 * (1 << BITS) as f32 / largest } else { 0.0 };
        }
        panel.sums.fill(0);
        let blocks = values.chunks_exact(high.block_bytes() / size_of::<u32>()).zip(scales.chunks_exact(LANES));
        for ((values, scales), words) in blocks.zip(panel.words.chunks_mut(BLOCK / QUAD * LANES)) {
            // Twice in a word, for two numbers at a time.
            let mut factors = [0u32; LANES];
            for ((factor, bits), inverse) in factors.iter_mut().zip(scales).zip(&inverses) {
                let rounded = (scale(*bits) * inverse + ROUND).to_bits() & 0xffff;
                *factor = rounded | rounded << 16;
            }
            let factors: &[i16; 2 * LANES] = bytemuck::cast_ref(&factors);
            let mut offsets = [0i16; 2 * LANES];
            for (offset, factor) in offsets.iter_mut().zip(factors) {
                *offset = (1 << (BITS - 1)) - factor.wrapping_mul(high.offset() as i16);
            }
            let mut sums = [0i16; 2 * LANES];
            let values: &[u16] = bytemuck::cast_slice(values);
            for (group, words) in words.chunks_exact_mut(LANES).enumerate() {
                let half = 4 * (group % 2);
                // What has no high bits takes none of what lies anywhere.
                let (at, shift) = if high == High::NONE { (0, 0) } else { high.place(group) };
                let nibbles = &values[group / 2 * 2 * LANES..][..2 * LANES];
                let beyond = &values[at / size_of::<u16>()..][..2 * LANES];
                let pairs: &mut [u16] = bytemuck::cast_slice_mut(words);
                let all = pairs.iter_mut().zip(nibbles).zip(beyond).zip(factors).zip(&offsets).zip(&mut sums);
                for (((((pair, nibbles), beyond), factor), offset), sum) in all {
                    let number = |nibble: u16, beyond: u16| {
                        let weight = nibble & 0xf | beyond << 4 & mask;
                        (weight as i16).wrapping_mul(*factor).wrapping_add(*offset) >> BITS
                    };
                    let first = number(nibbles >> half, beyond >> shift);
                    let second = number(nibbles >> (8 + half), beyond >> (8 + shift));
                    *pair = first as u16 & 0xff | (second as u16) << 8;
                    *sum = sum.wrapping_add(first).wrapping_add(second);
                }
            }
            for (sum, pair) in panel.sums.iter_mut().zip(sums.chunks_exact(2)) {
                *sum += i32::from(pair[0]) + i32::from(pair[1]);
            }
        }
    }
}

vectorised! {
    /// Takes OFFSET off the numbers in `words`, which [`isa::to_int8`](crate::kernels::isa::to_int8) made; the sums of every BLOCK of
    /// them.
    sign_and_sum(words: &mut [u32], sums: &mut [i32]) {
        for (sum, words) in sums.iter_mut().zip(words.chunks_mut(BLOCK / QUAD)) {
            *sum = signed(words);
        }
    }
}

/// Takes OFFSET off the numbers in `words`; the sum of all.
#[inline(always)]
fn signed(words: &mut [u32]) -> i32 {
    let mut sum = 0;
    for word in words {
        *word ^= 0x8080_8080;
        sum += word.to_le_bytes().iter().map(|&b| i32::from(b as i8)).sum::<i32>();
    }
    sum
}

vectorised! {
    /// Takes OFFSET off the numbers in `words`, which [`isa::to_int8`](crate::kernels::isa::to_int8) made; the sum of all.
    sign(words: &mut [u32]) -> i32 {
        signed(words)
    }
}

vectorised! {
    /// `x` less `mean`, four numbers to a word, in 8 bits; missing ones are 0. What they have to be
    /// multiplied by, and the sum of all.
    centre_to_int8(x: &[f32], mean: &[f32], words: &mut [u32]) -> (f32, i32) {
        let mut reach = [0f32; 2 * LANES];
        for (x, mean) in x.chunks(2 * LANES).zip(mean.chunks(2 * LANES)) {
            for ((reach, x), mean) in reach.iter_mut().zip(x).zip(mean) {
                *reach = larger((x - mean).abs(), *reach);
            }
        }
        let largest = fold(reach, larger);
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
        bytes[x.len()..].fill(0);
        let mut sum = 0;
        for ((byte, x), mean) in bytes.iter_mut().zip(x).zip(mean) {
            let bits = ((x - mean) * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
            *byte = bits as u8;
            sum = bits.wrapping_add(sum as u32) as i32;
        }
        (largest / 127.0, sum)
    }
}

vectorised! {
    /// Adds numbers in 16 bits, with their scale, to `sum`; `least` and `most` become at most, or
    /// at least, as large as them.
    spread_int16(row: (&[i16], f32), sum: &mut [f32], least: &mut [f32], most: &mut [f32]) {
        let (numbers, scale) = row;
        for (((number, sum), least), most) in numbers.iter().zip(sum).zip(least).zip(most) {
            let x = f32::from(*number) * scale;
            *sum += x;
            *least = -larger(-x, -*least);
            *most = larger(x, *most);
        }
    }
}

vectorised! {
    /// Four rows in 16 bits, with their scales, less `mean`, times `inverse`, rounded to 8 bits: a
    /// word for each of their columns, the first row lowest.
    interleave_int8(rows: [(&[i16], f32); QUAD], mean: &[f32], inverse: &[f32], words: &mut [u32]) {
        let [a, b, c, d] = rows;
        let all = words.iter_mut().zip(a.0).zip(b.0).zip(c.0).zip(d.0).zip(mean).zip(inverse);
        for ((((((word, x), y), z), w), mean), inverse) in all {
            let byte = |number: &i16, scale: f32| ((f32::from(*number) * scale - mean) * inverse + ROUND).to_bits() & 0xff;
            *word = byte(x, a.1) | byte(y, b.1) << 8 | byte(z, c.1) << 16 | byte(w, d.1) << 24;
        }
    }
}

/// One number, rounded.
pub(in crate::kernels) fn round_bf16(x: f32) -> bf16 {
    bf16::from_bits(bf16_bits(x) as u16)
}
