//! A component at the picture's size: triangle filters where a side is halved, repetition
//! elsewhere, as libjpeg-turbo chooses.

use super::frame::{Component, Frame};

/// How a component's rows become the picture's.
pub struct Upsampler {
    h: usize,
    v: usize,
    smooth: bool,
    /// One row of weighted sums, and the picture's row.
    sums: Vec<u16>,
    row: Vec<u8>,
}

impl Upsampler {
    pub fn new(frame: &Frame, component: &Component) -> Self {
        let (h, v) = (frame.h / component.sof.h, frame.v / component.sof.v);
        let smooth = match (h, v) {
            (1, 2) => true,
            (2, 1 | 2) => component.width > 2,
            _ => false,
        };
        Self { h, v, smooth, sums: vec![0; component.width], row: vec![0; component.width * h] }
    }

    /// The picture's row `y`, which may be longer than the picture is wide.
    #[inline(always)]
    pub fn row<'a>(&'a mut self, frame: &'a Frame, component: &'a Component, y: usize) -> &'a [u8] {
        let near = frame.row(component, y / self.v);
        // The next row on the other side; the first and the last have none but themselves.
        let far = || frame.row(component, if y.is_multiple_of(2) { (y / 2).saturating_sub(1) } else { y / 2 + 1 });
        match (self.smooth, self.h, self.v) {
            (_, 1, 1) => return near,
            (true, 1, _) => {
                let bias = if y.is_multiple_of(2) { 1 } else { 2 };
                for ((out, &a), &b) in self.row.iter_mut().zip(near).zip(far()) {
                    *out = ((u16::from(a) * 3 + u16::from(b) + bias) >> 2) as u8;
                }
            }
            (true, _, 1) => {
                self.sums.iter_mut().zip(near).for_each(|(sum, &a)| *sum = u16::from(a));
                spread::<2>(&self.sums, &mut self.row, 1, 2);
            }
            (true, ..) => {
                for ((sum, &a), &b) in self.sums.iter_mut().zip(near).zip(far()) {
                    *sum = u16::from(a) * 3 + u16::from(b);
                }
                spread::<4>(&self.sums, &mut self.row, 8, 7);
            }
            (false, h, _) => self.row.chunks_exact_mut(h).zip(near).for_each(|(out, &a)| out.fill(a)),
        }
        &self.row
    }
}

/// Two samples of each sum, a quarter of the neighbour in each; at the ends, the sum is its own
/// neighbour.
#[inline(always)]
fn spread<const SHIFT: u32>(sums: &[u16], row: &mut [u8], left_bias: u16, right_bias: u16) {
    let pair = |left: u16, sum: u16, right: u16| {
        [((sum * 3 + left + left_bias) >> SHIFT) as u8, ((sum * 3 + right + right_bias) >> SHIFT) as u8]
    };
    let pairs = row.as_chunks_mut::<2>().0;
    let last = sums.len() - 1;
    for (((out, &left), &sum), &right) in pairs[1..last].iter_mut().zip(sums).zip(&sums[1..]).zip(&sums[2..]) {
        *out = pair(left, sum, right);
    }
    pairs[0] = pair(sums[0], sums[0], sums[1]);
    pairs[last] = pair(sums[last - 1], sums[last], sums[last]);
}
