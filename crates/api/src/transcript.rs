//! What two vats said to each other, in words: for tests that compare conversations.
//!
//! Numbers of questions, references and objects are each side's own affair, and so is the order of answers; they are left out.

use std::collections::HashMap;
use std::fmt;

use capnp::Error;
use capnp::any_pointer::Reader as Any;
use capnp::message::{Reader, ReaderOptions};
use capnp::serialize::OwnedSegments;
use capnp_rpc::rpc_capnp::{cap_descriptor, message, payload, resolve, return_};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::error::as_said;
use crate::generated::ocluster_capnp::{
    admin, job, pool_admin, progress, queue, registration, submission, ticket, worker,
};
use crate::generated::vat_capnp::persistent;

/// A question, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The method and its arguments.
    pub asked: String,
    /// The results, or why there are none; `None` if there was no answer.
    pub answered: Option<String>,
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.asked, self.answered.as_deref().unwrap_or("nothing"))
    }
}

/// Returns the questions that are in `asking`, in their order, with their answers from `answering`, which are the bytes of both directions
/// of a connection. A message that is cut off at the end is left out.
///
/// # Errors
///
/// If they are no messages of Cap'n Proto, or there is an answer without a question.
pub fn transcript(asking: &[u8], answering: &[u8]) -> Result<Vec<Exchange>, Error> {
    let mut exchanges = Vec::new();
    let mut ends = HashMap::new();
    let answering = messages(answering)?;
    for message in &answering {
        if let message::Resolve(resolve) = root(message)?.which()? {
            let resolve = resolve?;
            let end = match resolve.which()? {
                resolve::Cap(cap) => reference(cap?, &HashMap::new())?,
                resolve::Exception(exception) => reason(exception?)?,
            };
            ends.insert(resolve.get_promise_id(), end);
        }
    }
    // The answers to one number come in the order of its questions: it is used again only then.
    let mut open: HashMap<u32, Vec<(usize, Option<Method>)>> = HashMap::new();
    for message in messages(asking)? {
        let (question, asked, method) = match root(&message)?.which()? {
            message::Bootstrap(bootstrap) => (bootstrap?.get_question_id(), "bootstrap".to_owned(), None),
            message::Call(call) => {
                let call = call?;
                let method = method(call.get_interface_id(), call.get_method_id());
                let asked = match &method {
                    None => format!("{:#x}.{}", call.get_interface_id(), call.get_method_id()),
                    Some(method) => {
                        format!("{}{}", method.name, contents(call.get_params()?, method.params, &HashMap::new())?)
                    }
                };
                (call.get_question_id(), asked, method)
            }
            _ => continue,
        };
        open.entry(question).or_default().push((exchanges.len(), method));
        exchanges.push(Exchange { asked, answered: None });
    }
    for asked in open.values_mut() {
        asked.reverse();
    }
    for message in &answering {
        let message::Return(answer) = root(message)?.which()? else { continue };
        let answer = answer?;
        let (index, method) = open
            .get_mut(&answer.get_answer_id())
            .and_then(Vec::pop)
            .ok_or_else(|| Error::failed("an answer without a question".to_owned()))?;
        let words = match answer.which()? {
            return_::Results(results) => match &method {
                Some(method) => contents(results?, method.results, &ends)?,
                None => contents(results?, |_| Ok(String::new()), &ends)?,
            },
            return_::Exception(exception) => reason(exception?)?,
            return_::Canceled(()) => "cancelled".to_owned(),
            _ => "sent elsewhere".to_owned(),
        };
        exchanges[index].answered = Some(words);
    }
    Ok(exchanges)
}

/// Says to `host` what a client said, in the order that `events` tells, and returns all that it answers until it ends the connection.
///
/// `events` has a line for each piece of the recording: `c SIZE` of `asking`, `s SIZE` of `answering`. Before the next piece of `asking`,
/// the host must have said as many calls and answers as were recorded.
///
/// # Errors
///
/// If the recording is none, or the connection ends before that.
pub async fn replay(
    host: impl AsyncRead + AsyncWrite,
    [asking, answering, events]: [&[u8]; 3],
) -> Result<Vec<u8>, Error> {
    let (mut from, mut to) = tokio::io::split(host);
    let (mut said, mut heard, mut expected) = (0, Vec::new(), 0);
    let wrong = || Error::failed("not the events of this recording".to_owned());
    for event in std::str::from_utf8(events)?.lines() {
        let (side, size) = event.split_once(' ').ok_or_else(wrong)?;
        let size: usize = size.trim().parse().map_err(|_| wrong())?;
        if side == "c" {
            to.write_all(asking.get(said..said + size).ok_or_else(wrong)?).await?;
            said += size;
            continue;
        }
        expected += size;
        while weight(&heard)? < weight(answering.get(..expected).ok_or_else(wrong)?)? {
            if from.read_buf(&mut heard).await? == 0 {
                return Err(Error::disconnected("the host said less than was recorded".to_owned()));
            }
        }
    }
    to.shutdown().await?;
    from.read_to_end(&mut heard).await?;
    Ok(heard)
}

/// Returns how many calls and answers are in what was said: the rest is of no consequence to the other side.
fn weight(bytes: &[u8]) -> Result<usize, Error> {
    let all = messages(bytes)?;
    let kinds = all.iter().map(|one| root(one).map(|root| root.which()));
    Ok(kinds.filter(|kind| matches!(kind, Ok(Ok(message::Return(_) | message::Call(_))))).count())
}

fn is_cut_off(error: capnp::ErrorKind) -> bool {
    use capnp::ErrorKind::{FailedToFillTheWholeBuffer, PrematureEndOfFile};
    matches!(error, PrematureEndOfFile | FailedToFillTheWholeBuffer)
}

/// Returns the messages in a stream. One that is cut off at the end is left out.
///
/// # Errors
///
/// If it is none.
pub fn messages(mut bytes: &[u8]) -> Result<Vec<Reader<OwnedSegments>>, Error> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        match capnp::serialize::read_message(&mut bytes, ReaderOptions::new()) {
            Ok(message) => all.push(message),
            Err(error) if is_cut_off(error.kind) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn root(message: &Reader<OwnedSegments>) -> Result<message::Reader<'_>, Error> {
    message.get_root()
}

fn reason(exception: capnp_rpc::rpc_capnp::exception::Reader<'_>) -> Result<String, Error> {
    let reason = exception.get_reason()?.to_string()?;
    Ok(format!("{:?}: {}", exception.get_type()?, as_said(&reason)))
}

fn reference(cap: cap_descriptor::Reader<'_>, ends: &HashMap<u32, String>) -> Result<String, Error> {
    Ok(match cap.which()? {
        cap_descriptor::None(()) => "nothing".to_owned(),
        cap_descriptor::SenderHosted(_) => "an object".to_owned(),
        cap_descriptor::SenderPromise(id) => match ends.get(&id) {
            Some(end) => format!("a promise of {end}"),
            None => "a promise".to_owned(),
        },
        cap_descriptor::ReceiverHosted(_) | cap_descriptor::ReceiverAnswer(_) => "the receiver's own".to_owned(),
        cap_descriptor::ThirdPartyHosted(_) => "somebody else's".to_owned(),
    })
}

fn contents(payload: payload::Reader<'_>, show: Show, ends: &HashMap<u32, String>) -> Result<String, Error> {
    let mut words = match payload.get_content().is_null() {
        true => "()".to_owned(),
        false => show(payload.get_content())?,
    };
    for cap in payload.get_cap_table()? {
        words.push_str(&format!(" + {}", reference(cap, ends)?));
    }
    Ok(words)
}

type Show = fn(Any<'_>) -> Result<String, Error>;

struct Method {
    name: &'static str,
    params: Show,
    results: Show,
}

/// Defines [`method`]: which structures the arguments and results of each method are.
macro_rules! methods {
    ($($interface:ident { $($number:literal $method:ident $params:ident $results:ident),* $(,)? })*) => {
        /// Returns what is known of a method.
        fn method(interface: u64, number: u16) -> Option<Method> {
            $($(
                if interface == <$interface::Client as capnp::traits::HasTypeId>::TYPE_ID && number == $number {
                    return Some(Method {
                        name: concat!(stringify!($interface), ".", stringify!($method)),
                        params: |any| Ok(format!("{:?}", any.get_as::<$interface::$params::Reader<'_>>()?)),
                        results: |any| Ok(format!("{:?}", any.get_as::<$interface::$results::Reader<'_>>()?)),
                    });
                }
            )*)*
            None
        }
    };
}

methods! {
    job { 0 log log_params log_results, 1 result result_params result_results, 2 cancel cancel_params cancel_results }
    queue { 0 pop pop_params pop_results, 1 set_active set_active_params set_active_results }
    worker {
        0 metrics metrics_params metrics_results,
        1 self_update self_update_params self_update_results,
        2 additional_metric additional_metric_params additional_metric_results,
    }
    registration { 0 register register_params register_results }
    ticket { 0 job job_params job_results, 1 cancel cancel_params cancel_results }
    submission { 0 submit submit_params submit_results }
    progress { 0 report report_params report_results }
    pool_admin {
        0 show show_params show_results,
        1 workers workers_params workers_results,
        2 set_active set_active_params set_active_results,
        3 worker worker_params worker_results,
        4 update update_params update_results,
        5 set_rate set_rate_params set_rate_results,
        6 forget forget_params forget_results,
        7 drain drain_params drain_results,
    }
    admin {
        0 pools pools_params pools_results,
        1 pool pool_params pool_results,
        2 add_client add_client_params add_client_results,
        3 remove_client remove_client_params remove_client_results,
        4 list_clients list_clients_params list_clients_results,
    }
    persistent { 0 save save_params save_results }
}
