//! The assignment problem: one column for each row, the sum as large as possible.

/// For each row of a square matrix its column in the best assignment, by shortest augmenting paths with potentials
/// (the Hungarian method), O(n³). −∞ forbids a pair; there must be an assignment without any.
pub(super) fn assign(values: &[Vec<f64>]) -> Vec<usize> {
    let n = values.len();
    // Beyond every sum of allowed values, so that a forbidden pair is taken only where nothing else is left.
    let spread: f64 = values.iter().flatten().filter(|v| v.is_finite()).map(|v| v.abs()).sum();
    let forbidden = 2.0 * spread + 1.0;
    let cost = |row: usize, column: usize| match values[row][column] {
        value if value.is_finite() => -value,
        _ => forbidden,
    };
    let (mut row_potential, mut column_potential) = (vec![0.0; n], vec![0.0; n]);
    let mut row_of: Vec<Option<usize>> = vec![None; n];
    for first in 0..n {
        // Shortest paths from `first` over reduced costs, to the nearest free column.
        let (mut distance, mut previous) = (vec![f64::INFINITY; n], vec![None; n]);
        let mut settled = vec![false; n];
        let (mut row, mut arrived, mut length) = (first, None, 0.0);
        let free = loop {
            let mut nearest: Option<usize> = None;
            for column in (0..n).filter(|&column| !settled[column]) {
                let reduced = length + cost(row, column) - row_potential[row] - column_potential[column];
                if reduced < distance[column] {
                    (distance[column], previous[column]) = (reduced, arrived);
                }
                if nearest.is_none_or(|nearest| distance[column] < distance[nearest]) {
                    nearest = Some(column);
                }
            }
            let column = nearest.expect("a row is left, and so is a column");
            (settled[column], length) = (true, distance[column]);
            match row_of[column] {
                Some(next) => (row, arrived) = (next, Some(column)),
                None => break column,
            }
        };
        row_potential[first] += length;
        for column in (0..n).filter(|&column| settled[column] && column != free) {
            if let Some(row) = row_of[column] {
                row_potential[row] += length - distance[column];
            }
            column_potential[column] -= length - distance[column];
        }
        // Everyone on the path moves one column on.
        let mut column = free;
        while let Some(before) = previous[column] {
            row_of[column] = row_of[before];
            column = before;
        }
        row_of[column] = Some(first);
    }
    let mut column_of = vec![0; n];
    for (column, row) in row_of.into_iter().enumerate() {
        if let Some(row) = row {
            column_of[row] = column;
        }
    }
    column_of
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn best_of_all(values: &[Vec<f64>], row: usize, taken: &mut Vec<bool>) -> f64 {
        if row == values.len() {
            return 0.0;
        }
        let mut best = f64::NEG_INFINITY;
        for column in 0..values.len() {
            if !taken[column] {
                taken[column] = true;
                best = best.max(values[row][column] + best_of_all(values, row + 1, taken));
                taken[column] = false;
            }
        }
        best
    }

    proptest! {
        #[test]
        fn no_other_assignment_is_better(
            n in 1usize..7,
            numbers in proptest::collection::vec(-20i32..20, 36),
            forbidden in proptest::collection::vec(0usize..6, 0..6),
        ) {
            let mut values: Vec<Vec<f64>> =
                (0..n).map(|row| (0..n).map(|column| f64::from(numbers[row * 6 + column])).collect()).collect();
            // Off the diagonal, so that an allowed assignment is left.
            for (row, column) in forbidden.into_iter().enumerate() {
                if row < n && column < n && row != column {
                    values[row][column] = f64::NEG_INFINITY;
                }
            }
            let columns = assign(&values);
            let mut sorted = columns.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, Vec::from_iter(0..n));
            let sum: f64 = columns.iter().enumerate().map(|(row, &column)| values[row][column]).sum();
            prop_assert_eq!(sum, best_of_all(&values, 0, &mut vec![false; n]));
        }
    }
}
