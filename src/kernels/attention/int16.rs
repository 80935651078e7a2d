//! Keys and values in 16 bits, on their way from the product that makes them to attention: half of
//! what they are in f32, so that more of them stays near.

use super::stored::Heads;
use crate::kernels::cpu::Cpu;
use crate::kernels::isa;
use crate::kernels::scratch::grow;
use crate::kernels::team::Split;

/// Keys and values of one layer in 16 bits, which come from tasks that have some positions each:
/// what 8 bits of all are made of.
pub struct Int16KeysValues {
    heads: usize,
    head_dim: usize,
    len: usize,
    keys: Int16,
    values: Int16,
    cpu: Cpu,
}

/// Longer than it is used, maybe.
#[derive(Default)]
struct Int16 {
    /// [heads, positions, head_dim]
    numbers: Vec<i16>,
    /// [heads, positions]
    scales: Vec<f32>,
}

/// A head's keys, or values.
#[derive(Clone, Copy)]
pub(super) struct Int16Rows<'a> {
    /// [positions, head_dim]
    pub(super) numbers: &'a [i16],
    /// [positions]
    pub(super) scales: &'a [f32],
}

impl<'a> Int16Rows<'a> {
    pub(super) fn count(self) -> usize {
        self.scales.len()
    }

    /// A position's numbers, and what they have to be multiplied by.
    pub(super) fn row(self, position: usize) -> (&'a [i16], f32) {
        let head_dim = self.numbers.len() / self.count();
        (&self.numbers[position * head_dim..][..head_dim], self.scales[position])
    }
}

impl Int16KeysValues {
    /// None yet, of `heads` times `head_dim`.
    pub fn new(heads: usize, head_dim: usize, cpu: Cpu) -> Self {
        assert!(heads > 0 && head_dim > 0);
        Self { heads, head_dim, len: 0, keys: Int16::default(), values: Int16::default(), cpu }
    }

    /// Room for `count` positions, and no others; all have to be put there before anyone looks at
    /// them.
    pub fn room(&mut self, count: usize) -> Int16Room<'_> {
        self.len = count;
        let Self { heads, head_dim, cpu, .. } = *self;
        let [keys, values] = [&mut self.keys, &mut self.values].map(|Int16 { numbers, scales }| {
            let numbers = grow(numbers, heads * count * head_dim);
            (Split::new(numbers), Split::new(grow(scales, heads * count)))
        });
        Int16Room { heads, head_dim, count, keys, values, cpu }
    }

    pub(super) fn keys(&self, head: usize) -> Int16Rows<'_> {
        self.rows(&self.keys, head)
    }

    pub(super) fn values(&self, head: usize) -> Int16Rows<'_> {
        self.rows(&self.values, head)
    }

    fn rows<'a>(&self, of: &'a Int16, head: usize) -> Int16Rows<'a> {
        let numbers = self.len * self.head_dim;
        Int16Rows {
            numbers: &of.numbers[head * numbers..][..numbers],
            scales: &of.scales[head * self.len..][..self.len],
        }
    }

    /// Positions.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many heads, and head_dim.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.heads, self.head_dim)
    }
}

/// Room for keys and values in 16 bits.
pub struct Int16Room<'a> {
    heads: usize,
    head_dim: usize,
    count: usize,
    keys: (Split<'a, i16>, Split<'a, f32>),
    values: (Split<'a, i16>, Split<'a, f32>),
    cpu: Cpu,
}

impl Int16Room<'_> {
    /// Puts the rows of `keys` and `values` from position `at` on; on this thread.
    ///
    /// # Safety
    /// No other thread puts one of these positions.
    pub unsafe fn put(&self, at: usize, keys: Heads<'_>, values: Heads<'_>) {
        let Self { heads, head_dim, count, cpu, .. } = *self;
        for (all, (numbers, scales)) in [(keys, &self.keys), (values, &self.values)] {
            assert_eq!((all.rows, all.heads, all.head_dim), (keys.rows, heads, head_dim));
            assert!(at <= count && all.rows <= count - at);
            // Rows lie together as the product left them.
            for (row, head) in (0..all.rows).flat_map(|row| (0..heads).map(move |head| (row, head))) {
                let place = head * count + at + row;
                // SAFETY: this position's and head's, which are the caller's.
                let (numbers, scale) = unsafe { (numbers.part(place * head_dim, head_dim), scales.part(place, 1)) };
                scale[0] = isa::to_int16(all.row(row, head), numbers, cpu);
            }
        }
    }
}
