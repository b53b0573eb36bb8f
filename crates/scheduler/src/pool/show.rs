//! A pool as text, for people, and for scripts that look for words in it.
//!
//! Layout and line breaks are those of OCluster's `show`, which fills lines as OCaml's `Format` does.

use std::io::Write;
use std::time::Duration;

use bstr::{BStr, BString, ByteSlice as _, ByteVec as _};

use super::job::{Place, Pool};
use super::queue::Turn;
use super::worker::{Pauses, Worker};

/// What a line holds, in bytes: `Format` breaks lines at this width when it is not told another.
const WIDTH: usize = 77;
/// How many queued jobs are shown in all, how many waiting `pop`s, and how many clients.
const MOST: usize = 1000;
/// How many workers are shown.
const MOST_WORKERS: usize = 10_000;
/// How long the text may be, in bytes, until no more workers are shown, and until no more that are gone are: a few mebibytes,
/// with what comes after. Workers choose their names, and an administrator takes messages of 16 MiB.
const MOST_BYTES: [usize; 2] = [4 << 20, 6 << 20];
/// How much of a client's name or a hint is shown, in bytes.
const MOST_OF_NAME: usize = 255;

impl Pool {
    /// Returns the pool's state as text. Strangers choose names, and terminals show them: bytes that are not for display are
    /// escaped.
    ///
    /// ```text
    /// capacity: 2
    /// queue: (backlog) [bob:ocaml-5@10s bob:ocaml-4@0s+urgent]      next to run last, and how far its start is in fair time
    /// registered:
    ///   w1 (20): [bob:ocaml-4@5s(10) alice:ocaml-4@4s(10)] (1 running)     seconds of work in its queue, of each job
    ///   w2 (0): (inactive: worker pause, admin pause) (0 running)
    /// disconnected:
    ///   w3 (paused)
    ///   w4 (2 waiting)                       jobs that are done best there, if it is back soon
    /// withheld: 1 (until their clients give their secrets again)     only if there are any; OCluster has none
    /// clients: alice(1) bob(2)+14s           rates, and how far the start of another job would be
    /// ```
    ///
    /// Of long lists, what is next to run is shown, and how much more there is.
    pub fn show(&self, now: Duration) -> BString {
        let mut out = Filler::default();
        let mut left = MOST;
        let fair_now = self.fair_now(now);
        out.text(format!("capacity: {}\nqueue: ", self.counts.capacity));
        if self.is_ready {
            self.show_ready(&mut out);
        } else {
            out.text("(backlog) ");
            let lengths = self.backlog.lengths();
            let (first, all) = (self.first_in_backlog(left), lengths.high + lengths.low);
            self.show_queue(&mut out, fair_now, first, all, &mut left);
        }
        out.text("\nregistered:");
        let mut more = 0;
        for (name, _, machine) in self.machines.iter() {
            let Some(worker) = machine.worker.and_then(|id| self.workers.get(id)) else { continue };
            match out.lines < MOST_WORKERS && out.out.len() < MOST_BYTES[0] {
                true => self.show_worker(&mut out, fair_now, name, worker, &mut left),
                false => more += 1,
            }
        }
        out.more_lines(more);
        out.text("\ndisconnected:");
        let (mut shown, mut more) = (0, 0);
        for (name, _, machine) in self.machines.iter().filter(|(_, _, it)| it.known && it.worker.is_none()) {
            if shown == MOST_WORKERS || out.out.len() >= MOST_BYTES[1] {
                more += 1;
                continue;
            }
            shown += 1;
            out.text("\n  ");
            out.text(displayed(name));
            out.text(if machine.paused { " (paused)" } else { "" });
            if !machine.waited_for.is_empty() {
                out.text(format!(" ({} waiting)", machine.waited_for.len()));
            }
        }
        out.more_lines(more);
        if self.counts.withheld > 0 {
            out.text(format!("\nwithheld: {} (until their clients give their secrets again)", self.counts.withheld));
        }
        out.text("\nclients: ");
        self.show_clients(&mut out, fair_now);
        out.text("\n");
        out.out
    }

    fn show_ready(&self, out: &mut Filler) {
        out.begin();
        out.text("(ready) [");
        let mut items: Vec<BString> = Vec::new();
        if self.ready.len() > MOST {
            items.push(and_more(self.ready.len() - MOST));
        }
        let mut first: Vec<BString> = self
            .ready
            .values()
            .take(MOST)
            .filter_map(|&worker| self.worker_name(worker))
            .map(|name| displayed(name.as_ref()))
            .collect();
        first.reverse();
        items.append(&mut first);
        match items.last_mut() {
            // The bracket belongs to the last item: it is not alone on a line.
            Some(last) => last.push(b']'),
            None => out.text("]"),
        }
        out.fill(items);
    }

    fn show_worker(&self, out: &mut Filler, fair_now: Duration, name: &BStr, worker: &Worker, left: &mut usize) {
        out.lines += 1;
        out.text("\n  ");
        out.text(displayed(name));
        out.text(format!(" ({}): ", seconds(worker.workload.as_secs_f64())));
        if worker.pauses.is_active() {
            let first = self.first_in_lines(worker.queue.lines(&self.clients), *left);
            self.show_queue(out, fair_now, first, worker.queue.len(), left);
        } else {
            out.text(format!("(inactive: {})", reasons(worker.pauses)));
        }
        out.text(format!(" ({} running)", worker.running.len()));
    }

    /// Shows the first jobs of a queue that has so many.
    fn show_queue(&self, out: &mut Filler, fair_now: Duration, first: Vec<Turn>, all: usize, left: &mut usize) {
        let mut items: Vec<BString> = Vec::new();
        for turn in first {
            let Some((client, hint, job)) = self.describe(turn) else { continue };
            let mut item = displayed(client);
            item.push(b':');
            item.extend_from_slice(&displayed(hint));
            item.push(b'@');
            item.extend_from_slice(rough(turn.start.saturating_sub(fair_now)).as_bytes());
            let urgent = if job.urgent { "+urgent" } else { "" };
            let end = match job.place {
                Place::Assigned { .. } => format!("({}{urgent})", seconds(job.charge.cost.as_secs_f64())),
                _ => urgent.to_owned(),
            };
            item.extend_from_slice(end.as_bytes());
            items.push(item);
        }
        *left -= items.len();
        if items.len() < all {
            items.push(and_more(all - items.len()));
        }
        items.reverse();
        out.text("[");
        out.begin();
        out.fill(items);
        out.text("]");
    }

    fn show_clients(&self, out: &mut Filler, fair_now: Duration) {
        let mut items: Vec<BString> = Vec::new();
        let mut more = 0;
        for (name, _, client) in self.clients.iter().filter(|(_, _, client)| client.seen) {
            if items.len() == MOST {
                more += 1;
                continue;
            }
            let mut item = displayed(name);
            item.extend_from_slice(format!("({:.0})", client.rate).as_bytes());
            let next = client.next.saturating_add(client.queued).saturating_add(client.held);
            if next > fair_now {
                item.extend_from_slice(format!("+{}", rough(next - fair_now)).as_bytes());
            }
            items.push(item);
        }
        if more > 0 {
            items.push(and_more(more));
        }
        out.begin();
        out.fill(items);
    }
}

/// Returns a name as a terminal may have it: without what moves its cursor, ends lines or turns the direction of writing.
fn displayed(name: &BStr) -> BString {
    let mut out = BString::default();
    let (name, rest) = name.split_at(name.len().min(MOST_OF_NAME));
    let name = BStr::new(name);
    for (start, end, char) in name.char_indices() {
        match char {
            '\u{FFFD}' => {
                name[start..end].iter().for_each(|byte| out.extend_from_slice(format!("\\x{byte:02x}").as_bytes()))
            }
            '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => out.push_str(char.escape_unicode().to_string()),
            char if char.is_control() => out.push_str(char.escape_default().to_string()),
            char => out.push_char(char),
        }
    }
    if !rest.is_empty() {
        out.push_char('…');
    }
    out
}

fn reasons(pauses: Pauses) -> String {
    let all =
        [(pauses.worker, "worker pause"), (pauses.administrator, "admin pause"), (pauses.leaving, "shutting down")];
    all.iter().filter(|(is, _)| *is).map(|(_, text)| *text).collect::<Vec<_>>().join(", ")
}

/// A time span, roughly: seconds up to two minutes, then minutes.
fn rough(of: Duration) -> String {
    let of = of.as_secs_f64();
    if of < 120.0 { format!("{}s", seconds(of)) } else { format!("{}m", seconds(of / 60.0)) }
}

fn seconds(of: f64) -> String {
    format!("{of:.0}")
}

fn and_more(count: usize) -> BString {
    format!("… and {count} more").into()
}

/// Text, in which lists are broken into lines.
#[derive(Default)]
struct Filler {
    out: BString,
    /// Where the current line starts in `out`.
    line: usize,
    /// Where lines of the current list are continued.
    indent: usize,
    /// Lines of workers so far.
    lines: usize,
}

impl Filler {
    fn text(&mut self, text: impl AsRef<[u8]>) {
        let text = text.as_ref();
        if let Some(newline) = text.iter().rposition(|&byte| byte == b'\n') {
            self.line = self.out.len() + newline + 1;
        }
        self.out.extend_from_slice(text);
    }

    /// Starts a list here.
    fn begin(&mut self) {
        self.indent = self.out.len() - self.line;
    }

    fn fill(&mut self, items: Vec<BString>) {
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                if self.out.len() - self.line + 1 + item.len() <= WIDTH {
                    self.text(" ");
                } else {
                    self.text("\n");
                    self.out.resize(self.line + self.indent, b' ');
                }
            }
            self.text(item);
        }
    }

    fn more_lines(&mut self, count: usize) {
        if count > 0 {
            // Writing to memory does not fail.
            let _ = write!(self.out, "\n  … and {count} more");
            self.line = self.out.len();
        }
    }
}
