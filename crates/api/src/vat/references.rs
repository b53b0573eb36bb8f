//! What a connection has each side keep for the other: capnp-rpc's tables, counted.
//!
//! An object that the other side may call is kept until the other side lets go of it, which nothing makes it do. So what the peer refers
//! to has a limit; and so have the peer's objects that it has us refer to, by sending calls that we do not answer at once, what we
//! asked it and it does not answer, and promises of which it says that they are objects of ours (capnp-rpc keeps an *embargo* for each
//! that we have called, until the peer says that our calls have passed it).

use std::collections::HashMap;

use capnp::Error;
use capnp_rpc::rpc_capnp::{cap_descriptor, disembargo, finish, message as rpc, payload, release, resolve, return_};

use super::limits::{EMBARGOES, Limits};

/// How many promises may follow each other until there is an object. OCluster's programs have one; each is a stack frame of ours.
const MAX_PROMISES: u8 = 16;

#[derive(Default)]
pub(super) struct References {
    /// Our objects that the peer refers to, by number, and how often it was given each.
    ours: HashMap<u32, u32>,
    /// The peer's that we refer to.
    theirs: HashMap<u32, Theirs>,
    /// What we asked and has no answer yet, by number, and whether we have given that up.
    asked: HashMap<u32, bool>,
    embargoes: usize,
}

/// An object of the peer's.
#[derive(Default)]
struct Theirs {
    /// How often we were given it.
    times: u32,
    /// How many promises led to it.
    promises: u8,
}

impl References {
    /// Returns why that is too much, if it is.
    pub(super) fn excess(&self, limits: &Limits) -> Option<Error> {
        let too_many = |count: usize, most: usize, of: &str| {
            (count > most).then(|| Error::overloaded(format!("more than {most} {of} at once")))
        };
        too_many(self.ours.len(), limits.references, "references to objects here")
            .or_else(|| too_many(self.theirs.len(), limits.references, "references to objects there"))
            .or_else(|| too_many(self.asked.len(), limits.calls, "calls without an answer"))
            .or_else(|| too_many(self.embargoes, EMBARGOES, "embargoes"))
    }

    /// Notes that the peer was given references. Returns the numbers of those that are to objects of ours.
    pub(super) fn given(&mut self, payload: payload::Reader<'_>) -> Result<Vec<u32>, Error> {
        let mut ours = Vec::new();
        for reference in payload.get_cap_table()? {
            if let Some(id) = hosted(reference)? {
                self.give(id)?;
                ours.push(id);
            }
        }
        Ok(ours)
    }

    fn give(&mut self, id: u32) -> Result<(), Error> {
        let times = self.ours.entry(id).or_default();
        *times =
            times.checked_add(1).ok_or_else(|| Error::overloaded("too many references to one object".to_owned()))?;
        Ok(())
    }

    /// Notes that the peer lets go of an object. That it never had it, capnp-rpc says.
    pub(super) fn returned(&mut self, id: u32, times: u32) {
        take(&mut self.ours, id, |before| {
            *before = before.saturating_sub(times);
            *before == 0
        });
    }

    /// Notes that we were given references.
    pub(super) fn taken(&mut self, payload: payload::Reader<'_>) -> Result<(), Error> {
        for reference in payload.get_cap_table()? {
            if let Some(id) = hosted(reference)? {
                self.take(id, 0)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, id: u32, promises: u8) -> Result<(), Error> {
        let theirs = self.theirs.entry(id).or_default();
        theirs.promises = theirs.promises.max(promises);
        let times = theirs.times.checked_add(1);
        theirs.times = times.ok_or_else(|| Error::overloaded("too many references to one object".to_owned()))?;
        Ok(())
    }

    /// Notes that we let go of an object of the peer's.
    pub(super) fn released(&mut self, release: release::Reader<'_>) {
        take(&mut self.theirs, release.get_id(), |theirs| {
            theirs.times = theirs.times.saturating_sub(release.get_reference_count());
            theirs.times == 0
        });
    }

    /// Notes that a promise of the peer's has become something.
    pub(super) fn resolved(&mut self, resolve: resolve::Reader<'_>) -> Result<(), Error> {
        let resolve::Cap(to) = resolve.which()? else { return Ok(()) };
        match to?.which()? {
            cap_descriptor::SenderHosted(next) => self.take(next, 0),
            cap_descriptor::SenderPromise(next) => {
                let promise = resolve.get_promise_id();
                let before = self.theirs.get(&promise).map_or(0, |theirs| theirs.promises);
                if next == promise || before >= MAX_PROMISES {
                    return Err(Error::failed("a promise that is never kept".to_owned()));
                }
                self.take(next, before + 1)
            }
            _ => Ok(()),
        }
    }

    /// Notes that a promise of ours has become something.
    pub(super) fn has_resolved(&mut self, resolve: resolve::Reader<'_>) -> Result<(), Error> {
        if let resolve::Cap(to) = resolve.which()?
            && let Some(id) = hosted(to?)?
        {
            self.give(id)?;
        }
        Ok(())
    }

    /// Notes that the peer did not take something that it was told: what a promise of ours has become.
    pub(super) fn refused(&mut self, message: rpc::Reader<'_>) -> Result<(), Error> {
        if let rpc::Resolve(resolve) = message.which()?
            && let resolve::Cap(to) = resolve?.which()?
            && let Some(id) = hosted(to?)?
        {
            self.returned(id, 1);
        }
        Ok(())
    }

    /// Notes that we ask something.
    pub(super) fn asks(&mut self, question: u32) {
        self.asked.insert(question, false);
    }

    /// Notes that we want no answer any more, or have it.
    pub(super) fn finishes(&mut self, finish: finish::Reader<'_>) {
        if let Some(given_up) = self.asked.get_mut(&finish.get_question_id()) {
            *given_up = true;
        }
    }

    /// Notes an answer to what we asked. References in one that was given up are nobody's: the peer lets go of them itself.
    pub(super) fn answered(&mut self, answer: return_::Reader<'_>) -> Result<(), Error> {
        match (self.asked.remove(&answer.get_answer_id()), answer.which()?) {
            (Some(false), return_::Results(results)) => self.taken(results?),
            _ => Ok(()),
        }
    }

    /// Notes that a promise of the peer's is an object of ours, and that calls on the way there are waited for.
    pub(super) fn embargoes(&mut self, disembargo: disembargo::Reader<'_>) -> Result<(), Error> {
        if let disembargo::context::SenderLoopback(_) = disembargo.get_context().which()? {
            self.embargoes += 1;
        }
        Ok(())
    }

    /// Notes that these have come.
    pub(super) fn disembargoes(&mut self, disembargo: disembargo::Reader<'_>) -> Result<(), Error> {
        if let disembargo::context::ReceiverLoopback(_) = disembargo.get_context().which()? {
            self.embargoes = self.embargoes.saturating_sub(1);
        }
        Ok(())
    }
}

/// Returns the number of an object of whoever sends this.
fn hosted(reference: cap_descriptor::Reader<'_>) -> Result<Option<u32>, Error> {
    Ok(match reference.which()? {
        cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => Some(id),
        _ => None,
    })
}

/// Removes what is empty after `lessen`.
fn take<T>(table: &mut HashMap<u32, T>, id: u32, lessen: impl FnOnce(&mut T) -> bool) {
    if table.get_mut(&id).is_some_and(lessen) {
        table.remove(&id);
    }
}
