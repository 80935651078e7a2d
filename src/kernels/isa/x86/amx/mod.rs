//! AMX's products: up to 32 rows times 2 panels at a time, whose sums are four tiles.
//!
//! A tile is 16 rows of 64 bytes. The vectors of a panel are the rows of one as they lie, and so
//! are the activations: nothing is packed anew.

#[cfg(test)]
pub(in crate::kernels) mod emulator;

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use half::bf16;

use crate::kernels::isa::x86::avx512::tile::Column;
use crate::kernels::layout::{LANES, PAIR, QUAD, Strides};
use crate::kernels::product::{Block, Out};

/// Rows of a tile, which are as many as its 32-bit words in each.
const TILE: usize = 16;
/// A group's weights of all of a panel's outputs.
pub(in crate::kernels) type Vector = [u8; 64];
/// Rows and panels of [`Sums`].
const SUM_ROWS: usize = 2 * TILE;
const SUM_PANELS: usize = 2;

/// Sums of some rows and panels, integers or the bits of floats.
#[repr(align(64))]
pub(in crate::kernels) struct Sums([[[MaybeUninit<u32>; LANES]; SUM_PANELS]; SUM_ROWS]);

impl Sums {
    /// # Safety
    /// The processor has AVX-512 F. The row is one of as many as there are sums of.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::kernels) unsafe fn at(&self, row: usize, panel: usize) -> __m512i {
        // SAFETY: as many words, which have been written.
        unsafe { _mm512_load_si512(self.0[row][panel].as_ptr().cast()) }
    }
}

/// What [`Sums`] are of: the first row and how many, the first panel and how many.
pub(in crate::kernels) struct Place {
    pub(in crate::kernels) row: usize,
    pub(in crate::kernels) rows: usize,
    pub(in crate::kernels) panel: usize,
    pub(in crate::kernels) panels: usize,
}

/// Numbers of the inputs, and so the instruction.
#[derive(Clone, Copy)]
pub(in crate::kernels) enum Numbers {
    /// Unsigned bytes times signed ones.
    Bytes,
    Bf16,
}

/// What is multiplied.
pub(in crate::kernels) struct Inputs<'a> {
    /// [rows, groups], or more.
    pub(in crate::kernels) words: &'a [u32],
    pub(in crate::kernels) groups: usize,
    pub(in crate::kernels) rows: usize,
    /// [panels, groups], `strides` apart.
    pub(in crate::kernels) vectors: &'a [Vector],
    pub(in crate::kernels) panels: usize,
    pub(in crate::kernels) strides: Strides,
}

/// Tiles that are multiplied one after the other: the 16 rows from either pointer on times the 16
/// vectors from either pointer on, then those beside and below them.
#[repr(C)]
struct Pass {
    rows: [*const u32; 2],
    /// In bytes, as is the other one.
    row_stride: usize,
    vectors: [*const Vector; 2],
    vector_stride: usize,
    /// At least one.
    steps: usize,
}

/// The last groups of rows and panels, filled up with zeros to a tile.
#[repr(align(64))]
struct Tails {
    rows: [[u32; TILE]; SUM_ROWS],
    vectors: [[Vector; TILE]; SUM_PANELS],
}

impl Tails {
    const ZERO: Self = Self { rows: [[0; TILE]; SUM_ROWS], vectors: [[[0; size_of::<Vector>()]; TILE]; SUM_PANELS] };
}

/// The tile registers with their shapes, until it is dropped: sums of two tiles of rows in 0 to 3,
/// the rows in 4 and 5, two panels in 6 and 7.
struct Tiles {
    /// Of the first tile and of the second one.
    rows: [usize; 2],
}

/// The operand of LDTILECFG.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// # Safety
    /// The processor has AMX, and the process may use it.
    unsafe fn new() -> Self {
        Self { rows: [0; 2] }
    }

    /// Shapes the registers for `rows` of the first tile and of the second one, each 1 to 16.
    fn shape(&mut self, rows: [usize; 2]) {
        if rows == self.rows {
            return;
        }
        assert!(rows.iter().all(|rows| (1..=TILE).contains(rows)));
        let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shapes.row_bytes[..8].fill((TILE * size_of::<u32>()) as u16);
        let [first, second] = rows.map(|rows| rows as u8);
        shapes.rows[..8].copy_from_slice(&[first, first, second, second, first, second, TILE as u8, TILE as u8]);
        // SAFETY: as `new` was promised; the shapes are of the only palette that there is.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
        self.rows = rows;
    }

    /// `sums` become those of all passes.
    ///
    /// # Safety
    /// The registers are shaped; what the passes point at is there.
    unsafe fn multiply(&self, numbers: Numbers, passes: &[Pass], sums: &mut Sums) {
        assert!(!passes.is_empty());
        let first = sums.0.as_mut_ptr();
        let second = first.wrapping_add(self.rows[0]);
        macro_rules! multiply {
            ($multiply:literal) => {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "mov {rows0}, [{pass}]",
                    "mov {rows1}, [{pass} + 8]",
                    "mov {row_stride}, [{pass} + 16]",
                    "mov {vectors0}, [{pass} + 24]",
                    "mov {vectors1}, [{pass} + 32]",
                    "mov {vector_stride}, [{pass} + 40]",
                    "mov {steps}, [{pass} + 48]",
                    "mov {below}, {vector_stride}",
                    "shl {below}, 4",
                    "3:",
                    "tileloadd tmm4, [{rows0} + {row_stride}]",
                    "tileloadd tmm6, [{vectors0} + {vector_stride}]",
                    "tileloadd tmm7, [{vectors1} + {vector_stride}]",
                    concat!($multiply, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm5, [{rows1} + {row_stride}]",
                    concat!($multiply, " tmm1, tmm4, tmm7"),
                    "add {rows0}, 64",
                    "add {rows1}, 64",
                    concat!($multiply, " tmm2, tmm5, tmm6"),
                    "add {vectors0}, {below}",
                    "add {vectors1}, {below}",
                    concat!($multiply, " tmm3, tmm5, tmm7"),
                    "dec {steps}",
                    "jnz 3b",
                    "add {pass}, 56",
                    "dec {passes}",
                    "jnz 2b",
                    "mov {row_stride:e}, 128",
                    "tilestored [{first} + {row_stride}], tmm0",
                    "tilestored [{first} + {row_stride} + 64], tmm1",
                    "tilestored [{second} + {row_stride}], tmm2",
                    "tilestored [{second} + {row_stride} + 64], tmm3",
                    pass = inout(reg) passes.as_ptr() => _,
                    passes = inout(reg) passes.len() => _,
                    first = in(reg) first,
                    second = in(reg) second,
                    rows0 = out(reg) _,
                    rows1 = out(reg) _,
                    row_stride = out(reg) _,
                    vectors0 = out(reg) _,
                    vectors1 = out(reg) _,
                    vector_stride = out(reg) _,
                    steps = out(reg) _,
                    below = out(reg) _,
                    out("tmm0") _,
                    out("tmm1") _,
                    out("tmm2") _,
                    out("tmm3") _,
                    out("tmm4") _,
                    out("tmm5") _,
                    out("tmm6") _,
                    out("tmm7") _,
                    options(nostack)
                )
            };
        }
        // SAFETY: as the caller promises; both tiles' rows lie in the sums.
        unsafe {
            match numbers {
                Numbers::Bytes => multiply!("tdpbusd"),
                Numbers::Bf16 => multiply!("tdpbf16ps"),
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: as `new` was promised.
        unsafe {
            asm!("tilerelease", options(nostack, nomem),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}

/// Gives `take` the sums of all rows, at least two, and panels, some of each at a time.
///
/// # Safety
/// The processor has AMX in these numbers and AVX-512 F, and the process may use it.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::kernels) unsafe fn multiply(numbers: Numbers, inputs: &Inputs<'_>, mut take: impl FnMut(Place, &Sums)) {
    let Inputs { words, groups, rows, vectors, panels, strides } = *inputs;
    assert!(rows >= 2 && groups > 0 && panels > 0);
    assert!(words.len() >= rows * groups && vectors.len() > strides.at(panels - 1, groups - 1));
    let (whole, rest) = (groups / TILE, groups % TILE);
    let mut tails = (rest > 0).then_some(const { Tails::ZERO });
    let mut sums = Sums([[[const { MaybeUninit::uninit() }; LANES]; SUM_PANELS]; SUM_ROWS]);
    // SAFETY: as the caller promises.
    let mut tiles = unsafe { Tiles::new() };
    // Rows are shared out evenly: each part has two tiles.
    let parts = rows.div_ceil(SUM_ROWS);
    for part in 0..parts {
        let (row, end) = (rows * part / parts, rows * (part + 1) / parts);
        let upper = (end - row).div_ceil(2);
        tiles.shape([upper, end - row - upper]);
        if let Some(tails) = &mut tails {
            for (row, tail) in (row..end).zip(&mut tails.rows) {
                tail[..rest].copy_from_slice(&words[row * groups + whole * TILE..][..rest]);
            }
        }
        for panel in (0..panels).step_by(SUM_PANELS) {
            // A last panel without another one is multiplied twice.
            let both = [panel, (panel + 1).min(panels - 1)];
            if let Some(tails) = &mut tails {
                for (tails, panel) in tails.vectors.iter_mut().zip(both) {
                    for (group, tail) in (whole * TILE..groups).zip(tails) {
                        *tail = vectors[strides.at(panel, group)];
                    }
                }
            }
            let full = Pass {
                rows: [row, row + upper].map(|row| words[row * groups..].as_ptr()),
                row_stride: groups * size_of::<u32>(),
                vectors: both.map(|panel| vectors[strides.at(panel, 0)..].as_ptr()),
                vector_stride: strides.group * size_of::<Vector>(),
                steps: whole,
            };
            let last = tails.as_ref().map(|tails| Pass {
                rows: [0, upper].map(|row| tails.rows[row..].as_ptr().cast()),
                row_stride: size_of::<[u32; TILE]>(),
                vectors: tails.vectors.each_ref().map(|vectors| vectors.as_ptr()),
                vector_stride: size_of::<Vector>(),
                steps: 1,
            });
            let passes: &[Pass] = match last {
                Some(last) if whole > 0 => &[full, last],
                Some(last) => &[last],
                None => &[full],
            };
            // SAFETY: the registers are shaped; rows and vectors lie in the slices, as is checked
            // above.
            unsafe { tiles.multiply(numbers, passes, &mut sums) };
            take(Place { row, rows: end - row, panel, panels: SUM_PANELS.min(panels - panel) }, &sums);
        }
    }
}

impl<'a> Inputs<'a> {
    /// Those of a block whose panels lie in `vectors`.
    fn of(block: &'a Block<'_>, vectors: &'a [Vector]) -> Self {
        let groups = block.rows.groups;
        Self {
            words: &block.rows.words[block.first_row * groups..],
            groups,
            rows: block.row_count,
            vectors,
            panels: block.panel_count,
            strides: block.strides,
        }
    }
}

/// # Safety
/// The processor has AMX in 8 bits and AVX-512 F, and the process may use it. `values`, `scales`
/// and `corrections` start at the block's first panel; it has two rows at least.
#[target_feature(enable = "avx512f")]
pub(in crate::kernels) unsafe fn int8_block(
    values: &[i8],
    scales: &[f32],
    corrections: Option<&[i32]>,
    block: &Block<'_>,
    out: &mut Out<'_>,
) {
    assert!(scales.len() >= block.panel_count * LANES);
    assert!(corrections.is_none_or(|corrections| corrections.len() >= block.panel_count * LANES));
    let row_scales = &block.rows.scales[block.first_row..][..block.row_count];
    let inputs = Inputs::of(block, vectors(values, QUAD));
    // Each tile of sums fetches a piece of what is ahead.
    let tiles = block.row_count.div_ceil(SUM_ROWS) * block.panel_count.div_ceil(SUM_PANELS);
    let mut ahead = block.ahead.chunks(block.ahead.len().div_ceil(tiles).next_multiple_of(LINE).max(LINE));
    // SAFETY: as the caller promises; the slices have LANES numbers of each panel, rows and panels
    // are the block's.
    unsafe {
        multiply(Numbers::Bytes, &inputs, |place, sums| {
            for line in ahead.next().unwrap_or_default().chunks(LINE) {
                _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
            }
            for p in 0..place.panels {
                let panel = place.panel + p;
                let scale = _mm512_loadu_ps(scales.as_ptr().add(panel * LANES));
                let correction = match corrections {
                    Some(corrections) => _mm512_loadu_si512(corrections.as_ptr().add(panel * LANES).cast()),
                    None => _mm512_setzero_si512(),
                };
                let column = Column::new(out, place.row, panel);
                for (r, row_scale) in row_scales[place.row..][..place.rows].iter().enumerate() {
                    let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums.at(r, p), correction));
                    column.store(r, _mm512_mul_ps(sum, _mm512_mul_ps(scale, _mm512_set1_ps(*row_scale))));
                }
            }
        });
    }
}

/// Bytes that are fetched at a time.
const LINE: usize = 64;

/// # Safety
/// The processor has AMX in bf16 and AVX-512 F, and the process may use it. `values` starts at the
/// block's first panel; it has two rows at least.
#[target_feature(enable = "avx512f")]
pub(in crate::kernels) unsafe fn bf16_block(values: &[bf16], block: &Block<'_>, out: &mut Out<'_>) {
    let inputs = Inputs::of(block, vectors(values, PAIR));
    // SAFETY: as the caller promises; rows and panels are the block's.
    unsafe {
        multiply(Numbers::Bf16, &inputs, |place, sums| {
            for p in 0..place.panels {
                let column = Column::new(out, place.row, place.panel + p);
                for r in 0..place.rows {
                    column.store(r, _mm512_castsi512_ps(sums.at(r, p)));
                }
            }
        });
    }
}

/// Panels as vectors, each of a group of `group` inputs.
pub(in crate::kernels) fn vectors<T: bytemuck::NoUninit>(values: &[T], group: usize) -> &[Vector] {
    let vector = LANES * group;
    bytemuck::cast_slice(&values[..values.len() / vector * vector])
}
