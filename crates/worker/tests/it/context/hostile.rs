//! Repositories and URLs that are out for more.

use std::path::Path;

use kiln_testkit::need;
use kiln_worker::context::{ContextError, Settings};

use super::origin::{Daemon, Origin};
use super::{GIT, Worker, names};
use crate::whole;

#[tokio::test]
async fn nothing_but_a_url_reaches_git() {
    need!(GIT);
    let worker = Worker::new();
    let commit = "1".repeat(40);
    let marker = worker.state.path().join("marker");
    for url in [
        format!("--upload-pack=touch {}", marker.display()),
        format!("ext::sh -c touch% {}", marker.display()),
        format!("file://{}", worker.state.path().display()),
        worker.state.path().display().to_string(),
        "git@example.org:a/b".to_owned(),
    ] {
        let error = worker.error(&url, &[&commit]).await;
        assert!(matches!(error, ContextError::Url { .. }) && error.is_the_jobs_fault(), "{url}");
    }
    for commit in ["main", "--output=x", "1234567"] {
        assert!(
            matches!(worker.error("https://127.0.0.1:1/x", &[commit]).await, ContextError::NoId { .. }),
            "{commit}"
        );
    }
    assert!(!marker.exists() && worker.clones().is_empty());
}

#[tokio::test]
async fn a_submodule_gets_no_further_than_a_job() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let commit = project.commit(&[("payload", "#!/bin/sh\ntouch pwned\n")]);
    let daemon = Daemon::start(origin.path());
    let worker = Worker::new();
    let url = format!("{}/project", daemon.url());
    for submodule in
        ["-u./payload", "ext::sh -c ./payload", "file:///etc", "/etc", "../../../../../etc", "ssh://-oProxyCommand=x/y"]
    {
        let modules = project.blob(&format!("[submodule \"s\"]\n\tpath = sub\n\turl = \"{submodule}\"\n"));
        let hostile = project.raw_commit(&[("100644", &modules, ".gitmodules"), ("160000", &commit, "sub")]);
        let error = worker.error(&url, &[&hostile]).await;
        assert!(whole(&error).starts_with("submodule `sub`: cannot fetch from `"), "{submodule}: {}", whole(&error));
        assert!(error.is_the_jobs_fault());
    }
    assert!(worker.is_clean());
    assert_eq!(worker.clones().len(), 1);
}

#[tokio::test]
async fn gitmodules_that_is_a_link_or_no_configuration_is_refused() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let commit = project.commit(&[("a", "1\n")]);
    let daemon = Daemon::start(origin.path());
    let worker = Worker::new();
    let url = format!("{}/project", daemon.url());
    let link =
        project.raw_commit(&[("120000", &project.blob("/etc/passwd"), ".gitmodules"), ("160000", &commit, "sub")]);
    let nonsense = project.raw_commit(&[("100644", &project.blob("[oh"), ".gitmodules"), ("160000", &commit, "sub")]);
    for hostile in [link, nonsense] {
        let error = worker.error(&url, &[&hostile]).await;
        assert!(error.is_the_jobs_fault(), "{}\n{}", whole(&error), worker.log().await);
    }
    assert!(!worker.log().await.contains("damaged"));
}

#[tokio::test]
async fn nothing_is_written_outside_of_the_sources() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let commit = project.commit(&[("a", "1\n")]);
    let blob = project.blob("#!/bin/sh\ntouch pwned\n");
    let outside = tempfile::tempdir().unwrap();
    let out = project.blob(outside.path().to_str().unwrap());
    let below = project.git_reads(&["hash-object", "-t", "tree", "-w", "--literally", "--stdin"], b"");
    let modules = project.blob("[submodule \"s\"]\n\tpath = sub\n\turl = ./\n");
    let tree = |entries: &[(&str, &str, &str)]| {
        let id = project.raw_commit(entries);
        project.git(&["rev-parse", &format!("{id}^{{tree}}")])
    };
    let hooks = tree(&[("100755", &blob, "post-checkout")]);
    let inside = tree(&[("100755", &blob, "file")]);
    let daemon = Daemon::start(origin.path());
    let worker = Worker::new();
    let url = format!("{}/project", daemon.url());
    for hostile in [
        project.raw_commit(&[("40000", &hooks, ".git")]),
        project.raw_commit(&[("40000", &hooks, ".GIT")]),
        project.raw_commit(&[("100644", &blob, "..")]),
        project.raw_commit(&[("40000", &inside, "..")]),
        project.raw_commit(&[("100644", &blob, "../x")]),
        project.raw_commit(&[("40000", &below, ""), ("100644", &blob, "/x")]),
        // A link, and a directory of the same name behind it.
        project.raw_commit(&[("120000", &out, "d"), ("40000", &inside, "d")]),
        project.raw_commit(&[("100644", &modules, ".gitmodules"), ("120000", &out, "sub"), ("160000", &commit, "sub")]),
        project.raw_commit(&[("100644", &modules, ".gitmodules"), ("160000", &commit, "sub"), ("120000", &out, "sub")]),
    ] {
        for include_git in [false, true] {
            // Whether git refuses it or checks out what is harmless of it, nothing is elsewhere.
            match worker.fetch_as(&url, &[&hostile], include_git).await {
                Ok(context) => assert!(!context.path().join(".git/hooks/post-checkout").exists()),
                Err(error) => println!("{}", whole(&error)),
            }
        }
    }
    assert!(names(outside.path()).is_empty());
    assert!(names(worker.state.path()).iter().all(|name| ["clones", "contexts", "trash"].contains(&&**name)));
    assert!(worker.is_clean());
}

#[tokio::test]
async fn the_hosts_configuration_hooks_and_filters_do_nothing() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let commit = project.commit(&[("a", "as it is\n"), (".gitattributes", "* filter=lfs\n")]);
    let home = tempfile::tempdir().unwrap();
    let hooks = home.path().join("hooks");
    std::fs::create_dir(&hooks).unwrap();
    let marker = home.path().join("marker");
    let script = format!("#!/bin/sh\ntouch {}\n", marker.display());
    for hook in ["post-checkout", "post-index-change", "reference-transaction"] {
        std::fs::write(hooks.join(hook), &script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(hooks.join(hook), mode).unwrap();
    }
    let configuration = format!(
        "[core]\n\thooksPath = {0}\n\tfsmonitor = {0}/post-checkout\n[filter \"lfs\"]\n\tsmudge = touch {1}; cat\n\trequired = true\n\
         [url \"ext::sh -c \"]\n\tinsteadOf = git://\n[init]\n\ttemplateDir = {0}\n",
        hooks.display(),
        marker.display()
    );
    std::fs::write(home.path().join(".gitconfig"), configuration).unwrap();
    let mut settings = Settings::default();
    let text = |path: &Path| path.as_os_str().to_owned();
    settings.environment.extend([
        ("HOME".into(), text(home.path())),
        ("GIT_CONFIG_GLOBAL".into(), text(&home.path().join(".gitconfig"))),
        ("GIT_TEMPLATE_DIR".into(), text(&hooks)),
        ("GIT_SSH_COMMAND".into(), text(&hooks.join("post-checkout"))),
        ("GIT_DIR".into(), text(home.path())),
        ("GIT_EXTERNAL_DIFF".into(), "false".into()),
    ]);
    let daemon = Daemon::start(origin.path());
    let worker = Worker::with(&settings);
    let context = worker.fetch_as(&format!("{}/project", daemon.url()), &[&commit], true).await.unwrap();
    assert_eq!(super::read(&context, "a"), "as it is\n");
    assert!(!marker.exists());
    assert!(!context.path().join(".git/hooks").exists());
}

#[tokio::test]
async fn files_of_this_machine_are_given_only_if_that_is_allowed() {
    need!(GIT);
    let origin = Origin::new("sha1");
    let project = origin.repository("project");
    let commit = project.commit(&[("a", "1\n")]);
    let settings = Settings { files: true, ..Settings::default() };
    let worker = Worker::with(&settings);
    let url = format!("file://{}/project", origin.path().display());
    assert_eq!(super::read(&worker.fetch(&url, &[&commit]).await.unwrap(), "a"), "1\n");
}
