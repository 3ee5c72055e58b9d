//! The empty axum handler, in a separate process.

use axum::Router;
use axum::routing::{get, post};
use bytes::Bytes;
use tokio::net::TcpListener;

/// Serves until it is killed. Prints its address.
#[tokio::main]
pub(crate) async fn main() {
    let routes = Router::new().route("/post", post(|_: Bytes| async { "ok" })).route("/get", get(|| async { "ok" }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    axum::serve(listener, routes).await.unwrap();
}
