//! Features of pictures, row by row, beside f32's: of the vision encoder, and of the connector
//! behind it.

use std::path::{Path, PathBuf};

use serde::Serialize;
use smolvlm::backend::candle::CandleBackend;
use smolvlm::backend::{Backend, Stop};
use smolvlm::config::{ImageConfig, ModelConfig};
use smolvlm::files::ModelFiles;
use smolvlm::preprocess::{self, TileOptions, Tiles};
use smolvlm::{DTypeKind, EngineOptions, ImageView};

use crate::Anything;

#[derive(Serialize)]
pub struct Report {
    pictures: usize,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    features: Figures,
    image_rows: Figures,
}

#[derive(Serialize)]
struct Figures {
    rows: usize,
    /// The length of the difference over the length of f32's row, mean over the rows.
    error_mean: f64,
    error_max: f64,
    cosine_mean: f64,
    cosine_min: f64,
}

fn figures(ours: &[f32], exact: &[f32], width: usize) -> Figures {
    let mut found =
        Figures { rows: ours.len() / width, error_mean: 0.0, error_max: 0.0, cosine_mean: 0.0, cosine_min: 1.0 };
    for (ours, exact) in ours.chunks_exact(width).zip(exact.chunks_exact(width)) {
        let sum = |of: &dyn Fn(f64, f64) -> f64| {
            ours.iter().zip(exact).map(|(&a, &b)| of(f64::from(a), f64::from(b))).sum::<f64>()
        };
        let (of_ours, of_exact) = (sum(&|a, _| a * a).sqrt(), sum(&|_, b| b * b).sqrt());
        let error = sum(&|a, b| (a - b).powi(2)).sqrt() / of_exact;
        let cosine = sum(&|a, b| a * b) / (of_ours * of_exact);
        found.error_mean += error / found.rows as f64;
        found.error_max = found.error_max.max(error);
        found.cosine_mean += cosine / found.rows as f64;
        found.cosine_min = found.cosine_min.min(cosine);
    }
    found
}

/// Of all pictures, each as one tile: the encoder's rows, and the connector's.
fn features(backend: &CandleBackend, pictures: &[Tiles]) -> Anything<[Vec<f32>; 2]> {
    let mut found = [Vec::new(), Vec::new()];
    for tiles in pictures {
        found[0].extend(backend.vision_hidden_states(tiles)?);
        let rows = backend.encode_images(tiles, &Stop::default()).map_err(|halt| format!("{halt:?}"))?;
        found[1].extend(rows.values);
    }
    Ok(found)
}

/// What precisions of Candle make of pictures.
pub fn look(model: &Path, pictures: &[PathBuf], subjects: &[String]) -> Anything<Report> {
    let files = ModelFiles::open(model)?;
    let config = ModelConfig::load(&files)?;
    let images = ImageConfig::load(&files, &config)?;
    let load = |dtype| {
        let options = EngineOptions { dtype, ..Default::default() };
        CandleBackend::load(&files, &config, &images, &options)
    };
    let tile_size = images.tile_size;
    let options = TileOptions { tile_size, longest_edge: tile_size, split: false, threads: 1 };
    let mut cut = Vec::new();
    for picture in pictures {
        let file = std::fs::read(picture).map_err(|error| format!("{}: {error}", picture.display()))?;
        let rgb = ImageView::encoded(&file).to_rgb()?;
        cut.push(preprocess::tiles(&rgb, &options, &mut || false)?.ok_or("stopped, and nobody could stop it")?);
    }
    let exact = features(&load(DTypeKind::F32)?, &cut)?;
    let widths = [config.vision.hidden_size, config.text.hidden_size];
    let mut rows = Vec::new();
    for name in subjects {
        let dtype = name.strip_prefix("candle ").ok_or_else(|| format!("{name}: features are Candle's alone"))?;
        let ours = features(&load(dtype.parse()?)?, &cut)?;
        let [features, image_rows] = [0, 1].map(|i| figures(&ours[i], &exact[i], widths[i]));
        rows.push(Row { name: name.clone(), features, image_rows });
    }
    Ok(Report { pictures: cut.len(), rows })
}
