//! Running steps with elapsed time and the end of their logs; finished ones as a line each.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use console::Style;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use kiln_engine::{Event, Events, Lines, StepInfo};

use super::{harmless, one_line};

/// How many lines of a running step's log are seen.
const TAIL: usize = 6;

/// Draws on the terminal at stderr until it is dropped.
#[derive(Debug)]
pub(crate) struct Tty {
    bars: MultiProgress,
    state: Mutex<State>,
    /// Keeps the logs of finished steps on the screen.
    shows_logs: bool,
}

#[derive(Debug, Default)]
struct State {
    steps: usize,
    done: usize,
    running: HashMap<usize, Running>,
}

#[derive(Debug)]
struct Running {
    bar: ProgressBar,
    label: String,
    lines: Lines,
    tail: VecDeque<String>,
    note: String,
}

impl Tty {
    pub(crate) fn new(shows_logs: bool) -> Self {
        Self { bars: MultiProgress::new(), state: Mutex::default(), shows_logs }
    }

    fn start(&self, state: &mut State, step: &StepInfo) {
        let bar = self.bars.add(ProgressBar::new_spinner());
        let style = ProgressStyle::with_template("{spinner} {elapsed:>4.dim} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(100));
        let (label, note) = (label(step), String::new());
        let running = Running { bar, label, lines: Lines::default(), tail: VecDeque::new(), note };
        running.draw();
        state.running.insert(step.number, running);
    }

    /// Takes a step off the running ones. Returns false if it was not among them.
    fn stop(&self, state: &mut State, step: &StepInfo) -> bool {
        let Some(running) = state.running.remove(&step.number) else { return false };
        running.bar.finish_and_clear();
        self.bars.remove(&running.bar);
        true
    }

    fn end(&self, state: &mut State, step: &StepInfo, mark: console::StyledObject<&str>, how: &str) {
        state.done += 1;
        if !self.stop(state, step) {
            return;
        }
        let counted = format!("[{}/{}]", state.done, state.steps);
        let room = width().saturating_sub(counted.len() + how.len() + 4);
        self.say(&format!("{mark} {counted} {} {}", clip(&label(step), room), Style::new().dim().apply_to(how)));
    }

    /// Shows what is of no step, above the running ones.
    pub(crate) fn notice(&self, text: &str) {
        self.say(&format!("{} {text}", Style::new().yellow().apply_to("note:")));
    }

    /// Takes everything off the screen (`true`), or draws it again.
    pub(crate) fn hide(&self, hides: bool) {
        if hides {
            // Nobody is left to tell if stderr is closed.
            let _ = self.bars.clear();
        }
        self.bars.set_draw_target(if hides { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
    }

    fn say(&self, line: &str) {
        // Nobody is left to tell if stderr is closed.
        let _ = self.bars.println(line);
    }
}

impl Running {
    fn draw(&self) {
        let width = width();
        let mut message = match &*self.note {
            "" => clip(&self.label, width.saturating_sub(8)),
            note => format!("{} {note}", clip(&self.label, width.saturating_sub(9 + note.len()))),
        };
        for line in &self.tail {
            message.push_str("\n       ");
            message.push_str(&clip(line, width.saturating_sub(8)));
        }
        self.bar.set_message(message);
    }
}

/// The terminal's columns.
fn width() -> usize {
    usize::from(console::Term::stderr().size().1)
}

impl Events for Tty {
    fn event(&self, event: Event) {
        if let Event::Notice(text) = event {
            return self.notice(&super::one_line(&text));
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        match event {
            Event::Planned { steps, .. } => state.steps = steps,
            Event::Started(step) => self.start(state, &step),
            Event::Following(step, pid) => {
                if let Some(running) = state.running.get_mut(&step.number) {
                    running.note = pid.map_or_else(String::new, |pid| format!("being made by process {pid}"));
                    running.draw();
                }
            }
            Event::Output(step, bytes) => {
                let Some(running) = state.running.get_mut(&step.number) else { return };
                let Running { lines, tail, .. } = running;
                lines.add(&bytes, |line| {
                    let line = harmless(line);
                    if self.shows_logs {
                        let _ = self.bars.println(&line);
                    } else {
                        tail.push_back(line);
                    }
                });
                while running.tail.len() > TAIL {
                    running.tail.pop_front();
                }
                running.draw();
            }
            Event::Progress(step, done, total) => {
                if let Some(running) = state.running.get_mut(&step.number) {
                    running.note = format!("{} of {}", bytesize::ByteSize(done), bytesize::ByteSize(total));
                    running.draw();
                }
            }
            Event::Cached(step, _) => self.end(state, &step, Style::new().cyan().apply_to("="), "cached"),
            Event::Saved(step, _, took) => {
                self.end(state, &step, Style::new().green().apply_to("✓"), &format!("{:.1}s", took.as_secs_f64()));
            }
            Event::Failed(step, _, _, took) => {
                self.end(state, &step, Style::new().red().apply_to("✗"), &format!("{:.1}s", took.as_secs_f64()));
            }
            Event::Exported(step, what, took) => {
                self.stop(state, &step);
                let took = format!("{:.1}s", took.as_secs_f64());
                let mark = Style::new().green().apply_to("✓");
                let room = width().saturating_sub(took.len() + 4);
                self.say(&format!("{mark} {} {}", clip(&what, room), Style::new().dim().apply_to(took)));
            }
            _ => {}
        }
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        // Steps that were cancelled have said nothing more.
        let _ = self.bars.clear();
    }
}

fn label(step: &StepInfo) -> String {
    match &step.stage {
        Some(stage) => format!("[{stage}] {}", step.text),
        None => step.text.clone(),
    }
}

fn clip(text: &str, width: usize) -> String {
    console::truncate_str(&one_line(text), width, "…").into_owned()
}
