//! The process's one ONNX Runtime, loaded when the first engine wants it.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use once_cell::sync::OnceCell;
use ort::LoadDynamicError;
use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::logging::LogLevel;

use crate::error::{Error, Result};
use crate::fork::no_fork;
use crate::log;
use crate::options::{DeviceKind, EngineOptions};

/// What the system's library is called, with and without its development package.
const SYSTEM_NAMES: [&str; 2] = ["libonnxruntime.so", "libonnxruntime.so.1"];

struct Runtime {
    environment: Environment,
    path: PathBuf,
}

// A failed load leaves the cell empty: the next engine may name a better file. Only if a library
// was loaded and then did not start does the process keep it; the path that is compared is always
// that of the library which is there.
static RUNTIME: OnceCell<Runtime> = OnceCell::new();

/// Loads the library that `asked` names, else `ORT_DYLIB_PATH`, else the system's; once in a
/// process.
pub(super) fn environment(asked: Option<&Path>) -> Result<&'static Environment> {
    let mut fresh = false;
    let start = || {
        fresh = true;
        #[cfg(target_os = "linux")]
        super::telemetry::disable();
        load(asked)
    };
    let runtime = {
        let _no_fork = no_fork();
        RUNTIME.get_or_try_init(start)?
    };
    if fresh {
        log::info(format_args!("ONNX Runtime: {}: {}", runtime.path.display(), ort::info()));
    }
    match asked {
        Some(asked) if resolved(asked) != resolved(&runtime.path) => Err(Error::invalid_argument(format!(
            "onnxruntime_path: {} asked for, but this process has loaded {}; it can have one",
            asked.display(),
            runtime.path.display()
        ))),
        _ => Ok(&runtime.environment),
    }
}

fn load(asked: Option<&Path>) -> Result<Runtime> {
    if let Some(path) = asked {
        return load_file(path).map_err(|e| e.at("onnxruntime_path"));
    }
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return load_file(Path::new(&path)).map_err(|e| e.at("ORT_DYLIB_PATH"));
    }
    let mut errors = Vec::new();
    for name in SYSTEM_NAMES {
        match open(Path::new(name)) {
            Ok(runtime) => return Ok(runtime),
            Err(error) => errors.push(error.message().to_owned()),
        }
    }
    let advice = "name the file in options.onnxruntime_path or in ORT_DYLIB_PATH";
    Err(Error::not_found(format!("no ONNX Runtime: {}; {advice}", errors.join("; "))))
}

fn load_file(path: &Path) -> Result<Runtime> {
    match path.metadata() {
        Err(e) => Err(Error::not_found(format!("{}: {e}", path.display()))),
        // A pipe would block.
        Ok(data) if !data.is_file() => Err(Error::not_found(format!("{}: is not a file", path.display()))),
        // `ort` would look for a relative path beside the program.
        Ok(_) => open(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned())),
    }
}

fn open(path: &Path) -> Result<Runtime> {
    let builder = ort::init_from(path).map_err(|e| match e {
        LoadDynamicError::BadVersion { version_str, path } => Error::unsupported(format!(
            "{}: is ONNX Runtime {version_str}, 1.{} or newer is needed",
            path.display(),
            ort::MINOR_VERSION
        )),
        LoadDynamicError::Dlopen { error, path } => {
            // What the system's loader says is the source.
            let cause = std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string);
            Error::unsupported(format!("{}: no library that can be loaded: {cause}", path.display()))
        }
        LoadDynamicError::MissingApi { path } => {
            Error::unsupported(format!("{}: is not ONNX Runtime, it has no OrtGetApiBase", path.display()))
        }
        LoadDynamicError::InvalidVersionString => {
            Error::unsupported(format!("{}: ONNX Runtime says no version", path.display()))
        }
    })?;
    let logger = |level, category: &str, _: &str, place: &str, message: &str| {
        // A listener is promised one line.
        let message = format!("onnxruntime: {message} ({category}, {place})");
        let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
        match level {
            LogLevel::Fatal | LogLevel::Error => log::error(format_args!("{line}")),
            LogLevel::Warning => log::warn(format_args!("{line}")),
            LogLevel::Info | LogLevel::Verbose => log::debug(format_args!("{line}")),
        }
    };
    let environment = builder.with_name("smolvlm").with_telemetry(false).with_logger(Arc::new(logger)).build()?;
    environment.set_log_level(LogLevel::Warning);
    Ok(Runtime { environment, path: loaded_file().unwrap_or_else(|| path.to_owned()) })
}

/// The file that the runtime's code is mapped from, which a bare name does not say.
fn loaded_file() -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for; the answer goes to memory of our own.
    if unsafe { libc::dladdr(std::ptr::from_ref(ort::api()).cast(), info.as_mut_ptr()) } == 0 {
        return None;
    }
    // SAFETY: zeroed is a value of it, and dladdr has filled it in.
    let name = unsafe { info.assume_init() }.dli_fname;
    if name.is_null() {
        return None;
    }
    // SAFETY: a path, NUL-terminated, that lives as long as the library, which is never unloaded.
    let name = unsafe { CStr::from_ptr(name) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

fn resolved(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The providers of the device that is asked for, each of which must register; an error if this
/// ONNX Runtime lacks them.
pub(super) fn providers(options: &EngineOptions) -> Result<(DeviceKind, Vec<ExecutionProviderDispatch>)> {
    let index = i32::try_from(options.device_index).map_err(|_| {
        Error::invalid_argument(format!("device_index: {} given, at most {} accepted", options.device_index, i32::MAX))
    })?;
    let cuda = || ep::CUDA::default().with_device_id(index).build().error_on_failure();
    let (device, providers) = match options.device {
        DeviceKind::Auto | DeviceKind::Cpu => return Ok((DeviceKind::Cpu, Vec::new())),
        DeviceKind::Cuda => (DeviceKind::Cuda, vec![cuda()]),
        // What TensorRT leaves, CUDA takes.
        DeviceKind::TensorRt => {
            let tensorrt = ep::TensorRT::default().with_device_id(index).build().error_on_failure();
            (DeviceKind::TensorRt, vec![tensorrt, cuda()])
        }
        DeviceKind::Metal => return Err(Error::unsupported("device: metal is for the candle backend")),
    };
    let known = [
        (DeviceKind::Cpu, true),
        (DeviceKind::Cuda, ep::CUDA::is_available()?),
        (DeviceKind::TensorRt, ep::TensorRT::is_available()?),
    ];
    if known.contains(&(device, true)) {
        return Ok((device, providers));
    }
    let available: Vec<_> = known.iter().filter(|(_, there)| *there).map(|(kind, _)| kind.name()).collect();
    Err(Error::unsupported(format!(
        "device: {} asked for, this ONNX Runtime has {}",
        device.name(),
        available.join(", ")
    )))
}
