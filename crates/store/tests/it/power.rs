//! What the durable mark promises, by losing power: a virtual machine works on a store while all that its disk is told is
//! recorded. Then the disk is made as it may be after a cut at one moment or another, and the store in it is opened.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kiln_store::{Kind, Location, Store};
use kiln_testkit::{Guest, LoopFs, Loss, Need, PowerCuts, Random, Tree, WriteLog, need};

use crate::fixture::{begin, commit, id, names, view};

/// Of the disk, the filesystem. What is told to the block behind it is what the machine in it has done so far.
const FILESYSTEM_BYTES: u64 = 256 << 20;
const TOLD_BYTES: usize = 4096;
/// At how many moments power is cut, and at how many right after a flush; beside those around the marks.
const CUTS: usize = 40;

/// The kernel begins to write what is half a second old. Of a large file it writes a part, then what is younger, as the
/// description of a result, then the next part.
const JOB: &str = r#"
modprobe overlay && modprobe "$KIND"
echo 20 >/proc/sys/vm/dirty_writeback_centisecs
echo 50 >/proc/sys/vm/dirty_expire_centisecs
mount -t "$KIND" /dev/vda /mnt || exit 1
export LD_LIBRARY_PATH=/job
/job/it --ignored --exact power::inside::work --nocapture
"#;

#[test]
fn a_power_cut_on_ext4_takes_nothing_that_is_marked_and_leaves_nothing_half() {
    need!(Need::Root, Need::Guest, Need::Tool("mkfs.ext4", "e2fsprogs"));
    in_own_mounts("power::inside::cuts_on_ext4");
}

#[test]
fn a_power_cut_on_btrfs_takes_nothing_that_is_marked_and_leaves_nothing_half() {
    need!(Need::Root, Need::Guest, Need::Tool("mkfs.btrfs", "btrfs-progs"));
    in_own_mounts("power::inside::cuts_on_btrfs");
}

/// Runs a test of this program where nobody takes its mounts along into a namespace of their own: a filesystem that is still
/// mounted somewhere would be there again at the next cut.
fn in_own_mounts(test: &str) {
    let program = std::env::current_exe().expect("this program");
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private"]).arg(program).args([
        "--ignored",
        "--nocapture",
        "--exact",
        test,
    ]);
    assert!(unshare.status().expect("it starts").success());
}

fn cut_power(filesystem: &str, kind: Kind) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let [disk, worked_on, log, after] = ["disk", "worked-on", "log", "after"].map(|name| dir.path().join(name));
    File::create(&disk).and_then(|file| file.set_len(FILESYSTEM_BYTES)).expect("writable");
    let made = Command::new(format!("mkfs.{filesystem}")).arg("-q").arg(&disk).output();
    assert!(made.expect("it starts").status.success());
    let behind = FILESYSTEM_BYTES + TOLD_BYTES as u64;
    File::options().write(true).open(&disk).and_then(|file| file.set_len(behind)).expect("writable");
    fs::copy(&disk, &worked_on).expect("writable");
    File::create(&log).expect("writable");

    let job = format!("KIND={filesystem}\nexport KILN_STORE_KIND={}\n{JOB}", kind.name());
    let program = std::env::current_exe().expect("this program");
    let guest = Guest::new(&job).with_program("it", &program).with_drive(&WriteLog::drive(&worked_on, &log));
    let ended = guest.run(Duration::from_secs(600), |_| true).expect("the guest starts");
    assert_eq!(ended.code, Some(0), "{}", ended.output);

    let log = WriteLog::read(&log).expect("a log");
    let told = told(&log);
    let seed = std::env::var("KILN_STORE_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let mut random = Random::new(seed);
    let mut moments: Vec<usize> = (0..CUTS).map(|_| below(&mut random, log.len() + 1)).collect();
    let flushes = log.flushes();
    moments.extend((0..CUTS).map(|_| flushes[below(&mut random, flushes.len())] + 1));
    // Right before a mark is told to be done, right after, and a little later.
    let marks = told.iter().filter(|(_, told)| *told == Told::Marked);
    moments.extend(marks.flat_map(|(number, _)| [number - 1, *number, number + 1]));
    moments.sort_unstable();
    println!("{} writes and flushes, {} cuts, KILN_STORE_SEED={seed}", log.len(), moments.len());
    let mut cuts = PowerCuts::new(&log, disk);
    let (mut kept, mut dropped) = (0, 0);
    for moment in moments {
        let loss = [Loss::Nothing, Loss::Everything, Loss::Some, Loss::Some][below(&mut random, 4)];
        cuts.cut(moment, loss, &mut random, &after).expect("a disk");
        println!("cut after {moment}, {loss:?} lost");
        let mounted = LoopFs::of(&after).expect("the filesystem itself bears it");
        let seen = look(&mounted.path(), kind, &expected(&told, moment));
        kept += seen.kept;
        dropped += seen.dropped;
    }
    println!("{kept} results were kept, {dropped} were dropped");
    assert!(kept > 0 && dropped > 0, "neither tells anything without the other");
}

fn below(random: &mut Random, end: usize) -> usize {
    usize::try_from(random.below(end as u64)).expect("below a usize")
}

/// What the machine says that it has done, or is about to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Committed(u64),
    Cached(u64),
    Removing(u64),
    Marking,
    Marked,
}

impl Told {
    fn text(&self) -> String {
        match self {
            Self::Committed(number) => format!("committed {number}"),
            Self::Cached(generation) => format!("cached {generation}"),
            Self::Removing(number) => format!("removing {number}"),
            Self::Marking => "marking 0".to_owned(),
            Self::Marked => "marked 0".to_owned(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (what, number) = text.split_once(' ')?;
        let number = number.parse().ok()?;
        Some(match what {
            "committed" => Self::Committed(number),
            "cached" => Self::Cached(number),
            "removing" => Self::Removing(number),
            "marking" => Self::Marking,
            "marked" => Self::Marked,
            _ => return None,
        })
    }
}

/// Returns what the machine said, and when: after so many things that the disk was told.
fn told(log: &WriteLog) -> Vec<(usize, Told)> {
    let said = log.written_at(FILESYSTEM_BYTES).expect("readable");
    said.iter()
        .map(|(number, block)| {
            let text = String::from_utf8_lossy(block);
            (number + 1, Told::parse(text.trim_end_matches('\0')).unwrap_or_else(|| panic!("it said {text:?}")))
        })
        .collect()
}

/// What a store has to have after a cut.
#[derive(Debug, Default)]
struct Expected {
    results: BTreeSet<u64>,
    /// This generation of the cache or a later one.
    generation: Option<u64>,
}

/// What was committed before the last completed mark began, less what was to be removed.
fn expected(told: &[(usize, Told)], moment: usize) -> Expected {
    let (mut expected, mut marking, mut now) = (Expected::default(), Expected::default(), Expected::default());
    for (_, told) in told.iter().take_while(|(number, _)| *number <= moment) {
        match told {
            Told::Committed(number) => drop(now.results.insert(*number)),
            Told::Cached(generation) => now.generation = Some(*generation),
            Told::Removing(number) => {
                for results in [&mut now.results, &mut marking.results, &mut expected.results] {
                    results.remove(number);
                }
            }
            Told::Marking => marking = Expected { results: now.results.clone(), ..now },
            Told::Marked => expected = std::mem::take(&mut marking),
        }
    }
    expected
}

struct Seen {
    kept: usize,
    dropped: usize,
}

/// Opens the store on the filesystem at `path` after a reboot. Everything in it is whole, and all that is expected is there.
fn look(path: &Path, kind: Kind, expected: &Expected) -> Seen {
    let path = path.join("store");
    let results = path.join("result");
    let visible = fs::read_dir(&results).map_or(0, Iterator::count);
    let location = Location { kind, place: path.clone() };
    let store = Store::open_in_boot(&location, "the boot after".to_owned()).expect("it opens");
    for place in ["draft", "trash", "state/leases"] {
        assert_eq!(names(&path.join(place)), [""; 0], "{place}");
    }
    let kept = names(&results);
    for number in &expected.results {
        assert!(kept.contains(&id(*number).to_string()), "{number} was marked and is gone");
    }
    let mut listed: Vec<String> = store.list().expect("readable").iter().map(|result| result.id.to_string()).collect();
    listed.sort();
    assert_eq!(listed, kept);
    for name in &kept {
        let snapshot = store.lookup(&name.parse().expect("an id")).expect("readable").expect("it is offered");
        let summary = &snapshot.meta().summary;
        assert_eq!(snapshot.meta().detail, digest(&view(&store, &snapshot)), "{summary} is not what it was");
        assert_eq!(std::io::read_to_string(snapshot.log().expect("a log")).expect("text"), log_text(name), "{summary}");
    }
    let cache = store.begin_cache(b"cache", (0, 0)).expect("a copy");
    let tree = Tree::mount(cache.root());
    let generation = match fs::read_to_string(tree.join("generation")) {
        Ok(text) => {
            let number: u64 = text.parse().expect("a number");
            assert_eq!(fs::read(tree.join("data")).expect("it is there"), noise(number), "generation {number}");
            Some(number)
        }
        Err(_) => None,
    };
    assert!(generation >= expected.generation, "generation {generation:?}, not {:?}", expected.generation);
    drop(tree);
    store.discard_cache(cache).expect("it goes");
    // Life goes on.
    commit(&store, begin(&store, u64::MAX, None));
    Seen { kept: kept.len(), dropped: visible - kept.len() }
}

/// Returns the content of a tree as a result's detail.
fn digest(tree: &Tree) -> serde_json::Value {
    blake3::hash(tree.describe().join("\n").as_bytes()).to_hex().as_str().into()
}

fn log_text(id: &str) -> String {
    format!("log of {id}\n").repeat(40)
}

/// Returns bytes that cannot be mistaken for those of another number.
fn noise(number: u64) -> Vec<u8> {
    let mut random = Random::new(number);
    let words = 1_000 + random.below(9_000);
    (0..words).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect()
}

mod inside {
    use std::io::Write;
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    use std::sync::{Arc, Mutex, mpsc};
    use std::thread;

    use kiln_store::{Description, Snapshot};

    use super::*;

    /// Where the machine says what it has done, past all caches and without a flush of its own.
    struct Teller(Mutex<File>);

    #[repr(align(4096))]
    struct Block([u8; TOLD_BYTES]);

    impl Teller {
        fn new() -> Self {
            let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).expect("a flag");
            let disk = File::options().write(true).custom_flags(direct).open("/dev/vda").expect("a disk");
            Self(Mutex::new(disk))
        }

        fn tell(&self, told: &Told) {
            let text = told.text();
            let mut block = Block([0; TOLD_BYTES]);
            block.0[..text.len()].copy_from_slice(text.as_bytes());
            let disk = self.0.lock().expect("no panic");
            disk.write_all_at(&block.0, FILESYSTEM_BYTES).expect("the disk works");
        }
    }

    #[test]
    #[ignore = "runs where nobody sees its mounts"]
    fn cuts_on_ext4() {
        cut_power("ext4", Kind::Overlayfs);
    }

    #[test]
    #[ignore = "runs where nobody sees its mounts"]
    fn cuts_on_btrfs() {
        cut_power("btrfs", Kind::Btrfs);
    }

    #[test]
    #[ignore = "runs in a virtual machine"]
    fn work() {
        let kind = match &*std::env::var("KILN_STORE_KIND").expect("started in a virtual machine") {
            "btrfs" => Kind::Btrfs,
            _ => Kind::Overlayfs,
        };
        let location = Location { kind, place: PathBuf::from("/mnt/store") };
        let store = Store::open(&location).expect("it opens");
        let teller = Teller::new();
        let (mark, marks) = mpsc::channel::<()>();
        thread::scope(|scope| {
            // Beside the commits, as the program does it.
            scope.spawn(|| {
                for () in marks {
                    teller.tell(&Told::Marking);
                    store.mark_durable().expect("the disk works");
                    teller.tell(&Told::Marked);
                }
            });
            let mut random = Random::new(7);
            let mut alive: Vec<(u64, Arc<Snapshot>)> = Vec::new();
            for step in 0..80 {
                // Numbers come again: what was removed is made anew, and is something else.
                let number = (0..).find(|number| alive.iter().all(|(other, _)| other != number)).expect("there is one");
                let parent = alive.get(below(&mut random, alive.len() + 1)).map(|(_, parent)| parent);
                make(&store, &mut random, number, step, parent.cloned().as_ref());
                let made = store.lookup(&id(number)).expect("readable").expect("just made");
                teller.tell(&Told::Committed(number));
                alive.push((number, Arc::new(made)));
                if step % 5 == 1 {
                    cache(&store, step, &teller);
                }
                if step % 3 == 2 {
                    remove_one(&store, &mut random, &mut alive, &teller);
                }
                if step % 4 == 3 {
                    // As other programs do. Names of ours get to the disk by that, some without their data.
                    File::create("/mnt/other").and_then(|file| file.sync_all()).expect("writable");
                }
                if step % 11 == 10 {
                    mark.send(()).expect("it listens");
                }
            }
            drop(mark);
        });
    }

    /// Makes a result by some changes.
    fn make(store: &Store, random: &mut Random, number: u64, step: u64, parent: Option<&Arc<Snapshot>>) {
        let draft = begin(store, number, parent);
        let tree = Tree::mount(draft.root());
        for change in 0..=random.below(6) {
            let [file, other] = [(); 2].map(|()| tree.join(random.below(10).to_string()));
            // What is not there is not changed.
            let _ = match random.below(6) {
                0 => fs::remove_file(&file),
                1 => fs::rename(&file, &other),
                2 => File::options().append(true).open(&file).and_then(|mut file| file.write_all(&noise(step))),
                _ => fs::write(&file, noise(100 * step + change)),
            };
        }
        if step % 8 == 4 {
            fs::write(tree.join("large"), noise(step).repeat(300)).expect("writable");
        }
        let detail = digest(&tree);
        drop(tree);
        (&**draft.log()).write_all(log_text(&draft.id().to_string()).as_bytes()).expect("a log");
        store.commit(draft, Description { summary: format!("{number}, step {step}"), detail }).expect("it commits");
    }

    fn cache(store: &Store, number: u64, teller: &Teller) {
        let draft = store.begin_cache(b"cache", (0, 0)).expect("a copy");
        let tree = Tree::mount(draft.root());
        fs::write(tree.join("generation"), number.to_string()).expect("writable");
        fs::write(tree.join("data"), noise(number)).expect("writable");
        drop(tree);
        assert!(store.commit_cache(draft).expect("it commits"));
        teller.tell(&Told::Cached(number));
    }

    /// Removes a result that nothing stands on.
    fn remove_one(store: &Store, random: &mut Random, alive: &mut Vec<(u64, Arc<Snapshot>)>, teller: &Teller) {
        let is_leaf = |number: u64| alive.iter().all(|(_, other)| other.meta().parent != Some(id(number)));
        let leaves: Vec<usize> = (0..alive.len()).filter(|&at| is_leaf(alive[at].0)).collect();
        let (number, snapshot) = alive.swap_remove(leaves[below(random, leaves.len())]);
        drop(snapshot);
        teller.tell(&Told::Removing(number));
        store.remove(&id(number), false).expect("nobody uses it");
    }
}
