//! The ONNX Runtime engine: the hub's three graphs, in a library that the user brings.

mod decoder;
mod graph;
mod runtime;
#[cfg(target_os = "linux")]
mod telemetry;
mod tensor;
mod variant;

use std::sync::Arc;

use ort::session::{OutputSelector, RunOptions};
use ort::value::{DynTensor, Tensor, TensorElementType};

use self::decoder::{DecoderGraph, OnnxDecoder};
use self::graph::{ANY, Graph, Opener};
use self::tensor::{FLOATS, floats, read};
use self::variant::Variant;
use super::{
    Backend, BackendKind, Decoder, ImageRows, Placement, Run, Stop, Threads, VISION_PATCHES, cached_numbers,
    check_memory,
};
use crate::config::{ImageConfig, ModelConfig};
use crate::engine::EngineOptions;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::preprocess::{Normalise, Tiles};

const PIXEL_VALUES: &str = "pixel_values";
const PIXEL_ATTENTION_MASK: &str = "pixel_attention_mask";
const IMAGE_FEATURES: &str = "image_features";

/// Three open graphs.
pub struct OnnxBackend {
    vision: Graph,
    pixels: TensorElementType,
    /// Of the mask of pixels that count, if the graph wants one.
    mask: Option<TensorElementType>,
    decoder: Arc<DecoderGraph>,
    normalise: Normalise,
    tokens_per_tile: usize,
    hidden_size: usize,
    tiles_at_once: usize,
    /// They prepare pictures; ONNX Runtime has as many of its own for each graph.
    threads: Threads,
    placement: Placement,
}

impl OnnxBackend {
    /// Loads ONNX Runtime and opens the checkpoint's graphs.
    pub fn load(
        files: &ModelFiles,
        model: &ModelConfig,
        images: &ImageConfig,
        options: &EngineOptions,
    ) -> Result<Self> {
        if options.packed_cache_dir.is_some() {
            return Err(Error::unsupported("packed_cache_dir: is for the candle backend"));
        }
        let environment = runtime::environment(options.onnxruntime_path.as_deref())?;
        let (device, providers) = runtime::providers(options)?;
        let variant = Variant::choose(files, options.dtype, device)?;
        variant.check_kv_cache(options.kv_cache)?;
        // ONNX Runtime opens the weights beside a graph by itself.
        files.check_folder("onnx")?;
        // During a step the former cache and the new one are there.
        let position_bytes = cached_numbers(&model.text).saturating_mul(2 * variant.cache_element_bytes() as u64);
        check_memory(variant.bytes(files)?, position_bytes, model, options)?;
        let threads = super::threads(options);
        let opener = Opener { environment, providers: &providers, threads: threads.all(), same_shapes: false };
        // A table lookup: on an accelerator its rows would travel both ways.
        let lookup = Opener { environment, providers: &[], threads: 1, same_shapes: false };
        let decoder = DecoderGraph::new(
            lookup.open(files, &variant.embed)?,
            opener.open(files, &variant.decoder)?,
            model,
            (device, options.device_index),
        )?;
        let vision = Opener { same_shapes: true, ..opener }.open(files, &variant.vision)?;
        let size = model.vision.image_size as i64;
        let pixels = vision.input(PIXEL_VALUES, &FLOATS, &[1, ANY, 3, size, size])?.element;
        let masks = [TensorElementType::Bool, TensorElementType::Int64];
        let mask = vision.optional_input(PIXEL_ATTENTION_MASK, &masks, &[&[1, ANY, size, size]])?;
        let mask = mask.map(|port| port.element);
        vision.expect_only(&[PIXEL_VALUES, PIXEL_ATTENTION_MASK])?;
        let (tokens_per_tile, hidden_size) = (model.tokens_per_tile(), model.text.hidden_size);
        vision.output_rows(IMAGE_FEATURES, &FLOATS, hidden_size as i64)?;
        Ok(Self {
            vision,
            pixels,
            mask,
            decoder: Arc::new(decoder),
            normalise: Normalise::new(images.rescale_factor, images.mean, images.std),
            tokens_per_tile,
            hidden_size,
            tiles_at_once: (VISION_PATCHES / model.vision.patches()).max(1),
            threads,
            placement: Placement {
                backend: BackendKind::Onnx,
                device,
                dtype: variant.dtype,
                kv_cache: variant.kv_cache(),
            },
        })
    }
}

/// A mask under which every pixel counts.
fn full(element: TensorElementType, shape: [usize; 4]) -> Result<DynTensor> {
    let count = shape.iter().product();
    Ok(match element {
        TensorElementType::Int64 => Tensor::from_array((shape, vec![1_i64; count]))?.upcast(),
        _ => Tensor::from_array((shape, vec![true; count]))?.upcast(),
    })
}

impl Backend for OnnxBackend {
    fn encode_images(&self, tiles: &Tiles, stop: &Stop) -> Run<ImageRows> {
        let size = tiles.size;
        let tile = 3 * size * size;
        let select = RunOptions::new()?.with_outputs(OutputSelector::no_default().with(IMAGE_FEATURES));
        let mut values = Vec::new();
        for start in (0..tiles.count()).step_by(self.tiles_at_once) {
            let batch = self.tiles_at_once.min(tiles.count() - start);
            let mut pixels = vec![0.0; batch * tile];
            for (i, out) in pixels.chunks_exact_mut(tile).enumerate() {
                self.normalise.to_chw(tiles.tile(start + i), size, out);
            }
            let (batch_dim, size_dim) = (batch as i64, size as i64);
            let pixels = floats(self.pixels, vec![1, batch_dim, 3, size_dim, size_dim], pixels)?;
            let mut inputs = ort::inputs![PIXEL_VALUES => pixels];
            // Tiles are always full: a graph without a mask has nothing to be told.
            if let Some(element) = self.mask {
                inputs.push((PIXEL_ATTENTION_MASK.into(), full(element, [1, batch, size, size])?.into()));
            }
            let (_turn, mut session) = self.vision.turn(stop)?;
            let outputs = session.run_with_options(inputs, &select)?;
            let rows = read(&outputs[IMAGE_FEATURES], batch * self.tokens_per_tile * self.hidden_size);
            values.extend(rows.map_err(|e| self.vision.at(IMAGE_FEATURES, e))?);
        }
        Ok(ImageRows { values, width: self.hidden_size })
    }

    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(OnnxDecoder::new(&self.decoder)?))
    }

    fn placement(&self) -> Placement {
        self.placement
    }

    fn threads(&self) -> &Threads {
        &self.threads
    }
}
