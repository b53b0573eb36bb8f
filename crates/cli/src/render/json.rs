//! An object a line for every event: for other programs.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use kiln_engine::{Event, Events, StepInfo};
use kiln_sandbox::ExitStatus;
use serde_json::{Value, json};

/// Output that is not UTF-8 has replacement characters.
#[derive(Debug, Default)]
pub(crate) struct Json {
    /// Of each step's output, the beginning of a character whose rest has not come yet.
    begun: Mutex<HashMap<usize, Vec<u8>>>,
}

impl Events for Json {
    fn event(&self, event: Event) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        for event in whole(&mut begun, event) {
            if let Some(object) = object(&event) {
                // Nobody is left to tell if stderr is closed.
                let _ = writeln!(io::stderr().lock(), "{object}");
            }
        }
    }
}

/// Moves pieces of output so that none ends within a character.
fn whole(begun: &mut HashMap<usize, Vec<u8>>, event: Event) -> Vec<Event> {
    match event {
        Event::Output(step, bytes) => {
            let mut bytes = [begun.remove(&step.number).unwrap_or_default(), bytes].concat();
            if let Some(Err(error)) = bytes.utf8_chunks().last().map(|last| str::from_utf8(last.invalid()))
                && error.error_len().is_none()
            {
                let rest =
                    bytes.split_off(bytes.len() - bytes.utf8_chunks().last().map_or(0, |last| last.invalid().len()));
                begun.insert(step.number, rest);
            }
            vec![Event::Output(step, bytes)]
        }
        Event::Cached(ref step, _) | Event::Saved(ref step, ..) | Event::Failed(ref step, ..) => {
            let rest = begun.remove(&step.number).map(|rest| Event::Output(step.clone(), rest));
            rest.into_iter().chain([event]).collect()
        }
        event => vec![event],
    }
}

impl Json {
    /// Shows what is of no step.
    pub(crate) fn notice(&self, text: &str) {
        // Nobody is left to tell if stderr is closed.
        let _ = writeln!(io::stderr().lock(), "{}", json!({ "event": "notice", "text": text }));
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
        Event::Used(step, usage, limit) => {
            let mut more = serde_json::to_value(usage).expect("it has string keys only");
            more["limit"] = limit.map(|limit| limit.to_string()).into();
            with(step, "used", more)
        }
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
        Event::Exported(step, what, took) => {
            with(step, "exported", json!({ "what": what, "seconds": took.as_secs_f64() }))
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_character_in_two_pieces_stays_whole() {
        let step = Arc::new(StepInfo { number: 1, stage: None, text: String::new() });
        let mut begun = HashMap::new();
        let mut texts = Vec::new();
        let id = kiln_store::Id::new([0xab; 32]);
        let pieces = [&b"a\xe2\x9c"[..], b"\x93b", b"\xffc", b"\xe2"];
        let outputs = pieces.map(|piece| Event::Output(Arc::clone(&step), piece.to_vec()));
        for event in outputs.into_iter().chain([Event::Cached(Arc::clone(&step), id)]) {
            for event in whole(&mut begun, event) {
                if let Event::Output(_, bytes) = event {
                    texts.push(String::from_utf8_lossy(&bytes).into_owned());
                }
            }
        }
        assert_eq!(texts, ["a", "\u{2713}b", "\u{fffd}c", "", "\u{fffd}"]);
    }
}
