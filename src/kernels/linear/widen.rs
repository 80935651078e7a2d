//! Weights of 4 to 6 bits as 8-bit ones, for a moment, where many rows are multiplied by them: taking
//! them apart and scaling every block for each row anew takes nearly as long as the products.
//!
//! An output's blocks get one scale, with which the largest number of the block with the largest
//! scale is 127: what that rounds off is a sixteenth of what the 4 bits did there.

use half::f16;

use crate::kernels::aligned::Aligned;
use crate::kernels::cpu::Cpu;
use crate::kernels::layout::{BLOCK, High, LANES, OFFSET, QUAD};
use crate::kernels::math;
use crate::kernels::product::Panels;
use crate::kernels::scratch::grow;

/// Groups of a block of weights.
const GROUPS: usize = BLOCK / QUAD;

/// A block of panels; the memory is used again and again.
#[derive(Default)]
pub(super) struct Widened {
    words: Aligned<u32>,
    scales: Vec<f32>,
    corrections: Vec<i32>,
}

impl Widened {
    /// Panels of int4, whose inputs are `groups`, in int8.
    pub(super) fn set(&mut self, (values, high): (&[u8], High), scales: &[f16], groups: usize, cpu: Cpu) -> Panels<'_> {
        let blocks = groups.div_ceil(GROUPS);
        let panels = scales.len() / (blocks * LANES);
        let Self { words, scales: steps, corrections } = self;
        let (words, steps) = (words.grow(panels * groups * LANES), grow(steps, panels * LANES));
        let corrections = grow(corrections, panels * LANES);
        let all = values.chunks_exact(blocks * high.block_bytes()).zip(scales.chunks_exact(blocks * LANES));
        let widened = words.chunks_exact_mut(groups * LANES).zip(steps.chunks_exact_mut(LANES));
        for (((values, scales), (words, scales_of)), sums) in all.zip(widened).zip(corrections.chunks_exact_mut(LANES))
        {
            let panel = math::WidePanel { words, scales: scales_of, sums };
            math::widen((bytemuck::cast_slice(values), high), bytemuck::cast_slice(scales), panel, cpu);
        }
        corrections.iter_mut().for_each(|sum| *sum *= OFFSET);
        Panels::Int8 { values: bytemuck::cast_slice(words), scales: steps, corrections: Some(corrections) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pack::{Matrix, Weights};
    use super::*;
    use crate::kernels::math::tests::numbers;
    use crate::kernels::precision::Precision;

    #[test]
    fn weights_are_off_by_half_a_step_of_8_bits() {
        let all = [Precision::Int4, Precision::Int5, Precision::Int6];
        let shapes = [(1, 4), (17, 33), (64, 96), (5, 257)];
        for ((outputs, inputs), precision) in shapes.into_iter().flat_map(|shape| all.map(|bits| (shape, bits))) {
            let w = numbers(outputs * inputs, 9);
            // Blocks of all sizes: a row's largest scale is not that of most.
            let read = |output: usize, row: &mut [f32]| {
                for (i, x) in row.iter_mut().enumerate() {
                    *x = w[output * inputs + i] * 0.3f32.powi((i / BLOCK % 5) as i32);
                }
            };
            let packed = Matrix { outputs, inputs, read, hessian: None, cpu: Cpu::Portable }.pack(precision);
            let Weights::Int4 { values, high, scales } = &packed else { unreachable!() };
            let (groups, blocks) = (inputs.div_ceil(QUAD), inputs.div_ceil(BLOCK));
            for cpu in Cpu::available() {
                let mut widened = Widened::default();
                let Panels::Int8 { values: ours, scales: steps, corrections } =
                    widened.set((values, *high), scales, groups, cpu)
                else {
                    unreachable!()
                };
                for (output, input) in (0..outputs).flat_map(|output| (0..inputs).map(move |input| (output, input))) {
                    let (panel, lane, group) = (output / LANES, output % LANES, input / QUAD);
                    let block = panel * blocks + input / BLOCK;
                    let bytes = &values[block * high.block_bytes()..][..high.block_bytes()];
                    let weight = high.weight(bytes, group % GROUPS, lane * QUAD + input % QUAD);
                    let exact = (i32::from(weight) - high.offset()) as f32 * scales[block * LANES + lane].to_f32();
                    let ours = ours[((panel * groups + group) * LANES + lane) * QUAD + input % QUAD];
                    let difference = (f32::from(ours) * steps[output] - exact).abs();
                    // Factors have 7 bits behind the point.
                    assert!(
                        difference <= steps[output] * (0.501 + high.offset() as f32 * 0.5 / 128.0),
                        "{cpu:?} {output} {input}"
                    );
                }
                let column = |output: usize| -> i32 {
                    let panel = &ours[output / LANES * groups * LANES * QUAD..][..groups * LANES * QUAD];
                    panel.chunks_exact(QUAD).skip(output % LANES).step_by(LANES).flatten().map(|&w| i32::from(w)).sum()
                };
                assert!((0..outputs).all(|output| corrections.unwrap()[output] == OFFSET * column(output)), "{cpu:?}");
            }
        }
    }
}
