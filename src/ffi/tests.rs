//! What the C functions do when the engine breaks: no release has a backend that panics, so one is
//! made here.

use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::arg;
use super::engine::{smolvlm_engine, smolvlm_free, smolvlm_process};
use super::info::smolvlm_last_error;
use super::result::{smolvlm_result, smolvlm_result_finish_reason, smolvlm_result_free};
use super::session::{
    smolvlm_session, smolvlm_session_free, smolvlm_session_new, smolvlm_session_process, smolvlm_session_reset,
};
use super::types::{smolvlm_finish_reason, smolvlm_request, smolvlm_status};
use crate::backend::{Backend, BackendKind, DTypeKind, Decoder, DeviceKind, ImageRows, Placement, Run, Stop, Threads};
use crate::engine::{Engine, EngineOptions};
use crate::error::Result;
use crate::preprocess::Tiles;

/// Says the same token for ever; panics at the second step while `broken`.
struct Fake {
    broken: Arc<AtomicBool>,
    logits: Vec<f32>,
    len: usize,
    threads: Threads,
}

/// An ordinary token of the demo tokenizer: the letter `A`.
const TOKEN: &str = "A";

impl Backend for Fake {
    fn encode_images(&self, _: &Tiles, _: &Stop) -> Run<ImageRows> {
        Ok(ImageRows::default())
    }

    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(Fake {
            broken: self.broken.clone(),
            logits: self.logits.clone(),
            len: 0,
            threads: Threads::new(1),
        }))
    }

    fn placement(&self) -> Placement {
        let dtype = DTypeKind::F32;
        Placement { backend: BackendKind::Candle, device: DeviceKind::Cpu, dtype, kv_cache: dtype }
    }

    fn threads(&self) -> &Threads {
        &self.threads
    }
}

impl Decoder for Fake {
    fn prefill(&mut self, ids: &[u32], _: &[f32], _: &Stop) -> Run<&[f32]> {
        self.len += ids.len();
        Ok(&self.logits)
    }

    fn step(&mut self, _: u32, _: &Stop) -> Run<&[f32]> {
        assert!(!self.broken.load(Ordering::Relaxed), "the fake is broken");
        self.len += 1;
        Ok(&self.logits)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

fn engine(broken: &Arc<AtomicBool>) -> *mut smolvlm_engine {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let load = |logits| {
        let backend = Fake { broken: broken.clone(), logits, len: 0, threads: Threads::new(1) };
        Engine::with_backend(&dir, &EngineOptions::default(), Box::new(backend)).unwrap()
    };
    let tokenizer = load(Vec::new());
    let tokens = tokenizer.tokenizer().vocab_size() as u32;
    let logits = (0..tokens).map(|id| f32::from(tokenizer.tokenizer().token_bytes(id) == TOKEN.as_bytes())).collect();
    arg::give(smolvlm_engine { engine: load(logits) })
}

fn request() -> smolvlm_request {
    // SAFETY: zero is a value of every field: numbers, NULL pointers, no callback.
    let mut request: smolvlm_request = unsafe { std::mem::zeroed() };
    request.struct_size = size_of::<smolvlm_request>();
    request.prompt = c"Say A.".as_ptr();
    request.max_new_tokens = 4;
    request
}

fn message() -> String {
    // SAFETY: the last error is a NUL-terminated string of this thread.
    unsafe { CStr::from_ptr(smolvlm_last_error()) }.to_str().unwrap().to_owned()
}

#[test]
fn a_panic_breaks_its_session_and_nothing_else() {
    let broken = Arc::new(AtomicBool::new(true));
    let engine = engine(&broken);
    let request = request();
    let mut session: *mut smolvlm_session = null_mut();
    let mut result: *mut smolvlm_result = null_mut();
    // SAFETY: the handles come from the functions that make them, and each is freed once, at the
    // end.
    unsafe {
        assert_eq!(smolvlm_session_new(engine, &mut session), smolvlm_status::Ok);
        assert_eq!(smolvlm_session_process(session, &request, &mut result), smolvlm_status::Internal);
        assert_eq!((message().as_str(), result), ("panic: the fake is broken", null_mut()));

        broken.store(false, Ordering::Relaxed);
        for status in [smolvlm_session_process(session, &request, &mut result), smolvlm_session_reset(session)] {
            assert_eq!(status, smolvlm_status::Internal);
            assert_eq!(message(), "session: broken by an earlier panic, free it");
        }
        assert_eq!(smolvlm_process(engine, &request, &mut result), smolvlm_status::Ok, "{}", message());
        assert_eq!(smolvlm_result_finish_reason(result), smolvlm_finish_reason::MaxTokens);
        smolvlm_result_free(result);
        smolvlm_session_free(session);
        smolvlm_free(engine);
    }
}

#[test]
fn a_panic_in_a_stateless_call_is_a_status() {
    let broken = Arc::new(AtomicBool::new(true));
    let engine = engine(&broken);
    let request = request();
    let mut result: *mut smolvlm_result = null_mut();
    // SAFETY: as above.
    unsafe {
        assert_eq!(smolvlm_process(engine, &request, &mut result), smolvlm_status::Internal);
        assert_eq!((message().as_str(), result), ("panic: the fake is broken", null_mut()));
        broken.store(false, Ordering::Relaxed);
        assert_eq!(smolvlm_process(engine, &request, &mut result), smolvlm_status::Ok);
        smolvlm_result_free(result);
        smolvlm_free(engine);
    }
}

#[test]
fn a_call_from_inside_the_callback_is_busy_and_then_all_is_well() {
    unsafe extern "C" fn call_again(session: *mut c_void, _: *const c_char, _: usize) -> i32 {
        let mut result: *mut smolvlm_result = null_mut();
        let request = request();
        // SAFETY: `user_data` is the session, which the caller below holds.
        let status = unsafe { smolvlm_session_process(session.cast(), &request, &mut result) };
        assert_eq!((status, result), (smolvlm_status::Busy, null_mut()));
        0
    }
    let engine = engine(&Arc::new(AtomicBool::new(false)));
    let mut session: *mut smolvlm_session = null_mut();
    let mut result: *mut smolvlm_result = null_mut();
    let mut request = request();
    // SAFETY: as above; the engine may go before its session.
    unsafe {
        assert_eq!(smolvlm_session_new(engine, &mut session), smolvlm_status::Ok);
        smolvlm_free(engine);
        request.on_text = Some(call_again);
        request.user_data = session.cast();
        assert_eq!(smolvlm_session_process(session, &request, &mut result), smolvlm_status::Ok, "{}", message());
        smolvlm_result_free(result);
        request.prompt = null();
        assert_eq!(smolvlm_session_process(session, &request, &mut result), smolvlm_status::InvalidArgument);
        smolvlm_session_free(session);
    }
}
