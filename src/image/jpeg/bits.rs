//! Bits of a scan, up to the next marker; what is read behind it is counted, and is an error.

use super::huffman::{LOOK, Table};
use super::{fault, markers};
use crate::error::{Error, Result};

pub struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The next bits from the highest down, zeros behind the last.
    buffer: u64,
    /// Bits in the buffer; below zero where more were taken than came.
    count: i32,
    /// A marker or the end of the file was met; `at` stays there.
    ended: bool,
}

impl<'a> Bits<'a> {
    pub fn new(data: &'a [u8], at: usize) -> Self {
        Self { data, at, buffer: 0, count: 0, ended: false }
    }

    /// Makes sure of 32 bits: a code and its value.
    #[inline(always)]
    pub fn refill(&mut self) {
        if self.count < 32 {
            self.fill();
        }
    }

    #[inline(always)]
    fn fill(&mut self) {
        if let Some(&four) = self.data.get(self.at..).and_then(|rest| rest.first_chunk()) {
            let word = u32::from_be_bytes(four);
            // No byte is 0xff, so none is stuffed and none begins a marker; where `ended` is set,
            // one does.
            if (!word).wrapping_sub(0x0101_0101) & word & 0x8080_8080 == 0 {
                self.buffer |= u64::from(word) << (32 - self.count);
                self.count += 32;
                self.at += 4;
                return;
            }
        }
        self.fill_bytes();
    }

    #[cold]
    #[inline(never)]
    fn fill_bytes(&mut self) {
        while self.count <= 56 && !self.ended {
            let Some(&byte) = self.data.get(self.at) else {
                self.ended = true;
                return;
            };
            let mut next = self.at + 1;
            if byte == 0xff {
                while self.data.get(next) == Some(&0xff) {
                    next += 1;
                }
                if self.data.get(next) != Some(&0) {
                    self.ended = true;
                    return;
                }
                next += 1;
            }
            self.at = next;
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    #[inline(always)]
    fn skip(&mut self, n: u32) {
        self.buffer <<= n;
        self.count -= n as i32;
    }

    /// The next `n` bits, at most 31; `refill` comes first, here and below.
    #[inline(always)]
    pub fn take(&mut self, n: u32) -> i32 {
        let bits = (self.buffer >> 1 >> (63 - n)) as i32;
        self.skip(n);
        bits
    }

    pub fn bit(&mut self) -> bool {
        if self.count < 1 {
            self.fill();
        }
        self.take(1) != 0
    }

    /// A number of `n` bits whose first bit is its sign, as T.81 has it (F.2.2.1).
    #[inline(always)]
    pub fn signed(&mut self, n: u32) -> i32 {
        let negative = !(self.buffer as i64 >> 63) as i32;
        self.take(n) + (negative & ((-1 << n) + 1))
    }

    /// Symbol, and the value of its low four bits' length that follows it.
    #[inline(always)]
    pub fn symbol_and_value(&mut self, table: &Table) -> Result<(u8, i32)> {
        let entry = table.look[(self.buffer >> (64 - LOOK)) as usize];
        if entry.length_with_value > 0 {
            self.skip(entry.length_with_value.into());
            return Ok((entry.symbol, entry.value.into()));
        }
        let symbol = self.symbol(table)?;
        Ok((symbol, self.signed(u32::from(symbol & 15))))
    }

    #[inline(always)]
    pub fn symbol(&mut self, table: &Table) -> Result<u8> {
        let entry = table.look[(self.buffer >> (64 - LOOK)) as usize];
        if entry.length > 0 {
            self.skip(entry.length.into());
            return Ok(entry.symbol);
        }
        self.long_symbol(table)
    }

    #[inline(never)]
    fn long_symbol(&mut self, table: &Table) -> Result<u8> {
        let Some((length, symbol)) = table.long((self.buffer >> 48) as u32) else {
            // A code that zeros behind the end have completed is none.
            let cut = self.ended && self.count < 16;
            return Err(if cut { fault::cut(self.data) } else { self.damaged() });
        };
        self.skip(length);
        Ok(symbol)
    }

    /// An error where more bits were taken than there are. Once a block is often enough: zeros
    /// follow, and no block takes more than a few thousand of them.
    #[inline(always)]
    pub fn check(&self) -> Result<()> {
        if self.count < 0 { Err(fault::cut(self.data)) } else { Ok(()) }
    }

    pub fn damaged(&self) -> Error {
        if self.count < 0 {
            return fault::cut(self.data);
        }
        fault::bad(format!("damaged at byte {} of {}", self.at, self.data.len()))
    }

    /// Goes behind the restart marker that is due. Bytes before it are passed over, another marker
    /// is an error.
    pub fn restart(&mut self, due: u8) -> Result<()> {
        let Some((marker, behind)) = markers::find(self.data, self.at) else {
            return Err(fault::cut(self.data));
        };
        if marker != 0xd0 + due {
            // Where the file ends, or the next picture begins, this one was cut.
            let ended = matches!(marker, 0xd8 | 0xd9);
            return Err(if ended {
                fault::cut(self.data)
            } else {
                fault::bad(format!("marker ff {marker:02x} at byte {}, restart {due} was due", behind - 2))
            });
        }
        *self = Self::new(self.data, behind);
        Ok(())
    }

    /// Where the bytes behind the scan begin.
    pub fn end(&self) -> usize {
        self.at
    }
}
