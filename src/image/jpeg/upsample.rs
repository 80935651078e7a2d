//! A component at the picture's size: triangle filters where a side is halved, repetition elsewhere, as libjpeg-turbo chooses.

use super::frame::{Component, Frame};

/// How a component's rows become the picture's.
pub struct Upsampler<'a> {
    component: &'a Component,
    h: usize,
    v: usize,
    smooth: bool,
    /// One row of weighted sums, and the picture's row.
    sums: Vec<i32>,
    row: Vec<u8>,
}

impl<'a> Upsampler<'a> {
    pub fn new(frame: &Frame, component: &'a Component) -> Self {
        let (h, v) = (frame.h / component.sof.h, frame.v / component.sof.v);
        let smooth = match (h, v) {
            (1, 2) => true,
            (2, 1 | 2) => component.width > 2,
            _ => false,
        };
        Self { component, h, v, smooth, sums: vec![0; component.width], row: vec![0; component.width * h] }
    }

    fn source(&self, y: usize) -> &'a [u8] {
        let start = y.min(self.component.height - 1) * self.component.block_columns * 8;
        &self.component.plane[start..start + self.component.width]
    }

    /// The picture's row `y`, which may be longer than the picture is wide.
    pub fn row(&mut self, y: usize) -> &[u8] {
        let near = self.source(y / self.v);
        match (self.smooth, self.h, self.v) {
            (_, 1, 1) => return near,
            (true, 1, _) => {
                let far = self.far(y);
                let bias = if y % 2 == 0 { 1 } else { 2 };
                for ((out, &a), &b) in self.row.iter_mut().zip(near).zip(far) {
                    *out = ((i32::from(a) * 3 + i32::from(b) + bias) >> 2) as u8;
                }
            }
            (true, _, 1) => {
                self.sums.iter_mut().zip(near).for_each(|(sum, &a)| *sum = i32::from(a));
                self.spread(1, 2, 2);
            }
            (true, ..) => {
                let far = self.far(y);
                for ((sum, &a), &b) in self.sums.iter_mut().zip(near).zip(far) {
                    *sum = i32::from(a) * 3 + i32::from(b);
                }
                self.spread(8, 7, 4);
            }
            (false, h, _) => self.row.chunks_exact_mut(h).zip(near).for_each(|(out, &a)| out.fill(a)),
        }
        &self.row
    }

    /// The next row on the other side; the first and the last have none but themselves.
    fn far(&self, y: usize) -> &'a [u8] {
        self.source(if y % 2 == 0 { (y / 2).saturating_sub(1) } else { y / 2 + 1 })
    }

    /// Two samples of each sum, a quarter of the neighbour in each.
    fn spread(&mut self, left_bias: i32, right_bias: i32, shift: u32) {
        let last = self.sums.len() - 1;
        for (x, out) in self.row.chunks_exact_mut(2).enumerate() {
            let sum = self.sums[x];
            let left = if x == 0 { sum } else { self.sums[x - 1] };
            let right = if x == last { sum } else { self.sums[x + 1] };
            out[0] = ((sum * 3 + left + left_bias) >> shift) as u8;
            out[1] = ((sum * 3 + right + right_bias) >> shift) as u8;
        }
    }
}
