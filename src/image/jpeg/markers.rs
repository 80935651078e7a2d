//! Segments of a file up to each scan: tables, the frame's header, and what the application
//! segments say.

use image::metadata::Orientation;

use super::fault::{bad, cut};
use super::frame::{Colours, Sof};
use super::huffman::Table;
use crate::error::Result;

/// Tables that stand from where they are defined.
#[derive(Default)]
pub struct Tables {
    pub quant: [Option<[u16; 64]>; 4],
    pub dc: [Option<Table>; 4],
    pub ac: [Option<Table>; 4],
    /// MCUs between two restart markers; 0: none.
    pub restart: usize,
}

pub struct Reader<'a> {
    data: &'a [u8],
    pub at: usize,
    pub tables: Tables,
    pub sof: Option<Sof>,
    pub orientation: Option<Orientation>,
    jfif: bool,
    adobe: Option<u8>,
}

pub enum Segment<'a> {
    Tables,
    /// A scan's header, and where its bits begin.
    Scan {
        at: usize,
        header: &'a [u8],
    },
    /// The end marker, or without it the file's end or the next picture's begin.
    End {
        marked: bool,
    },
}

/// The next marker from `at`, and where the bytes behind it begin. Whatever stands before it is
/// passed over.
pub fn find(data: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += data.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        while data.get(at) == Some(&0xff) {
            at += 1;
        }
        match data.get(at)? {
            0 => {}
            &marker => return Some((marker, at + 1)),
        }
    }
}

/// Position in a block of the k-th coefficient as it is stored.
#[rustfmt::skip]
pub const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, at: 2, tables: Tables::default(), sof: None, orientation: None, jfif: false, adobe: None }
    }

    /// Reads one segment.
    pub fn next(&mut self) -> Result<Segment<'a>> {
        let (marker, at) = loop {
            match find(self.data, self.at) {
                None | Some((0xd8, _)) => return Ok(Segment::End { marked: false }),
                Some((0xd9, _)) => return Ok(Segment::End { marked: true }),
                // These stand alone: restarts behind the last block, and TEM.
                Some((0x01 | 0xd0..=0xd7, behind)) => self.at = behind,
                Some(found) => break found,
            }
        };
        let body = self
            .data
            .get(at..at + 2)
            .and_then(|size| self.data.get(at + 2..at + usize::from(u16::from_be_bytes([size[0], size[1]]))))
            .ok_or_else(|| cut(self.data))?;
        self.at = at + 2 + body.len();
        match marker {
            0xc4 => self.huffman(body)?,
            0xdb => self.quant(body)?,
            0xdd => {
                let [high, low] = *body else { return Err(bad("a restart interval that is cut")) };
                self.tables.restart = usize::from(u16::from_be_bytes([high, low]));
            }
            0xc0..=0xc2 if self.sof.is_some() => return Err(bad("two frames in one picture")),
            0xc0..=0xc2 => self.sof = Some(Sof::new(marker == 0xc2, body)?),
            0xc9..=0xcb => {
                return Err(bad("arithmetic coding, which is not read; save it with Huffman codes (jpegtran does)"));
            }
            0xc3 => return Err(bad("a lossless frame, which is not read; save it as baseline or PNG")),
            0xc5..=0xc7 | 0xcd..=0xcf => {
                return Err(bad("a hierarchical frame, which is not read; save it as baseline"));
            }
            0xf7 => return Err(bad("JPEG-LS, which is not read; save it as baseline or PNG")),
            0xda => return Ok(Segment::Scan { at: self.at, header: body }),
            0xe0 if body.len() >= 14 && body.starts_with(b"JFIF\0") => self.jfif = true,
            0xe1 if self.orientation.is_none() => {
                self.orientation = body.strip_prefix(b"Exif\0\0").and_then(Orientation::from_exif_chunk);
            }
            0xee if body.starts_with(b"Adobe") => self.adobe = body.get(11).copied().or(self.adobe),
            _ => {}
        }
        Ok(Segment::Tables)
    }

    pub fn size(&self) -> Result<(u32, u32)> {
        let sof = self.sof.as_ref().ok_or_else(|| bad("no frame before its first scan"))?;
        Ok((sof.width, sof.height))
    }

    /// What the components mean, as libjpeg guesses it.
    pub fn colours(&self, components: usize) -> Result<Colours> {
        let ids: Vec<u8> = self.sof.iter().flat_map(|sof| sof.components.iter().map(|c| c.id)).collect();
        Ok(match (components, self.adobe) {
            (1, _) => Colours::Gray,
            (3, _) if self.jfif => Colours::Ycc,
            (3, Some(0)) => Colours::Rgb,
            (3, None) if ids == *b"RGB" => Colours::Rgb,
            (3, _) => Colours::Ycc,
            (4, None | Some(0)) => Colours::Cmyk,
            (4, _) => Colours::Ycck,
            _ => return Err(bad(format!("{components} components, 1, 3 or 4 accepted"))),
        })
    }

    fn huffman(&mut self, mut body: &[u8]) -> Result<()> {
        while let Some((&kind, rest)) = body.split_first() {
            let short = || bad("a Huffman table that is cut");
            let (counts, rest) = rest.split_at_checked(16).ok_or_else(short)?;
            let total = counts.iter().map(|&n| usize::from(n)).sum();
            let (symbols, rest) = rest.split_at_checked(total).ok_or_else(short)?;
            let tables = if kind & 0x10 == 0 { &mut self.tables.dc } else { &mut self.tables.ac };
            let slot = tables.get_mut(usize::from(kind & !0x10)).ok_or_else(|| bad("more than four Huffman tables"))?;
            *slot = Some(Table::new(counts, symbols)?);
            body = rest;
        }
        Ok(())
    }

    fn quant(&mut self, mut body: &[u8]) -> Result<()> {
        while let Some((&kind, rest)) = body.split_first() {
            let wide = kind >> 4 != 0;
            let size = if wide { 128 } else { 64 };
            let (values, rest) = rest.split_at_checked(size).ok_or_else(|| bad("a quantisation table that is cut"))?;
            let slot = self.tables.quant.get_mut(usize::from(kind & 15));
            let slot = slot.ok_or_else(|| bad("more than four quantisation tables"))?;
            let mut table = [0; 64];
            for (k, &position) in ZIGZAG.iter().enumerate() {
                table[usize::from(position)] =
                    if wide { u16::from_be_bytes([values[2 * k], values[2 * k + 1]]) } else { u16::from(values[k]) };
            }
            *slot = Some(table);
            body = rest;
        }
        Ok(())
    }
}
