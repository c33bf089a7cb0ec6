//! How much longer a parked rank waits, in time that the process had.

use std::{
    sync::{Condvar, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Longest uninterrupted wait. Whatever it really took, no more than this is counted: a process that is stopped,
/// or a machine that sleeps, for an hour has waited for one slice.
const SLICE: Duration = Duration::from_secs(1);

/// A limit that is spent slice by slice; none is never spent.
#[derive(Debug)]
pub(in crate::comm) struct Countdown {
    left: Option<Duration>,
}

impl Countdown {
    pub(in crate::comm) fn new(limit: Option<Duration>) -> Self {
        Self { left: limit }
    }

    pub(in crate::comm) fn is_over(&self) -> bool {
        self.left.is_some_and(|left| left.is_zero())
    }

    /// Waits on `condvar` for at most a slice. Like every such wait it may also end for no reason.
    pub(in crate::comm) fn park<'a, T>(
        &mut self,
        condvar: &Condvar,
        guard: MutexGuard<'a, T>,
    ) -> MutexGuard<'a, T> {
        let slice = self.slice();
        let start = Instant::now();
        let (guard, _) = condvar.wait_timeout(guard, slice).unwrap_or_else(PoisonError::into_inner);
        self.spend(start.elapsed());
        guard
    }

    fn slice(&self) -> Duration {
        self.left.unwrap_or(SLICE).min(SLICE)
    }

    /// Counts a wait of its own kind.
    pub(in crate::comm) fn spend(&mut self, elapsed: Duration) {
        let spent = elapsed.min(self.slice());
        self.left = self.left.map(|left| left.saturating_sub(spent));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_stop_costs_one_slice() {
        let mut countdown = Countdown::new(Some(3 * SLICE));
        for over in [false, false, true] {
            countdown.spend(HOUR);
            assert_eq!(countdown.is_over(), over);
        }
    }

    #[test]
    fn waits_add_up_to_the_limit() {
        let limit = SLICE * 5 / 2;
        let mut countdown = Countdown::new(Some(limit));
        let mut waited = Duration::ZERO;
        while !countdown.is_over() {
            let part = countdown.slice().min(SLICE / 3);
            waited += part;
            countdown.spend(part);
        }
        assert_eq!(waited, limit);
    }

    #[test]
    fn no_limit_is_never_over() {
        let mut countdown = Countdown::new(None);
        countdown.spend(HOUR);
        assert!(!countdown.is_over() && countdown.slice() == SLICE);
    }
}
