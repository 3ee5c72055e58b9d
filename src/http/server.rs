//! The accept loop: connections bounded in number and in every wait, and a shutdown that answers what it has begun.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::metrics::Metrics;

/// Open connections by default; at some tens of kilobytes each, well within a small machine.
pub const CONNECTIONS: usize = 4_096;

/// What one listener allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Open connections; the next one waits in the kernel's queue.
    pub(crate) connections: usize,
    /// How long a request's head may take, and how long a connection may idle between requests.
    pub(crate) head: Duration,
    /// How long a request may take from its head to its answer, whatever it does.
    pub(crate) request: Duration,
    /// How long a shutdown waits for answers before it drops connections.
    pub(crate) drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            head: Duration::from_secs(30),
            request: Duration::from_secs(30),
            drain: Duration::from_secs(20),
        }
    }
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// Every request that had begun was answered.
    Drained,
    /// Some were cut off at the deadline.
    CutOff,
}

/// Serves until `shutdown`, then stops accepting, answers what has begun, and returns by the drain deadline at the latest.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> Served {
    let room = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let hard = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &room) => accepted,
        };
        let (stream, permit) = accepted;
        let served = graceful.watch(connection(stream, router.clone(), limits));
        let (metrics, hard) = (metrics.clone(), hard.clone());
        tokio::spawn(async move {
            metrics.connections().inc();
            tokio::select! {
                _ = served => {}
                () = hard.cancelled() => {}
            }
            metrics.connections().dec();
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_ok() {
        Served::Drained
    } else {
        hard.cancel();
        Served::CutOff
    }
}

/// The next connection, once there is room for it.
async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    loop {
        // The semaphore is never closed, so waiting for room always ends in a permit.
        let Ok(permit) = room.clone().acquire_owned().await else { continue };
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small and awaited: sent at once, not when the packet is full.
                let _ = stream.set_nodelay(true);
                return (stream, permit);
            }
            Err(error) => {
                // Out of file descriptors, or a connection that died in the queue. Neither may end the service.
                tracing::warn!(error = %error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn connection(stream: TcpStream, router: Router, limits: Limits) -> impl GracefulConnection + Send {
    let service = tower::service_fn(move |request| {
        let router = router.clone();
        async move {
            let answer = AssertUnwindSafe(router.oneshot(request)).catch_unwind();
            match tokio::time::timeout(limits.request, answer).await {
                Ok(Ok(Ok(response))) => Ok::<_, Infallible>(response),
                Ok(Ok(Err(never))) => match never {},
                Ok(Err(_panic)) => {
                    tracing::error!("a handler panicked; this is a defect of authkit-sync");
                    Ok(ours("an internal error; try again"))
                }
                Err(_) => Ok(ours("the answer took too long; try again")),
            }
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
}

/// The answer where no handler is left to give one.
fn ours(message: &'static str) -> Response {
    let body = axum::Json(serde_json::json!({ "code": "internal", "message": message }));
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5"), (header::CACHE_CONTROL, "no-store")], body)
        .into_response()
}
