//! A database that schedulers share, and what one of them may do that does not know it is none any more.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_api::JobKey;
use kiln_testkit::{Lan, Need, Postgres};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::state::database::postgres::Fence;
use crate::state::lease::{Lease, Standing, Terms};
use crate::state::logs::PART;

/// A PostgreSQL of the test's own.
pub(super) struct Server(pub(super) Postgres);

impl Server {
    pub(super) fn start() -> Self {
        Self(Postgres::start().expect("a PostgreSQL"))
    }

    fn address(&self) -> PostgresServer {
        self.0.uri().parse().expect("its URI")
    }

    pub(super) fn query(&self, query: &str) -> String {
        self.0.query(query).expect("a query").trim().to_owned()
    }

    /// Returns the processes of the server whose last query is this.
    fn backends(&self, last_query: &str) -> Vec<String> {
        let query =
            format!("SELECT pid FROM pg_stat_activity WHERE query LIKE '{last_query}' AND pid <> pg_backend_pid()");
        self.query(&query).lines().map(str::to_owned).collect()
    }
}

/// A way to a server that can be cut, so that the server does not know.
struct Way {
    directory: tempfile::TempDir,
    clients: Arc<Mutex<Vec<UnixStream>>>,
}

impl Way {
    fn to(server: &Server) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = |directory: &Path| directory.join(".s.PGSQL.5432");
        let listener = UnixListener::bind(socket(directory.path())).unwrap();
        let clients = Arc::<Mutex<Vec<UnixStream>>>::default();
        let (known, target) = (Arc::clone(&clients), socket(server.0.directory()));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = UnixStream::connect(&target).expect("the server listens");
                known.lock().unwrap().push(client.try_clone().unwrap());
                let ends = [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)];
                for (mut from, mut to) in ends {
                    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                }
            }
        });
        Self { directory, clients }
    }

    fn address(&self) -> PostgresServer {
        format!("postgres://kiln@/kiln?host={}&sslmode=disable", self.directory.path().display()).parse().unwrap()
    }

    /// Cuts those off who are connected.
    fn cut(&self) {
        for client in self.clients.lock().unwrap().drain(..) {
            client.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }
}

fn terms(known_by: &str, pools: &str) -> Terms {
    Terms { known_by: known_by.to_owned(), pools: pools.to_owned() }
}

/// Takes the lease, for which it waits.
pub(super) fn acquire(server: &Server, name: &str) -> Lease {
    acquire_telling(server, name, |_| ())
}

fn acquire_telling(server: &Server, name: &str, tell: impl FnMut(&Standing)) -> Lease {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Lease::acquire(server.address(), name.to_owned(), Some(terms("one", "linux")), tell)).unwrap()
}

/// Lets it go, as a scheduler that ends.
pub(super) fn release(lease: Lease) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(lease.release());
}

/// Takes over as one who has waited long enough, and returns by what right.
fn take_over(server: &Server) -> Tenure {
    let taken = server.query("UPDATE kiln_lease SET epoch = epoch + 1, holder = 'second' RETURNING epoch");
    let fence = Fence { epoch: taken.parse().expect("an epoch"), lost: CancellationToken::new() };
    Tenure { server: server.address(), fence }
}

const LOG: fn(u64, &str) -> Change =
    |start, bytes| Change::Log { job: JobKey([1; 10]), start, bytes: bytes.as_bytes().to_vec() };

#[test]
fn one_that_was_taken_over_from_writes_nothing() {
    kiln_testkit::need!(Need::Postgres);
    let server = Server::start();
    let first = acquire(&server, "first");
    let mut one = State::open_shared(first.tenure()).unwrap();
    one.add_client(b("bob"), b"1").unwrap();
    let second = take_over(&server);
    let mut two = State::open_shared(second.clone()).unwrap();
    two.add_client(b("carol"), b"2").unwrap();
    // It goes on, and knows nothing yet but what its database says.
    let error = one.add_client(b("dave"), b"3").unwrap_err();
    assert!(matches!(error, StateError::Write { source: DatabaseError::Deposed, .. }), "{error:?}");
    assert!(error.is_over());
    assert!(first.lost().is_cancelled());
    // Nor does it say what there is.
    assert!(one.clients().unwrap_err().is_over());
    assert!(!second.fence.lost.is_cancelled());
    assert_eq!(two.clients().unwrap(), ["bob", "carol"]);
}

#[test]
fn a_transaction_that_is_stopped_in_its_middle_does_not_keep_others_out_and_comes_to_nothing() {
    kiln_testkit::need!(Need::Postgres);
    let server = Server::start();
    let first = acquire(&server, "first");
    let fence = first.tenure().fence;
    let mut one = State::open_shared(first.tenure()).unwrap();
    let mut taken = None;
    let done = one.database.transact(true, &mut |transaction| {
        transaction
            .execute("INSERT INTO workers VALUES ($1, $2, 0)", &[Parameter::Text(b"p"), Parameter::Text(b"w")])?;
        if taken.is_none() {
            // This waits until the server gives up on who says nothing.
            taken = Some(take_over(&server));
        }
        Ok(())
    });
    assert!(matches!(done, Err(DatabaseError::Deposed)), "{done:?}");
    assert!(fence.lost.is_cancelled());
    let second = taken.expect("the second has it");
    let mut two = State::open_shared(second.clone()).unwrap();
    assert_eq!(two.load(b("p")).unwrap(), Saved::default());
}

#[test]
fn one_that_is_stopped_while_it_reads_does_not_keep_others_out() {
    kiln_testkit::need!(Need::Root, Need::Tool("ip", "iproute2"), Need::Postgres);
    let lan = Lan::new(2).unwrap();
    let server = Server(Postgres::start_on(&lan, 0).expect("a PostgreSQL"));
    let read_and_stop = || {
        lan.enter(1).unwrap();
        // It makes the table.
        release(acquire(&server, "first"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(server.address().connect()).unwrap();
        let mut answer = Box::pin(async {
            client.batch_execute("BEGIN; SELECT FROM kiln_lease FOR KEY SHARE").await?;
            // More than is on the way without anybody reading.
            client.simple_query("SELECT repeat('x', 50000000)").await
        });
        runtime.block_on(async {
            while server.backends("SELECT repeat%").is_empty() {
                tokio::select! {
                    biased;
                    answered = &mut answer => panic!("it is answered: {answered:?}"),
                    () = tokio::task::yield_now() => {}
                }
            }
        });
        // This waits until the server gives up on who does not read, but not for ever.
        server.query("ALTER DATABASE kiln SET lock_timeout = '60s'");
        take_over(&server);
        assert!(runtime.block_on(answer).is_err());
    };
    std::thread::scope(|scope| _ = scope.spawn(read_and_stop));
}

#[test]
fn a_server_that_restarts_is_waited_for() {
    kiln_testkit::need!(Need::Postgres);
    let mut server = Server::start();
    let lease = acquire(&server, "first");
    let mut state = State::open_shared(lease.tenure()).unwrap();
    state.add_client(b("bob"), b"1").unwrap();
    server.0.crash();
    let writing = std::thread::spawn(move || {
        state.add_client(b("carol"), b"2").unwrap();
        state
    });
    server.0.restart().unwrap();
    let mut state = writing.join().expect("it is written");
    assert_eq!(state.clients().unwrap(), ["bob", "carol"]);
    assert!(!lease.lost().is_cancelled());
}

#[test]
fn one_whose_connection_breaks_while_it_commits_finds_out_whether_that_is_done() {
    kiln_testkit::need!(Need::Postgres);
    let server = Server::start();
    let lease = acquire(&server, "first");
    let way = Way::to(&server);
    let mut state = State::open_shared(Tenure { server: way.address(), ..lease.tenure() }).unwrap();
    let mut times = 0;
    // The connection ends after the last of the changes: the first time, before they are committed.
    state
        .database
        .transact(true, &mut |transaction| {
            times += 1;
            let row = [Parameter::Text(b"p"), Parameter::Text(b"w"), Parameter::Int(0)];
            transaction.execute("INSERT INTO workers VALUES ($1, $2, $3)", &row)?;
            if times == 1 {
                let own = server.backends("INSERT INTO workers%");
                server.query(&format!("SELECT pg_terminate_backend({})", own[0]));
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(times, 2);
    assert_eq!(state.load(b("p")).unwrap().workers, [("w".into(), false)]);
    // Only what is deferred to the commit is done there, and that goes on after its connection is gone.
    server.query(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON pool_user_rate DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let mut times = 0;
    std::thread::scope(|scope| {
        let committing = scope.spawn(|| {
            state.database.transact(true, &mut |transaction| {
                times += 1;
                let row = [Parameter::Text(b"p"), Parameter::Text(b"bob"), Parameter::Real(2.0)];
                transaction.execute("INSERT INTO pool_user_rate VALUES ($1, $2, $3)", &row).map(drop)
            })
        });
        // What commits for it is cut off from it, and is heard of no more.
        while server.backends("COMMIT").is_empty() {}
        way.cut();
        committing.join().expect("no panic").unwrap();
    });
    assert_eq!(times, 1);
    assert_eq!(state.load(b("p")).unwrap().rates, [("bob".into(), 2.0)]);
}

#[test]
fn a_holder_that_cannot_reach_the_server_stops_by_itself() {
    kiln_testkit::need!(Need::Postgres);
    let mut server = Server::start();
    let lease = acquire(&server, "first");
    let mut state = State::open_shared(lease.tenure()).unwrap();
    server.0.crash();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(lease.lost().cancelled());
    // Whoever waits for the server is let go.
    let error = state.add_client(b("bob"), b"1").unwrap_err();
    assert!(matches!(error, StateError::Write { source: DatabaseError::Deposed, .. }), "{error:?}");
}

#[test]
fn a_lease_that_is_let_go_is_had_at_once_by_one_of_those_who_wait() {
    kiln_testkit::need!(Need::Postgres);
    let server = Server::start();
    let first = acquire(&server, "first");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for name in ["second", "third"] {
            let (server, sender) = (&server, sender.clone());
            scope.spawn(move || {
                let stands = sender.clone();
                let lease = acquire_telling(server, name, move |standing| {
                    stands.send(format!("{name}: {standing:?}")).unwrap()
                });
                sender.send(format!("{name} serves")).unwrap();
                // Nobody else is told so until this one goes.
                release(lease);
            });
        }
        let mut said: Vec<_> = (0..2).map(|_| receiver.recv_timeout(Duration::from_secs(30)).unwrap()).collect();
        said.sort();
        assert_eq!(
            said,
            ["second: By { holder: \"first\", pools: None }", "third: By { holder: \"first\", pools: None }"]
        );
        release(first);
    });
    drop(sender);
    let said: Vec<_> = receiver.into_iter().filter(|said| said.ends_with("serves")).collect();
    assert_eq!(said.len(), 2);
    assert_eq!(server.query("SELECT epoch, holder IS NULL FROM kiln_lease"), "3|t");
}

#[test]
fn logs_are_read_as_they_were_written_and_go_with_their_job() {
    kiln_testkit::need!(Need::Postgres);
    let server = Server::start();
    let lease = acquire(&server, "first");
    let mut state = State::open_shared(lease.tenure()).unwrap();
    let job = both::job(1, "bob");
    let whole = "x".repeat(PART as usize);
    state.apply(&[Change::Submit(Box::new(job.clone())), LOG(0, &whole), LOG(PART, "one\n")], false).unwrap();
    assert_eq!(state.log_parts(job.key, PART).unwrap(), [b"one\n"]);
    // The last part grows; what is shorter than what is there is older.
    let changed = state.apply(&[LOG(PART, "one\ntwo\n"), LOG(PART, "one\n"), LOG(0, &whole)], false);
    assert_eq!(changed.unwrap(), [true, false, false]);
    assert_eq!(state.log_parts(job.key, 0).unwrap(), [whole.clone().into_bytes(), b"one\ntwo\n".to_vec()]);
    // What is added is one change, however many parts it has.
    let more = "one\ntwo\n".to_owned() + &whole;
    assert_eq!(state.apply(&[LOG(PART, &more)], false).unwrap(), [true]);
    let (full, rest) = more.as_bytes().split_at(PART as usize);
    assert_eq!(state.log_parts(job.key, 0).unwrap(), [whole.as_bytes(), full, rest]);
    assert!(state.log_parts(job.key, 3 * PART).unwrap().is_empty());
    assert_eq!(state.logs_size().unwrap(), 2 * PART + 8);
    let many: Vec<_> = (0..300).map(|at| LOG(at * PART, "y")).collect();
    state.apply(&many, false).unwrap();
    let (first, next) = (state.log_parts(job.key, 0).unwrap(), state.log_parts(job.key, 32 * PART).unwrap());
    assert_eq!((first.len(), next.len()), (32, 32));
    let end = Change::End { job: job.key, outcome: Outcome::Succeeded("".into()), ended: 1 };
    state.apply(&[end, Change::Forget { job: job.key }], false).unwrap();
    assert_eq!(state.logs_size().unwrap(), 0);
}

#[test]
fn of_several_hosts_one_is_found_that_answers_and_can_be_written() {
    kiln_testkit::need!(Need::Postgres);
    let server = Server::start();
    let read_only = Server::start();
    read_only.query("ALTER SYSTEM SET default_transaction_read_only = on");
    read_only.query("SELECT pg_reload_conf()");
    // The first one says nothing, the second one is not there, the third cannot be written.
    let silent = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(silent.path().join(".s.PGSQL.5432")).unwrap();
    let nowhere = tempfile::tempdir().unwrap();
    let hosts = [silent.path(), nowhere.path(), read_only.0.directory(), server.0.directory()];
    let hosts: Vec<_> = hosts.iter().map(|host| host.display().to_string().replace('/', "%2F")).collect();
    let uri = format!("postgres://kiln@{}/kiln?sslmode=disable", hosts.join(","));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lease = runtime
        .block_on(Lease::acquire(uri.parse().unwrap(), "first".to_owned(), Some(terms("one", "linux")), |_| ()))
        .unwrap();
    let mut state = State::open_shared(lease.tenure()).unwrap();
    state.add_client(b("bob"), b"1").unwrap();
    assert_eq!(server.query("SELECT count(*) FROM sturdy_refs"), "1");
}

#[test]
fn what_a_later_version_made_is_left_alone() {
    kiln_testkit::need!(Need::Postgres);
    let server = Server::start();
    let lease = acquire(&server, "first");
    drop(State::open_shared(lease.tenure()).unwrap());
    server.query("UPDATE kiln_schema SET version = 1000");
    let error = State::open_shared(lease.tenure()).expect_err("it is newer");
    let StateError::Open { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(
        source.to_string(),
        "it has schema 1000, and this version of kiln knows 1; use the version that made it, or a later one"
    );
}

/// Stands by as long as the first thing that is told of it, or ends.
fn stand_by(server: &Server, terms: Terms) -> Result<Standing, StateError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
        let acquiring = Lease::acquire(server.address(), "second".to_owned(), Some(terms), |standing| {
            sender.send(standing.clone()).unwrap();
        });
        tokio::select! {
            lease = acquiring => Err(lease.expect_err("another one has it")),
            standing = told.recv() => Ok(standing.expect("it is told")),
        }
    })
}

#[test]
fn one_that_could_not_serve_does_not_stand_by() {
    kiln_testkit::need!(kiln_testkit::Need::Postgres);
    let server = Server::start();
    let held = acquire(&server, "first");
    drop(State::open_shared(held.tenure()).unwrap());
    let by = |pools: Option<&str>| Standing::By { holder: "first".to_owned(), pools: pools.map(str::to_owned) };
    assert_eq!(stand_by(&server, terms("one", "linux")).unwrap(), by(None));
    // Pools may differ for a while, which is told.
    assert_eq!(stand_by(&server, terms("one", "arm,linux")).unwrap(), by(Some("linux")));
    let other_key = || {
        let error = stand_by(&server, terms("two", "linux")).unwrap_err();
        let StateError::OtherKey { theirs, ours, .. } = &error else { panic!("{error:?}") };
        assert_eq!((theirs.as_str(), ours.as_str()), ("one", "two"));
    };
    other_key();
    // Also when nobody serves: it would, and nobody could connect.
    release(held);
    other_key();
    // An older schema is brought up to date by who serves; until then it stays.
    server.query("UPDATE kiln_schema SET version = 0");
    let held = acquire(&server, "first");
    assert_eq!(stand_by(&server, terms("one", "linux")).unwrap(), by(None));
    assert_eq!(server.query("SELECT version FROM kiln_schema"), "0");
    // A newer one is another program's. It may come about while one stands by, and nobody need serve.
    let (tell, told) = std::sync::mpsc::channel();
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let tell = |standing: &Standing| tell.send(standing.clone()).unwrap();
            let name = "third".to_owned();
            let acquired = runtime.block_on(Lease::acquire(server.address(), name, Some(terms("one", "linux")), tell));
            sender.send(acquired.unwrap_err()).unwrap();
        });
        assert_eq!(told.recv().unwrap(), by(None));
        server.query("UPDATE kiln_schema SET version = 1000");
        let newer = |error: StateError| {
            let StateError::Open { source: DatabaseError::Newer { found: 1000, .. }, .. } = error else {
                panic!("{error:?}")
            };
        };
        newer(ended.recv().unwrap());
        release(held);
        newer(stand_by(&server, terms("one", "linux")).unwrap_err());
    });
    // The lease was not taken.
    assert_eq!(server.query("SELECT epoch, holder IS NULL FROM kiln_lease"), "2|t");
}
