//! AVX-512's kernels.

mod bf16;
mod int16;
mod int4;
mod int8;
mod quantise;
pub(in crate::kernels) mod softmax;
pub(in crate::kernels) mod tile;

pub(in crate::kernels) use bf16::{bf16_block, bf16_block_in_f32};
pub(in crate::kernels) use int4::int4_block;
pub(in crate::kernels) use int8::int8_block;
pub(in crate::kernels) use int16::{KEY_BLOCK, keys_to_int8, to_int16};
pub(in crate::kernels) use quantise::{to_int8, to_int8_twice};
#[cfg(target_os = "linux")]
pub(in crate::kernels) use tile::TILE_ROWS;
