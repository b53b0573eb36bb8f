# What Kiln's programs say to each other beyond OCluster's interfaces.
#
# The objects are OCluster's, with more methods. A program that asks for one of these and is told that it is not implemented speaks with
# a program of OCluster's, and goes on without.
#
# A *run* is one try of a worker at a job. A job has an id for its whole life, and its runs are numbered from 1.
@0xd1a6c3f0b7e94528;

using OCluster = import "ocluster.capnp";
using Vat = import "vat.capnp";

interface KilnJob extends(OCluster.Job) {
  # A job on its worker, which does not end when its scheduler is not there: it is cancelled by `cancel` alone, and offered again when the
  # worker is connected again.

  forget @0 () -> ();
  # The scheduler keeps the log and the result, so the worker need not.
}

interface KilnQueue extends(OCluster.Queue) {
  # A worker's place in its pool. It gets nothing until `ready`.

  take @0 (job :KilnJob) -> (descr :OCluster.JobDescr, id :Data, run :UInt32);
  # As `pop`, and tells which run of which job it is.

  offer @1 (id :Data, run :UInt32, job :KilnJob) -> (wanted :Bool);
  # Hands a job over again that the worker took before it lost its connection. If it is not wanted, the worker cancels it.

  ready @2 () -> ();
  # All has been offered. What ran on the worker before and was not is lost.
}

interface KilnRegistration extends(OCluster.Registration) {
  enter @0 (name :Text, worker :OCluster.Worker, capacity :Int32, process :Data) -> (queue :KilnQueue);
  # As `register`. A worker of the same name and process, bytes that it chose when it started, is replaced: it is this one's older self,
  # whose connection has not yet been noticed to be lost.
}

interface KilnTicket extends(OCluster.Ticket) {
  stored @0 () -> ();
  # Waits until the job outlives the scheduler.
}

struct JobInfo {
  id @0 :Data;
  pool @1 :Text;
  submitted @2 :Int64;
  # Seconds since 1970.

  runs @3 :UInt32;
  # How often a worker has begun it.

  state :union {
    waiting @4 :Void;
    running @5 :Text;
    # The name of the worker.

    lost @6 :Text;
    # The worker is gone, and may come back.

    succeeded @7 :Text;
    # The result.

    failed @8 :Text;
    # Why: it was wrong, or cancelled.

    abandoned @9 :Text;
    # Why the cluster could not do it.
  }
}

interface KilnSubmission extends(OCluster.Submission, Vat.Persistent) {
  # A client's jobs that are kept: they outlive the scheduler, and their logs and results outlive their workers.

  submitKept @0 (id :Data, pool :Text, descr :OCluster.JobDescr, urgent :Bool, detached :Bool) -> (ticket :KilnTicket, isNew :Bool);
  # Submits a job under an id that the client chose, 10 random bytes. If it has submitted it already, this is the same job, and nothing
  # but what the scheduler has forgotten of it, its secrets, is taken from the description. One that is not detached needs its client: it
  # is cancelled when that ends, or loses its connection and does not come back.

  find @1 (id :Data) -> (job :OCluster.Job, info :JobInfo);
  # A reference that does not hold the job.

  cancel @2 (id :Data) -> ();

  list @3 () -> (jobs :List(JobInfo));
  # Those that have not ended, and the latest that have, newest first.
}
