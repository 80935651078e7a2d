//! Weights rounded one after the other, each with what those before it have left.

#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::kernels::cpu::Cpu;
use crate::kernels::layout::{Grid, QUAD};
use crate::kernels::math::lanes::{LANES, ROUND, larger};

/// What an input has to do with some directions, in which activations are large: what to take off a
/// weight for the errors of those before it along each, and how far its own error goes along each.
/// See [`Hessian`](crate::kernels::Hessian).
pub(in crate::kernels) type Step<const RANK: usize> = [[f32; RANK]; 2];

/// Rows of weights [panels * LANES, inputs] as whole numbers, multiples of their scales [panels,
/// blocks, LANES]. `words` [panels, groups, LANES] have four of a row's each, the first one lowest,
/// and missing ones are 0; `sums` [panels * LANES] are the rows'. `steps` are the inputs'.
pub(in crate::kernels) fn round_with_feedback<const RANK: usize>(
    rows: &[f32],
    grid: &Grid<'_>,
    steps: &[Step<RANK>],
    (words, sums): (&mut [u32], &mut [i32]),
    cpu: Cpu,
) {
    let (inputs, panels) = (steps.len(), sums.len() / LANES);
    assert!(sums.len() == panels * LANES && rows.len() == sums.len() * inputs);
    assert!(words.len() == sums.len() * inputs.div_ceil(QUAD));
    assert!(grid.block.is_multiple_of(QUAD) || grid.block >= inputs);
    assert!(grid.scales.len() == sums.len() * inputs.div_ceil(grid.block));
    match cpu {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these sets exist only where the processor has AVX-512 F and DQ.
        Cpu::Avx512F | Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx => unsafe {
            x86::round_with_feedback(rows, grid, steps, words, sums)
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these exist only where the processor has AVX2 and FMA.
        Cpu::Avx2 | Cpu::AvxVnni => unsafe { x86::round_with_feedback_in_halves(rows, grid, steps, words, sums) },
        _ => portably(rows, grid, steps, words, sums),
    }
}

/// The reference of the others.
fn portably<const RANK: usize>(
    rows: &[f32],
    grid: &Grid<'_>,
    steps: &[Step<RANK>],
    words: &mut [u32],
    sums: &mut [i32],
) {
    let inputs = steps.len();
    words.fill(0);
    let words = words.chunks_exact_mut(inputs.div_ceil(QUAD) * LANES);
    let scales = grid.scales.chunks_exact(inputs.div_ceil(grid.block) * LANES);
    let of_panels = rows.chunks_exact(LANES * inputs).zip(words).zip(scales);
    for (((rows, words), scales), sums) in of_panels.zip(sums.as_chunks_mut::<LANES>().0) {
        let mut left = [[0f32; LANES]; RANK];
        sums.fill(0);
        for (i, [ahead, along]) in steps.iter().enumerate() {
            let scales = &scales[i / grid.block * LANES..][..LANES];
            let words = &mut words[i / QUAD * LANES..][..LANES];
            let mut errors = [0f32; LANES];
            for lane in 0..LANES {
                let (weight, scale) = (rows[lane * inputs + i], scales[lane]);
                let inverse = if scale == 0.0 { 0.0 } else { scale.recip() };
                let taken_off: f32 = left.iter().zip(ahead).map(|(left, ahead)| ahead * left[lane]).sum();
                let scaled = larger((weight - taken_off) * inverse, grid.least);
                let rounded = (if scaled < grid.most { scaled } else { grid.most }) + ROUND;
                let number = rounded.to_bits().wrapping_sub(ROUND.to_bits());
                words[lane] |= (number & 0xff) << (8 * (i % QUAD));
                sums[lane] = number.wrapping_add(sums[lane] as u32) as i32;
                errors[lane] = (rounded - ROUND) * scale - weight;
            }
            for (left, along) in left.iter_mut().zip(along) {
                left.iter_mut().zip(&errors).for_each(|(left, error)| *left += along * error);
            }
        }
    }
}

/// Says what each step has to look ahead for: what the weights from it on can still make good,
/// where the Hessian is `rest` times the identity plus the steps' own.
pub(in crate::kernels) fn look_ahead<const RANK: usize>(steps: &mut [Step<RANK>], rest: f32) {
    // The inverse of `rest` times the identity plus what the steps from here on have.
    let mut inverse = [[0f32; RANK]; RANK];
    (0..RANK).for_each(|k| inverse[k][k] = rest.recip());
    for [ahead, along] in steps.iter_mut().rev() {
        // Sherman and Morrison.
        let mut times = [0f32; RANK];
        for (row, along) in inverse.iter().zip(&*along) {
            times.iter_mut().zip(row).for_each(|(times, x)| *times += along * x);
        }
        let length: f32 = times.iter().zip(&*along).map(|(a, b)| a * b).sum();
        let share = (1.0 + length).recip();
        for (row, a) in inverse.iter_mut().zip(times) {
            row.iter_mut().zip(&times).for_each(|(x, b)| *x -= a * share * b);
        }
        *ahead = times.map(|x| x * share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::math::tests::numbers;

    /// Words and sums of some panels.
    fn rounded((panels, inputs, block): (usize, usize, usize), steps: &[Step<8>], cpu: Cpu) -> (Vec<u32>, Vec<i32>) {
        let lanes = panels * LANES;
        let mut scales: Vec<f32> = numbers(inputs.div_ceil(block) * lanes, 2).iter().map(|x| x.abs() / 20.0).collect();
        scales[3] = 0.0;
        let grid = Grid { scales: &scales, block, least: -8.0, most: 7.0 };
        let mut words = vec![u32::MAX; inputs.div_ceil(QUAD) * lanes];
        let mut sums = vec![7; lanes];
        round_with_feedback(&numbers(lanes * inputs, 1), &grid, steps, (&mut words, &mut sums), cpu);
        (words, sums)
    }

    /// Of all panels, inputs and lanes.
    fn all(words: &[u32], (panels, inputs, _): (usize, usize, usize)) -> Vec<i32> {
        let panel = inputs.div_ceil(QUAD) * LANES;
        let at =
            |p: usize| (0..inputs).flat_map(move |i| (0..LANES).map(move |lane| number(&words[p * panel..], i, lane)));
        (0..panels).flat_map(at).collect()
    }

    fn number(words: &[u32], input: usize, lane: usize) -> i32 {
        i32::from(words[input / QUAD * LANES + lane].to_le_bytes()[input % QUAD] as i8)
    }

    #[test]
    fn every_kernel_is_the_portable_one() {
        for shape in [(1, 1, 1), (2, 3, 4), (1, 16, 16), (3, 33, 32), (2, 70, 70), (1, 576, 32), (2, 576, 576)] {
            let (_, inputs, _) = shape;
            for feedback in [0.0, 0.02] {
                let numbers = numbers(inputs * 16, 3);
                let steps: Vec<Step<8>> = numbers
                    .chunks_exact(16)
                    .map(|x| [0, 8].map(|at| std::array::from_fn(|k| feedback * x[at + k])))
                    .collect();
                let portable = rounded(shape, &steps, Cpu::Portable);
                let expected = all(&portable.0, shape);
                for (panel, sums) in expected.chunks(inputs * LANES).zip(portable.1.chunks(LANES)) {
                    for (lane, sum) in sums.iter().enumerate() {
                        assert_eq!(panel.iter().skip(lane).step_by(LANES).sum::<i32>(), *sum);
                    }
                }
                for cpu in Cpu::available() {
                    let ours = rounded(shape, &steps, cpu);
                    let others = all(&ours.0, shape).iter().zip(&expected).filter(|(a, b)| a != b).count();
                    // Sums of floats differ by their order, and the nearest number with them, now
                    // and then.
                    let allowed = if feedback == 0.0 { 0 } else { expected.len() / 50 };
                    assert!(others <= allowed, "{cpu:?} {shape:?} {feedback}: {others}");
                }
            }
        }
    }
}
