//! The signals that end a command: SIGTERM, and SIGINT of Ctrl-C.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Receives the signals. After its creation, the signals do not end the process by themselves.
pub(super) struct Termination([std::io::Result<Signal>; 2]);

impl Termination {
    pub(super) fn listen() -> Self {
        Self([SignalKind::terminate(), SignalKind::interrupt()].map(signal))
    }

    /// Waits for the next of the signals, and returns its name.
    pub(super) async fn received(&mut self) -> &'static str {
        let received = async |signals: &mut std::io::Result<Signal>| match signals {
            Ok(signals) => {
                signals.recv().await;
            }
            Err(_) => std::future::pending().await,
        };
        let [terminate, interrupt] = &mut self.0;
        tokio::select! {
            () = received(terminate) => "SIGTERM",
            () = received(interrupt) => "SIGINT",
        }
    }
}

/// Waits for one of the signals. After the call, even before the future is awaited, the signals do not end the process.
pub(super) fn terminated() -> impl Future<Output = ()> + Send {
    let mut termination = Termination::listen();
    async move {
        termination.received().await;
    }
}
