//! Names the shared library's ABI, and tells the crate what it is built for.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let var = |name: &str| env::var(name).unwrap_or_default();
    println!("cargo::rustc-env=SMOLVLM_TARGET={}", var("TARGET"));
    if var("CARGO_CFG_TARGET_OS") == "linux" {
        // While the major version is 0, a minor one may break the ABI.
        let abi = match var("CARGO_PKG_VERSION_MAJOR").as_str() {
            "0" => format!("0.{}", var("CARGO_PKG_VERSION_MINOR")),
            major => major.to_owned(),
        };
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libsmolvlm.so.{abi}");
    }
}
