//! Tiles, normalised values and transparency equal the reference's to the byte:
//! tests/golden/preprocess.

use std::fs;
use std::path::{Path, PathBuf};

use image::{DynamicImage, Rgb, RgbImage, Rgba, RgbaImage};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use smolvlm::preprocess::{Normalise, TileOptions, composite_on_white, tiles};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    composite_sha256: String,
    normalise: Vec<NormaliseCase>,
}

#[derive(Debug, Deserialize)]
struct Case {
    file: Option<String>,
    kind: Option<String>,
    width: Option<u32>,
    height: Option<u32>,
    tile_size: usize,
    longest_edge: usize,
    split: bool,
    rows: usize,
    cols: usize,
    count: usize,
    sha256: String,
}

#[derive(Deserialize)]
struct NormaliseCase {
    rescale_factor: f64,
    mean: [f64; 3],
    std: [f64; 3],
    bits: Vec<Vec<u32>>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/preprocess")
}

fn golden() -> Golden {
    serde_json::from_slice(&fs::read(folder().join("cases.json")).unwrap()).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The formulas of tools/golden/pictures.py.
fn picture(kind: &str, width: u32, height: u32) -> RgbImage {
    let value = |x: u32, y: u32, c: u32| match kind {
        "hash" => {
            let mixed = x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663) ^ c.wrapping_mul(83_492_791);
            mixed.wrapping_mul(2_654_435_761) >> 24
        }
        "waves" => {
            let t = (x * 5 + y * (3 + 2 * c)) & 511;
            t.min(511 - t)
        }
        "blocks" => ((x / 7 + y / 5 + c) & 1) * 255,
        _ => panic!("unknown kind of picture: {kind}"),
    };
    RgbImage::from_fn(width, height, |x, y| Rgb([0, 1, 2].map(|c| value(x, y, c) as u8)))
}

fn read_png(file: &str) -> RgbImage {
    let image = image::load_from_memory(&fs::read(folder().join(file)).unwrap()).unwrap();
    match image {
        DynamicImage::ImageRgba8(_) | DynamicImage::ImageLumaA8(_) => composite_on_white(&image.to_rgba8()),
        _ => image.to_rgb8(),
    }
}

#[test]
fn every_tile_equals_the_reference() {
    let cases = golden().cases;
    assert!(cases.len() >= 40, "{} cases", cases.len());
    assert!(cases.iter().filter(|case| case.file.is_some()).count() >= 16);
    let mut different = Vec::new();
    for case in &cases {
        let image = match (&case.file, &case.kind, case.width, case.height) {
            (Some(file), ..) => read_png(file),
            (None, Some(kind), Some(width), Some(height)) => picture(kind, width, height),
            _ => panic!("neither a file nor a formula: {case:?}"),
        };
        let options =
            TileOptions { tile_size: case.tile_size, longest_edge: case.longest_edge, split: case.split, threads: 2 };
        let cut = tiles(&image, &options, &mut || false).unwrap().unwrap();
        let shape = (cut.rows, cut.cols, cut.count());
        if shape != (case.rows, case.cols, case.count) || sha256(&cut.pixels) != case.sha256 {
            different.push(format!("{case:?}: {shape:?}"));
        }
    }
    assert!(different.is_empty(), "{} of {} differ:\n{}", different.len(), cases.len(), different.join("\n"));
}

#[test]
fn normalised_values_equal_the_reference() {
    let cases = golden().normalise;
    assert!(!cases.is_empty());
    for case in cases {
        let normalise = Normalise::new(case.rescale_factor, case.mean, case.std);
        assert_eq!(case.bits.len(), 3);
        for (channel, bits) in case.bits.iter().enumerate() {
            let ours = normalise.channel(channel).map(f32::to_bits);
            assert_eq!(ours.as_slice(), bits, "channel {channel}");
        }
    }
}

#[test]
fn transparency_equals_the_reference() {
    let rgba = RgbaImage::from_fn(256, 256, |v, a| {
        let (v, a) = (v as u8, a as u8);
        Rgba([v, 255 - v, v ^ a, a])
    });
    assert_eq!(sha256(composite_on_white(&rgba).as_raw()), golden().composite_sha256);
}
