//! CPU kernels behind safe functions, chosen at run time by what the processor can do. The portable
//! version of each is its reference.
//!
//! Everything is built on one thing, the packed [`product`]: linear layers multiply by packed
//! weights, attention by packed keys and values. What a processor has for it is in [`isa`]. What can
//! be shared out goes to the [`team`] of the caller's pass.

mod activations;
mod aligned;
mod attention;
mod cpu;
mod hessian;
mod isa;
mod layout;
mod linear;
mod math;
mod precision;
mod product;
mod rotary;
mod rotation;
mod rows;
mod scratch;
mod team;

pub use activations::{layer_norm, rms_norm, take_off_int8};
pub use aligned::Mapped;
pub use attention::{Attend, CacheRoom, Heads, Int8KeysValues, Int16KeysValues, Int16Room, KeyValueCache, Stored};
pub use cpu::Cpu;
pub use hessian::Hessian;
pub use linear::{Mix, PackedLinear, Then};
pub(crate) use math::{from_bf16, multiply};
pub use precision::Precision;
pub use rotary::rotate;
pub use rotation::{Rotation, spread, spread_of, spread_rows};
pub use rows::Rows;
pub use scratch::grow;
pub use team::{Split, gather, share, size as threads};
