//! `kiln rm`: removes results by id.

use kiln_store::State;

use super::{print, size};
use crate::args;
use crate::exit::Failure;
use crate::personality::Voice;
use crate::render::tell;
use crate::settings::open_store;

pub(super) fn run(arguments: &args::Rm, voice: Voice) -> Result<(), Failure> {
    let store = open_store(&arguments.store)?;
    for id in &arguments.ids {
        let found = store.find(id)?;
        match found.state {
            State::Running => return Err(kiln_store::StoreError::InUse(found.id).into()),
            State::Failed => store.forget_failure(&found.id)?,
            State::Result => {
                let pruned = store.remove(&found.id, arguments.recursive)?;
                if voice == Voice::OBuilder {
                    print(format!("Removing {}\n", found.id))?;
                } else {
                    tell(format_args!("removed {} ({})", found.id.short(), size(pruned.freed_bytes)));
                }
            }
        }
    }
    Ok(())
}
