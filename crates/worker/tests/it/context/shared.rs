//! Clones that many jobs use, for a long time.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_testkit::{Body, Response, Script, need};
use kiln_worker::context::{ContextError, Contexts, Settings};

use super::origin::{Daemon, OPEN, Origin, http};
use super::{GIT, Worker, names, read};
use crate::whole;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn jobs_that_need_the_same_fetch_it_once() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let commit = origin.repository("project").commit(&[("a", "1\n")]);
    let server = http(origin.path(), OPEN);
    let worker = Arc::new(Worker::new());
    let url = format!("{}/project/.git", server.url());
    let jobs: Vec<_> = (0..8)
        .map(|_| {
            let (worker, url, commit) = (Arc::clone(&worker), url.clone(), commit.clone());
            tokio::spawn(async move {
                match worker.fetch(&url, &[&commit]).await {
                    Ok(context) => read(&context, "a"),
                    Err(error) => panic!("{}\n{}", whole(&error), worker.log().await),
                }
            })
        })
        .collect();
    for job in jobs {
        assert_eq!(job.await.unwrap(), "1\n");
    }
    assert_eq!(worker.log().await.matches("Fetching").count(), 1);
    // What is there is not asked for again.
    let asked = server.requests().len();
    worker.fetch(&url, &[&commit]).await.unwrap();
    assert_eq!(server.requests().len(), asked);
}

#[tokio::test]
async fn a_server_that_says_nothing_holds_up_only_who_needs_it() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let commit = origin.repository("project").commit(&[("a", "1\n")]);
    let good = http(origin.path(), OPEN);
    let silent = Script::start(|_| Response::new(200).body(Body::Silence)).unwrap();
    let worker = Arc::new(Worker::new());
    let stuck = tokio::spawn({
        let (worker, url) = (Arc::clone(&worker), format!("{}/project/.git", silent.url()));
        async move { worker.fetch(&url, &["1".repeat(40).as_str()]).await }
    });
    while silent.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(read(&worker.fetch(&format!("{}/project/.git", good.url()), &[&commit]).await.unwrap(), "a"), "1\n");
    worker.cancel.cancel();
    assert!(matches!(stuck.await.unwrap(), Err(ContextError::Cancelled)));
    assert!(worker.is_clean());
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    need!(GIT);
    let silent = Script::start(|_| Response::new(200).body(Body::Silence)).unwrap();
    let worker = Worker::with(&Settings { patience: Duration::from_millis(100), ..Settings::default() });
    let url = format!("{}/x", silent.url());
    let error = worker.error(&url, &["1".repeat(40).as_str()]).await;
    assert_eq!(whole(&error), format!("cannot fetch from {url}: `git fetch` got nowhere for 0 s"));
    assert!(!error.is_the_jobs_fault());
}

#[tokio::test]
async fn an_unknown_commit_is_the_jobs_fault_and_a_dead_server_is_not() {
    need!(GIT);
    let origin = Origin::new("sha1");
    origin.repository("project").commit(&[("a", "1\n")]);
    let server = http(origin.path(), OPEN);
    let worker = Worker::new();
    let unknown = "1".repeat(40);
    let url = format!("{}/project/.git", server.url());
    let error = worker.error(&url, &[&unknown]).await;
    assert_eq!(error.to_string(), format!("{url} has no commit {unknown}"));
    assert!(error.is_the_jobs_fault());
    drop(server);
    assert!(!worker.error(&url, &[&unknown]).await.is_the_jobs_fault());
    assert!(!worker.log().await.contains("damaged"));
}

/// Returns the files below a directory whose names end so.
fn files(directory: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_str().unwrap().ends_with(end) {
            found.push(path);
        }
    }
    found
}

fn overwrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_damaged_clone_is_made_anew() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let text: String = (0..20_000).map(|number: u32| format!("{}\n", number.wrapping_mul(2_654_435_761))).collect();
    let first = project.commit(&[("a", &text), ("b", "b\n")]);
    let second = project.branch("second", &first, &[("c", "c\n")]);
    let third = project.branch("third", &first, &[("d", "d\n")]);
    let daemon = Daemon::start(origin.path());
    let url = format!("{}/project", daemon.url());
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 10] = [
        ("a pack cut in the middle", |clone| {
            for pack in files(clone, ".pack") {
                overwrite(&pack, |bytes| bytes.truncate(bytes.len() / 2));
            }
        }),
        ("a pack with a wrong byte", |clone| {
            for pack in files(clone, ".pack") {
                overwrite(&pack, |bytes| {
                    for at in (100..bytes.len() - 20).step_by(500) {
                        bytes[at] ^= 0xff;
                    }
                });
            }
        }),
        ("no packs", |clone| files(clone, ".pack").iter().for_each(|pack| fs::remove_file(pack).unwrap())),
        ("an empty pack", |clone| files(clone, ".pack").iter().for_each(|pack| overwrite(pack, Vec::clear))),
        ("an empty index", |clone| files(clone, ".idx").iter().for_each(|index| overwrite(index, Vec::clear))),
        ("no indexes", |clone| files(clone, ".idx").iter().for_each(|index| fs::remove_file(index).unwrap())),
        ("no HEAD", |clone| fs::remove_file(clone.join("HEAD")).unwrap()),
        ("an empty HEAD", |clone| fs::write(clone.join("HEAD"), "").unwrap()),
        ("a configuration that is none", |clone| fs::write(clone.join("config"), "\0\0[").unwrap()),
        ("no objects", |clone| fs::remove_dir_all(clone.join("objects")).unwrap()),
    ];
    for (name, damage) in damages {
        for (commits, expected) in
            [(vec![&*first], vec!["a", "b"]), (vec![&*second, &*third], vec!["a", "b", "c", "d"])]
        {
            let worker = Worker::new();
            worker.fetch(&url, &[&first]).await.unwrap();
            damage(&worker.clone());
            match worker.fetch(&url, &commits).await {
                Ok(context) => {
                    assert_eq!(names(context.path()), expected, "{name}");
                    assert_eq!(read(&context, "a"), text, "{name}");
                }
                Err(error) => panic!("{name}, {commits:?}: {}\n{}", whole(&error), worker.log().await),
            }
            // And it is whole from then on.
            worker.fetch_as(&url, &[&second], true).await.unwrap();
            assert!(worker.is_clean());
        }
    }
}

#[tokio::test]
async fn a_branch_file_that_is_empty_is_no_obstacle() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let first = project.commit(&[("a", "1\n")]);
    let second = project.commit(&[("a", "2\n")]);
    let daemon = Daemon::start(origin.path());
    let url = format!("{}/project", daemon.url());
    let worker = Worker::new();
    worker.fetch(&url, &[&first]).await.unwrap();
    fs::write(worker.clone().join("refs/kiln").join(&first), "").unwrap();
    assert_eq!(read(&worker.fetch(&url, &[&second]).await.unwrap(), "a"), "2\n");
}

#[tokio::test]
async fn locks_of_a_killed_git_are_no_obstacle() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let first = project.commit(&[("a", "1\n")]);
    let second = project.commit(&[("a", "2\n")]);
    let daemon = Daemon::start(origin.path());
    let url = format!("{}/project", daemon.url());
    let worker = Worker::new();
    worker.fetch(&url, &[&first]).await.unwrap();
    let locks = [
        "packed-refs.lock",
        "config.lock",
        "shallow.lock",
        &format!("refs/kiln/{second}.lock"),
        "objects/pack/tmp_pack_x",
    ];
    for lock in locks {
        fs::write(worker.clone().join(lock), "").unwrap();
    }
    assert_eq!(read(&worker.fetch(&url, &[&second]).await.unwrap(), "a"), "2\n");
    assert!(!worker.log().await.contains("damaged"));
    assert!(!worker.clone().join("objects/pack/tmp_pack_x").exists());
}

#[tokio::test]
async fn many_packs_become_few() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let daemon = Daemon::start(origin.path());
    let url = format!("{}/project", daemon.url());
    let worker = Worker::new();
    let mut most = 0;
    for number in 0..55 {
        let commit = project.commit(&[("a", &format!("{number}\n"))]);
        assert_eq!(read(&worker.fetch(&url, &[&commit]).await.unwrap(), "a"), format!("{number}\n"));
        most = most.max(files(&worker.clone(), ".pack").len());
    }
    assert!(most <= 51, "{most}");
    assert!(files(&worker.clone(), ".pack").len() < 10);
    assert!(!worker.log().await.contains("error"), "{}", worker.log().await);
}

#[tokio::test]
async fn clones_that_nobody_uses_are_pruned_the_longest_unused_first() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let daemon = Daemon::start(origin.path());
    let worker = Worker::new();
    for name in ["old", "older", "new"] {
        let commit = origin.repository(name).commit(&[("a", name)]);
        worker.fetch(&format!("{}/{name}", daemon.url()), &[&commit]).await.unwrap();
    }
    let clone =
        |name: &str| worker.clones().into_iter().find(|path| path.to_str().unwrap().contains(&format!("/{name}-")));
    for (name, days) in [("old", 2), ("older", 3)] {
        let used = fs::File::options().write(true).open(clone(name).unwrap().join("used")).unwrap();
        used.set_modified(SystemTime::now() - Duration::from_secs(days * 86_400)).unwrap();
    }
    let day = Duration::from_secs(86_400);
    let nothing = worker.contexts.prune(10 * day, u64::MAX).await.unwrap();
    assert_eq!((nothing.clones, nothing.bytes), (0, 0));
    let one = worker.contexts.prune(3 * day - Duration::from_secs(60), u64::MAX).await.unwrap();
    assert!(one.clones == 1 && one.bytes > 0 && clone("older").is_none() && clone("old").is_some());
    assert_eq!(worker.contexts.prune(10 * day, one.bytes * 3 / 2).await.unwrap().clones, 1);
    assert!(clone("old").is_none() && clone("new").is_some());
    assert_eq!(worker.contexts.prune(Duration::ZERO, 0).await.unwrap().clones, 1);
    assert!(worker.clones().is_empty() && worker.is_clean());
    // What went can be fetched again.
    let commit = origin.repository("new").commit(&[("b", "")]);
    worker.fetch(&format!("{}/new", daemon.url()), &[&commit]).await.unwrap();
}

#[tokio::test]
async fn a_clone_in_use_is_not_pruned() {
    need!(GIT);
    let silent = Script::start(|_| Response::new(200).body(Body::Silence)).unwrap();
    let worker = Arc::new(Worker::new());
    let stuck = tokio::spawn({
        let (worker, url) = (Arc::clone(&worker), format!("{}/project/.git", silent.url()));
        async move { worker.fetch(&url, &["1".repeat(40).as_str()]).await }
    });
    while silent.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(worker.contexts.prune(Duration::ZERO, 0).await.unwrap().clones, 0);
    assert_eq!(worker.clones().len(), 1);
    worker.cancel.cancel();
    assert!(stuck.await.unwrap().is_err());
}

#[tokio::test]
async fn what_a_crash_left_is_swept_and_clones_stay() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let commit = origin.repository("project").commit(&[("a", "1\n")]);
    let daemon = Daemon::start(origin.path());
    let worker = Worker::new();
    let url = format!("{}/project", daemon.url());
    let context = worker.fetch(&url, &[&commit]).await.unwrap();
    std::mem::forget(context);
    assert!(!worker.is_clean());
    let worker = Worker { contexts: Contexts::open(worker.state.path(), &Settings::default()).unwrap(), ..worker };
    assert!(worker.is_clean());
    drop(daemon);
    assert_eq!(read(&worker.fetch(&url, &[&commit]).await.unwrap(), "a"), "1\n");
}
