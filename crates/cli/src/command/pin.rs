//! `kiln pin` and `kiln unpin`: results that stay whatever is pruned.

use kiln_store::{Id, State, Store, StoreError};

use crate::args;
use crate::exit::Failure;
use crate::settings::open_store;

pub(super) fn pin(arguments: &args::Pin) -> Result<(), Failure> {
    each(arguments, Store::pin)
}

pub(super) fn unpin(arguments: &args::Pin) -> Result<(), Failure> {
    each(arguments, Store::unpin)
}

fn each(arguments: &args::Pin, act: fn(&Store, &Id) -> Result<(), StoreError>) -> Result<(), Failure> {
    let store = open_store(&arguments.store)?;
    for prefix in &arguments.ids {
        let found = store.find(prefix)?;
        match found.state {
            State::Result => act(&store, &found.id)?,
            // They have no tree yet, or none any more.
            State::Running | State::Failed => return Err(StoreError::NoSuchResult(prefix.clone()).into()),
        }
    }
    Ok(())
}
