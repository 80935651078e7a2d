//! Pictures to tiles, or to what is known of them already.

use std::sync::Arc;
use std::time::Instant;

use crate::answer::Picture;
use crate::config::MAX_LONGEST_EDGE;
use crate::error::{Error, ErrorKind, Result};
use crate::image_cache::{Encoded, Key};
use crate::loaded::Loaded;
use crate::metrics::{Metrics, ms_since};
use crate::preprocess::{self, TileOptions, Tiles};
use crate::prompt::Grid;
use crate::stop::{Run, Stop};

/// A picture on its way to its rows.
pub(super) enum Prepared {
    /// Its key if its rows are to be kept.
    Cut(Tiles, Option<Key>),
    Known(Arc<Encoded>),
}

impl Prepared {
    pub(super) fn tiles(&self) -> usize {
        match self {
            Self::Cut(tiles, _) => tiles.count(),
            Self::Known(encoded) => encoded.tiles,
        }
    }

    pub(super) fn grid(&self) -> Grid {
        match self {
            Self::Cut(tiles, _) => Grid::from(tiles),
            Self::Known(encoded) => encoded.grid,
        }
    }
}

pub(super) fn preprocess_images(
    loaded: &Loaded,
    pictures: &[Picture<'_>],
    longest_edge: Option<usize>,
    stop: &Stop,
    metrics: &mut Metrics,
) -> Run<Vec<Prepared>> {
    let start = Instant::now();
    let longest_edge = longest_edge.unwrap_or(loaded.images.longest_edge);
    if !(1..=MAX_LONGEST_EDGE).contains(&longest_edge) {
        let message = format!("longest_edge: {longest_edge} given, 1 to {MAX_LONGEST_EDGE} accepted");
        return Err(Error::invalid_argument(message).into());
    }
    let mut all: Vec<Prepared> = Vec::new();
    let mut image_tokens = 0;
    let done = pictures.iter().enumerate().try_for_each(|(i, picture)| {
        stop.check()?;
        let prepared =
            preprocess_image(loaded, picture, longest_edge, stop).map_err(|e| e.at(format!("images[{i}]")))?;
        let Some(prepared) = prepared else { return stop.check() };
        // Before more pictures take memory.
        image_tokens += prepared.tiles() * loaded.prompt.tokens_per_tile();
        if image_tokens >= loaded.context_tokens {
            let context = loaded.context_tokens;
            let message =
                format!("images[{i}]: {image_tokens} image tokens up to here; the context holds {context} tokens");
            return Err(Error::new(ErrorKind::ContextOverflow, message).into());
        }
        all.push(prepared);
        Ok(())
    });
    metrics.preprocess_ms = ms_since(start);
    done.map(|()| all)
}

/// `None` means that `stop` said so.
fn preprocess_image(
    loaded: &Loaded,
    picture: &Picture<'_>,
    longest_edge: usize,
    stop: &Stop,
) -> Result<Option<Prepared>> {
    let split = picture.split && loaded.images.split;
    let file = picture.view.file().filter(|_| loaded.image_cache.is_on());
    let key = file.map(|(bytes, orient)| Key::new(bytes, orient, longest_edge, split));
    if let Some(known) = key.and_then(|key| loaded.image_cache.get(&key)) {
        return Ok(Some(Prepared::Known(known)));
    }
    let Ok(lease) = loaded.backend.threads().take(stop) else { return Ok(None) };
    let (tile_size, threads) = (loaded.images.tile_size, lease.count());
    let options = TileOptions { tile_size, longest_edge, split, threads };
    let rgb = picture.view.to_rgb()?;
    let tiles = preprocess::tiles(&rgb, &options, &mut || stop.reason().is_some())?;
    Ok(tiles.map(|tiles| Prepared::Cut(tiles, key)))
}
