//! Picture files of every kind but JPEG as Pillow sees them, or an error that names the cause:
//! tests/golden/files, by tools/golden/files.py.

#[path = "support/largest.rs"]
mod largest;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use largest::LARGEST;
use smolvlm::ImageView;
use smolvlm::image::encoded_size;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/files")
}

fn files() -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap());
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    named.filter(|(name, _)| !name.ends_with(".seen.png")).map(|(name, path)| (name, fs::read(path).unwrap())).collect()
}

/// What is not read, though Pillow may, and a part of what is said of it.
const REFUSED: &[(&str, &str)] = &[
    ("bits-group3.tif", "compression method Fax3 is unsupported; save it as a PNG"),
    ("rgb-lzma.tif", "compression method Unknown(34925) is unsupported; save it as a PNG"),
    ("rgb-zstd.tif", "compression method ZSTD is unsupported; save it as a PNG"),
    ("double.tif", "sample format 3 for 64 bits; save it as a PNG"),
    ("half.tif", "sample format 3 for 16 bits; save it as a PNG"),
    ("float-gray.tif", "TIFF with pixels of 32 bits, of a kind that is not read; save it as a PNG"),
    ("float-rgb.tif", "floating-point pixels; scale them"),
    ("float.pfm", "a PFM file, which is not read"),
    ("signed-16.tif", "sample format 2 for 16 bits; save it as a PNG"),
    ("gray-32.tif", "TIFF with pixels of 32 bits"),
    ("four-bits.tif", "TIFF with pixels of 4 bits"),
    ("gray-alpha.tif", "TIFF with pixels of 16 bits"),
    ("two-channels.tif", "TIFF with pixels of 16 bits"),
    ("ycbcr.tif", "TIFF with pixels of 24 bits"),
    ("lab.tif", "Photometric interpretation CIELab"),
    ("palette.tif", "Photometric interpretation RGBPalette"),
    ("palette-lzw.tif", "Photometric interpretation RGBPalette"),
    ("p7-five.pam", "Tuple type \"STEREO\""),
    ("short.pgm", "image: the file ends before its picture does"),
];

/// Files whose colours are computed, which every library rounds in its own way: levels of 255.
const NEAR: &[(&str, u8)] =
    &[("gray-jpeg.tif", 1), ("rgb-jpeg.tif", 1), ("rgba-premultiplied.tif", 1), ("p5-100.pgm", 1), ("p6-1023.ppm", 1)];

/// Where Pillow is not followed. In `background` a first frame leaves a part of the picture free:
/// white here and in browsers, in Pillow of the palette's first colour. `white-is-zero-16` says
/// that its large values are dark, which Pillow hears of 8 bits alone.
const OTHERWISE: [&str; 2] = ["background.gif", "white-is-zero-16.tif"];

#[test]
fn every_kind_is_pillows_picture_or_a_named_error() {
    let files = files();
    assert!(files.len() >= 95, "{} files", files.len());
    let mut wrong = Vec::new();
    for (name, file) in &files {
        let refused = REFUSED.iter().find(|(refused, _)| refused == name).map(|(_, message)| *message);
        let reference = folder().join(format!("{name}.seen.png"));
        let seen = match ImageView::encoded(file).to_rgb() {
            Ok(seen) => seen,
            Err(e) if refused.is_some_and(|message| e.message().contains(message)) => continue,
            Err(e) => {
                wrong.push(format!("{name}: {}", e.message()));
                continue;
            }
        };
        if refused.is_some() || !reference.exists() {
            wrong.push(format!("{name}: read, and is to be refused"));
            continue;
        }
        let wanted = image::open(reference).unwrap().into_rgb8();
        if seen.dimensions() != wanted.dimensions() {
            wrong.push(format!("{name}: {:?} instead of {:?}", seen.dimensions(), wanted.dimensions()));
            continue;
        }
        let levels = seen.iter().zip(wanted.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        let near = NEAR.iter().find(|(near, _)| near == name).map_or(0, |(_, levels)| *levels);
        if OTHERWISE.contains(&name.as_str()) {
            assert!(levels > 0, "{name} is as in Pillow");
        } else if levels > near {
            wrong.push(format!("{name}: {levels} levels"));
        }
        let stored = encoded_size(file).unwrap();
        assert!(stored == seen.dimensions() || (stored.1, stored.0) == seen.dimensions(), "{name}: {stored:?}");
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), files.len(), wrong.join("\n"));
}

/// The file with another width and height in a TIFF's first directory.
fn tiff_of(mut file: Vec<u8>, size: u32) -> Vec<u8> {
    let at = u32::from_le_bytes(file[4..8].try_into().unwrap()) as usize;
    let count = usize::from(u16::from_le_bytes(file[at..at + 2].try_into().unwrap()));
    for entry in (0..count).map(|entry| at + 2 + entry * 12) {
        if [[0, 1], [1, 1]].contains(&[file[entry], file[entry + 1]]) {
            file[entry + 2..entry + 4].copy_from_slice(&4u16.to_le_bytes());
            file[entry + 8..entry + 12].copy_from_slice(&size.to_le_bytes());
        }
    }
    file
}

#[test]
fn a_size_that_a_header_claims_is_not_allocated() {
    let files = files();
    let with = |name: &str, edits: &[(usize, &[u8])]| {
        let mut file = files[name].clone();
        for (at, bytes) in edits {
            file[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        file
    };
    let frame = files["plain.gif"].windows(5).position(|bytes| bytes == b"\x2c\0\0\0\0").unwrap() + 5;
    let sof = files["rgb-jpeg.tif"].windows(3).position(|bytes| bytes == b"\xff\xc0\0").unwrap() + 5;
    let most = [255; 4];
    let bombs = [
        ("TIFF", tiff_of(files["rgb-lzw.tif"].clone(), 65535)),
        ("TIFF of 32 bits", tiff_of(files["rgb-lzw.tif"].clone(), u32::MAX)),
        ("TIFF of the most pixels", tiff_of(files["rgb-packbits.tif"].clone(), 10_001)),
        ("JPEG in a TIFF", with("rgb-jpeg.tif", &[(sof, &most)])),
        ("GIF", with("plain.gif", &[(6, &most)])),
        ("frame of a GIF", with("plain.gif", &[(frame, &most)])),
        ("large frame of a GIF", with("plain.gif", &[(frame, &[0, 40, 0, 40])])),
        ("PGM", b"P5 65535 65535 255\n".to_vec()),
        ("PGM in text", b"P2 65535 65535 255\n1 2 3".to_vec()),
        ("PPM of 16 bits", b"P6 32768 32768 65535\n".to_vec()),
        ("PBM", b"P4 4294967295 4294967295\n".to_vec()),
        ("PBM of many digits", b"P4 99999999999999999999 1\n".to_vec()),
        ("PAM", b"P7\nWIDTH 65535\nHEIGHT 65535\nDEPTH 4\nMAXVAL 65535\nENDHDR\n".to_vec()),
        ("PAM of many channels", b"P7\nWIDTH 5\nHEIGHT 5\nDEPTH 4294967295\nMAXVAL 255\nENDHDR\n".to_vec()),
        ("PNG", with("bits.png", &[(16, &most), (20, &most)])),
        ("WebP", with("turned.webp", &[(24, &most), (27, &most)])),
    ];
    for (name, bomb) in bombs {
        LARGEST.store(0, Ordering::Relaxed);
        let seen = ImageView::encoded(&bomb).to_rgb();
        let size = encoded_size(&bomb);
        let largest = LARGEST.load(Ordering::Relaxed);
        // The other tests of this file run beside, and allocate less.
        assert!((1..32 << 20).contains(&largest), "{name}: {largest} bytes");
        assert!(seen.is_err(), "{name}: {size:?}, read as {:?}", seen.map(|seen| seen.dimensions()));
    }
}

/// Cut at each byte, or with one byte changed: an error, or a picture of the size that the header
/// says; no panic.
#[test]
fn damage_is_no_panic() {
    for (name, file) in files() {
        let small = file.len() < 3000;
        for len in (0..file.len()).step_by(if small { 1 } else { 13 }) {
            let _ = ImageView::encoded(&file[..len]).to_rgb();
        }
        for at in (0..file.len()).step_by(if small { 3 } else { 31 }) {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = file.clone();
                damaged[at] ^= flip;
                if let Ok(seen) = ImageView::encoded_unoriented(&damaged).to_rgb() {
                    assert_eq!(seen.dimensions(), encoded_size(&damaged).unwrap(), "{name}: {at}");
                }
            }
        }
    }
}
