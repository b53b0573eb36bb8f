//! What clients get: the right to submit jobs.

use std::cell::Cell;
use std::rc::Rc;

use bstr::{BStr, BString};
use kiln_api::{
    Action, Answer, CapabilityUri, DockerBuild, Dockerfile, Error, ErrorKind, JobDescription, Reference as _,
    ServiceId, SubmissionServer, Ticket, answer,
};

use super::scheduler::Shared;
use super::tickets::ticket;

/// How much the descriptions of a client's waiting jobs may take, in bytes. Each is taken to be [`LEAST`] at least.
const MAX_WAITING: usize = 256 << 20;
const LEAST: usize = 1 << 10;

/// The longest cache hint, in bytes. Pools remember many that nobody is using.
const MAX_HINT: usize = 1 << 10;

/// A client that is allowed. All that its capability was ever given out for refer to the same one.
#[derive(Default)]
pub(super) struct Account {
    /// It was removed. It stays so, also when a client of this name is added again.
    pub(super) is_removed: Cell<bool>,
    /// Bytes of waiting jobs.
    waiting: Cell<usize>,
}

/// What a waiting job takes of its client's account, until this is dropped.
pub(super) struct Deposit {
    account: Rc<Account>,
    bytes: usize,
}

impl Deposit {
    /// Returns `None` if the client has too much waiting already.
    fn take(account: &Rc<Account>, bytes: usize) -> Option<Self> {
        let waiting = account.waiting.get().saturating_add(bytes);
        (waiting <= MAX_WAITING).then(|| {
            account.waiting.set(waiting);
            Self { account: Rc::clone(account), bytes }
        })
    }
}

impl Drop for Deposit {
    fn drop(&mut self) {
        self.account.waiting.set(self.account.waiting.get() - self.bytes);
    }
}

/// One client.
pub(super) struct Client {
    pub(super) shared: Rc<Shared>,
    pub(super) name: BString,
    pub(super) account: Rc<Account>,
    /// The secret that it came with.
    pub(super) id: ServiceId,
}

impl SubmissionServer for Client {
    fn submit(&self, pool: BString, description: JobDescription, urgent: bool) -> Ticket {
        self.try_submit(pool.as_ref(), description, urgent).unwrap_or_else(Ticket::broken)
    }

    fn save(&self) -> Answer<CapabilityUri> {
        answer(Ok(self.shared.uri(self.id.clone())))
    }
}

impl Client {
    fn try_submit(&self, pool: &BStr, description: JobDescription, urgent: bool) -> Result<Ticket, Error> {
        if self.account.is_removed.get() {
            return Err(Error::failed("this client has been removed"));
        }
        let pools = &self.shared.pools;
        let pool = pools.get(pool).ok_or_else(|| Error::failed(unknown_pool(pool, pools.keys())))?;
        if description.cache_hint.len() > MAX_HINT {
            return Err(Error::failed(format!("a cache hint is at most {MAX_HINT} bytes long")));
        }
        let deposit = Deposit::take(&self.account, size(&description).max(LEAST)).ok_or_else(|| Error {
            kind: ErrorKind::Overloaded,
            message: format!(
                "the jobs that wait for this client hold {} MB; no more until some have run",
                MAX_WAITING >> 20
            ),
        })?;
        let (id, started) = pool.submit(self.name.as_ref(), description, urgent, deposit);
        Ok(ticket(Rc::clone(pool), id, started))
    }
}

/// OCluster's text.
fn unknown_pool<'a>(pool: &BStr, pools: impl Iterator<Item = &'a BString>) -> String {
    let pools: Vec<_> = pools.map(ToString::to_string).collect();
    format!("Pool ID {pool:?} not one of {{{}}}", pools.join(", "))
}

/// Returns about how much a description takes in memory, in bytes.
fn size(description: &JobDescription) -> usize {
    let JobDescription { action, cache_hint, repository, commits, secrets } = description;
    // What a text of a list takes besides its bytes.
    let all = |texts: &[BString]| texts.iter().map(|text| text.len() + 48).sum::<usize>();
    let action = match action {
        Action::OBuilder(spec) => spec.len(),
        Action::Custom { kind, payload } => kind.len() + payload.len(),
        Action::DockerBuild(build) => {
            let DockerBuild { dockerfile, push_target, push_user, push_password, build_args, .. } = build;
            let (Dockerfile::Contents(dockerfile) | Dockerfile::Path(dockerfile)) = dockerfile;
            dockerfile.len() + push_target.len() + push_user.len() + push_password.len() + all(build_args)
        }
    };
    let secrets: usize = secrets.iter().map(|secret| secret.id.len() + secret.value.len() + 96).sum();
    action + cache_hint.len() + repository.len() + all(commits) + secrets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_client_is_bounded_and_given_back() {
        let account = Rc::new(Account::default());
        let half = Deposit::take(&account, MAX_WAITING / 2).expect("there is room");
        let other = Deposit::take(&account, MAX_WAITING / 2).expect("there is room");
        assert!(Deposit::take(&account, 1).is_none());
        assert!(Deposit::take(&account, usize::MAX).is_none());
        // Another client's is its own.
        assert!(Deposit::take(&Rc::default(), MAX_WAITING).is_some());
        drop(half);
        assert!(Deposit::take(&account, MAX_WAITING / 2).is_some());
        drop(other);
        assert_eq!(account.waiting.get(), 0);
    }

    #[test]
    fn everything_in_a_description_counts() {
        let text = || BString::from(vec![b'x'; 1000]);
        let docker = DockerBuild {
            dockerfile: Dockerfile::Contents(text()),
            push_target: text(),
            push_user: text(),
            push_password: text(),
            build_args: vec![text()],
            squash: false,
            buildkit: false,
            include_git: false,
        };
        let mut description = JobDescription {
            action: Action::DockerBuild(docker),
            cache_hint: text(),
            repository: text(),
            commits: vec![text(), text()],
            secrets: vec![kiln_api::Secret { id: text(), value: text() }],
        };
        assert!((11_000..12_000).contains(&size(&description)), "{}", size(&description));
        description.action = Action::Custom { kind: text(), payload: vec![0; 1000] };
        assert!((8_000..9_000).contains(&size(&description)), "{}", size(&description));
        description.action = Action::OBuilder(text());
        assert!((7_000..8_000).contains(&size(&description)), "{}", size(&description));
    }
}
