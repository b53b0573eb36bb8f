//! Messages between capnp-rpc and a stream: many services instead of one, and bounds.
//!
//! * An incoming `Bootstrap` for an id becomes a `Call` of `Restorer.restore` under the same question, so its answer, and
//!   calls pipelined on it, work as if capnp-rpc knew ids. The target of that call is the answer to a `Bootstrap` of
//!   our own, which is put in front of the first; its `Return` is kept from the peer.
//! * An outgoing `Bootstrap` gets the id it is for.
//! * capnp-rpc puts "remote exception: " before what a peer says. What is passed on is as it was said.
//! * A peer that asks without listening is not read from until it does.
//! * One that is silent is asked whether it is there, and read from no more if it is not: see [`Pulse`].
//! * Nothing reaches capnp-rpc that [`Peer`] does not let pass.
//!
//! A peer that pipelines calls on the number of our question reaches `restore`, and no more than by a `Bootstrap`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::Promise;
use capnp::message;
use capnp_rpc::rpc_capnp::{bootstrap, cap_descriptor, exception, message as rpc, payload, resolve, return_};
use futures::StreamExt as _;
use futures::channel::mpsc;
use futures::future::{FutureExt as _, LocalBoxFuture, Shared as SharedFuture, TryFutureExt as _};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, BufWriter, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::compat::{TokioAsyncReadCompatExt as _, TokioAsyncWriteCompatExt as _};

use super::limits::Limits;
use super::link::Link;
use super::peer::{OUR_QUESTION, Peer, Side};
use super::silence::Pulse;
use super::stream::{Bytes, EndsQuietly, is_end};
use crate::error::as_said;
use crate::generated::vat_capnp::restorer;
use crate::uri::ServiceId;

/// `restorer::Client`'s id, as the schema has it.
const RESTORER: u64 = <restorer::Client as capnp::traits::HasTypeId>::TYPE_ID;

/// How long what a peer said may take to be read after it went.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(super) type Heap = message::Builder<message::HeapAllocator>;
type Reader = BufReader<EndsQuietly<ReadHalf<Box<dyn Bytes>>>>;

/// What reads a connection.
struct Reading {
    reader: Reader,
    /// Is ready when the peer is given up since nothing comes.
    silence: LocalBoxFuture<'static, ()>,
}

/// A connection's state, which its pieces share.
struct Shared {
    /// `None` while a message is being read.
    reading: RefCell<Option<Reading>>,
    outgoings: Outgoings,
    unsent: Rc<Unsent>,
    pulse: Rc<Pulse>,
    stall: Duration,
    peer: Peer,
    /// What to deliver before anything is read.
    stashed: RefCell<VecDeque<Heap>>,
    restorer_is_known: Cell<bool>,
    /// For whom the next `Bootstrap` is that is sent.
    wanted: RefCell<ServiceId>,
}

/// Messages that are to be sent.
#[derive(Clone)]
pub(super) struct Outgoings {
    queue: mpsc::UnboundedSender<Rc<Heap>>,
    unsent: Rc<Unsent>,
}

impl Outgoings {
    /// After the connection's end nothing is sent.
    pub(super) fn send(&self, message: Rc<Heap>) {
        self.unsent.add(size(&message));
        let _ = self.queue.unbounded_send(message);
    }

    /// Returns whether there is, or was so long ago at most, much that waits to be sent.
    pub(super) fn was_busy(&self, ago: Duration) -> bool {
        self.unsent.is_much() || self.unsent.was_much.get().is_some_and(|then| then.elapsed() < ago)
    }
}

/// Bytes that wait to be sent.
struct Unsent {
    bytes: Cell<usize>,
    limit: usize,
    changed: Notify,
    /// When there was last [`MUCH`] to be sent.
    was_much: Cell<Option<Instant>>,
}

/// So many bytes take more than a second on a slow way.
const MUCH: usize = 64 << 10;

impl Unsent {
    fn is_much(&self) -> bool {
        self.bytes.get() > MUCH
    }

    fn add(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
        if self.bytes.get() > self.most() {
            self.changed.notify_waiters();
        }
    }

    fn remove(&self, bytes: usize) {
        if self.is_much() {
            self.was_much.set(Some(Instant::now()));
        }
        self.bytes.set(self.bytes.get().saturating_sub(bytes));
        self.changed.notify_waiters();
    }

    /// Answers to what was asked already can become more than `limit`.
    fn most(&self) -> usize {
        self.limit.saturating_mul(4)
    }

    async fn until(&self, reached: impl Fn(usize) -> bool) {
        loop {
            let changed = self.changed.notified();
            if reached(self.bytes.get()) {
                return;
            }
            changed.await;
        }
    }
}

/// The network that capnp-rpc is given: one connection.
pub(super) struct Network {
    shared: Rc<Shared>,
    accepted: bool,
    writing: SharedFuture<LocalBoxFuture<'static, Result<(), capnp::Error>>>,
}

/// Sets for whom the next `Bootstrap` is.
pub(super) struct Wanted(Rc<Shared>);

impl Wanted {
    pub(super) fn set(&self, id: &ServiceId) {
        *self.0.wanted.borrow_mut() = id.clone();
    }
}

impl Network {
    pub(super) fn new(stream: Box<dyn Bytes>, side: Side, limits: Limits, link: Link) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (sender, queue) = mpsc::unbounded();
        let unsent = Rc::new(Unsent {
            bytes: Cell::new(0),
            limit: limits.unsent,
            changed: Notify::new(),
            was_much: Cell::new(None),
        });
        let outgoings = Outgoings { queue: sender, unsent: Rc::clone(&unsent) };
        if side == Side::Opened {
            link.watch(limits.silence);
        }
        let pulse = Rc::new(Pulse::new(link, outgoings.clone()));
        let sent = write_all(writer, queue, Rc::clone(&unsent), limits.stall);
        let given_up = pulse.given_up();
        let writing = async move {
            tokio::select! {
                sent = sent => sent,
                () = given_up => Ok(()),
            }
        };
        let writing = writing.boxed_local().shared();
        let reader = BufReader::with_capacity(32 << 10, EndsQuietly { stream: reader, pulse: Rc::clone(&pulse) });
        let silence = Rc::clone(&pulse).silence().boxed_local();
        let shared = Rc::new(Shared {
            reading: RefCell::new(Some(Reading { reader, silence })),
            outgoings,
            unsent,
            pulse,
            stall: limits.stall,
            peer: Peer::new(side, limits),
            stashed: RefCell::default(),
            restorer_is_known: Cell::new(false),
            wanted: RefCell::default(),
        });
        Self { shared, accepted: false, writing }
    }

    pub(super) fn wanted(&self) -> Wanted {
        Wanted(Rc::clone(&self.shared))
    }

    pub(super) fn pulse(&self) -> Rc<Pulse> {
        Rc::clone(&self.shared.pulse)
    }
}

impl capnp_rpc::VatNetwork<()> for Network {
    fn connect(&mut self, _: ()) -> Option<Box<dyn capnp_rpc::Connection<()>>> {
        Some(Box::new(Connection(Rc::clone(&self.shared))))
    }

    fn accept(&mut self) -> Promise<Box<dyn capnp_rpc::Connection<()>>, capnp::Error> {
        if std::mem::replace(&mut self.accepted, true) {
            return Promise::from_future(std::future::pending());
        }
        Promise::ok(Box::new(Connection(Rc::clone(&self.shared))))
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), capnp::Error> {
        Promise::from_future(self.writing.clone())
    }
}

/// Sends messages until nobody can send any more, several at once if they are there.
async fn write_all(
    writer: WriteHalf<Box<dyn Bytes>>,
    mut queue: mpsc::UnboundedReceiver<Rc<Heap>>,
    unsent: Rc<Unsent>,
    stall: Duration,
) -> Result<(), capnp::Error> {
    let mut writer = BufWriter::with_capacity(32 << 10, writer).compat_write();
    while let Some(message) = queue.next().await {
        let mut next = Some(message);
        while let Some(message) = next.take() {
            let written = capnp_futures::serialize::write_message(&mut writer, &*message);
            if !is_sent(timeout(stall, written).await) {
                return hear_out(queue, &unsent).await;
            }
            unsent.remove(size(&message));
            next = queue.try_recv().ok();
        }
        let flushed = writer.get_mut().flush().map_err(capnp::Error::from);
        if !is_sent(timeout(stall, flushed).await) {
            return hear_out(queue, &unsent).await;
        }
    }
    // The peer may be gone already.
    let _ = timeout(stall, writer.get_mut().shutdown()).await;
    Ok(())
}

/// Sends nothing any more, and waits until what the peer said before it went is read: when this ends, so does the connection.
async fn hear_out(mut queue: mpsc::UnboundedReceiver<Rc<Heap>>, unsent: &Unsent) -> Result<(), capnp::Error> {
    let read = async {
        loop {
            unsent.remove(usize::MAX);
            if queue.next().await.is_none() {
                return;
            }
        }
    };
    let _ = timeout(LAST_WORDS, read).await;
    Ok(())
}

/// Returns true if something was sent. If not, whoever reads will see that the peer is gone; capnp-rpc would print an error.
fn is_sent(result: Result<Result<(), capnp::Error>, Elapsed>) -> bool {
    if result.is_err() {
        tracing::info!("a peer takes nothing");
    }
    matches!(result, Ok(Ok(())))
}

/// Returns the size of a message in bytes.
fn size(message: &Heap) -> usize {
    message.size_in_words() * 8
}

struct Connection(Rc<Shared>);

impl capnp_rpc::Connection<()> for Connection {
    fn get_peer_vat_id(&self) {}

    fn new_outgoing_message(&mut self, first_segment_word_size: u32) -> Box<dyn capnp_rpc::OutgoingMessage> {
        let allocator = message::HeapAllocator::new().first_segment_words(first_segment_word_size);
        Box::new(Outgoing { message: message::Builder::new(allocator), shared: Rc::clone(&self.0) })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn capnp_rpc::IncomingMessage>>, capnp::Error> {
        if let Some(stashed) = self.0.stashed.borrow_mut().pop_front() {
            return Promise::ok(Some(Box::new(Made(stashed))));
        }
        let shared = Rc::clone(&self.0);
        Promise::from_future(async move {
            let Some(mut reading) = shared.reading.borrow_mut().take() else {
                return Err(capnp::Error::failed("one message is read at a time".to_owned()));
            };
            loop {
                let Some(message) = shared.read(&mut reading).await? else { return Ok(None) };
                if let Some(message) = shared.incoming(message)? {
                    *shared.reading.borrow_mut() = Some(reading);
                    return Ok(Some(message));
                }
            }
        })
    }

    fn shutdown(&mut self, _: Result<(), capnp::Error>) -> Promise<(), capnp::Error> {
        self.0.outgoings.queue.close_channel();
        // Waits for nothing: the network's own future is done when everything is sent.
        Promise::ok(())
    }
}

type Received = message::Reader<capnp::serialize::OwnedSegments>;

impl Shared {
    /// Reads the next message, or returns `None` when the peer is gone.
    async fn read(&self, reading: &mut Reading) -> Result<Option<Received>, capnp::Error> {
        // Answers that the peer does not take are its own questions'.
        let ready = async {
            self.peer.may_speak().await;
            self.unsent.until(|bytes| bytes <= self.unsent.limit || bytes > self.unsent.most()).await;
        };
        self.in_time(ready).await?;
        let Reading { reader, silence } = reading;
        tokio::select! {
            // What has come is read first, however late.
            biased;
            message = self.next(reader) => message,
            () = silence => Ok(None),
        }
    }

    async fn next(&self, reader: &mut Reader) -> Result<Option<Received>, capnp::Error> {
        let begins = async {
            tokio::select! {
                biased;
                () = self.unsent.until(|bytes| bytes > self.unsent.most()) => {
                    Err(capnp::Error::overloaded("the peer takes nothing of what it asked for".to_owned()))
                }
                excess = self.peer.overdraws() => Err(excess),
                begun = reader.fill_buf() => match begun {
                    Ok(begun) => Ok(!begun.is_empty()),
                    Err(error) if is_end(&error) => Ok(false),
                    Err(error) => Err(error.into()),
                }
            }
        };
        if !self.in_time(begins).await?? {
            return Ok(None);
        }
        let message = capnp_futures::serialize::try_read_message(reader.compat(), self.peer.reader());
        match self.in_time(timeout(self.stall, message)).await? {
            Err(_) => Err(capnp::Error::disconnected("a message does not come to its end".to_owned())),
            Ok(Err(error)) if error.kind == capnp::ErrorKind::PrematureEndOfFile => Ok(None),
            // Whoever waits for something of this peer is told that it is gone.
            Ok(Err(error)) => Err(capnp::Error::disconnected(format!("the peer sent no message: {error}"))),
            Ok(Ok(message)) => Ok(message),
        }
    }

    /// Waits for `future`, for as long as the peer is to be waited for.
    async fn in_time<T>(&self, future: impl Future<Output = T>) -> Result<T, capnp::Error> {
        match self.peer.deadline() {
            None => Ok(future.await),
            Some(deadline) => timeout_at(deadline, future)
                .await
                .map_err(|_| capnp::Error::disconnected("the peer took too long to begin".to_owned())),
        }
    }

    /// Looks at a message before capnp-rpc does. Returns what it gets to see, if anything.
    fn incoming(&self, message: Received) -> Result<Option<Box<dyn capnp_rpc::IncomingMessage>>, capnp::Error> {
        let root = message.get_root::<rpc::Reader<'_>>()?;
        if self.pulse.answers(root)? {
            return Ok(None);
        }
        self.peer.says(root, message.size_in_words() * 8)?;
        if self.pulse.is_answered(root)? {
            return Ok(None);
        }
        match root.which() {
            Ok(rpc::Bootstrap(bootstrap)) => Ok(Some(Box::new(Made(self.restore(bootstrap?)?)))),
            _ => Ok(Some(Box::new(Given(message)))),
        }
    }

    /// Returns what to deliver for a `Bootstrap`.
    fn restore(&self, bootstrap: bootstrap::Reader<'_>) -> Result<Heap, capnp::Error> {
        let object = bootstrap.get_deprecated_object_id();
        // Anything but a text is no id of ours.
        let id = object.get_as::<capnp::text::Reader<'_>>().map(|text| text.as_bytes()).unwrap_or_default();
        let mut call_message = message::Builder::new_default();
        let mut call = call_message.init_root::<rpc::Builder<'_>>().init_call();
        call.set_question_id(bootstrap.get_question_id());
        call.set_interface_id(RESTORER);
        call.set_method_id(0);
        call.reborrow().init_target().init_promised_answer().set_question_id(OUR_QUESTION);
        call.init_params().get_content().init_as::<restorer::restore_params::Builder<'_>>().set_id(id);
        if self.restorer_is_known.replace(true) {
            return Ok(call_message);
        }
        self.stashed.borrow_mut().push_back(call_message);
        let mut own = message::Builder::new_default();
        own.init_root::<rpc::Builder<'_>>().init_bootstrap().set_question_id(OUR_QUESTION);
        Ok(own)
    }

    /// Has the references in the answer to our question released, as their receiver does. The answer itself is enough for us, nobody can
    /// call them, and the peer's are numbered from 0.
    fn let_go(&self, results: payload::Reader<'_>) -> Result<(), capnp::Error> {
        for reference in results.get_cap_table()? {
            if let cap_descriptor::SenderHosted(id) = reference.which()? {
                let mut message = message::Builder::new_default();
                let mut release = message.init_root::<rpc::Builder<'_>>().init_release();
                release.set_id(id);
                release.set_reference_count(1);
                self.stashed.borrow_mut().push_front(message);
            }
        }
        Ok(())
    }

    /// Changes a message that is about to be sent. Returns false if it is not to be.
    fn outgoing(&self, message: &mut Heap) -> Result<bool, capnp::Error> {
        let root = message.get_root::<rpc::Builder<'_>>()?;
        match root.which()? {
            rpc::Return(answer) => {
                let answer = answer?;
                if answer.reborrow_as_reader().get_answer_id() == OUR_QUESTION {
                    if let return_::Results(results) = answer.into_reader().which()? {
                        self.let_go(results?)?;
                    }
                    return Ok(false);
                }
                if let return_::Exception(exception) = answer.which()? {
                    say_it_as_it_was_said(exception?)?;
                }
            }
            rpc::Resolve(resolve) => {
                if let resolve::Exception(exception) = resolve?.which()? {
                    say_it_as_it_was_said(exception?)?;
                }
            }
            rpc::Bootstrap(bootstrap) => {
                let id = std::mem::take(&mut *self.wanted.borrow_mut());
                bootstrap?.init_deprecated_object_id().set_as(capnp::text::Reader::from(id.0.as_slice()))?;
            }
            _ => {}
        }
        self.peer.is_told(message.get_root_as_reader()?)?;
        Ok(true)
    }
}

fn say_it_as_it_was_said(mut exception: exception::Builder<'_>) -> Result<(), capnp::Error> {
    let reason = exception.reborrow_as_reader().get_reason()?.to_string()?;
    let said = as_said(&reason);
    if said != reason {
        exception.set_reason(said);
    }
    Ok(())
}

/// A message on its way out.
struct Outgoing {
    message: Heap,
    shared: Rc<Shared>,
}

impl capnp_rpc::OutgoingMessage for Outgoing {
    fn get_body(&mut self) -> capnp::Result<capnp::any_pointer::Builder<'_>> {
        self.message.get_root()
    }

    fn get_body_as_reader(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.message.get_root_as_reader()
    }

    fn send(mut self: Box<Self>) -> (Promise<(), capnp::Error>, Rc<Heap>) {
        let verdict = self.shared.outgoing(&mut self.message);
        let message = Rc::new(self.message);
        if matches!(verdict, Ok(true)) {
            self.shared.outgoings.send(Rc::clone(&message));
        }
        (verdict.map_or_else(Promise::err, |_| Promise::ok(())), message)
    }

    fn take(self: Box<Self>) -> Heap {
        self.message
    }

    fn size_in_words(&self) -> usize {
        self.message.size_in_words()
    }
}

/// A message as it came.
struct Given(Received);

impl capnp_rpc::IncomingMessage for Given {
    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.0.get_root()
    }
}

/// A message of our own.
struct Made(Heap);

impl capnp_rpc::IncomingMessage for Made {
    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.0.get_root_as_reader()
    }
}
