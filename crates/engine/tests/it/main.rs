//! The engine alone: steps shared by builds of one process, told by a sandbox that does what the test says.

mod fake;
mod import;
mod limits;
mod sharing;
