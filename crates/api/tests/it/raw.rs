//! A peer that says what it is told to, message by message.

use std::time::Duration;

use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::serialize::OwnedSegments;
use capnp_rpc::rpc_capnp::{message, message_target};
use kiln_api::{Address, CapabilityUri};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::compat::TokioAsyncReadCompatExt as _;

/// A message that came.
pub(crate) struct Heard(capnp::message::Reader<OwnedSegments>);

impl Heard {
    pub(crate) fn root(&self) -> message::Reader<'_> {
        self.0.get_root().expect("a message")
    }

    /// Says in short what it is.
    pub(crate) fn summary(&self) -> String {
        use capnp_rpc::rpc_capnp::{cap_descriptor, resolve, return_};
        match self.root().which().expect("a known message") {
            message::Return(answer) => {
                let answer = answer.expect("it is there");
                let what = match answer.which().expect("a known answer") {
                    return_::Results(_) => "results".to_owned(),
                    return_::Exception(exception) => reason(exception.expect("it is there")),
                    return_::Canceled(()) => "cancelled".to_owned(),
                    _ => "something else".to_owned(),
                };
                format!("return {}: {what}", answer.get_answer_id())
            }
            message::Resolve(resolve) => {
                let resolve = resolve.expect("it is there");
                let what = match resolve.which().expect("a known end") {
                    resolve::Exception(exception) => reason(exception.expect("it is there")),
                    resolve::Cap(cap) => match cap.expect("it is there").which().expect("a known kind") {
                        cap_descriptor::SenderHosted(_) => "an object".to_owned(),
                        _ => "something else".to_owned(),
                    },
                };
                format!("resolve: {what}")
            }
            message::Release(release) => format!("release {}", release.expect("it is there").get_reference_count()),
            message::Finish(finish) => format!("finish {}", finish.expect("it is there").get_question_id()),
            message::Call(call) => {
                let call = call.expect("it is there");
                format!("call {:#x} {}", call.get_interface_id(), call.get_method_id())
            }
            message::Unimplemented(_) => "unimplemented".to_owned(),
            message::Abort(exception) => format!("abort: {}", reason(exception.expect("it is there"))),
            message::Bootstrap(_) => "bootstrap".to_owned(),
            _ => "something else".to_owned(),
        }
    }
}

fn reason(exception: capnp_rpc::rpc_capnp::exception::Reader<'_>) -> String {
    use capnp_rpc::rpc_capnp::exception::Type;
    let text = exception.get_reason().expect("a text").to_string().expect("UTF-8");
    match exception.get_type().expect("a known kind") {
        Type::Failed | Type::Overloaded => text,
        kind => format!("{kind:?}: {text}"),
    }
}

/// What a call is on.
pub(crate) enum On {
    /// An export of the other side.
    Export(u32),
    /// What an answer is, or has at a pointer.
    Answer(u32, Option<u16>),
}

impl On {
    pub(crate) fn write(&self, mut target: message_target::Builder<'_>) {
        match *self {
            On::Export(id) => target.set_imported_cap(id),
            On::Answer(question, pointer) => {
                let mut answer = target.init_promised_answer();
                answer.set_question_id(question);
                if let Some(pointer) = pointer {
                    answer.init_transform(1).get(0).set_get_pointer_field(pointer);
                }
            }
        }
    }
}

pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    /// Connects to a host that does not encrypt.
    pub(crate) async fn connect(uri: &CapabilityUri) -> Self {
        let Address::Tcp { host, port } = uri.addresses.first() else { panic!("it is on TCP") };
        Self(TcpStream::connect((host.as_str(), *port)).await.expect("it listens"))
    }

    pub(crate) async fn bytes(&mut self, bytes: &[u8]) {
        // A peer may have gone away before all of it.
        let _ = self.0.write_all(bytes).await;
    }

    pub(crate) async fn say(&mut self, write: impl FnOnce(message::Builder<'_>)) {
        self.bytes(&words(write)).await;
    }

    pub(crate) async fn bootstrap(&mut self, question: u32, id: &[u8]) {
        self.say(|root| bootstrap(root, question, id)).await;
    }

    /// Calls a method without arguments.
    pub(crate) async fn call(&mut self, question: u32, on: On, interface: u64, method: u16) {
        self.say(|root| call(root, question, &on, interface, method)).await;
    }

    pub(crate) async fn finish(&mut self, question: u32) {
        self.say(|root| root.init_finish().set_question_id(question)).await;
    }

    /// Returns the next message, or `None` when the other side is gone.
    pub(crate) async fn hear(&mut self) -> Option<Heard> {
        let message = capnp_futures::serialize::try_read_message((&mut self.0).compat(), ReaderOptions::new());
        tokio::time::timeout(Duration::from_secs(20), message).await.expect("there is an answer").ok()?.map(Heard)
    }

    /// Returns what all messages until the other side is gone are.
    pub(crate) async fn hear_all(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(heard) = self.hear().await {
            all.push(heard.summary());
        }
        all
    }

    /// Returns when the other side is gone.
    pub(crate) async fn gone(&mut self) {
        let mut buffer = vec![0; 64 << 10];
        let end = async { while !matches!(self.0.read(&mut buffer).await, Ok(0) | Err(_)) {} };
        tokio::time::timeout(Duration::from_secs(20), end).await.expect("it goes away");
    }
}

/// Returns the numbers of the objects in an answer.
pub(crate) fn references(heard: &Heard) -> Vec<u32> {
    use capnp_rpc::rpc_capnp::{cap_descriptor, return_};
    let Ok(message::Return(answer)) = heard.root().which() else { panic!("no answer") };
    let Ok(return_::Results(results)) = answer.expect("it is there").which() else { panic!("no results") };
    let table = results.expect("they are there").get_cap_table().expect("it is there");
    let id = |reference: cap_descriptor::Reader<'_>| match reference.which() {
        Ok(cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id)) => id,
        _ => panic!("no object"),
    };
    table.iter().map(id).collect()
}

pub(crate) fn bootstrap(root: message::Builder<'_>, question: u32, id: &[u8]) {
    let mut bootstrap = root.init_bootstrap();
    bootstrap.set_question_id(question);
    bootstrap.init_deprecated_object_id().set_as(capnp::text::Reader::from(id)).expect("a text");
}

pub(crate) fn call(root: message::Builder<'_>, question: u32, on: &On, interface: u64, method: u16) {
    let mut call = root.init_call();
    call.set_question_id(question);
    call.set_interface_id(interface);
    call.set_method_id(method);
    on.write(call.reborrow().init_target());
    call.init_params();
}

/// Returns a message as it goes over the wire.
pub(crate) fn words(write: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut message: Builder<HeapAllocator> = Builder::new_default();
    write(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}
