//! An object a line for every event: for other programs.

use std::io::{self, Write};

use kiln_engine::{Event, Events, StepInfo};
use kiln_sandbox::ExitStatus;
use serde_json::{Value, json};

/// Output that is not UTF-8 has replacement characters.
#[derive(Debug)]
pub(crate) struct Json;

impl Events for Json {
    fn event(&self, event: Event) {
        if let Some(object) = object(&event) {
            // Nobody is left to tell if stderr is closed.
            let _ = writeln!(io::stderr().lock(), "{object}");
        }
    }
}

fn object(event: &Event) -> Option<Value> {
    let with = |step: &StepInfo, event: &str, more: Value| {
        let mut object = json!({ "event": event, "step": step.number, "stage": step.stage, "text": step.text });
        if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
            object.extend(more);
        }
        object
    };
    Some(match event {
        Event::Planned { steps, stages } => json!({ "event": "planned", "steps": steps, "stages": stages }),
        Event::Noted(step) => with(step, "noted", json!({})),
        Event::Started(step) => with(step, "started", json!({})),
        Event::Following(step, pid) => with(step, "following", json!({ "pid": pid })),
        Event::Output(step, bytes) => {
            json!({ "event": "output", "step": step.number, "data": String::from_utf8_lossy(bytes) })
        }
        Event::Progress(step, done, total) => {
            json!({ "event": "progress", "step": step.number, "done_bytes": done, "total_bytes": total })
        }
        Event::Cached(step, id) => with(step, "cached", json!({ "id": id.to_string() })),
        Event::Saved(step, id, took) => {
            with(step, "saved", json!({ "id": id.to_string(), "seconds": took.as_secs_f64() }))
        }
        Event::Failed(step, id, status, took) => {
            let (code, signal) = match status {
                ExitStatus::Code(code) => (Some(code), None),
                ExitStatus::Signal(signal) => (None, Some(signal)),
            };
            let more = json!({ "id": id.to_string(), "code": code, "signal": signal, "seconds": took.as_secs_f64() });
            with(step, "failed", more)
        }
        _ => return None,
    })
}
