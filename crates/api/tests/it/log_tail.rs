//! A log is read whole, however it comes.

use std::rc::Rc;

use bstr::BString;
use kiln_api::{Answer, Job, JobServer, LogChunk, LogTail, MAX_CHUNK, answer};
use proptest::prelude::*;
use tokio::sync::watch;

/// A log that grows: its length, and whether it is complete.
#[derive(Clone)]
struct Growing(watch::Receiver<(usize, bool)>);

fn byte(position: usize) -> u8 {
    // Parts at wrong places do not look right.
    u8::try_from(position % 251).expect("it is less")
}

impl JobServer for Growing {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        let mut state = self.0.clone();
        let start = usize::try_from(start).expect("none is negative");
        Box::pin(async move {
            let (length, _) = *state.wait_for(|(length, ended)| *length > start || *ended).await.expect("it is there");
            let end = length.max(start).min(start + MAX_CHUNK);
            let next = i64::try_from(end).expect("it is small");
            Ok(LogChunk { bytes: (start..end).map(byte).collect(), next })
        })
    }

    fn result(&self) -> Answer<BString> {
        answer(Ok(BString::default()))
    }

    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

async fn read(bursts: &[usize]) -> Vec<u8> {
    let (grow, state) = watch::channel((0, false));
    let mut log = LogTail::new(Job::serve(Growing(state)));
    let read = Rc::new(std::cell::RefCell::new(Vec::new()));
    let reading = async {
        loop {
            let part = log.next().await.expect("it can be read");
            if part.is_empty() {
                break;
            }
            read.borrow_mut().extend(part);
        }
    };
    let growing = async {
        for burst in bursts {
            grow.send_modify(|(length, _)| *length += burst);
            tokio::task::yield_now().await;
        }
        grow.send_modify(|(_, ended)| *ended = true);
    };
    tokio::join!(reading, growing);
    read.take()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_log_is_read_whole_however_it_comes(
        bursts in proptest::collection::vec(prop_oneof![1..100usize, Just(MAX_CHUNK), 1..30 * MAX_CHUNK], 0..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let log = tokio::task::LocalSet::new().block_on(&runtime, read(&bursts));
        let length = bursts.iter().sum();
        prop_assert!(log == (0..length).map(byte).collect::<Vec<_>>(), "{} bytes of {length}", log.len());
    }
}
