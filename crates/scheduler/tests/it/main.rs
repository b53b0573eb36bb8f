//! A scheduler on real sockets, with workers, clients and administrators.

mod administration;
mod attacks;
mod clients;
mod end;
mod jobs;
mod kept;
mod load;
mod lost_workers;
mod migration;
mod peers;
mod replay;
mod taken_over;
mod workers;
mod world;
