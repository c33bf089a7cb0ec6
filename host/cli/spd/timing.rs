//! Times of plans over each kind of memory between the ranks, beside what the dropped sync points take by themselves.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::ensure;
use clap::ValueEnum;
use serde::Serialize;

use super::recorded;
use crate::bench::allreduce::contest::{Sweep, run_ours};
use crate::bench::allreduce::record::AUTOMATIC;
use crate::bench::allreduce::{Call, Launching, Measurement};
use crate::bench::decode::Workload;
use crate::cli::layout::{ModelArgs, PeerMemoryChoice, at_least};
use crate::cli::session::{Session, progress_bar};
use crate::cli::world::World;
use crate::comm::DType;
use crate::comm::gpu::Tuning;
use crate::engine::MAX_ROWS;
use crate::spd::{BlockPlan, Plan, SpdSpec, SyncCost, Times, passes, times};

#[derive(clap::Args)]
pub(super) struct TimingArgs {
    /// Sequences decoded together when timing
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,8", value_parser = at_least::<1>)]
    batch: Vec<usize>,
    /// Prompt tokens of each sequence when timing
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "128", value_parser = at_least::<1>)]
    prompt: Vec<usize>,
    /// Tokens decoded when timing
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least::<1>)]
    decode: usize,
    /// Times that every timing is repeated
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least::<1>)]
    rounds: usize,
    /// On GPUs: ways to each other's memory to time one after another, direct or host-staged, and host-staged:N with N
    /// blocks to a collective: the fewer, the less is in flight, as on a slower link [default: --peer-memory]
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "peer_memory")]
    over: Vec<Link>,
    /// Take the times from a file that an earlier run wrote with --csv, on another machine say: of as many ranks, and of
    /// a model with as many blocks
    #[arg(long, value_name = "FILE.csv", conflicts_with_all = ["over", "only"])]
    times: Option<PathBuf>,
}

/// How ranks reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    memory: PeerMemoryChoice,
    blocks: Option<u32>,
}

impl FromStr for Link {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (memory, blocks) = s.split_once(':').map_or((s, None), |(memory, blocks)| (memory, Some(blocks)));
        let wrong =
            || format!("'{s}' is not a way: write direct, host-staged, or host-staged:4 for 4 blocks");
        let memory = PeerMemoryChoice::from_str(memory, false).map_err(|_| wrong())?;
        let number = |blocks: &str| blocks.parse().ok().filter(|n| *n > 0).ok_or_else(wrong);
        Ok(Self { memory, blocks: blocks.map(number).transpose()? })
    }
}

impl Link {
    fn name(self) -> String {
        let memory = self.memory.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        self.blocks.map_or_else(|| memory.clone(), |blocks| format!("{memory}:{blocks}"))
    }
}

/// What a phase's first sync points take in one block: those of all its passes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct BlockSync {
    /// The sum alone.
    pub(super) sum_us: f64,
    /// The sum with residual and RMSNorm.
    pub(super) fused_us: f64,
    /// Residual and RMSNorm, which stay where the sum is dropped.
    pub(super) norm_us: f64,
}

impl BlockSync {
    fn of(costs: &[SyncCost], tokens: usize) -> Option<Self> {
        let cost = |tokens: usize| costs.iter().find(|cost| cost.tokens == tokens);
        let passes = passes(tokens, MAX_ROWS).into_iter().map(cost).collect::<Option<Vec<_>>>()?;
        let sum = |of: fn(&SyncCost) -> f64| passes.iter().map(|&cost| of(cost)).sum();
        Some(Self { sum_us: sum(|c| c.sum_us), fused_us: sum(|c| c.fused_us), norm_us: sum(|c| c.norm_us) })
    }

    /// What so many dropped blocks should save.
    pub(super) fn saved_ms(&self, dropped: usize) -> f64 {
        dropped as f64 * (self.fused_us - self.norm_us) / 1e3
    }
}

/// One plan's times under one workload over one link.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TimedOver {
    /// `direct`, `host-staged`; where one process has all ranks, `process`.
    pub(super) link: String,
    pub(super) times: Times,
    /// Of a prefill and of a decode step; none where no GPU was timed.
    pub(super) sync: Option<[BlockSync; 2]>,
}

impl TimingArgs {
    /// Refuses links where there are none.
    pub(super) fn check_device(&self, on_cpu: bool) -> anyhow::Result<()> {
        ensure!(
            self.over.is_empty() || !on_cpu,
            "--over is about GPUs, whose ranks reach each other in several ways: leave it out on the CPU"
        );
        Ok(())
    }

    /// Refuses what the model has no room for.
    pub(super) fn check(&self, context: usize) -> anyhow::Result<()> {
        let longest = self.prompt.iter().max().copied().unwrap_or(0);
        let needed = longest.saturating_add(self.decode);
        ensure!(
            needed <= context,
            "--prompt and --decode add up to {needed} tokens, but the model's context is {context}"
        );
        Ok(())
    }

    /// The model over the first link.
    pub(super) fn first(&self, model: &ModelArgs) -> ModelArgs {
        self.over.first().map_or_else(|| model.clone(), |&link| over(model, link))
    }

    fn workloads(&self) -> Vec<Workload> {
        let of = |&batch| {
            let workload = move |&prompt| Workload { batch, prompt, decode: self.decode, runs: 1 };
            self.prompt.iter().map(workload)
        };
        self.batch.iter().flat_map(of).collect()
    }

    /// One list a plan; plans that drop the same blocks share a measurement. The session is over the first link; each
    /// further one loads the model anew. `notes` are told what the links are.
    pub(super) fn measure(
        &self,
        model: &ModelArgs,
        mut session: Session,
        plans: &[Plan],
        notes: &mut Vec<String>,
    ) -> anyhow::Result<Vec<Vec<TimedOver>>> {
        if let Some(path) = &self.times {
            notes.push(format!("times are those of {}", path.display()));
            return recorded::read(path, plans);
        }
        let distinct = distinct(plans);
        let mut timed = vec![Vec::new(); distinct.len()];
        let links: Vec<Option<Link>> = match self.over.as_slice() {
            [] => vec![None],
            links => links.iter().copied().map(Some).collect(),
        };
        for (i, link) in links.into_iter().enumerate() {
            let args = link.map_or_else(|| model.clone(), |link| over(model, link));
            if i > 0 {
                // Two copies of the model need not fit.
                drop(session);
                session = Session::open(&args, &SpdSpec::None, &World::Threads)?;
            }
            let name = link_name(link, &args, &session);
            for (timed, line) in
                timed.iter_mut().zip(self.over_one(&name, &args, &mut session, &distinct, notes)?)
            {
                timed.extend(line);
            }
        }
        let of = |plan: &Plan| {
            let same = |other: &Plan| pattern(other) == pattern(plan);
            distinct.iter().position(same).map(|i| timed[i].clone()).unwrap_or_default()
        };
        Ok(plans.iter().map(of).collect())
    }

    /// One list a plan; the first is the synchronised one.
    fn over_one(
        &self,
        link: &str,
        args: &ModelArgs,
        session: &mut Session,
        plans: &[Plan],
        notes: &mut Vec<String>,
    ) -> anyhow::Result<Vec<Vec<TimedOver>>> {
        let workloads = self.workloads();
        let runs = plans.len() * workloads.len() * self.rounds;
        let bar = progress_bar(runs as u64, "timing", "{pos}/{len} runs,");
        let all = times(&mut *session.runner, plans, &workloads, self.rounds, || bar.inc(1))?;
        bar.finish_and_clear();
        let costs = sync_costs(args, session, &workloads)?;
        notes.extend(costs.iter().map(|cost| note(link, cost, session.model.config.hidden)));
        let line =
            |times: Times| TimedOver { link: link.to_owned(), times, sync: prefill_and_step(&costs, &times) };
        Ok(all.into_iter().map(|times| times.into_iter().map(line).collect()).collect())
    }
}

/// The plans, zero-shot, each set of blocks once; before all the synchronised one, with which they are compared.
fn distinct(plans: &[Plan]) -> Vec<Plan> {
    let Some(first) = plans.first() else { return Vec::new() };
    let (tp, n_layers) = (first.tp(), first.blocks().len());
    let mut patterns: Vec<Vec<bool>> = plans.iter().map(pattern).collect();
    patterns.sort_unstable();
    patterns.dedup();
    let zero_shot = |syncs: Vec<bool>| {
        let block = |sync_attention| BlockPlan { sync_attention, ..BlockPlan::default() };
        Plan::new(tp, syncs.into_iter().map(block).collect())
    };
    let dropping = patterns.into_iter().map(zero_shot).filter(|plan| plan.n_dropped() > 0);
    std::iter::once(Plan::synchronised(tp, n_layers)).chain(dropping).collect()
}

fn link_name(link: Option<Link>, args: &ModelArgs, session: &Session) -> String {
    if session.device() == "cpu" {
        return "process".into();
    }
    let memory = args.layout.sync.peer_memory.unwrap_or(PeerMemoryChoice::Direct);
    link.unwrap_or(Link { memory, blocks: None }).name()
}

fn pattern(plan: &Plan) -> Vec<bool> {
    plan.blocks().iter().map(|block| block.sync_attention).collect()
}

fn over(model: &ModelArgs, link: Link) -> ModelArgs {
    let mut model = model.clone();
    model.layout.sync.peer_memory = Some(link.memory);
    model.layout.sync.forced = link.blocks.map(|blocks| Tuning { blocks: Some(blocks), ..Tuning::default() });
    model
}

fn prefill_and_step(costs: &[SyncCost], times: &Times) -> Option<[BlockSync; 2]> {
    Some([BlockSync::of(costs, times.batch * times.prompt)?, BlockSync::of(costs, times.batch)?])
}

/// Each message of the workloads, as `fewsync bench allreduce` times it. None where ranks are no GPUs.
fn sync_costs(args: &ModelArgs, session: &Session, workloads: &[Workload]) -> anyhow::Result<Vec<SyncCost>> {
    if !session.device().starts_with("cuda") {
        return Ok(Vec::new());
    }
    let hidden = session.model.config.hidden;
    let mut tokens: Vec<usize> = workloads
        .iter()
        .flat_map(|w| [w.batch, w.batch * w.prompt])
        .flat_map(|n| passes(n, MAX_ROWS))
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    let sweep = Sweep {
        shape: session.shape,
        dtype: DType::Bf16,
        sizes: Vec::new(),
        calls: vec![Call::Fused, Call::Norm],
        launching: vec![Launching::Graph],
        hidden: vec![hidden],
        tokens: tokens.clone(),
    };
    let gpus = session.runner.gpus();
    let options = args.layout.sync.group(&gpus, session.shape)?;
    let bar = progress_bar(sweep.tasks().len() as u64, "timing sync points", "{pos}/{len} calls,");
    let lines = run_ours(&gpus, &sweep, &options, AUTOMATIC, |_| bar.inc(1))?;
    bar.finish_and_clear();
    let us = |call, tokens: usize| {
        let same = |line: &&Measurement| line.call == call && line.bytes == tokens * hidden * 2;
        lines.iter().find(same).map(|line| line.us.median)
    };
    let cost = |tokens| {
        let [sum_us, fused_us, norm_us] = [Call::Plain, Call::Fused, Call::Norm].map(|call| us(call, tokens));
        Some(SyncCost { tokens, sum_us: sum_us?, fused_us: fused_us?, norm_us: norm_us? })
    };
    Ok(tokens.into_iter().filter_map(cost).collect())
}

fn note(link: &str, cost: &SyncCost, hidden: usize) -> String {
    let SyncCost { tokens, sum_us, fused_us, norm_us } = cost;
    format!(
        "{link}: all-reduce of {tokens} x {hidden} in bf16 {sum_us:.2} µs ({:.1} GB/s); with residual and norm \
         {fused_us:.2} µs, these alone {norm_us:.2} µs",
        cost.sum_gb_per_s(hidden)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_and_named() {
        for name in ["direct", "host-staged", "host-staged:4"] {
            assert_eq!(name.parse::<Link>().unwrap().name(), name);
        }
        for wrong in ["", "nvlink", "direct:", "host-staged:0", "host-staged:x"] {
            assert!(wrong.parse::<Link>().unwrap_err().contains("is not a way"), "{wrong}");
        }
    }

    #[test]
    fn every_set_of_blocks_is_timed_once_behind_the_synchronised_model() {
        let plan = |dropped: &[usize]| crate::spd::dropping(2, 3, dropped);
        let patterns = |plans: &[Plan]| distinct(plans).iter().map(pattern).collect::<Vec<_>>();
        let all = [plan(&[2]), plan(&[]), plan(&[1, 2]), plan(&[2])];
        assert_eq!(patterns(&all), [[true; 3], [true, false, false], [true, true, false]]);
        assert_eq!(patterns(&[plan(&[])]), [[true; 3]]);
    }

    #[test]
    fn a_prefill_pays_for_every_pass() {
        let cost = |tokens: usize| {
            let us = tokens as f64;
            SyncCost { tokens, sum_us: us, fused_us: us + 3.0, norm_us: 2.0 }
        };
        let costs = [cost(8), cost(512), cost(MAX_ROWS)];
        let sync = BlockSync::of(&costs, 2 * MAX_ROWS + 512).unwrap();
        assert_eq!((sync.sum_us, sync.fused_us, sync.norm_us), (2560.0, 2569.0, 6.0));
        assert_eq!(sync.saved_ms(2), 2.0 * 2563.0 / 1e3);
        assert_eq!(BlockSync::of(&costs, 9), None);
    }
}
