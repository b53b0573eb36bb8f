//! Clients are allowed, and no longer.

use kiln_api::{Error, Submission};

use crate::peers::submit;
use crate::world::{Guest, POOL, a_job_goes_through, insecure_world, world};

#[tokio::test]
async fn a_new_clients_uri_works_also_after_a_restart() {
    for insecure in [false, true] {
        let test = async |world: &crate::world::World| {
            let uri = world.add_client("alice").await;
            // The address of before is not the address of now.
            assert_eq!(uri, world.here(&uri));
            {
                let client: Guest<Submission> = world.open(&uri).await;
                a_job_goes_through(POOL, &client, &world.worker("w1", 1).await).await;
                // Saving it again says the same.
                assert_eq!(client.save().await.expect("a URI"), uri);
            }
            world.stop().await;
            world.start().await;
            let client: Guest<Submission> = world.open(&world.here(&uri)).await;
            a_job_goes_through(POOL, &client, &world.worker("w1", 1).await).await;
            assert_eq!(world.admin().await.list_clients().await.expect("a list"), ["alice"]);
        };
        if insecure { insecure_world(test).await } else { world(test).await }
    }
}

#[tokio::test]
async fn a_client_is_added_once() {
    world(async |world| {
        let uri = world.add_client("alice").await;
        let again = world.admin().await.add_client(b"alice").save().await;
        assert_eq!(again, Err(Error::failed("Client \"alice\" already registered!")));
        // The first is as good as before.
        let client: Guest<Submission> = world.open(&uri).await;
        a_job_goes_through(POOL, &client, &world.worker("w1", 1).await).await;
    })
    .await;
}

#[tokio::test]
async fn a_removed_client_submits_nothing_more_and_its_jobs_go_on() {
    world(async |world| {
        let uri = world.add_client("alice").await;
        let client: Guest<Submission> = world.open(&uri).await;
        let tickets = [submit(&client, "a"), submit(&client, "b")];
        world.until_shown(|text| text.contains("alice:b")).await;
        let worker = world.worker("w1", 1).await;
        let admin = world.admin().await;
        admin.remove_client(b"alice").await.expect("it is removed");
        assert_eq!(admin.remove_client(b"alice").await, Err(Error::failed("No such user")));
        assert_eq!(admin.list_clients().await.expect("a list"), Vec::<bstr::BString>::new());

        let removed = Err(Error::failed("this client has been removed"));
        let late = submit(&client, "c");
        assert_eq!(late.job().result().await, removed);
        let other: Guest<Submission> = world.open(&uri).await;
        let unknown = submit(&other, "d");
        assert_eq!(unknown.job().result().await, Err(Error::failed("Unknown persistent service ID")));
        assert_eq!(other.save().await, Err(Error::failed("Unknown persistent service ID")));

        for ticket in tickets {
            worker.take().await.finish(Ok("".into()));
            ticket.job().result().await.expect("it ends well");
        }

        // Whoever has the old capability gets nothing from a new client of the same name.
        let new = world.client("alice").await;
        let late = submit(&client, "c");
        assert_eq!(late.job().result().await, removed);
        a_job_goes_through(POOL, &new, &worker).await;
    })
    .await;
}
