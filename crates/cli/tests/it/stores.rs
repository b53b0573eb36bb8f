//! `kiln store`: whole stores are copied, checked and repaired.

use std::fs;
use std::path::PathBuf;

use crate::env::TestEnv;
use crate::needs_builds;

const TWO: &str = r#"(run (cache (c (target /c))) (shell "echo one; echo 1 > /1; touch /c/x"))
                     (run (shell "echo two > /2; ln /2 /too"))"#;

/// Where what a step wrote is kept.
fn kept(env: &TestEnv, name: &str) -> PathBuf {
    let results = fs::read_dir(env.at("store/result")).unwrap();
    results.map(|entry| entry.unwrap().path().join("layer").join(name)).find(|path| path.exists()).unwrap()
}

#[test]
fn a_copied_store_serves_the_builds_of_the_original() {
    needs_builds!();
    let env = TestEnv::new();
    let built = env.build_with(&["--verify"], TWO).ok();
    env.build(r#"(run (shell "echo why; exit 1"))"#).fails_with(1);
    let (from, to) =
        (format!("auto:{}", env.at("store").display()), format!("overlayfs:{}", env.at("other").display()));
    let copied = env.run(&["store", "copy", &from, &to]).ok();
    assert_eq!(copied.stdout, "");
    let told: Vec<String> = copied.told().lines().map(str::to_owned).collect();
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(told[0].starts_with("1 of 3: copied [SHORT ID] ("), "{told:?}");
    assert!(told[3].starts_with("copied 3 results, 1 caches and 1 logs of failed steps ("), "{told:?}");
    let quiet = env.run(&["store", "copy", "-q", &from, &to]).ok();
    assert_eq!(quiet.stderr, "");
    let again = env.run(&["build", "-f", "spec", "src", "--store", &to]).fails_with(1);
    assert_eq!(again.made_and_found(), (0, 1));
    env.spec(TWO);
    let again = env.run(&["build", "-f", "spec", "src", "--store", &to]).ok();
    assert_eq!((again.made_and_found(), again.id()), ((0, 3), built.id()));
    env.run(&["store", "verify", "--deep", "--store", &to]).ok();
    env.assert_clean();
}

#[test]
fn what_cannot_be_copied_is_told_and_the_rest_is_copied() {
    needs_builds!();
    let env = TestEnv::new();
    env.build(TWO).ok();
    let damaged = kept(&env, "1").parent().unwrap().parent().unwrap().join("meta.json");
    fs::write(&damaged, "{").unwrap();
    let (from, to) =
        (format!("auto:{}", env.at("store").display()), format!("overlayfs:{}", env.at("other").display()));
    let copied = env.run(&["store", "copy", &from, &to]).fails_with(1);
    assert!(copied.told().contains("skipped [ID]"), "{}", copied.told());
    assert!(copied.told().contains("the description of result [ID] is damaged"), "{}", copied.told());
    assert!(copied.told().contains("copied 1 results, 1 caches"), "{}", copied.told());
    // Neither a typing error nor the store itself is copied.
    let nothing = format!("auto:{}", env.at("nothing").display());
    env.run(&["store", "copy", &nothing, &to]).fails_with(3);
    env.run(&["store", "copy", &from, &from]).fails_with(2);
    env.run(&["store", "copy", &from, &to, "--rsync-mode", "hardlink"]).fails_with(2);
    assert!(!env.at("nothing").exists());
}

#[test]
fn broken_results_are_named_and_removed() {
    needs_builds!();
    let env = TestEnv::new();
    let built = env.build_with(&["--verify"], TWO).ok();
    let whole = env.run(&["store", "verify", "--deep"]).ok();
    assert_eq!(whole.stdout, "");
    assert_eq!(whole.told(), "looked at 3 results and 1 generations of caches; 3 were compared with their digests\n");
    let file = kept(&env, "1");
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "?\n").unwrap();
    fs::File::open(&file).unwrap().set_modified(modified).unwrap();
    env.run(&["store", "verify"]).ok();
    let found = env.run(&["store", "verify", "--deep", "--dry-run"]).fails_with(1);
    assert_eq!(found.stdout.lines().count(), 2, "{}", found.stdout);
    assert!(found.stdout.contains(&format!("{} /: (run (shell \"echo two", built.id())), "{}", found.stdout);
    assert!(found.told().ends_with("error: 2 were broken\n"), "{}", found.told());
    let dropped = env.run(&["store", "verify", "--deep"]).fails_with(1);
    assert!(
        dropped.told().ends_with("error: 2 were broken; removed 2 with what stood on them\n"),
        "{}",
        dropped.told()
    );
    env.run(&["store", "verify", "--deep"]).ok();
    assert_eq!(env.build(TWO).ok().made_and_found(), (2, 1));
}

#[test]
fn a_store_is_repaired() {
    needs_builds!();
    let env = TestEnv::new();
    env.build(TWO).ok();
    for place in ["trash", "draft", "state/leases"] {
        fs::remove_dir(env.at("store").join(place)).unwrap();
    }
    fs::remove_file(env.at("store/state/format")).unwrap();
    fs::write(env.at("store/state/index.sqlite"), "?").unwrap();
    let auto = format!("auto:{}", env.at("store").display());
    let refused = env.run(&["ls", "--store", &auto]).fails_with(3);
    assert!(refused.told().contains("`kiln store repair KIND:[DIR]/store` writes it"), "{}", refused.told());
    let repaired = env.run(&["store", "repair"]).ok();
    insta::assert_snapshot!(repaired.told(), @r"
    wrote state/format
    made [DIR]/store/draft
    made [DIR]/store/trash
    made [DIR]/store/state/leases
    removed 0 drafts and 0 entries of the trash
    read 3 results into the index
    ");
    assert_eq!(env.build(TWO).ok().made_and_found(), (0, 3));
}
