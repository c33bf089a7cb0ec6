//! The word of an `mbarrier` object: pending and expected arrivals, transaction count and phase.

use super::context::Cause;

/// 2^20 - 1 arrivals and bytes at most.
const COUNT_BITS: u32 = 20;
pub(super) const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
pub(super) const VALID: u64 = 1 << 62;
const PHASE: u64 = 1 << 63;
const TX_SHIFT: u32 = 2 * COUNT_BITS;
const TX_BIAS: i64 = 1 << COUNT_BITS;

pub(super) fn word(phase: u64, tx: i64, expected: u64, pending: u64) -> u64 {
    phase | VALID | ((tx + TX_BIAS) as u64) << TX_SHIFT | expected << COUNT_BITS | pending
}

pub(super) fn transactions(word: u64) -> i64 {
    (word >> TX_SHIFT & (2 * COUNT_MASK + 1)) as i64 - TX_BIAS
}

/// The word after arrivals, drops of expected arrivals and a change of bytes; and whether its phase ended.
pub(super) fn advanced(
    address: u64,
    old: u64,
    arrivals: u64,
    drops: u64,
    bytes: i64,
) -> Result<(u64, bool), Cause> {
    if old & VALID == 0 || old >> 61 & 1 != 0 {
        return Err(Cause::MbarrierState { address });
    }
    let (pending, expected) = (old & COUNT_MASK, old >> COUNT_BITS & COUNT_MASK);
    let tx = transactions(old) + bytes;
    if arrivals > pending {
        return Err(Cause::MbarrierCount { address, why: "more arrivals than the phase expects" });
    }
    if tx.unsigned_abs() > COUNT_MASK {
        return Err(Cause::MbarrierCount {
            address,
            why: "the transaction count leaves its range of 2^20 - 1 bytes",
        });
    }
    let (pending, expected) = (pending - arrivals, expected - drops.min(expected));
    if pending == 0 && tx == 0 {
        return Ok((word((old & PHASE) ^ PHASE, 0, expected, expected), true));
    }
    Ok((word(old & PHASE, tx, expected, pending), false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_ends_with_its_last_arrival_and_byte() {
        let fresh = word(0, 0, 2, 2);
        let (one, ended) = advanced(0, fresh, 1, 0, 64).unwrap();
        assert!(!ended && transactions(one) == 64);
        let (two, ended) = advanced(0, one, 1, 0, 0).unwrap();
        assert!(!ended, "bytes are missing");
        let (next, ended) = advanced(0, two, 0, 0, -64).unwrap();
        assert!(ended && next == word(PHASE, 0, 2, 2));
        assert!(advanced(0, next, 3, 0, 0).is_err(), "too many arrivals");
        assert!(advanced(0, 0, 1, 0, 0).is_err(), "not initialised");
    }

    #[test]
    fn a_drop_lowers_later_phases() {
        let (next, ended) = advanced(0, word(0, 0, 1, 1), 1, 1, 0).unwrap();
        assert!(ended && next == word(PHASE, 0, 0, 0));
    }
}
