# What the programs of a cluster say to each other.
#
# Every program of OCluster and of Kiln speaks this. The id of this file and the names of types and interfaces make the ids on the
# wire, so neither may change; members may be added at the end.
#
# Who holds a reference may call it, and there is no other right: a reference to a Registration is the right to be a worker.
# References reach others by the calls below and, as sturdy references, in capability files. A method that returns a reference may
# answer at once with a promise; calls on it wait until it is settled. Text is bytes, and need not be UTF-8.
@0x8378b104cef5b2eb;

struct DockerBuild {
  dockerfile :union {
    contents @0 :Text;
    # The recipe itself.

    path @5 :Text;
    # The name of a file in the sources.
  }

  pushTarget @1 :Text;
  # REPOSITORY:TAG to push the image to. Empty: it is not pushed.

  pushUser @2 :Text;
  pushPassword @3 :Text;

  buildArgs @4 :List(Text);
  # NAME=VALUE.

  squash @6 :Bool;
  # One layer for the whole build.

  buildkit @7 :Bool;

  includeGit @8 :Bool;
  # Leave .git in the sources.
}

struct OBuilder {
  spec @0 :Text;
}

struct Custom {
  kind @0 :Text;
  # Which of a worker's own kinds of job this is.

  payload @1 :AnyPointer;
}

struct Secret {
  id @0 :Text;
  value @1 :Text;
}

struct JobDescr {
  action :union {
    dockerBuild @0 :DockerBuild;
    obuilder @4 :OBuilder;
    custom @6 :Custom;
  }

  cacheHint @1 :Text;
  # Jobs with the same hint go, if they can, where one of them ran before. Empty: no hint.

  repository @2 :Text;
  # The URL of a git repository with the sources. Empty: there are none.

  commits @3 :List(Text);
  # The first is checked out, and the others are merged into it.

  secrets @5 :List(Secret);
}

interface Job {
  # A job that a worker does. It is cancelled when nobody refers to it or its ticket any more.

  log @0 (start :Int64) -> (log :Data, next :Int64);
  # Waits until there is something past `start`, and returns it, or part of it, and where it ends. No bytes: the log is complete.
  # A negative start counts from the end.

  result @1 () -> (output :Text);
  # Waits for the end. A job that fails or is cancelled is an exception.

  cancel @2 () -> ();
}

interface Queue {
  # Where a registered worker gets its jobs. Releasing it is leaving the pool.

  pop @0 (job :Job) -> (descr :JobDescr);
  # Waits for a job. `job` will be it: it is given to the client before the call returns.

  setActive @1 (active :Bool) -> ();
  # Whether the worker wants jobs at all. At first it does not.
}

struct Metric {
  contentType @0 :Text;
  data @1 :Text;
}

struct AdditionalMetric {
  union {
    metric @0 :Metric;
    notReported @1 :Void;
  }
}

interface Worker {
  # What a worker lets its scheduler do.

  enum MetricsSource {
    agent @0;
    # The worker itself.

    host @1;
    # The machine it runs on.
  }

  metrics @0 (source :MetricsSource) -> (contentType :Text, data :Text);

  selfUpdate @1 () -> ();
  # Finishes what is running, then restarts with the newest version. Lost connections while this waits are success.

  additionalMetric @2 (source :Text) -> (metric :AdditionalMetric);
}

interface Registration {
  # The right to be a worker of one pool.

  register @0 (name :Text, worker :Worker, capacity :Int32) -> (queue :Queue);
  # `capacity` is how many jobs it does at once. Names are unique among connected workers.
}

interface Ticket {
  # A submitted job.

  job @0 () -> (job :Job);
  # Returns a promise that is settled when a worker takes the job.

  cancel @1 () -> ();
}

interface Submission {
  # The right to submit jobs, as one client.

  submit @0 (pool :Text, descr :JobDescr, urgent :Bool) -> (ticket :Ticket);
}

struct WorkerInfo {
  name @0 :Text;

  active @1 :Bool;
  # Not paused by an administrator.

  connected @2 :Bool;
}

interface Progress {
  # What happens while a call waits.

  report @0 (status :Text) -> ();
}

interface PoolAdmin {
  show @0 () -> (state :Text);
  # For people.

  workers @1 () -> (workers :List(WorkerInfo));

  setActive @2 (worker :Text, active :Bool, autoCreate :Bool) -> ();
  # Pauses a worker, or lets it go on. `autoCreate`: one that was never connected, too.

  worker @3 (worker :Text) -> (worker :Worker);

  update @4 (worker :Text, progress :Progress) -> ();
  # Waits for the worker's jobs, has it update itself, and waits until it is back.

  setRate @5 (id :Text, rate :Float64) -> ();
  # A client's share: twice the rate is twice as many jobs when all wait.

  forget @6 (worker :Text) -> ();
  # Forgets a worker that is not connected.

  drain @7 (worker :Text, progress :Progress) -> ();
  # Pauses a worker and waits until it has no job.
}

interface Admin {
  pools @0 () -> (names :List(Text));

  pool @1 (name :Text) -> (pool :PoolAdmin);

  addClient @2 (id :Text) -> (cap :Submission);
  # Allows another client. What it returns can be saved.

  removeClient @3 (id :Text) -> (cap :Submission);
  # No longer allows a client, and cancels nothing. Returns no reference.

  listClients @4 () -> (clients :List(Text));
}
