//! How a build looks: one file a way to show its events. All of it goes to stderr.

mod json;
mod pause;
mod plain;
mod tty;

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use kiln_engine::{BuildError, Event, Events, Lines};
use kiln_store::Store;

pub(crate) use json::Json;
pub(crate) use kiln_engine::one_line;
pub(crate) use pause::Pausable;
pub(crate) use plain::Plain;
pub(crate) use tty::Tty;

/// Shows nothing.
#[derive(Debug)]
pub(crate) struct Quiet;

impl Events for Quiet {
    fn event(&self, _event: Event) {}
}

/// Writes a line to stderr. If that is closed, nobody is left to tell.
pub(crate) fn tell(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes the whole log of the step that failed, for a way to show the build that did not show it.
pub(crate) fn failed_log(store: &Store, error: &BuildError) {
    let BuildError::StepFailed { step, id, .. } = error else { return };
    let mut stderr = io::stderr().lock();
    let written = match store.failure(id) {
        Ok(Some((_, mut log))) => {
            let head = writeln!(stderr, "{}", one_line(&step.text));
            head.and_then(|()| match console::user_attended_stderr() {
                true => copy_harmless(&mut log, &mut stderr),
                false => io::copy(&mut log, &mut stderr).and_then(|length| {
                    // A log that was cut ends within a line.
                    let mut last = *b"\n";
                    if let Some(at) = length.checked_sub(1) {
                        log.read_at(&mut last, at)?;
                    }
                    if last == *b"\n" { Ok(()) } else { stderr.write_all(b"\n") }
                }),
            })
        }
        Ok(None) => Ok(()),
        Err(error) => writeln!(stderr, "the log cannot be shown: {error}"),
    };
    // Nobody is left to tell.
    drop(written);
}

/// Copies a log to a terminal.
fn copy_harmless(log: &mut impl Read, out: &mut impl Write) -> io::Result<()> {
    let mut lines = Lines::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = log.read(&mut buffer)?;
        let mut written = Ok(());
        lines.add(&buffer[..length], |line| {
            if written.is_ok() {
                written = writeln!(out, "{}", harmless(line));
            }
        });
        written?;
        if length == 0 {
            return lines.finish().map_or(Ok(()), |line| writeln!(out, "{}", harmless(&line)));
        }
    }
}

/// Returns a line of a step's output without what could disturb a terminal: escape sequences and
/// control characters. Of a line that overwrites itself, what is seen last.
pub(crate) fn harmless(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = console::strip_ansi_codes(&text);
    let last = text.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
    last.chars().map(|c| if c == '\t' { ' ' } else { c }).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_cannot_disturb_the_terminal() {
        assert_eq!(harmless(b"\x1b[2J\x1b]0;title\x07red\x1b[31m\x08!"), "red!");
        assert_eq!(harmless(b"10%\r50%\r100%\r"), "100%");
        assert_eq!(one_line("a\n   b\x1b[2J"), "a b\u{fffd}[2J");
        let mut shown = Vec::new();
        copy_harmless(&mut &b"one\x1b[2J\ntwo"[..], &mut shown).unwrap();
        assert_eq!(shown, b"one\ntwo\n");
    }
}
