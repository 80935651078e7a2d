//! The packed product: rows of activations times panels of weights, some of each at a time.
//!
//! Outputs are grouped into panels of [`LANES`]. For each group of inputs (2 in bf16, 4 in int8) a
//! panel holds a vector: the group's weights of all its outputs, 64 bytes, one load of the widest
//! kernel; in int4, a vector holds two groups, and what weights of 5 or 6 bits have beyond 4 follows
//! in vectors of eight groups or four. A row of activations is a sequence of 32-bit words, one per
//! group.

use half::{bf16, f16};

use super::{Cpu, Precision, Rows, math};
#[cfg(target_arch = "x86_64")]
use super::{avx2, x86};

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

/// Panels of weights.
#[derive(Clone, Copy)]
pub(super) enum Panels<'a> {
    Bf16(&'a [bf16]),
    /// `scales` and `corrections` (the sum of an output's weights, times OFFSET) have LANES values
    /// a panel. There are no corrections where activations have no offset.
    Int8 {
        values: &'a [i8],
        scales: &'a [f32],
        corrections: Option<&'a [i32]>,
    },
    /// [panels, blocks, the bytes of one] and [panels, blocks, LANES].
    Int4 {
        values: &'a [u8],
        high: High,
        scales: &'a [f16],
    },
}

impl<'a> Panels<'a> {
    /// What rows must be in.
    pub(super) fn precision(&self) -> Precision {
        match self {
            Panels::Bf16(_) => Precision::Bf16,
            Panels::Int8 { .. } => Precision::Int8,
            Panels::Int4 { .. } => Precision::Int4,
        }
    }

    /// What may be fetched ahead.
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Panels::Int8 { values, .. } => bytemuck::cast_slice(values),
            _ => &[],
        }
    }

    /// Those that are left without the first so many vectors and outputs; not in int4.
    pub(super) fn skip(self, vectors: usize, outputs: usize) -> Self {
        match self {
            Panels::Bf16(values) => Panels::Bf16(&values[vectors * LANES * PAIR..]),
            Panels::Int8 { values, scales, corrections } => Panels::Int8 {
                values: &values[vectors * LANES * QUAD..],
                scales: &scales[outputs..],
                corrections: corrections.map(|corrections| &corrections[outputs..]),
            },
            Panels::Int4 { .. } => unreachable!("attention has no int4"),
        }
    }
}

/// Where the vectors of [`Panels`] lie: from a panel's to the next one's, and from a group's to the
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

/// Some rows times up to [`PANELS`] panels.
pub(super) struct Block<'a> {
    pub(super) rows: &'a Rows,
    pub(super) first_row: usize,
    pub(super) row_count: usize,
    pub(super) panels: Panels<'a>,
    pub(super) panel_count: usize,
    pub(super) strides: Strides,
    /// Weights that are wanted next, if there are any: they are fetched meanwhile.
    pub(super) ahead: &'a [u8],
}

/// A block's results: [row_count] rows of `columns` floats, `stride` apart.
///
/// Tasks share out one matrix between them, which no slice can say; whoever makes one promises that
/// its rows and columns are valid, and nobody else's while it lives.
pub(super) struct Out<'a> {
    start: *mut f32,
    stride: usize,
    columns: usize,
    /// Added to every row; LANES numbers a panel.
    bias: &'a [f32],
    /// Whether results are added to what is there.
    add: bool,
    /// Whether the block's rows are parts of one: their results are added up.
    parts: bool,
}

static NO_BIAS: [f32; PANELS * LANES] = [0.0; PANELS * LANES];

impl<'a> Out<'a> {
    /// `bias`: as many numbers as the block's panels have lanes, or none.
    ///
    /// # Safety
    /// See the type.
    pub(super) unsafe fn new(start: *mut f32, stride: usize, columns: usize, bias: &'a [f32], add: bool) -> Self {
        let bias = if bias.is_empty() { &NO_BIAS } else { bias };
        assert!(columns <= NO_BIAS.len() && bias.len() >= columns.next_multiple_of(LANES));
        Self { start, stride, columns, bias, add, parts: false }
    }

    /// The same for a block whose rows are parts of one row.
    pub(super) fn of_parts(self, parts: bool) -> Self {
        Self { stride: if parts { 0 } else { self.stride }, parts, ..self }
    }

    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn parts(&self) -> bool {
        self.parts
    }

    /// Whether a row's results are added to what is there.
    #[inline(always)]
    pub(super) fn adds(&self, row: usize) -> bool {
        self.add || self.parts && row > 0
    }

    /// LANES numbers that are added to a panel's results of one row.
    ///
    /// # Safety
    /// The block has this panel.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) unsafe fn bias(&self, row: usize, panel: usize) -> *const f32 {
        let bias = if self.parts && row > 0 { &NO_BIAS } else { self.bias };
        // SAFETY: there are as many as the panels have lanes.
        unsafe { bias.as_ptr().add(panel * LANES) }
    }

    /// # Safety
    /// The block has this row.
    unsafe fn row(&mut self, row: usize) -> &mut [f32] {
        // SAFETY: as whoever made this promised.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.columns) }
    }

    /// From a row to the next one.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// Where a panel's results of one row go, and how many of its lanes.
    ///
    /// # Safety
    /// The block has this row and this panel.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) unsafe fn lanes(&mut self, row: usize, panel: usize) -> (*mut f32, usize) {
        // SAFETY: as the caller promises, and whoever made this did.
        (unsafe { self.start.add(row * self.stride + panel * LANES) }, LANES.min(self.columns - panel * LANES))
    }

    /// Stores or adds a panel's results of one row; what lies beyond the columns is dropped.
    ///
    /// # Safety
    /// The block has this row and this panel.
    #[inline(always)]
    pub(super) unsafe fn store(&mut self, row: usize, panel: usize, values: &[f32; LANES]) {
        let add = self.adds(row);
        let bias = if self.parts && row > 0 { &NO_BIAS } else { self.bias };
        let bias = &bias[panel * LANES..][..LANES];
        // SAFETY: as the caller promises.
        let out = &mut unsafe { self.row(row) }[panel * LANES..];
        for ((out, value), bias) in out.iter_mut().zip(values).zip(bias) {
            *out = value + bias + if add { *out } else { 0.0 };
        }
    }
}

impl Block<'_> {
    /// Computes the block with the kernels of `cpu`.
    pub(super) fn run(&self, out: &mut Out, cpu: Cpu) {
        assert!(out.columns <= self.panel_count * LANES && out.columns > (self.panel_count - 1) * LANES);
        // A few rows fill no tile: they get what AVX-512 has for them.
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if cpu == Cpu::Amx && self.row_count > x86::TILE_ROWS {
            // SAFETY: a set exists only where the processor has its instructions; there are rows
            // enough.
            match self.panels {
                Panels::Bf16(values) => return unsafe { x86::amx::bf16_block(values, self, out) },
                // SAFETY: as above.
                Panels::Int8 { values, scales, corrections } => {
                    return unsafe {
                        x86::amx::int8_block(values, scales, corrections, self, out);
                    };
                }
                Panels::Int4 { .. } => {}
            }
        }
        match (self.panels, cpu) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a set exists only where the processor has its instructions.
            (Panels::Bf16(values), Cpu::Avx512Bf16) => unsafe { x86::bf16_block(values, self, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Panels::Bf16(values), Cpu::Avx512F | Cpu::Avx512 | Cpu::Amx) => unsafe {
                x86::bf16_block_in_f32(values, self, out)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Panels::Int8 { values, scales, corrections }, Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx) => unsafe {
                x86::int8_block(values, scales, corrections, self, out);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Panels::Int4 { values, high, scales }, Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx) => unsafe {
                x86::int4_block((values, high), scales, self, out);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Panels::Bf16(values), Cpu::Avx2 | Cpu::AvxVnni) => unsafe { avx2::bf16_block(values, self, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Panels::Int8 { values, scales, corrections }, Cpu::Avx2 | Cpu::Avx512F) => unsafe {
                avx2::int8_block(values, scales, corrections, self, out);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Panels::Int8 { values, scales, corrections }, Cpu::AvxVnni) => unsafe {
                avx2::int8_vnni_block(values, scales, corrections, self, out);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Panels::Int4 { values, high, scales }, Cpu::Avx2 | Cpu::Avx512F | Cpu::AvxVnni) => unsafe {
                avx2::int4_block((values, high), scales, self, out);
            },
            (Panels::Bf16(values), _) => self.bf16(values, out),
            (Panels::Int4 { values, high, scales }, _) => self.int4((values, high), scales, out),
            (Panels::Int8 { values, scales, corrections }, _) => self.int8(values, scales, corrections, out),
        }
    }

    /// Vectors from the block's first to its last.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn vectors(&self) -> usize {
        let last = self.rows.groups.checked_sub(1).map(|group| self.strides.at(self.panel_count - 1, group));
        last.map_or(0, |last| last + 1)
    }

    /// The reference of every bf16 kernel.
    fn bf16(&self, values: &[bf16], out: &mut Out<'_>) {
        for row in 0..self.row_count {
            for panel in 0..self.panel_count {
                let mut sums = [0f32; LANES];
                for (group, &word) in self.rows.row(self.first_row + row).iter().enumerate() {
                    let (low, high) = (math::low_half(word), math::high_half(word));
                    let vector = &values[self.strides.at(panel, group) * LANES * PAIR..][..LANES * PAIR];
                    for (sum, pair) in sums.iter_mut().zip(vector.chunks_exact(PAIR)) {
                        *sum += pair[0].to_f32() * low + pair[1].to_f32() * high;
                    }
                }
                // SAFETY: both counts are the block's.
                unsafe { out.store(row, panel, &sums) };
            }
        }
    }

    /// The reference of every int8 kernel.
    fn int8(&self, values: &[i8], scales: &[f32], corrections: Option<&[i32]>, out: &mut Out<'_>) {
        for row in 0..self.row_count {
            let row_scale = self.rows.scales[self.first_row + row];
            for panel in 0..self.panel_count {
                let mut sums = [0i32; LANES];
                for (group, &word) in self.rows.row(self.first_row + row).iter().enumerate() {
                    let vector = &values[self.strides.at(panel, group) * LANES * QUAD..][..LANES * QUAD];
                    for (sum, quad) in sums.iter_mut().zip(vector.chunks_exact(QUAD)) {
                        let products = quad.iter().zip(word.to_le_bytes()).map(|(&w, a)| i32::from(w) * i32::from(a));
                        *sum += products.sum::<i32>();
                    }
                }
                let at = panel * LANES;
                let correction = |i| corrections.map_or(0, |corrections| corrections[at + i]);
                let result = |i| (sums[i] - correction(i)) as f32 * (row_scale * scales[at + i]);
                // SAFETY: both counts are the block's.
                unsafe { out.store(row, panel, &std::array::from_fn(result)) };
            }
        }
    }

    /// The reference of every int4 kernel.
    fn int4(&self, (values, high): (&[u8], High), scales: &[f16], out: &mut Out<'_>) {
        let blocks = self.rows.blocks();
        for row in 0..self.row_count {
            let (words, sums) = self.rows.int4_row(self.first_row + row);
            for panel in 0..self.panel_count {
                let mut results = [0f32; LANES];
                for (block, words) in words.chunks(BLOCK / QUAD).enumerate() {
                    let at = panel * blocks + block;
                    let values = &values[at * high.block_bytes()..][..high.block_bytes()];
                    let scales = &scales[at * LANES..][..LANES];
                    for (lane, (result, scale)) in results.iter_mut().zip(scales).enumerate() {
                        let mut sum = -high.offset() * sums[block];
                        for (group, word) in words.iter().enumerate() {
                            for (i, activation) in word.to_le_bytes().into_iter().enumerate() {
                                let weight = high.weight(values, group, lane * QUAD + i);
                                sum += i32::from(weight) * i32::from(activation as i8);
                            }
                        }
                        *result += sum as f32 * scale.to_f32();
                    }
                }
                let row_scale = self.rows.scales[self.first_row + row];
                results.iter_mut().for_each(|x| *x *= row_scale);
                // SAFETY: both counts are the block's.
                unsafe { out.store(row, panel, &results) };
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What `run` makes of `rows` rows and `panels` panels of bytes of all sizes, the largest ones
    /// among them, less some columns.
    pub fn int8_product(rows: usize, panels: usize, run: impl Fn(&Block<'_>, &mut Out<'_>)) -> Vec<f32> {
        let groups = 37;
        // Activations from 1 to 255, weights from -127 to 127: half of them are at either end.
        let any = |i: usize| (i as u32).wrapping_mul(2_654_435_761) >> 8;
        let signed = |i: usize| match any(i) % 4 {
            0 => 127,
            1 => -127,
            _ => (any(i + 7) % 255) as i32 - 127,
        };
        let bytes = |row: usize| std::array::from_fn(|i| (signed(row * QUAD + i) + OFFSET) as u8);
        let words = (0..rows * groups).map(|i| u32::from_le_bytes(bytes(i))).collect();
        let values: Vec<i8> = (0..panels * groups * LANES * QUAD).map(|i| signed(i + 999) as i8).collect();
        let column = |lane: usize| -> i32 {
            let panel = &values[lane / LANES * groups * LANES * QUAD..][..groups * LANES * QUAD];
            panel.chunks_exact(QUAD).skip(lane % LANES).step_by(LANES).flatten().map(|&w| i32::from(w)).sum()
        };
        let corrections: Vec<i32> = (0..panels * LANES).map(|lane| OFFSET * column(lane)).collect();
        let rows_of = Rows { words, groups, scales: vec![1.0; rows], ..Rows::default() };
        let block = Block {
            rows: &rows_of,
            first_row: 0,
            row_count: rows,
            panels: Panels::Int8 {
                values: &values,
                scales: &vec![1.0; panels * LANES],
                corrections: Some(&corrections),
            },
            panel_count: panels,
            strides: Strides { panel: groups, group: 1 },
            ahead: &[],
        };
        let columns = panels * LANES - rows;
        let mut numbers = vec![0.0; rows * columns];
        // SAFETY: the numbers are this function's alone, and as many as said.
        run(&block, &mut unsafe { Out::new(numbers.as_mut_ptr(), columns, columns, &[], false) });
        numbers
    }

    #[test]
    fn integers_are_exact_however_large_the_bytes() {
        for (rows, panels) in (1..=13).flat_map(|rows| (1..=4).map(move |panels| (rows, panels))) {
            let portable = int8_product(rows, panels, |block, out| block.run(out, Cpu::Portable));
            for cpu in Cpu::available() {
                assert_eq!(
                    int8_product(rows, panels, |block, out| block.run(out, cpu)),
                    portable,
                    "{cpu:?} {rows} {panels}"
                );
            }
        }
    }
}
