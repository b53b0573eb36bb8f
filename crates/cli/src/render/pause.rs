//! Holds back what happens while a command has the terminal.

use std::sync::{Arc, Mutex, PoisonError};

use kiln_engine::{Event, Events};

/// Events that can wait, and what shows them then.
pub(crate) struct Pausable {
    events: Arc<dyn Events>,
    /// Takes what is drawn off the screen (`true`), or lets it be drawn again.
    hide: Box<dyn Fn(bool) + Send + Sync>,
    held: Mutex<Option<Held>>,
}

#[derive(Default)]
struct Held {
    events: Vec<Event>,
    output_bytes: usize,
}

/// More output than this is not held; it is in the logs of its steps.
const MOST_OUTPUT: usize = 1 << 20;

impl Pausable {
    pub(crate) fn new(events: Arc<dyn Events>, hide: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Self { events, hide: Box::new(hide), held: Mutex::default() }
    }

    /// Shows nothing until what this returns is dropped.
    pub(crate) fn pause(&self) -> Paused<'_> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get_or_insert_default();
        (self.hide)(true);
        Paused(self)
    }
}

impl Events for Pausable {
    fn event(&self, event: Event) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = &mut *held else {
            // Under the lock, which costs nothing more: whoever shows events takes one too.
            return self.events.event(event);
        };
        if let Event::Output(_, bytes) = &event {
            held.output_bytes = held.output_bytes.saturating_add(bytes.len());
            if held.output_bytes > MOST_OUTPUT {
                return;
            }
        }
        held.events.push(event);
    }
}

/// Nothing is shown while this lives.
pub(crate) struct Paused<'a>(&'a Pausable);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        (self.0.hide)(false);
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that what happens now comes after what happened before.
        for event in held.take().unwrap_or_default().events {
            self.0.events.event(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_engine::StepInfo;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Events for Heard {
        fn event(&self, event: Event) {
            let text = match event {
                Event::Started(step) => step.text.clone(),
                Event::Output(_, bytes) => bytes.len().to_string(),
                _ => return,
            };
            self.0.lock().unwrap().push(text);
        }
    }

    #[test]
    fn what_happens_meanwhile_is_told_afterwards_and_in_order() {
        let heard = Arc::new(Heard::default());
        let events = Pausable::new(Arc::clone(&heard) as _, |_| {});
        let step = |text: &str| Arc::new(StepInfo { number: 1, stage: None, text: text.to_owned() });
        events.event(Event::Started(step("before")));
        let paused = events.pause();
        events.event(Event::Started(step("meanwhile")));
        for length in [MOST_OUTPUT - 1, 1, 1, usize::MAX >> 44] {
            events.event(Event::Output(step(""), vec![0; length]));
        }
        assert_eq!(*heard.0.lock().unwrap(), ["before"]);
        drop(paused);
        events.event(Event::Started(step("after")));
        assert_eq!(*heard.0.lock().unwrap(), ["before", "meanwhile", "1048575", "1", "after"]);
    }
}
