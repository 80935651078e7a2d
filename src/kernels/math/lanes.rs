//! Lanes that compilers make registers of.

/// Partial sums and maxima of a reduction: as many as the widest register has lanes.
pub(in crate::kernels) const LANES: usize = 16;

/// Adding it rounds a number of no more than 22 bits to an integer, ties to even, which the low
/// bits of the sum then hold.
pub(in crate::kernels) const ROUND: f32 = 12_582_912.0;

/// The larger one, without what `f32::max` promises for NaN: one instruction.
#[inline(always)]
pub(in crate::kernels) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// All lanes, which are a power of 2, as one, in a few steps of halves.
#[inline(always)]
pub(in crate::kernels) fn fold<const COUNT: usize>(mut lanes: [f32; COUNT], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = COUNT / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(low, high)| *low = of(*low, *high));
        half /= 2;
    }
    lanes[0]
}

/// The largest, at least `least`.
#[inline(always)]
pub(in crate::kernels) fn largest(x: &[f32], least: f32, of: impl Fn(f32) -> f32) -> f32 {
    // A maximum takes a few cycles, in which others can begin.
    let mut largest = [least; 4 * LANES];
    let chunks = x.chunks_exact(4 * LANES);
    for (m, x) in largest.iter_mut().zip(chunks.remainder()) {
        *m = larger(of(*x), *m);
    }
    for chunk in chunks {
        for (m, x) in largest.iter_mut().zip(chunk) {
            *m = larger(of(*x), *m);
        }
    }
    fold(largest, larger)
}

/// a * b + c, rounded once where the processor does so.
#[inline(always)]
pub(in crate::kernels) fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}
