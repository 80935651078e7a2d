//! Pictures to tiles, or to what is known of them already.

use std::sync::Arc;
use std::time::Instant;

use crate::backend::{Run, Stop};
use crate::config::MAX_LONGEST_EDGE;
use crate::conversation::Picture;
use crate::engine::Inner;
use crate::error::{Error, ErrorKind, Result};
use crate::image_cache::{Encoded, Key};
use crate::metrics::{Metrics, ms_since};
use crate::preprocess::{self, TileOptions, Tiles};
use crate::prompt::Grid;

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
    inner: &Inner,
    pictures: &[Picture<'_>],
    longest_edge: Option<usize>,
    stop: &Stop,
    metrics: &mut Metrics,
) -> Run<Vec<Prepared>> {
    let start = Instant::now();
    let longest_edge = longest_edge.unwrap_or(inner.images.longest_edge);
    if !(1..=MAX_LONGEST_EDGE).contains(&longest_edge) {
        let message = format!("longest_edge: {longest_edge} given, 1 to {MAX_LONGEST_EDGE} accepted");
        return Err(Error::invalid_argument(message).into());
    }
    let mut all: Vec<Prepared> = Vec::new();
    let mut image_tokens = 0;
    let done = pictures.iter().enumerate().try_for_each(|(i, picture)| {
        stop.check()?;
        let prepared =
            preprocess_image(inner, picture, longest_edge, stop).map_err(|e| e.at(format!("images[{i}]")))?;
        let Some(prepared) = prepared else { return stop.check() };
        // Before more pictures take memory.
        image_tokens += prepared.tiles() * inner.prompt.tokens_per_tile();
        if image_tokens >= inner.context_tokens {
            let context = inner.context_tokens;
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
    inner: &Inner,
    picture: &Picture<'_>,
    longest_edge: usize,
    stop: &Stop,
) -> Result<Option<Prepared>> {
    let split = picture.split && inner.images.split;
    let file = picture.view.file().filter(|_| inner.image_cache.is_on());
    let key = file.map(|(bytes, orient)| Key::new(bytes, orient, longest_edge, split));
    if let Some(known) = key.and_then(|key| inner.image_cache.get(&key)) {
        return Ok(Some(Prepared::Known(known)));
    }
    let Ok(lease) = inner.backend.threads().take(stop) else { return Ok(None) };
    let (tile_size, threads) = (inner.images.tile_size, lease.count());
    let options = TileOptions { tile_size, longest_edge, split, threads };
    let rgb = picture.view.to_rgb()?;
    let tiles = preprocess::tiles(&rgb, &options, &mut || stop.reason().is_some())?;
    Ok(tiles.map(|tiles| Prepared::Cut(tiles, key)))
}
