//! A web server around the library: a page to try it, a form to post to, and OpenAI's protocol.
//!
//! A request passes [`server`] -> [`app`] -> [`analyze`], [`chat`] or [`responses`] -> [`queue`] ->
//! [`worker`], and its answer goes back.

mod analyze;
mod app;
mod body;
mod chat;
mod data_url;
mod error;
mod image_files;
mod images;
mod json;
mod messages;
mod metrics;
mod options;
mod page;
mod queue;
mod refused;
mod responses;
mod server;
mod settings;
mod stream;
mod worker;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use smolvlm::Engine;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::app::App;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::queue::Queue;

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("web_api: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::load(&options.model, &options.engine())?;
    let model_id = options.model_id();
    let metrics = Arc::new(Metrics::new(&model_id)?);
    let queue = Queue::start(engine, options.workers, options.queue, metrics.clone())?;
    let address = (options.host.clone(), options.port);
    let shared = Arc::new(App { options, model_id, queue, metrics, started: chat::unix_time() });

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(&address).await.map_err(|e| format!("{}:{}: {e}", address.0, address.1))?;
        let shutdown = stop_at_signal()?;
        println!("{} on http://{}", shared.model_id, listener.local_addr()?);
        server::serve(listener, shared, shutdown).await;
        Ok(())
    })
}

/// True from the first SIGINT or SIGTERM on; the second one ends the process at once.
fn stop_at_signal() -> std::io::Result<watch::Receiver<bool>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            if stop.send_replace(true) {
                std::process::exit(1);
            }
        }
    });
    Ok(stopped)
}
