//! Checkpoints in every layout that tools write: a golden one with some of its files said
//! otherwise, and the same answer.
#![cfg(feature = "candle")]

#[path = "layouts/copy.rs"]
mod copy;
#[path = "layouts/ends.rs"]
mod ends;
#[path = "layouts/head.rs"]
mod head;
#[path = "layouts/homes.rs"]
mod homes;
#[cfg(feature = "onnx")]
#[path = "support/onnxruntime.rs"]
mod onnxruntime;
#[path = "layouts/rows.rs"]
mod rows;
