//! Many workers and many jobs, as `examples/load` has them in thousands.

use std::rc::Rc;
use std::time::Duration;

use crate::world::{POOL, world};

#[path = "../../examples/load/play/mod.rs"]
mod play;

use play::{Plan, Tally, play};

#[tokio::test]
async fn every_job_of_many_is_run_once_and_its_client_gets_its_log_and_its_result() {
    world(async |world| {
        let plan = Plan {
            pool: world.running().pools[POOL].clone(),
            pool_name: POOL.into(),
            clients: vec![world.add_client("alice").await, world.add_client("bob").await],
            workers: 50,
            capacity: 2,
            jobs: 500,
            // All at once.
            rate: f64::INFINITY,
            job: Duration::ZERO,
        };
        let tally = Rc::new(Tally::default());
        play(&plan, &tally).await;
        assert_eq!((tally.errors.get(), tally.first_errors.take()), (0, vec![]));
        assert_eq!((tally.submitted.get(), tally.ended.get(), tally.again.get()), (500, 500, 0));
        // A duration of each is known, and all workers came and went.
        assert_eq!([&tally.lateness, &tally.arrival, &tally.end].map(|times| times.all().len()), [500; 3]);
        assert_eq!((tally.complete_after.take().len(), tally.registered()), (1, 0));
    })
    .await;
}
