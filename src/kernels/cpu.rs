//! Which kernels this processor can run.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// The same with AVX-VNNI: Alder Lake, Zen 5 and newer.
    AvxVnni,
    /// AVX-512 with VNNI and BF16: Zen 4, Cooper Lake, Sapphire Rapids and newer.
    Avx512,
}

impl Cpu {
    const ALL: [Cpu; 4] = [Cpu::Portable, Cpu::Avx2, Cpu::AvxVnni, Cpu::Avx512];

    /// Its name in [`VARIABLE`].
    pub fn name(self) -> &'static str {
        match self {
            Cpu::Portable => "portable",
            Cpu::Avx2 => "avx2",
            Cpu::AvxVnni => "avxvnni",
            Cpu::Avx512 => "avx512",
        }
    }

    /// The best set that runs here, and is not better than the one that [`VARIABLE`] names.
    pub fn detect() -> Self {
        static SETS: LazyLock<Vec<Cpu>> = LazyLock::new(Cpu::available);
        static SAID: AtomicBool = AtomicBool::new(false);
        let best = SETS[SETS.len() - 1];
        if !SAID.load(Ordering::Relaxed) && !SAID.swap(true, Ordering::Relaxed) {
            if let Err(error) = limit(std::env::var(VARIABLE).ok().as_deref()) {
                log::warn(format_args!("{error}"));
            }
            log::info(format_args!("kernels: {}", best.name()));
        }
        best
    }

    /// The sets that run here, and are not better than the one that [`VARIABLE`] names; the best last.
    pub fn available() -> Vec<Self> {
        let limit = limit(std::env::var(VARIABLE).ok().as_deref()).unwrap_or(Cpu::Avx512);
        Self::ALL.into_iter().filter(|&cpu| cpu <= limit && cpu.runs_here()).collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn runs_here(self) -> bool {
        use std::is_x86_feature_detected as has;
        match self {
            Cpu::Portable => true,
            Cpu::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Cpu::AvxVnni => Cpu::Avx2.runs_here() && has!("avxvnni"),
            Cpu::Avx512 => {
                Cpu::Avx2.runs_here()
                    && has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512dq")
                    && has!("avx512vl")
                    && has!("avx512bf16")
                    && has!("avx512vnni")
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn runs_here(self) -> bool {
        self == Cpu::Portable
    }
}

/// The set that the variable's value names; the best one if there is none.
fn limit(value: Option<&str>) -> Result<Cpu, String> {
    let Some(value) = value else { return Ok(Cpu::Avx512) };
    Cpu::ALL.into_iter().find(|cpu| cpu.name() == value).ok_or_else(|| {
        let names = Cpu::ALL.map(Cpu::name).join(", ");
        format!("{VARIABLE}: \"{value}\" is none of {names}; it is ignored")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_limit_and_anything_else_is_an_error() {
        assert_eq!(limit(None), Ok(Cpu::Avx512));
        for cpu in Cpu::ALL {
            assert_eq!(limit(Some(cpu.name())), Ok(cpu));
        }
        let error = limit(Some("AVX2")).unwrap_err();
        assert_eq!(error, "SMOLVLM_CPU: \"AVX2\" is none of portable, avx2, avxvnni, avx512; it is ignored");
    }

    #[test]
    fn the_best_set_is_within_the_limit() {
        let sets = Cpu::available();
        // Shown by `--nocapture`: the test under Valgrind looks for it.
        println!("kernels here: {sets:?}");
        assert_eq!((sets[0], sets.last()), (Cpu::Portable, Some(&Cpu::detect())));
        let named = Cpu::ALL.into_iter().find(|cpu| std::env::var(VARIABLE).is_ok_and(|name| name == cpu.name()));
        assert!(Cpu::detect() <= named.unwrap_or(Cpu::Avx512));
    }
}
