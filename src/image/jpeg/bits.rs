//! Bits of a scan, up to the next marker; nothing is made up behind it.

use super::huffman::{LOOK, Table};
use crate::error::{Error, Result};

pub struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    buffer: u64,
    count: u32,
    /// A marker or the end of the file was met; `at` stays there.
    ended: bool,
}

impl<'a> Bits<'a> {
    pub fn new(data: &'a [u8], at: usize) -> Self {
        Self { data, at, buffer: 0, count: 0, ended: false }
    }

    fn fill(&mut self) {
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
            self.buffer = self.buffer << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    /// The next `n` bits, at most 16, with zeros where the data ends.
    fn peek(&mut self, n: u32) -> u32 {
        if self.count < n {
            self.fill();
        }
        let bits = if self.count >= n { self.buffer >> (self.count - n) } else { self.buffer << (n - self.count) };
        bits as u32 & ((1 << n) - 1)
    }

    fn consume(&mut self, n: u32) -> Result<()> {
        if n > self.count {
            return Err(super::cut(self.data));
        }
        self.count -= n;
        Ok(())
    }

    pub fn take(&mut self, n: u32) -> Result<i32> {
        let bits = self.peek(n);
        self.consume(n)?;
        Ok(bits as i32)
    }

    pub fn bit(&mut self) -> Result<bool> {
        Ok(self.take(1)? != 0)
    }

    /// A number of `n` bits whose first bit is its sign, as T.81 has it (F.2.2.1).
    pub fn signed(&mut self, n: u32) -> Result<i32> {
        if n == 0 {
            return Ok(0);
        }
        let value = self.take(n)?;
        Ok(if value < 1 << (n - 1) { value - (1 << n) + 1 } else { value })
    }

    pub fn symbol(&mut self, table: &Table) -> Result<u8> {
        let look = self.peek(LOOK);
        let (length, symbol) = table.look[look as usize];
        if length > 0 {
            self.consume(u32::from(length))?;
            return Ok(symbol);
        }
        let code = self.peek(16);
        let Some((length, symbol)) = table.long(code) else {
            return Err(if self.count < 16 { super::cut(self.data) } else { self.damaged() });
        };
        self.consume(length)?;
        Ok(symbol)
    }

    pub fn damaged(&self) -> Error {
        super::bad(format!("damaged at byte {} of {}", self.at, self.data.len()))
    }

    /// Goes behind the restart marker that is due. Bytes before it are passed over, another marker is an error.
    pub fn restart(&mut self, due: u8) -> Result<()> {
        let Some((marker, behind)) = super::markers::find(self.data, self.at) else {
            return Err(super::cut(self.data));
        };
        if marker != 0xd0 + due {
            // Where the file ends, or the next picture begins, this one was cut.
            let ended = matches!(marker, 0xd8 | 0xd9);
            return Err(if ended {
                super::cut(self.data)
            } else {
                super::bad(format!("marker ff {marker:02x} at byte {}, restart {due} was due", behind - 2))
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
