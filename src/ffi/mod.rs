//! The C API: thin functions that check, call and convert; the header `include/smolvlm.h` is made
//! from here.
//!
//! Every fallible function runs in [`guard::run`]; every pointer comes in through [`arg`], which
//! names its parameter. What a function promises its C caller is said once, in its documentation,
//! which cbindgen copies into the header; hence no `# Safety` sections.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![allow(non_camel_case_types, clippy::missing_safety_doc)]

mod arg;
pub mod engine;
mod guard;
pub mod info;
pub mod result;
pub mod session;
pub mod types;

#[cfg(test)]
mod tests;
