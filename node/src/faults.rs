//! Faults on request, for the fakes: every call is numbered, and any can be told to fail or to be the last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// What goes wrong in one life of a node. Clones share it, so a storage and a runtime fake given the same one count
/// their calls together and stop together, as the process they live in would.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ended: Notify,
}

/// Where in a call something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Before its effect: nothing has happened.
    Before,
    /// After its effect: it has happened, but the caller does not learn so.
    After,
}

/// A call that was told to fail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("call {number} ({name}) was told to fail")]
pub struct Injected {
    /// The call, counted from 0.
    pub number: usize,
    /// Its name.
    pub name: &'static str,
}

impl Faults {
    /// Returns faults that never happen.
    pub fn none() -> Self {
        Self::default()
    }

    /// Makes call `number`, counted from 0, fail.
    pub fn fail_call(&self, number: usize, moment: Moment) {
        self.state().failing.insert(number, moment);
    }

    /// Makes call `number`, counted from 0, the last: neither it nor any later one ever returns, as if the process had
    /// been killed there.
    pub fn stop_at_call(&self, number: usize, moment: Moment) {
        self.state().stop = Some((number, moment));
    }

    /// Makes the call after the next `calls` the last, as [`Self::stop_at_call`] does.
    pub fn stop_after(&self, calls: usize, moment: Moment) {
        let mut state = self.state();
        let number = state.calls.len() + calls;
        state.stop = Some((number, moment));
    }

    /// Makes no call ever return from now on.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.0.ended.notify_waiters();
    }

    /// Waits until the last call there ever is has been reached.
    pub async fn stopped(&self) {
        let ended = self.0.ended.notified();
        if !self.has_stopped() {
            ended.await;
        }
    }

    /// Makes the call after the next `calls` fail.
    pub fn fail_after(&self, calls: usize, moment: Moment) {
        let mut state = self.state();
        let number = state.calls.len() + calls;
        state.failing.insert(number, moment);
    }

    /// Takes back what was to go wrong at calls to come.
    pub fn calm(&self) {
        let mut state = self.state();
        state.failing.clear();
        state.stop = None;
    }

    /// Makes every call take this long, in the time of tokio's clock.
    pub fn set_latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// Returns the names of all calls so far, in order: what there is to be told to fail.
    pub fn calls(&self) -> Vec<&'static str> {
        self.state().calls.clone()
    }

    /// Returns whether the last call there ever is has been reached.
    pub fn has_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Carries out one call: `effect`, with what was asked for going wrong around it.
    pub async fn call<T, E: From<Injected>>(
        &self,
        name: &'static str,
        effect: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (number, latency) = self.begin(name);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        self.go_wrong(number, name, Moment::Before).await?;
        let result = effect.await;
        self.go_wrong(number, name, Moment::After).await?;
        result
    }

    fn begin(&self, name: &'static str) -> (usize, Duration) {
        let mut state = self.state();
        state.calls.push(name);
        (state.calls.len() - 1, state.latency)
    }

    async fn go_wrong(&self, number: usize, name: &'static str, moment: Moment) -> Result<(), Injected> {
        let (stopped, fails) = {
            let mut state = self.state();
            if state.stop == Some((number, moment)) {
                state.stopped = true;
                self.0.ended.notify_waiters();
            }
            (state.stopped, state.failing.get(&number) == Some(&moment))
        };
        if stopped {
            std::future::pending::<()>().await;
        }
        match fails {
            true => Err(Injected { number, name }),
            false => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<&'static str>,
    failing: BTreeMap<usize, Moment>,
    stop: Option<(usize, Moment)>,
    stopped: bool,
    latency: Duration,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    async fn add_one(faults: &Faults, sum: &AtomicUsize) -> Result<(), Injected> {
        faults
            .call("add_one", async {
                sum.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
            .await
    }

    #[tokio::test]
    async fn a_call_fails_before_or_after_its_effect_and_the_next_one_succeeds() {
        for (moment, effects) in [(Moment::Before, 0), (Moment::After, 1)] {
            let (faults, sum) = (Faults::none(), AtomicUsize::new(0));
            faults.fail_call(0, moment);
            let error = add_one(&faults, &sum).await.unwrap_err();
            assert_eq!(error.to_string(), "call 0 (add_one) was told to fail");
            assert_eq!(sum.load(Ordering::SeqCst), effects);
            add_one(&faults, &sum).await.unwrap();
            assert_eq!(faults.calls(), ["add_one", "add_one"]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_last_call_nothing_returns() {
        let (faults, sum) = (Faults::none(), AtomicUsize::new(0));
        faults.stop_at_call(0, Moment::After);
        for effects in [1, 1] {
            let forever = tokio::time::timeout(Duration::from_secs(3600), add_one(&faults, &sum));
            assert!(forever.await.is_err());
            assert_eq!(sum.load(Ordering::SeqCst), effects);
        }
        faults.stopped().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_counted_from_now_fails_or_is_the_last() {
        let (faults, sum) = (Faults::none(), AtomicUsize::new(0));
        add_one(&faults, &sum).await.unwrap();
        faults.fail_after(1, Moment::Before);
        faults.stop_after(0, Moment::Before);
        faults.calm();
        faults.fail_after(1, Moment::Before);
        faults.stop_after(2, Moment::Before);
        add_one(&faults, &sum).await.unwrap();
        add_one(&faults, &sum).await.unwrap_err();
        assert!(!faults.has_stopped());
        tokio::select! {
            biased;
            _ = add_one(&faults, &sum) => panic!("the last call returned"),
            () = faults.stopped() => {}
        }
        assert_eq!(sum.load(Ordering::SeqCst), 2);
    }
}
