//! JPEGs of every kind within three levels of Pillow's pixels, or an error: tests/golden/jpeg, by tools/golden/jpegs.py.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use smolvlm::ImageView;

/// The most that a pixel may differ from libjpeg-turbo's, in levels of 255.
const NEAR: u8 = 3;

/// How far each file of a folder is from its PNG; `Err` where the library refuses it.
fn differences(folder: &Path) -> BTreeMap<String, (Result<u8, String>, bool)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "jpg") {
            continue;
        }
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let reference = path.with_extension("png");
        let file = fs::read(&path).unwrap();
        let decoded = ImageView::encoded(&file).to_rgb();
        let difference = decoded.map_err(|e| e.message().to_owned()).map(|seen| {
            if !reference.exists() {
                return 255;
            }
            let wanted = image::open(&reference).unwrap().into_rgb8();
            if seen.dimensions() != wanted.dimensions() {
                return 254;
            }
            seen.iter().zip(wanted.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
        });
        found.insert(name, (difference, reference.exists()));
    }
    found
}

fn golden() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/jpeg")
}

/// Kinds that Pillow reads and this library says it does not.
fn is_refused_by_name(name: &str, message: &str) -> bool {
    (name.contains("arithmetic") && message.contains("arithmetic coding"))
        || (["dc-only", "unrefined"].iter().any(|kind| name.contains(kind))
            && message.contains("ends before its picture"))
}

#[test]
fn every_kind_is_pillows_picture_or_an_error() {
    let found = differences(&golden());
    assert!(found.len() >= 60, "{} files", found.len());
    for (name, (difference, readable)) in found {
        match difference {
            Ok(levels) => assert!(readable && levels <= NEAR, "{name}: {levels} levels"),
            Err(message) => assert!(!readable || is_refused_by_name(&name, &message), "{name}: {message}"),
        }
    }
}

/// Cut at each byte, or with one byte changed: pixels as before, an error, or for a changed byte another picture; no panic.
#[test]
fn damage_is_no_panic_and_a_cut_no_picture() {
    for name in ["sampling-420", "mode-mcus", "script-successive", "ycck-17x15", "mjpeg-2x1", "gray-2x2-progressive"] {
        let file = fs::read(golden().join(format!("{name}.jpg"))).unwrap();
        let whole = ImageView::encoded(&file).to_rgb().unwrap();
        for len in 0..file.len() {
            if let Ok(seen) = ImageView::encoded(&file[..len]).to_rgb() {
                assert_eq!(seen, whole, "{name}: {len} of {}", file.len());
                // The last block's bits may end within the byte before the last.
                assert!(len + 4 >= file.len(), "{name}: whole at {len} of {}", file.len());
            }
        }
        for at in 2..file.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = file.clone();
                damaged[at] ^= flip;
                // A size of its own is not allocated before there is a scan that needs it.
                let _ = ImageView::encoded(&damaged).to_rgb();
            }
        }
    }
}

/// A header of 100 megapixels and a few bytes of scans: an error at once, and memory that is never touched.
#[test]
fn a_bomb_is_an_error() {
    let mut file = fs::read(golden().join("gray-2x2-progressive.jpg")).unwrap();
    let sof = file.windows(2).position(|two| two == [0xff, 0xc2]).unwrap();
    file[sof + 5..sof + 9].copy_from_slice(&[0x27, 0x10, 0x27, 0x10]);
    assert!(ImageView::encoded(&file).to_rgb().unwrap_err().message().contains("ends before its picture"));
    file[sof + 5..sof + 9].copy_from_slice(&[0xff; 4]);
    assert!(ImageView::encoded(&file).to_rgb().unwrap_err().message().contains("65535 pixels"));
    file[sof + 5..sof + 9].copy_from_slice(&[0, 0, 0, 9]);
    assert!(ImageView::encoded(&file).to_rgb().unwrap_err().message().contains("height: 0 pixels"));
}

/// The orientation stands before or behind other segments, and is switched off where that is asked for.
#[test]
fn exif_turns_a_jpeg() {
    let file = fs::read(golden().join("sampling-420.jpg")).unwrap();
    let upright = ImageView::encoded(&file).to_rgb().unwrap();
    let exif = b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let turned = [&file[..2], exif, &file[2..]].concat();
    assert_eq!(ImageView::encoded(&turned).to_rgb().unwrap(), image::imageops::rotate90(&upright));
    assert_eq!(ImageView::encoded_unoriented(&turned).to_rgb().unwrap(), upright);
}

#[test]
#[ignore = "needs SMOLVLM_JPEGS: a folder that `tools/golden/jpegs.py --all` has filled"]
fn histogram() {
    let folder = std::env::var("SMOLVLM_JPEGS").expect("SMOLVLM_JPEGS names a folder");
    let found = differences(Path::new(&folder));
    let mut levels: BTreeMap<String, usize> = BTreeMap::new();
    let mut far = 0;
    for (name, (difference, readable)) in &found {
        let level = match difference {
            Ok(n) => format!("{n:3} levels"),
            Err(_) if *readable => "error where Pillow reads".into(),
            Err(_) => "error as wanted".into(),
        };
        if difference.as_ref().map_or(*readable, |n| *n > NEAR) {
            println!("{name}: {difference:?}");
        }
        far += usize::from(difference.as_ref().is_ok_and(|n| *n > NEAR));
        *levels.entry(level).or_default() += 1;
    }
    println!("{} files", found.len());
    levels.iter().for_each(|(level, count)| println!("{level}: {count}"));
    assert!(far == 0, "{far} of {} files are another picture, without an error", found.len());
}
