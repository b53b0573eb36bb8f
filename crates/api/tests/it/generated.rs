//! The generated code once more: tests say what no program says.
#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::unimplemented,
    clippy::unwrap_used,
    unreachable_pub,
    dead_code,
    unused_qualifications,
    reason = "not written by hand"
)]

#[rustfmt::skip]
#[path = "../../src/generated/ocluster_capnp.rs"]
pub(crate) mod ocluster_capnp;
#[rustfmt::skip]
#[path = "../../src/generated/vat_capnp.rs"]
pub(crate) mod vat_capnp;
#[rustfmt::skip]
#[path = "../../src/generated/kiln_capnp.rs"]
pub(crate) mod kiln_capnp;
