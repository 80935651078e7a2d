//! CPU kernels behind safe functions, chosen at run time by what the processor can do. The portable version of each is its reference.
//!
//! Everything is built on one thing, the packed product of [`block`]: linear layers multiply by packed weights, attention by
//! packed keys and values.

mod attention;
mod block;
mod cpu;
mod linear;
mod math;
mod norm;
mod rotary;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use attention::{Attend, Columns, KeyValueCache};
pub use cpu::Cpu;
pub use linear::{Activation, PackedLinear, Precision, silu_mul};
pub use norm::{layer_norm, rms_norm};
pub use rotary::rotate;
