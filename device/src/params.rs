//! The kernels' parameters: one `#[repr(C)]` struct per kernel family, passed by value.
//!
//! This file uses `core` alone and is compiled on both sides. Fields that are addresses are `u64`
//! device addresses, 16-byte aligned unless said otherwise; lengths count elements, not bytes;
//! strides (`ld_*`) are elements from one row to the next.

/// `embedding_bf16`: `out[t] = table[ids[t]]`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Embedding {
    /// `[rows, width]` bf16.
    pub table: u64,
    /// `[n_tokens]` u32; 4-byte aligned.
    pub ids: u64,
    /// `[n_tokens, width]` bf16, written.
    pub out: u64,
    /// Rows of the table; larger ids give a row of zeros.
    pub rows: u32,
    /// Width of a row.
    pub width: u32,
}

/// `add_bf16`: `out += x`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Add {
    /// `[n]` bf16.
    pub x: u64,
    /// `[n]` bf16, added to.
    pub out: u64,
    /// Elements.
    pub n: u32,
    /// Zero; keeps the struct free of padding.
    pub reserved: u32,
}

/// Rows up to which a norm takes the shortest way through each, in one wave of blocks; of more it has more loads in flight.
pub const FEW_ROWS: u32 = 128;

/// `rmsnorm_bf16`, `add_rmsnorm_bf16`: `out = x / rms(x) · weight`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm {
    /// `[n_tokens, hidden]` bf16.
    pub x: u64,
    /// `add_rmsnorm_bf16`: `[n_tokens, hidden]` bf16, added to `x`; the sum is what is normalised.
    pub residual: u64,
    /// `add_rmsnorm_bf16`: `[n_tokens, hidden]` bf16, written: the sum; may be `residual`.
    pub sum: u64,
    /// `[hidden]` bf16.
    pub weight: u64,
    /// `[n_tokens, hidden]` bf16, written; may be `x`.
    pub out: u64,
    /// Width of a row.
    pub hidden: u32,
    /// Added to the mean square.
    pub eps: f32,
}

/// `rope_kv_write_bf16_d64`, `_d128`: rotate q and k, write k and v to the paged cache.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RopeKvWrite {
    /// `[n_tokens, n_heads + 2 · n_kv_heads, head_dim]` bf16: q, k, v; q is rotated in place.
    pub qkv: u64,
    /// `[head_dim / 2]` f32: inverse frequencies, scaling included.
    pub inv_freq: u64,
    /// `[n_tokens]` u32: position in the sequence.
    pub positions: u64,
    /// `[n_tokens]` u32: row of `block_table`.
    pub sequences: u64,
    /// Cache and block table.
    pub cache: PagedKv,
    /// Query heads of this rank.
    pub n_heads: u32,
    /// Tokens.
    pub n_tokens: u32,
}

/// The paged KV cache of one layer: `[n_pages, n_kv_heads, page_size, head_dim]` bf16 for k and for v.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PagedKv {
    /// Keys, rotated.
    pub k: u64,
    /// Values.
    pub v: u64,
    /// `[n_sequences, max_pages]` u32: page of each `page_size` positions.
    pub block_table: u64,
    /// Pages per row of the block table.
    pub max_pages: u32,
    /// `page_size` = 2 to this power.
    pub page_size_log2: u32,
    /// KV heads of this rank.
    pub n_kv_heads: u32,
    /// Zero; keeps the struct free of padding.
    pub reserved: u32,
}

/// `gemm_bf16_*`, `gemv_bf16_*`: `y = a · wᵀ`, then an epilogue writes `out`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Gemm {
    /// `[m, k]` bf16, rows `ld_a` apart.
    pub a: u64,
    /// `[n, k]` bf16, contiguous; for SwiGLU row 2j is gate j and row 2j + 1 is up j.
    pub w: u64,
    /// Rows `ld_out` apart. `store`: `[m, n]` bf16; `f32`: `[m, n]` f32; `add`: `[m, n]` bf16, added
    /// to; `swiglu`: `[m, n / 2]` bf16.
    pub out: u64,
    /// gemv only: `[k]` bf16, or 0. `a` is RMS-normalised with this weight first.
    pub norm_weight: u64,
    /// Rows of `a`.
    pub m: u32,
    /// Rows of `w`.
    pub n: u32,
    /// Columns of both.
    pub k: u32,
    /// Stride of `a`.
    pub ld_a: u32,
    /// Stride of `out`.
    pub ld_out: u32,
    /// Epsilon of the RMS norm.
    pub eps: f32,
}

/// What `cp.async.bulk.tensor` copies from: 128 bytes that only `cuTensorMapEncodeTiled` knows the meaning of, at a
/// multiple of 64.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TensorMap(pub [u64; 16]);

/// `wgmma_bf16_128x*`: a [`Gemm`], and both matrices as tensor copies take them.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PrefillGemm {
    /// The product.
    pub gemm: Gemm,
    /// 1: tensor copies fill the stages, by the maps below. 0: threads do, and nothing reads the maps.
    pub has_maps: u32,
    /// Zero; keeps the struct free of padding.
    pub reserved: u32,
    /// `a`, columns first: `[k, m]` in boxes of 64 × 128, 128-byte swizzle.
    pub a_map: TensorMap,
    /// `w`, where `n` is a multiple of 32: row `32q + 8t + 2j + e` as `[k, e: 2, t: 4, j: 4, q: n / 32]`, in boxes of 64
    /// columns and the tile's weight rows, 128-byte swizzle.
    pub w_map: TensorMap,
}

/// `attn_decode_bf16_d64`, `_d128`: one query token per sequence.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AttnDecode {
    /// `[n_sequences, n_heads, head_dim]` bf16, sequences `ld_q` apart.
    pub q: u64,
    /// `[n_sequences, n_heads, head_dim]` bf16, sequences `ld_out` apart, written.
    pub out: u64,
    /// Cache and block table.
    pub cache: PagedKv,
    /// `[n_sequences]` u32: cached tokens, the query's own included; 0 gives zeros.
    pub kv_lens: u64,
    /// `[n_kv_heads + 1]` u32: KV head g serves `group_heads[group_starts[g]..group_starts[g + 1]]`.
    pub group_starts: u64,
    /// `[n_heads]` u32: query heads by KV head.
    pub group_heads: u64,
    /// `[n_sequences, n_heads, n_splits, head_dim]` f32 scratch.
    pub partial_out: u64,
    /// `[n_sequences, n_heads, n_splits, 2]` f32 scratch: maximum (log2 domain) and sum.
    pub partial_stats: u64,
    /// `[n_sequences, n_kv_heads]` u32, zero before the first launch; every launch leaves zeros.
    pub counters: u64,
    /// Query heads of this rank.
    pub n_heads: u32,
    /// Stride of `q`.
    pub ld_q: u32,
    /// Stride of `out`.
    pub ld_out: u32,
    /// 1/√head_dim.
    pub scale: f32,
}

/// `attn_prefill_bf16_d64`, `_d128`: causal attention of the last `q_len` tokens of each sequence.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AttnPrefill {
    /// `[n_tokens, n_heads, head_dim]` bf16, tokens `ld_q` apart.
    pub q: u64,
    /// `[n_tokens, n_heads, head_dim]` bf16, tokens `ld_out` apart, written.
    pub out: u64,
    /// Cache and block table; holds the new tokens' keys and values already.
    pub cache: PagedKv,
    /// `[n_sequences + 1]` u32: sequence s has the query tokens `q_starts[s]..q_starts[s + 1]`.
    pub q_starts: u64,
    /// `[n_sequences]` u32: cached tokens, the queries' own included.
    pub kv_lens: u64,
    /// `[n_heads]` u32: KV head of each query head.
    pub kv_head_of: u64,
    /// Stride of `q`.
    pub ld_q: u32,
    /// Stride of `out`.
    pub ld_out: u32,
    /// 1/√head_dim.
    pub scale: f32,
    /// Zero; keeps the struct free of padding.
    pub reserved: u32,
}

/// `argmax_f32`: index and value of each row's largest logit, the lowest index among equals.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Argmax {
    /// `[n_rows, len]` f32, rows `ld_logits` apart; a NaN never wins.
    pub logits: u64,
    /// `[n_rows]` u32, written.
    pub indices: u64,
    /// `[n_rows]` f32, written; or 0.
    pub values: u64,
    /// `[n_rows]` u64, zero before the first launch; every launch leaves zeros.
    pub best: u64,
    /// `[n_rows]` u32, zero before the first launch; every launch leaves zeros.
    pub counters: u64,
    /// Logits per row.
    pub len: u32,
    /// Stride of `logits`.
    pub ld_logits: u32,
}

/// `sample_f32`: one token per row by temperature, top-k and top-p.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// `[n_rows, len]` f32, rows `ld_logits` apart; a NaN is never drawn.
    pub logits: u64,
    /// `[n_rows]` u32, written.
    pub tokens: u64,
    /// `[n_rows]` f32; 0 or less is greedy.
    pub temperatures: u64,
    /// `[n_rows]` u32; 0 keeps all. Ties with the k-th are kept.
    pub top_ks: u64,
    /// `[n_rows]` f32; 1 or more keeps all. The token that reaches the mass is kept.
    pub top_ps: u64,
    /// `[n_rows]` u64: seed of the row's request.
    pub seeds: u64,
    /// `[n_rows]` u32: counter of the draw, such as the position; equal (seed, counter) draw alike.
    pub counters: u64,
    /// Logits per row.
    pub len: u32,
    /// Stride of `logits`.
    pub ld_logits: u32,
}

/// `advance_positions_u32`: adds one to both arrays between two steps of a captured decode graph.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AdvancePositions {
    /// `[n_sequences]` u32.
    pub positions: u64,
    /// `[n_sequences]` u32.
    pub kv_lens: u64,
    /// Sequences.
    pub n_sequences: u32,
    /// Zero; keeps the struct free of padding.
    pub reserved: u32,
}

/// Most ranks of a group: one warp greets them all.
pub const MAX_RANKS: usize = 32;
/// Bytes of a unit: what one thread sends at once, 8 elements of 2 bytes or 4 of 4.
pub const UNIT_BYTES: u64 = 16;
/// Units that no shard boundary splits.
pub const GRANULE_UNITS: u32 = 8;
/// Lanes at the end of each block that keep the books and move no data.
pub const CLERKS: u32 = 32;
/// `_put`: lanes before the clerk's that post what the block has staged.
pub const COURIERS: u32 = 128;
/// `row`: the number of the buffer's next call, u64.
pub const ROW_SEQUENCE: u64 = 0;
/// `row`: blocks of the running call that have read that number, u32.
pub const ROW_ARRIVED: u64 = 8;
/// `row`: address of the rank's [`FailureRecord`] in memory that the host sees.
pub const ROW_RECORD: u64 = 16;
/// `row`, `_put`: address of the rank's staging area, laid out like a region, in the same symmetric memory.
pub const ROW_STAGING: u64 = 32;
/// `row`: calls of the buffer so far, u64.
pub const ROW_CALLS: u64 = 40;
/// `row`: `[MAX_RANKS]` addresses, the region of each rank for this buffer; `_put`: of a rank of another node its PE.
pub const ROW_REGIONS: u64 = 64;
/// Bytes of a row.
pub const ROW_BYTES: u64 = ROW_REGIONS + 8 * MAX_RANKS as u64;
/// Most blocks that share a row to be normalised: the largest cluster that every GPU with clusters takes.
pub const MAX_ROW_BLOCKS: u32 = 8;
/// Bytes of a greeting: the header of a call from one rank, two cells of {data, flag}: elements, then [`Collective::meta`].
pub const GREETING_BYTES: u64 = 16;
/// A region begins with the greetings, `[2 parities, MAX_RANKS]`.
pub const GREETINGS_BYTES: u64 = 2 * MAX_RANKS as u64 * GREETING_BYTES;
/// Bits of [`Collective::phases`].
pub const PHASE_REDUCE: u32 = 1;
/// Exchange between nodes.
pub const PHASE_PUT: u32 = 2;
/// All-gather in the node.
pub const PHASE_BROADCAST: u32 = 4;

/// `allreduce_*`: a sum over the ranks of a group; `docs/sync.md` has the protocol.
///
/// One launch serves the ranks of one GPU, which are consecutive: block y is rank `first_rank + y`,
/// and its tensors lie y strides further on.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Collective {
    /// `[ranks of the launch]` rows of `ROW_BYTES`: sequence number, failure record, regions.
    pub rows: u64,
    /// `[ranks of the launch]` u32, 0 while the rank has not failed; 4-byte aligned.
    pub failed: u64,
    /// `[numel]` elements, summed in place; readable up to the next multiple of 16 bytes.
    pub data: u64,
    /// `[numel]` bf16 that this rank adds to its contribution, or 0.
    pub addend: u64,
    /// `_norm`: `[numel]` bf16, the sum is added to it.
    pub residual: u64,
    /// `_norm`: `[hidden]` bf16, weight of the norm.
    pub gain: u64,
    /// `_norm`: `[numel]` bf16, written: the normalised residual.
    pub out: u64,
    /// Bytes from one rank's `data` to the next one's.
    pub data_stride: u64,
    /// Bytes from one rank's `addend`, `residual` and `out` to the next one's.
    pub slice_stride: u64,
    /// Longest wait for peers.
    pub limit_ns: u64,
    /// Where in a region the slots of this wire format begin.
    pub slots: u64,
    /// Bytes from the slots of even calls to those of odd ones.
    pub parity_stride: u64,
    /// Bytes from one slot to the next.
    pub slot_stride: u64,
    /// Elements of the tensor.
    pub numel: u32,
    /// Units of a pass, of the tensor (one-shot) or of each shard (two-shot); passes have numbers of their own.
    pub pass_units: u32,
    /// Passes, at least 1.
    pub passes: u32,
    /// Which phases happen; all, or one alone.
    pub phases: u32,
    /// Nodes of the group.
    pub nodes: u32,
    /// Ranks in each node.
    pub gpus_per_node: u32,
    /// Rank of the first row.
    pub first_rank: u32,
    /// What ranks compare beside `numel`: kind of call, dtype, format, choices.
    pub meta: u32,
    /// Number of the group, for failure records.
    pub group: u32,
    /// `_norm`: width of a row, a multiple of 8 elements.
    pub hidden: u32,
    /// `_norm`: added to the mean square.
    pub eps: f32,
    /// The first unit of the first pass, of the tensor, of each shard or of each piece.
    pub first_unit: u32,
}

/// `allgather_*`: every rank gets every rank's piece, in place.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Gather {
    /// Ranks, regions, tensor; `numel` is the end of the last piece, `passes` is 1; `pass_units` of each piece, from
    /// `first_unit` on, are gathered.
    pub collective: Collective,
    /// `[ranks + 1]` elements: rank r's piece is `offsets[r]..offsets[r + 1]`.
    pub offsets: [u32; MAX_RANKS + 1],
    /// Halves (2 bytes) of an element: 1 or 2.
    pub element_halves: u32,
}

/// What a kernel that gives up leaves for the host. Written once, `state` last.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FailureRecord {
    /// 0: none; [`FAILURE_TIMEOUT`] or [`FAILURE_MISMATCH`].
    pub state: u32,
    /// Number of the group.
    pub group: u32,
    /// Rank that gave up, in its group.
    pub rank: u32,
    /// Rank that it waited for, in its group.
    pub peer: u32,
    /// One of the phase bits.
    pub phase: u32,
    /// Round within the phase.
    pub step: u32,
    /// Flag that came, 0 for none.
    pub seen: u32,
    /// Low half of the sequence number that was waited for.
    pub expected_low: u32,
    /// High half of it.
    pub expected_high: u32,
    /// [`Collective::numel`] of this rank.
    pub numel: u32,
    /// [`Collective::meta`] of this rank.
    pub meta: u32,
    /// `numel` of the peer, where it differs.
    pub peer_numel: u32,
    /// `meta` of the peer, where it differs.
    pub peer_meta: u32,
    /// Zero.
    pub reserved: u32,
}

/// [`FailureRecord::state`]: a message did not come in time.
pub const FAILURE_TIMEOUT: u32 = 1;
/// [`FailureRecord::state`]: a peer takes part in another call.
pub const FAILURE_MISMATCH: u32 = 2;
