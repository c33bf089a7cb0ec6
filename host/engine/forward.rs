//! A rank's way through the model: kernels on a stream, from token numbers to normalised rows and logits.
//!
//! Everything here only enqueues, so that a decode step can be captured.

use half::bf16;

use super::profile::class_of;
use super::rank::Rank;
use super::weights::Matrix;
use crate::comm::gpu::DeviceSlice;
use crate::comm::{AllGather, AllReduce, Communicator, DType, Epilogue};
use crate::kernels::{
    AddRmsNorm, Addr, AttnDecode, AttnPrefill, Embedding, Gemv, Launch, MatMul, Norm, Product, RmsNorm,
    RopeKvWrite, Rows,
};
use crate::runner::RunError;
use crate::runner::profile::KernelClass;

/// The tokens of a pass and where their arrays lie.
pub(super) struct Pass {
    /// Tokens.
    pub(super) n: usize,
    pub(super) ids: Addr<u32>,
    pub(super) positions: Addr<u32>,
    /// Row of the block table of each token.
    pub(super) sequences: Addr<u32>,
    pub(super) block_table: Addr<u32>,
    /// Per row of the block table.
    pub(super) kv_lens: Addr<u32>,
    pub(super) attention: Attention,
}

/// Which attention a pass takes.
pub(super) enum Attention {
    /// One token per row of the block table.
    Decode,
    /// Some tokens per row of the block table.
    Prefill { q_starts: Addr<u32>, n_sequences: usize, max_q_len: usize },
}

/// Rows that a product reads: normalised already, or to be normalised by it.
#[derive(Clone, Copy)]
pub(super) struct Input {
    pub(super) rows: Rows<bf16>,
    pub(super) norm: Option<Norm>,
}

/// What a product's partial sums are added to.
#[derive(Clone, Copy, PartialEq)]
enum Onto {
    Nothing,
    /// This rank's attention output, which waits in the symmetric buffer: the first sync point was dropped.
    OwnAttention,
}

impl Rank {
    pub(super) fn launch(&self, launch: &Launch) -> Result<(), RunError> {
        if !self.enqueues(class_of(launch.entry)) {
            return Ok(());
        }
        // SAFETY: every launch of the engine is built from buffers of this rank that are large enough by their
        // allocation: activations for MAX_ROWS tokens, lanes for LANES sequences, pages by `Pages`. They are
        // used on this stream alone (weights and tables were uploaded and waited for), and live as long as the
        // rank and its graphs.
        Ok(unsafe { self.kernels.launch(&self.stream, launch) }?)
    }

    /// All blocks over a pass's tokens; returns what the output head reads. `hidden_states` receives the
    /// embedding and every block's output, which waits for the device.
    pub(super) fn pass(
        &mut self,
        pass: &Pass,
        mut hidden_states: Option<&mut Vec<Vec<f32>>>,
    ) -> Result<Input, RunError> {
        let table = self.globals.embedding.matrix();
        let embedding = Embedding {
            table: table.at,
            rows: table.n,
            width: table.k,
            ids: pass.ids,
            out: self.work.x.addr(),
            n_tokens: pass.n as u32,
        };
        self.launch(&embedding.launch())?;
        self.keep_state(pass.n, &mut hidden_states)?;
        let mut input = self.first_input(pass.n)?;
        for layer in 0..self.blocks.len() {
            input = self.block(layer, pass, input)?;
            self.keep_state(pass.n, &mut hidden_states)?;
        }
        Ok(input)
    }

    fn keep_state(&self, n: usize, states: &mut Option<&mut Vec<Vec<f32>>>) -> Result<(), RunError> {
        if let Some(states) = states {
            let mut x = vec![bf16::ZERO; n * self.shape.hidden];
            self.work.x.download_at(0, &mut x, &self.stream)?;
            states.push(x.into_iter().map(bf16::to_f32).collect());
        }
        Ok(())
    }

    /// The embedded rows as the first block reads them.
    fn first_input(&self, n: usize) -> Result<Input, RunError> {
        let weight = self.blocks[0].attention_norm.addr();
        if self.adds_in_place(n) {
            return Ok(self.unnormalised(weight));
        }
        let (x, out) = (self.work.x.addr(), self.work.h.addr());
        let (hidden, eps) = (self.shape.hidden as u32, self.config.rms_eps);
        self.launch(&RmsNorm { x, weight, out, n_tokens: n as u32, hidden, eps }.launch())?;
        Ok(Input { rows: self.dense(out), norm: None })
    }

    /// With one rank a sum over ranks is the product itself, so where the products of few rows can add to the
    /// residual stream and normalise what they read, no kernel stands between them.
    fn adds_in_place(&self, n: usize) -> bool {
        self.options.fuse_norms && self.comm.topology().world() == 1 && n <= Gemv::MAX_ROWS as usize
    }

    /// The residual stream, for products that normalise it themselves.
    fn unnormalised(&self, weight: Addr<bf16>) -> Input {
        let norm = Norm { weight, eps: self.config.rms_eps };
        Input { rows: self.dense(self.work.x.addr()), norm: Some(norm) }
    }

    /// Rows of the model's width without gaps.
    pub(super) fn dense(&self, at: Addr<bf16>) -> Rows<bf16> {
        Rows::new(at, self.shape.hidden as u32)
    }

    /// One decoder block. Sync-Point Drop: SPD paper, Section 4.1, Figure 3a.
    fn block(&mut self, layer: usize, pass: &Pass, input: Input) -> Result<Input, RunError> {
        let n = pass.n;
        self.attend(layer, pass, input)?;
        let block = &self.blocks[layer];
        let (o, gate_up, down) = (block.o.matrix(), block.gate_up.matrix(), block.down.matrix());
        let mlp_norm = block.mlp_norm.addr();
        let next_norm =
            self.blocks.get(layer + 1).map_or(&self.globals.final_norm, |b| &b.attention_norm).addr();
        let before = self.comm.counts().all_reduces;

        // With one rank there is no all-reduce to drop, and the exact order of additions is kept.
        let alone = self.comm.topology().world() == 1 && !self.options.drop_alone;
        let dropped = !block.plan.sync_attention && !alone;
        let attended = Input { rows: Rows::new(self.work.attended.addr(), o.k), norm: None };
        let (input, onto) = if dropped {
            (self.keep_own_attention(attended, o, mlp_norm, n)?, Onto::OwnAttention)
        } else {
            (self.reduce(attended, o, Onto::Nothing, mlp_norm, n)?, Onto::Nothing)
        };
        let activated = Rows::new(self.work.activated.addr(), down.k);
        self.project(input, gate_up, Product::SwiGlu(activated), n)?;
        let output = self.reduce(Input { rows: activated, norm: None }, down, onto, next_norm, n)?;

        let all_reduces = self.comm.counts().all_reduces - before;
        self.syncs.block_all_reduces += all_reduces;
        self.syncs.sync_points += all_reduces;
        Ok(output)
    }

    /// The MLP of this rank sees X + Y_i; Y_i stays in the symmetric buffer and joins the sum behind the MLP.
    fn keep_own_attention(
        &mut self,
        attended: Input,
        o: Matrix,
        weight: Addr<bf16>,
        n: usize,
    ) -> Result<Input, RunError> {
        self.project(attended, o, Product::Store(self.dense(self.partial.addr())), n)?;
        let hidden = self.shape.hidden;
        // X stays as it is: the sum behind the MLP is added to it.
        let sum = AddRmsNorm {
            x: self.partial.addr(),
            residual: self.work.x.addr(),
            sum: self.work.m.addr(),
            weight,
            out: self.work.h.addr(),
            n_tokens: n as u32,
            hidden: hidden as u32,
            eps: self.config.rms_eps,
        };
        self.launch(&sum.launch())?;
        Ok(Input { rows: self.dense(self.work.h.addr()), norm: None })
    }

    /// The sync point: adds the product, summed over ranks, to the residual stream, and normalises that.
    fn reduce(
        &mut self,
        input: Input,
        weights: Matrix,
        onto: Onto,
        gain: Addr<bf16>,
        n: usize,
    ) -> Result<Input, RunError> {
        if onto == Onto::Nothing && self.adds_in_place(n) {
            self.project(input, weights, Product::Add(self.dense(self.work.x.addr())), n)?;
            return Ok(self.unnormalised(gain));
        }
        let partial = self.dense(self.partial.addr());
        let product = if onto == Onto::Nothing { Product::Store(partial) } else { Product::Add(partial) };
        self.project(input, weights, product, n)?;
        let numel = n * self.shape.hidden;
        let sync_class = self.sync_class();
        // SAFETY: buffers of this rank, at least as long, alive as long as its stream and graphs.
        let slice = |at, len| unsafe { DeviceSlice::new(at, len) };
        let (mut residual, mut out) = (slice(self.work.x.addr(), numel), slice(self.work.h.addr(), numel));
        let gain = slice(gain, self.shape.hidden);
        let epilogue = Epilogue::ResidualRmsNorm {
            residual: &mut residual,
            gain: &gain,
            eps: self.config.rms_eps,
            out: &mut out,
        };
        let op = AllReduce { buf: &mut self.partial, numel, dtype: DType::Bf16, addend: None, epilogue };
        if self.enqueued.contains(sync_class) {
            self.comm.enqueue(&self.stream, op)?;
        }
        Ok(Input { rows: self.dense(self.work.h.addr()), norm: None })
    }

    /// Alone, a rank has nothing to wait for: what remains of a sync point is the residual and the norm.
    fn sync_class(&self) -> KernelClass {
        if self.comm.topology().world() == 1 { KernelClass::Pointwise } else { KernelClass::Sync }
    }

    /// Projections, rotary embedding, cache write and attention of this rank's heads, into `attended`.
    fn attend(&self, layer: usize, pass: &Pass, input: Input) -> Result<(), RunError> {
        let block = &self.blocks[layer];
        let (heads, head_dim, weights) = (&block.heads, self.shape.head_dim, block.qkv.matrix());
        let qkv = Rows::new(self.work.qkv.addr(), weights.n);
        self.project(input, weights, Product::Store(qkv), pass.n)?;
        let cache = self.cache.layer(layer, heads, pass.block_table);
        let rope = RopeKvWrite {
            head_dim,
            qkv: qkv.at,
            inv_freq: self.globals.inv_freq.addr(),
            positions: pass.positions,
            sequences: pass.sequences,
            cache,
            n_heads: heads.n_heads,
            n_tokens: pass.n as u32,
        };
        self.launch(&rope.launch())?;
        let out = Rows::new(self.work.attended.addr(), heads.n_heads * head_dim.get());
        let kv_lens = pass.kv_lens;
        let attention = match pass.attention {
            Attention::Decode => AttnDecode {
                head_dim,
                q: qkv,
                out,
                cache,
                kv_lens,
                group_starts: heads.group_starts(),
                group_heads: heads.group_heads(),
                partial_out: self.work.partial_out.addr(),
                partial_stats: self.work.partial_stats.addr(),
                counters: self.work.counters.addr(),
                n_heads: heads.n_heads,
                n_sequences: pass.n as u32,
                n_splits: self.shape.decode_splits(pass.n as u32, self.sm_count),
            }
            .launch(),
            Attention::Prefill { q_starts, n_sequences, max_q_len } => AttnPrefill {
                head_dim,
                q: qkv,
                out,
                cache,
                q_starts,
                kv_lens,
                kv_head_of: heads.kv_head_of(),
                n_heads: heads.n_heads,
                n_sequences: n_sequences as u32,
                max_q_len: max_q_len as u32,
            }
            .launch(self.kernels.target()),
        };
        self.launch(&attention)
    }

    /// `out ← norm(input) · weightsᵀ` for `m` rows.
    fn project(&self, input: Input, weights: Matrix, out: Product, m: usize) -> Result<(), RunError> {
        let (Input { rows: mut a, norm }, Matrix { at: mut w, n, k }, m) = (input, weights, m as u32);
        if n == 0 {
            return Ok(());
        }
        if k == 0 {
            // More ranks than granules: the product is zero. The kernel reads nothing, but wants an address.
            (a.at, w) = (self.work.x.addr(), self.work.x.addr());
        }
        let launch = match norm {
            Some(_) => Gemv { a, w, out, norm, m, n, k }.launch(self.sm_count),
            None => MatMul { a, w, out, m, n, k }.launch(self.kernels.target().for_hidden(self.shape.hidden)),
        };
        self.launch(&launch)
    }

    /// Logits of `count` ≤ LANES rows, gathered from the ranks' shards of the vocabulary.
    pub(super) fn head(&mut self, input: Input, count: usize) -> Result<(), RunError> {
        let rank = self.comm.topology().rank;
        let offsets = self.layout.offsets(count);
        let weights = self.globals.head();
        let out = Rows::new(self.logits.addr::<f32>().at(offsets[rank]), self.layout.width(rank) as u32);
        self.project(input, weights, Product::StoreF32(out), count)?;
        let before = self.comm.counts().all_gathers;
        let op = AllGather { buf: &mut self.logits, offsets: &offsets, dtype: DType::F32 };
        if self.enqueued.contains(KernelClass::Sync) {
            self.comm.enqueue_gather(&self.stream, op)?;
        }
        self.syncs.sync_points += self.comm.counts().all_gathers - before;
        Ok(())
    }
}
