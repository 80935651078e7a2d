//! Where the tests find ONNX Runtime.

use std::path::{Path, PathBuf};

use smolvlm::{BackendKind, DTypeKind, EngineOptions};

pub fn options(dtype: DTypeKind) -> EngineOptions {
    let path = std::env::var_os("ORT_DYLIB_PATH").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("build/onnxruntime/libonnxruntime.so"),
        PathBuf::from,
    );
    assert!(path.exists(), "{}: run `make onnxruntime`, or set ORT_DYLIB_PATH", path.display());
    EngineOptions { backend: BackendKind::Onnx, dtype, onnxruntime_path: Some(path), ..Default::default() }
}
