//! CPU kernels behind safe functions, chosen at run time by what the processor can do. The portable
//! version of each is its reference.
//!
//! Everything is built on one thing, the packed product of [`block`]: linear layers multiply by
//! packed weights, attention by packed keys and values. What can be shared out goes to the [`team`]
//! of the caller's pass.

mod aligned;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod block;
mod cpu;
mod hessian;
mod linear;
mod math;
mod rotary;
mod rotation;
mod rows;
mod team;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use aligned::Mapped;
pub use attention::{Attend, CacheRoom, Heads, Int8KeysValues, Int16KeysValues, Int16Room, KeyValueCache, Stored};
pub use cpu::Cpu;
pub use hessian::Hessian;
pub use linear::{Mix, PackedLinear, Precision, Then};
pub(crate) use math::{from_bf16, multiply};
pub use rotary::rotate;
pub use rotation::{Rotation, spread, spread_of, spread_rows};
pub use rows::{Rows, grow, layer_norm, rms_norm, take_off_int8};
pub use team::{Split, gather, share, size as threads};
