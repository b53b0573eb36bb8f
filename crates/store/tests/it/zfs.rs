//! The store on a real ZFS, in a virtual machine: this suite runs itself there, the tests in [`inside`] one after the
//! other on a pool of their own.

use std::time::Duration;

use kiln_testkit::{Guest, Need, need};

/// Makes a pool in a file and runs the tests that are ignored elsewhere.
const JOB: &str = r#"
modprobe zfs && modprobe overlay && modprobe loop || exit 1
cd /tmp
truncate -s 1G disk && zpool create -O compression=lz4 tank /tmp/disk || exit 1
zfs create -o xattr=sa -o acltype=posix tank/tmp
export KILN_STORE_POOL=tank LD_LIBRARY_PATH=/job TMPDIR=/tank/tmp
/job/it --ignored zfs::inside --test-threads 1 --nocapture
code=$?
zfs list -H -o name,used -r tank
exit $code
"#;

#[test]
fn zfs_in_a_virtual_machine() {
    need!(Need::Root, Need::Guest);
    let program = std::env::current_exe().expect("this program");
    let guest = Guest::new(JOB).with_program("it", &program);
    let ended = guest.run(Duration::from_secs(900), |line| {
        println!("{line}");
        true
    });
    assert_eq!(ended.expect("the guest starts").code, Some(0));
}

mod inside {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::Instant;

    use kiln_store::{Kind, Limits, Location, Name, Store, ZfsStore};
    use kiln_testkit::store::{Fixture, Sizes, Suite, id, limits_are_kept};

    use crate::fixture::{begin, commit, make, names, view, write};

    /// The pool of the virtual machine. Nothing of this is for a machine that someone uses.
    fn pool() -> String {
        std::env::var("KILN_STORE_POOL").expect("started in a virtual machine")
    }

    fn run(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output().expect("it starts");
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A dataset that goes with its test.
    struct Dataset(String);

    impl Dataset {
        fn new() -> Self {
            use std::sync::atomic::{AtomicU32, Ordering};
            static NEXT: AtomicU32 = AtomicU32::new(0);
            Self(format!("{}/{}-{}", pool(), std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
        }

        fn location(&self) -> Location {
            Location { kind: Kind::Zfs, place: PathBuf::from(&self.0) }
        }

        fn open(&self) -> Store {
            Store::open(&self.location()).expect("it opens")
        }

        /// How many trees there are, whatever became of their directories.
        fn trees(&self) -> usize {
            run("zfs", &["list", "-H", "-o", "name", "-r", "-d", "1", &self.0]).lines().count() - 1
        }
    }

    impl Drop for Dataset {
        fn drop(&mut self) {
            // Clones elsewhere in it too.
            let _ = Command::new("zfs").args(["destroy", "-R", "-f", &self.0]).status();
        }
    }

    fn fixture() -> Fixture {
        let dataset = Dataset::new();
        let path = dataset.open().path().to_owned();
        let backend = ZfsStore::open(&path, false).expect("it opens");
        Fixture { backend: Box::new(backend), path, guard: Box::new(dataset) }
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn zfs_conforms() {
        Suite { sizes: Sizes::SLOW_MACHINE, lacks: &[] }.run(fixture);
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn zfs_limits() {
        limits_are_kept(fixture(), false);
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn a_store_is_made_opened_again_and_pruned() {
        let dataset = Dataset::new();
        let store = dataset.open();
        let mut parent = make(&store, 0, None);
        for number in 1..6 {
            parent = make(&store, number, Some(&parent));
        }
        assert_eq!(names(&view(&store, &parent).path()).len(), 6);
        drop(parent);
        let auto = Location { kind: Kind::Auto, place: store.path().to_owned() };
        drop(store);
        let store = Store::open(&auto).expect("it is known for what it is");
        assert_eq!(store.list().expect("readable").len(), 6);
        assert!(store.space().expect("known").free_bytes > 0);
        store.mark_durable().expect("it flushes");
        let limits = Limits { max_items: Some(0), ..Limits::default() };
        let pruned = store.prune(&limits, std::time::SystemTime::now(), false).expect("it prunes");
        assert_eq!(pruned.removed.len(), 6);
        assert_eq!(dataset.trees(), 0);
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn sizes_are_what_a_step_wrote() {
        let dataset = Dataset::new();
        let store = dataset.open();
        let noise = fs::read("/job/it").expect("readable")[..4 << 20].to_vec();
        let large = begin(&store, 1, None);
        fs::write(kiln_testkit::Tree::mount(large.root()).join("large"), &noise).expect("writable");
        let large = commit(&store, large);
        drop(make(&store, 2, Some(&large)));
        let sizes: Vec<u64> = store.list().expect("readable").iter().map(|result| result.size_bytes).collect();
        assert!(sizes.iter().any(|&bytes| bytes > 1 << 20) && sizes.iter().any(|&bytes| bytes < 1 << 20), "{sizes:?}");
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn what_a_dead_process_left_is_destroyed() {
        let dataset = Dataset::new();
        let store = dataset.open();
        let draft = begin(&store, 1, None);
        write(&draft, "text");
        // As if the process had died: the lease is free, the draft is there.
        let lost = store.path().join("draft").join(id(7).to_string());
        fs::create_dir(&lost).expect("writable");
        fs::copy(store.path().join("draft").join(id(1).to_string()).join("dataset"), lost.join("dataset"))
            .expect("readable");
        store.discard(draft).expect("it goes");
        assert_eq!(dataset.trees(), 0);
        // One that died before it had written which dataset it would make.
        let nameless = store.path().join("draft").join(id(8).to_string());
        fs::create_dir(&nameless).expect("writable");
        fs::write(nameless.join("dataset"), "").expect("writable");
        drop(begin(&store, 8, None));
        drop(store);
        let store = dataset.open();
        assert!(!lost.exists(), "a draft whose dataset is gone goes too");
        assert!(!nameless.exists() && dataset.trees() == 0, "and one that names none is in nobody's way");
        // A tree that someone has mounted is destroyed later.
        let tree = make(&store, 2, None);
        let mounted = view(&store, &tree);
        let backend = ZfsStore::open(store.path(), false).expect("it opens");
        kiln_store::Backend::remove(&backend, &Name::result(&id(2))).expect("it goes out of sight");
        assert_eq!(dataset.trees(), 1);
        drop((mounted, tree, store));
        drop(dataset.open());
        assert_eq!(dataset.trees(), 0);
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn generations_of_a_cache_do_not_pile_up() {
        let dataset = Dataset::new();
        let store = dataset.open();
        for number in 0..5 {
            let cache = store.begin_cache(b"cache", (0, 0)).expect("a copy");
            fs::write(kiln_testkit::Tree::mount(cache.root()).join(number.to_string()), "text").expect("writable");
            assert!(store.commit_cache(cache).expect("it commits"));
        }
        assert_eq!(dataset.trees(), 1, "the last one only");
        let cache = store.begin_cache(b"cache", (0, 0)).expect("a copy");
        assert_eq!(names(&kiln_testkit::Tree::mount(cache.root()).path()).len(), 5);
        store.discard_cache(cache).expect("it goes");
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn a_full_pool_is_a_full_disk() {
        let dataset = Dataset::new();
        let store = dataset.open();
        let base = make(&store, 1, None);
        run("zfs", &["set", "quota=1M", &dataset.0]);
        let draft = begin(&store, 2, Some(&base));
        let tree = kiln_testkit::Tree::mount(draft.root());
        // More than what is still on its way to the disk when the quota is looked at.
        let noise = fs::read("/job/it").expect("readable");
        let written = (0..20).try_for_each(|number| fs::write(tree.join(number.to_string()), &noise));
        assert_eq!(written.expect_err("there is no room").kind(), std::io::ErrorKind::QuotaExceeded);
        drop(tree);
        store.discard(draft).expect("it goes");
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn mistakes_name_the_way_out() {
        let open = |place: &str| Store::open(&Location { kind: Kind::Zfs, place: place.into() });
        let error = open("nosuchpool/kiln").expect_err("there is no such pool");
        assert!(format!("{error:#?}").contains("nosuchpool"), "{error:#?}");
        let error = ZfsStore::open(Path::new("/tmp"), false).expect_err("no dataset");
        assert!(error.to_string().contains("zfs:pool/dataset"), "{error}");
    }

    /// Not a test of speed: it prints what a step costs beside the two commands that it cannot do without.
    #[test]
    #[ignore = "runs in a virtual machine"]
    fn what_a_step_costs() {
        let dataset = Dataset::new();
        let store = dataset.open();
        let mut parent = make(&store, 0, None);
        let start = Instant::now();
        for number in 1..6 {
            let draft = begin(&store, number, Some(&parent));
            parent = commit(&store, draft);
        }
        let ours = start.elapsed() / 5;
        let from = format!("{}/plain", dataset.0);
        run("zfs", &["create", &from]);
        let start = Instant::now();
        for number in 0..5 {
            run("zfs", &["snapshot", &format!("{from}@{number}")]);
            run("zfs", &["clone", "-o", "canmount=off", &format!("{from}@{number}"), &format!("{from}-{number}")]);
        }
        let theirs = start.elapsed() / 5;
        println!("a step: {ours:?}; zfs snapshot and clone: {theirs:?}");
    }
}
