//! What another process does: the child that [`Helper`](crate::fixture::Helper) starts.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use kiln_store::TransferEvent;

use crate::fixture::{begin, commit, id, open, write};

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
        role => panic!("no role {role}"),
    }
}

fn say(what: &str) {
    println!("said: {what}");
}

fn wait() {
    std::io::stdin().read_to_end(&mut Vec::new()).expect("a pipe");
}
