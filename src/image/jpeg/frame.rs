//! A frame's components: their sampling, their blocks, and which of their coefficients have come.

use super::{bad, idct};
use crate::error::Result;
use crate::image::check_size;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    Gray,
    Ycc,
    Rgb,
    Cmyk,
    Ycck,
}

/// A frame's header.
pub struct Sof {
    pub width: u32,
    pub height: u32,
    pub progressive: bool,
    pub components: Vec<SofComponent>,
}

#[derive(Clone, Copy)]
pub struct SofComponent {
    pub id: u8,
    pub h: usize,
    pub v: usize,
    pub quant: usize,
}

impl Sof {
    pub fn new(progressive: bool, body: &[u8]) -> Result<Self> {
        let [bits, h1, h0, w1, w0, count, components @ ..] = body else {
            return Err(bad("a frame header that is cut"));
        };
        if *bits != 8 {
            return Err(bad(format!("{bits} bits a channel, 8 accepted")));
        }
        let (height, width) = (u16::from_be_bytes([*h1, *h0]), u16::from_be_bytes([*w1, *w0]));
        if !matches!(count, 1 | 3 | 4) || components.len() != 3 * usize::from(*count) {
            return Err(bad(format!("{count} components, 1, 3 or 4 accepted")));
        }
        let component = |c: &[u8]| {
            let (h, v) = (usize::from(c[1] >> 4), usize::from(c[1] & 15));
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) {
                return Err(bad(format!("sampling {h}x{v}, 1x1 to 4x4 accepted")));
            }
            Ok(SofComponent { id: c[0], h, v, quant: usize::from(c[2]) })
        };
        let components = components.chunks_exact(3).map(component).collect::<Result<_>>()?;
        Ok(Self { width: width.into(), height: height.into(), progressive, components })
    }
}

pub struct Component {
    pub sof: SofComponent,
    /// Samples that belong to the picture.
    pub width: usize,
    pub height: usize,
    /// Blocks side by side in memory, with those that fill up the last MCUs.
    pub block_columns: usize,
    /// The table that stood when the component's first scan began.
    pub quant: Option<[u16; 64]>,
    pub plane: Vec<u8>,
    /// Of a progressive frame.
    pub coefficients: Vec<i16>,
    /// By coefficient: the lowest bit that has come, or none.
    pub come: [Option<u8>; 64],
}

pub struct Frame {
    pub width: usize,
    pub height: usize,
    pub progressive: bool,
    pub components: Vec<Component>,
    pub h: usize,
    pub v: usize,
    pub mcu_columns: usize,
    pub mcu_rows: usize,
}

impl Frame {
    pub fn new(sof: &Sof) -> Result<Self> {
        check_size(sof.width, sof.height)?;
        let (width, height) = (sof.width as usize, sof.height as usize);
        let h = sof.components.iter().map(|c| c.h).max().unwrap_or(1);
        let v = sof.components.iter().map(|c| c.v).max().unwrap_or(1);
        let (mcu_columns, mcu_rows) = (width.div_ceil(8 * h), height.div_ceil(8 * v));
        let progressive = sof.progressive;
        let component = |&sof: &SofComponent| {
            if h % sof.h != 0 || v % sof.v != 0 {
                return Err(bad(format!(
                    "a component of {}x{} samples beside one of {h}x{v}: no whole factor",
                    sof.h, sof.v
                )));
            }
            let (block_columns, block_rows) = (mcu_columns * sof.h, mcu_rows * sof.v);
            let samples = block_columns * block_rows * 64;
            Ok(Component {
                sof,
                width: (width * sof.h).div_ceil(h),
                height: (height * sof.v).div_ceil(v),
                block_columns,

                quant: None,
                plane: if progressive { Vec::new() } else { vec![0; samples] },
                coefficients: if progressive { vec![0; samples] } else { Vec::new() },
                come: [None; 64],
            })
        };
        let components = sof.components.iter().map(component).collect::<Result<_>>()?;
        Ok(Self { width, height, progressive, components, h, v, mcu_columns, mcu_rows })
    }

    /// Whether every bit of every coefficient has come.
    pub fn is_whole(&self) -> bool {
        self.components.iter().all(|c| c.come.iter().all(|&bit| bit == Some(0)))
    }

    /// Makes samples of a progressive frame's coefficients.
    pub fn transform(&mut self) {
        for component in self.components.iter_mut().filter(|_| self.progressive) {
            let coefficients = std::mem::take(&mut component.coefficients);
            component.plane = vec![0; coefficients.len()];
            let Some(quant) = component.quant else { continue };
            let rows = coefficients.as_chunks::<64>().0.chunks_exact(component.block_columns);
            for (y, row) in rows.enumerate() {
                for (x, coefficients) in row.iter().enumerate() {
                    let scaled = std::array::from_fn(|k| i32::from(coefficients[k]).wrapping_mul(quant[k].into()));
                    let (left, top) = (x * 8, y * 8);
                    component.put(left, top, &scaled, coefficients[1..].iter().any(|&c| c != 0));
                }
            }
        }
    }
}

impl Component {
    /// The samples of one block of scaled coefficients, into the plane from `left`, `top` on.
    #[inline(always)]
    pub fn put(&mut self, left: usize, top: usize, coefficients: &[i32; 64], has_ac: bool) {
        let stride = self.block_columns * 8;
        let out = &mut self.plane[top * stride + left..];
        if has_ac { idct::block(coefficients, out, stride) } else { idct::flat(coefficients[0], out, stride) }
    }
}
