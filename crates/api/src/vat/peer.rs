//! What a peer may say, and what it keeps us from forgetting.
//!
//! Whoever reaches the port is a *stranger* until it has named a service. A stranger gets little: short messages, few questions, no
//! new one before the last is answered, and an end to all of it after [`Limits::handshake`].
//!
//! Some of what Cap'n Proto can say, no program of a cluster says, and capnp-rpc is not safe against it: promises that come to
//! nothing but promises make it recurse or loop, and results that are not to be sent are never forgotten. Who says that is
//! disconnected.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use capnp::Error;
use capnp_rpc::rpc_capnp::{call, message as rpc, payload, return_};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::limits::{Limits, STRANGER_CALLS, STRANGER_MESSAGE};
use super::references::References;
use super::silence::ARE_YOU_THERE;

/// The number of our own question, which no peer has: they count from 0.
pub(super) const OUR_QUESTION: u32 = u32::MAX;

/// The most references in one message. OCluster's have one.
const MAX_REFERENCES: u32 = 64;

/// Who has connected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// They to us. They are strangers until they name a service.
    Accepted,
    /// We to them. They are known by their key, and soon by what they answer.
    Opened,
}

/// What is remembered of a peer.
pub(super) struct Peer {
    limits: Limits,
    side: Side,
    known: Cell<bool>,
    deadline: Instant,
    questions: RefCell<HashMap<u32, Question>>,
    /// Questions that have no answer yet.
    unanswered: Cell<usize>,
    /// The bytes of these.
    held: Cell<usize>,
    answered: Notify,
    references: RefCell<References>,
    /// The peer was told something, and may have more than it may.
    told: Notify,
}

/// A question that the peer asked. capnp-rpc forgets it when it is both answered and finished: one that is finished before it is
/// answered is cancelled, never answered, and never forgotten.
struct Question {
    /// Bytes of the message, which is kept for as long as it is not answered.
    bytes: usize,
    answered: bool,
    finished: bool,
    /// The objects in its answer: whoever finishes it may let go of all of them.
    results: Vec<u32>,
}

impl Peer {
    pub(super) fn new(side: Side, limits: Limits) -> Self {
        Self {
            deadline: Instant::now() + limits.handshake,
            limits,
            side,
            known: Cell::new(false),
            questions: RefCell::default(),
            unanswered: Cell::new(0),
            held: Cell::new(0),
            answered: Notify::new(),
            references: RefCell::default(),
            told: Notify::new(),
        }
    }

    /// Returns when a peer that is not known yet has had time enough, or `None` for others.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.known.get()).then_some(self.deadline)
    }

    /// Waits until the peer may go on: a stranger has its answers one by one.
    pub(super) async fn may_speak(&self) {
        loop {
            let answered = self.answered.notified();
            if !self.is_stranger() || self.unanswered.get() == 0 {
                return;
            }
            answered.await;
        }
    }

    /// Waits until the peer has more than it may, and returns what. What it asks for can come long after it has asked.
    pub(super) async fn overdraws(&self) -> Error {
        loop {
            let told = self.told.notified();
            if let Some(excess) = self.references.borrow().excess(&self.limits) {
                return excess;
            }
            told.await;
        }
    }

    /// Returns true for one that we have no reason to trust.
    fn is_stranger(&self) -> bool {
        self.side == Side::Accepted && !self.known.get()
    }

    /// Returns how its next message is to be read.
    pub(super) fn reader(&self) -> capnp::message::ReaderOptions {
        let most = if self.is_stranger() { self.limits.message.min(STRANGER_MESSAGE) } else { self.limits.message };
        let mut options = capnp::message::ReaderOptions::new();
        options.traversal_limit_in_words(Some(most / 8)).nesting_limit(self.limits.nesting);
        options
    }

    /// Takes note of what the peer says in `bytes` bytes.
    ///
    /// # Errors
    ///
    /// If it may not say that: this is for the peer, and its last.
    pub(super) fn says(&self, message: rpc::Reader<'_>, bytes: usize) -> Result<(), Error> {
        if self.side == Side::Opened {
            self.known.set(true);
        }
        match message.which() {
            Ok(rpc::Bootstrap(bootstrap)) => self.asks(bootstrap?.get_question_id(), bytes)?,
            Ok(rpc::Call(call)) => {
                let call = call?;
                if !matches!(call.get_send_results_to().which()?, call::send_results_to::Caller(())) {
                    return Err(Error::failed("results are sent to whoever calls".to_owned()));
                }
                let params = call.get_params()?;
                few_references(params)?;
                self.asks(call.get_question_id(), bytes)?;
                self.references.borrow_mut().taken(params)?;
            }
            Ok(rpc::Return(answer)) => {
                let answer = answer?;
                if let return_::Results(results) = answer.which()? {
                    few_references(results?)?;
                }
                self.references.borrow_mut().answered(answer)?;
            }
            Ok(rpc::Finish(finish)) => {
                let finish = finish?;
                self.finishes(finish.get_question_id(), finish.get_release_result_caps())?;
            }
            Ok(rpc::Resolve(resolve)) => self.references.borrow_mut().resolved(resolve?)?,
            Ok(rpc::Release(release)) => {
                let release = release?;
                self.references.borrow_mut().returned(release.get_id(), release.get_reference_count());
            }
            Ok(rpc::Disembargo(disembargo)) => self.references.borrow_mut().disembargoes(disembargo?)?,
            Ok(rpc::Unimplemented(message)) => self.references.borrow_mut().refused(message?)?,
            // The rest, capnp-rpc does or refuses.
            _ => {}
        }
        self.references.borrow().excess(&self.limits).map_or(Ok(()), Err)
    }

    /// Takes note of what the peer is told.
    pub(super) fn is_told(&self, message: rpc::Reader<'_>) -> Result<(), Error> {
        let mut references = self.references.borrow_mut();
        match message.which()? {
            rpc::Return(answer) => {
                let answer = answer?;
                let mut given = Vec::new();
                if let return_::Results(results) = answer.which()? {
                    // There is one thing that a stranger can ask with success.
                    self.known.set(true);
                    given = references.given(results?)?;
                }
                self.is_answered(answer.get_answer_id(), answer.get_no_finish_needed(), given);
            }
            rpc::Bootstrap(bootstrap) => references.asks(bootstrap?.get_question_id()),
            rpc::Call(call) => {
                let call = call?;
                references.given(call.get_params()?)?;
                references.asks(call.get_question_id());
            }
            rpc::Finish(finish) => references.finishes(finish?),
            rpc::Resolve(resolve) => references.has_resolved(resolve?)?,
            rpc::Release(release) => references.released(release?),
            rpc::Disembargo(disembargo) => references.embargoes(disembargo?)?,
            _ => {}
        }
        drop(references);
        self.told.notify_waiters();
        Ok(())
    }

    fn asks(&self, question: u32, bytes: usize) -> Result<(), Error> {
        if [OUR_QUESTION, ARE_YOU_THERE].contains(&question) {
            return Err(Error::failed("that question's number is taken".to_owned()));
        }
        let mut questions = self.questions.borrow_mut();
        if questions
            .insert(question, Question { bytes, answered: false, finished: false, results: Vec::new() })
            .is_some()
        {
            return Err(Error::failed("a question of that number is not finished".to_owned()));
        }
        self.unanswered.set(self.unanswered.get() + 1);
        self.held.set(self.held.get() + bytes);
        let most = if self.is_stranger() { self.limits.calls.min(STRANGER_CALLS) } else { self.limits.calls };
        if questions.len() > most {
            return Err(Error::overloaded(format!("more than {most} calls at once")));
        }
        if self.held.get() > self.limits.held {
            return Err(Error::overloaded(format!("more than {} bytes of calls at once", self.limits.held)));
        }
        Ok(())
    }

    /// Finishing what is not asked is allowed: it was answered with "no finish needed".
    fn finishes(&self, question: u32, lets_go: bool) -> Result<(), Error> {
        if question == OUR_QUESTION {
            return Err(Error::failed("that question is not yours".to_owned()));
        }
        let mut questions = self.questions.borrow_mut();
        if let Some(asked) = questions.get_mut(&question) {
            asked.finished = true;
            if asked.answered {
                let results = std::mem::take(&mut asked.results);
                results.into_iter().filter(|_| lets_go).for_each(|id| self.references.borrow_mut().returned(id, 1));
                questions.remove(&question);
            } else {
                let bytes = std::mem::take(&mut asked.bytes);
                self.held.set(self.held.get() - bytes);
            }
        }
        Ok(())
    }

    fn is_answered(&self, question: u32, no_finish_needed: bool, results: Vec<u32>) {
        let mut questions = self.questions.borrow_mut();
        if let Some(asked) = questions.get_mut(&question)
            && !asked.answered
        {
            asked.answered = true;
            asked.results = results;
            self.unanswered.set(self.unanswered.get() - 1);
            self.held.set(self.held.get() - asked.bytes);
            if asked.finished || no_finish_needed {
                questions.remove(&question);
            }
        }
        drop(questions);
        self.answered.notify_waiters();
    }
}

/// Checks how many references come with a message: each is made into an object before anybody looks at them.
fn few_references(payload: payload::Reader<'_>) -> Result<(), Error> {
    match payload.get_cap_table()?.len() {
        0..=MAX_REFERENCES => Ok(()),
        many => Err(Error::failed(format!("{many} references in one message"))),
    }
}
