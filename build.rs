//! Names the shared library's ABI, and tells the crate what it is built for.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let var = |name: &str| env::var(name).unwrap_or_default();
    println!("cargo::rustc-env=SMOLVLM_TARGET={}", var("TARGET"));
    let features = ["candle", "onnx", "cuda", "metal"];
    let built = |feature: &&str| env::var_os(format!("CARGO_FEATURE_{}", feature.to_uppercase())).is_some();
    let backends: String = features.iter().filter(|f| built(f)).map(|f| format!(" {f}")).collect();
    println!("cargo::rustc-env=SMOLVLM_BACKENDS={backends}");
    if var("CARGO_CFG_TARGET_OS") == "linux" {
        // While the major version is 0, a minor one may break the ABI.
        let abi = match var("CARGO_PKG_VERSION_MAJOR").as_str() {
            "0" => format!("0.{}", var("CARGO_PKG_VERSION_MINOR")),
            major => major.to_owned(),
        };
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libsmolvlm.so.{abi}");
        // A program may close the library while its threads, or what a thread keeps for itself,
        // still need its code.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
