//! AMX's instructions in software, for tests on processors that have none: these raise SIGILL
//! there, whose handler does what they would.
//!
//! After the Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2. What that says
//! must not be, stops the process.

use std::cell::UnsafeCell;
use std::sync::LazyLock;

use half::bf16;

use super::TILE;

/// Bytes of a tile's row, and tiles.
const BYTES: usize = 64;
const TILES: usize = 8;

/// One thread's tile registers. Bytes beyond a tile's shape are 0.
struct State {
    rows: [usize; TILES],
    row_bytes: [usize; TILES],
    data: [[[u8; BYTES]; TILE]; TILES],
}

const NO_TILES: State = State { rows: [0; TILES], row_bytes: [0; TILES], data: [[[0; BYTES]; TILE]; TILES] };

thread_local! {
    static STATE: UnsafeCell<State> = const { UnsafeCell::new(NO_TILES) };
}

/// From now on these instructions are emulated, in all threads.
pub fn install() {
    static DONE: LazyLock<()> = LazyLock::new(|| {
        // SAFETY: an action is plain numbers; the handler does nothing that a signal's must not,
        // since what raises it is an instruction of
        // `super`'s, and nothing of the standard library.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
    *DONE;
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: what the system gives a handler that asked for it; nobody else has a thread's state.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let at = registers[libc::REG_RIP as usize] as *const u8;
        let length = STATE.with(|state| step(at, registers, &mut *state.get()));
        registers[libc::REG_RIP as usize] += length as i64;
    }
}

/// The registers of the numbers that instructions have for them.
const GENERAL: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Does the instruction at `at`; its length.
///
/// # Safety
/// An instruction is there, and memory where it looks for some.
unsafe fn step(at: *const u8, registers: &[libc::greg_t], state: &mut State) -> usize {
    // SAFETY: none of these instructions is shorter than 5 bytes.
    let code = unsafe { std::slice::from_raw_parts(at, 5) };
    // VEX with three bytes, map 0F38, W 0 and 128 bits.
    assert!(code[0] == 0xc4 && code[1] & 0x1f == 2 && code[2] & 0x84 == 0, "no AMX instruction: {code:x?}");
    let (prefix, third) = (code[2] & 3, usize::from(!code[2] >> 3 & 0xf));
    let (mode, middle, low) = (code[4] >> 6, usize::from(code[4] >> 3 & 7), usize::from(code[4] & 7));
    if mode == 3 {
        match (code[3], prefix) {
            (0x49, 0) => *state = NO_TILES,
            (0x49, 3) => state.data[middle] = [[0; BYTES]; TILE],
            (0x5e, 1) => state.multiply(middle, low, third, |sum, a, b| {
                let products = a.iter().zip(b).map(|(&a, b)| i32::from(a) * i32::from(b as i8));
                (sum as i32).wrapping_add(products.sum()) as u32
            }),
            (0x5c, 2) => state.multiply(middle, low, third, |sum, a, b| {
                // Two chains, of either number of a pair, would be added at the end: an order of
                // summation like another.
                let half = |x: [u8; 4], i| bf16::from_le_bytes([x[i], x[i + 1]]).to_f32();
                let products = half(a, 0).mul_add(half(b, 0), half(a, 2) * half(b, 2));
                (f32::from_bits(sum) + products).to_bits()
            }),
            other => panic!("no AMX instruction: {other:x?}"),
        }
        return 5;
    }

    // SAFETY: as the caller promises.
    let (start, stride, length) = unsafe { address(at, registers) };
    match (code[3], prefix) {
        // SAFETY: as above.
        (0x49, 0) => state.shape(unsafe { *start.cast::<[u8; BYTES]>() }),
        (0x4b, 3 | 1) => {
            let (rows, bytes) = state.shape_of(middle);
            state.data[middle] = [[0; BYTES]; TILE];
            for (row, data) in state.data[middle].iter_mut().enumerate().take(rows) {
                // SAFETY: as above.
                unsafe { start.wrapping_add(row * stride).copy_to(data.as_mut_ptr(), bytes) };
            }
        }
        (0x4b, 2) => {
            let (rows, bytes) = state.shape_of(middle);
            for (row, data) in state.data[middle].iter().enumerate().take(rows) {
                // SAFETY: as above.
                unsafe { start.wrapping_add(row * stride).copy_from(data.as_ptr(), bytes) };
            }
        }
        other => panic!("no AMX instruction: {other:x?}"),
    }
    length
}

/// The memory that an instruction names: where it starts, from a row to the next one if there is an
/// index, and the instruction's length.
///
/// # Safety
/// An instruction with such an operand is there.
unsafe fn address(at: *const u8, registers: &[libc::greg_t]) -> (*mut u8, usize, usize) {
    // SAFETY: as the caller promises.
    let byte = |i: usize| unsafe { *at.add(i) };
    let general = |low: u8, inverted: u8| registers[GENERAL[usize::from(low | (inverted ^ 1) << 3)] as usize] as usize;
    let (index_bit, base_bit) = (byte(1) >> 6 & 1, byte(1) >> 5 & 1);
    let (mode, low) = (byte(4) >> 6, byte(4) & 7);
    let (base, stride, rest) = if low == 4 {
        let (scale, index, base) = (byte(5) >> 6, byte(5) >> 3 & 7, byte(5) & 7);
        assert!(mode != 0 || base != 5, "an address without a base");
        let none = index == 4 && index_bit == 1;
        (general(base, base_bit), if none { 0 } else { general(index, index_bit) << scale }, 6)
    } else {
        assert!(mode != 0 || low != 5, "an address from the instruction's");
        (general(low, base_bit), 0, 5)
    };
    let (displacement, length) = match mode {
        0 => (0, rest),
        1 => (isize::from(byte(rest) as i8), rest + 1),
        _ => (i32::from_le_bytes(std::array::from_fn(|i| byte(rest + i))) as isize, rest + 4),
    };
    (base.wrapping_add_signed(displacement) as *mut u8, stride, length)
}

impl State {
    /// LDTILECFG.
    fn shape(&mut self, config: [u8; BYTES]) {
        *self = NO_TILES;
        let (palette, rest) = (config[0], &config[1..]);
        assert!(palette == 1 && rest[..15].iter().all(|&x| x == 0), "palette {palette}, {rest:?}");
        for tile in 0..TILES {
            self.row_bytes[tile] = usize::from(u16::from_le_bytes([config[16 + 2 * tile], config[17 + 2 * tile]]));
            self.rows[tile] = usize::from(config[48 + tile]);
            let (rows, bytes) = self.shape_of(tile);
            assert!(rows <= TILE && bytes <= BYTES, "tile {tile}: {rows} rows of {bytes} bytes");
        }
        assert!(config[32..48].iter().chain(&config[56..]).all(|&x| x == 0), "tiles beyond the last one: {config:?}");
    }

    /// Rows and their bytes.
    fn shape_of(&self, tile: usize) -> (usize, usize) {
        let shape = (self.rows[tile], self.row_bytes[tile]);
        assert!(shape.0 > 0 && shape.1 > 0, "tile {tile} has no shape");
        shape
    }

    /// `a` times `b`, added to `to`: `dot` adds the product of four bytes each.
    fn multiply(&mut self, to: usize, a: usize, b: usize, dot: impl Fn(u32, [u8; 4], [u8; 4]) -> u32) {
        let [(rows, bytes), (a_rows, a_bytes), (b_rows, b_bytes)] = [to, a, b].map(|tile| self.shape_of(tile));
        assert!(to != a && to != b && a != b && rows == a_rows && bytes == b_bytes && a_bytes / 4 == b_rows);
        let word = |data: &[u8; BYTES], i: usize| <[u8; 4]>::try_from(&data[i * 4..][..4]).unwrap();
        for row in 0..rows {
            for k in 0..b_rows {
                for column in 0..bytes / 4 {
                    let (x, y) = (word(&self.data[a][row], k), word(&self.data[b][k], column));
                    let sum = u32::from_le_bytes(word(&self.data[to][row], column));
                    self.data[to][row][column * 4..][..4].copy_from_slice(&dot(sum, x, y).to_le_bytes());
                }
            }
        }
    }
}
