//! What a kernel that gave up left behind, as an error.

use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use crate::comm::{Collective, CommError, DType, Header, Phase};
use crate::driver::{Device, DeviceBuffer, GpuError, PinnedBuffer, Stream};
use crate::kernels::Addr;
use crate::kernels::params::{self, FailureRecord};

/// Words of a record; `state` is the first.
const WORDS: usize = size_of::<FailureRecord>() / 4;

/// Failure words and records of the ranks on one GPU.
#[derive(Debug)]
pub(super) struct Alarms {
    failed: DeviceBuffer<u32>,
    records: PinnedBuffer<u32>,
}

impl Alarms {
    pub(super) fn new(device: &Device, ranks: usize, stream: &Stream) -> Result<Self, GpuError> {
        let failed = device.allocate_zeroed(ranks, stream)?;
        Ok(Self { failed, records: device.allocate_pinned(ranks * WORDS)? })
    }

    /// The failure word of the `index`-th rank.
    pub(super) fn failed(&self, index: usize) -> Addr<u32> {
        self.failed.addr().at(index)
    }

    /// The address of its record.
    pub(super) fn record(&self, index: usize) -> u64 {
        self.records.ptr().0 + (index * size_of::<FailureRecord>()) as u64
    }

    /// Its record, if its kernel has written one.
    pub(super) fn read(&self, index: usize) -> Option<Record> {
        let word = |i| self.records.load(index * WORDS + i);
        let state = word(0);
        if state == 0 {
            return None;
        }
        // The kernel released `state` after the other words.
        fence(Ordering::Acquire);
        Some(Record(std::array::from_fn(word)))
    }
}

/// The words of a [`FailureRecord`], in its order.
pub(super) struct Record([u32; WORDS]);

impl Record {
    /// The number of the group whose call failed.
    pub(super) fn group(&self) -> u32 {
        self.0[1]
    }

    /// As an error; `members` are the group's ranks in the world.
    pub(super) fn error(&self, members: &[usize], waited: Duration) -> CommError {
        let [state, _, rank, peer, phase, step, seen, low, high, numel, meta, peer_numel, peer_meta, _] =
            self.0;
        let world = |rank: u32| members.get(rank as usize).copied().unwrap_or(rank as usize);
        let (rank, peer, step) = (world(rank), world(peer), step as usize);
        let expected = u64::from(high) << 32 | u64::from(low);
        let phase = match phase {
            params::PHASE_PUT => Phase::Put,
            params::PHASE_BROADCAST => Phase::Broadcast,
            _ => Phase::Reduce,
        };
        if state == params::FAILURE_TIMEOUT {
            return CommError::Timeout { rank, peer, phase, step, expected, seen: seen.into(), waited };
        }
        let header = |numel, meta: u32| header(expected, numel, Meta(meta));
        let (expected, found) = (header(numel, meta), header(peer_numel, peer_meta));
        CommError::Mismatch { rank, peer, phase, step, expected, found }
    }
}

fn header(sequence: u64, numel: u32, meta: Meta) -> Header {
    let numel = numel as usize;
    Header { sequence, collective: meta.collective(), numel, dtype: meta.dtype(), range: 0..numel }
}

/// What ranks compare of their calls beside the number of elements: kind, dtype, and a digest of all else that
/// must be equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta(u32);

const KIND_BITS: u32 = 3;
const DTYPE_BITS: u32 = 2;

impl Meta {
    pub(super) fn new(collective: Collective, dtype: DType, rest: &[u64]) -> Self {
        let place = |found: Option<usize>| found.expect("the tables are complete") as u32;
        let kind = place(Collective::ALL.iter().position(|&k| k == collective));
        let dtype = place(DType::ALL.iter().position(|&d| d == dtype));
        // FNV-1a over 64-bit words; its upper bits are the mixed ones.
        let mix = |hash: u64, word: &u64| (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        let digest = rest.iter().fold(0xcbf2_9ce4_8422_2325, mix);
        let digest = ((digest ^ digest >> 32) as u32) << (KIND_BITS + DTYPE_BITS);
        Self(digest | dtype << KIND_BITS | kind)
    }

    pub(super) fn bits(self) -> u32 {
        self.0
    }

    fn collective(self) -> Collective {
        let kind = (self.0 & ((1 << KIND_BITS) - 1)) as usize;
        Collective::ALL.get(kind).copied().unwrap_or(Collective::AllReduce)
    }

    fn dtype(self) -> DType {
        let dtype = (self.0 >> KIND_BITS & ((1 << DTYPE_BITS) - 1)) as usize;
        DType::ALL.get(dtype).copied().unwrap_or(DType::F32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_and_dtype_survive_and_the_rest_tells_calls_apart() {
        let mut seen = std::collections::HashSet::new();
        for kind in Collective::ALL {
            for dtype in DType::ALL {
                for rest in [&[][..], &[1], &[2], &[1, 2], &[2, 1], &[1 << 40]] {
                    let meta = Meta::new(kind, dtype, rest);
                    assert_eq!((meta.collective(), meta.dtype()), (kind, dtype));
                    assert!(seen.insert(meta.bits()), "{kind} {dtype} {rest:?}");
                }
            }
        }
    }

    #[test]
    fn a_record_becomes_a_sentence() {
        let meta = |numel: u32| (numel, Meta::new(Collective::AllReduce, DType::Bf16, &[]).bits());
        let ((n, m), (pn, pm)) = (meta(64), meta(96));
        let words = [params::FAILURE_MISMATCH, 0, 0, 1, params::PHASE_REDUCE, 0, 7, 7, 0, n, m, pn, pm, 0];
        let error = Record(words).error(&[4, 6], Duration::from_secs(1)).to_string();
        assert!(error.contains("rank 4 expects elements 0..64 of all-reduce 7"), "{error}");
        assert!(error.contains("from rank 6") && error.contains("over 96 bf16"), "{error}");
        let words = [params::FAILURE_TIMEOUT, 0, 1, 0, params::PHASE_PUT, 2, 5, 6, 1, n, m, 0, 0, 0];
        let error = Record(words).error(&[0, 1], Duration::from_millis(200)).to_string();
        let expected =
            "rank 1 waited 200ms for rank 0 in put, step 2: expected sequence 4294967302, last seen 5;";
        assert!(error.starts_with(expected), "{error}");
    }
}
