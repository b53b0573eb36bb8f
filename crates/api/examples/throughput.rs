//! How fast a log goes from a worker through a scheduler to a client, and how long a call takes, each over TLS on the loopback
//! interface, and each vat on a thread of its own.
//!
//!     cargo run --release -p kiln-api --example throughput

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use bstr::BString;
use kiln_api::{
    Address, Answer, Capability, CapabilityUri, Connection, Error, Identity, Job, JobDescription, JobServer, Key,
    Limits, Link, Listener, LogChunk, Metric, MetricsSource, Queue, QueueServer, Registration, RegistrationServer,
    Security, ServiceId, Services, Worker, WorkerServer, answer,
};
use tokio_util::sync::CancellationToken;

/// A log of zeros, handed out in pieces of one size.
struct Zeros {
    chunk: usize,
    end: i64,
}

impl JobServer for Zeros {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        let length = usize::try_from(self.end - start).unwrap_or(0).min(self.chunk);
        answer(Ok(LogChunk { bytes: vec![0; length], next: start + i64::try_from(length).unwrap_or(0) }))
    }
    fn result(&self) -> Answer<BString> {
        answer(Ok("".into()))
    }
    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

struct Idle;

impl WorkerServer for Idle {
    fn metrics(&self, _: MetricsSource) -> Answer<Metric> {
        answer(Err(Error::failed("none")))
    }
    fn self_update(&self) -> Answer<()> {
        answer(Ok(()))
    }
    fn additional_metric(&self, _: BString) -> Answer<Option<Metric>> {
        answer(Ok(None))
    }
}

/// Hands the last worker's job to whoever asks.
#[derive(Clone, Default)]
struct Scheduler(Rc<RefCell<Option<Job>>>);

impl Services for Scheduler {
    fn restore(&self, id: &ServiceId, _: &Link) -> Answer<Capability> {
        answer(match (id.0.as_slice(), &*self.0.borrow()) {
            (b"pool", _) => Ok(Registration::serve(self.clone()).into()),
            (b"job", Some(job)) => Ok(job.clone().into()),
            _ => Err(Error::failed("Unknown persistent service ID")),
        })
    }
}

impl RegistrationServer for Scheduler {
    fn register(&self, _: BString, _: Worker, _: i32) -> Answer<Queue> {
        answer(Ok(Queue::serve(self.clone())))
    }
}

impl QueueServer for Scheduler {
    fn pop(&self, job: Job) -> Answer<JobDescription> {
        *self.0.borrow_mut() = Some(job);
        Box::pin(std::future::pending())
    }
    fn set_active(&self, _: bool) -> Answer<()> {
        answer(Ok(()))
    }
}

/// Runs `future` on a runtime of its own.
fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

async fn open(uri: &CapabilityUri) -> Connection {
    let (key, _) = Key::generate().expect("a key");
    Connection::open(uri, &key, Limits::default()).await.expect("a connection")
}

fn main() {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        run(async {
            let (key, _) = Key::generate().expect("a key");
            let identity = Identity::Key(key.fingerprint());
            let address = Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
            let listener = Listener::bind(&address, Security::Key(Box::new(key)), Limits::default());
            let listener = listener.await.expect("a port");
            let addresses = listener.address().clone().into();
            tell.send(CapabilityUri { identity, addresses, service: ServiceId::default() }).expect("it is waited for");
            listener.serve(Scheduler::default(), CancellationToken::new()).await;
        });
    });
    let uri = told.recv().expect("the scheduler starts");
    for (chunk, megabytes) in [(10_240, 400), (65_536, 1000), (1 << 20, 1000)] {
        let (offered, offers) = std::sync::mpsc::channel();
        let (done, end) = tokio::sync::oneshot::channel::<()>();
        let worker_uri = uri.clone();
        let worker = std::thread::spawn(move || {
            run(async {
                let connection = open(&worker_uri).await;
                let pool: Registration = connection.bootstrap(&ServiceId(b"pool".to_vec()));
                let queue = pool.register(b"w", Worker::serve(Idle), 1).await.expect("a queue");
                let job = Job::serve(Zeros { chunk, end: megabytes * 1_000_000 });
                let pop = queue.pop(job);
                // Nothing is popped before this is answered.
                let ready = async {
                    queue.set_active(true).await.expect("an answer");
                    offered.send(()).expect("it is waited for");
                    let _ = end.await;
                };
                tokio::select! { _ = pop => {}, () = ready => {} }
            });
        });
        offers.recv().expect("the worker starts");
        run(async {
            let connection = open(&uri).await;
            let job: Job = connection.bootstrap(&ServiceId(b"job".to_vec()));
            let begun = Instant::now();
            let mut next = 0;
            loop {
                let part = job.log(next).await.expect("a part");
                if part.bytes.is_empty() {
                    break;
                }
                next = part.next;
            }
            let seconds = begun.elapsed().as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "it is shown with few digits")]
            let rate = next as f64 / 1e6 / seconds;
            println!("log in pieces of {chunk} bytes: {rate:.0} MB/s");
            if chunk == 10_240 {
                let mut times = Vec::new();
                for _ in 0..2000 {
                    let begun = Instant::now();
                    job.cancel().await.expect("an answer");
                    times.push(begun.elapsed());
                }
                times.sort();
                println!("call through a scheduler: median {:?}, 99 % {:?}", times[1000], times[1980]);
            }
            connection.close().await;
        });
        let _ = done.send(());
        worker.join().expect("it ends");
    }
}
