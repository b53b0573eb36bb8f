//! A build as text: the whole log of every step, as OBuilder prints it, for files and for other programs.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::SystemTime;

use crate::events::{Event, StepInfo};

/// Turns events into text.
///
/// With one stage, output passes as it comes. With several, which run side by side, each line begins with its stage.
#[derive(Debug, Default)]
pub struct LogText {
    /// As OBuilder writes the logs of a cluster's jobs.
    is_coloured: bool,
    has_stages: bool,
    /// With one stage: the output so far does not end in a newline.
    is_in_line: bool,
    lines: HashMap<usize, Lines>,
    bytes_told: HashMap<usize, u64>,
}

impl LogText {
    /// Makes text with colours and with the time of each result, as OBuilder writes the logs of a cluster's jobs.
    pub fn coloured() -> Self {
        Self { is_coloured: true, ..Self::default() }
    }

    /// Writes a remark of no step, as one line.
    ///
    /// # Errors
    ///
    /// If `out` cannot be written.
    pub fn notice(&mut self, text: &str, out: &mut impl Write) -> io::Result<()> {
        if std::mem::take(&mut self.is_in_line) {
            out.write_all(b"\n")?;
        }
        writeln!(out, "note: {}", one_line(text))
    }

    /// Writes what there is to say of an event.
    ///
    /// # Errors
    ///
    /// If `out` cannot be written.
    pub fn show(&mut self, event: Event, out: &mut impl Write) -> io::Result<()> {
        match event {
            Event::Planned { stages, .. } => {
                self.has_stages = stages > 1;
                Ok(())
            }
            Event::Notice(text) => self.notice(&text, out),
            Event::Noted(step) | Event::Started(step) if self.is_coloured => {
                if !self.has_stages {
                    self.line(&step, "", out)?;
                }
                self.line(&step, &format!("\x1b[01;34m{}\x1b[0m", step.text), out)
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
        if self.is_coloured {
            let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
            // OBuilder's way to write it: `2024-01-31 12:34.56`.
            let (date, time) = time.split_at(10);
            let time = time.trim_matches(['T', 'Z']).replacen(':', "\0", 1).replace(':', ".").replace('\0', ":");
            return self.line(step, &format!("\x1b[01;2m\x1b[01;35m{date} {time} {text}\x1b[0m"), out);
        }
        self.line(step, text, out)
    }
}

fn prefixed(step: &StepInfo, line: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    if let Some(stage) = &step.stage {
        text.extend_from_slice(format!("[{}] ", one_line(stage)).as_bytes());
    }
    text.extend_from_slice(line);
    text.push(b'\n');
    text
}

/// Returns the text of a step as one line that cannot disturb a terminal.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }));
    }
    line
}

/// Splits a stream of pieces into lines.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// A line longer than this is cut, so that a step cannot fill our memory.
    const LONGEST: usize = 64 << 10;

    /// Adds a piece; calls `line` for each line that it completes, without its end.
    pub fn add(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.rest.len() > Self::LONGEST {
                line(self.rest.strip_suffix(b"\n").unwrap_or(&self.rest));
                self.rest.clear();
            }
        }
    }

    /// Returns the last line, if it has no end.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        (!self.rest.is_empty()).then(|| std::mem::take(&mut self.rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    fn shown(stages: usize, events: impl IntoIterator<Item = Event>) -> String {
        let mut state = LogText::default();
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
    fn a_jobs_log_has_the_colours_that_obuilder_gives_it() {
        let mut text = LogText::coloured();
        let mut out = Vec::new();
        let (run, id) = (step(1, None, "/: (run (shell x))"), kiln_store::Id::new([0xab; 32]));
        for event in [Event::Started(Arc::clone(&run)), Event::Cached(run, id)] {
            text.show(event, &mut out).unwrap();
        }
        let out = String::from_utf8(out).unwrap();
        let (heading, rest) = out.split_once("\x1b[0m\n").unwrap();
        assert_eq!(heading, "\n\x1b[01;34m/: (run (shell x))");
        let (time, note) = rest.strip_prefix("\x1b[01;2m\x1b[01;35m").unwrap().split_once(" --").unwrap();
        assert_eq!(time.replace(|c: char| c.is_ascii_digit(), "9"), "9999-99-99 99:99.99");
        assert_eq!(note, format!("-> using \"{id}\" from cache\x1b[0m\n"));
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

    #[test]
    fn pieces_become_lines() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for piece in [&b"a"[..], b"b\nc\n", b"\nd"] {
            lines.add(piece, |line| seen.push(line.to_vec()));
        }
        assert_eq!(seen, [&b"ab"[..], b"c", b""]);
        assert_eq!(lines.finish().unwrap(), b"d");
        assert_eq!(lines.finish(), None);
    }
}
