//! What another process does: the child that [`Helper`](crate::fixture::Helper) starts.

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use kiln_store::{Limits, Listed, Snapshot, TransferEvent};

use crate::fixture::{begin, commit, id, names, open, view, write};

#[test]
#[ignore = "not a test: other tests run it as a process of its own"]
fn child() {
    let Ok(role) = std::env::var("KILN_STORE_HELPER") else { return };
    let path = PathBuf::from(std::env::var_os("KILN_STORE_PATH").expect("given along"));
    let store = open(&path);
    match &*role {
        // Holds a lease and a draft with a log, a snapshot or a cache until it is told to end, or killed.
        "hold" => {
            let draft = begin(&store, 1, None);
            (&**draft.log()).write_all(b"from the child\n").expect("a log");
            let cache = store.begin_cache(b"cache", (0, 0)).expect("a cache");
            say("holding");
            wait();
            store.discard_cache(cache).expect("it is ours");
            store.discard(draft).expect("it is ours");
        }
        // Leaves the lease to a process that outlives this one, as a sandbox does for a moment.
        "bequeath" => {
            let lease = store.lease(&id(1)).expect("a lease").expect("it is free");
            let mut heir = Command::new("sleep")
                .arg("60")
                .stdin(lease.hold().expect("a duplicate"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("it starts");
            say(&heir.id().to_string());
            heir.wait().expect("it is ours");
        }
        "use" => {
            let snapshot = store.lookup(&id(1)).expect("readable").expect("it is there");
            say("using");
            wait();
            drop(snapshot);
        }
        // Takes and gives back the lease of one id, ever again.
        "race" => {
            for _ in 0..300 {
                if let Some(lease) = store.lease(&id(1)).expect("a lease") {
                    let mark = path.join("held");
                    std::fs::File::create_new(&mark).expect("nobody else holds it");
                    std::fs::remove_file(&mark).expect("ours");
                    drop(lease);
                }
            }
        }
        // Commits 1, 2, 3, ... each the child of the one before, and says which are done.
        "commit" => {
            let mut parent = None;
            for number in 1.. {
                let draft = begin(&store, number, parent.as_ref());
                (&**draft.log()).write_all(format!("log of {number}\n").as_bytes()).expect("a log");
                write(&draft, &number.to_string());
                parent = Some(commit(&store, draft));
                say(&number.to_string());
            }
        }
        // Copies the store to one beside it, and says what is there.
        "copy" => {
            let mut heard = |event: TransferEvent<'_>| {
                if let TransferEvent::Copied { done, .. } = event {
                    say(&done.to_string());
                }
            };
            open(&path.with_extension("copy")).copy_from(&store, &mut heard).expect("it copies");
        }
        // Builds chains of four, as builds do that look for what is there first, and checks what it is offered.
        "build chains" => {
            let first = 1_000_000 * u64::from(std::process::id());
            for chain in 0.. {
                let mut parent: Option<Arc<Snapshot>> = None;
                for step in 0..4 {
                    // The first two steps are those of the chain before, unless they were pruned.
                    let number = first + if step < 2 { step } else { 10 * chain + step };
                    let found = store.lookup(&id(number)).expect("readable").map(Arc::new);
                    let made = found.unwrap_or_else(|| {
                        let draft = begin(&store, number, parent.as_ref());
                        write(&draft, &step.to_string());
                        commit(&store, draft)
                    });
                    let seen = names(&view(&store, &made).path());
                    assert_eq!(seen, (0..=step).map(|step| step.to_string()).collect::<Vec<_>>());
                    parent = Some(made);
                }
                say("built a chain");
            }
        }
        // Removes all that it may, ever again, and says what.
        "prune" => loop {
            let limits = Limits { max_items: Some(2), ..Limits::default() };
            let mut told = |removed: &Listed| {
                say(&removed.id.to_string());
                ControlFlow::Continue(())
            };
            store.prune_while(&limits, SystemTime::now(), false, &mut told).expect("it prunes");
        },
        role => panic!("no role {role}"),
    }
}

fn say(what: &str) {
    println!("said: {what}");
}

fn wait() {
    std::io::stdin().read_to_end(&mut Vec::new()).expect("a pipe");
}
