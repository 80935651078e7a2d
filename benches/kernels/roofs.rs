//! What the machine can do at best: instructions on registers alone, and reading memory alone.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use smolvlm::kernels::{Cpu, Precision};

/// The best of some runs: the machine is not ours alone.
const RUNS: usize = 8;
const LOOPS: u64 = 2_000_000;

/// Seconds that `threads` threads take for `work`, all at once.
fn seconds(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let run = || {
        let barrier = Barrier::new(threads);
        let timed = |thread| {
            barrier.wait();
            let start = Instant::now();
            work(thread);
            start.elapsed()
        };
        std::thread::scope(|scope| {
            let timed = &timed;
            let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || timed(thread))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).max().unwrap_or(Duration::ZERO)
        })
    };
    (0..RUNS).map(|_| run().as_secs_f64()).fold(f64::INFINITY, f64::min)
}

/// Billions of operations a second that these kernels' instructions reach, and which they are.
#[cfg(target_arch = "x86_64")]
pub fn products(cpu: Cpu, precision: Precision, threads: usize) -> (f64, &'static str) {
    // What a loop does, the operations in it, and its instructions.
    let (work, operations, what): (fn(), u64, _) = match (cpu, precision) {
        (Cpu::Portable, _) => (x86::mul_add_sse, 12 * 8, "MULPS and ADDPS, 128 bits"),
        (Cpu::Avx512F | Cpu::Avx512, Precision::Bf16) => (x86::fma_wide, 24 * 32, "VFMADD231PS, 512 bits"),
        (Cpu::Avx512Bf16, Precision::Bf16) => (x86::dpbf16, 24 * 64, "VDPBF16PS, 512 bits"),
        (Cpu::Avx512 | Cpu::Avx512Bf16, _) => (x86::dpbusd, 24 * 128, "VPDPBUSD, 512 bits"),
        (Cpu::Amx, Precision::Bf16) => (x86::tdpbf16ps, 4 * 2 * 16 * 16 * 32, "TDPBF16PS"),
        (Cpu::Amx, _) => (x86::tdpbusd, 4 * 2 * 16 * 16 * 64, "TDPBUSD"),
        (Cpu::AvxVnni, Precision::Int8 | Precision::Int4 | Precision::Int5 | Precision::Int6) => {
            (x86::dpbusd_vex, 12 * 64, "VPDPBUSD, 256 bits")
        }
        (Cpu::Avx2 | Cpu::Avx512F, Precision::Int8 | Precision::Int4 | Precision::Int5 | Precision::Int6) => {
            (x86::maddubs, 4 * 64, "VPSIGNB, VPMADDUBSW, VPMADDWD and VPADDD, 256 bits")
        }
        (Cpu::Avx2 | Cpu::AvxVnni, Precision::Bf16) => (x86::fma, 12 * 16, "VFMADD231PS, 256 bits"),
    };
    let total = (threads as u64 * LOOPS * operations) as f64;
    (total / seconds(threads, |_| work()) / 1e9, what)
}

#[cfg(not(target_arch = "x86_64"))]
pub fn products(_: Cpu, _: Precision, _: usize) -> (f64, &'static str) {
    (f64::NAN, "not measured on this processor")
}

/// Billions of bytes a second that threads read, each its part of a memory of `bytes`, again and
/// again.
pub fn reading(bytes: usize, threads: usize) -> f64 {
    let part = (bytes / threads).next_multiple_of(BLOCK);
    let memory = vec![1u8; part * threads];
    let times = (20_000_000 / bytes).max(2);
    let all = seconds(threads, |thread| (0..times).for_each(|_| read(&memory[thread * part..][..part])));
    (times * part * threads) as f64 / all / 1e9
}

/// Bytes that a step reads.
const BLOCK: usize = 512;

fn read(memory: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if Cpu::detect() >= Cpu::Avx2 {
        // SAFETY: these sets exist only where the processor has AVX2.
        unsafe { x86::read(memory) };
        return;
    }
    let sum = memory.chunks_exact(8).fold(0u64, |sum, x| sum ^ u64::from_ne_bytes(x.try_into().unwrap()));
    std::hint::black_box(sum);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    use super::{BLOCK, LOOPS};

    /// A function that runs `$instructions` LOOPS times for every register number of a list, `\\i`.
    /// Its caller knows that the processor has them.
    macro_rules! registers {
        ($name:ident, [$($number:literal),*], $clear:literal, $($instruction:literal),*) => {
            pub fn $name() {
                // SAFETY: registers alone, and all that a call may change are given as changed.
                unsafe {
                    asm!(
                        concat!(".irp i,", $($number, ","),*, "31"),
                        concat!(".if \\i < 31\n", $clear, "\n.endif"),
                        ".endr",
                        "2:",
                        concat!(".irp i,", $($number, ","),*, "31"),
                        ".if \\i < 31",
                        $($instruction,)*
                        ".endif",
                        ".endr",
                        "dec rcx",
                        "jnz 2b",
                        inout("rcx") LOOPS => _,
                        clobber_abi("C"),
                        options(nomem, nostack),
                    );
                }
            }
        };
    }

    macro_rules! twenty_four {
        ($name:ident, $instruction:literal) => {
            registers!(
                $name,
                [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23],
                "vpxord zmm\\i, zmm\\i, zmm\\i",
                $instruction
            );
        };
    }

    twenty_four!(dpbusd, "vpdpbusd zmm\\i, zmm24, zmm25");
    twenty_four!(dpbf16, "vdpbf16ps zmm\\i, zmm24, zmm25");
    twenty_four!(fma_wide, "vfmadd231ps zmm\\i, zmm24, zmm25");

    macro_rules! twelve {
        ($name:ident, $clear:literal, $($instruction:literal),*) => {
            registers!($name, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], $clear, $($instruction),*);
        };
    }

    twelve!(fma, "vpxor ymm\\i, ymm\\i, ymm\\i", "vfmadd231ps ymm\\i, ymm14, ymm15");
    twelve!(dpbusd_vex, "vpxor ymm\\i, ymm\\i, ymm\\i", "{{vex}} vpdpbusd ymm\\i, ymm14, ymm15");
    twelve!(mul_add_sse, "pxor xmm\\i, xmm\\i", "movaps xmm13, xmm14", "mulps xmm13, xmm15", "addps xmm\\i, xmm13");
    registers!(
        maddubs,
        [0, 1, 2, 3],
        "vpxor ymm\\i, ymm\\i, ymm\\i",
        "vpsignb ymm12, ymm13, ymm14",
        "vpmaddubsw ymm12, ymm13, ymm12",
        "vpmaddwd ymm12, ymm12, ymm15",
        "vpaddd ymm\\i, ymm\\i, ymm12"
    );

    /// A function that multiplies tiles of 16 rows of 64 bytes, four at a time, LOOPS times. Its
    /// caller knows that the processor has them, and that the process may use them.
    macro_rules! tiles {
        ($name:ident, $instruction:literal) => {
            pub fn $name() {
                #[repr(align(64))]
                struct Shapes([u8; 64]);
                let mut shapes = Shapes([0; 64]);
                shapes.0[0] = 1;
                shapes.0[16..32].iter_mut().step_by(2).for_each(|bytes| *bytes = 64);
                shapes.0[48..56].fill(16);
                // SAFETY: registers alone, all of which are given as changed, and the shapes of the
                // one palette.
                unsafe {
                    asm!(
                        "ldtilecfg [rdx]",
                        "2:",
                        concat!($instruction, " tmm0, tmm4, tmm6"),
                        concat!($instruction, " tmm1, tmm4, tmm7"),
                        concat!($instruction, " tmm2, tmm5, tmm6"),
                        concat!($instruction, " tmm3, tmm5, tmm7"),
                        "dec rcx",
                        "jnz 2b",
                        "tilerelease",
                        in("rdx") &shapes,
                        inout("rcx") LOOPS => _,
                        clobber_abi("C"),
                        options(nostack, readonly),
                    );
                }
            }
        };
    }

    tiles!(tdpbusd, "tdpbusd");
    tiles!(tdpbf16ps, "tdpbf16ps");

    /// # Safety
    /// The processor has AVX.
    pub unsafe fn read(memory: &[u8]) {
        assert!(memory.len() >= BLOCK && memory.len().is_multiple_of(BLOCK));
        // SAFETY: reads the slice alone.
        unsafe {
            asm!(
                "2:",
                ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "vmovdqu ymm\\i, [rsi + 32 * \\i]",
                ".endr",
                // Beyond the page that the processor's own prefetching ends with.
                ".irp i,0,1,2,3,4,5,6,7",
                "prefetcht0 [rsi + 2048 + 64 * \\i]",
                ".endr",
                "add rsi, 512",
                "cmp rsi, rdi",
                "jb 2b",
                inout("rsi") memory.as_ptr() => _,
                inout("rdi") memory.as_ptr_range().end => _,
                clobber_abi("C"),
                options(readonly, nostack),
            );
        }
    }
}
