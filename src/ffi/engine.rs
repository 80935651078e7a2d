//! `smolvlm_create`, `smolvlm_process`, `smolvlm_free`, and what a request and a callback become in
//! Rust.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::result::smolvlm_result;
use super::types::{
    smolvlm_backend, smolvlm_device, smolvlm_dtype, smolvlm_format, smolvlm_image, smolvlm_options, smolvlm_request,
    smolvlm_status, smolvlm_text_callback,
};
use super::{arg, guard};
use crate::backend::{BackendKind, DTypeKind, DeviceKind};
use crate::engine::{Engine, EngineOptions};
use crate::error::{Error, Result};
use crate::image::{ImageView, PixelFormat};
use crate::sampler::Sampling;
use crate::session::{OnText, Request};

/// A loaded model: weights, tokenizer, configuration. It never changes; any thread may use it, and
/// several at once, of the process that made it: a child of `fork` that asks it, or a session of
/// it, is told so at once (`SMOLVLM_STATUS_UNSUPPORTED`, "fork: ..."), may free both, and may load
/// the model itself, whatever the parent's threads were doing. A fork waits, two seconds at most,
/// while another thread reads a tokenizer or opens a graph of ONNX Runtime. Made by
/// `smolvlm_create`, freed by `smolvlm_free`.
pub struct smolvlm_engine {
    pub(super) engine: Engine,
}

/// Loads a model.
///
/// `model_dir` is the path, in UTF-8, of a directory as the Hugging Face hub publishes it:
/// config.json, tokenizer.json, model.safetensors or its shards for Candle, `onnx/` for ONNX
/// Runtime. Where there is no such directory, it may be a hub id, `owner/name` or
/// `owner/name@revision`, that the hub's local cache holds (`HF_HUB_CACHE`, else
/// `HUGGINGFACE_HUB_CACHE`, else `HF_HOME`, else `~/.cache/huggingface`); nothing is
/// fetched, and the message says what would fetch it. `options` may be NULL: all defaults. `*out`
/// is the engine, to be freed with `smolvlm_free`, or NULL on failure. The directory must not
/// change while the engine lives: a backend may keep its weights mapped.
///
/// Any thread. INVALID_ARGUMENT: an argument, named in the message. NOT_FOUND: the directory, one
/// of its files, or ONNX Runtime. INVALID_MODEL: a file, named. UNSUPPORTED: a kind of model,
/// backend, device or precision, or a library that is no ONNX Runtime or too old. OUT_OF_MEMORY:
/// over `max_memory_bytes`. BACKEND: the inference engine's own error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_create(
    model_dir: *const c_char,
    options: *const smolvlm_options,
    out: *mut *mut smolvlm_engine,
) -> smolvlm_status {
    guard::run(|| {
        // SAFETY: the caller promises a place for a pointer.
        let out = unsafe { arg::out(out, "out") }?;
        // SAFETY: the caller promises a NUL-terminated string.
        let model_dir = unsafe { arg::string(model_dir, "model_dir") }?;
        // SAFETY: the caller promises a struct of `struct_size` bytes whose pointers are valid.
        let options = unsafe { engine_options(options) }?;
        *out =
            arg::give(smolvlm_engine { engine: arg::within("options", Engine::load(Path::new(model_dir), &options))? });
        Ok(())
    })
}

/// Answers one question. Nothing is kept: the next question starts anew. See
/// `smolvlm_session_process` for conversations.
///
/// `request` is read during the call only. `*out` is the answer, to be freed with
/// `smolvlm_result_free`, or NULL on failure. A deadline that passed and a callback that stopped
/// are no failures: the result says so and has the text so far.
///
/// Any thread, and several at once with one engine. INVALID_ARGUMENT: an argument, named in the
/// message. CONTEXT_OVERFLOW: the prompt with its pictures is longer than the context.
/// OUT_OF_MEMORY, UNSUPPORTED, BACKEND: see the message. INTERNAL: a defect; the engine stays
/// usable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_process(
    engine: *mut smolvlm_engine,
    request: *const smolvlm_request,
    out: *mut *mut smolvlm_result,
) -> smolvlm_status {
    guard::run(|| {
        // SAFETY: the caller promises a place for a pointer.
        let out = unsafe { arg::out(out, "out") }?;
        // SAFETY: the caller promises a handle from `smolvlm_create` that is not freed yet.
        let engine = unsafe { arg::handle(engine, "engine") }?;
        // SAFETY: the caller promises a struct of `struct_size` bytes whose pointers are valid.
        let answer = unsafe { with_request(request, |request, on_text| engine.engine.process(request, on_text)) }?;
        *out = arg::give(smolvlm_result::new(answer));
        Ok(())
    })
}

/// Frees an engine; NULL is fine. Its sessions live on, and so does a call that is running: the
/// memory goes with the last of them. Any thread, once per engine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_free(engine: *mut smolvlm_engine) {
    // SAFETY: the caller promises a handle from `smolvlm_create` that is not freed yet.
    guard::infallible((), || unsafe { arg::release(engine) });
}

const DTYPES: [(i32, DTypeKind); 11] = [
    (smolvlm_dtype::Auto as i32, DTypeKind::Auto),
    (smolvlm_dtype::F32 as i32, DTypeKind::F32),
    (smolvlm_dtype::Bf16 as i32, DTypeKind::Bf16),
    (smolvlm_dtype::F16 as i32, DTypeKind::F16),
    (smolvlm_dtype::Int8 as i32, DTypeKind::Int8),
    (smolvlm_dtype::Uint8 as i32, DTypeKind::Uint8),
    (smolvlm_dtype::Quantized as i32, DTypeKind::Quantized),
    (smolvlm_dtype::Q4 as i32, DTypeKind::Q4),
    (smolvlm_dtype::Q4f16 as i32, DTypeKind::Q4F16),
    (smolvlm_dtype::Bnb4 as i32, DTypeKind::Bnb4),
    (smolvlm_dtype::Int4 as i32, DTypeKind::Int4),
];

/// # Safety
/// `options` is NULL or a struct of `struct_size` bytes whose strings are NULL or NUL-terminated.
unsafe fn engine_options(options: *const smolvlm_options) -> Result<EngineOptions> {
    if options.is_null() {
        return Ok(EngineOptions::default());
    }
    // SAFETY: the caller of this function promises `struct_size` readable bytes.
    let options = unsafe { arg::versioned(options, "options") }?;
    if options.reserved != 0 {
        return Err(Error::invalid_argument(format!("options.reserved: {} given, 0 needed", options.reserved)));
    }
    // SAFETY: the caller of this function promises a NUL-terminated string.
    let onnxruntime_path = unsafe { arg::optional_string(options.onnxruntime_path, "options.onnxruntime_path") }?;
    // SAFETY: as above.
    let packed_cache_dir = unsafe { arg::optional_string(options.packed_cache_dir, "options.packed_cache_dir") }?;
    Ok(EngineOptions {
        backend: arg::code(
            options.backend,
            &[
                (smolvlm_backend::Auto as i32, BackendKind::Auto),
                (smolvlm_backend::Candle as i32, BackendKind::Candle),
                (smolvlm_backend::Onnx as i32, BackendKind::Onnx),
            ],
            "options.backend",
        )?,
        device: arg::code(
            options.device,
            &[
                (smolvlm_device::Auto as i32, DeviceKind::Auto),
                (smolvlm_device::Cpu as i32, DeviceKind::Cpu),
                (smolvlm_device::Cuda as i32, DeviceKind::Cuda),
                (smolvlm_device::Metal as i32, DeviceKind::Metal),
                (smolvlm_device::Tensorrt as i32, DeviceKind::TensorRt),
            ],
            "options.device",
        )?,
        device_index: options.device_index as usize,
        dtype: arg::code(options.dtype, &DTYPES, "options.dtype")?,
        kv_cache: arg::code(options.kv_cache, &DTYPES, "options.kv_cache")?,
        num_threads: options.num_threads as usize,
        max_memory_bytes: options.max_memory_bytes,
        context_tokens: options.context_tokens as usize,
        onnxruntime_path: onnxruntime_path.map(PathBuf::from),
        packed_cache_dir: packed_cache_dir.map(PathBuf::from),
        image_cache_bytes: 0,
    })
}

/// Calls `body` with what a C request says.
///
/// # Safety
/// `request` is NULL or a struct of `struct_size` bytes; all that it points to is valid during the
/// call.
pub(super) unsafe fn with_request<T>(
    request: *const smolvlm_request,
    body: impl FnOnce(&Request<'_>, &mut OnText<'_>) -> Result<T>,
) -> Result<T> {
    // SAFETY: the caller of this function promises `struct_size` readable bytes.
    let request = unsafe { arg::versioned(request, "request") }?;
    if request.reserved != 0 {
        return Err(Error::invalid_argument(format!("request.reserved: {} given, 0 needed", request.reserved)));
    }
    // SAFETY: the caller of this function promises a NUL-terminated string.
    let prompt = unsafe { arg::string(request.prompt, "request.prompt") }?;
    // SAFETY: as above.
    let system_prompt = unsafe { arg::optional_string(request.system_prompt, "request.system_prompt") }?;
    // SAFETY: the caller of this function promises `image_count` images.
    let images = unsafe { arg::array(request.images, request.image_count, "request.images", "request.image_count") }?;
    let images = images
        .iter()
        .enumerate()
        .map(|(i, image)| {
            // SAFETY: the caller of this function promises `data_size` bytes in each image.
            unsafe { image_view(image, request.ignore_exif != 0) }
                .map_err(|e| e.within(format_args!("request.images[{i}]")))
        })
        .collect::<Result<Vec<_>>>()?;
    // SAFETY: the caller of this function promises `stop_count` strings.
    let stop = unsafe { arg::array(request.stop, request.stop_count, "request.stop", "request.stop_count") }?;
    let stop = stop
        .iter()
        .enumerate()
        // SAFETY: the caller of this function promises NUL-terminated strings.
        .map(|(i, &text)| unsafe { arg::string(text, format_args!("request.stop[{i}]")) })
        .collect::<Result<Vec<_>>>()?;

    let mut converted = Request::new(prompt, &images);
    converted.system_prompt = system_prompt;
    converted.longest_edge = (request.longest_edge != 0).then_some(request.longest_edge as usize);
    converted.split = request.no_split == 0;
    converted.max_new_tokens = request.max_new_tokens as usize;
    converted.sampling = Sampling {
        temperature: request.temperature,
        top_k: request.top_k as usize,
        top_p: request.top_p,
        min_p: request.min_p,
        repetition_penalty: request.repetition_penalty,
        frequency_penalty: request.frequency_penalty,
        presence_penalty: request.presence_penalty,
        seed: request.seed,
    };
    converted.stop = &stop;
    converted.keep_special_tokens = request.keep_special_tokens != 0;
    converted.timeout = (request.timeout_ms != 0).then(|| Duration::from_millis(request.timeout_ms.into()));
    let mut piece = Vec::new();
    let answer = body(&converted, &mut |text| {
        // SAFETY: the caller of this function promises that the callback may be called with its
        // data.
        unsafe { call_back(request.on_text, request.user_data, text, &mut piece) }
    });
    arg::within("request", answer)
}

/// # Safety
/// `image.data` is NULL or valid for reads of `data_size` bytes during `'a`.
unsafe fn image_view<'a>(image: &smolvlm_image, ignore_exif: bool) -> Result<ImageView<'a>> {
    let format = arg::code(
        image.format,
        &[
            (smolvlm_format::Encoded as i32, None),
            (smolvlm_format::Rgb8 as i32, Some(PixelFormat::Rgb8)),
            (smolvlm_format::Bgr8 as i32, Some(PixelFormat::Bgr8)),
            (smolvlm_format::Rgba8 as i32, Some(PixelFormat::Rgba8)),
            (smolvlm_format::Bgra8 as i32, Some(PixelFormat::Bgra8)),
            (smolvlm_format::Gray8 as i32, Some(PixelFormat::Gray8)),
            (smolvlm_format::Gray16 as i32, Some(PixelFormat::Gray16)),
        ],
        "format",
    )?;
    // SAFETY: the caller of this function promises `data_size` bytes.
    let data = unsafe { arg::bytes(image.data, image.data_size) }?;
    if let Some(format) = format {
        return ImageView::raw(data, image.stride, image.width, image.height, format);
    }
    for (name, value) in [("stride", image.stride), ("width", image.width as usize), ("height", image.height as usize)]
    {
        if value != 0 {
            return Err(Error::invalid_argument(format!("{name}: {value} given, 0 needed for encoded bytes")));
        }
    }
    Ok(if ignore_exif { ImageView::encoded_unoriented(data) } else { ImageView::encoded(data) })
}

/// Hands one piece to C, with a NUL behind it; `buffer` keeps its memory from piece to piece.
///
/// # Safety
/// `callback` may be called with `user_data`.
unsafe fn call_back(
    callback: smolvlm_text_callback,
    user_data: *mut c_void,
    text: &str,
    buffer: &mut Vec<u8>,
) -> ControlFlow<()> {
    let Some(callback) = callback else {
        return ControlFlow::Continue(());
    };
    buffer.clear();
    buffer.extend_from_slice(text.as_bytes());
    buffer.push(0);
    // SAFETY: `buffer` holds `text.len()` bytes and a NUL; the caller of this function promises the
    // rest.
    match unsafe { callback(user_data, buffer.as_ptr().cast(), text.len()) } {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    }
}
