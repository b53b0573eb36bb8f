//! `kiln store`: whole stores.

use std::error::Error;

use kiln_store::{Store, StoreError, Transfer, TransferEvent, Verify};

use super::{print, size};
use crate::args::{StoreArgs, StoreCommand, StoreCopy, StoreVerify};
use crate::exit::Failure;
use crate::render::{one_line, tell};
use crate::settings::location;

pub(super) fn run(command: &StoreCommand) -> Result<(), Failure> {
    match command {
        StoreCommand::Copy(arguments) => copy(arguments),
        StoreCommand::Verify(arguments) => verify(arguments),
        StoreCommand::Repair(arguments) => repair(arguments),
    }
}

fn copy(arguments: &StoreCopy) -> Result<(), Failure> {
    let from = Store::open_existing(&location(&arguments.from, None)?)?;
    let to = Store::open(&location(&arguments.to, arguments.rsync_mode)?)?;
    let mut hear = |event: TransferEvent<'_>| match event {
        TransferEvent::Copied { result, bytes, done, total } if !arguments.quiet => {
            let (id, size, step) = (result.id.short(), size(bytes), one_line(&result.summary));
            tell(format_args!("{done} of {total}: copied {id} ({size}) {step}"));
        }
        TransferEvent::Waiting { id, pid } if !arguments.quiet => {
            let who = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            tell(format_args!("{} is being made by {who}, waiting", id.short()));
        }
        TransferEvent::Copied { .. } | TransferEvent::Waiting { .. } => {}
        TransferEvent::Skipped { what, children, why } => {
            let with = if children == 0 { String::new() } else { format!(" and {children} results that stand on it") };
            tell(format_args!("skipped {what}{with}: {}", reason(why)));
        }
    };
    let Transfer { results, there, skipped, caches, failures, bytes } = to.copy_from(&from, &mut hear)?;
    if !arguments.quiet {
        tell(format_args!(
            "copied {results} results, {caches} caches and {failures} logs of failed steps ({}); {there} results were there",
            size(bytes)
        ));
    }
    match skipped {
        0 => Ok(()),
        _ => Err(Failure::Damaged(format!("not everything could be copied: {skipped} were skipped"))),
    }
}

fn verify(arguments: &StoreVerify) -> Result<(), Failure> {
    let StoreArgs { store, rsync_mode } = &arguments.store;
    let store = Store::open_existing(&location(store, *rsync_mode)?)?;
    let mut printed = Ok(());
    let mut hear = |broken: &kiln_store::Broken| {
        let step = broken.summary.as_ref().map_or_else(String::new, |summary| format!(" {}", one_line(summary)));
        if printed.is_ok() {
            printed = print(format!("{}{step}: {}\n", broken.what, one_line(&reason(&broken.why))));
        }
    };
    let how = Verify { deep: arguments.deep, dry_run: arguments.dry_run };
    let verified = store.verify(how, &mut hear)?;
    printed?;
    let compared = match arguments.deep {
        true => format!("; {} were compared with their digests", verified.compared),
        false => String::new(),
    };
    let (results, generations) = (verified.results, verified.generations);
    tell(format_args!("looked at {results} results and {generations} generations of caches{compared}"));
    if verified.broken == 0 {
        return Ok(());
    }
    let mut message = format!("{} were broken", verified.broken);
    if !arguments.dry_run {
        message.push_str(&format!("; removed {} with what stood on them", verified.dropped));
    }
    if verified.kept > 0 {
        message.push_str(&format!("; {} are in use or pinned and stay", verified.kept));
    }
    Err(Failure::Damaged(message))
}

fn repair(arguments: &StoreArgs) -> Result<(), Failure> {
    let repaired = Store::repair(&location(&arguments.store, arguments.rsync_mode)?)?;
    if repaired.wrote_format {
        tell("wrote state/format");
    }
    for directory in &repaired.directories {
        tell(format_args!("made {}", directory.display()));
    }
    if repaired.linked > 0 {
        tell(format_args!("linked {} results to their parents", repaired.linked));
    }
    tell(format_args!("removed {} drafts and {} entries of the trash", repaired.drafts, repaired.trash));
    tell(format_args!("read {} results into the index", repaired.results));
    Ok(())
}

/// Returns why, with what caused it.
fn reason(error: &StoreError) -> String {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        reason.push_str(&format!(": {error}"));
        cause = error.source();
    }
    reason
}
