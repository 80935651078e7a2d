//! How numbers lie in memory for packed products.
//!
//! Outputs are grouped into panels of [`LANES`]. For each group of inputs (2 in bf16, 4 in int8) a
//! panel holds a vector: the group's weights of all its outputs, 64 bytes, one load of the widest
//! kernel; in int4, a vector holds two groups, and what weights of 5 or 6 bits have beyond 4 follows
//! in vectors of eight groups or four. A row of activations is a sequence of 32-bit words, one per
//! group.

/// Outputs of a panel.
pub(super) const LANES: usize = 16;
/// Panels of a block: their part of some rows fills a kernel's registers.
pub(super) const PANELS: usize = 4;
/// Inputs of a group in bf16, and in int8 and int4.
pub(super) const PAIR: usize = 2;
pub(super) const QUAD: usize = 4;
/// Inputs that share a scale in int4, and the bytes of a panel that hold their nibbles.
pub(super) const BLOCK: usize = 32;
pub(super) const BLOCK_BYTES: usize = LANES * BLOCK / 2;

/// How many bits of a weight beyond 4 lie behind a block's nibbles: a group's lie in one vector with
/// others', the first group's lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct High(usize);

impl High {
    pub(super) const NONE: Self = Self(0);

    #[inline(always)]
    pub(super) const fn of(bits: usize) -> Self {
        assert!(bits <= 2);
        Self(bits)
    }

    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) const fn bits(self) -> usize {
        self.0
    }

    /// What is added to a signed weight to make it unsigned.
    #[inline(always)]
    pub(super) const fn offset(self) -> i32 {
        8 << self.0
    }

    /// Bytes of a panel that hold a block.
    #[inline(always)]
    pub(super) const fn block_bytes(self) -> usize {
        BLOCK_BYTES + self.0 * LANES * BLOCK / 8
    }

    /// Where a group's bits lie in a block: from which byte on, and how far from each byte's lowest.
    #[inline(always)]
    pub(super) const fn place(self, group: usize) -> (usize, usize) {
        let bit = group * self.0;
        (BLOCK_BYTES + bit / 8 * LANES * QUAD, bit % 8)
    }

    /// A weight out of a block's bytes, unsigned; `number` is its in its group.
    pub(super) fn weight(self, block: &[u8], group: usize, number: usize) -> u8 {
        let nibble = block[group / 2 * LANES * QUAD + number] >> (group % 2 * 4) & 0xf;
        if self == Self::NONE {
            return nibble;
        }
        let (vector, shift) = self.place(group);
        nibble | block[vector + number] >> shift << 4 & self.mask()
    }

    /// The bits of a weight that these are.
    #[inline(always)]
    pub(super) const fn mask(self) -> u8 {
        ((1 << self.0) - 1) << 4
    }
}

/// What is added to a signed 8-bit activation to make it unsigned, as the VNNI instructions want
/// it.
pub(super) const OFFSET: i32 = 128;

/// A [`High`] that a kernel is compiled for.
#[cfg(target_arch = "x86_64")]
pub(super) trait Known: Copy {
    fn high(self) -> High;
}

#[cfg(target_arch = "x86_64")]
impl<const BITS: usize> Known for [(); BITS] {
    #[inline(always)]
    fn high(self) -> High {
        const { High::of(BITS) }
    }
}

/// Where the vectors of panels lie: from a panel's to the next one's, and from a group's to the
/// next one's, in vectors. In int4 all lie one after the other.
#[derive(Clone, Copy)]
pub(super) struct Strides {
    pub(super) panel: usize,
    pub(super) group: usize,
}

impl Strides {
    /// The number of vector (`panel`, `group`).
    #[inline(always)]
    pub(super) fn at(self, panel: usize, group: usize) -> usize {
        panel * self.panel + group * self.group
    }
}

/// Units of a score in 8 bits from one to that which weighs twice as much.
pub(super) const OCTAVE: usize = 32;

/// The panel that keys of LANES positions become.
pub(super) struct KeyPanel<'a> {
    /// [groups, LANES], each four of a key's numbers, the first one lowest.
    pub(super) words: &'a mut [u32],
    /// What each key's numbers have to be multiplied by, and their sum.
    pub(super) scales: &'a mut [f32],
    pub(super) sums: &'a mut [i32],
}

/// What weights are rounded to: multiples of a scale for each lane and block of inputs.
pub(super) struct Grid<'a> {
    /// [blocks, LANES]
    pub(super) scales: &'a [f32],
    /// Inputs of a block.
    pub(super) block: usize,
    pub(super) least: f32,
    pub(super) most: f32,
}
