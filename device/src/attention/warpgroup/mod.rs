//! Causal attention of a prompt, or of a chunk of one, over `wgmma`.
//!
//! One warpgroup copies, two attend, 64 query tokens each, as in FlashAttention-3 (Shah et al., 2024): a warpgroup has
//! the scores of its next tile multiplied while it still adds up the values of this one, and the two take turns, so that
//! one's exponentials run while the tensor cores work for the other. Who copies tells a stage's barrier when its copies
//! have arrived. [`copy`] is the one side, [`attend`] the other, [`softmax`] what happens in registers.
//!
//! # What binds
//! Cycles of a multiprocessor for a tile of 128 queries by 128 keys, head_dim 128 (64), at a rate a cycle:
//!
//! | | | |
//! | --- | --- | --- |
//! | tensor cores, 4096 flop | 4 · 128³ flop | 2048 (1024) |
//! | shared memory, 128 bytes | Q and K of S, V of O once a warpgroup; copies of K and V | 1792 (896) |
//! | exponentials, 16 | 128² | 1024 (1024) |
//! | instructions, 4 warps' | 420 (410) of each of 8 warps, 500 (310) of those that copy | 960 (900) |
//!
//! So tensor cores bind at head_dim 128 as long as the rest overlaps with them; at 64 exponentials take as long as they
//! do, and nothing has much to spare. K and V come from L2 at 32 bytes a cycle and multiprocessor.

pub mod attend;
pub mod copy;
pub mod softmax;

use crate::params::AttnPrefill;
use crate::ptx::barrier::sync_block;
use crate::ptx::global::ld_b32;
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, nctaid_y, tid_x};
use crate::ptx::wgmma::Accumulators;
use crate::ptx::{Shared, mbarrier, pdl, registers, shared};
use crate::tile::ring::{self, BARRIER_BYTES, Barriers};

/// Threads of the first warpgroup, which copies.
const PRODUCERS: u32 = 128;
/// Those of the other two, which attend, and their warps.
const CONSUMERS: u32 = 256;
const CONSUMER_WARPS: u32 = CONSUMERS / 32;
/// Query tokens of a warpgroup.
const GROUP_Q: u32 = 64;
/// Rows of a tile, of queries, of keys or of values: the query tokens of a block.
const TILE: u32 = 128;
/// A tile lies in panels of 64 columns, rows of 128 bytes in the 128-byte swizzle that `wgmma` reads.
const PANEL_BYTES: u32 = TILE * 128;

/// Registers of a thread that copies, and of one that attends. Together they are what 384 threads are launched with.
const PRODUCER_REGISTERS: u32 = 40;
const CONSUMER_REGISTERS: u32 = 232;
const _: () = assert!(PRODUCERS * PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS == 384 * 168);

shared_array! {
    /// Of the ring of keys, of that of values, and the one at which queries arrive.
    attention_barriers: 520 bytes, align 16
}
const _: () = assert!(2 * BARRIER_BYTES + 8 == 520);

/// The ring of keys, and that of values.
struct OfKeys;
struct OfValues;
type Keys<const STAGES: u32> = ring::Place<OfKeys, STAGES>;
type Values<const STAGES: u32> = ring::Place<OfValues, STAGES>;

impl Barriers for OfKeys {
    #[inline(always)]
    fn barriers() -> Shared {
        attention_barriers()
    }
}

impl Barriers for OfValues {
    #[inline(always)]
    fn barriers() -> Shared {
        attention_barriers() + BARRIER_BYTES
    }
}

/// Where the queries' copies arrive.
#[inline(always)]
fn queries_full() -> Shared {
    attention_barriers() + 2 * BARRIER_BYTES
}

kernel! {
    /// Causal attention, head_dim 64.
    ///
    /// # Shape and layout
    /// See [`AttnPrefill`]; `ld_q` and `ld_out` are multiples of 8. Query token i of a sequence stands at position
    /// `kv_len - q_len + i` and sees the positions up to its own. Any page size that is a power of two; fewer than 2^32
    /// rows of a cache.
    ///
    /// # Thread mapping
    /// Grid (query heads, tiles of 128 query tokens of the longest sequence, sequences); 384 threads. Long tiles come
    /// first, and heads that share keys side by side. Dynamic shared memory: tiles of 256 · head_dim bytes, one of
    /// queries and four stages of keys and values.
    ///
    /// # Memory order
    /// Who copies waits for its copies, fences them for the asynchronous proxy and arrives at their stage's full barrier.
    /// Consumers' warps arrive at the empty one when their products have been waited for.
    ///
    /// # Safety
    /// Every position below `kv_len` has a page and is written; `out` overlaps nothing.
    #[launch_bounds(384, 1)]
    pub fn attn_prefill_bf16_d64(p: AttnPrefill) {
        Prefill::<64, 4>::run::<[f32; 32]>(&p);
    }
}

kernel! {
    /// [`attn_prefill_bf16_d64`] for head_dim 128, with two stages.
    ///
    /// # Safety
    /// As there.
    #[launch_bounds(384, 1)]
    pub fn attn_prefill_bf16_d128(p: AttnPrefill) {
        Prefill::<128, 2>::run::<[f32; 64]>(&p);
    }
}

/// What a block works on: `n` query tokens of a head, in rows of `q` from `token` on.
struct Work {
    sequence: u32,
    head: u32,
    kv_head: u32,
    token: u32,
    n: u32,
    /// The first one's position, and the one behind the last.
    first_position: u32,
    kv_end: u32,
}

impl Work {
    /// Of this block; none if its sequence has no such tile.
    #[inline(always)]
    unsafe fn of_block(p: &AttnPrefill, kv_head: u32) -> Option<Self> {
        let (head, sequence) = (ctaid_x(), ctaid_z());
        let q_start = ld_b32(p.q_starts + u64::from(sequence) * 4);
        let q_len = ld_b32(p.q_starts + u64::from(sequence + 1) * 4) - q_start;
        let kv_len = ld_b32(p.kv_lens + u64::from(sequence) * 4);
        let first = (nctaid_y() - 1 - ctaid_y()) * TILE;
        if first >= q_len {
            return None;
        }
        let n = (q_len - first).min(TILE);
        let first_position = kv_len - q_len + first;
        let kv_end = first_position + n;
        Some(Self { sequence, head, kv_head, token: q_start + first, n, first_position, kv_end })
    }

    /// Tiles of keys. They are taken from the last one down: it has the masks, and most likely the largest scores.
    #[inline(always)]
    fn n_tiles(&self) -> u32 {
        self.kv_end.div_ceil(TILE)
    }
}

struct Prefill<const HEAD_DIM: u32, const STAGES: u32>;

impl<const HEAD_DIM: u32, const STAGES: u32> Prefill<HEAD_DIM, STAGES> {
    const TILE_BYTES: u32 = HEAD_DIM / 64 * PANEL_BYTES;

    /// Where the queries lie, and the keys and values of a stage.
    #[inline(always)]
    fn queries() -> Shared {
        shared::dynamic()
    }

    #[inline(always)]
    fn keys(stage: u32) -> Shared {
        shared::dynamic() + (1 + 2 * stage) * Self::TILE_BYTES
    }

    #[inline(always)]
    fn values(stage: u32) -> Shared {
        shared::dynamic() + (2 + 2 * stage) * Self::TILE_BYTES
    }

    /// The whole kernel; `O` are a thread's sums of weighted values.
    #[inline(always)]
    unsafe fn run<O: Accumulators>(p: &AttnPrefill) {
        let kv_head = ld_b32(p.kv_head_of + u64::from(ctaid_x()) * 4);
        if tid_x() == 0 {
            Keys::<STAGES>::init(PRODUCERS, CONSUMER_WARPS);
            Values::<STAGES>::init(PRODUCERS, CONSUMER_WARPS);
            mbarrier::init(queries_full(), PRODUCERS);
        }
        sync_block();
        pdl::launch_dependents();
        pdl::wait();
        let Some(work) = Work::of_block(p, kv_head) else { return };
        if tid_x() < PRODUCERS {
            registers::keep::<PRODUCER_REGISTERS>();
            Self::copy(p, &work);
        } else {
            registers::take::<CONSUMER_REGISTERS>();
            Self::attend::<O>(p, &work);
        }
    }
}
