//! JPEGs of every kind: Pillow's pixels, or an error; tests/golden/jpeg, by tools/golden/jpegs.py.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use image::RgbImage;
use smolvlm::ImageView;
use smolvlm::image::encoded_size;

struct Seen {
    /// How far it is from Pillow's pixels, 254 for another size; or the library's words where it
    /// refuses.
    levels: Result<u8, String>,
    /// Whether the file is a whole picture, which Pillow reads.
    whole: bool,
}

/// What the library makes of each file of a folder.
fn look(folder: &Path) -> BTreeMap<String, Seen> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "jpg") {
            continue;
        }
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let whole = !name.starts_with("refused-");
        let decoded = ImageView::encoded(&fs::read(&path).unwrap()).to_rgb();
        let levels = decoded.map_err(|e| e.message().to_owned()).map(|seen| {
            let own = path.with_extension("png");
            let shared = folder.join(format!("{}.png", name.rsplit('-').next().unwrap()));
            match (whole, image::open(if own.exists() { own } else { shared })) {
                (true, pixels) => difference(&seen, &pixels.unwrap().into_rgb8()),
                (false, _) => 255,
            }
        });
        found.insert(name, Seen { levels, whole });
    }
    found
}

fn difference(seen: &RgbImage, wanted: &RgbImage) -> u8 {
    if seen.dimensions() != wanted.dimensions() {
        return 254;
    }
    seen.iter().zip(wanted.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

fn golden() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/jpeg")
}

/// What the errors name, by the beginning of the file's name; the first that fits. Pillow reads
/// those above the line.
const REFUSED: &[(&str, &str)] = &[
    ("mode-arithmetic", "arithmetic coding"),
    ("script-dc-only", "leave out bits of coefficient 1 of component 1"),
    ("script-unrefined-fine", ""),
    ("script-unrefined", "leave out bits of coefficient 0 of component 1"),
    // No whole pictures, or none that libjpeg reads either.
    ("refused-12-bit", "12 bits a channel"),
    ("refused-lossless", "a lossless frame"),
    ("refused-hierarchical", "a hierarchical frame"),
    ("refused-jpeg-ls", "JPEG-LS"),
    ("refused-dnl", "a DNL marker"),
    ("refused-swapped-restarts", "restart 0 was due"),
    ("refused-scan-twice", "out of order"),
    ("refused-progressive-no-tables", "Huffman table 0 is missing"),
    ("refused-", "ends before its picture does"),
];

#[test]
fn every_kind_is_pillows_picture_or_an_error_by_name() {
    let found = look(&golden());
    assert!(found.len() >= 100, "{} files", found.len());
    for (name, Seen { levels, whole }) in found {
        let refused = REFUSED.iter().find(|(start, _)| name.starts_with(start)).map_or("", |(_, words)| words);
        match levels {
            Ok(levels) => assert!(whole && refused.is_empty() && levels == 0, "{name}: {levels} levels"),
            Err(message) => assert!(!refused.is_empty() && message.contains(refused), "{name}: {message}"),
        }
    }
}

/// Cut at each byte, or with one byte changed: pixels as before, an error, or for a changed byte
/// another picture; no panic.
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

/// A header of 100 megapixels and a few bytes of scans: an error at once, and memory that is never
/// touched.
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

/// The size is read without a pixel; a file that ends before its scan has none.
#[test]
fn a_header_says_the_size_or_is_cut() {
    let file = fs::read(golden().join("sampling-420.jpg")).unwrap();
    assert_eq!(encoded_size(&file).unwrap(), (23, 18));
    let scan = file.windows(2).position(|two| two == [0xff, 0xda]).unwrap();
    for len in 2..scan {
        let refused = encoded_size(&file[..len]).unwrap_err();
        assert!(refused.message().contains("ends before its picture does"), "{len}: {refused}");
    }
    let ended = [&file[..scan], b"\xff\xd9"].concat();
    assert!(encoded_size(&ended).unwrap_err().message().contains("ends before its picture does"));
}

/// The orientation stands before or behind other segments, and is switched off where that is asked
/// for.
#[test]
fn exif_turns_a_jpeg() {
    let file = fs::read(golden().join("sampling-420.jpg")).unwrap();
    let upright = ImageView::encoded(&file).to_rgb().unwrap();
    let exif = b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let turned = [&file[..2], exif, &file[2..]].concat();
    assert_eq!(ImageView::encoded(&turned).to_rgb().unwrap(), image::imageops::rotate90(&upright));
    assert_eq!(ImageView::encoded_unoriented(&turned).to_rgb().unwrap(), upright);
}

/// A progressive picture of one block, all zeros, whose coefficients come bit by bit, one to a
/// scan.
fn of_scans(bits: u8) -> Vec<u8> {
    let mut file = b"\xff\xd8\xff\xdb\0\x43\0".to_vec();
    file.extend([1; 64]);
    file.extend(b"\xff\xc2\0\x0b\x08\0\x08\0\x08\x01\x01\x11\0");
    // The only code of both tables is one bit, zero: no difference, and the block's end.
    for table in [0, 0x10] {
        file.extend([0xff, 0xc4, 0, 20, table, 1]);
        file.extend([0; 16]);
    }
    for coefficient in 0..64 {
        for low in (0..bits).rev() {
            let high = if low + 1 == bits { 0 } else { low + 1 };
            file.extend([0xff, 0xda, 0, 8, 1, 1, 0, coefficient, coefficient, high << 4 | low, 0x7f]);
        }
    }
    file.extend(b"\xff\xd9");
    file
}

/// Four runs of fifteen zeros and a value do not fit behind a block's first coefficient. libjpeg
/// puts the last value into the last place; no writer means that.
#[test]
fn a_run_out_of_its_block_is_damage() {
    let tables = [&b"\xff\xd8\xff\xdb\0\x43\0"[..], &[1; 64]].concat();
    let codes = |table, symbol| [&[0xff, 0xc4, 0, 20, table, 1][..], &[0; 15], &[symbol]].concat();
    let frame = |kind| [&[0xff, kind], &b"\0\x0b\x08\0\x08\0\x08\x01\x01\x11\0"[..]].concat();
    // Baseline: a zero for the first coefficient, and (0, 1) for each run and its value.
    // Progressive: in two scans.
    let whole = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0\x2a\xab\xff\xd9";
    let parts = b"\xff\xda\0\x08\x01\x01\0\0\0\0\x7f\xff\xda\0\x08\x01\x01\0\x01\x3f\0\x55\x57\xff\xd9";
    for (kind, scans) in [(0xc0, &whole[..]), (0xc2, &parts[..])] {
        let file = [&tables[..], &frame(kind), &codes(0, 0), &codes(0x10, 0xf1), scans].concat();
        let refused = ImageView::encoded(&file).to_rgb().unwrap_err();
        assert!(refused.message().contains("damaged at byte"), "{kind:x}: {refused}");
        // With runs of eight, seven of them end where the block does.
        let file = [&tables[..], &frame(kind), &codes(0, 0), &codes(0x10, 0x81), scans].concat();
        assert!(ImageView::encoded(&file).to_rgb().is_ok(), "{kind:x}");
    }
}

/// Each scan may go over the whole picture at the cost of a few bytes.
#[test]
fn scans_are_limited() {
    let gray = ImageView::encoded(&of_scans(7)).to_rgb().unwrap();
    assert!(gray.dimensions() == (8, 8) && gray.iter().all(|&value| value == 128), "448 scans");
    let refused = ImageView::encoded(&of_scans(8)).to_rgb().unwrap_err();
    assert!(refused.message().contains("more than 500 scans"), "{refused}");
}

#[test]
#[ignore = "needs SMOLVLM_JPEGS: a folder that `tools/golden/jpegs.py --all` has filled"]
fn histogram() {
    let folder = std::env::var("SMOLVLM_JPEGS").expect("SMOLVLM_JPEGS names a folder");
    let found = look(Path::new(&folder));
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut far = 0;
    for (name, Seen { levels, whole }) in &found {
        let kind = match (levels, whole) {
            (Ok(levels), _) => format!("{levels:3} levels"),
            (Err(_), false) => "error as wanted".into(),
            (Err(message), true) => format!("error where Pillow reads: {message}"),
        };
        if levels.as_ref().is_ok_and(|levels| *levels > 0) {
            println!("{name}: {levels:?}");
            far += 1;
        }
        *counts.entry(kind).or_default() += 1;
    }
    println!("{} files", found.len());
    counts.iter().for_each(|(kind, count)| println!("{kind}: {count}"));
    assert!(far == 0, "{far} of {} files are another picture, without an error", found.len());
}
