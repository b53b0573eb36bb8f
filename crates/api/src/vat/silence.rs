//! Whether a peer is still there.
//!
//! The kernel of a process that is stopped, or that hangs, accepts connections and acknowledges what is sent, so only an answer says that
//! somebody is there. Who has been silent is asked for one: by a `Bootstrap` of no service, under a number that no other question
//! has. Every vat answers a `Bootstrap`. Kiln's do it here, before anything that takes time, and by words that say that they are
//! Kiln's. What counts is not the answer, but that anything comes.
//!
//! Who gives a peer up says so, by a `Finish` of that question: for a peer that goes on later, this is not somebody who was killed, but
//! somebody who may be back already.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use capnp::message;
use capnp_rpc::rpc_capnp::{exception, message as rpc, return_};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::limits::Silence;
use super::link::Link;
use super::network::{Heap, Outgoings};

/// The number of the question. Others count from 0, and the one below is [`super::peer::OUR_QUESTION`].
pub(super) const ARE_YOU_THERE: u32 = u32::MAX - 1;

/// What Kiln's vats answer.
const HERE: &[u8] = b"kiln is here";

/// In how many pieces an answer is waited for. While this process does not run, its clock does: each piece that has passed is one in which
/// it could have read the answer.
const PIECES: u32 = 4;

/// Who says nothing for longer did not just end: more than [`Silence::quiet`] of those who connect to us.
const LIVELY: Duration = Duration::from_secs(5);

/// How long a peer that is given up may take to take what is to be sent.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is known of a peer's silence.
pub(super) struct Pulse {
    link: Link,
    outgoings: Outgoings,
    heard: Cell<Instant>,
    /// Whether anything was ever heard.
    spoke: Cell<bool>,
    speaks: Notify,
    /// Whether the question is not answered yet.
    asked: Cell<bool>,
    /// What answers the peer's, until it is sent.
    answer: RefCell<Weak<Heap>>,
    is_kiln: Cell<bool>,
    given_up: CancellationToken,
}

impl Pulse {
    pub(super) fn new(link: Link, outgoings: Outgoings) -> Self {
        Self {
            link,
            outgoings,
            heard: Cell::new(Instant::now()),
            spoke: Cell::new(false),
            speaks: Notify::new(),
            asked: Cell::new(false),
            answer: RefCell::default(),
            is_kiln: Cell::new(false),
            given_up: CancellationToken::new(),
        }
    }

    /// Takes note that bytes came.
    pub(super) fn hears(&self) {
        self.heard.set(Instant::now());
        if !self.spoke.replace(true) {
            self.speaks.notify_waiters();
        }
    }

    /// Takes note that the way to the peer is cut.
    pub(super) fn is_cut(&self) {
        self.link.set_silent();
    }

    /// Takes note that the connection ends. One that lives says something every few seconds. If this did not, the way to it was cut, and it has
    /// given us up meanwhile; what it said then may be lost, when its host says that there is no such connection any more.
    pub(super) fn ends(&self) {
        if self.heard.get().elapsed() > LIVELY {
            self.is_cut();
        }
    }

    /// Asks the peer whether it is there, unless it is asked already.
    pub(super) fn ask(&self) {
        if !self.asked.replace(true) {
            let _ = self.send(|root| root.init_bootstrap().set_question_id(ARE_YOU_THERE));
        }
    }

    /// Waits until anything was heard of the peer.
    pub(super) async fn spoke(&self) {
        let speaks = self.speaks.notified();
        if !self.spoke.get() {
            speaks.await;
        }
    }

    /// Waits until the peer is given up since it is silent. What it does not take at once then is not sent to it any more.
    ///
    /// To be polled after what reads, and only while something does: what is not read is not heard.
    pub(super) async fn silence(self: Rc<Self>) {
        let silence = self.link.watched().await;
        // Whether it is one of Kiln's is to be known before it matters.
        self.ask();
        loop {
            sleep_until(self.heard.get() + silence.quiet).await;
            if self.heard.get().elapsed() < silence.quiet {
                continue;
            }
            self.ask();
            if self.stays_silent(silence).await {
                tracing::info!("a peer does not answer any more");
                self.link.set_silent();
                let _ = self.send(|root| root.init_finish().set_question_id(ARE_YOU_THERE));
                self.given_up.cancel();
                return;
            }
        }
    }

    async fn stays_silent(&self, silence: Silence) -> bool {
        let before = self.heard.get();
        // What is long may be on a slow way to the peer, and the question behind it.
        let is_busy = self.outgoings.was_busy(silence.other);
        let patience = if self.is_kiln.get() && !is_busy { silence.kiln } else { silence.other };
        for _ in 0..PIECES {
            sleep(patience / PIECES).await;
            if self.heard.get() != before {
                return false;
            }
        }
        true
    }

    /// Waits until the peer was given up, and has had time to take what was to be sent.
    pub(super) fn given_up(&self) -> impl Future<Output = ()> + 'static {
        let given_up = self.given_up.clone();
        async move {
            given_up.cancelled().await;
            sleep(FAREWELL).await;
        }
    }

    /// Answers a peer that asks whether we are there, and takes note if it gives us up. Returns whether that is what the message does.
    pub(super) fn answers(&self, message: rpc::Reader<'_>) -> Result<bool, capnp::Error> {
        let (question, gives_up) = match message.which() {
            Ok(rpc::Bootstrap(bootstrap)) => (bootstrap?.get_question_id(), false),
            Ok(rpc::Finish(finish)) => (finish?.get_question_id(), true),
            _ => return Ok(false),
        };
        if question != ARE_YOU_THERE {
            return Ok(false);
        }
        if gives_up {
            self.link.set_silent();
            return Ok(true);
        }
        // Who asks again has the answer: others would have us keep answers without end.
        if self.answer.borrow().strong_count() > 0 {
            return Err(capnp::Error::overloaded("the peer asks whether we are there, and does not listen".to_owned()));
        }
        *self.answer.borrow_mut() = self.send(|root| {
            let mut answer = root.init_return();
            answer.set_answer_id(ARE_YOU_THERE);
            answer.set_no_finish_needed(true);
            let mut exception = answer.init_exception();
            exception.set_type(exception::Type::Unimplemented);
            exception.set_reason(capnp::text::Reader::from(HERE));
        });
        Ok(true)
    }

    /// Takes the answer to our question. Returns whether that is what the message is.
    pub(super) fn is_answered(&self, message: rpc::Reader<'_>) -> Result<bool, capnp::Error> {
        let Ok(rpc::Return(answer)) = message.which() else { return Ok(false) };
        let answer = answer?;
        if answer.get_answer_id() != ARE_YOU_THERE || !self.asked.replace(false) {
            return Ok(false);
        }
        if let return_::Exception(exception) = answer.which()? {
            self.is_kiln.set(exception?.get_reason()?.as_bytes() == HERE);
        }
        if !answer.get_no_finish_needed() {
            let _ = self.send(|root| {
                let mut finish = root.init_finish();
                finish.set_question_id(ARE_YOU_THERE);
                finish.set_release_result_caps(true);
            });
        }
        Ok(true)
    }

    fn send(&self, write: impl FnOnce(rpc::Builder<'_>)) -> Weak<Heap> {
        // As short as what is in it.
        let mut message: Heap = message::Builder::new(message::HeapAllocator::new().first_segment_words(32));
        write(message.init_root());
        let message = Rc::new(message);
        let sent = Rc::downgrade(&message);
        self.outgoings.send(message);
        sent
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, copy_bidirectional, duplex};
    use tokio::task::{LocalSet, spawn_local};
    use tokio::time::{Duration, timeout};
    use tokio_util::compat::TokioAsyncReadCompatExt as _;

    use super::super::{Connection, Limits, Services, converse_over};
    use super::*;
    use crate::capability::Capability;
    use crate::error::Error;
    use crate::interface::{Answer, answer};
    use crate::uri::ServiceId;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Runs a test in time that passes at once.
    async fn locally(test: impl Future<Output = ()>) {
        LocalSet::new().run_until(test).await;
    }

    /// Returns how many seconds pass until the connection ends, if it does so within an hour.
    async fn seconds_until_it_ends(connection: &Connection) -> Option<u64> {
        let since = Instant::now();
        timeout(HOUR, connection.closed()).await.ok().map(|()| since.elapsed().as_secs())
    }

    /// A vat without services, which watches whoever asks for one.
    struct Nothing(Option<Silence>, Rc<RefCell<Option<Link>>>);

    impl Services for Nothing {
        fn restore(&self, _: &ServiceId, link: &Link) -> Answer<Capability> {
            self.0.into_iter().for_each(|silence| link.watch(silence));
            *self.1.borrow_mut() = Some(link.clone());
            answer(Err(Error::failed("there is nothing")))
        }
    }

    fn messages(write: impl FnOnce(rpc::Builder<'_>)) -> Vec<u8> {
        let mut message: Heap = message::Builder::new_default();
        write(message.init_root());
        capnp::serialize::write_message_to_words(&message)
    }

    /// Reads the next message of a vat as a line.
    async fn hear(peer: &mut DuplexStream) -> String {
        let options = capnp::message::ReaderOptions::new();
        let read = capnp_futures::serialize::read_message(peer.compat(), options).await.expect("a message");
        let root: rpc::Reader<'_> = read.get_root().expect("a message");
        match root.which().expect("it is known") {
            rpc::Bootstrap(it) => format!("bootstrap {}", it.expect("one").get_question_id()),
            rpc::Return(it) => format!("return {}", it.expect("one").get_answer_id()),
            rpc::Finish(it) => format!("finish {}", it.expect("one").get_question_id()),
            _ => "something else".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_vat_of_kilns_is_left_alone_for_as_long_as_it_lives_and_given_up_soon_when_it_is_stopped() {
        locally(async {
            let (near, mut way) = duplex(1 << 16);
            let (mut on, far) = duplex(1 << 16);
            spawn_local(converse_over(far, Nothing(None, Rc::default()), Limits::default()));
            let stop = CancellationToken::new();
            let stopped = stop.clone();
            spawn_local(async move {
                tokio::select! {
                    _ = copy_bidirectional(&mut way, &mut on) => {}
                    () = stopped.cancelled() => std::future::pending().await,
                }
            });
            // It never names a service, so it may not stay by another rule.
            let limits = Limits { handshake: HOUR * 2, ..Limits::default() };
            let connection = Connection::over(Box::new(near), limits);
            assert_eq!(timeout(Duration::from_secs(15), connection.closed()).await.ok(), None);
            stop.cancel();
            let seconds = seconds_until_it_ends(&connection).await.expect("it ends");
            assert!((4..=8).contains(&seconds), "{seconds}");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn any_other_vat_has_more_time_and_is_asked_as_it_expects() {
        locally(async {
            let (near, mut peer) = duplex(1 << 16);
            let connection = Connection::over(Box::new(near), Limits::default());
            for _ in 0..100 {
                assert_eq!(hear(&mut peer).await, format!("bootstrap {ARE_YOU_THERE}"));
                let answer = messages(|root| {
                    let mut answer = root.init_return();
                    answer.set_answer_id(ARE_YOU_THERE);
                    answer.init_exception().set_reason("Unknown persistent service ID");
                });
                peer.write_all(&answer).await.expect("it is there");
                assert_eq!(hear(&mut peer).await, format!("finish {ARE_YOU_THERE}"));
            }
            let seconds = seconds_until_it_ends(&connection).await.expect("it ends");
            assert!((60..=80).contains(&seconds), "{seconds}");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_anything_is_not_asked() {
        locally(async {
            let (near, mut peer) = duplex(1 << 16);
            let connection = Connection::over(Box::new(near), Limits { handshake: HOUR, ..Limits::default() });
            assert_eq!(hear(&mut peer).await, format!("bootstrap {ARE_YOU_THERE}"));
            // The first bytes of a long message.
            peer.write_all(&[0, 0, 0, 0, 255, 0, 0, 0]).await.expect("it is there");
            for _ in 0..50 {
                sleep(Duration::from_secs(1)).await;
                peer.write_all(&[0]).await.expect("it is there");
            }
            assert!(timeout(Duration::from_secs(2), peer.read_u8()).await.is_err(), "it was asked");
            drop(connection);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_nothing_is_given_up_as_soon() {
        locally(async {
            let second = Duration::from_secs(1);
            let silence = Silence { quiet: second * 3, kiln: second * 4, other: second * 4 };
            let (near, _peer) = duplex(16);
            let connection = Connection::over(Box::new(near), Limits { silence, ..Limits::default() });
            assert_eq!(seconds_until_it_ends(&connection).await, Some(8));
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_connected_to_us_is_watched_when_that_is_wanted() {
        let second = Duration::from_secs(1);
        let silence = Silence { quiet: second * 30, kiln: second * 60, other: second * 60 };
        for (watched, ends) in [(None, None), (Some(silence), Some(90))] {
            locally(async {
                let (mut peer, far) = duplex(1 << 16);
                let link = Rc::<RefCell<_>>::default();
                let limits = Limits { handshake: HOUR * 2, ..Limits::default() };
                let vat = spawn_local(converse_over(far, Nothing(watched, Rc::clone(&link)), limits));
                let ask = messages(|root| root.init_bootstrap().set_question_id(0));
                peer.write_all(&ask).await.expect("it is there");
                assert_eq!(hear(&mut peer).await, "return 0");
                let since = Instant::now();
                let ended = timeout(HOUR, vat).await.ok().map(|_| since.elapsed().as_secs());
                assert_eq!(ended, ends);
                assert_eq!(link.borrow().as_ref().map(Link::is_silent), Some(ends.is_some()));
            })
            .await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_says_so_and_who_hears_that_later_knows_that_nobody_was_killed() {
        locally(async {
            // What goes to the vat is kept until it ends, as for one that is stopped.
            let (near, mut way) = duplex(1 << 16);
            let connection = Connection::over(Box::new(near), Limits { handshake: HOUR, ..Limits::default() });
            let closed = connection.closed();
            let mut kept = Vec::new();
            way.read_to_end(&mut kept).await.expect("it ends");
            closed.await;
            let ends =
                |how: fn(rpc::Builder<'_>)| [messages(|root| root.init_bootstrap().set_question_id(0)), messages(how)];
            let killed = ends(|root| root.init_finish().set_question_id(0)).concat();
            let cut = [messages(|root| root.init_bootstrap().set_question_id(0)), kept].concat();
            for (said, is_silent) in [(killed, false), (cut, true)] {
                let (mut peer, far) = duplex(1 << 16);
                let link = Rc::<RefCell<_>>::default();
                let vat = spawn_local(converse_over(far, Nothing(None, Rc::clone(&link)), Limits::default()));
                peer.write_all(&said).await.expect("it is there");
                drop(peer);
                vat.await.expect("it ends");
                assert_eq!(link.borrow().as_ref().map(Link::is_silent), Some(is_silent));
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_stranger_that_asks_is_answered_and_is_a_stranger_still() {
        locally(async {
            let (mut peer, far) = duplex(1 << 16);
            let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
            let vat = spawn_local(converse_over(far, Nothing(None, Rc::default()), limits));
            let ask = messages(|root| root.init_bootstrap().set_question_id(ARE_YOU_THERE));
            for _ in 0..1000 {
                peer.write_all(&ask).await.expect("it is there");
                assert_eq!(hear(&mut peer).await, format!("return {ARE_YOU_THERE}"));
            }
            vat.await.expect("it ends");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_again_and_again_and_takes_no_answer_is_cut_off() {
        locally(async {
            // Less than an answer has room on the way.
            let (near, mut far) = duplex(64);
            let limits = Limits { handshake: HOUR * 2, stall: HOUR * 2, ..Limits::default() };
            let vat = spawn_local(converse_over(near, Nothing(None, Rc::default()), limits));
            let question = messages(|root| root.init_bootstrap().set_question_id(ARE_YOU_THERE));
            while far.write_all(&question).await.is_ok() && !vat.is_finished() {}
            timeout(HOUR, vat).await.expect("it has ended").expect("without a panic");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_ends_after_a_silence_was_cut_off_and_who_ends_without_one_has_gone() {
        locally(async {
            for (silence, cut) in [(1, false), (4, false), (6, true), (20, true)] {
                let (near, mut far) = duplex(1 << 16);
                let link = Rc::default();
                // It may be a stranger for so long.
                let limits = Limits { handshake: HOUR, ..Limits::default() };
                let vat = spawn_local(converse_over(near, Nothing(None, Rc::clone(&link)), limits));
                far.write_all(&messages(|root| root.init_bootstrap().set_question_id(0))).await.expect("it is there");
                assert_eq!(hear(&mut far).await, "return 0");
                sleep(Duration::from_secs(silence)).await;
                drop(far);
                vat.await.expect("without a panic");
                let link: Option<Link> = link.borrow().clone();
                assert_eq!(link.expect("it asked for a service").is_silent(), cut, "{silence}");
            }
        })
        .await;
    }
}
