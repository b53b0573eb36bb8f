//! What the crate promises, from outside.

mod attacks;
mod behaviour;
mod crafted;
mod current;
mod generated;
mod hoarders;
mod log_tail;
mod raw;
mod reach;
mod replay;
mod tls;
mod vat;
mod wire;
mod world;
