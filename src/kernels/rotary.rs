//! Rotary position embedding, in place, in the rotate-half form.

use super::team::{self, Split};

/// Rows that one task turns.
const TASK: usize = 16;

/// Turns the first `heads` heads of every row of `stride`; `angles`: cosines and sines, each [rows,
/// head_dim / 2].
pub fn rotate(data: &mut [f32], stride: usize, heads: usize, head_dim: usize, angles: (&[f32], &[f32])) {
    let (half, rows) = (head_dim / 2, data.len() / stride);
    assert!(heads * head_dim <= stride && [angles.0.len(), angles.1.len()] == [rows * half; 2]);
    let data = Split::new(data);
    team::share(rows.div_ceil(TASK), |task| {
        for row in task * TASK..rows.min((task + 1) * TASK) {
            let (cosines, sines) = (&angles.0[row * half..][..half], &angles.1[row * half..][..half]);
            // SAFETY: no other task has this row.
            for head in unsafe { data.part(row * stride, heads * head_dim) }.chunks_exact_mut(head_dim) {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    });
}
