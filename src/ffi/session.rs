//! Conversations.

use std::sync::{Mutex, TryLockError};

use super::engine::{smolvlm_engine, with_request};
use super::result::smolvlm_result;
use super::types::{smolvlm_request, smolvlm_status};
use super::{arg, guard};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::Process;
use crate::process;
use crate::session::Session;
use crate::stop::Canceller;

/// One conversation and its memory. Any thread may use it, one generation at a time. Made by
/// `smolvlm_session_new`, freed by `smolvlm_session_free`.
pub struct smolvlm_session {
    /// A panic during a generation poisons the mutex, and with it the session.
    session: Mutex<Session>,
    canceller: Canceller,
    process: Process,
}

impl smolvlm_session {
    fn new(session: Session) -> Self {
        Self { canceller: session.canceller(), session: Mutex::new(session), process: Process::current() }
    }

    fn exclusively<T>(&self, body: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        // First: in a child whoever has locked it does not unlock it any more.
        process::check(self.process)?;
        match self.session.try_lock() {
            Ok(mut session) => body(&mut session),
            Err(TryLockError::WouldBlock) => Err(Error::new(ErrorKind::Busy, "session: a generation is running")),
            Err(TryLockError::Poisoned(_)) => Err(Error::internal("session: broken by an earlier panic, free it")),
        }
    }
}

/// Starts a conversation.
///
/// `engine` may be freed before the session. `*out` is the session, to be freed with
/// `smolvlm_session_free`, or NULL on failure.
///
/// Any thread. INVALID_ARGUMENT: an argument is NULL. OUT_OF_MEMORY: over `max_memory_bytes`.
/// BACKEND: the inference engine's own error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_session_new(
    engine: *mut smolvlm_engine,
    out: *mut *mut smolvlm_session,
) -> smolvlm_status {
    guard::run(|| {
        // SAFETY: the caller promises a place for a pointer.
        let out = unsafe { arg::out(out, "out") }?;
        // SAFETY: the caller promises a handle from `smolvlm_create` that is not freed yet.
        let engine = unsafe { arg::handle(engine, "engine") }?;
        *out = arg::give(smolvlm_session::new(Session::new(&engine.engine)?));
        Ok(())
    })
}

/// Asks the next question of a conversation; the model sees the earlier ones, their pictures and
/// their answers.
///
/// As `smolvlm_process`, and further: BUSY: a generation of this session is running, on another
/// thread or around the callback that makes this call. INTERNAL: a defect; if it was a panic, the
/// session answers so until it is freed. After a failure of another kind, and after a stop
/// (deadline, cancel, callback) before the first token, the conversation is as it was before the
/// call: question, pictures and system prompt are to be given again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_session_process(
    session: *mut smolvlm_session,
    request: *const smolvlm_request,
    out: *mut *mut smolvlm_result,
) -> smolvlm_status {
    guard::run(|| {
        // SAFETY: the caller promises a place for a pointer.
        let out = unsafe { arg::out(out, "out") }?;
        // SAFETY: the caller promises a handle from `smolvlm_session_new` that is not freed yet.
        let session = unsafe { arg::handle(session, "session") }?;
        // SAFETY: the caller promises a struct of `struct_size` bytes whose pointers are valid.
        let answer =
            unsafe { with_request(request, |request, on_text| session.exclusively(|s| s.process(request, on_text))) }?;
        *out = arg::give(smolvlm_result::new(answer));
        Ok(())
    })
}

/// Ends the generation that the session is running: it returns soon, with the text so far and
/// `SMOLVLM_FINISH_REASON_CANCELLED`. An idle session is not affected, nor is its next generation.
/// NULL is fine.
///
/// Any thread, the text callback, and a signal handler: it stores one atomic value. The session
/// must not be freed meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_session_cancel(session: *mut smolvlm_session) {
    // SAFETY: the caller promises NULL or a handle that is not freed yet. Neither memory is
    // allocated nor a lock taken here, for the sake of signal handlers.
    if let Some(session) = unsafe { session.as_ref() } {
        session.canceller.cancel();
    }
}

/// Forgets the conversation; the session is as new.
///
/// Any thread. INVALID_ARGUMENT: `session` is NULL. BUSY, INTERNAL: as `smolvlm_session_process`.
/// UNSUPPORTED: in a child of `fork`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_session_reset(session: *mut smolvlm_session) -> smolvlm_status {
    guard::run(|| {
        // SAFETY: the caller promises a handle from `smolvlm_session_new` that is not freed yet.
        let session = unsafe { arg::handle(session, "session") }?;
        session.exclusively(|session| {
            session.reset();
            Ok(())
        })
    })
}

/// Frees a session; NULL is fine. A call that is running with it ends as it would have, and the
/// memory goes then. Any thread, once per session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_session_free(session: *mut smolvlm_session) {
    // SAFETY: the caller promises a handle from `smolvlm_session_new` that is not freed yet.
    guard::infallible((), || unsafe { arg::release(session) });
}
