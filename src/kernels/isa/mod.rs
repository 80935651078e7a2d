//! What each set of instructions has of its own, and what is taken of it on the processor at hand.

mod hadamard;
mod portable;
mod quantise;
mod round;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

pub(super) use self::hadamard::{BAND, centre_columns, hadamard, hadamard_columns, mix, thirds};
pub(super) use self::quantise::{keys_to_int8, to_int8, to_int8_twice, to_int16};
pub(super) use self::round::{Step, look_ahead, round_with_feedback};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use self::x86::amx;
#[cfg(target_arch = "x86_64")]
use self::x86::{avx2, avx512};
use super::cpu::Cpu;
use super::layout::LANES;
use super::product::{Block, Out, Panels};

/// Computes a block with the kernels of `cpu`.
pub(in crate::kernels) fn product(block: &Block<'_>, out: &mut Out<'_>, cpu: Cpu) {
    assert!(out.columns <= block.panel_count * LANES && out.columns > (block.panel_count - 1) * LANES);
    // A few rows fill no tile: they get what AVX-512 has for them.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if cpu == Cpu::Amx && block.row_count > avx512::TILE_ROWS {
        // SAFETY: a set exists only where the processor has its instructions; there are rows
        // enough.
        match block.panels {
            Panels::Bf16(values) => return unsafe { amx::bf16_block(values, block, out) },
            // SAFETY: as above.
            Panels::Int8 { values, scales, corrections } => {
                return unsafe {
                    amx::int8_block(values, scales, corrections, block, out);
                };
            }
            Panels::Int4 { .. } => {}
        }
    }
    match (block.panels, cpu) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a set exists only where the processor has its instructions.
        (Panels::Bf16(values), Cpu::Avx512Bf16) => unsafe { avx512::bf16_block(values, block, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Panels::Bf16(values), Cpu::Avx512F | Cpu::Avx512 | Cpu::Amx) => unsafe {
            avx512::bf16_block_in_f32(values, block, out)
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Panels::Int8 { values, scales, corrections }, Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx) => unsafe {
            avx512::int8_block(values, scales, corrections, block, out);
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Panels::Int4 { values, high, scales }, Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx) => unsafe {
            avx512::int4_block((values, high), scales, block, out);
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Panels::Bf16(values), Cpu::Avx2 | Cpu::AvxVnni) => unsafe { avx2::bf16_block(values, block, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Panels::Int8 { values, scales, corrections }, Cpu::Avx2 | Cpu::Avx512F) => unsafe {
            avx2::int8_block(values, scales, corrections, block, out);
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Panels::Int8 { values, scales, corrections }, Cpu::AvxVnni) => unsafe {
            avx2::int8_vnni_block(values, scales, corrections, block, out);
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Panels::Int4 { values, high, scales }, Cpu::Avx2 | Cpu::Avx512F | Cpu::AvxVnni) => unsafe {
            avx2::int4_block((values, high), scales, block, out);
        },
        (Panels::Bf16(values), _) => portable::bf16(block, values, out),
        (Panels::Int4 { values, high, scales }, _) => portable::int4(block, (values, high), scales, out),
        (Panels::Int8 { values, scales, corrections }, _) => portable::int8(block, values, scales, corrections, out),
    }
}

#[cfg(test)]
pub(in crate::kernels) mod tests {
    use super::*;
    use crate::kernels::layout::{OFFSET, QUAD, Strides};
    use crate::kernels::rows::Rows;

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
            let portable = int8_product(rows, panels, |block, out| product(block, out, Cpu::Portable));
            for cpu in Cpu::available() {
                assert_eq!(
                    int8_product(rows, panels, |block, out| product(block, out, cpu)),
                    portable,
                    "{cpu:?} {rows} {panels}"
                );
            }
        }
    }
}
