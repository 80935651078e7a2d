//! Huffman tables, and the standard's own for the files that leave them out.

use super::fault::bad;
use crate::error::Result;

/// Bits that are looked up at once.
pub const LOOK: u32 = 10;

/// What the next [`LOOK`] bits begin with.
#[derive(Clone, Copy, Default)]
pub struct Entry {
    pub value: i16,
    pub symbol: u8,
    /// Of the code; 0 for longer ones.
    pub length: u8,
    /// Of the code and the value behind it; 0 where they are longer, or there is no value.
    pub length_with_value: u8,
}

#[derive(Clone)]
pub struct Table {
    pub look: Box<[Entry; 1 << LOOK]>,
    /// By length: one more than its last code, and what added to a code gives the symbol's index.
    ends: [(u32, i32); 17],
    symbols: Vec<u8>,
}

impl Table {
    /// `counts` by length less one.
    pub fn new(counts: &[u8], symbols: &[u8]) -> Result<Self> {
        let mut look = Box::new([Entry::default(); 1 << LOOK]);
        let mut ends = [(0, 0); 17];
        let (mut code, mut index) = (0u32, 0usize);
        for (length, &count) in (1..=16).zip(counts) {
            ends[length as usize] = (0, index as i32 - code as i32);
            for _ in 0..count {
                let symbol = *symbols.get(index).ok_or_else(|| bad("a Huffman table that is cut"))?;
                if code >= 1 << length {
                    return Err(bad("a Huffman table with more codes than bits"));
                }
                if length <= LOOK {
                    let first = code << (LOOK - length);
                    for bits in first..first + (1 << (LOOK - length)) {
                        look[bits as usize] = Entry::new(bits, length, symbol);
                    }
                }
                code += 1;
                index += 1;
            }
            ends[length as usize].0 = code;
            code <<= 1;
        }
        Ok(Self { look, ends, symbols: symbols.to_vec() })
    }

    /// Length and symbol of the code, longer than [`LOOK`], that 16 bits begin with.
    pub fn long(&self, bits: u32) -> Option<(u32, u8)> {
        (LOOK + 1..=16).find_map(|length| {
            let code = bits >> (16 - length);
            let (end, offset) = self.ends[length as usize];
            let index = usize::try_from(code as i32 + offset).ok()?;
            (code < end).then(|| self.symbols.get(index).map(|&symbol| (length, symbol)))?
        })
    }
}

impl Entry {
    fn new(bits: u32, length: u32, symbol: u8) -> Self {
        let mut entry = Self { symbol, length: length as u8, ..Self::default() };
        let size = u32::from(symbol & 15);
        if size > 0 && length + size <= LOOK {
            let value = (bits >> (LOOK - length - size)) as i32 & ((1 << size) - 1);
            entry.value = if value < 1 << (size - 1) { value - (1 << size) + 1 } else { value } as i16;
            entry.length_with_value = (length + size) as u8;
        }
        entry
    }
}

/// The tables of T.81's annex K, which motion JPEG takes for granted: luminance and chrominance.
pub fn standard(dc: bool, slot: usize) -> Option<Table> {
    let table = match (dc, slot) {
        (true, 0) => Table::new(&DC_LUMA, &DC_SYMBOLS),
        (true, 1) => Table::new(&DC_CHROMA, &DC_SYMBOLS),
        (false, 0) => Table::new(&AC_LUMA, &AC_LUMA_SYMBOLS),
        (false, 1) => Table::new(&AC_CHROMA, &AC_CHROMA_SYMBOLS),
        _ => return None,
    };
    table.ok()
}

const DC_LUMA: [u8; 16] = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
const DC_CHROMA: [u8; 16] = [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0];
const DC_SYMBOLS: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
const AC_LUMA: [u8; 16] = [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7d];
const AC_CHROMA: [u8; 16] = [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77];
#[rustfmt::skip]
const AC_LUMA_SYMBOLS: [u8; 162] = [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71,
    0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72,
    0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x34, 0x35, 0x36, 0x37,
    0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59,
    0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83,
    0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3,
    0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3,
    0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2,
    0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
];
#[rustfmt::skip]
const AC_CHROMA_SYMBOLS: [u8; 162] = [
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22,
    0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1,
    0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x35, 0x36,
    0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
    0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a,
    0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a,
    0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba,
    0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda,
    0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// cjpeg writes the standard's tables into a file of its own, where it is not told to optimise.
    #[test]
    fn defaults_are_cjpegs() {
        let file = include_bytes!("../../../tests/golden/jpeg/sampling-420.jpg");
        let defaults: [(u8, [u8; 16], &[u8]); 4] = [
            (0x00, DC_LUMA, &DC_SYMBOLS),
            (0x10, AC_LUMA, &AC_LUMA_SYMBOLS),
            (0x01, DC_CHROMA, &DC_SYMBOLS),
            (0x11, AC_CHROMA, &AC_CHROMA_SYMBOLS),
        ];
        for (kind, counts, symbols) in defaults {
            let body = [&[kind], &counts[..], symbols].concat();
            assert!(file.windows(body.len()).any(|bytes| bytes == body), "table {kind:02x}");
        }
    }
}
