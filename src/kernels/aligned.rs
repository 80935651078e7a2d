//! Numbers in memory that begins with a cache line, as the vectors of packed products do: loading
//! one across two lines takes twice as long.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

/// A cache line, and the widest register.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

// SAFETY: words, which may be anything, and nothing between them.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

/// From as many bytes on, numbers have pages of their own: those are 0 from the beginning, and become
/// real where and when somebody writes, on that thread. A heap's memory is zeroed by the one that
/// asks for it.
const PAGES: usize = 256 << 10;

/// A slice of such numbers.
pub(super) struct Aligned<T> {
    memory: Memory,
    len: usize,
    of: PhantomData<T>,
}

enum Memory {
    Heap(Vec<Line>),
    Pages(MmapMut),
}

impl<T: Pod> Aligned<T> {
    /// `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        let pages = if bytes < PAGES { None } else { MmapMut::map_anon(bytes).ok() };
        let heap = || Memory::Heap(bytemuck::zeroed_vec(bytes.div_ceil(size_of::<Line>())));
        Self { memory: pages.map_or_else(heap, Memory::Pages), len, of: PhantomData }
    }

    /// Makes sure of at least `len` numbers, of no particular value.
    pub(super) fn grow(&mut self, len: usize) -> &mut [T] {
        if self.len < len {
            *self = Self::zeros(len);
        }
        &mut self[..len]
    }
}

impl<T: Pod> Default for Aligned<T> {
    fn default() -> Self {
        Self::zeros(0)
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.memory {
            Memory::Heap(lines) => &bytemuck::cast_slice(lines)[..self.len],
            Memory::Pages(pages) => bytemuck::cast_slice(pages),
        }
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.memory {
            Memory::Heap(lines) => &mut bytemuck::cast_slice_mut(lines)[..self.len],
            Memory::Pages(pages) => bytemuck::cast_slice_mut(pages),
        }
    }
}

/// Some bytes of a mapped file, which stays mapped as long as they live.
#[derive(Clone)]
pub struct Mapped {
    file: Arc<dyn AsRef<[u8]> + Send + Sync>,
    part: Range<usize>,
}

impl Mapped {
    /// These bytes of `file`, which has them.
    pub fn new(file: Arc<dyn AsRef<[u8]> + Send + Sync>, part: Range<usize>) -> Self {
        assert!(part.start <= part.end && part.end <= (*file).as_ref().len());
        Self { file, part }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.file).as_ref()[self.part.clone()]
    }
}

/// Numbers that begin with a cache line and do not change any more: our own, or a file's.
pub(super) enum Numbers<T> {
    Own(Aligned<T>),
    Mapped(Mapped),
}

impl<T: Pod> Numbers<T> {
    pub(super) fn mapped(bytes: Mapped) -> Self {
        assert!(bytes.as_ptr().addr().is_multiple_of(align_of::<Line>()) && bytes.len().is_multiple_of(size_of::<T>()));
        Self::Mapped(bytes)
    }
}

impl<T: Pod> Deref for Numbers<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Own(numbers) => numbers,
            Self::Mapped(bytes) => bytemuck::cast_slice(bytes),
        }
    }
}
