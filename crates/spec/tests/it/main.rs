//! What holds for the crate as a whole.

mod errors;
mod hostile;
mod properties;
mod to_dockerfile;
mod vectors;
