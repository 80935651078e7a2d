//! Weights rounded one after the other, each with what those before it have left.

use super::super::Cpu;
use super::super::block::QUAD;
#[cfg(target_arch = "x86_64")]
use super::super::x86;
use super::{LANES, ROUND, fma, larger};

/// What an input has to do with some directions, in which activations are large: what to take off a
/// weight for the errors of those before it along each, and how far its own error goes along each.
/// See [`Hessian`](super::super::Hessian).
pub(in super::super) type Step<const RANK: usize> = [[f32; RANK]; 2];

/// What weights are rounded to: multiples of a scale for each lane and block of inputs.
pub(in super::super) struct Grid<'a> {
    /// [blocks, LANES]
    pub(in super::super) scales: &'a [f32],
    /// Inputs of a block.
    pub(in super::super) block: usize,
    pub(in super::super) least: f32,
    pub(in super::super) most: f32,
}

/// Rows of weights [LANES, inputs] as whole numbers, multiples of their scales: `words` [groups,
/// LANES] have four of a row's each, the first one lowest, and missing ones are 0. `steps` are the
/// inputs'. The sums of the rows' numbers.
pub(in super::super) fn round_with_feedback<const RANK: usize>(
    rows: &[f32],
    grid: &Grid<'_>,
    steps: &[Step<RANK>],
    words: &mut [u32],
    cpu: Cpu,
) -> [i32; LANES] {
    let inputs = rows.len() / LANES;
    assert!(steps.len() == inputs && words.len() == inputs.div_ceil(QUAD) * LANES);
    assert!(grid.block.is_multiple_of(QUAD) || grid.block >= inputs);
    assert!(grid.scales.len() >= inputs.div_ceil(grid.block) * LANES);
    match cpu {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these sets exist only where the processor has AVX-512 F and DQ.
        Cpu::Avx512F | Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx => unsafe {
            x86::round_with_feedback(rows, grid, steps, words)
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these exist only where the processor has AVX2 and FMA.
        Cpu::Avx2 | Cpu::AvxVnni => unsafe { x86::round_with_feedback_in_halves(rows, grid, steps, words) },
        _ => portably(rows, grid, steps, words),
    }
}

/// The reference of the others.
fn portably<const RANK: usize>(rows: &[f32], grid: &Grid<'_>, steps: &[Step<RANK>], words: &mut [u32]) -> [i32; LANES] {
    let inputs = steps.len();
    let (mut left, mut sums) = ([[0f32; LANES]; RANK], [0; LANES]);
    words.fill(0);
    for (i, [ahead, along]) in steps.iter().enumerate() {
        let scales = &grid.scales[i / grid.block * LANES..][..LANES];
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
    sums
}

/// Says what each step has to look ahead for: what the weights from it on can still make good,
/// where the Hessian is `rest` times the identity plus the steps' own.
pub(in super::super) fn look_ahead<const RANK: usize>(steps: &mut [Step<RANK>], rest: f32) {
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

vectorised! {
    /// The sum of products.
    dot(a: &[f32], b: &[f32]) -> f32 {
        let mut sums = [0f32; 4 * LANES];
        let (a, b) = (a.chunks_exact(4 * LANES), b.chunks_exact(4 * LANES));
        for ((sum, a), b) in sums.iter_mut().zip(a.remainder()).zip(b.remainder()) {
            *sum = a * b;
        }
        for (a, b) in a.zip(b) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum = fma::<FUSED>(*a, *b, *sum);
            }
        }
        super::fold(sums, |a, b| a + b)
    }
}

vectorised! {
    /// `x` times `by`, added to `sums`.
    add_scaled(x: &[f32], by: f32, sums: &mut [f32]) {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = fma::<FUSED>(*x, by, *sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::numbers;
    use super::*;

    /// Words and sums.
    fn rounded(inputs: usize, block: usize, steps: &[Step<8>], cpu: Cpu) -> (Vec<u32>, [i32; LANES]) {
        let mut scales: Vec<f32> = numbers(inputs.div_ceil(block) * LANES, 2).iter().map(|x| x.abs() / 20.0).collect();
        scales[3] = 0.0;
        let grid = Grid { scales: &scales, block, least: -8.0, most: 7.0 };
        let mut words = vec![u32::MAX; inputs.div_ceil(QUAD) * LANES];
        let sums = round_with_feedback(&numbers(LANES * inputs, 1), &grid, steps, &mut words, cpu);
        (words, sums)
    }

    fn number(words: &[u32], input: usize, lane: usize) -> i32 {
        i32::from(words[input / QUAD * LANES + lane].to_le_bytes()[input % QUAD] as i8)
    }

    #[test]
    fn every_kernel_is_the_portable_one() {
        for (inputs, block) in [(1, 1), (3, 4), (16, 16), (33, 32), (70, 70), (576, 32)] {
            for feedback in [0.0, 0.02] {
                let numbers = numbers(inputs * 16, 3);
                let steps: Vec<Step<8>> = numbers
                    .chunks_exact(16)
                    .map(|x| [0, 8].map(|at| std::array::from_fn(|k| feedback * x[at + k])))
                    .collect();
                let portable = rounded(inputs, block, &steps, Cpu::Portable);
                let lanes: [i32; LANES] =
                    std::array::from_fn(|lane| (0..inputs).map(|input| number(&portable.0, input, lane)).sum());
                assert_eq!(lanes, portable.1);
                for cpu in Cpu::available() {
                    let ours = rounded(inputs, block, &steps, cpu);
                    let all = (0..inputs).flat_map(|input| (0..LANES).map(move |lane| (input, lane)));
                    let others = all.filter(|(i, lane)| number(&ours.0, *i, *lane) != number(&portable.0, *i, *lane));
                    // Sums of floats differ by their order, and the nearest number with them, now
                    // and then.
                    let allowed = if feedback == 0.0 { 0 } else { inputs * LANES / 50 };
                    assert!(others.count() <= allowed, "{cpu:?} {inputs} {block} {feedback}");
                }
            }
        }
    }
}
