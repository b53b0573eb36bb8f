//! What a job gets.

use kiln_testkit::need;

use super::origin::{Daemon, Http, OPEN, Origin, http};
use super::{GIT, Worker, names, read};
use crate::whole;

#[tokio::test]
async fn a_context_is_the_first_commit_with_the_others_merged_into_it() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let base = project.commit(&[("a", "1\n"), ("dir/b", "2\n")]);
    let change = project.branch("change", &base, &[("a", "changed\n")]);
    let other = project.branch("other", &base, &[("dir/c", "3\n")]);
    let server = http(origin.path(), OPEN);
    let worker = Worker::new();
    let context = worker.fetch(&format!("{}/project/.git", server.url()), &[&base, &change, &other]).await.unwrap();
    assert_eq!(names(context.path()), ["a", "dir"]);
    assert_eq!(names(&context.path().join("dir")), ["b", "c"]);
    assert_eq!(read(&context, "a"), "changed\n");
    context.remove().await.unwrap();
    assert!(worker.is_clean());
}

#[tokio::test]
async fn gits_own_protocol_gives_a_commit_that_is_on_no_branch() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let base = project.commit(&[("a", "1\n")]);
    let lost = project.commit(&[("a", "2\n")]);
    project.git(&["reset", "--quiet", "--hard", &base]);
    let daemon = Daemon::start(origin.path());
    let worker = Worker::new();
    let context = worker.fetch(&format!("{}/project", daemon.url()), &[&lost]).await.unwrap();
    assert_eq!(read(&context, "a"), "2\n");
}

#[tokio::test]
async fn a_server_that_gives_no_single_commits_gives_all() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let old = project.commit(&[("a", "1\n")]);
    project.commit(&[("a", "2\n")]);
    let server = http(origin.path(), Http { authorization: None, old: true });
    let worker = Worker::new();
    let url = format!("{}/project/.git", server.url());
    let context = worker.fetch(&url, &[&old]).await.unwrap();
    assert_eq!(read(&context, "a"), "1\n");
    let unknown = "1".repeat(40);
    let error = worker.error(&url, &[&unknown]).await;
    assert_eq!(error.to_string(), format!("{url} has no commit {unknown}"));
}

#[tokio::test]
async fn repositories_with_sha_256_are_as_good() {
    need!(GIT);
    let origin = Origin::new("sha256");
    let project = origin.repository("project");
    let base = project.commit(&[("a", "1\n")]);
    let change = project.branch("change", &base, &[("b", "2\n")]);
    let main = project.commit(&[("c", "3\n")]);
    let daemon = Daemon::start(origin.path());
    let worker = Worker::new();
    let url = format!("{}/project", daemon.url());
    for include_git in [false, true] {
        let context = worker.fetch_as(&url, &[&main, &change], include_git).await.unwrap();
        assert_eq!(read(&context, "a") + &read(&context, "b") + &read(&context, "c"), "1\n2\n3\n");
    }
}

#[tokio::test]
async fn without_commits_there_are_no_sources() {
    need!(GIT);
    let worker = Worker::new();
    let context = worker.fetch("", &[]).await.unwrap();
    assert!(names(context.path()).is_empty());
}

#[tokio::test]
async fn a_commit_that_another_has_already_is_not_merged() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let old = project.commit(&[("a", "1\n")]);
    let new = project.commit(&[("a", "2\n")]);
    let daemon = Daemon::start(origin.path());
    let worker = Worker::new();
    let url = format!("{}/project", daemon.url());
    for commits in [[&*old, &*new], [&*new, &*old]] {
        let context = worker.fetch_as(&url, &commits, true).await.unwrap();
        assert_eq!(read(&context, "a"), "2\n");
        assert_eq!(read(&context, ".git/HEAD").trim(), new);
    }
}

#[tokio::test]
async fn commits_that_conflict_are_the_jobs_fault_and_the_log_says_where() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let base = project.commit(&[("a", "1\n")]);
    let one = project.branch("one", &base, &[("a", "one\n")]);
    let other = project.branch("other", &base, &[("a", "other\n")]);
    let daemon = Daemon::start(origin.path());
    let worker = Worker::new();
    let url = format!("{}/project", daemon.url());
    let error = worker.error(&url, &[&one, &other]).await;
    assert_eq!(error.to_string(), format!("cannot merge {other}: it conflicts with {one}"));
    assert!(error.is_the_jobs_fault());
    let log = worker.log().await;
    assert!(log.ends_with("Auto-merging a\nCONFLICT (content): Merge conflict in a\n"), "{log}");
    assert!(worker.is_clean());
    // Nothing in common is a conflict too.
    project.git(&["checkout", "--quiet", "--orphan", "alien"]);
    let alien = project.commit(&[("z", "z\n")]);
    let error = worker.error(&url, &[&one, &alien]).await;
    assert!(error.is_the_jobs_fault(), "{}", whole(&error));
}

#[tokio::test]
async fn with_git_the_repository_stands_alone() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let base = project.commit(&[("a", "1\n")]);
    project.git(&["tag", "-m", "first", "v1.0"]);
    let change = project.branch("change", &base, &[("b", "2\n")]);
    let main = project.commit(&[("c", "3\n")]);
    let server = http(origin.path(), OPEN);
    let worker = Worker::new();
    let url = format!("{}/project/.git", server.url());
    let context = worker.fetch_as(&url, &[&main, &change], true).await.unwrap();
    let heads = [context, worker.fetch_as(&url, &[&main, &change], true).await.unwrap()].map(|context| {
        let git = |arguments: &[&str]| {
            let output = super::origin::git(context.path()).args(arguments).output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(git(&["status", "--porcelain"]), "");
        assert_eq!(git(&["fsck", "--full", "--strict"]), "");
        assert!(!context.path().join(".git/objects/info/alternates").exists());
        assert!(git(&["describe"]).starts_with("v1.0-3-g"));
        assert_eq!(git(&["branch", "--remotes", "--format=%(refname:short)"]), "origin/change\norigin/main");
        assert_eq!(git(&["config", "remote.origin.url"]), url);
        assert_eq!(
            git(&["log", "-1", "--format=%an %ad %s", "--date=unix"]),
            format!("Kiln 1000000000 Merge commit '{change}'")
        );
        git(&["rev-parse", "HEAD"])
    });
    assert_eq!(heads[0], heads[1], "a merge is the same each time");
}

#[tokio::test]
async fn submodules_are_there_to_the_last_with_and_without_git() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let (project, middle, inner) =
        (origin.repository("project"), origin.repository("lib/middle"), origin.repository("lib/inner"));
    let inner_id = inner.commit(&[("deep", "deep\n")]);
    middle.write(".gitmodules", "[submodule \"i\"]\n\tpath = sub/inner\n\turl = ../../inner/.git\n");
    middle.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{inner_id},sub/inner")]);
    middle.git(&["add", ".gitmodules"]);
    middle.git(&["commit", "--quiet", "-m", "middle"]);
    let middle_id = middle.git(&["rev-parse", "HEAD"]);
    let server = http(origin.path(), OPEN);
    let absolute = format!("{}/lib/middle/.git", server.url());
    project.write(
        ".gitmodules",
        &format!(
            "[submodule \"a\"]\n\tpath = a b\n\turl = {absolute}\n\
             [submodule \"none\"]\n\tpath = none\n\turl = ./none\n\tupdate = none\n"
        ),
    );
    for path in ["a b", "none", "unnamed"] {
        project.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{middle_id},{path}")]);
    }
    project.git(&["add", ".gitmodules"]);
    project.git(&["commit", "--quiet", "-m", "project"]);
    let commit = project.git(&["rev-parse", "HEAD"]);
    let worker = Worker::new();
    let url = format!("{}/project/.git", server.url());
    for include_git in [false, true] {
        let context = worker.fetch_as(&url, &[&commit], include_git).await.unwrap();
        assert_eq!(read(&context, "a b/sub/inner/deep"), "deep\n");
        assert_eq!(context.path().join("a b/sub/inner/.git").exists(), include_git);
        assert!(names(&context.path().join("none")).is_empty() && names(&context.path().join("unnamed")).is_empty());
    }
    let log = worker.log().await;
    assert!(log.contains("Submodule none is left empty: it is not to be updated\n"), "{log}");
    assert!(log.contains("Submodule unnamed is left empty: .gitmodules does not name it\n"), "{log}");
    assert_eq!(worker.clones().len(), 3);
}

#[tokio::test]
async fn who_has_a_login_uses_it_and_nobody_sees_it() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let commit = project.commit(&[("a", "1\n")]);
    // me:pass:word
    let server = http(origin.path(), Http { authorization: Some("Basic bWU6cGFzczp3b3Jk"), old: false });
    let worker = Worker::new();
    let with = format!("http://me:pass%3Aword@{}/project/.git", server.host());
    let context = worker.fetch_as(&with, &[&commit], true).await.unwrap();
    assert_eq!(read(&context, "a"), "1\n");
    for directory in [context.path(), worker.state.path()] {
        let found =
            std::process::Command::new("grep").args(["-rlE", "pass(:|%3A)word"]).arg(directory).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    }
    // What was fetched with it is not for who has none.
    let without = format!("{}/project/.git", server.url());
    let error = worker.error(&without, &[&commit]).await;
    assert_eq!(whole(&error), format!("cannot fetch from {without}: `git fetch` failed: exit status: 128"));
    let wrong = format!("http://me:wrong@{}/project/.git", server.host());
    assert!(!whole(&worker.error(&wrong, &[&commit]).await).contains("wrong"));
    let log = worker.log().await;
    assert!(!log.contains("word@") && !log.contains("pass") && !log.contains("wrong"), "{log}");
    assert!(!log.contains("damaged"), "{log}");
}
