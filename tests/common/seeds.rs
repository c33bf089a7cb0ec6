//! Numbers from a seed, and tests that try many seeds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators").
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// One of `0..bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// True once in `n`.
    pub(crate) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// Calls `f` for the numbers from `first` on, on all cores, until one returns something or `count` were tried.
/// Returns that of the lowest number, and how many were tried.
pub(crate) fn search<T: Send>(
    first: u64,
    count: u64,
    f: impl Fn(u64) -> Option<T> + Sync,
) -> (Option<T>, u64) {
    let (next, best) = (AtomicU64::new(first), Mutex::new(None::<(u64, T)>));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = best.lock().unwrap_or_else(PoisonError::into_inner).is_some();
                    if number >= first + count || is_over {
                        return;
                    }
                    if let Some(found) = f(number) {
                        let mut best = best.lock().unwrap_or_else(PoisonError::into_inner);
                        if best.as_ref().is_none_or(|(other, _)| number < *other) {
                            *best = Some((number, found));
                        }
                    }
                }
            });
        }
    });
    let tried = next.into_inner().min(first + count) - first;
    (best.into_inner().unwrap_or_else(PoisonError::into_inner).map(|(_, found)| found), tried)
}

/// What a variable of the environment says, else `otherwise`.
pub(crate) fn number(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is {text}, which is no number")),
        Err(_) => otherwise,
    }
}
