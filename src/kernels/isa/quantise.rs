//! Numbers in 8 and 16 bits.

#[cfg(target_arch = "x86_64")]
use super::x86::avx512;
use crate::kernels::cpu::Cpu;
use crate::kernels::layout::{KeyPanel, LANES, QUAD};
use crate::kernels::math;

/// Four numbers to a word, in 8 bits plus OFFSET; missing ones are 0. What they have to be
/// multiplied by.
pub(in crate::kernels) fn to_int8(x: &[f32], words: &mut [u32], cpu: Cpu) -> f32 {
    match cpu {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these sets exist only where the processor has AVX-512 F and BW.
        Cpu::Avx512F | Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx => unsafe { avx512::to_int8(x, words) },
        _ => math::to_int8_elsewhere(x, words, cpu),
    }
}

/// The same in 16 bits: their upper halves to `high`, and what is left, in 8 bits too, to `low`.
/// What the lower ones have to be multiplied by; it is 256 times as much for the upper ones.
pub(in crate::kernels) fn to_int8_twice(x: &[f32], high: &mut [u32], low: &mut [u32], cpu: Cpu) -> f32 {
    match cpu {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these sets exist only where the processor has AVX-512 F and BW.
        Cpu::Avx512F | Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx => unsafe { avx512::to_int8_twice(x, high, low) },
        _ => math::to_int8_twice_elsewhere(x, high, low, cpu),
    }
}

/// `x` in 16 bits; what they have to be multiplied by.
pub(in crate::kernels) fn to_int16(x: &[f32], numbers: &mut [i16], cpu: Cpu) -> f32 {
    match cpu {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these sets exist only where the processor has AVX-512 F, BW and VL.
        Cpu::Avx512F | Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx => unsafe { avx512::to_int16(x, numbers) },
        _ => math::to_int16_elsewhere(x, numbers, cpu),
    }
}

/// Keys of up to LANES positions in 16 bits, with their scales, less `mean`; missing ones have a
/// sum of 0, and may be anything.
pub(in crate::kernels) fn keys_to_int8(keys: (&[i16], &[f32]), mean: &[f32], panel: KeyPanel<'_>, cpu: Cpu) {
    #[cfg(target_arch = "x86_64")]
    if cpu >= Cpu::Avx512 {
        // SAFETY: these sets exist only where the processor has AVX-512 F, BW, VL and VNNI.
        match mean.len().div_ceil(avx512::KEY_BLOCK) {
            1 => return unsafe { avx512::keys_to_int8::<1>(keys, mean, panel) },
            // SAFETY: as above.
            2 => return unsafe { avx512::keys_to_int8::<2>(keys, mean, panel) },
            _ => {}
        }
    }
    let cpu = cpu.narrow();
    let (mut row, mut key) = (vec![0.0; mean.len()], vec![0; mean.len().div_ceil(QUAD)]);
    panel.sums.fill(0);
    for (lane, (numbers, scale)) in keys.0.chunks_exact(mean.len()).zip(keys.1).enumerate() {
        math::from_int16(numbers, *scale, &mut row, cpu);
        (panel.scales[lane], panel.sums[lane]) = math::centre_to_int8(&row, mean, &mut key, cpu);
        panel.words.chunks_exact_mut(LANES).zip(&key).for_each(|(lanes, word)| lanes[lane] = *word);
    }
}
