//! The committed header is what cbindgen makes of `src/ffi`, and carries Cargo's version.

use std::fs;
use std::path::Path;

use cbindgen::{Builder, Config};

/// In the order in which the header has them.
const SOURCES: [&str; 5] = ["types.rs", "engine.rs", "session.rs", "result.rs", "info.rs"];
const REWRITE: &str = "UPDATE_HEADER=1 cargo test --release --test header";

#[test]
fn the_committed_header_is_generated() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = Config::from_file(root.join("cbindgen.toml")).unwrap();
    config.after_includes = Some(version_macros());
    let mut builder = Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root.join("src/ffi").join(source));
    }
    let mut generated = Vec::new();
    builder.generate().unwrap().write(&mut generated);
    let generated = String::from_utf8(generated).unwrap();

    let path = root.join("include/smolvlm.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap();
    let differing = committed.lines().zip(generated.lines()).position(|(a, b)| a != b);
    assert!(committed == generated, "include/smolvlm.h differs from line {differing:?} on; {REWRITE}");
}

fn version_macros() -> String {
    let parts = [
        ("MAJOR", env!("CARGO_PKG_VERSION_MAJOR")),
        ("MINOR", env!("CARGO_PKG_VERSION_MINOR")),
        ("PATCH", env!("CARGO_PKG_VERSION_PATCH")),
    ];
    let mut text = String::from("\n/** The version of this header; smolvlm_version() has the library's. */\n");
    for (name, value) in parts {
        text += &format!("#define SMOLVLM_VERSION_{name} {value}\n");
    }
    text += &format!("#define SMOLVLM_VERSION_STRING \"{}\"\n", env!("CARGO_PKG_VERSION"));
    text += "#define SMOLVLM_VERSION_NUMBER \\\n    \
             (SMOLVLM_VERSION_MAJOR * 10000 + SMOLVLM_VERSION_MINOR * 100 + SMOLVLM_VERSION_PATCH)";
    text
}
