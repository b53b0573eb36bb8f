//! The whole log of every step, as OBuilder prints it: for files and for other programs.

use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};

use kiln_engine::{Event, Events, LogText};

/// Writes what happens to stderr. Nobody is left to tell if that is closed.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    text: Mutex<LogText>,
    is_on_stdout: bool,
}

impl Events for Plain {
    fn event(&self, event: Event) {
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = match self.is_on_stdout && !matches!(event, Event::Notice(_)) {
            true => {
                let mut out = io::stdout().lock();
                text.show(event, &mut out).and_then(|()| out.flush())
            }
            false => text.show(event, &mut io::stderr().lock()),
        };
    }
}

impl Plain {
    /// Writes to stdout, as OBuilder does.
    pub(crate) fn on_stdout() -> Self {
        Self { is_on_stdout: true, ..Self::default() }
    }

    /// Shows what is of no step.
    pub(crate) fn notice(&self, notice: &str) {
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = text.notice(notice, &mut io::stderr().lock());
    }
}
