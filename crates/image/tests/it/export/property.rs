//! Any changes survive being exported, and are found the same way on every kind of store.

use std::path::Path;

use kiln_image::Digest;
use kiln_store::Root;
use kiln_testkit::{Changes, Need, need};

use super::{Results, assert_same, image, in_seconds, layers, oci, options, seen, step, write};
use crate::{fetch, sh};

/// Makes results by random changes; keeps a plain copy of each.
fn random(seed: u64, steps: usize) -> (Results, Vec<Root>) {
    let mirror = tempfile::tempdir().expect("a directory");
    let mut changes = Changes::new(seed);
    let mut results = Results::new();
    let mut copies = Vec::new();
    for number in 0..steps {
        results.step(|tree| {
            for _ in 0..if number == 0 { 40 } else { 6 } {
                changes.make(tree, mirror.path()).expect("writable");
            }
        });
        let copy = results.dir.path().join(format!("copy-{number}"));
        // As it is: its times are truncated only when layers are made.
        sh(&results.tree().path(), &format!("mkdir '{0}'; cp -a . '{0}'", copy.display()));
        copies.push(Root::Dir(copy));
    }
    (results, copies)
}

fn digests(layout: &Path) -> Vec<Digest> {
    layers(layout).iter().map(|layer| Digest::of(layer)).collect()
}

#[test]
fn the_same_layers_come_of_every_kind_of_store() {
    need!(Need::Root);
    // The last one is so long that the store merges layers.
    for (seed, steps) in (0..12).map(|seed| (seed, 6)).chain([(12, 40)]) {
        let (results, copies) = random(seed, steps);
        let dir = results.dir.path();
        let out = |name: &str| dir.join(name);
        let with = write(results.image(true), oci(&out("with")), options(dir)).expect("written");
        write(results.image(false), oci(&out("without")), options(dir)).expect("written");
        let plain = results.made.iter().zip(&copies).enumerate().map(|(at, (snapshot, copy))| {
            let below = at.checked_sub(1).map(|below| copies[below].clone());
            step(&snapshot.id().to_string(), below, copy.clone(), None)
        });
        write(image(plain.collect()), oci(&out("plain")), options(dir)).expect("written");
        let expected = digests(&out("without"));
        for name in ["with", "plain"] {
            let found = digests(&out(name));
            if found == expected {
                continue;
            }
            for (at, (ours, theirs)) in layers(&out(name)).iter().zip(layers(&out("without"))).enumerate() {
                let (ours, theirs) = (super::members(ours), super::members(&theirs));
                assert_eq!(ours, theirs, "seed {seed}, {name}, layer {at}");
            }
            panic!("seed {seed}, {name}: {found:?} instead of {expected:?}");
        }
        assert_eq!(with.layers, expected.len());
    }
}

#[test]
fn what_is_imported_again_is_what_was_exported() {
    need!(Need::Root, Need::Tool("umoci", "umoci"));
    for seed in 100..106 {
        let (results, _) = random(seed, 6);
        let dir = results.dir.path();
        results.copy(&dir.join("expected"));
        write(results.image(true), oci(&dir.join("out")), options(dir)).expect("written");
        let expected = seen(&dir.join("expected"));
        let (tree, _) = fetch(&format!("oci:{}", dir.join("out").display())).expect("it can be imported");
        assert_same(&seen(tree.path()), &expected, &format!("seed {seed}"));
        sh(dir, "umoci unpack --image out:1 bundle 2>/dev/null");
        in_seconds(&dir.join("bundle/rootfs"));
        assert_same(&seen(&dir.join("bundle/rootfs")), &expected, &format!("seed {seed}, umoci"));
    }
}
