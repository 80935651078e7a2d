//! Attention over packed keys and values, a few query rows and a block of positions at a time, with
//! an online softmax: the score matrix is never there.
//!
//! Keys are the weights of one packed product (inputs: head_dim, outputs: positions), values of a
//! second one (inputs: positions, outputs: head_dim), whose rows are softmax's weights. Those are
//! bf16 as the values are, or 8 or 16 bits, of the largest one in their block; sums are f32.

mod attend;
mod cache;
mod int16;
mod int8;
mod product;
mod softmax;
mod stored;

pub use attend::Attend;
pub use cache::{CacheRoom, KeyValueCache};
pub use int8::Int8KeysValues;
pub use int16::{Int16KeysValues, Int16Room};
pub use stored::{Heads, Stored};
