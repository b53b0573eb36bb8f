//! Whether a worker is still there, whose host says that it is.
//!
//! A process that is stopped, or waits for a disk for ever, has a kernel that goes on acknowledging what is sent to it. So a worker that has said
//! nothing for a while is asked something. Whatever then comes from it shows that it is alive, be it the answer or more of a long log.

use std::pin::pin;
use std::time::Duration;

use kiln_api::{Link, Worker};
use tokio::time::sleep;

/// In how many parts its time is counted. When it is this process that was stopped, there is one part left in which to read what has come.
const PARTS: u32 = 2;

/// Returns when a worker has said nothing for a while, was asked something, and then has said nothing for `silence`. Zero is for ever.
pub(super) async fn falls_silent(worker: &Worker, link: &Link, silence: Duration) {
    if silence.is_zero() {
        return std::future::pending().await;
    }
    // Not so short that nothing else is done.
    let part = (silence / PARTS).max(Duration::from_millis(1));
    loop {
        let heard = link.heard();
        sleep(part).await;
        if link.heard() != heard {
            continue;
        }
        // Every worker answers this, and does nothing else: it has no metrics of this name, or does not know the question (OCluster's before
        // additional metrics).
        let mut answer = pin!(worker.additional_metric(b""));
        let mut parts = 0;
        while parts < PARTS {
            let heard = link.heard();
            tokio::select! {
                biased;
                // An error is an answer too; that the connection is lost, others notice.
                _ = &mut answer => break,
                () = sleep(part) => {}
            }
            parts = if link.heard() == heard { parts + 1 } else { 0 };
        }
        if parts == PARTS {
            return;
        }
    }
}
