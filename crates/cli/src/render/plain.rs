//! The whole log of every step, as OBuilder prints it: for files and for other programs.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use kiln_engine::{Event, Events, StepInfo};

use super::Lines;

/// With one stage, output passes as it comes. With several, which run side by side, each line begins with
/// its stage.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    has_stages: bool,
    /// With one stage: the output so far does not end in a newline.
    is_in_line: bool,
    lines: HashMap<usize, Lines>,
    bytes_told: HashMap<usize, u64>,
}

impl Events for Plain {
    fn event(&self, event: Event) {
        if let Event::Notice(text) = event {
            return self.notice(&super::one_line(&text));
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody is left to tell if stderr is closed.
        let _ = state.show(event, &mut io::stderr().lock());
    }
}

impl Plain {
    /// Shows what is of no step.
    pub(crate) fn notice(&self, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = io::stderr().lock();
        if std::mem::take(&mut state.is_in_line) {
            let _ = out.write_all(b"\n");
        }
        let _ = writeln!(out, "note: {text}");
    }
}

impl State {
    fn show(&mut self, event: Event, out: &mut impl Write) -> io::Result<()> {
        match event {
            Event::Planned { stages, .. } => {
                self.has_stages = stages > 1;
                Ok(())
            }
            Event::Noted(step) | Event::Started(step) => self.line(&step, &step.text, out),
            Event::Following(step, Some(pid)) => self.line(&step, &format!("---> being made by process {pid}"), out),
            Event::Following(_, None) => Ok(()),
            Event::Output(step, bytes) if self.has_stages => {
                let mut lines = self.lines.remove(&step.number).unwrap_or_default();
                let mut written = Ok(());
                lines.add(&bytes, |line| {
                    if written.is_ok() {
                        written = out.write_all(&prefixed(&step, line));
                    }
                });
                self.lines.insert(step.number, lines);
                written
            }
            Event::Output(_, bytes) => {
                self.is_in_line = !bytes.ends_with(b"\n");
                out.write_all(&bytes)
            }
            Event::Progress(step, done, total) => {
                // A line for each tenth: this is read later, or by a program.
                let tenth = done.saturating_mul(10) / total.max(1);
                if self.bytes_told.insert(step.number, tenth) == Some(tenth) {
                    return Ok(());
                }
                let size = bytesize::ByteSize;
                self.line(&step, &format!("{} of {}", size(done), size(total)), out)
            }
            Event::Cached(step, id) => self.end(&step, &format!("---> using \"{id}\" from cache"), out),
            Event::Saved(step, id, _) => self.end(&step, &format!("---> saved as \"{id}\""), out),
            Event::Failed(step, ..) => self.end(&step, "---> failed", out),
            Event::Exported(step, what, _) => self.end(&step, &format!("---> {what}"), out),
            _ => Ok(()),
        }
    }

    fn line(&mut self, step: &StepInfo, text: &str, out: &mut impl Write) -> io::Result<()> {
        if !self.has_stages {
            // Programs read these lines.
            if std::mem::take(&mut self.is_in_line) {
                out.write_all(b"\n")?;
            }
            return writeln!(out, "{text}");
        }
        text.lines().try_for_each(|line| out.write_all(&prefixed(step, line.as_bytes())))
    }

    fn end(&mut self, step: &StepInfo, text: &str, out: &mut impl Write) -> io::Result<()> {
        if let Some(rest) = self.lines.remove(&step.number).and_then(|mut lines| lines.finish()) {
            out.write_all(&prefixed(step, &rest))?;
        }
        self.line(step, text, out)
    }
}

fn prefixed(step: &StepInfo, line: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    if let Some(stage) = &step.stage {
        text.extend_from_slice(format!("[{}] ", super::one_line(stage)).as_bytes());
    }
    text.extend_from_slice(line);
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    fn shown(stages: usize, events: impl IntoIterator<Item = Event>) -> String {
        let mut state = State::default();
        let mut out = Vec::new();
        for event in std::iter::once(Event::Planned { steps: 1, stages }).chain(events) {
            state.show(event, &mut out).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    fn step(number: usize, stage: Option<&str>, text: &str) -> Arc<StepInfo> {
        Arc::new(StepInfo { number, stage: stage.map(str::to_owned), text: text.to_owned() })
    }

    #[test]
    fn one_stage_looks_as_in_obuilder() {
        let run = step(1, None, "/: (run (shell x))");
        let id = kiln_store::Id::new([0xab; 32]);
        let events = [
            Event::Started(Arc::clone(&run)),
            Event::Output(Arc::clone(&run), b"50%\r100%".to_vec()),
            Event::Output(Arc::clone(&run), b"\n".to_vec()),
            Event::Saved(Arc::clone(&run), id, Duration::ZERO),
            Event::Output(Arc::clone(&run), b"no end".to_vec()),
            Event::Saved(run, id, Duration::ZERO),
        ];
        let saved = format!("---> saved as \"{id}\"\n");
        assert_eq!(shown(1, events), format!("/: (run (shell x))\n50%\r100%\n{saved}no end\n{saved}"));
    }

    #[test]
    fn stages_side_by_side_do_not_mix_within_a_line() {
        let (one, two) = (step(1, Some("one"), "a"), step(5, None, "b"));
        let id = kiln_store::Id::new([0xab; 32]);
        let events = [
            Event::Output(Arc::clone(&one), b"fir".to_vec()),
            Event::Output(Arc::clone(&two), b"second\n".to_vec()),
            Event::Output(Arc::clone(&one), b"st".to_vec()),
            Event::Cached(one, id),
        ];
        assert_eq!(shown(2, events), format!("second\n[one] first\n[one] ---> using \"{id}\" from cache\n"));
    }
}
