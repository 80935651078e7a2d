//! Hostile requests to the web server: none takes more memory than its share, and each is told what
//! is wrong.
#![cfg(all(feature = "candle", feature = "onnx"))]
#![cfg(target_os = "linux")]

#[path = "support/web.rs"]
mod web;

use std::io::Write;

use web::{FORM, Response, Server, form, picture};

#[test]
fn a_body_that_is_too_large_is_refused_unread() {
    let server = Server::start(&["--max-body-mib", "1"]);
    let large = vec![b'x'; 3 << 20];
    server.analyze(&[("image", &large)]).error(413, "request_too_large");
    let announced =
        format!("POST /analyze HTTP/1.1\r\nhost: t\r\nconnection: close\r\n{FORM}content-length: 99999999999\r\n\r\n");
    server.raw(announced.as_bytes()).error(413, "request_too_large");
    // In pieces, without an announcement.
    for path in ["/analyze", "/v1/chat/completions"] {
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n{FORM}transfer-encoding: chunked\r\n\r\n");
        let start = form(&[("image", b"")]);
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        write!(stream, "{:x}\r\n", start.len() - 13).unwrap();
        stream.write_all(&start[..start.len() - 13]).unwrap();
        // The piece that crosses the limit is the last that is sent: a reset would hide the answer.
        write!(stream, "\r\n{:x}\r\n", (1 << 20) + 1).unwrap();
        stream.write_all(&large[..(1 << 20) + 1]).unwrap();
        Response::read(&mut stream).error(413, "request_too_large");
    }
    assert_eq!(server.analyze(&[("image", &picture()), ("prompt", b"Hi")]).status, 200);
}

/// A PNG as its header says, whatever the rest is.
fn png(width: u32, height: u32, chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    // 8 bits gray.
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", &header[..])].iter().chain(chunks).chain(&[(b"IEND", &b""[..])]) {
        let named = [&kind[..], data].concat();
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(&named);
        file.extend(crc32(&named).to_be_bytes());
    }
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// `mebibytes` of zeros as zlib packs them, in less than a hundredth of that.
fn packed_zeros(mebibytes: usize) -> Vec<u8> {
    // A deflate stream by hand: a literal 0, then matches of 258 bytes at distance 1, in the fixed
    // code.
    let mut bits = Bits::default();
    bits.push(1, 1);
    bits.push(0b01, 2);
    bits.push_code(0b0011_0000, 8);
    for _ in 0..mebibytes * (1 << 20) / 258 {
        bits.push_code(0b1100_0101, 8);
        bits.push_code(0, 5);
    }
    bits.push_code(0, 7);
    [&[0x78, 0x01][..], &bits.bytes, &[bits.last]].concat()
}

/// Deflate's order of bits.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    last: u8,
    used: u32,
}

impl Bits {
    fn push(&mut self, value: u32, len: u32) {
        for i in 0..len {
            self.last |= ((value >> i & 1) as u8) << self.used;
            self.used += 1;
            if self.used == 8 {
                self.bytes.push(std::mem::take(&mut self.last));
                self.used = 0;
            }
        }
    }

    /// Huffman codes go highest bit first.
    fn push_code(&mut self, code: u32, len: u32) {
        self.push(code.reverse_bits() >> (32 - len), len);
    }
}

#[test]
fn pictures_that_would_fill_the_memory_do_not() {
    let server = Server::start(&[]);
    let ask = |picture: &[u8]| server.analyze(&[("image", picture), ("prompt", b"What objects are in this image?")]);
    assert_eq!(ask(&picture()).status, 200);
    let before = server.peak_mib();

    let message = ask(&png(100_000, 100_000, &[(b"IDAT", b"")])).error(400, "invalid_value");
    assert_eq!(message, "image[0]: 100000x100000 is 10000000000 pixels, at most 25000000 accepted");
    let wide = ask(&png(40_000, 1, &[(b"IDAT", b"")])).error(400, "invalid_value");
    assert_eq!(wide, "image[0]: 40000x1 pixels, edges of 1 to 32768 accepted");
    ask(&png(0, 5, &[(b"IDAT", b"")])).error(400, "invalid_value");
    let wide_gif = b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\x05\0\x05\0\0\x02\x01\0\0;";
    let wide_tiff = b"II*\0\x08\0\0\0\x06\0\0\x01\x04\0\x01\0\0\0\xff\xff\0\0\x01\x01\x04\0\x01\0\0\0\xff\xff\0\0\
        \x02\x01\x03\0\x01\0\0\0\x08\0\0\0\x06\x01\x03\0\x01\0\0\0\x01\0\0\0\
        \x11\x01\x04\0\x01\0\0\0\x08\0\0\0\x17\x01\x04\0\x01\0\0\0\x01\0\0\0\0\0\0\0";
    for bomb in [&b"P5 65535 65535 255\n"[..], wide_gif, wide_tiff] {
        let message = ask(bomb).error(400, "invalid_value");
        assert_eq!(message, "image[0]: 65535x65535 is 4294836225 pixels, at most 25000000 accepted");
    }

    // A few MiB that unpack to 1 GiB: in the pixels, where 64 x 64 are announced; in a colour
    // profile, and in a text.
    let zeros = packed_zeros(1024);
    assert!((1 << 20..8 << 20).contains(&zeros.len()), "{}", zeros.len());
    let profile = [b"profile\0\0", &zeros[..]].concat();
    let text = [b"Comment\0\0", &zeros[..]].concat();
    let small = packed_zeros(1);
    let bombs = [
        png(64, 64, &[(b"IDAT", &zeros)]),
        png(64, 64, &[(b"iCCP", &profile), (b"IDAT", &small)]),
        png(64, 64, &[(b"zTXt", &text), (b"IDAT", &small)]),
    ];
    for bomb in &bombs {
        let response = ask(bomb);
        assert!([200, 400].contains(&response.status), "{}", response.body);
    }
    // The largest that is accepted: 25 megapixels out of 25 kB.
    assert_eq!(ask(&png(5000, 5000, &[(b"IDAT", &packed_zeros(24))])).status, 200);
    // 25 MB of gray, three times that in RGB, and what its resizing takes.
    let grown = server.peak_mib() - before;
    assert!(grown < 200, "{grown} MiB more than before");

    let picture = picture();
    for end in [2, 4, 100, 500, picture.len() / 2, picture.len() - 20] {
        ask(&picture[..end]).error(400, "invalid_value");
    }
    let message = ask(&picture[..picture.len() / 2]).error(400, "invalid_value");
    assert_eq!(message, "images[0]: image: a JPEG of 3527 bytes that ends before its picture does");
    assert_eq!(ask(&[&picture[..], b"a camera's own data"].concat()).json()["text"], ask(&picture).json()["text"]);
}
