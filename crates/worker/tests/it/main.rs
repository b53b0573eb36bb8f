//! The worker's hands, with real programs.
#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

mod command;
mod context;
mod custom;
mod docker;

use kiln_api::JobLog;
use kiln_worker::command::Environment;

/// A usual `PATH` and nothing else.
fn environment() -> Environment {
    vec![("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into())]
}

/// Returns what is in a log so far.
async fn text(log: &JobLog) -> String {
    let (mut text, mut start) = (Vec::new(), 0);
    while start < log.length() {
        let (bytes, next) = log.read(i64::try_from(start).unwrap()).await.unwrap();
        text.extend(bytes);
        start = next;
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Returns an error with its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
