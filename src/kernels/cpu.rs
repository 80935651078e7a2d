//! Which kernels this processor can run.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::precision::Precision;
use crate::log;

/// The environment variable that names the best set to be used, for tests and comparisons.
const VARIABLE: &str = "SMOLVLM_CPU";

/// The sets of kernels, the best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cpu {
    /// Plain Rust.
    Portable,
    /// AVX2 with FMA and F16C: Haswell, Zen and newer.
    Avx2,
    /// The same, and bf16 in AVX-512, without VNNI: Skylake-X and its Xeons.
    Avx512F,
    /// AVX2 with AVX-VNNI: Alder Lake, Zen 5 and newer.
    AvxVnni,
    /// AVX-512 with VNNI: Cascade Lake, Ice Lake, Zen 4 and newer.
    Avx512,
    /// The same, and bf16 in VDPBF16PS instead of f32: Zen 4 and newer. Cooper Lake, Sapphire
    /// Rapids and newer have it too, and [`Cpu::detect`] passes it over there.
    Avx512Bf16,
    /// The same as `Avx512`, and AMX for more than a few rows: Sapphire Rapids and newer, on Linux.
    Amx,
}

impl Cpu {
    const ALL: [Cpu; 7] =
        [Cpu::Portable, Cpu::Avx2, Cpu::Avx512F, Cpu::AvxVnni, Cpu::Avx512, Cpu::Avx512Bf16, Cpu::Amx];

    /// Its name in [`VARIABLE`].
    pub fn name(self) -> &'static str {
        match self {
            Cpu::Portable => "portable",
            Cpu::Avx2 => "avx2",
            Cpu::Avx512F => "avx512f",
            Cpu::AvxVnni => "avxvnni",
            Cpu::Avx512 => "avx512",
            Cpu::Avx512Bf16 => "avx512bf16",
            Cpu::Amx => "amx",
        }
    }

    /// The best set that runs here, and is not better than the one that [`VARIABLE`] names.
    pub fn detect() -> Self {
        static BEST: LazyLock<Cpu> = LazyLock::new(|| {
            let named = limit(std::env::var(VARIABLE).ok().as_deref()).ok().flatten();
            let fits = |&cpu: &Cpu| (named == Some(cpu) || cpu.is_worth_it()) && cpu.runs_here();
            Cpu::available().into_iter().rfind(fits).unwrap_or(Cpu::Portable)
        });
        static SAID: AtomicBool = AtomicBool::new(false);
        let best = *BEST;
        if !SAID.load(Ordering::Relaxed) && !SAID.swap(true, Ordering::Relaxed) {
            if let Err(error) = limit(std::env::var(VARIABLE).ok().as_deref()) {
                log::warn(format_args!("{error}"));
            }
            log::info(format_args!("kernels: {}", best.name()));
        }
        best
    }

    /// A set without the widest registers, for the densest of float arithmetic: on a Xeon of model
    /// 207, integer products that follow GELU in 512 bits are slower by a twentieth than after GELU
    /// in 256, as if its clock were lower for a while.
    pub(super) fn narrow(self) -> Self {
        self.min(Cpu::Avx2)
    }

    /// Whether few rows' product with such weights takes the time that reading them takes, however
    /// many bits the rows have. Without VNNI a byte's product is four instructions, and weights of
    /// fewer bits have to be taken apart.
    pub fn waits_for_weights(self, precision: Precision) -> bool {
        precision == Precision::Int8 && self >= Cpu::AvxVnni
    }

    /// The sets that run here, and are not better than the one that [`VARIABLE`] names; the best
    /// last. In tests, AMX is emulated where it is not to be had.
    pub fn available() -> Vec<Self> {
        let limit = limit(std::env::var(VARIABLE).ok().as_deref()).ok().flatten().unwrap_or(Cpu::Amx);
        Self::ALL.into_iter().filter(|&cpu| cpu <= limit && (cpu.runs_here() || cpu.is_emulated())).collect()
    }

    fn is_emulated(self) -> bool {
        #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
        if self == Cpu::Amx && Cpu::Avx512.runs_here() {
            super::isa::x86::amx::emulator::install();
            return true;
        }
        false
    }

    /// Whether the set is faster than the one before it. Intel's VDPBF16PS does 64 operations in
    /// two cycles, its VFMADD231PS twice 32 in one (measured on a Xeon of model 207: 166 GFLOP/s of
    /// 342).
    fn is_worth_it(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self == Cpu::Avx512Bf16 {
            #[allow(unused_unsafe, reason = "safe from Rust 1.94 on")]
            // SAFETY: every x86-64 processor has the instruction.
            let vendor = unsafe { std::arch::x86_64::__cpuid(0) };
            return [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() != b"GenuineIntel";
        }
        true
    }

    #[cfg(target_arch = "x86_64")]
    fn runs_here(self) -> bool {
        use std::is_x86_feature_detected as has;
        match self {
            Cpu::Portable => true,
            Cpu::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Cpu::Avx512F => {
                Cpu::Avx2.runs_here() && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")
            }
            Cpu::AvxVnni => Cpu::Avx2.runs_here() && has!("avxvnni"),
            Cpu::Avx512 => Cpu::Avx512F.runs_here() && has!("avx512vnni"),
            Cpu::Avx512Bf16 => Cpu::Avx512.runs_here() && has!("avx512bf16"),
            Cpu::Amx => Cpu::Avx512.runs_here() && amx_runs_here(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn runs_here(self) -> bool {
        self == Cpu::Portable
    }
}

/// Whether the processor has AMX in bf16 and 8 bits, and the system lets this process use it: it
/// has to be asked, since tiles make what it saves of a thread larger by 8 KiB. From then on, and
/// in all threads, it accepts no stack for signals that these would not fit on, and where one is in
/// use already, it says no. See the Linux kernel's `Documentation/arch/x86/xstate.rst`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_runs_here() -> bool {
    use std::arch::x86_64::__cpuid_count;
    const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XTILEDATA: libc::c_ulong = 18;
    static RUNS: LazyLock<bool> = LazyLock::new(|| {
        #[allow(unused_unsafe, reason = "safe from Rust 1.94 on")]
        // SAFETY: every x86-64 processor has the instruction.
        let [leaves, features] = unsafe { [__cpuid_count(0, 0).eax, __cpuid_count(7, 0).edx] };
        // SAFETY: the call takes two numbers, and reads and writes no memory of ours.
        let granted = || unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 };
        if leaves < 7 || features & BF16_TILE_INT8 != BF16_TILE_INT8 {
            return false;
        }
        let granted = granted();
        if !granted {
            log::info(format_args!("AMX: {}", std::io::Error::last_os_error()));
        }
        granted
    });
    *RUNS
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_runs_here() -> bool {
    false
}

/// The set that the variable's value names.
fn limit(value: Option<&str>) -> Result<Option<Cpu>, String> {
    let Some(value) = value else { return Ok(None) };
    Cpu::ALL.into_iter().find(|cpu| cpu.name() == value).map(Some).ok_or_else(|| {
        let names = Cpu::ALL.map(Cpu::name).join(", ");
        format!("{VARIABLE}: \"{value}\" is none of {names}; it is ignored")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_limit_and_anything_else_is_an_error() {
        assert_eq!(limit(None), Ok(None));
        for cpu in Cpu::ALL {
            assert_eq!(limit(Some(cpu.name())), Ok(Some(cpu)));
        }
        let error = limit(Some("AVX2")).unwrap_err();
        assert_eq!(
            error,
            "SMOLVLM_CPU: \"AVX2\" is none of portable, avx2, avx512f, avxvnni, avx512, avx512bf16, amx; it is ignored"
        );
    }

    #[test]
    fn amx_is_tested_wherever_avx_512_is() {
        // The tests of products and of attention take all of them.
        let sets = Cpu::available();
        let limit = limit(std::env::var(VARIABLE).ok().as_deref()).ok().flatten();
        let is_tested =
            cfg!(target_os = "linux") && sets.contains(&Cpu::Avx512) && limit.is_none_or(|cpu| cpu == Cpu::Amx);
        assert_eq!(sets.contains(&Cpu::Amx), is_tested);
    }

    #[test]
    fn the_best_set_is_within_the_limit() {
        let sets = Cpu::available();
        // Shown by `--nocapture`: the test under Valgrind looks for it.
        println!("kernels here: {sets:?}");
        let best = Cpu::detect();
        assert!(sets[0] == Cpu::Portable && sets.contains(&best));
        let named = Cpu::ALL.into_iter().find(|cpu| std::env::var(VARIABLE).is_ok_and(|name| name == cpu.name()));
        // None that is emulated.
        assert!(best.runs_here());
        match named {
            Some(named) if named.runs_here() => assert_eq!(best, named),
            Some(named) => assert!(best < named),
            None => {
                // What the kernel says of the processor, where this is Linux.
                let intel = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("GenuineIntel"));
                let passed_over = |cpu: Cpu| intel && cpu == Cpu::Avx512Bf16;
                assert_eq!(Some(best), sets.into_iter().rfind(|&cpu| !passed_over(cpu) && cpu.runs_here()));
            }
        }
    }
}
