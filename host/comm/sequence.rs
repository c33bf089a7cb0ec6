//! Sequence numbers: which call of a buffer a message belongs to.
//!
//! A sequence is 64 bits wide and counts the calls on one buffer. A message carries its low 32 bits as the
//! flag, and the parity of the sequence picks one of two slots. A flag of 0 marks a free slot, so no call may
//! have it. Skipping just that one number would give two calls in a row the same parity and void the reuse
//! argument; [`next`] therefore skips the pair …0000 0000, …0000 0001 at every wrap.

/// Number of the first call on a fresh buffer. Flags 0 and 1 are never used.
pub const FIRST: u64 = 2;

/// `sequence` itself, or the nearest later number of its parity that a call may have.
pub const fn valid(sequence: u64) -> u64 {
    if flag(sequence) < FIRST as u32 { sequence.wrapping_add(FIRST) } else { sequence }
}

/// The number of the call after `sequence`; the parity always changes.
pub const fn next(sequence: u64) -> u64 {
    valid(sequence.wrapping_add(1))
}

/// What marks a message as belonging to call `sequence`; never 0.
pub const fn flag(sequence: u64) -> u32 {
    sequence as u32
}

/// Which of a slot's two copies call `sequence` uses.
pub const fn parity(sequence: u64) -> usize {
    (sequence & 1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_never_zero_and_parity_alternates_across_wraps() {
        for start in [FIRST, (1 << 32) - 100, (7 << 32) - 3, u64::MAX - 10, 0, 1 << 32, (1 << 32) + 1] {
            let mut sequence = valid(start);
            assert_eq!(parity(sequence), parity(start));
            for _ in 0..200 {
                let following = next(sequence);
                assert_ne!(flag(following), 0);
                assert_ne!(flag(following), flag(sequence));
                assert_ne!(parity(following), parity(sequence), "after {sequence:#x}");
                sequence = following;
            }
        }
    }

    #[test]
    fn the_wrap_skips_two_numbers() {
        assert_eq!(next((1 << 32) - 1), (1 << 32) + 2);
    }
}
