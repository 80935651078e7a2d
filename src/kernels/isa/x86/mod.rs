//! x86-64's sets of instructions.

#[cfg(target_os = "linux")]
pub(in crate::kernels) mod amx;
pub(in crate::kernels) mod avx2;
pub(in crate::kernels) mod avx512;
mod hadamard;
mod round;

pub(super) use hadamard::{hadamard_halves, hadamard_lanes};
pub(super) use round::{round_with_feedback, round_with_feedback_in_halves};
