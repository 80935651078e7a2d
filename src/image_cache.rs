//! Encoded pictures that are kept for the next question about the same file: a bounded number of bytes, the one that
//! was not asked for the longest goes first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use crate::prompt::Grid;

/// What a picture's rows depend on, within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    file_sha256: [u8; 32],
    orient: bool,
    longest_edge: usize,
    split: bool,
}

impl Key {
    pub(crate) fn new(file: &[u8], orient: bool, longest_edge: usize, split: bool) -> Self {
        Self { file_sha256: Sha256::digest(file).into(), orient, longest_edge, split }
    }
}

/// What the decoder needs of a picture.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) grid: Grid,
    pub(crate) tiles: usize,
    /// Image rows, one after the other.
    pub(crate) values: Box<[f32]>,
}

impl Encoded {
    fn bytes(&self) -> usize {
        size_of_val(&*self.values) + size_of::<Self>() + size_of::<(Key, Entry)>()
    }
}

/// What a cache of encoded pictures did so far, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageCacheStats {
    /// Pictures that were found.
    pub hits: u64,
    /// Pictures that had to be encoded.
    pub misses: u64,
    pub pictures: usize,
    pub bytes: usize,
}

pub(crate) struct ImageCache {
    most_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<Key, Entry>,
    /// Counts what is asked for.
    clock: u64,
    stats: ImageCacheStats,
}

struct Entry {
    encoded: Arc<Encoded>,
    used: u64,
}

impl ImageCache {
    /// `most_bytes` of 0: nothing is kept, nor counted.
    pub(crate) fn new(most_bytes: usize) -> Self {
        Self { most_bytes, kept: Mutex::default() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.most_bytes > 0
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Encoded>> {
        let mut kept = self.lock();
        let kept = &mut *kept;
        kept.clock += 1;
        match kept.entries.get_mut(key) {
            Some(entry) => {
                entry.used = kept.clock;
                kept.stats.hits += 1;
                Some(entry.encoded.clone())
            }
            None => {
                kept.stats.misses += 1;
                None
            }
        }
    }

    pub(crate) fn put(&self, key: Key, encoded: Encoded) {
        let bytes = encoded.bytes();
        // One that does not fit would drive out all others for nothing.
        if bytes > self.most_bytes {
            return;
        }
        let mut kept = self.lock();
        kept.clock += 1;
        let entry = Entry { encoded: Arc::new(encoded), used: kept.clock };
        if let Some(old) = kept.entries.insert(key, entry) {
            // Two questions about one new picture at the same time.
            kept.stats.bytes -= old.encoded.bytes();
        }
        kept.stats.bytes += bytes;
        while kept.stats.bytes > self.most_bytes {
            let oldest = kept.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key);
            let Some(gone) = oldest.and_then(|key| kept.entries.remove(&key)) else { break };
            kept.stats.bytes -= gone.encoded.bytes();
        }
        kept.stats.pictures = kept.entries.len();
    }

    pub(crate) fn stats(&self) -> ImageCacheStats {
        self.lock().stats
    }

    /// Nothing here panics half way through a change.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(rows: usize) -> Encoded {
        Encoded { grid: Grid { rows: 0, cols: 0 }, tiles: 1, values: vec![0.5; rows].into() }
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_bytes_stay_bounded() {
        let one = encoded(1000).bytes();
        let cache = ImageCache::new(2 * one);
        let [a, b, c] = [b"a", b"b", b"c"].map(|file| Key::new(file, true, 512, true));
        cache.put(a, encoded(1000));
        cache.put(b, encoded(1000));
        assert_eq!(cache.stats().bytes, 2 * one);
        assert!(cache.get(&a).is_some());
        cache.put(c, encoded(1000));
        assert!(cache.get(&b).is_none() && cache.get(&a).is_some() && cache.get(&c).is_some());
        cache.put(c, encoded(1000));
        assert_eq!(cache.stats(), ImageCacheStats { hits: 3, misses: 1, pictures: 2, bytes: 2 * one });
        // One that is too large for the cache drives nothing out.
        cache.put(b, encoded(3000));
        assert_eq!((cache.stats().pictures, cache.get(&b).is_none()), (2, true));
        // One that needs the room of both.
        cache.put(b, encoded(1500));
        assert_eq!((cache.stats().pictures, cache.get(&b).is_some()), (1, true));
    }

    #[test]
    fn what_changes_the_rows_is_in_the_key() {
        let key = Key::new(b"file", true, 512, true);
        assert_eq!(key, Key::new(b"file", true, 512, true));
        for other in [
            Key::new(b"fill", true, 512, true),
            Key::new(b"file", false, 512, true),
            Key::new(b"file", true, 384, true),
            Key::new(b"file", true, 512, false),
        ] {
            assert_ne!(key, other);
        }
    }
}
