//! Which heads share a rank in a block that drops (SPD paper, Section 4.2.3, "head grouping").
//!
//! Without the first all-reduce a rank's MLP sees the attention of its own heads alone, so each rank gets heads that
//! differ: heads whose attention probabilities are far apart (Euclidean, over the calibration text) are put together.
//! Then each set of heads gets the MLP shard that makes most of it, by ‖MLP_m(norm(X + Y_A))‖. The result is the order
//! in which a plan deals heads to ranks; it costs nothing at run time, and nothing at all where the block synchronises.
//!
//! Beyond the paper: shares may be uneven (sets of one size are matched with shards of ranks of that size), and with
//! grouped-query attention a rank never gets more KV heads than it had, unless that is allowed: KV groups then move as
//! a whole, or partly where a rank shared one already.

mod assignment;
mod partition;

use rayon::prelude::*;

use super::{BlockPlan, Plan};
use crate::model::sharding::{Sharding, share};
use crate::reference::{RankProbe, Reference};
use crate::runner::{RunError, Runner};
use assignment::assign;
use partition::{Partition, Rules};

/// What head grouping found for one block.
#[derive(Debug, Clone, PartialEq)]
pub struct Grouping {
    /// The order in which query heads are dealt to ranks, for [`BlockPlan::heads`].
    pub heads: Vec<usize>,
    /// Σ of distances between heads on the same rank: in the checkpoint's order, and in this one.
    pub distance: [f64; 2],
    /// Σ over ranks of the mean norm of the MLP shard's output: in the checkpoint's order, and in this one.
    pub mlp_norm: [f64; 2],
    /// KV heads on each rank in this order.
    pub kv_heads: Vec<usize>,
}

/// Finds the order of one block's heads, from hidden states at its input, a chunk each.
///
/// # Errors
/// What the reference reports.
pub fn group_heads(
    reference: &mut Reference,
    layer: usize,
    inputs: &[Vec<f32>],
    replicate_kv: bool,
) -> Result<Grouping, RunError> {
    let config = reference.config().clone();
    let sharding = Sharding::new(&config, reference.tp()).map_err(super::PlanError::from)?;
    let tp = sharding.tp();
    let rules = Rules::new(&sharding, config.n_heads, config.n_kv_heads, replicate_kv);

    let own = probe(reference, layer, None, inputs, true)?;
    let distances = own.distances;
    let as_stored = Partition::as_stored(&rules);
    let partition = Partition::search(&rules, &distances);

    // Every set meets every shard of its size once.
    let mut norms = vec![vec![f64::NEG_INFINITY; tp]; tp];
    let sizes: Vec<usize> = (0..tp).map(|rank| rules.size(rank)).collect();
    let peers = |rank: usize| (0..tp).filter(|&other| sizes[other] == sizes[rank]).collect::<Vec<_>>();
    let shifts = (0..tp).map(|rank| peers(rank).len()).max().unwrap_or(0);
    for shift in 0..shifts {
        let set_of = |rank: usize| {
            let peers = peers(rank);
            let at = peers.iter().position(|&peer| peer == rank).unwrap_or(0);
            peers[(at + shift) % peers.len()]
        };
        let sets: Vec<usize> = (0..tp).map(set_of).collect();
        let order: Vec<usize> = sets.iter().flat_map(|&set| partition.set(set).to_vec()).collect();
        let seen = probe(reference, layer, Some(order), inputs, false)?;
        for (rank, &set) in sets.iter().enumerate() {
            if rules.fits(partition.set(set), rank) {
                norms[set][rank] = seen.mlp_norms[rank];
            }
        }
    }
    let rank_of = assign(&norms);
    let mut set_on = vec![0; tp];
    rank_of.iter().enumerate().for_each(|(set, &rank)| set_on[rank] = set);
    let heads: Vec<usize> = set_on.iter().flat_map(|&set| partition.set(set).to_vec()).collect();
    Ok(Grouping {
        distance: [as_stored.objective(&distances), partition.objective(&distances)],
        mlp_norm: [own.mlp_norms.iter().sum(), rank_of.iter().enumerate().map(|(s, &r)| norms[s][r]).sum()],
        kv_heads: (0..tp).map(|rank| sharding.heads(rank, Some(&heads)).kv_heads.len()).collect(),
        heads,
    })
}

/// Each rank's part of an order of heads.
pub fn dealt(order: &[usize], tp: usize) -> impl Iterator<Item = &[usize]> {
    (0..tp).map(move |rank| &order[share(order.len(), tp, rank)])
}

/// What probes of all chunks add up to.
struct Seen {
    /// `[heads][heads]`, Euclidean.
    distances: Vec<Vec<f64>>,
    /// By rank, mean over tokens.
    mlp_norms: Vec<f64>,
}

fn probe(
    reference: &mut Reference,
    layer: usize,
    heads: Option<Vec<usize>>,
    inputs: &[Vec<f32>],
    with_distances: bool,
) -> Result<Seen, RunError> {
    let (tp, n_layers, hidden) = {
        let config = reference.config();
        (reference.tp(), config.n_layers, config.hidden)
    };
    let n_heads = reference.config().n_heads;
    let mut blocks = vec![BlockPlan::default(); n_layers];
    blocks[layer] = BlockPlan { sync_attention: false, heads, replacement: None };
    reference.set_plan(&Plan::new(tp, blocks))?;
    let mut squares = vec![vec![0.0; n_heads]; n_heads];
    let mut mlp_norms = vec![0.0; tp];
    let mut n_tokens = 0;
    for input in inputs {
        n_tokens += input.len() / hidden;
        let probes = reference.probe(layer, input)?;
        mlp_norms.iter_mut().zip(&probes).for_each(|(sum, probe)| *sum += probe.mlp_norm);
        if with_distances {
            add_square_distances(&mut squares, &probes);
        }
    }
    mlp_norms.iter_mut().for_each(|norm| *norm /= n_tokens as f64);
    let distances = squares.into_iter().map(|row| row.into_iter().map(f64::sqrt).collect()).collect();
    Ok(Seen { distances, mlp_norms })
}

/// Adds ‖σ_j − σ_k‖² for every pair of heads.
fn add_square_distances(squares: &mut [Vec<f64>], probes: &[RankProbe]) {
    let scores: Vec<(usize, &Vec<f32>)> =
        probes.iter().flat_map(|probe| probe.heads.iter().copied().zip(&probe.scores)).collect();
    let pairs: Vec<_> = (0..scores.len()).flat_map(|a| (0..a).map(move |b| (a, b))).collect();
    let square = |&(a, b): &(usize, usize)| -> f64 {
        scores[a].1.iter().zip(scores[b].1).map(|(x, y)| f64::from(x - y).powi(2)).sum()
    };
    let sums: Vec<f64> = pairs.par_iter().map(square).collect();
    for ((a, b), sum) in pairs.into_iter().zip(sums) {
        let (a, b) = (scores[a].0, scores[b].0);
        squares[a][b] += sum;
        squares[b][a] += sum;
    }
}
