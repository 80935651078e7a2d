//! Answers.

use std::ffi::{CString, c_char};

use super::types::{
    smolvlm_backend, smolvlm_device, smolvlm_dtype, smolvlm_finish_reason, smolvlm_metrics, smolvlm_status,
};
use super::{arg, guard};
use crate::metrics::Metrics;
use crate::session::Answer;

/// An answer. It never changes; any thread may read it. Made by `smolvlm_process` and
/// `smolvlm_session_process`, freed by `smolvlm_result_free`.
pub struct smolvlm_result {
    text: CString,
    answer: Answer,
}

impl smolvlm_result {
    pub(super) fn new(answer: Answer) -> Self {
        Self { text: guard::c_string(&answer.text), answer }
    }
}

/// The text: UTF-8, NUL-terminated, without another NUL, owned by the result. `out_size` receives
/// its bytes without the last NUL, and may be NULL. A result that is NULL has the text "". Any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_result_text(result: *const smolvlm_result, out_size: *mut usize) -> *const c_char {
    // SAFETY: the caller promises NULL or a result that is not freed yet.
    let text = unsafe { result.as_ref() }.map_or(c"", |result| &result.text);
    // SAFETY: the caller promises NULL or a place for a size.
    unsafe { store(out_size, text.count_bytes()) };
    text.as_ptr()
}

/// Why the answer ended; `SMOLVLM_FINISH_REASON_NONE` for NULL. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_result_finish_reason(result: *const smolvlm_result) -> smolvlm_finish_reason {
    // SAFETY: the caller promises NULL or a result that is not freed yet.
    unsafe { result.as_ref() }.map_or(smolvlm_finish_reason::None, |result| result.answer.finish_reason.into())
}

/// The ids of the tokens that the model made, without the one that ends an answer; owned by the
/// result. `out_count` receives their number, and may be NULL. NULL has none. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_result_tokens(result: *const smolvlm_result, out_count: *mut usize) -> *const u32 {
    // SAFETY: the caller promises NULL or a result that is not freed yet, and NULL or a place for a
    // count.
    unsafe { slice(result, out_count, |answer| &answer.token_ids) }
}

/// The ids of the tokens that the model read, the conversation before and the places of the
/// pictures included; owned by the result. `out_count` receives their number, and may be NULL. NULL
/// has none. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_result_prompt_tokens(
    result: *const smolvlm_result,
    out_count: *mut usize,
) -> *const u32 {
    // SAFETY: the caller promises NULL or a result that is not freed yet, and NULL or a place for a
    // count.
    unsafe { slice(result, out_count, |answer| &answer.prompt_token_ids) }
}

/// What the answer took and used. The caller sets `out->struct_size`; the rest is filled in, as far
/// as the struct of the caller's version goes.
///
/// Any thread. INVALID_ARGUMENT: an argument is NULL, or `struct_size` is no size of this struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_result_metrics(
    result: *const smolvlm_result,
    out: *mut smolvlm_metrics,
) -> smolvlm_status {
    guard::run(|| {
        // SAFETY: the caller promises NULL or a result that is not freed yet.
        let result = unsafe { arg::handle(result, "result") }?;
        // SAFETY: the caller promises NULL or a struct of `struct_size` bytes.
        unsafe { arg::fill(out, &metrics(&result.answer.metrics), "out") }
    })
}

/// Frees a result, with its text and its tokens; NULL is fine. Any thread, once per result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_result_free(result: *mut smolvlm_result) {
    // SAFETY: the caller promises NULL or a result that is not freed yet.
    guard::infallible((), || unsafe { arg::release(result) });
}

fn metrics(metrics: &Metrics) -> smolvlm_metrics {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    smolvlm_metrics {
        struct_size: size_of::<smolvlm_metrics>(),
        preprocess_ms: metrics.preprocess_ms,
        vision_ms: metrics.vision_ms,
        prefill_ms: metrics.prefill_ms,
        decode_ms: metrics.decode_ms,
        time_to_first_token_ms: metrics.time_to_first_token_ms,
        total_ms: metrics.total_ms,
        tiles: count(metrics.tiles),
        image_tokens: count(metrics.image_tokens),
        prompt_tokens: count(metrics.prompt_tokens),
        cached_tokens: count(metrics.cached_tokens),
        generated_tokens: count(metrics.generated_tokens),
        backend: smolvlm_backend::from(metrics.placement.backend) as i32,
        device: smolvlm_device::from(metrics.placement.device) as i32,
        dtype: smolvlm_dtype::from(metrics.placement.dtype) as i32,
        kv_cache: smolvlm_dtype::from(metrics.placement.kv_cache) as i32,
        reserved: 0,
    }
}

/// # Safety
/// `result` is NULL or a live result, `out_count` NULL or valid for a write.
unsafe fn slice(
    result: *const smolvlm_result,
    out_count: *mut usize,
    select: impl FnOnce(&Answer) -> &Vec<u32>,
) -> *const u32 {
    // SAFETY: the caller of this function promises it.
    let ids = unsafe { result.as_ref() }.map_or(&[][..], |result| select(&result.answer));
    // SAFETY: the caller of this function promises it.
    unsafe { store(out_count, ids.len()) };
    if ids.is_empty() { std::ptr::null() } else { ids.as_ptr() }
}

/// # Safety
/// `out` is NULL or valid for a write.
unsafe fn store(out: *mut usize, value: usize) {
    if !out.is_null() {
        // SAFETY: not NULL; the caller of this function promises the rest.
        unsafe { out.write(value) };
    }
}
