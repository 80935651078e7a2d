//! One block's coefficients out of the bits: sequential, and the four kinds of progressive scan.

use super::bits::Bits;
use super::huffman::Table;
use super::markers::ZIGZAG;
use crate::error::Result;

/// The coefficients of a scan, and the bits of them that it brings.
pub struct Band {
    pub first: usize,
    pub last: usize,
    pub high: u8,
    pub low: u8,
}

fn at(k: usize) -> usize {
    usize::from(ZIGZAG[k & 63])
}

#[inline(always)]
fn dc_difference(bits: &mut Bits<'_>, table: &Table) -> Result<i32> {
    bits.refill();
    match bits.symbol_and_value(table)? {
        (0..=15, value) => Ok(value),
        _ => Err(bits.damaged()),
    }
}

/// Gives `put` a block's coefficients that are not zero, by their positions. Whether there are
/// others than the first.
#[inline(always)]
pub fn sequential(
    bits: &mut Bits<'_>,
    (dc, ac): (&Table, &Table),
    predicted: &mut i32,
    mut put: impl FnMut(usize, i16),
) -> Result<bool> {
    *predicted = predicted.wrapping_add(dc_difference(bits, dc)?);
    put(0, *predicted as i16);
    let mut k = 1;
    while k < 64 {
        bits.refill();
        let (symbol, value) = bits.symbol_and_value(ac)?;
        if symbol & 15 == 0 {
            if symbol != 0xf0 {
                break;
            }
            k += 16;
            continue;
        }
        k += usize::from(symbol >> 4);
        if k > 63 {
            return Err(bits.damaged());
        }
        put(at(k), value as i16);
        k += 1;
    }
    bits.check()?;
    Ok(k > 1)
}

/// What a progressive scan carries from block to block.
#[derive(Default)]
pub struct Progressive {
    /// Blocks from here on that bring no new coefficients.
    empty: u32,
}

impl Progressive {
    pub fn decode(
        &mut self,
        bits: &mut Bits<'_>,
        block: &mut [i16; 64],
        dc: Option<&Table>,
        ac: Option<&Table>,
        predicted: &mut i32,
        band: &Band,
    ) -> Result<()> {
        match (band.first, band.high, dc, ac) {
            (0, 0, Some(dc), _) => {
                *predicted = predicted.wrapping_add(dc_difference(bits, dc)?);
                block[0] = predicted.wrapping_shl(band.low.into()) as i16;
                Ok(())
            }
            (0, ..) => {
                if bits.bit() {
                    block[0] |= 1 << band.low;
                }
                Ok(())
            }
            (_, 0, _, Some(ac)) => self.first(bits, block, ac, band),
            (.., Some(ac)) => self.refine(bits, block, ac, band),
            _ => Err(bits.damaged()),
        }?;
        bits.check()
    }

    fn first(&mut self, bits: &mut Bits<'_>, block: &mut [i16; 64], ac: &Table, band: &Band) -> Result<()> {
        if self.empty > 0 {
            self.empty -= 1;
            return Ok(());
        }
        let mut k = band.first;
        while k <= band.last {
            bits.refill();
            let (symbol, value) = bits.symbol_and_value(ac)?;
            let run = usize::from(symbol >> 4);
            if symbol & 15 == 0 {
                if run < 15 {
                    self.empty = (1 << run) - 1 + bits.take(run as u32) as u32;
                    return Ok(());
                }
                k += 16;
                continue;
            }
            k += run;
            if k > 63 {
                return Err(bits.damaged());
            }
            block[at(k)] = value.wrapping_shl(band.low.into()) as i16;
            k += 1;
        }
        Ok(())
    }

    fn refine(&mut self, bits: &mut Bits<'_>, block: &mut [i16; 64], ac: &Table, band: &Band) -> Result<()> {
        let bit = 1i16 << band.low;
        let mut k = band.first;
        if self.empty == 0 {
            while k <= band.last {
                bits.refill();
                let symbol = bits.symbol(ac)?;
                let (mut run, size) = (u32::from(symbol >> 4), symbol & 15);
                let value = match size {
                    0 if run < 15 => {
                        self.empty = (1 << run) + bits.take(run) as u32;
                        break;
                    }
                    0 => 0,
                    1 if bits.bit() => bit,
                    1 => -bit,
                    _ => return Err(bits.damaged()),
                };
                // Past `run` coefficients that are still zero; the others on the way get their next
                // bit.
                while k <= band.last {
                    let coefficient = &mut block[at(k)];
                    if *coefficient != 0 {
                        correct(bits, coefficient, bit);
                    } else if run == 0 {
                        *coefficient = value;
                        k += 1;
                        break;
                    } else {
                        run -= 1;
                    }
                    k += 1;
                }
            }
        }
        if self.empty > 0 {
            for k in k..=band.last {
                let coefficient = &mut block[at(k)];
                if *coefficient != 0 {
                    correct(bits, coefficient, bit);
                }
            }
            self.empty -= 1;
        }
        Ok(())
    }
}

fn correct(bits: &mut Bits<'_>, coefficient: &mut i16, bit: i16) {
    if bits.bit() && *coefficient & bit == 0 {
        *coefficient = coefficient.wrapping_add(if *coefficient < 0 { -bit } else { bit });
    }
}
