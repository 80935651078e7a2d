//! One scan: its blocks in their order, its restarts, and what it adds to the frame.

use super::bits::Bits;
use super::blocks::{Band, Progressive, sequential};
use super::fault::bad;
use super::frame::{Frame, SofComponent};
use super::huffman::{Table, standard};
use super::markers::Tables;
use crate::error::Result;

/// One component of the scan.
struct Part {
    component: usize,
    dc: usize,
    ac: usize,
    /// Its blocks in an MCU.
    h: usize,
    v: usize,
}

pub struct Scan<'a> {
    data: &'a [u8],
    at: usize,
    parts: Vec<Part>,
    band: Band,
}

impl<'a> Scan<'a> {
    /// A scan whose bits begin at `at`.
    pub fn new(data: &'a [u8], at: usize, header: &[u8], frame: &Frame) -> Result<Self> {
        let (parts, band) = parse(header, frame)?;
        Ok(Self { data, at, parts, band })
    }

    /// Decodes it, and calls `ready` behind each row of MCUs whose samples have been made. Gives
    /// where it ends.
    pub fn decode(self, tables: &mut Tables, frame: &mut Frame, mut ready: impl FnMut(&Frame)) -> Result<usize> {
        let Self { parts, band, .. } = &self;
        for part in parts {
            let component = &mut frame.components[part.component];
            if component.quant.is_none() {
                let table = tables.quant.get(component.sof.quant).copied().flatten();
                component.quant = Some(table.ok_or_else(|| bad("a component without its quantisation table"))?);
            }
            need(&mut tables.dc, part.dc, true, band.wants_dc(), frame.progressive)?;
            need(&mut tables.ac, part.ac, false, band.wants_ac(), frame.progressive)?;
        }
        let mut bits = Bits::new(self.data, self.at);
        let mut state = Progressive::default();
        let mut predicted = [0i32; 4];
        let (columns, rows) = grid(frame, parts);
        let mut until_restart = tables.restart;
        let mut due = 0;
        for row in 0..rows {
            if !frame.kept {
                frame.go_to(row);
            }
            for column in 0..columns {
                if tables.restart > 0 {
                    if until_restart == 0 {
                        bits.restart(due)?;
                        due = (due + 1) % 8;
                        until_restart = tables.restart;
                        predicted = [0; 4];
                        state = Progressive::default();
                    }
                    until_restart -= 1;
                }
                for (part, predicted) in parts.iter().zip(&mut predicted) {
                    let component = &mut frame.components[part.component];
                    let (dc, ac) = (tables.dc[part.dc].as_ref(), tables.ac[part.ac].as_ref());
                    for (y, x) in (0..part.v).flat_map(|y| (0..part.h).map(move |x| (y, column * part.h + x))) {
                        if frame.progressive {
                            let block = component.kept(x, row * part.v + y);
                            state.decode(&mut bits, block, dc, ac, predicted, band)?;
                            continue;
                        }
                        let (Some(dc), Some(ac), Some(quant)) = (dc, ac, &component.quant) else { continue };
                        if frame.kept {
                            let block = component.kept(x, row * part.v + y);
                            sequential(&mut bits, (dc, ac), predicted, |k, value| block[k] = value)?;
                        } else {
                            let mut block = [0; 64];
                            let has_ac = sequential(&mut bits, (dc, ac), predicted, |k, value| {
                                block[k] = i32::from(value).wrapping_mul(quant[k].into());
                            })?;
                            component.put(x, y, &block, has_ac);
                        }
                    }
                }
            }
            if !frame.kept {
                ready(frame);
            }
        }
        for part in parts {
            frame.components[part.component].come[band.first..=band.last].fill(Some(band.low));
        }
        Ok(bits.end())
    }
}

/// MCUs side by side and one above the other; a component alone comes without the blocks that fill
/// up.
fn grid(frame: &Frame, parts: &[Part]) -> (usize, usize) {
    match parts {
        [part] => {
            let component = &frame.components[part.component];
            (component.width.div_ceil(8), component.height.div_ceil(8))
        }
        _ => (frame.mcu_columns, frame.mcu_rows),
    }
}

fn parse(header: &[u8], frame: &Frame) -> Result<(Vec<Part>, Band)> {
    let short = || bad("a scan header that is cut");
    let (&count, rest) = header.split_first().ok_or_else(short)?;
    let (listed, band) = rest.split_at_checked(2 * usize::from(count)).ok_or_else(short)?;
    let [first, last, bits, ..] = *band else { return Err(short()) };
    let mut parts = Vec::new();
    for pair in listed.chunks_exact(2) {
        let known = frame.components.iter().position(|c| c.sof.id == pair[0]);
        let component = known.ok_or_else(|| bad(format!("a scan of component {}, which the frame lacks", pair[0])))?;
        let (dc, ac) = (usize::from(pair[1] >> 4), usize::from(pair[1] & 15));
        if dc > 3 || ac > 3 || parts.iter().any(|p: &Part| p.component == component) {
            return Err(bad(format!("component {} of a scan", pair[0])));
        }
        let SofComponent { h, v, .. } = frame.components[component].sof;
        let (h, v) = if count > 1 { (h, v) } else { (1, 1) };
        parts.push(Part { component, dc, ac, h, v });
    }
    let band = if frame.progressive {
        Band { first: first.into(), last: last.into(), high: bits >> 4, low: bits & 15 }
    } else {
        Band { first: 0, last: 63, high: 0, low: 0 }
    };
    let wrong = parts.is_empty()
        || parts.len() > 1 && parts.iter().map(|p| p.h * p.v).sum::<usize>() > 10
        || band.last > 63
        || band.first > band.last
        || frame.progressive && (band.first == 0) != (band.last == 0)
        || band.first > 0 && parts.len() > 1
        || band.low > 13
        || band.high > 0 && band.high != band.low + 1;
    // A bit that comes twice, or before the one above it, is damage: libjpeg warns, and shows
    // another picture.
    let expected = if band.high == 0 { None } else { Some(band.high) };
    let order = |p: &Part| frame.components[p.component].come[band.first..=band.last].iter().all(|&b| b == expected);
    if wrong || !parts.iter().all(order) {
        return Err(bad(format!("a scan of coefficients {first} to {last}, bits {bits:02x}, out of order")));
    }
    Ok((parts, band))
}

/// Makes sure of a table that the scan uses; sequential frames may leave the standard's out.
fn need(tables: &mut [Option<Table>; 4], slot: usize, dc: bool, wanted: bool, progressive: bool) -> Result<()> {
    if wanted && tables[slot].is_none() {
        let table = if progressive { None } else { standard(dc, slot) };
        tables[slot] = Some(table.ok_or_else(|| bad(format!("Huffman table {slot} is missing")))?);
    }
    Ok(())
}

impl Band {
    fn wants_dc(&self) -> bool {
        self.first == 0 && self.high == 0
    }

    fn wants_ac(&self) -> bool {
        self.last > 0
    }
}
