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
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::connections::{Connection, Connections};
use super::write_timeout::{self, WriteTimeout};
use crate::metrics::Metrics;

/// Open connections by default; at some tens of kilobytes each, well within a small machine.
pub const CONNECTIONS: usize = 4_096;

/// Open connections of the operator's listener. They come out of the file descriptors that `serve` keeps for other things.
pub(crate) const OPS_CONNECTIONS: usize = 64;

/// How long a client may take not one byte of an answer by default.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What one listener allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Open connections; for one more, the one that has gone longest without completing a request is closed.
    pub(crate) connections: usize,
    /// How long a request's head may take, and how long a connection may idle between requests.
    pub(crate) head: Duration,
    /// How long a request may take from its head to its answer, whatever it does.
    pub(crate) request: Duration,
    /// How long a client may take not one byte of an answer.
    pub(crate) write: Duration,
    /// How long a shutdown waits for answers before it drops connections.
    pub(crate) drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            head: Duration::from_secs(30),
            request: Duration::from_secs(30),
            write: WRITE_TIMEOUT,
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
    let connections = Connections::new(limits.connections);
    let graceful = GracefulShutdown::new();
    let hard = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &connections, &metrics) => accepted,
        };
        let Some((stream, connection)) = accepted else { continue };
        let evicted = connection.evicted();
        let served = graceful.watch(answer(stream, connection, router.clone(), limits));
        let (metrics, hard) = (metrics.clone(), hard.clone());
        tokio::spawn(async move {
            metrics.connections().inc();
            tokio::select! {
                biased;
                () = hard.cancelled() => {}
                () = evicted => {}
                ended = served => if ended.is_err_and(|error| write_timeout::has_stalled(&error)) {
                    metrics.closed_connection("write_timeout");
                }
            }
            metrics.connections().dec();
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

/// The next connection, with a place among the others; `None` where there was none.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Connections>,
    metrics: &Metrics,
) -> Option<(TcpStream, Connection)> {
    match listener.accept().await {
        Ok((stream, _)) => {
            // Answers are small and awaited: sent at once, not when the packet is full.
            let _ = stream.set_nodelay(true);
            let (connection, has_evicted) = connections.admit().await.ok()?;
            if has_evicted {
                metrics.closed_connection("limit");
            }
            Some((stream, connection))
        }
        Err(error) => {
            // Out of file descriptors, or a connection that died in the queue. Neither may end the service.
            tracing::warn!(error = %error, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

/// Answers the requests of one connection.
fn answer(
    stream: TcpStream,
    connection: Connection,
    router: Router,
    limits: Limits,
) -> impl GracefulConnection<Error = hyper::Error> + Send {
    let connection = Arc::new(connection);
    let service = tower::service_fn(move |request| {
        let (router, connection) = (router.clone(), connection.clone());
        async move {
            let answer = AssertUnwindSafe(router.oneshot(request)).catch_unwind();
            let answer = tokio::time::timeout(limits.request, answer).await;
            connection.completed();
            match answer {
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
        .serve_connection(TokioIo::new(WriteTimeout::new(stream, limits.write)), TowerToHyperService::new(service))
}

/// The answer where no handler is left to give one.
fn ours(message: &'static str) -> Response {
    let body = axum::Json(serde_json::json!({ "code": "internal", "message": message }));
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5"), (header::CACHE_CONTROL, "no-store")], body)
        .into_response()
}
