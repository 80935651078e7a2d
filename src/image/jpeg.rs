//! JPEG as libjpeg-turbo decodes it by default, to the level: its IDCT (`islow`), its smooth
//! chroma, its colours.
//!
//! zune-jpeg 0.5, the one crate that was tried, is up to 12 levels off on some samplings, refuses
//! kinds that libjpeg-turbo reads, and does not tell a file that is cut from one that only lacks
//! its end marker. Here a picture is whole when every block of every component was decoded; finer
//! progressive scans may be left out where the end is marked.

mod bits;
mod blocks;
mod colour;
mod fault;
mod frame;
mod huffman;
mod idct;
mod markers;
mod scan;
mod upsample;
mod vectorised;

use image::RgbImage;
use image::metadata::Orientation;

use crate::error::Result;
use colour::Canvas;
use fault::{bad, cut};
use frame::Frame;
use markers::{Reader, Segment};
use scan::Scan;

/// What a file says before its first scan.
pub struct Header {
    pub width: u32,
    pub height: u32,
    pub orientation: Option<Orientation>,
}

/// Reads up to the frame's header; nothing is allocated by its numbers.
pub fn header(data: &[u8]) -> Result<Header> {
    let mut reader = Reader::new(data);
    loop {
        match reader.next()? {
            Segment::Tables => {}
            Segment::End { .. } => return Err(cut(data)),
            Segment::Scan { .. } => {
                let (width, height) = reader.size()?;
                return Ok(Header { width, height, orientation: reader.orientation });
            }
        }
    }
}

/// All pixels of a file that [`header`] has found to be of an acceptable size.
pub fn decode(data: &[u8]) -> Result<RgbImage> {
    let mut reader = Reader::new(data);
    let mut begun: Option<(Frame, Canvas)> = None;
    let mut scans = 0;
    while scans < MAX_SCANS {
        let (at, header) = match reader.next()? {
            Segment::Scan { at, header } => (at, header),
            Segment::End { marked } => {
                let Some((frame, canvas)) = begun.as_mut().filter(|_| marked) else { return Err(cut(data)) };
                frame.check_left_out()?;
                return Ok(finish(frame, canvas));
            }
            Segment::Tables => continue,
        };
        scans += 1;
        let (frame, canvas) = match &mut begun {
            Some(begun) => begun,
            None => {
                let sof = reader.sof.as_ref().ok_or_else(|| bad("no frame before its first scan"))?;
                let frame = Frame::new(sof, header.first().copied().unwrap_or(0).into())?;
                let canvas = Canvas::new(&frame, reader.colours(frame.components.len())?);
                begun.insert((frame, canvas))
            }
        };
        let scan = Scan::new(data, at, header, frame)?;
        reader.at = scan.decode(&mut reader.tables, frame, |frame| canvas.paint(frame))?;
        if frame.is_whole() {
            return Ok(finish(frame, canvas));
        }
    }
    Err(bad(format!("more than {MAX_SCANS} scans")))
}

/// As many as libjpeg-turbo's own fuzzers allow. No writer makes a tenth of them; each one of a
/// hostile file may be of a few bytes and go over the whole picture.
const MAX_SCANS: usize = 500;

fn finish(frame: &mut Frame, canvas: &mut Canvas) -> RgbImage {
    if frame.kept {
        for row in 0..frame.mcu_rows {
            frame.go_to(row);
            frame.transform();
            canvas.paint(frame);
        }
    }
    std::mem::take(&mut canvas.picture)
}
