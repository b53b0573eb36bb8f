//! `kiln doctor` and `kiln healthcheck`: what this host can do, and what would mend what it cannot.

mod advice;
mod facts;
mod self_test;

use console::Style;

use advice::State;
use facts::{Facts, existing};
pub(super) use self_test::inside;

use crate::args;
use crate::exit::Failure;
use crate::personality::Voice;
use crate::settings::location;

use super::print;

/// Prints all findings, then runs a build.
pub(super) fn doctor(arguments: &args::Doctor) -> Result<(), Failure> {
    let location = location(&arguments.store.store, arguments.store.rsync_mode)?;
    let place = existing(&location.place);
    let findings = advice::findings(&Facts::gather(place));
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    for finding in &findings {
        let mark = match finding.state {
            State::Good => Style::new().green().apply_to("✓"),
            State::Absent => Style::new().apply_to("·"),
            State::Lacking => Style::new().yellow().apply_to("!"),
            State::Broken => Style::new().red().bold().apply_to("✗"),
        };
        print(format!("{mark} {:width$}  {}\n", finding.what, finding.says))?;
        if let Some(fix) = &finding.fix {
            print(format!("  {:width$}  {} {fix}\n", "", Style::new().cyan().apply_to("→")))?;
        }
    }
    match self_test::run(place)? {
        Ok(passed) => {
            let mark = Style::new().green().apply_to("✓");
            // In there, it is root of our namespace that it sees.
            let says = if crate::rootless::is_root() { &passed.says } else { "root inside is this user outside" };
            let (first, again) = (passed.first.as_millis(), passed.again.as_millis());
            print(format!("{mark} {:width$}  a build took {first} ms, and again {again} ms; {says}\n", "self-test"))
        }
        Err(reason) => Err(Failure::SelfTest { reason }),
    }
}

/// Opens the store and runs a build. Says nothing but what is wrong.
pub(super) fn healthcheck(arguments: &args::Doctor, voice: Voice) -> Result<(), Failure> {
    let store = crate::settings::open_store(&arguments.store)?;
    let place = existing(store.path());
    match self_test::run(place)? {
        Ok(_) if voice == Voice::OBuilder => print("Healthcheck passed\n"),
        Ok(_) => print("ok\n"),
        Err(reason) => Err(Failure::SelfTest { reason }),
    }
}
