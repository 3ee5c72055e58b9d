//! The accept loop: limits the number of connections and every wait, and answers open requests at shutdown.

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

/// Default limit of open connections. Each one needs some tens of kilobytes of memory.
pub const CONNECTIONS: usize = 4_096;

/// Limit of open connections of the operator's listener. They use the file descriptors that `serve` reserves for other purposes.
pub(crate) const OPS_CONNECTIONS: usize = 64;

/// Timeout for open requests of the operator's listener at shutdown. It closes last, after the public listener had its own time.
pub(crate) const OPS_DRAIN: Duration = Duration::from_secs(2);

/// Default timeout for a client that accepts no byte of an answer.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The limits of one listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Number of open connections. At the limit, the one that has gone longest without completing a request is closed.
    pub(crate) connections: usize,
    /// Timeout for a request's head, and for an idle connection.
    pub(crate) head: Duration,
    /// Timeout from a request's head to its answer.
    pub(crate) request: Duration,
    /// Timeout for a client that accepts no byte of an answer.
    pub(crate) write: Duration,
    /// Timeout for open requests at shutdown.
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
    /// Every open request was answered.
    Drained,
    /// Some requests were dropped at the deadline.
    CutOff,
}

/// Serves until `shutdown`. Then stops accepting, answers the open requests, and returns at the drain deadline at the latest.
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

/// Accepts the next connection. Returns `None` if that failed.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Connections>,
    metrics: &Metrics,
) -> Option<(TcpStream, Connection)> {
    match listener.accept().await {
        Ok((stream, _)) => {
            // Answers are small, so they are sent immediately and not when the packet is full.
            let _ = stream.set_nodelay(true);
            let (connection, has_evicted) = connections.admit().await.ok()?;
            if has_evicted {
                metrics.closed_connection("limit");
            }
            Some((stream, connection))
        }
        Err(error) => {
            // Out of file descriptors, or the connection closed while it waited. Neither must end the service.
            tracing::warn!(error = %error, "a connection could not be accepted; the listener continues");
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
                    tracing::error!("a request handler panicked; this is a defect of authkit-sync, please report it");
                    Ok(ours("internal error; retry"))
                }
                Err(_) => Ok(ours("the answer took too long; retry")),
            }
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(WriteTimeout::new(stream, limits.write)), TowerToHyperService::new(service))
}

/// Returns the answer for a request whose handler panicked or timed out.
fn ours(message: &'static str) -> Response {
    let body = axum::Json(serde_json::json!({ "code": "internal", "message": message }));
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5"), (header::CACHE_CONTROL, "no-store")], body)
        .into_response()
}
