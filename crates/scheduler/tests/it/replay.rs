//! What OCluster's own clients and administrators said, word for word, and what its scheduler answered.
//!
//! Each conversation of `vectors` is had again with our scheduler, in the recorded order: what a client sent after it had an answer is
//! sent when there is ours. Compared are returns, their errors and their contents, and capabilities in them by number. Numbers of
//! capabilities and of questions to the client differ, and are translated. Not compared: `Finish` and `Release`, whether something is
//! known already or still a promise, random ids, and times in the text of `show`.

use std::collections::HashMap;
use std::fs;

use capnp::message::{Builder, Reader, ReaderOptions};
use capnp::serialize::OwnedSegments;
use capnp::traits::{Imbue as _, ImbueMut as _};
use capnp_rpc::rpc_capnp::{
    call as rpc_call, cap_descriptor, message as rpc, message_target, payload, resolve, return_,
};
use kiln_api::{Address, Answer, Error, Job, JobServer, LogChunk, PoolAdmin, Registration, Submission, answer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

use crate::migration::take_over;
use crate::peers::{JobDescriptions as _, TestWorker};
use crate::world::{Guest, World, insecure_world, vectors};

const JOB: u64 = 0xca66_fd1f_972e_fccc;
const POOL_ADMIN: u64 = 0xd906_b771_b408_2451;
const PERSISTENT: u64 = 0xc8cb_212f_cd9f_5691;

type Message = Reader<OwnedSegments>;
/// An interface and a method.
type Method = (u64, u16);

enum Said {
    /// The message, and its bytes.
    ByClient(Message, Vec<u8>),
    ByServer(Message),
}

/// Returns messages, and where each ends.
fn read_all(mut bytes: &[u8]) -> Vec<(Message, usize)> {
    let mut messages = Vec::new();
    let whole = bytes.len();
    // The last message of a client that was killed may be cut off.
    while let Ok(Some(message)) = capnp::serialize::try_read_message(&mut bytes, ReaderOptions::new()) {
        messages.push((message, whole - bytes.len()));
    }
    messages
}

/// Returns the messages of a conversation, in the order in which they were complete.
fn conversation(name: &str) -> Vec<Said> {
    let file = |ending| fs::read(vectors().join(format!("{name}.{ending}"))).expect("a conversation");
    let bytes = file("c2s");
    let mut client = read_all(&bytes).into_iter().peekable();
    let mut server = read_all(&file("s2c")).into_iter().peekable();
    let (mut from_client, mut from_server, mut begin) = (0, 0, 0);
    let mut said = Vec::new();
    for event in String::from_utf8(file("events")).expect("text").lines() {
        let (side, size) = event.split_once(' ').expect("a side and a size");
        let size: usize = size.parse().expect("a size");
        if side == "c" {
            from_client += size;
            while let Some((message, end)) = client.next_if(|(_, end)| *end <= from_client) {
                said.push(Said::ByClient(message, bytes[begin..end].to_vec()));
                begin = end;
            }
        } else {
            from_server += size;
            while let Some((message, _)) = server.next_if(|(_, end)| *end <= from_server) {
                said.push(Said::ByServer(message));
            }
        }
    }
    said
}

fn which(message: &Message) -> rpc::WhichReader<'_> {
    let root: rpc::Reader<'_> = message.get_root().expect("a message");
    root.which().expect("a known message")
}

/// A return's results without where they came from, or its error.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// The content; nothing if there are capabilities in it, which is then all there is in this protocol.
    Results(Option<Vec<u8>>, usize),
    Exception(String, u16),
}

fn outcome(answer: &return_::Reader<'_>) -> Outcome {
    match answer.which().expect("a return") {
        return_::Results(payload) => {
            let payload = payload.expect("a payload");
            let capabilities = payload.get_cap_table().expect("a table").len();
            let content = (capabilities == 0).then(|| {
                let mut copy = Builder::new_default();
                copy.set_root_canonical(payload.get_content()).expect("a copy");
                let mut bytes = Vec::new();
                capnp::serialize::write_message(&mut bytes, &copy).expect("bytes");
                bytes
            });
            Outcome::Results(content, capabilities as usize)
        }
        return_::Exception(exception) => {
            let exception = exception.expect("an exception");
            let reason = exception.get_reason().expect("a reason").to_string().expect("text");
            Outcome::Exception(reason, exception.get_type().expect("a type") as u16)
        }
        _ => panic!("no other returns are in these conversations"),
    }
}

/// Returns the first text of a result.
fn text(answer: &return_::Reader<'_>) -> String {
    let return_::Results(Ok(payload)) = answer.which().expect("a return") else { panic!("there are results") };
    // Any structure of one pointer will do to read it.
    let results: capnp_rpc::rpc_capnp::exception::Reader<'_> = payload.get_content().get_as().expect("a structure");
    results.get_reason().expect("a text").to_string().expect("UTF-8")
}

fn table(payload: payload::Reader<'_>) -> Vec<(u32, bool)> {
    let table = payload.get_cap_table().expect("a table");
    table
        .iter()
        .map(|descriptor| match descriptor.which().expect("a descriptor") {
            cap_descriptor::SenderHosted(id) => (id, false),
            cap_descriptor::SenderPromise(id) => (id, true),
            _ => panic!("the server has all of them"),
        })
        .collect()
}

/// A job as it was recorded.
struct Recorded {
    log: HashMap<i64, LogChunk>,
    result: Option<Result<bstr::BString, Error>>,
}

impl JobServer for Recorded {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        match self.log.get(&start) {
            Some(chunk) => answer(Ok(chunk.clone())),
            None => Box::pin(std::future::pending()),
        }
    }

    fn result(&self) -> Answer<bstr::BString> {
        match &self.result {
            Some(result) => answer(result.clone()),
            None => Box::pin(std::future::pending()),
        }
    }

    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

/// Returns what was asked in each question of the client, in order.
fn questions(said: &[Said]) -> Vec<(u32, Method, Option<i64>)> {
    let mut questions = Vec::new();
    for said in said {
        let Said::ByClient(message, _) = said else { continue };
        match which(message) {
            rpc::Bootstrap(bootstrap) => questions.push((bootstrap.expect("it").get_question_id(), (0, 0), None)),
            rpc::Call(call) => {
                let call = call.expect("a call");
                let method = (call.get_interface_id(), call.get_method_id());
                let start =
                    (method == (JOB, 0)).then(|| log_start(call.get_params().expect("parameters").get_content()));
                questions.push((call.get_question_id(), method, start));
            }
            _ => {}
        }
    }
    questions
}

fn log_start(content: capnp::any_pointer::Reader<'_>) -> i64 {
    // A structure whose first word is a number of 32 bits followed by another.
    let low_and_high: capnp_rpc::rpc_capnp::release::Reader<'_> = content.get_as().expect("a structure");
    i64::from(low_and_high.get_id()) | i64::from(low_and_high.get_reference_count()) << 32
}

/// Returns the job that the recorded worker did.
fn recorded(said: &[Said]) -> Recorded {
    let mut job = Recorded { log: HashMap::new(), result: None };
    let mut asked: HashMap<u32, Vec<(Method, Option<i64>)>> = HashMap::new();
    for (question, method, start) in questions(said).into_iter().rev() {
        asked.entry(question).or_default().push((method, start));
    }
    for said in said {
        let Said::ByServer(message) = said else { continue };
        let rpc::Return(answer) = which(message) else { continue };
        let answer = answer.expect("a return");
        let (method, start) = asked.get_mut(&answer.get_answer_id()).and_then(Vec::pop).expect("it was asked");
        match (method, start) {
            ((JOB, 0), Some(start)) => {
                if let return_::Results(Ok(payload)) = answer.which().expect("a return") {
                    let results: log_results::Reader<'_> = payload.get_content().get_as().expect("a chunk");
                    let chunk = LogChunk { bytes: results.bytes(), next: results.next() };
                    job.log.insert(start, chunk);
                }
            }
            ((JOB, 1), _) => {
                job.result = Some(match outcome(&answer) {
                    Outcome::Results(..) => Ok(text(&answer).into()),
                    Outcome::Exception(reason, _) => Err(Error::failed(reason)),
                });
            }
            _ => {}
        }
    }
    job
}

/// The results of `Job.log`, which are of a shape that no structure of the RPC protocol has.
mod log_results {
    pub(super) struct Reader<'a>(capnp::private::layout::StructReader<'a>);

    impl Reader<'_> {
        pub(super) fn bytes(&self) -> Vec<u8> {
            self.0.get_pointer_field(0).get_data(None).expect("data").to_vec()
        }

        pub(super) fn next(&self) -> i64 {
            self.0.get_data_field::<i64>(0)
        }
    }

    impl<'a> capnp::traits::FromPointerReader<'a> for Reader<'a> {
        fn get_from_pointer(
            reader: &capnp::private::layout::PointerReader<'a>,
            _: Option<&'a [capnp::Word]>,
        ) -> capnp::Result<Self> {
            Ok(Self(reader.get_struct(None)?))
        }
    }
}

/// Returns the bytes of a changed copy.
fn change(message: &Message, change: impl FnOnce(rpc::WhichBuilder<'_>)) -> Vec<u8> {
    let mut copy = Builder::new_default();
    copy.set_root(message.get_root::<rpc::Reader<'_>>().expect("a message")).expect("a copy");
    change(copy.get_root::<rpc::Builder<'_>>().expect("a message").which().expect("a known message"));
    capnp::serialize::write_message_to_words(&copy)
}

/// Returns the bytes of a call, on another capability. What is a capability in its parameters is no plain data to copy.
fn call_on(capability: u32, from: &rpc_call::Reader<'_>) -> Vec<u8> {
    let mut copy = Builder::new_default();
    let mut call = copy.init_root::<rpc::Builder<'_>>().init_call();
    call.set_question_id(from.get_question_id());
    call.set_interface_id(from.get_interface_id());
    call.set_method_id(from.get_method_id());
    call.reborrow().get_target().expect("a target").set_imported_cap(capability);
    let (from, mut to) = (from.get_params().expect("parameters"), call.init_params());
    let table = from.get_cap_table().expect("a table");
    to.set_cap_table(table).expect("a copy");
    let stand_in = || Some(capnp_rpc::new_broken_cap(capnp::Error::failed("nobody".to_owned())).hook);
    let (stand_ins, mut found) = (table.iter().map(|_| stand_in()).collect(), Vec::new());
    let (mut content, mut into) = (from.get_content(), to.get_content());
    content.imbue(&stand_ins);
    into.imbue_mut(&mut found);
    into.set_as(content).expect("a copy");
    capnp::serialize::write_message_to_words(&copy)
}

/// A client that says what was recorded.
struct Player {
    stream: Compat<TcpStream>,
    /// Messages of our scheduler that were not looked for yet.
    ours: Vec<Message>,
    methods: HashMap<u32, Method>,
    /// Our capabilities by their numbers, and whether ours was a promise.
    capabilities: HashMap<u32, (u32, bool)>,
    /// Our questions by the numbers of theirs.
    their_questions: HashMap<u32, u32>,
}

impl Player {
    /// Returns the next message of our scheduler that is wanted.
    async fn next(&mut self, wanted: impl Fn(&rpc::WhichReader<'_>) -> bool) -> Message {
        if let Some(index) = self.ours.iter().position(|message| wanted(&which(message))) {
            return self.ours.remove(index);
        }
        loop {
            let message = capnp_futures::serialize::try_read_message(&mut self.stream, ReaderOptions::new());
            let message = message.await.expect("a message").expect("it goes on");
            if wanted(&which(&message)) {
                return message;
            }
            self.ours.push(message);
        }
    }

    /// Says what theirs said, with our numbers.
    async fn say(&mut self, message: &Message, bytes: &[u8]) {
        let capability = |id| self.capabilities[&id].0;
        let changed = match which(message) {
            rpc::Bootstrap(bootstrap) => {
                self.methods.insert(bootstrap.expect("it").get_question_id(), (0, 0));
                None
            }
            rpc::Call(call) => {
                let call = call.expect("a call");
                let method = (call.get_interface_id(), call.get_method_id());
                self.methods.insert(call.get_question_id(), method);
                match call.get_target().expect("a target").which().expect("a target") {
                    message_target::ImportedCap(id) => Some(call_on(capability(id), &call)),
                    message_target::PromisedAnswer(_) => None,
                }
            }
            rpc::Return(answer) => {
                let ours = self.their_questions[&answer.expect("a return").get_answer_id()];
                Some(change(message, |root| {
                    let rpc::Return(answer) = root else { panic!("it is a return") };
                    answer.expect("it").set_answer_id(ours);
                }))
            }
            rpc::Release(release) => {
                let ours = capability(release.expect("a release").get_id());
                Some(change(message, |root| {
                    let rpc::Release(release) = root else { panic!("it is a release") };
                    release.expect("it").set_id(ours);
                }))
            }
            _ => None,
        };
        let bytes = changed.as_deref().unwrap_or(bytes);
        self.stream.get_mut().write_all(bytes).await.expect("it is heard");
    }

    /// Waits for our answer to what theirs was, and compares.
    async fn hear(&mut self, theirs: &Message) {
        match which(theirs) {
            rpc::Return(theirs) => {
                let theirs = theirs.expect("a return");
                let question = theirs.get_answer_id();
                let ours =
                    self.next(|message| matches!(message, rpc::Return(Ok(it)) if it.get_answer_id() == question));
                let ours = ours.await;
                let rpc::Return(Ok(ours)) = which(&ours) else { panic!("it is one") };
                match self.methods[&question] {
                    (POOL_ADMIN, 0) if matches!(outcome(&theirs), Outcome::Results(..)) => {
                        assert_eq!(shape(&text(&ours)), shape(&text(&theirs)));
                    }
                    (PERSISTENT, 0) if matches!(outcome(&theirs), Outcome::Results(..)) => {
                        assert!(matches!(outcome(&ours), Outcome::Results(Some(_), 0)));
                    }
                    method => assert_eq!(outcome(&ours), outcome(&theirs), "{method:x?}"),
                }
                if let (return_::Results(Ok(theirs)), return_::Results(Ok(ours))) =
                    (theirs.which().expect("it"), ours.which().expect("it"))
                {
                    let ours = table(ours);
                    for ((theirs, _), ours) in table(theirs).into_iter().zip(ours) {
                        self.capabilities.insert(theirs, ours);
                    }
                }
            }
            rpc::Resolve(theirs) => {
                let theirs = theirs.expect("a resolution");
                let (promise, is_promise) = self.capabilities[&theirs.get_promise_id()];
                let hosted = |resolve: resolve::Reader<'_>| match resolve.which().expect("it") {
                    resolve::Cap(descriptor) => match descriptor.expect("it").which().expect("it") {
                        cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => Ok(id),
                        _ => panic!("the server has it"),
                    },
                    resolve::Exception(exception) => {
                        Err(exception.expect("it").get_reason().expect("it").to_string().expect("text"))
                    }
                };
                if !is_promise {
                    // It was known at once.
                    self.capabilities.insert(hosted(theirs).expect("it is no failure"), (promise, false));
                    return;
                }
                let ours =
                    self.next(|message| matches!(message, rpc::Resolve(Ok(it)) if it.get_promise_id() == promise));
                let ours = ours.await;
                let rpc::Resolve(Ok(ours)) = which(&ours) else { panic!("it is one") };
                match (hosted(theirs), hosted(ours)) {
                    (Ok(theirs), Ok(ours)) => {
                        self.capabilities.insert(theirs, (ours, false));
                    }
                    (theirs, ours) => assert_eq!(theirs.err(), ours.err()),
                }
            }
            rpc::Call(theirs) => {
                let theirs = theirs.expect("a call");
                let ours = self.next(|message| matches!(message, rpc::Call(_))).await;
                let rpc::Call(Ok(ours)) = which(&ours) else { panic!("it is one") };
                assert_eq!(
                    (ours.get_interface_id(), ours.get_method_id()),
                    (theirs.get_interface_id(), theirs.get_method_id())
                );
                self.their_questions.insert(theirs.get_question_id(), ours.get_question_id());
            }
            // The server's own business.
            _ => {}
        }
    }
}

/// Returns a pool's text without times, and without what only one of the two schedulers charges.
fn shape(text: &str) -> Vec<String> {
    let without_time = |item: &str| match item.split_once(['@', '+']) {
        Some((before, after)) => format!("{before}{}", if after.ends_with(']') { "]" } else { "" }),
        None => item.to_owned(),
    };
    text.lines().map(|line| line.split(' ').map(without_time).collect::<Vec<_>>().join(" ")).collect()
}

/// Brings a scheduler to where the recorded one was.
struct Stage<'a> {
    world: &'a World,
    pool: Guest<PoolAdmin>,
    alice: Guest<Submission>,
}

impl Stage<'_> {
    async fn prepare(&self, name: &str) -> Vec<kiln_api::Ticket> {
        let bob_is_there = ["admin-add-dup", "admin-list-clients", "admin-remove-client", "admin-set-rate"];
        if bob_is_there.contains(&name) || name.starts_with("admin-show-ghost") || name == "admin-show-paused" {
            self.world.add_client("bob").await;
        }
        let mut tickets = Vec::new();
        match name {
            "admin-list-clients" => self.world.admin().await.remove_client(b"carol").await.expect("it is there"),
            "admin-show-ghost" | "admin-forget" => {
                self.pool.set_active(b"ghost", false, true).await.expect("it is made known");
            }
            "admin-unpause" | "admin-show-paused" => {
                self.pool.set_active(b"w1", false, false).await.expect("it is known");
            }
            "submit-queued-released-2" => {
                tickets.push(self.alice.submit(b"linux-arm64", &"hq".job(), false).expect("it is small"));
                self.world.until_shown_in("linux-arm64", |text| text.contains("alice:hq")).await;
            }
            "submit-queued-released-3" => {
                let ticket = self.alice.submit(b"linux-arm64", &"hq".job(), false).expect("it is small");
                self.world.until_shown_in("linux-arm64", |text| text.contains("alice:hq")).await;
                drop(ticket);
                self.world
                    .until_shown_in("linux-arm64", |text| text.contains("clients: alice") && text.contains("[]"))
                    .await;
            }
            _ => {}
        }
        if name.starts_with("admin-show-ghost") || name == "admin-show-paused" {
            self.pool.set_rate(b"bob", 2.0).await.expect("it is there");
        }
        tickets
    }
}

async fn replay(name: &str) {
    insecure_world(async |world| {
        world.stop().await;
        world.start_with(take_over(world)).await;
        let said = conversation(name);
        assert!(said.len() > 3, "{name}");

        let pool_uri = world.running().pools[&bstr::BString::from("linux-x86_64")].clone();
        let registration: Guest<Registration> = world.open(&pool_uri).await;
        let worker = TestWorker::register_at(registration, "w1", 2).await.expect("it is free");
        let Guest { connection, it } = world.admin().await;
        let alice = kiln_api::cap_file::load(&vectors().join("migration/submit-alice.cap")).expect("a capability");
        let alice = world.running().admin.with_service(alice.service);
        let stage =
            Stage { world, pool: Guest { connection, it: it.pool(b"linux-x86_64") }, alice: world.open(&alice).await };
        let (end, mut ended) = watch::channel(false);
        let drained = name == "admin-drain-2";
        let ticket = drained.then(|| stage.alice.submit(b"linux-x86_64", &"".job(), false).expect("it is small"));
        let task = match drained {
            true => Some(worker.take().await),
            false => None,
        };
        let finish = async {
            ended.wait_for(|is| *is).await.expect("it ends");
            if let Some(task) = &task {
                task.finish(Ok("".into()));
            }
            std::future::pending::<()>().await;
        };
        let job = Job::serve(recorded(&said));
        let serve = async {
            worker.queue.pop(job).await.expect("it is needed, or given up");
            std::future::pending::<()>().await;
        };
        let play = async {
            let ready = name != "admin-drain-2";
            world.until_shown_in("linux-x86_64", |text| !ready || text.contains("(ready) [w1]")).await;
            let _tickets = stage.prepare(name).await;
            let Address::Tcp { port, .. } = *world.running().admin.addresses.first() else { panic!("it is TCP") };
            let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens").compat();
            let mut player = Player {
                stream,
                ours: Vec::new(),
                methods: HashMap::new(),
                capabilities: HashMap::new(),
                their_questions: HashMap::new(),
            };
            for said in &said {
                match said {
                    Said::ByClient(message, bytes) => player.say(message, bytes).await,
                    Said::ByServer(message) => {
                        player.hear(message).await;
                        if let rpc::Call(_) = which(message) {
                            end.send_replace(true);
                        }
                    }
                }
            }
        };
        tokio::select! {
            () = serve => {}
            () = finish => {}
            () = play => {}
        }
        drop(ticket);
    })
    .await;
}

macro_rules! conversations {
    ($($function:ident $name:literal),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $function() {
                replay($name).await;
            }
        )*

        #[test]
        fn every_conversation_is_replayed() {
            let mut names: Vec<_> = fs::read_dir(vectors())
                .expect("a directory")
                .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
                .filter_map(|name| Some(name.strip_suffix(".c2s")?.to_owned()))
                // A worker's, which is the other side of what the others are.
                .filter(|name| name != "worker-register")
                .collect();
            names.sort();
            assert_eq!(names, [$($name),*]);
        }
    };
}

conversations! {
    a_client_is_added "admin-add-client",
    a_client_is_added_twice "admin-add-dup",
    a_job_runs_while_its_worker_is_drained "admin-drain-1",
    a_worker_is_drained "admin-drain-2",
    a_worker_is_paused_and_waited_for_in_vain "admin-drain-3",
    workers_are_listed_for_a_command "admin-exec",
    a_worker_is_forgotten "admin-forget",
    a_connected_worker_is_forgotten "admin-forget-connected",
    clients_are_listed "admin-list-clients",
    an_unknown_pool_is_shown "admin-nopool",
    a_worker_is_paused "admin-pause",
    an_unknown_worker_is_announced "admin-pause-autocreate",
    an_unknown_worker_is_paused "admin-pause-unknown",
    a_client_is_removed "admin-remove-client",
    a_rate_is_set "admin-set-rate",
    a_rate_of_nobody_is_set "admin-set-rate-unknown",
    pools_are_listed "admin-show",
    a_pool_with_a_worker_that_is_away_is_shown "admin-show-ghost",
    a_pool_with_a_paused_worker_is_shown "admin-show-paused",
    a_pool_is_shown "admin-show-pool",
    workers_are_listed "admin-terse",
    a_worker_is_unpaused "admin-unpause",
    a_job_for_an_unknown_pool_is_submitted "submit-bad-pool",
    a_job_that_is_no_spec_is_submitted "submit-bad-spec",
    a_job_is_submitted_and_its_client_goes_away "submit-cancel",
    a_job_that_fails_is_submitted "submit-fail",
    a_job_with_a_commit_that_is_not_there_is_submitted "submit-git-missing",
    a_job_is_submitted "submit-ok",
    a_job_is_submitted_that_has_to_wait "submit-queued-released-1",
    a_pool_with_a_job_that_waits_is_shown "submit-queued-released-2",
    a_pool_whose_job_is_gone_is_shown "submit-queued-released-3",
    a_job_with_a_secret_is_submitted "submit-secret",
    an_urgent_job_is_submitted "submit-urgent",
}
