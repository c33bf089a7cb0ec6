//! Which MLP columns go to which rank, where every rank keeps its number of columns.

/// Deals columns to ranks of given capacities so that the sum of `cost[rank][column]` is small: best places first
/// to the columns that lose most elsewhere, then exchanges between two ranks until none pays. Columns of a rank
/// are in ascending order.
pub(super) fn place(cost: &[Vec<f64>], capacities: &[usize]) -> Vec<Vec<u32>> {
    let columns = cost.first().map_or(0, Vec::len);
    debug_assert_eq!(columns, capacities.iter().sum::<usize>());
    let mut open = capacities.to_vec();
    let mut placed: Vec<Vec<usize>> = capacities.iter().map(|&n| Vec::with_capacity(n)).collect();
    let ranked = |column: usize| {
        let mut ranks: Vec<usize> = (0..cost.len()).filter(|&rank| capacities[rank] > 0).collect();
        ranks.sort_by(|&a, &b| cost[a][column].total_cmp(&cost[b][column]));
        ranks
    };
    let regret = |column: usize| match ranked(column)[..] {
        [best, second, ..] => cost[second][column] - cost[best][column],
        _ => 0.0,
    };
    let mut order: Vec<(f64, usize)> = (0..columns).map(|column| (regret(column), column)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    for (_, column) in order {
        // Capacities add up to the columns, so one is open.
        if let Some(rank) = ranked(column).into_iter().find(|&rank| open[rank] > 0) {
            open[rank] -= 1;
            placed[rank].push(column);
        }
    }
    exchange(cost, &mut placed);
    let ascending = |mut columns: Vec<usize>| {
        columns.sort_unstable();
        columns.into_iter().map(|column| column as u32).collect()
    };
    placed.into_iter().map(ascending).collect()
}

/// Swaps columns between pairs of ranks as long as the sum falls.
fn exchange(cost: &[Vec<f64>], placed: &mut [Vec<usize>]) {
    loop {
        let mut improved = false;
        for a in 0..placed.len() {
            for b in a + 1..placed.len() {
                improved |= exchange_pair(cost, placed, a, b);
            }
        }
        if !improved {
            return;
        }
    }
}

/// Between two ranks the best exchange is known: those who gain most by moving, in pairs.
fn exchange_pair(cost: &[Vec<f64>], placed: &mut [Vec<usize>], a: usize, b: usize) -> bool {
    let by_gain = |from: usize, to: usize, columns: &mut Vec<usize>| {
        let gain = |&column: &usize| cost[from][column] - cost[to][column];
        columns.sort_by(|x, y| gain(y).total_cmp(&gain(x)).then(x.cmp(y)));
        columns.iter().map(gain).collect::<Vec<f64>>()
    };
    let out = by_gain(a, b, &mut placed[a]);
    let back = by_gain(b, a, &mut placed[b]);
    // Rounding must not make two columns go back and forth for ever.
    let pays = |&(x, y): &(&f64, &f64)| x + y > 1e-9 * (x.abs() + y.abs());
    let swaps = out.iter().zip(&back).take_while(pays).count();
    let (first, second) = placed.split_at_mut(b);
    first[a][..swaps].swap_with_slice(&mut second[0][..swaps]);
    swaps > 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn total(cost: &[Vec<f64>], placed: &[Vec<u32>]) -> f64 {
        let of_rank = |(rank, columns): (usize, &Vec<u32>)| -> f64 {
            columns.iter().map(|&column| cost[rank][column as usize]).sum()
        };
        placed.iter().enumerate().map(of_rank).sum()
    }

    #[test]
    fn columns_go_where_they_cost_least() {
        let cost = [vec![0.0, 9.0, 0.0, 9.0], vec![9.0, 0.0, 9.0, 0.0]];
        assert_eq!(place(&cost, &[2, 2]), [vec![0, 2], vec![1, 3]]);
        // All prefer the first rank; the one that loses least elsewhere gives way.
        let cost = [vec![0.0, 0.0, 0.0], vec![3.0, 1.0, 2.0]];
        assert_eq!(place(&cost, &[2, 1]), [vec![0, 2], vec![1]]);
        assert_eq!(place(&cost, &[3, 0]), [vec![0, 1, 2], vec![]]);
    }

    proptest! {
        #[test]
        fn every_column_is_placed_and_two_ranks_are_served_best(
            costs in proptest::collection::vec((0u8..50, 0u8..50), 1..9), first in 0usize..9,
        ) {
            let n = costs.len();
            let first = first.min(n);
            let cost = [
                costs.iter().map(|c| f64::from(c.0)).collect::<Vec<_>>(),
                costs.iter().map(|c| f64::from(c.1)).collect(),
            ];
            let placed = place(&cost, &[first, n - first]);
            prop_assert_eq!((placed[0].len(), placed[1].len()), (first, n - first));
            let mut all: Vec<u32> = placed.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..n as u32).collect::<Vec<_>>());
            let subsets = (0..1u32 << n).filter(|set| set.count_ones() as usize == first);
            let best = subsets.map(|set| (0..n).map(|i| cost[usize::from(set >> i & 1 == 0)][i]).sum::<f64>());
            prop_assert!(total(&cost, &placed) <= best.fold(f64::INFINITY, f64::min) + 1e-9);
        }
    }
}
