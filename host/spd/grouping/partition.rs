//! Balanced sets of heads that differ: local search from the checkpoint's order.

use crate::model::sharding::{Sharding, share};

/// What a partition has to keep.
pub(super) struct Rules {
    n_heads: usize,
    heads_per_kv: usize,
    tp: usize,
    /// Most KV heads of each rank.
    kv_limit: Vec<usize>,
}

impl Rules {
    /// A rank keeps its number of query heads, and of KV heads at most what it has in the checkpoint's order, or any
    /// number where they may be replicated.
    pub(super) fn new(sharding: &Sharding, n_heads: usize, n_kv_heads: usize, replicate_kv: bool) -> Self {
        let tp = sharding.tp();
        let limit = |rank| if replicate_kv { n_kv_heads } else { sharding.heads(rank, None).kv_heads.len() };
        Self { n_heads, heads_per_kv: n_heads / n_kv_heads, tp, kv_limit: (0..tp).map(limit).collect() }
    }

    /// Query heads of a rank.
    pub(super) fn size(&self, rank: usize) -> usize {
        share(self.n_heads, self.tp, rank).len()
    }

    fn kv(&self, head: usize) -> usize {
        head / self.heads_per_kv
    }

    /// What may leave a set together: runs of heads of one KV group, single heads included.
    fn parts(&self, set: &[usize]) -> Vec<Vec<usize>> {
        let mut sorted = set.to_vec();
        sorted.sort_unstable();
        let groups = sorted.chunk_by(|&a, &b| self.kv(a) == self.kv(b));
        let runs = |group: &[usize]| -> Vec<Vec<usize>> {
            let ends = |start| (start + 1..=group.len()).map(move |end| (start, end));
            (0..group.len()).flat_map(ends).map(|(start, end)| group[start..end].to_vec()).collect()
        };
        groups.flat_map(runs).collect()
    }

    /// Whether a rank may hold these heads.
    pub(super) fn fits(&self, heads: &[usize], rank: usize) -> bool {
        let mut kv: Vec<usize> = heads.iter().map(|&head| self.kv(head)).collect();
        kv.sort_unstable();
        kv.dedup();
        heads.len() == self.size(rank) && kv.len() <= self.kv_limit[rank]
    }
}

/// Heads by rank, each set ascending.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Partition {
    sets: Vec<Vec<usize>>,
}

impl Partition {
    /// The checkpoint's order.
    pub(super) fn as_stored(rules: &Rules) -> Self {
        Self { sets: (0..rules.tp).map(|rank| share(rules.n_heads, rules.tp, rank).collect()).collect() }
    }

    /// Neighbours on different ranks, as cards are dealt; only where that keeps the rules.
    fn dealt(rules: &Rules) -> Option<Self> {
        let deal = |rank| (rank..rules.n_heads).step_by(rules.tp).collect();
        let sets: Vec<Vec<usize>> = (0..rules.tp).map(deal).collect();
        let fits = sets.iter().enumerate().all(|(rank, set)| rules.fits(set, rank));
        fits.then_some(Self { sets })
    }

    /// The best that exchanges lead to, from either start. The same distances give the same partition.
    pub(super) fn search(rules: &Rules, distances: &[Vec<f64>]) -> Self {
        let starts = [Some(Self::as_stored(rules)), Self::dealt(rules)];
        let climbed = starts.into_iter().flatten().map(|mut partition| {
            while partition.improve(rules, distances) {}
            partition.sets.iter_mut().for_each(|set| set.sort_unstable());
            partition
        });
        let better = |a: Self, b: Self| if b.objective(distances) > a.objective(distances) { b } else { a };
        climbed.reduce(better).unwrap_or_else(|| Self::as_stored(rules))
    }

    /// The heads of one set.
    pub(super) fn set(&self, set: usize) -> &[usize] {
        &self.sets[set]
    }

    /// Σ of distances within sets (SPD paper, Equation 2).
    pub(super) fn objective(&self, distances: &[Vec<f64>]) -> f64 {
        self.sets.iter().map(|set| within(set, distances)).sum()
    }

    /// Makes the exchange between two sets that gains most; false if none gains.
    fn improve(&mut self, rules: &Rules, distances: &[Vec<f64>]) -> bool {
        // Rounding is no gain: the search ends.
        let least = 1e-9 * self.objective(distances).abs();
        let mut best: Option<(f64, usize, usize, [Vec<usize>; 2])> = None;
        for a in 0..self.sets.len() {
            for b in a + 1..self.sets.len() {
                let before = within(&self.sets[a], distances) + within(&self.sets[b], distances);
                for sets in self.exchanges(a, b, rules) {
                    if !rules.fits(&sets[0], a) || !rules.fits(&sets[1], b) {
                        continue;
                    }
                    let gain = within(&sets[0], distances) + within(&sets[1], distances) - before;
                    if gain > best.as_ref().map_or(least, |(gain, ..)| *gain) {
                        best = Some((gain, a, b, sets));
                    }
                }
            }
        }
        let Some((_, a, b, [set_a, set_b])) = best else { return false };
        (self.sets[a], self.sets[b]) = (set_a, set_b);
        true
    }

    /// Both sets after each exchange of two heads, and of neighbours of one KV group for as many of another.
    fn exchanges(&self, a: usize, b: usize, rules: &Rules) -> Vec<[Vec<usize>; 2]> {
        let (set_a, set_b) = (&self.sets[a], &self.sets[b]);
        let (from_a, from_b) = (rules.parts(set_a), rules.parts(set_b));
        let pairs = from_a.iter().flat_map(|x| from_b.iter().map(move |y| (x, y)));
        pairs
            .filter(|(x, y)| x.len() == y.len())
            .map(|(x, y)| [replaced(set_a, x, y), replaced(set_b, y, x)])
            .collect()
    }
}

fn replaced(set: &[usize], out: &[usize], into: &[usize]) -> Vec<usize> {
    set.iter().copied().filter(|head| !out.contains(head)).chain(into.iter().copied()).collect()
}

fn within(set: &[usize], distances: &[Vec<f64>]) -> f64 {
    let pairs = set.iter().enumerate().flat_map(|(i, &a)| set[..i].iter().map(move |&b| (a, b)));
    pairs.map(|(a, b)| distances[a][b]).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Config, shapes};

    fn rules(n_heads: usize, n_kv_heads: usize, tp: usize, replicate: bool) -> Rules {
        let config = Config { n_heads, n_kv_heads, ..shapes::named("tiny").unwrap() };
        Rules::new(&Sharding::new(&config, tp).unwrap(), n_heads, n_kv_heads, replicate)
    }

    /// Distances between points on a line.
    fn line(points: &[f64]) -> Vec<Vec<f64>> {
        points.iter().map(|a| points.iter().map(|b| (a - b).abs()).collect()).collect()
    }

    #[test]
    fn heads_that_are_alike_are_put_apart() {
        // Three pairs of equal heads on two ranks: no pair stays together.
        let distances = line(&[0.0, 0.0, 1.0, 1.0, 3.0, 3.0]);
        let found = Partition::search(&rules(6, 6, 2, false), &distances);
        for set in 0..2 {
            let halves: Vec<usize> = found.set(set).iter().map(|head| head / 2).collect();
            assert_eq!(halves, [0, 1, 2]);
        }
    }

    #[test]
    fn kv_groups_stay_whole_where_ranks_held_whole_ones() {
        // Nine heads, three KV heads, three ranks: nothing can move but groups as a whole, which changes no distance.
        let distances = line(&[0.0, 0.1, 0.2, 5.0, 5.1, 5.2, 9.0, 9.1, 9.2]);
        let kept = rules(9, 3, 3, false);
        assert_eq!(Partition::search(&kept, &distances), Partition::as_stored(&kept));
        let free = rules(9, 3, 3, true);
        let spread = Partition::search(&free, &distances);
        assert!(spread.objective(&distances) > 10.0 * Partition::as_stored(&free).objective(&distances));
        // Four groups of two on two ranks: like groups part.
        let distances = line(&[0.0, 0.1, 0.0, 0.1, 4.0, 4.1, 4.0, 4.1]);
        let found = Partition::search(&rules(8, 4, 2, false), &distances);
        let mut groups: Vec<Vec<usize>> =
            (0..2).map(|set| found.set(set).iter().step_by(2).map(|head| head / 2).collect()).collect();
        groups.sort();
        assert!(groups == [[0, 2], [1, 3]] || groups == [[0, 3], [1, 2]], "{groups:?}");
    }

    /// The best partition of all.
    fn exhaustive(rules: &Rules, distances: &[Vec<f64>]) -> f64 {
        fn fill(head: usize, sets: &mut Vec<Vec<usize>>, rules: &Rules, distances: &[Vec<f64>]) -> f64 {
            if head == rules.n_heads {
                let fits = sets.iter().enumerate().all(|(rank, set)| rules.fits(set, rank));
                let sum = sets.iter().map(|set| within(set, distances)).sum();
                return if fits { sum } else { f64::NEG_INFINITY };
            }
            let mut best = f64::NEG_INFINITY;
            for rank in 0..rules.tp {
                if sets[rank].len() < rules.size(rank) {
                    sets[rank].push(head);
                    best = best.max(fill(head + 1, sets, rules, distances));
                    sets[rank].pop();
                }
            }
            best
        }
        fill(0, &mut vec![Vec::new(); rules.tp], rules, distances)
    }

    #[test]
    fn the_search_comes_near_the_best() {
        let mut sum = 0.0;
        const INSTANCES: u64 = 60;
        for seed in 0..INSTANCES {
            let (n_heads, n_kv_heads, tp) =
                [(9, 3, 2), (8, 4, 2), (8, 8, 3), (9, 9, 3), (8, 2, 4)][seed as usize % 5];
            let at = |i: u64| (seed * 97 + i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
            let points: Vec<f64> = (0..n_heads as u64).map(|i| at(i) as f64).collect();
            let (rules, distances) = (rules(n_heads, n_kv_heads, tp, seed % 2 == 0), line(&points));
            sum +=
                Partition::search(&rules, &distances).objective(&distances) / exhaustive(&rules, &distances);
        }
        assert!(sum / INSTANCES as f64 > 0.99, "on average {} of the best", sum / INSTANCES as f64);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn the_search_keeps_the_rules(
            groups in 1usize..5, per_group in 1usize..4, tp in 1usize..5, replicate: bool,
            points in proptest::collection::vec(0.0f64..1.0, 12),
        ) {
            let n_heads = groups * per_group;
            prop_assume!(tp <= n_heads && n_heads <= 9);
            let rules = rules(n_heads, groups, tp, replicate);
            let distances = line(&points[..n_heads]);
            let found = Partition::search(&rules, &distances);
            let mut all: Vec<usize> = found.sets.concat();
            all.sort_unstable();
            prop_assert_eq!(all, Vec::from_iter(0..n_heads));
            for (rank, set) in found.sets.iter().enumerate() {
                prop_assert!(rules.fits(set, rank) && set.is_sorted());
            }
            let (start, best) = (Partition::as_stored(&rules).objective(&distances), exhaustive(&rules, &distances));
            let value = found.objective(&distances);
            prop_assert!(value >= start - 1e-9 && value <= best + 1e-9, "{value} of {best}");
        }
    }
}
