//! Messages that no program of a cluster would make.

use capnp::message::{Builder, HeapAllocator};
use capnp::traits::{HasTypeId, ImbueMut as _};
use capnp_rpc::rpc_capnp::message;

use crate::generated::ocluster_capnp::{admin, custom, job, pool_admin, registration, submission, ticket};
use crate::generated::vat_capnp::restorer;
use crate::raw::{On, words};

pub(crate) const ADMIN_ID: u64 = <admin::Client as HasTypeId>::TYPE_ID;
pub(crate) const JOB_ID: u64 = <job::Client as HasTypeId>::TYPE_ID;
pub(crate) const POOL_ADMIN_ID: u64 = <pool_admin::Client as HasTypeId>::TYPE_ID;
pub(crate) const REGISTRATION_ID: u64 = <registration::Client as HasTypeId>::TYPE_ID;
pub(crate) const SUBMISSION_ID: u64 = <submission::Client as HasTypeId>::TYPE_ID;
pub(crate) const TICKET_ID: u64 = <ticket::Client as HasTypeId>::TYPE_ID;

/// Writes the call of `submit` on answer 0, with a job of a custom kind, whose payload is for the caller to write.
fn submit(root: message::Builder<'_>, question: u32, payload: impl FnOnce(custom::Builder<'_>)) {
    let mut call = root.init_call();
    call.set_question_id(question);
    call.set_interface_id(SUBMISSION_ID);
    call.reborrow().init_target().init_promised_answer();
    let params = call.init_params().get_content().init_as::<submission::submit_params::Builder<'_>>();
    payload(params.init_descr().init_action().init_custom());
}

/// Returns the submission of a job as question `question`, to answer 0.
pub(crate) fn job(question: u32) -> Vec<u8> {
    words(|root| submit(root, question, |mut custom| custom.set_kind("any")))
}

/// Returns the submission of a job that is nested `depth` structures deep.
pub(crate) fn deep_job(question: u32, depth: usize) -> Vec<u8> {
    words(|root| {
        submit(root, question, |custom| {
            let mut inner = custom.get_payload().init_as::<message::Builder<'_>>();
            for _ in 0..depth {
                inner = inner.init_unimplemented();
            }
        });
    })
}

/// Returns the submission of a job with a list of `times` texts, which are all the same `length` bytes.
pub(crate) fn amplified_job(question: u32, times: u32, length: usize) -> Vec<u8> {
    let text_words = length / 8 + 1;
    let allocator =
        HeapAllocator::new().first_segment_words(times + u32::try_from(text_words).expect("it is short") + 200);
    let mut message = Builder::new(allocator);
    submit(message.init_root(), question, |custom| {
        let mut texts = custom.get_payload().initn_as::<capnp::text_list::Builder<'_>>(times);
        texts.set(0, "x".repeat(length).as_str());
    });
    let mut bytes = capnp::serialize::write_message_to_words(&message);
    // The text is the last thing in it, and before it is the list: <https://capnproto.org/encoding.html#lists>.
    let text = bytes.len() / 8 - text_words;
    let list = text - times as usize;
    let kind: [u8; 4] = bytes[list * 8 + 4..list * 8 + 8].try_into().expect("four bytes");
    for pointer in list..text {
        let offset = u32::try_from(text - pointer - 1).expect("it is short");
        bytes[pointer * 8..pointer * 8 + 4].copy_from_slice(&(offset << 2 | 1).to_le_bytes());
        bytes[pointer * 8 + 4..pointer * 8 + 8].copy_from_slice(&kind);
    }
    bytes
}

/// Writes the registration of the worker that is the first reference of its message.
pub(crate) fn register_promise(root: message::Builder<'_>, question: u32, promise: u32) {
    let mut call = root.init_call();
    call.set_question_id(question);
    call.set_interface_id(REGISTRATION_ID);
    call.reborrow().init_target().init_promised_answer();
    let mut payload = call.init_params();
    payload.reborrow().init_cap_table(1).get(0).set_sender_promise(promise);
    let mut references = Vec::new();
    let mut content = payload.reborrow().get_content();
    content.imbue_mut(&mut references);
    let mut params = content.init_as::<registration::register_params::Builder<'_>>();
    params.set_name("w");
    params.set_capacity(1);
    // Only its number is written.
    params.set_worker(capnp_rpc::new_future_client(std::future::pending()));
}

/// Writes the call of `restore`, which no peer is meant to know, on anything.
pub(crate) fn restore(root: message::Builder<'_>, question: u32, on: &On, id: &[u8]) {
    let mut call = root.init_call();
    call.set_question_id(question);
    call.set_interface_id(<restorer::Client as HasTypeId>::TYPE_ID);
    on.write(call.reborrow().init_target());
    call.init_params().get_content().init_as::<restorer::restore_params::Builder<'_>>().set_id(id);
}
