//! Limits of drafts, on filesystems with project quotas: in a virtual machine, since not every kernel has those.

use std::time::Duration;

use kiln_testkit::{Guest, Need, need};

const JOB: &str = r"
for module in overlay loop ext4 xfs quota_v2; do modprobe $module || exit 1; done
export LD_LIBRARY_PATH=/job TMPDIR=/tmp
/job/it --ignored quota::inside --test-threads 1 --nocapture
";

#[test]
fn limits_are_kept_in_a_virtual_machine() {
    need!(Need::Root, Need::Guest);
    let program = std::env::current_exe().expect("this program");
    let ended = Guest::new(JOB).with_program("it", &program).run(Duration::from_secs(900), |line| {
        println!("{line}");
        true
    });
    assert_eq!(ended.expect("the guest starts").code, Some(0));
}

mod inside {
    use kiln_store::{Backend, CopyMode, Kind, Location, OverlayfsStore, Quota, Store, StoreError, TreeStore};
    use kiln_testkit::LoopFs;
    use kiln_testkit::store::{Fixture, limits_are_kept};

    use crate::fixture::{begin, commit, id, location, write};

    fn fixture(filesystem: &str, kind: Kind) -> Fixture {
        let filesystem = LoopFs::with_projects(filesystem, 320).expect("a filesystem");
        let path = filesystem.path().join("store");
        drop(Store::open(&Location { kind, place: path.clone() }).expect("the store opens"));
        let backend: Box<dyn Backend> = match kind {
            Kind::Overlayfs => Box::new(OverlayfsStore::open(&path, false).expect("it opens")),
            kind => Box::new(TreeStore::open(&path, kind, false).expect("it opens")),
        };
        Fixture { backend, path, guard: Box::new(filesystem) }
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn overlayfs_on_xfs_limits() {
        limits_are_kept(fixture("xfs", Kind::Overlayfs), true);
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn overlayfs_on_ext4_limits() {
        limits_are_kept(fixture("ext4", Kind::Overlayfs), true);
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn trees_that_share_blocks_limit() {
        limits_are_kept(fixture("xfs", Kind::Xfs), true);
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn copies_limit() {
        limits_are_kept(fixture("ext4", Kind::Copy(CopyMode::Copy)), true);
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn hard_links_limit() {
        limits_are_kept(fixture("ext4", Kind::Copy(CopyMode::Hardlink)), true);
        limits_are_kept(fixture("xfs", Kind::Copy(CopyMode::Hardlink)), true);
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn without_project_quotas_the_way_out_is_named() {
        let filesystem = LoopFs::new("ext4", 100).expect("a filesystem");
        let store = Store::open(&location(&filesystem.path().join("store"))).expect("the store opens");
        let error = store.check_quota(&Quota { bytes: Some(1 << 30), files: None }).expect_err("it cannot");
        assert!(matches!(&error, StoreError::CannotLimit { reason, .. } if reason.contains("-o prjquota")), "{error}");
        store.check_quota(&Quota::NONE).expect("nothing to keep");
    }

    /// What a step took is free for the next one, also where its process died; and caches are limited too.
    #[test]
    #[ignore = "runs in a virtual machine"]
    fn a_store_keeps_steps_and_caches_to_their_limits() {
        let filesystem = LoopFs::with_projects("xfs", 320).expect("a filesystem");
        let place = location(&filesystem.path().join("store"));
        let store = Store::open(&place).expect("the store opens");
        let quota = Quota { bytes: Some(4 << 20), files: Some(100) };
        let base = begin(&store, 0, None);
        write(&base, "base");
        let base = commit(&store, base);
        for number in 1..20 {
            let lease = store.lease(&id(number)).expect("a lease").expect("it is free");
            let draft = store.begin_limited(lease, Some(base.clone()), &quota).expect("it begins");
            write(&draft, "text");
            let left = store.left(draft.id()).expect("known");
            assert!(left.files.is_some_and(|files| (90..100).contains(&files)), "{left:?}");
            match number % 3 {
                0 => drop(commit(&store, draft)),
                1 => store.discard(draft).expect("it goes"),
                // As if its process had died.
                _ => drop(draft),
            }
        }
        drop(Store::open(&place).expect("it sweeps"));
        let cache = store.begin_limited_cache(b"cache", (0, 0), &quota).expect("a copy");
        let tree = kiln_testkit::Tree::mount(cache.root());
        let much = vec![1; 20 << 20];
        std::fs::write(tree.join("file"), &much).expect_err("there is no room");
        drop(tree);
        assert!(store.left_in_cache(&cache).expect("known").bytes.expect("limited") < 1 << 20);
        store.commit_cache(cache).expect("it commits");
        drop(begin(&store, 50, Some(&base)));
    }
}
