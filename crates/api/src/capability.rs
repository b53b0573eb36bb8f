//! References of any interface, and references to what is not known yet.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use capnp::capability::Promise;
use capnp::private::capability::{ClientHook, ParamsHook, ResultsHook};
use capnp::{MessageSize, any_pointer};

use crate::error::Error;

/// A reference that knows its interface.
pub trait Reference: Clone + 'static {
    #[doc(hidden)]
    fn from_hook(hook: Box<dyn ClientHook>) -> Self;
    #[doc(hidden)]
    fn into_hook(self) -> Box<dyn ClientHook>;

    /// Returns a reference to what `future` will return. Calls on it wait. If that fails, so do they, and
    /// [`settled`](Reference::settled).
    fn promise(future: impl Future<Output = Result<Self, Error>> + 'static) -> Self {
        let failure = Rc::new(RefCell::new(None));
        let seen = Rc::clone(&failure);
        let inner: any_pointer_client::Client = capnp_rpc::new_future_client(async move {
            match future.await {
                Ok(reference) => Ok(any_pointer_client::Client(reference.into_hook())),
                Err(error) => {
                    let error = capnp::Error::from(error);
                    *seen.borrow_mut() = Some(error.clone());
                    Err(error)
                }
            }
        });
        Self::from_hook(Box::new(Promised { inner: inner.0, failure }))
    }

    /// Returns a reference on which every call fails with `error`.
    fn broken(error: Error) -> Self {
        Self::promise(std::future::ready(Err(error)))
    }

    /// Waits until this is no promise any more.
    fn settled(&self) -> impl Future<Output = Result<(), Error>> + 'static {
        let hook = self.clone().into_hook();
        async move { hook.when_resolved().await.map_err(Error::from) }
    }
}

/// A reference that does not know its interface: what a vat hands out.
pub struct Capability(pub(crate) Box<dyn ClientHook>);

impl<R: Reference> From<R> for Capability {
    fn from(reference: R) -> Self {
        Self(reference.into_hook())
    }
}

/// The least client there can be.
mod any_pointer_client {
    use super::ClientHook;

    pub(super) struct Client(pub(super) Box<dyn ClientHook>);

    impl capnp::capability::FromClientHook for Client {
        fn new(hook: Box<dyn ClientHook>) -> Self {
            Self(hook)
        }

        fn into_client_hook(self) -> Box<dyn ClientHook> {
            self.0
        }

        fn as_client_hook(&self) -> &dyn ClientHook {
            &*self.0
        }
    }
}

/// A promise that, when it fails, is announced as having failed.
///
/// capnp-rpc's own turns into an object that fails, of which a peer is told as of any other. OCaml's clients wait for a promise to be
/// settled, and take that for success.
struct Promised {
    inner: Box<dyn ClientHook>,
    failure: Rc<RefCell<Option<capnp::Error>>>,
}

impl ClientHook for Promised {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(Self { inner: self.inner.add_ref(), failure: Rc::clone(&self.failure) })
    }

    fn new_call(
        &self,
        interface_id: u64,
        method_id: u16,
        size_hint: Option<MessageSize>,
    ) -> capnp::capability::Request<any_pointer::Owned, any_pointer::Owned> {
        self.inner.new_call(interface_id, method_id, size_hint)
    }

    fn call(
        &self,
        interface_id: u64,
        method_id: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), capnp::Error> {
        self.inner.call(interface_id, method_id, params, results)
    }

    fn get_brand(&self) -> usize {
        self.inner.get_brand()
    }

    fn get_ptr(&self) -> usize {
        self.inner.get_ptr()
    }

    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        if self.failure.borrow().is_some() { None } else { self.inner.get_resolved() }
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, capnp::Error>> {
        let resolved = self.inner.when_more_resolved()?;
        let failure = Rc::clone(&self.failure);
        Some(Promise::from_future(async move {
            // First this: it drives the future that says whether there is a failure.
            let resolved = resolved.await;
            match &*failure.borrow() {
                Some(error) => Err(error.clone()),
                None => resolved,
            }
        }))
    }

    fn when_resolved(&self) -> Promise<(), capnp::Error> {
        match self.when_more_resolved() {
            None => Promise::ok(()),
            Some(more) => Promise::from_future(async move { more.await?.when_resolved().await }),
        }
    }
}
