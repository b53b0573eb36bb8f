//! `kiln ls`: what is in the store.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{print, size};
use crate::args;
use crate::exit::Failure;
use crate::settings::open_store;

pub(super) fn run(arguments: &args::Ls) -> Result<(), Failure> {
    let store = open_store(&arguments.store)?;
    let results = store.list()?;
    let now = SystemTime::now();
    let mut text = String::new();
    if !arguments.json {
        text.push_str("ID            SIZE        USED       STEP\n");
    }
    for result in &results {
        if arguments.json {
            let last_used_ms = result.last_used.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            let line = serde_json::json!({
                "id": result.id.to_string(),
                "parent": result.parent.map(|parent| parent.to_string()),
                "created_ms": result.created_ms,
                "last_used_ms": u64::try_from(last_used_ms).unwrap_or(u64::MAX),
                "size_bytes": result.size_bytes,
                "pinned": result.is_pinned,
                "step": result.summary,
            });
            text.push_str(&line.to_string());
            text.push('\n');
            continue;
        }
        let used = ago(now.duration_since(result.last_used).unwrap_or_default());
        let step = crate::render::one_line(&result.summary);
        let pin = if result.is_pinned { '*' } else { ' ' };
        writeln!(text, "{}{pin} {:<10}  {used:<9}  {step}", result.id.short(), size(result.size_bytes))
            .expect("a string takes everything");
    }
    print(text)
}

/// How long ago, by its largest unit.
fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..86_400 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("{count} {unit} ago")
}
