//! What systemd is told of a program that serves others (sd_notify(3)), if it is one of its services.

use std::convert::Infallible;

use sd_notify::NotifyState;

/// Says that the program is ready, and then, if systemd watches over it, that it is alive: for as long as the thread that does its work
/// gets round to it.
pub(crate) async fn alive() -> Infallible {
    tell(NotifyState::Ready);
    match sd_notify::watchdog_enabled() {
        None => std::future::pending().await,
        // Twice as often as need be, as sd_watchdog_enabled(3) advises.
        Some(period) => loop {
            tell(NotifyState::Watchdog);
            tokio::time::sleep(period / 2).await;
        },
    }
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell systemd how it is");
    }
}
