//! The reference of every product.

use half::{bf16, f16};

use crate::kernels::layout::{BLOCK, High, LANES, PAIR, QUAD};
use crate::kernels::math;
use crate::kernels::product::{Block, Out};

/// The reference of every bf16 kernel.
pub(super) fn bf16(block: &Block<'_>, values: &[bf16], out: &mut Out<'_>) {
    for row in 0..block.row_count {
        for panel in 0..block.panel_count {
            let mut sums = [0f32; LANES];
            for (group, &word) in block.rows.row(block.first_row + row).iter().enumerate() {
                let (low, high) = (math::low_half(word), math::high_half(word));
                let vector = &values[block.strides.at(panel, group) * LANES * PAIR..][..LANES * PAIR];
                for (sum, pair) in sums.iter_mut().zip(vector.chunks_exact(PAIR)) {
                    *sum += pair[0].to_f32() * low + pair[1].to_f32() * high;
                }
            }
            // SAFETY: both counts are the block's.
            unsafe { out.store(row, panel, &sums) };
        }
    }
}

/// The reference of every int8 kernel.
pub(super) fn int8(block: &Block<'_>, values: &[i8], scales: &[f32], corrections: Option<&[i32]>, out: &mut Out<'_>) {
    for row in 0..block.row_count {
        let row_scale = block.rows.scales[block.first_row + row];
        for panel in 0..block.panel_count {
            let mut sums = [0i32; LANES];
            for (group, &word) in block.rows.row(block.first_row + row).iter().enumerate() {
                let vector = &values[block.strides.at(panel, group) * LANES * QUAD..][..LANES * QUAD];
                for (sum, quad) in sums.iter_mut().zip(vector.chunks_exact(QUAD)) {
                    let products = quad.iter().zip(word.to_le_bytes()).map(|(&w, a)| i32::from(w) * i32::from(a));
                    *sum += products.sum::<i32>();
                }
            }
            let at = panel * LANES;
            let correction = |i| corrections.map_or(0, |corrections| corrections[at + i]);
            let result = |i| (sums[i] - correction(i)) as f32 * (row_scale * scales[at + i]);
            // SAFETY: both counts are the block's.
            unsafe { out.store(row, panel, &std::array::from_fn(result)) };
        }
    }
}

/// The reference of every int4 kernel.
pub(super) fn int4(block: &Block<'_>, (values, high): (&[u8], High), scales: &[f16], out: &mut Out<'_>) {
    let blocks = block.rows.blocks();
    for row in 0..block.row_count {
        let (words, sums) = block.rows.int4_row(block.first_row + row);
        for panel in 0..block.panel_count {
            let mut results = [0f32; LANES];
            for (number, words) in words.chunks(BLOCK / QUAD).enumerate() {
                let at = panel * blocks + number;
                let values = &values[at * high.block_bytes()..][..high.block_bytes()];
                let scales = &scales[at * LANES..][..LANES];
                for (lane, (result, scale)) in results.iter_mut().zip(scales).enumerate() {
                    let mut sum = -high.offset() * sums[number];
                    for (group, word) in words.iter().enumerate() {
                        for (i, activation) in word.to_le_bytes().into_iter().enumerate() {
                            let weight = high.weight(values, group, lane * QUAD + i);
                            sum += i32::from(weight) * i32::from(activation as i8);
                        }
                    }
                    *result += sum as f32 * scale.to_f32();
                }
            }
            let row_scale = block.rows.scales[block.first_row + row];
            results.iter_mut().for_each(|x| *x *= row_scale);
            // SAFETY: both counts are the block's.
            unsafe { out.store(row, panel, &results) };
        }
    }
}
