//! What happens to a pool, from outside: workers come and go, clients submit jobs and cancel some. And such a trace as a file.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What happens to a pool, in the order of time.
///
/// Names are kept once, and referred to by their place in the lists.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// The clients, and how many workers' worth of share each has.
    pub clients: Vec<(String, f64)>,
    /// The workers, and how many jobs each does at once.
    pub workers: Vec<(String, u32)>,
    /// The cache hints.
    pub hints: Vec<String>,
    /// What happens, and when. Ordered by time; what is at the same time happens in this order.
    pub events: Vec<(Duration, Event)>,
}

/// What happens at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// A worker connects, for the first time or again. What it had cached it still has.
    Connect {
        /// Which, in [`Trace::workers`].
        worker: u32,
    },
    /// A worker is lost, with what it does.
    Disconnect {
        /// Which, in [`Trace::workers`].
        worker: u32,
    },
    /// A client submits a job.
    Submit(Job),
}

/// A job, as only a trace can know it beforehand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Job {
    /// Whose it is, in [`Trace::clients`].
    pub client: u32,
    /// Its cache hint, in [`Trace::hints`].
    pub hint: Option<u32>,
    /// It goes before all that are not urgent.
    pub urgent: bool,
    /// What it takes on a worker that has done a job of the hint.
    pub warm: Duration,
    /// What it takes on others.
    pub cold: Duration,
    /// How long after it was submitted the client cancels it, if it has not ended by then.
    pub cancel_after: Option<Duration>,
}

/// Why a trace cannot be read.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// A line says nothing that a trace can say. Lines count from 1.
    #[error("{line}: {reason}")]
    Line {
        /// Which.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// A line of a trace's file. Times are in seconds.
#[derive(Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
enum Line<'a> {
    Client {
        #[serde(borrow)]
        client: Name<'a>,
        rate: f64,
    },
    Connect {
        at_s: f64,
        #[serde(borrow)]
        worker: Name<'a>,
        #[serde(default = "one")]
        capacity: u32,
    },
    Disconnect {
        at_s: f64,
        #[serde(borrow)]
        worker: Name<'a>,
    },
    Job {
        at_s: f64,
        #[serde(borrow)]
        client: Name<'a>,
        #[serde(borrow, default, skip_serializing_if = "is_empty")]
        hint: Name<'a>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        urgent: bool,
        warm_s: f64,
        cold_s: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cancel_after_s: Option<f64>,
    },
}

type Name<'a> = std::borrow::Cow<'a, str>;

fn one() -> u32 {
    1
}

fn is_empty(name: &Name<'_>) -> bool {
    name.is_empty()
}

/// A trace that is put together, in whatever order.
#[derive(Default)]
pub(super) struct Builder {
    trace: Trace,
    clients: HashMap<String, u32>,
    workers: HashMap<String, u32>,
    hints: HashMap<String, u32>,
}

impl Builder {
    /// Returns the number of a client, whose rate is 1 until it is [said](Builder::rate).
    pub(super) fn client(&mut self, name: &str) -> u32 {
        number(&mut self.clients, &mut self.trace.clients, name, |name| (name, 1.0))
    }

    pub(super) fn rate(&mut self, name: &str, rate: f64) {
        let client = self.client(name);
        self.trace.clients[client as usize].1 = rate;
    }

    pub(super) fn worker(&mut self, name: &str, capacity: u32) -> u32 {
        number(&mut self.workers, &mut self.trace.workers, name, |name| (name, capacity))
    }

    pub(super) fn hint(&mut self, name: &str) -> u32 {
        number(&mut self.hints, &mut self.trace.hints, name, |name| name)
    }

    pub(super) fn add(&mut self, at: Duration, event: Event) {
        self.trace.events.push((at, event));
    }

    pub(super) fn finish(mut self) -> Trace {
        self.trace.events.sort_by_key(|(at, _)| *at);
        self.trace
    }
}

/// Returns the place of a name in a list, to which it is added if it is not in it.
fn number<T>(numbers: &mut HashMap<String, u32>, list: &mut Vec<T>, name: &str, new: impl FnOnce(String) -> T) -> u32 {
    if let Some(&number) = numbers.get(name) {
        return number;
    }
    let number = u32::try_from(list.len()).expect("four thousand million names do not fit into memory");
    list.push(new(name.to_owned()));
    numbers.insert(name.to_owned(), number);
    number
}

impl Trace {
    /// Reads a trace: a JSON object a line. Times need not be in order.
    ///
    /// ```text
    /// {"event":"client","client":"alice","rate":2}                         without this, its rate is 1
    /// {"event":"connect","at_s":0,"worker":"w1","capacity":4}              1 without `capacity`
    /// {"event":"disconnect","at_s":3600,"worker":"w1"}                     what it did is lost, what it cached not
    /// {"event":"job","at_s":12.5,"client":"alice","hint":"zlib","warm_s":40,"cold_s":300}
    /// {"event":"job","at_s":13,"client":"bob","urgent":true,"warm_s":1,"cold_s":1,"cancel_after_s":60}
    /// ```
    ///
    /// A job takes `warm_s` on a worker that has done one of its hint, and `cold_s` on others. If that one is not done yet, it
    /// waits for it first: no step is made twice. Empty lines are skipped.
    ///
    /// # Errors
    ///
    /// The file cannot be read; a line is something else, or has a time, a rate or a capacity that cannot be; a worker
    /// connects that is connected, or disconnects that is not.
    pub fn read(from: impl BufRead) -> Result<Trace, TraceError> {
        let mut builder = Builder::default();
        // The line that each event is from, to name those that do not fit.
        let mut lines = Vec::new();
        for (index, text) in from.lines().enumerate() {
            let line = index + 1;
            let text = match text {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(TraceError::Line { line, reason: "it is not UTF-8".to_owned() });
                }
                text => text.map_err(TraceError::Read)?,
            };
            if text.trim().is_empty() {
                continue;
            }
            let parsed = serde_json::from_str(&text).map_err(|error| without_place(&error));
            parsed.and_then(|parsed| builder.read(parsed)).map_err(|reason| TraceError::Line { line, reason })?;
            lines.resize(builder.trace.events.len(), line);
        }
        let mut order: Vec<usize> = (0..lines.len()).collect();
        order.sort_by_key(|&index| builder.trace.events[index].0);
        let mut connected = vec![false; builder.trace.workers.len()];
        for index in order {
            let (worker, connects) = match builder.trace.events[index].1 {
                Event::Connect { worker } => (worker as usize, true),
                Event::Disconnect { worker } => (worker as usize, false),
                Event::Submit(_) => continue,
            };
            if std::mem::replace(&mut connected[worker], connects) == connects {
                let is = if connects { "is connected already" } else { "is not connected" };
                let reason = format!("worker {:?} {is} then", builder.trace.workers[worker].0);
                return Err(TraceError::Line { line: lines[index], reason });
            }
        }
        Ok(builder.finish())
    }

    /// Writes it as [`Trace::read`] reads it.
    ///
    /// # Errors
    ///
    /// `to` takes no more.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let mut line = |line: Line<'_>| {
            serde_json::to_writer(&mut to, &line)?;
            to.write_all(b"\n")
        };
        for (client, rate) in &self.clients {
            line(Line::Client { client: client.into(), rate: *rate })?;
        }
        for (at, event) in &self.events {
            let at_s = at.as_secs_f64();
            line(match *event {
                Event::Connect { worker } => {
                    let (name, capacity) = &self.workers[worker as usize];
                    Line::Connect { at_s, worker: name.into(), capacity: *capacity }
                }
                Event::Disconnect { worker } => {
                    Line::Disconnect { at_s, worker: (&self.workers[worker as usize].0).into() }
                }
                Event::Submit(job) => Line::Job {
                    at_s,
                    client: (&self.clients[job.client as usize].0).into(),
                    hint: job.hint.map_or("", |hint| &self.hints[hint as usize]).into(),
                    urgent: job.urgent,
                    warm_s: job.warm.as_secs_f64(),
                    cold_s: job.cold.as_secs_f64(),
                    cancel_after_s: job.cancel_after.map(|after| after.as_secs_f64()),
                },
            })?;
        }
        Ok(())
    }

    /// Returns how many jobs are submitted.
    pub fn jobs(&self) -> usize {
        self.events.iter().filter(|(_, event)| matches!(event, Event::Submit(_))).count()
    }
}

impl Builder {
    /// Adds what a line says. The error is the reason why it cannot be so.
    fn read(&mut self, line: Line<'_>) -> Result<(), String> {
        match line {
            Line::Client { client, rate } if rate.is_finite() && rate > 0.0 => self.rate(&client, rate),
            Line::Client { rate, .. } => return Err(format!("a rate must be a number above 0, not {rate}")),
            Line::Connect { capacity: 0, .. } => return Err("a capacity must be 1 or more, not 0".to_owned()),
            Line::Connect { at_s, worker: name, capacity } => {
                let worker = self.worker(&name, capacity);
                if self.trace.workers[worker as usize].1 != capacity {
                    return Err(format!("worker {name:?} had another capacity before"));
                }
                self.add(time("at_s", at_s)?, Event::Connect { worker });
            }
            Line::Disconnect { at_s, worker: name } => {
                let Some(&worker) = self.workers.get(name.as_ref()) else {
                    return Err(format!("no line before says that worker {name:?} connects"));
                };
                self.add(time("at_s", at_s)?, Event::Disconnect { worker });
            }
            Line::Job { at_s, client, hint, urgent, warm_s, cold_s, cancel_after_s } => {
                let job = Job {
                    client: self.client(&client),
                    hint: (!hint.is_empty()).then(|| self.hint(&hint)),
                    urgent,
                    warm: time("warm_s", warm_s)?,
                    cold: time("cold_s", cold_s)?,
                    cancel_after: cancel_after_s.map(|after_s| time("cancel_after_s", after_s)).transpose()?,
                };
                self.add(time("at_s", at_s)?, Event::Submit(job));
            }
        }
        Ok(())
    }
}

/// A time that can be added to others: at most a century, in seconds.
fn time(field: &str, seconds: f64) -> Result<Duration, String> {
    match seconds {
        0.0..=3e9 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("`{field}` must be from 0 to 3e9 seconds, not {seconds:?}")),
    }
}

/// The parser sees one line only: its own words for where that is would mislead.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line 1 column ") {
        Some((reason, column)) if column != "0" => format!("{reason} (column {column})"),
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}
