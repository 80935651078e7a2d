//! Which kernels this processor can run.

use std::sync::LazyLock;

/// The sets of kernels, the best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cpu {
    /// Plain Rust.
    Portable,
    /// AVX-512 with VNNI and BF16: Zen 4, Cooper Lake, Sapphire Rapids and newer.
    Avx512,
}

impl Cpu {
    /// The best set that runs here. The environment variable `SMOLVLM_CPU=portable` switches the others off, for tests.
    pub fn detect() -> Self {
        static FOUND: LazyLock<Cpu> = LazyLock::new(|| {
            let switched_off = std::env::var("SMOLVLM_CPU").is_ok_and(|name| name == "portable");
            if !switched_off && has_avx512() { Cpu::Avx512 } else { Cpu::Portable }
        });
        *FOUND
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512dq")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("avx512bf16")
        && std::is_x86_feature_detected!("avx512vnni")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}
