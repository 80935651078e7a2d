//! Rotary position embedding, in place, in the rotate-half form.

use rayon::prelude::*;

/// Turns the first `heads` heads of every row of `stride`; `angles`: cosines and sines, each [rows, head_dim / 2].
pub fn rotate(data: &mut [f32], stride: usize, heads: usize, head_dim: usize, angles: (&[f32], &[f32])) {
    let half = head_dim / 2;
    assert!(
        heads * head_dim <= stride && angles.0.len() == data.len() / stride * half && angles.1.len() == angles.0.len()
    );
    let rows =
        data.par_chunks_exact_mut(stride).zip(angles.0.par_chunks_exact(half)).zip(angles.1.par_chunks_exact(half));
    rows.for_each(|((row, cosines), sines)| {
        for head in row[..heads * head_dim].chunks_exact_mut(head_dim) {
            let (first, second) = head.split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    });
}
