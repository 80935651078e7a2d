//! `src/kernels`, its tests among it, without the rest of the crate; `make test-asan`.

// What the rest of the crate uses is not used here.
#![allow(dead_code, unused_imports)]

#[path = "../../src/fork.rs"]
mod fork;
#[path = "../../src/kernels/mod.rs"]
mod kernels;
#[path = "../../src/log.rs"]
mod log;
