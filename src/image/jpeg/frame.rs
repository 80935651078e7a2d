//! A frame's components: their sampling, their blocks, and which of their coefficients have come.

use super::fault::bad;
use super::idct;
use crate::error::Result;
use crate::image::limits::check_size;

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
            return Err(bad(format!("{bits} bits a channel, 8 accepted; save it with 8")));
        }
        let (height, width) = (u16::from_be_bytes([*h1, *h0]), u16::from_be_bytes([*w1, *w0]));
        if height == 0 {
            return Err(bad("height: 0 pixels; a DNL marker behind the scan may say it, which is not read"));
        }
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

/// The last coefficient that libjpeg-turbo guesses where its bits have not come.
const GUESSED: usize = 9;

pub struct Component {
    pub sof: SofComponent,
    /// Samples that belong to the picture.
    pub width: usize,
    pub height: usize,
    /// Blocks side by side in memory, with those that fill up the last MCUs.
    pub block_columns: usize,
    /// The table that stood when the component's first scan began.
    pub quant: Option<[u16; 64]>,
    /// The samples of one row of MCUs, and before them those of the row above.
    samples: Vec<u8>,
    /// All of them, where the picture does not come in one scan.
    pub coefficients: Vec<i16>,
    /// By coefficient: the lowest bit that has come, or none.
    pub come: [Option<u8>; 64],
}

pub struct Frame {
    pub width: usize,
    pub height: usize,
    pub progressive: bool,
    /// Whether the coefficients are kept until all scans have come; otherwise samples are made of
    /// them at once.
    pub kept: bool,
    pub components: Vec<Component>,
    pub h: usize,
    pub v: usize,
    pub mcu_columns: usize,
    pub mcu_rows: usize,
    /// The row of MCUs whose samples are here.
    mcu_row: usize,
}

impl Frame {
    /// For a first scan of that many components.
    pub fn new(sof: &Sof, scanned: usize) -> Result<Self> {
        check_size(sof.width, sof.height)?;
        let (width, height) = (sof.width as usize, sof.height as usize);
        let mut components = sof.components.clone();
        if let [only] = components.as_mut_slice() {
            // Its blocks come one by one, whatever it says.
            (only.h, only.v) = (1, 1);
        }
        let h = components.iter().map(|c| c.h).max().unwrap_or(1);
        let v = components.iter().map(|c| c.v).max().unwrap_or(1);
        let (mcu_columns, mcu_rows) = (width.div_ceil(8 * h), height.div_ceil(8 * v));
        let kept = sof.progressive || scanned < components.len();
        let component = |sof: SofComponent| {
            if h % sof.h != 0 || v % sof.v != 0 {
                return Err(bad(format!(
                    "a component of {}x{} samples beside one of {h}x{v}: no whole factor",
                    sof.h, sof.v
                )));
            }
            let block_columns = mcu_columns * sof.h;
            Ok(Component {
                sof,
                width: (width * sof.h).div_ceil(h),
                height: (height * sof.v).div_ceil(v),
                block_columns,
                quant: None,
                samples: vec![0; 2 * block_columns * sof.v * 64],
                coefficients: if kept { vec![0; block_columns * mcu_rows * sof.v * 64] } else { Vec::new() },
                come: [None; 64],
            })
        };
        let components = components.into_iter().map(component).collect::<Result<_>>()?;
        let progressive = sof.progressive;
        Ok(Self { width, height, progressive, kept, components, h, v, mcu_columns, mcu_rows, mcu_row: 0 })
    }

    /// Whether every bit of every coefficient has come.
    pub fn is_whole(&self) -> bool {
        self.components.iter().all(|c| c.come.iter().all(|&bit| bit == Some(0)))
    }

    /// An error where a file ends without coefficients that libjpeg would guess from the blocks
    /// around, or without a component. The finer ones of a progressive file may be left out: it is
    /// less sharp, as it was saved.
    pub fn check_left_out(&self) -> Result<()> {
        for component in &self.components {
            let needed = if self.progressive { &component.come[..=GUESSED] } else { &component.come[..] };
            if let Some(k) = needed.iter().position(|&bit| bit != Some(0)) {
                let id = component.sof.id;
                return Err(bad(format!(
                    "its scans leave out bits of coefficient {k} of component {id}; save it whole"
                )));
            }
        }
        Ok(())
    }

    /// Goes to a row of MCUs, the next one or the first: [`Component::put`] is for its samples.
    pub fn go_to(&mut self, mcu_row: usize) {
        self.mcu_row = mcu_row;
        for component in &mut self.components {
            let half = component.samples.len() / 2;
            component.samples.copy_within(half.., 0);
        }
    }

    /// Rows of the picture, from the first one on, whose samples and their neighbours' below have
    /// come.
    pub fn rows_ready(&self) -> usize {
        if self.mcu_row + 1 == self.mcu_rows { self.height } else { (self.mcu_row + 1) * self.v * 8 - 1 }
    }

    /// Makes samples of the coefficients that were kept.
    pub fn transform(&mut self) {
        for component in &mut self.components {
            let Some(quant) = component.quant else { continue };
            for y in 0..component.sof.v {
                for x in 0..component.block_columns {
                    let kept = *component.kept(x, self.mcu_row * component.sof.v + y);
                    let mut scaled = [0; 64];
                    for ((scaled, kept), quant) in scaled.iter_mut().zip(kept).zip(quant) {
                        *scaled = i32::from(kept).wrapping_mul(quant.into());
                    }
                    let has_ac = kept[1..].iter().any(|&c| c != 0);
                    component.put(x, y, &scaled, has_ac);
                }
            }
        }
    }

    /// Row `y` of a component, as far as it is here.
    #[inline(always)]
    pub fn row<'a>(&self, component: &'a Component, y: usize) -> &'a [u8] {
        let here = y.min(component.height - 1) + component.sof.v * 8 - self.mcu_row * component.sof.v * 8;
        &component.samples[here * component.block_columns * 8..][..component.width]
    }
}

impl Component {
    /// A block of coefficients, by its column and row.
    #[inline(always)]
    pub fn kept(&mut self, x: usize, y: usize) -> &mut [i16; 64] {
        &mut self.coefficients.as_chunks_mut().0[y * self.block_columns + x]
    }

    /// The samples of a block of scaled coefficients, by its column and its row in the row of MCUs.
    #[inline(always)]
    pub fn put(&mut self, x: usize, y: usize, coefficients: &[i32; 64], has_ac: bool) {
        let stride = self.block_columns * 8;
        let out = &mut self.samples[(self.sof.v + y) * 8 * stride + x * 8..];
        if has_ac { idct::block(coefficients, out, stride) } else { idct::flat(coefficients[0], out, stride) }
    }
}
