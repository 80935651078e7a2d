//! Connections: a bounded number, with clocks against slow clients, and a way to end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use crate::app::{Shared, router};

/// Headers longer than this are refused.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// What was cancelled gets this long to say so.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves until `shutdown` is true, and then for the grace period.
pub async fn serve(listener: TcpListener, shared: Shared, mut shutdown: watch::Receiver<bool>) {
    let app = router(shared.clone());
    let places = Arc::new(Semaphore::new(shared.options.max_connections));
    let mut connections = JoinSet::new();
    loop {
        // Strangers beyond the limit wait in the kernel's queue.
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place.expect("never closed"),
            _ = shutdown.wait_for(|stop| *stop) => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|stop| *stop) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Such as too many open files: some must be closed first.
                eprintln!("web_api: accept: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // The ended ones are let go.
        while connections.try_join_next().is_some() {}
        let (shared, app, shutdown) = (shared.clone(), app.clone(), shutdown.clone());
        connections.spawn(async move {
            shared.metrics.connections.inc();
            connection(stream, app, &shared, shutdown).await;
            shared.metrics.connections.dec();
            drop(place);
        });
    }
    drop(listener);
    shared.queue.close();
    let all = async { while connections.join_next().await.is_some() {} };
    let mut all = std::pin::pin!(all);
    if timeout(shared.options.grace_s, all.as_mut()).await.is_err() {
        shared.queue.cancel_all();
        let _ = timeout(LAST_WORDS, all).await;
    }
}

/// A connection's errors are its client's business.
async fn connection(stream: TcpStream, app: Router, shared: &Shared, mut shutdown: watch::Receiver<bool>) {
    // Tokens go out as they come.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(shared.options.client_timeout_s));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.options.client_timeout_s)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(app));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = shutdown.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}
