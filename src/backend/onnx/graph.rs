//! One ONNX graph: opened, and its inputs and outputs compared with what the model needs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ort::ErrorCode;
use ort::environment::Environment;
use ort::ep::ExecutionProviderDispatch;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{Outlet, TensorElementType, ValueType};

use crate::backend::threads::{Lease, Threads};
use crate::error::{Error, ErrorKind, Result};
use crate::files::ModelFiles;
use crate::fork::no_fork;
use crate::stop::{Halt, Run, Stop};

/// A dimension that the model's settings do not fix.
pub(super) const ANY: i64 = -1;

/// How graphs are opened.
pub(super) struct Opener<'a> {
    pub(super) environment: &'a Environment,
    pub(super) providers: &'a [ExecutionProviderDispatch],
    pub(super) threads: usize,
    /// Runs have the same shapes again and again, and memory is planned for them. Where every run
    /// has its own, their plans would only pile up.
    pub(super) same_shapes: bool,
}

/// An open graph. `ort` holds that ONNX Runtime's own `Run` is not safe on several threads at once,
/// so one runs at a time.
pub(super) struct Graph {
    path: String,
    /// In which runs of several sequences have their turn: one at a time, first come, first served.
    turns: Threads,
    session: Mutex<Session>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

/// An input or output.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) element: TensorElementType,
    /// -1: any.
    pub(super) shape: Vec<i64>,
}

impl Opener<'_> {
    /// Opens the graph in a file of the checkpoint.
    pub(super) fn open(&self, files: &ModelFiles, name: &str) -> Result<Graph> {
        files.size(name)?;
        let path = files.path(name);
        // ONNX Runtime locks what all its sessions share, for moments; a child that finds it locked
        // could open no graph.
        let no_fork = no_fork();
        let session = self.builder()?.commit_from_file(&path).map_err(|e| {
            let of_the_file = matches!(
                e.code(),
                ErrorCode::NoSuchFile | ErrorCode::NoModel | ErrorCode::InvalidProtobuf | ErrorCode::InvalidGraph
            );
            // On an accelerator it may be the device that does not work.
            let kind =
                if of_the_file || self.providers.is_empty() { ErrorKind::InvalidModel } else { ErrorKind::Backend };
            Error::new(kind, e.message()).at(path.display())
        })?;
        drop(no_fork);
        let ports = |outlets: &[Outlet]| outlets.iter().map(port).collect();
        Ok(Graph {
            path: path.display().to_string(),
            inputs: ports(session.inputs()),
            outputs: ports(session.outputs()),
            turns: Threads::new(1),
            session: Mutex::new(session),
        })
    }

    fn builder(&self) -> Result<SessionBuilder, ort::Error> {
        Ok(Session::builder(self.environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(self.threads)?
            .with_inter_threads(1)?
            // Threads may wait busily between two operations of a run, never between two runs.
            .with_config_entry("session.force_spinning_stop", "1")?
            .with_memory_pattern(self.same_shapes)?
            .with_execution_providers(self.providers)?)
    }
}

fn port(outlet: &Outlet) -> Port {
    let (element, shape) = match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => (*ty, shape.to_vec()),
        _ => (TensorElementType::Undefined, Vec::new()),
    };
    Port { name: outlet.name().to_owned(), element, shape }
}

impl Graph {
    /// The session, as soon as it is one's turn.
    pub(super) fn turn(&self, stop: &Stop) -> Run<(Lease<'_>, MutexGuard<'_, Session>)> {
        let turn = self.turns.take(stop).map_err(Halt::Stopped)?;
        stop.check()?;
        Ok((turn, self.session()))
    }

    pub(super) fn session(&self) -> MutexGuard<'_, Session> {
        // A panic leaves ONNX Runtime as it was.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The input of this name, which must take `shape` in one of `elements`.
    pub(super) fn input(&self, name: &str, elements: &[TensorElementType], shape: &[i64]) -> Result<&Port> {
        self.port("input", &self.inputs, name, elements, shape)
    }

    /// The output of this name, which must have `shape` in one of `elements`.
    pub(super) fn output(&self, name: &str, elements: &[TensorElementType], shape: &[i64]) -> Result<&Port> {
        self.port("output", &self.outputs, name, elements, shape)
    }

    /// The output of this name, whose last dimension must be `width`; exporters differ in the ones
    /// before.
    pub(super) fn output_rows(&self, name: &str, elements: &[TensorElementType], width: i64) -> Result<&Port> {
        let rank = self.outputs.iter().find(|port| port.name == name).map_or(1, |port| port.shape.len().max(1));
        let mut shape = vec![ANY; rank];
        shape[rank - 1] = width;
        self.output(name, elements, &shape)
    }

    /// The input of this name, if there is one, which must take one of `shapes` in one of
    /// `elements`.
    pub(super) fn optional_input(
        &self,
        name: &str,
        elements: &[TensorElementType],
        shapes: &[&[i64]],
    ) -> Result<Option<&Port>> {
        let Some(port) = self.inputs.iter().find(|port| port.name == name) else { return Ok(None) };
        let shape = shapes.iter().find(|shape| shape.len() == port.shape.len()).or(shapes.first());
        self.input(name, elements, shape.copied().unwrap_or_default()).map(Some)
    }

    /// Refuses a graph with an input that nobody would fill.
    pub(super) fn expect_only(&self, known: &[&str]) -> Result<()> {
        match self.inputs.iter().find(|port| !known.contains(&port.name.as_str())) {
            // A cache of more layers is config.json's contradiction.
            Some(port) if port.name.starts_with("past_key_values.") => {
                Err(self.invalid(format!("input {} is none of {}", port.name, known.join(", "))))
            }
            Some(port) => Err(Error::unsupported(format!(
                "input {} is not known here, and nothing would fill it; known are {}",
                port.name,
                known.join(", ")
            ))
            .at(&self.path)),
            None => Ok(()),
        }
    }

    /// Says that an error is about one of this graph's outputs.
    pub(super) fn at(&self, output: &str, error: Error) -> Error {
        error.at(format_args!("{}: output {output}", self.path))
    }

    fn invalid(&self, message: impl Into<String>) -> Error {
        Error::invalid_model(message).at(&self.path)
    }

    fn port<'a>(
        &self,
        kind: &str,
        ports: &'a [Port],
        name: &str,
        elements: &[TensorElementType],
        shape: &[i64],
    ) -> Result<&'a Port> {
        let Some(port) = ports.iter().find(|port| port.name == name) else {
            let names: Vec<_> = ports.iter().map(|port| port.name.as_str()).collect();
            return Err(self.invalid(format!("has no {kind} {name}; its {kind}s are {}", names.join(", "))));
        };
        if !elements.contains(&port.element) {
            let wanted: Vec<_> = elements.iter().map(ToString::to_string).collect();
            let message = format!("{kind} {name} is {}, expected {}", port.element, wanted.join(" or "));
            return Err(self.invalid(message));
        }
        let fits = |(found, wanted): (&i64, &i64)| found == wanted || *found < 0 || *wanted < 0;
        if port.shape.len() != shape.len() || !port.shape.iter().zip(shape).all(fits) {
            let message = format!("{kind} {name} has shape {}, expected {}", dims(&port.shape), dims(shape));
            return Err(self.invalid(message));
        }
        Ok(port)
    }
}

/// A shape for people: `[1, ?, 576]`.
fn dims(shape: &[i64]) -> String {
    let dims: Vec<_> = shape.iter().map(|&d| if d < 0 { "?".into() } else { d.to_string() }).collect();
    format!("[{}]", dims.join(", "))
}
